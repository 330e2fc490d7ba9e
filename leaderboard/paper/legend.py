"""What the paper's page says before its tables: where the numbers are from, and what every word and mark means."""

from __future__ import annotations

from urllib.parse import quote

from leaderboard.paper.cells import (
    HIGHER,
    LOWER,
    MARGIN,
    NOT_IN_SUITE,
    NOT_RUN,
    PROTOCOL_DIFFERS,
    REPRODUCED,
    TOO_FEW,
    WITHIN_NOISE,
)
from leaderboard.paper.published import Tables
from leaderboard.table import escape

INTRODUCTION = """\
# The paper's tables, cell by cell

The numbers published in {source}, each beside ours. Made from the [records]({folder}) and
`leaderboard/paper/paper_tables.yaml` by `make leaderboard`; do not edit. How many cells have which verdict:"""

LEGEND = """\
## How to read a cell

Accuracies are top-1 on the test images, in percent; differences are in points. A cell lists, from the top:

- **paper**: what the paper prints, with two decimals. It does not state the ddof of its ±, which is taken as a sample
  standard deviation (ddof = 1) of {runs} runs; had the authors divided by n, it would have to be {factor:.2f} times as
  large. The mark behind a number, and behind all that rests on it, says how well the number is known (below).
- **ours, best on test**: the paper's protocol, the best test accuracy of all epochs after the target sparsity was
  reached; mean ± sample standard deviation (ddof = 1) over n seeds. Chosen on the test set: for this comparison only.
- **ours − paper**: the difference of these means with its 95 % interval (Welch; not corrected for the number of cells).
  `no ± printed`: the paper's value is then taken as exact, so the interval is too narrow. Without an interval it is for
  orientation only.
- *verdict*: in italics, one of those below, bold where the difference is significant.
- **ours, last epoch**: the clean protocol, test accuracy after the last epoch: nothing was chosen on the test set.
- **ours, selected on validation**: clean too, test accuracy of the epoch with the best validation accuracy, on pages
  that hold out validation images.
- `seed 0`: the record of a run. Of several runs of a seed the first that finished counts, the others are `repeat`.
  Diverged runs are counted beside n and enter no mean.

Verdicts:

- *{in_suite}*: the suite has no such method.
- *{not_run}*: there is no run of this cell.
- *{differs}*: the numbers are shown and say nothing about the paper's. The row is cited from another paper, or our runs
  have other settings, data, arithmetic or an older protocol; what differs is named.
- *{few}*: fewer than two of our runs finished.
- *{reproduced}*: the whole 95 % interval lies within ± {margin} points of the published value.
- *{higher}*, *{lower}*: not reproduced, and significantly so: p < 0.05 after Holm's correction over all compared cells
  of the table.
- *{noise}*: none of these. The interval is too wide to tell, which is no agreement.

Marks of published numbers:

{marks}

FLOPs are 2 × multiply-adds, as multiples of the dense network's. `·`: nothing to show. s_i: sparsity at the start; t_f:
end of gradual pruning; ERK, uniform: how the active weights are shared out among the layers."""


def make_introduction(tables: Tables, folder: str) -> str:
    """Return the head of the page; `folder` is where links to records lead."""
    return INTRODUCTION.format(source=escape(tables.source), folder=quote(folder))


def make_legend(tables: Tables) -> str:
    """Return the explanation of every line, verdict and mark."""
    return LEGEND.format(
        runs=tables.runs,
        factor=(tables.runs / (tables.runs - 1)) ** 0.5,
        margin=MARGIN,
        marks="\n".join(f"- {mark or 'no mark'}: {meaning_of(tables, name)}" for name, mark in tables.marks.items()),
        in_suite=NOT_IN_SUITE,
        not_run=NOT_RUN,
        differs=PROTOCOL_DIFFERS,
        few=TOO_FEW,
        reproduced=REPRODUCED,
        noise=WITHIN_NOISE,
        higher=HIGHER,
        lower=LOWER,
    )


def meaning_of(tables: Tables, status: str) -> str:
    """Return what a status of a published number says, as a footnote: `*unconfirmed*, recalled, …`."""
    return f"*{status}*, {' '.join(tables.meanings[status].split())}."
