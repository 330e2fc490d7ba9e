"""Which rows are best at equal sparsity, and within a budget of FLOPs, as far as the seeds tell."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from leaderboard.paper.published import Tables
from leaderboard.results.caveats import NEAR_CEILING
from leaderboard.results.scope import Section, dense_mean
from leaderboard.tables.comparisons import certain, grain
from leaderboard.tables.sections import amount
from leaderboard.tables.table import BLANK, LEAST_SEEDS, Row, line, multiple, percent
from leaderboard.tables.usage import count_trainings

COSTS = {"train": "training", "inference": "inference"}
BUDGETS = {"train": (0.05, 0.1, 0.2, 0.4), "inference": (0.05, 0.1, 0.2)}  # multiples of the dense network's FLOPs
ROUNDING = 1e-9  # of a mean of equal costs
SPARSITY = "sparsity"
NAMED = 2  # rows named that the seeds do not tell apart from the best; more are only counted, above MOST_NAMED
MOST_NAMED = 5
COLUMNS = 4  # pages side by side

LEGEND = """\
The row with the highest mean accuracy after the last epoch, in percent, *or* those that cannot be ruled out, highest
mean first: no other is significantly above them (one-sided Welch's tests against each, corrected for the others and for
all sparsities, or all budgets, of a page: the best rows of 95 in 100 such pages are all among those named or counted).
Few seeds and wide spreads keep a row in. **Bold**: above every other. Within a budget, in multiples of the dense
network's FLOPs, a row competes at any of its sparsities, given in brackets. Competing: methods at their defaults or as
in a row of the paper's tables, with {least} seeds or more, none diverged. Budgets are exact: 0.203× is not within
0.2×. Pages have other sparsities, so a budget is for comparing rows, not pages. The leaderboard's ranks compare
all rows and variants, and are therefore wider. *Tied*: the next has the same mean. *Ours*: devised in this
repository."""
OWN = "this suite's"  # how the reference of a method begins that no paper describes


@dataclass(frozen=True)
class Point:
    """A row at a sparsity: accuracies by seed, and mean costs as multiples of the dense network's."""

    name: str
    sparsity: float
    accuracies: dict[int, float]
    costs: dict[str, float]
    rounds: int = 1  # trainings

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds, in percent."""
        return fmean(self.accuracies.values())

    @property
    def key(self) -> str:
        """What tells points of a section apart."""
        return f"{self.name} ({percent(self.sparsity)})"


def find_points(section: Section, tables: Tables) -> list[Point]:
    """Return the points that compete; of several versions of a method's file the newest with enough seeds.

    Nothing competes where the newest diverged.
    """
    found: dict[tuple[str, ...], tuple[Row, Point]] = {}
    for row in sorted((row for row in section.rows if competes(row, tables)), key=lambda row: row.last_finished):
        method = row.method
        for sparsity, entry in row.cells.items():
            key = (method["name"], method["source"], json.dumps(row.settings, sort_keys=True), str(sparsity))
            if len(known := certain(entry)) >= LEAST_SEEDS:
                costs = {part: fmean(run["macs"][f"{part}_share"] for run in entry.finished) for part in COSTS}
                name = VERSION.sub("", row.label) + (" *(ours)*" if row.reference.startswith(OWN) else "")
                rounds = max(map(count_trainings, entry.finished))
                found[key] = row, Point(name, sparsity, known, costs, rounds)
            elif entry.diverged:
                found.pop(key, None)
    times = Counter(point.key for _, point in found.values())
    return [replace(point, name=row.label) if times[point.key] > 1 else point for row, point in found.values()]


DIGITS = 9  # of a mean; sums of the same images over seeds differ behind them
VERSION = re.compile(r" \((file|settings) [0-9a-f]{8}\)")


def competes(row: Row, tables: Tables) -> bool:
    """Return whether a row may be called best: no dense one or control made from a run, at the defaults of its method
    or the settings of a row of the paper's tables, and, if its weight count is an outcome, no run of it diverged."""
    if row.dense or row.made_from:
        return False
    method = row.method
    if method["budget"] == "outcome" and any(entry.diverged for entry in row.cells.values()):
        return False  # they stand where they were asked for, the others where they ended
    parts = (part for table in tables.tables for part in table.parts)
    matches = (match for part in parts for paper_row in part.rows for match in paper_row.ours)
    named = any((match.method, match.changed) == (method["name"], dict(row.settings)) for match in matches)
    return named or not row.settings


class Answer(NamedTuple):
    """The points that cannot be ruled out as the best of `of`, highest mean first."""

    points: list[Point]
    of: int


Question = tuple[str, float]  # `sparsity`, or a key of COSTS with a budget
Answers = dict[Question, Answer]


