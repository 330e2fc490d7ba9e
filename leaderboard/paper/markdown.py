"""The sheet that shows the paper's tables beside the records."""

from __future__ import annotations

import itertools
from collections import Counter
from urllib.parse import quote

from leaderboard.claims.claim import NOT_DECIDED
from leaderboard.paper.cells import (
    HIGHER,
    LOWER,
    MARGIN,
    NO_STD,
    NOT_IN_SUITE,
    NOT_RUN,
    PROTOCOL_DIFFERS,
    REPRODUCED,
    TESTED,
    TOO_FEW,
    VERDICTS,
    WITHIN_NOISE,
    Comparison,
    Group,
    Line,
    PartView,
    TableView,
    compare_all,
)
from leaderboard.paper.published import Published, Tables
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import show_bounds, signed
from leaderboard.tables.sections import amount, identity
from leaderboard.tables.table import (
    BLANK,
    HEADINGS,
    LEAST_SEEDS,
    escape,
    flops,
    line,
    list_links,
    mean,
    mean_and_std,
    multiple,
)

NAMES = {1: "dense baselines", 2: "CIFAR-10 and CIFAR-100", 3: "ImageNet"}
COSTS = (("train", "training FLOPs"), ("inference", "inference FLOPs"))


def render_paper(
    records: list[Record], tables: Tables, folder: str = "records", views: list[TableView] | None = None
) -> str:
    """Return the sheet in Markdown; `folder` is the link target of records, relative to the sheet.

    `views`: what `compare_all` returns for these records, if it is known already. Invariant: the order of the records
    is irrelevant, and every number is a record's or a published one.
    """
    views = compare_all(records, tables) if views is None else views
    dense = {view.part.page: view.lines[0].cells[0] for view in views[0].parts}
    lines = [
        INTRODUCTION.format(source=escape(tables.source), folder=quote(folder)),
        "",
        *summary_table(views),
        "",
        make_legend(tables),
    ]
    for view in views:
        name = f"Table {view.table.number}"
        lines += ["", f"## {name}: {NAMES[view.table.number]}", "", progress(view)]
        if view.table.number == 1:
            lines += ["", *baseline_table(view, tables, folder)]
        else:
            for part in view.parts:
                lines += part_section(part, dense[part.part.page], tables, folder)
        lines += ["", "Marks and notes:", "", *footnotes(view, tables)]
    return "\n".join(lines) + "\n"


def summary_table(views: list[TableView]) -> list[str]:
    """Return the lines of the table that counts the verdicts."""
    lines = [line(["table", "cells", *VERDICTS]), line(["---"] + ["---:"] * (1 + len(VERDICTS)))]
    for view in views:
        cells = view.distinct()
        counts = Counter(comparison.verdict for comparison in cells)
        shown = [str(counts[verdict]) for verdict in VERDICTS]
        lines.append(line([f"Table {view.table.number}", str(len(cells)), *shown]))
    return lines


def done_of(view: TableView) -> str:
    """Return `0 of 87 cells run`: of the cells of methods in the suite, those with a run of the table's protocol."""
    ours = [comparison for comparison in view.distinct() if comparison.verdict != NOT_IN_SUITE]
    done = sum(comparison.compared is not None for comparison in ours)
    return f"{done} of {len(ours)} cells run"


def progress(view: TableView) -> str:
    """Return how much of a table was run, and the command that runs the rest."""
    target = f"make table{view.table.number}"
    missing = sum(comparison.verdict == NOT_IN_SUITE for comparison in view.distinct())
    others = f" {amount(missing, 'further cell')} belong to methods that the suite does not have." if missing else ""
    return (
        f"Table {view.table.number}: {done_of(view)} in the paper's protocol.{others} `{target}` runs what is missing "
        f"and rebuilds this page; `{target} PLAN=1` prints cells, FLOPs and an estimated time without running."
    )


def baseline_table(view: TableView, tables: Tables, folder: str) -> list[str]:
    """Return the lines of Table 1: a row for each page, with the recipe the paper prints."""
    costs = COSTS if any(has_costs(part) for part in view.parts) else ()
    head = ["network and data", "epochs", "batch", "learning rate", "÷ 10 after epochs", "weight decay", "accuracy, %"]
    lines = [line([*head, *(name for _, name in costs)]), line(["---"] + ["---:"] * 5 + ["---"] * (1 + len(costs)))]
    for part in view.parts:
        recipe = part.part.recipe
        drops = ", ".join(str(epoch) for epoch in recipe["lr_drops"])
        shown = [tables.pages[part.part.page].title, *(str(recipe[key]) for key in ("epochs", "batch", "lr")), drops]
        shown += [f"{recipe['weight_decay']:.4f}"]
        cell = part.lines[0].cells[0]
        shown += [accuracy_cell(cell, tables, folder), *(cost_cell(cell, key, True, tables) for key, _ in costs)]
        lines.append(line(shown))
    compared = [f"- {tables.pages[part.part.page].title}: {identity(part.usual)}" for part in view.parts if part.usual]
    return lines + (["", "Compared are:", "", *compared] if compared else [])


