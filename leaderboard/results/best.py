"""Which rows are best at equal sparsity, and within a budget of FLOPs, as far as the seeds tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from leaderboard.paper.published import Tables
from leaderboard.results.scope import Section, span
from leaderboard.store.kinds import parse_time
from leaderboard.store.records import stable_key
from leaderboard.tables.comparisons import accuracies, certain, grain
from leaderboard.tables.table import BLANK, LEAST_SEEDS, Row, line, percent

COSTS = {"train": "training", "inference": "inference"}
BUDGETS = {"train": (0.05, 0.1, 0.2, 0.4), "inference": (0.05, 0.1, 0.2)}  # multiples of the dense network's FLOPs
SPARSITY = "sparsity"
NAMED = 2  # rows named that the seeds do not tell apart from the best; more are only counted
COLUMNS = 4  # pages side by side

LEGEND = """\
Highest mean accuracy after the last epoch, in percent, *or* the next rows among those that the seeds do not tell apart
from it: no other row allowed there is significantly above them (all pairs, corrected as the leaderboard's ranks are).
**Bold**: best alone. FLOPs are multiples of the dense network's; within a budget each row may take part at any of its
sparsities. Rows are methods at their defaults or as in a row of the paper's tables, with {least} seeds or more and none
diverged."""


@dataclass(frozen=True)
class Point:
    """A row at a sparsity: accuracies by seed, and mean costs as multiples of the dense network's."""

    name: str
    sparsity: float
    accuracies: dict[int, float]
    costs: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds, in percent."""
        return fmean(self.accuracies.values())

    @property
    def key(self) -> str:
        """What tells points of a section apart."""
        return f"{self.name} ({percent(self.sparsity)})"


@dataclass(frozen=True)
class Best:
    """The points that may be best, highest mean first: no other that was allowed is significantly above one."""

    points: tuple[Point, ...]


def find_points(section: Section, tables: Tables) -> list[Point]:
    """Return the points that may be called best; of several versions of a method's file those of the newest."""
    rows = [row for row in section.rows if not row.dense and not row.made_from and is_named(row, tables)]
    newest: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        newest[method_of(row)["name"]] = max(newest.get(method_of(row)["name"], ()), last_finished(row))
    return [
        Point(
            row.label.split(" (file ")[0], sparsity, known, {part: mean_share(entry.finished, part) for part in COSTS}
        )
        for row in rows
        if newest[method_of(row)["name"]][-1] == method_of(row)["sha256"]
        for sparsity, entry in row.cells.items()
        if len(known := certain(entry)) >= LEAST_SEEDS
    ]


def method_of(row: Row) -> dict[str, Any]:
    """Return the method of a row's first run."""
    found: dict[str, Any] = next(iter(row.cells.values())).counted[0]["method"]
    return found


def last_finished(row: Row) -> tuple[Any, ...]:
    """Return what sorts rows by their last run, the version of the method's file at the end."""
    runs = [run for entry in row.cells.values() for run in entry.counted]
    return (*max((parse_time(run["finished"]), *stable_key(run)) for run in runs), method_of(row)["sha256"])


def is_named(row: Row, tables: Tables) -> bool:
    """Return whether a row has its method's defaults or the settings of a row of the paper's tables."""
    parts = (part for table in tables.tables for part in table.parts)
    matches = (match for part in parts for paper_row in part.rows for match in paper_row.ours)
    name, settings = method_of(row)["name"], dict(row.settings)
    return not settings or any(match.method == name and match.changed == settings for match in matches)


def mean_share(runs: Iterable[dict[str, Any]], part: str) -> float:
    """Return the mean cost of runs as a multiple of the dense network's."""
    return fmean(run["macs"][f"{part}_share"] for run in runs)


Question = tuple[str, float]  # `sparsity`, or a key of COSTS with a budget


def find_best(section: Section, tables: Tables) -> dict[Question, Best]:
    """Return the best points by question, a sparsity or a kind of cost with its budget.

    A question that fewer than two points could answer is left out. Invariant: at most 5 % of such sections leave a
    truly best row out of the answers on sparsity, and as many out of those on budgets.
    """
    from leaderboard.tables.stats import find_better  # here, because scipy takes a second

    points = find_points(section, tables)
    step = max((grain(run) for run in section.runs), default=0.0)
    found: dict[Question, Best] = {}
    groups: dict[float, list[Point]] = {}
    for point in points:
        groups.setdefault(point.sparsity, []).append(point)
    groups = {sparsity: group for sparsity, group in sorted(groups.items()) if len(group) > 1}
    table = {sparsity: {point.name: point.accuracies for point in group} for sparsity, group in groups.items()}
    better = find_better(table, step, LEAST_SEEDS)
    for sparsity, group in groups.items():
        above = {(one, other) for key, one, other in better if key == sparsity}
        found[SPARSITY, sparsity] = choose({point.name: point for point in group}, above)
    above = {
        (one, other)
        for _, one, other in find_better({0: {point.key: point.accuracies for point in points}}, step, LEAST_SEEDS)
    }
    for part, budget in [(part, budget) for part, budgets in BUDGETS.items() for budget in budgets]:
        allowed = {
            point.key: point for point in points if point.costs[part] <= budget + 1e-9
        }  # a mean of equals may be off
        if len(allowed) > 1:
            found[part, budget] = choose(allowed, above)
    return found


def choose(allowed: dict[str, Point], above: set[tuple[str, str]]) -> Best:
    """Return the points that none of the allowed ones is significantly above; `above`: better, worse."""
    beaten = {worse for better, worse in above if better in allowed}
    left = [point for key, point in allowed.items() if key not in beaten]
    return Best(tuple(sorted(left, key=lambda point: (-point.mean, point.key))))


def best_lines(sections: list[Section], tables: Tables) -> list[str]:
    """Return the tables of the best rows, a column for each page, and their legend; nothing if no rows compete."""
    known = [(section, found) for section in sections if (found := find_best(section, tables))]
    lines: list[str] = []
    for start in range(0, len(known), COLUMNS):
        shown = known[start : start + COLUMNS]
        asked = {question for _, found in shown for question in found}
        order = sorted(asked, key=lambda question: ([SPARSITY, *COSTS].index(question[0]), question[1]))
        lines += [line(["best", *(describe(section) for section, _ in shown)])]
        lines += [line("---" for _ in range(len(shown) + 1))]
        for part, value in order:
            words = f"at {percent(value)} sparsity" if part == SPARSITY else f"{COSTS[part]} FLOPs ≤ {value:g}×"
            lines.append(line([words, *(show(found.get((part, value)), part == SPARSITY) for _, found in shown)]))
        lines.append("")
    return [*lines, LEGEND.format(least=LEAST_SEEDS)] if lines else []


def describe(section: Section) -> str:
    """Return title, seeds and dense accuracy of a section."""
    dense = [cell for row in section.rows if row.dense for cell in row.cells.values() if accuracies(cell)]
    seeds = span([len(cell.counted) for row in section.rows for cell in row.cells.values()], "{}")
    told = f"{seeds} seed{'' if seeds == '1' else 's'}"
    told += f", dense {fmean(accuracies(dense[0]).values()):.2f}" if dense else ""
    return f"{section.title}; {told}"


def show(best: Best | None, at_sparsity: bool) -> str:
    """Return `gmp 68.67 or granet, snip, 5 more`, with sparsities where they may differ; bold if it is one alone."""
    if best is None:
        return BLANK
    names = [point.name if at_sparsity else point.key for point in best.points]
    first = f"{names[0]} {best.points[0].mean:.2f}"
    if len(names) == 1:
        return f"**{first}**"
    more = len(names) - 1 - NAMED
    return f"{first} *or* {', '.join([*names[1 : 1 + NAMED], *([f'{more} more'] if more > 0 else [])])}"
