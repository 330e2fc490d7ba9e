"""What the paper's page says before its tables: where the numbers are from, and what every word and mark means."""

from __future__ import annotations

from urllib.parse import quote

from leaderboard.claims.verdict import NOT_DECIDED
from leaderboard.paper.cells import (
    HIGHER,
    LOWER,
    MARGIN,
    NO_STD,
    NOT_IN_SUITE,
    NOT_RUN,
    PROTOCOL_DIFFERS,
    REPRODUCED,
    TOO_FEW,
    WITHIN_NOISE,
)
from leaderboard.paper.published import Tables
from leaderboard.table import LEAST_SEEDS, escape

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
  Without an interval it is for orientation only.
- *verdict*: in italics, one of those below, bold where the difference is significant.
- **would have seen**: the true difference that as many runs with these spreads find in seven to eight of ten cases (not
  corrected for the number of cells); a smaller one may be there unseen.
- **ours, last epoch**: the clean protocol, test accuracy after the last epoch: nothing was chosen on the test set.
- **ours, selected on validation**: clean too, test accuracy of the epoch with the best validation accuracy, on pages
  that hold out validation images.
- `seed 0`: the record of a run. Of several runs of a seed the first that finished counts, the others are `repeat`.
  Diverged runs are counted beside n and enter no mean. `uncommitted code` ran with files that differ from the commit
  named in the record.
- `not compared`: further runs of the cell, and in what they depart from the paper's protocol or from the runs compared.

Verdicts:

- *{in_suite}*: the suite has no such method.
- *{not_run}*: there is no run of this cell.
- *{differs}*: the numbers are shown and say nothing about the paper's. The row is cited from another paper, or our runs
  have other settings (of the page or of the method, as recorded), data, arithmetic or an older protocol; what differs
  is named. Of several versions of a method's file, the one with most runs in the cells of the row is compared, of
  equally many the one that finished last.
- *{few}*: fewer than {least} of our runs finished.
- *{undecided}*: no test would be sound. `1 diverged`: so many of our runs diverged, and those that finished say too
  much for the method. `{no_std}`: the paper prints no ±, so nobody knows how far its own runs are apart.
- *{reproduced}*: the whole 95 % interval lies within ± {margin} points of the published value.
- *{higher}*, *{lower}*: not reproduced, and significantly so: p < 0.05 after Holm's correction over all cells of the
  table that have a test.
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
        least=LEAST_SEEDS,
        undecided=NOT_DECIDED,
        no_std=NO_STD,
        reproduced=REPRODUCED,
        noise=WITHIN_NOISE,
        higher=HIGHER,
        lower=LOWER,
    )


def meaning_of(tables: Tables, status: str) -> str:
    """Return what a status of a published number says, as a footnote: `*unconfirmed*, recalled, …`."""
    return f"*{status}*, {' '.join(tables.meanings[status].split())}."