def find_best(section: Section, tables: Tables) -> Answers:
    """Return the answers by question, a sparsity or a kind of cost with its budget.

    A question that fewer than two points could answer is left out. Invariant: at most 5 % of such sections leave a
    truly best row out of the answers on sparsity, and as many out of those on budgets; see `may_be_best`.
    """
    from leaderboard.tables.stats import may_be_best  # here, because scipy takes a second

    points = find_points(section, tables)
    step = max((grain(run) for run in section.runs), default=0.0)
    at = {(SPARSITY, s): [p for p in points if p.sparsity == s] for s in sorted({p.sparsity for p in points})}
    within = {
        (part, budget): [point for point in points if point.costs[part] <= budget + ROUNDING]
        for part, budgets in BUDGETS.items()
        for budget in budgets
    }
    answers = {}
    for questions in (at, within):
        asked = {question: {str(n): p for n, p in enumerate(of)} for question, of in questions.items() if len(of) > 1}
        known = {question: {key: p.accuracies for key, p in of.items()} for question, of in asked.items()}
        for question, kept in may_be_best(known, step, LEAST_SEEDS).items():
            left = sorted(
                (asked[question][key] for key in kept), key=lambda point: (-round(point.mean, DIGITS), point.key)
            )
            answers[question] = Answer(left, len(asked[question]))
    return answers


def best_lines(answers: list[tuple[Section, Answers]]) -> list[str]:
    """Return the tables of the best rows, a column for each page, and their legend; nothing if no rows compete."""
    lines: list[str] = []
    for start in range(0, len(answers), COLUMNS):
        shown = answers[start : start + COLUMNS]
        asked = {question for _, found in shown for question in found}
        order = sorted(asked, key=lambda question: ([SPARSITY, *COSTS].index(question[0]), question[1]))
        lines += [line(["highest mean", *(section.title for section, _ in shown)])]
        lines += [line("---" for _ in range(len(shown) + 1))]
        for part, value in order:
            words = f"at {percent(value)} sparsity" if part == SPARSITY else f"{COSTS[part]} FLOPs ≤ {value:g}×"
            lines.append(line([words, *(show(found.get((part, value)), part == SPARSITY) for _, found in shown)]))
        lines.append("")
    return [*lines, LEGEND.format(least=LEAST_SEEDS)] if lines else []


def show(found: Answer | None, at_sparsity: bool) -> str:
    """Return `gmp 68.67 (n=5) or granet, snip, 5 more of 12`, with sparsities where they may differ; bold if alone."""
    if found is None:
        return BLANK
    points = found.points
    names = [point.name if at_sparsity else point.key for point in points]
    first = f"{names[0]} {points[0].mean:.2f}"
    if len(names) == 1:
        return f"**{first}** (n={len(points[0].accuracies)}) of {found.of}"
    tied = ", tied" if round(points[0].mean - points[1].mean, DIGITS) == 0 else ""
    return f"{first} (n={len(points[0].accuracies)}{tied}) *or* {list_first(names[1:])} of {found.of}"


def list_first(names: list[str]) -> str:
    """Return up to MOST_NAMED names, or of more the first NAMED and how many more there are: `a, b, 4 more`."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return ", ".join([*names[:NAMED], f"{len(names) - NAMED} more"])


def tell_best(section: Section, answers: Answers) -> str:
    """Return a sentence on the best rows of a section at each sparsity, beside the dense network."""
    dense, told = dense_mean(section.rows), []
    for (part, value), found in answers.items():
        if part != SPARSITY:
            continue
        first = found.points[0]
        shown = [f"`{point.name}`".replace(" *(ours)*`", "` (ours)") for point in found.points]
        text = f"at {percent(value)} {shown[0]}"
        text += (
            f" has the highest mean, {first.mean:.2f}, for {multiple(first.costs['train'])} the FLOPs of dense training"
        )
        text += f" in {first.rounds} trainings" if first.rounds > 1 else ""
        text += f", {dense - first.mean:.2f} below dense" if dense is not None and dense > first.mean else ""
        others = found.of - 1
        beside = [f"{name} {point.mean:.2f}" for name, point in zip(shown[1:], found.points[1:], strict=True)]
        alone = "above the one other" if others == 1 else f"above all {others} others"
        verdict = f"of {amount(others, 'other')} not ruled out: {list_first(beside)}" if beside else alone
        told.append(f"{text} ({verdict})")
    about = f" (dense {dense:.2f}{', near the ceiling' if 100 - dense <= NEAR_CEILING else ''})" if dense else ""
    return f"**{section.title}**{about}: {'; '.join(told)}."