def part_section(view: PartView, dense: Comparison, tables: Tables, folder: str) -> list[str]:
    """Return the lines of one part of Table 2 or 3: title, what is compared, the dense network, the table."""
    title = tables.pages[view.part.page].title
    lines = ["", f"### {title}", "", f"Page `{view.part.page}`; "]
    lines[-1] += f"compared are runs of {identity(view.usual)}." if view.usual else "no run of its protocol yet."
    if all(row.group != "dense" for row in view.part.rows):
        lines[-1] += f" The dense network (Table 1): {'; '.join(accuracy_lines(dense, tables)[:2])}."
    costs = COSTS if has_costs(view) else ()
    sparsities = list(view.part.rows[0].cells)
    head = ["method"]
    for sparsity in sparsities:
        head += [f"{sparsity} %: accuracy", *(f"{sparsity} %: {name}" for _, name in costs)]
    lines += ["", line(head), line(["---"] * len(head))]
    groups = [row.group for row in view.part.rows]
    together = len(list(itertools.groupby(groups))) == len(set(groups))  # else headings would repeat
    group = ""
    for shown in view.lines:
        if together and shown.row.group != group:
            group = shown.row.group
            lines.append(line([f"*{HEADINGS[group]}*"] + [""] * (len(head) - 1)))
        cells = [method_cell(shown, not together)]
        for cell in shown.cells.values():
            cells.append(accuracy_cell(cell, tables, folder))
            cells += [cost_cell(cell, key, shown.row.group == "dense", tables) for key, _ in costs]
        lines.append(line(cells))
    return lines


def has_costs(view: PartView) -> bool:
    """Return whether a part has FLOPs to show: printed ones, or those of our runs, compared or not."""
    cells = [cell for shown in view.lines for cell in shown.cells.values()]
    return any(cell.compared or cell.others or cell.published.train_share is not None for cell in cells)


def method_cell(shown: Line, name_group: bool) -> str:
    """Return the first entry of a row: label, reading of the paper, group, and whether it is cited."""
    row = shown.row
    parts = [
        f"**{escape(row.label)}**",
        escape(shown.note),
        f"*{row.group}*" if name_group and row.group != row.label else "",
    ]
    return "<br>".join(part for part in [*parts, "cited from another paper" if row.cited else ""] if part)


def accuracy_cell(comparison: Comparison, tables: Tables, folder: str) -> str:
    """Return stacked accuracies: the paper's, ours in its protocol, verdict, ours in the clean protocols."""
    lines = accuracy_lines(comparison, tables)
    compared = comparison.compared
    if compared is None and comparison.others:
        for group in comparison.others:
            lines += [f"with {name_departures(group)}:", *our_lines(group, comparison.published, tables)]
            lines += [f"*{PROTOCOL_DIFFERS}*", *clean_lines(group), *run_lines(group, folder)]
        return "<br>".join(lines)
    rests_on_paper = comparison.verdict in TESTED or comparison.reason == NO_STD
    mark = tables.marks[comparison.published.status] if rests_on_paper else ""
    verdict = comparison.verdict + (f": {comparison.reason}" if comparison.reason else "")
    shown = f"***{verdict}***" if comparison.verdict in (HIGHER, LOWER) else f"*{verdict}*"
    lines.append(f"{shown} {mark}".rstrip())
    if compared is not None:
        lines += [*seen_lines(comparison, tables), *clean_lines(compared), *run_lines(compared, folder)]
        left_out = sum(len(group.cell.counted) + len(group.cell.repeats) for group in comparison.others)
        reasons = sorted({name_departures(group) for group in comparison.others})
        lines += [f"not compared: {amount(left_out, 'run')} ({' / '.join(reasons)})"] if left_out else []
    return "<br>".join(lines)


def name_departures(group: Group) -> str:
    """Return how a group's runs depart from the table's protocol, escaped."""
    return "; ".join(escape(departure) for departure in group.departures)


def accuracy_lines(comparison: Comparison, tables: Tables) -> list[str]:
    """Return the paper's accuracy and, if runs are compared, ours in its protocol and the difference."""
    published = comparison.published
    std = "" if published.std is None else f" ± {published.std:.2f}"
    value = BLANK if published.top1 is None else f"{published.top1:.2f}{std} {tables.marks[published.status]}".rstrip()
    lines = [f"paper: {value}"]
    if comparison.compared is not None:
        lines += our_lines(comparison.compared, published, tables, comparison)
    return lines


def our_lines(group: Group, published: Published, tables: Tables, comparison: Comparison | None = None) -> list[str]:
    """Return ours, best on test, and the difference, with its interval if `comparison` has one."""
    found = group.values("best_on_test")
    count = f"(n={len(found)}, {group.diverged} diverged)" if group.diverged else f"(n={len(found)})"
    lines = [f"ours, best on test: {mean_and_std(found)} {count}"]
    if found and published.top1 is not None:
        difference = comparison.difference if comparison else None
        text = f"ours − paper: {signed(sum(found) / len(found) - published.top1)}"
        text += show_bounds(difference) if difference is not None else ""
        lines.append(f"{text} {tables.marks[published.status]}".rstrip())
    return lines


def seen_lines(comparison: Comparison, tables: Tables) -> list[str]:
    """Return the true difference that such runs find in four of five cases, if there is one."""
    difference = comparison.difference
    if difference is None or difference.detectable is None:
        return []
    mark = tables.marks[comparison.published.status]
    return [f"would have seen {difference.detectable:.2f} points {mark}".rstrip()]


def clean_lines(group: Group) -> list[str]:
    """Return ours in the clean protocols: the last epoch, and selected on validation if the page has that."""
    kinds = {"last_epoch": "last epoch", "validation_selected": "selected on validation"}
    found = {name: group.values(key) for key, name in kinds.items()}
    return [f"ours, {name}: {mean_and_std(values)}" for name, values in found.items() if values]


def run_lines(group: Group, folder: str) -> list[str]:
    """Return links to the records of a group, and the seeds that diverged or whose code is in no commit."""
    links = list_links(group.cell, folder, " (diverged)")
    dirty = [str(record["seed"]) for record in group.cell.counted if record["git"]["dirty"]]
    return [links, f"uncommitted code: seed {', '.join(dirty)}"] if dirty else [links]


def cost_cell(comparison: Comparison, key: str, absolute: bool, tables: Tables) -> str:
    """Return the FLOPs of an entry, stacked: the paper's share of dense if it prints one, and ours."""
    published = {"train": comparison.published.train_share, "inference": comparison.published.inference_share}[key]
    lines = []
    if published is not None:
        lines.append(f"paper: {published:.2f}× {tables.marks[comparison.published.status]}".rstrip())
    for group in [comparison.compared] if comparison.compared else comparison.others:
        label = f"ours, with {name_departures(group)}" if group.departures else "ours"
        own = mean((record["macs"][f"{key}_share"] for record in group.cell.finished), multiple)
        dense = mean((record["macs"][key] for record in group.cell.finished), flops)
        lines.append(f"{label}: {own}" + (f" ({dense})" if absolute and group.cell.finished else ""))
    return "<br>".join(lines) or BLANK


def footnotes(view: TableView, tables: Tables) -> list[str]:
    """Return the lines under a table: the marks it uses, and its notes."""
    used = {cell.status for part in view.table.parts for row in part.rows for cell in row.cells.values()}
    marks = [f"- {mark} {meaning_of(tables, name)}" for name, mark in tables.marks.items() if name in used and mark]
    return marks + [f"- {' '.join(note.split())}" for note in view.table.notes]


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
- **would have seen**: the true difference that as many runs with these spreads find in four of five cases (not
  corrected for the number of cells); a smaller one may be there unseen.
- **ours, last epoch**: the clean protocol, test accuracy after the last epoch: nothing was chosen on the test set.
- **ours, selected on validation**: clean too, test accuracy of the epoch with the best validation accuracy, on pages
  that hold out validation images.
- `seed 0`: the record of a run. Of several runs of a seed the first that finished counts, the others are `repeat`.
  Diverged runs are counted beside n and enter no mean. `uncommitted code` ran, in whole or in part, with files that
  differ from the commit named in the record.
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
    """Return the meaning of a status as a footnote: `*unconfirmed*, recalled, …`."""
    return f"*{status}*, {' '.join(tables.meanings[status].split())}."
