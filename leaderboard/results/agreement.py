"""Statements of the paper that its tables support, and whether the records agree with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from leaderboard.claims.claim import NOT_DECIDED, Claim
from leaderboard.claims.lookup import Question, Side
from leaderboard.paper.published import PaperRow, Part, Published, Tables
from leaderboard.store.records import finish_key
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import grain
from leaderboard.tables.table import LEAST_SEEDS, plain, split_rows

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

K = TypeVar("K")
AGREES, REVERSED, UNCLEAR = "as in the paper", "the other way round", "without a direction in the paper"
SURE = AGREES, REVERSED, UNCLEAR
ALONE = AGREES_ALONE, REVERSED_ALONE, UNCLEAR_ALONE = tuple(f"{verdict} (asked alone)" for verdict in SURE)
NOT_SHOWN, TOO_FEW, NOT_RUN = "not shown", "too few seeds", "not run"
VERDICTS = (*SURE, *ALONE, NOT_SHOWN, TOO_FEW, NOT_DECIDED, NOT_RUN)


@dataclass(frozen=True)
class Weighed:
    """One statement at one sparsity: what the paper prints and what our runs show.

    `difference` is first less second in points, `counts` their numbers of seeds, `trains` their training FLOPs as
    multiples of dense; `alone_p` is Holm's over the sparsities of this pair, `adjusted_p` over all comparisons of the
    section, run or not; `detectable` is what the latter finds with 80 % power, as far as it can be told.
    Invariant: AGREES and REVERSED need a claim that may name a winner, an adjusted p of at most 0.05 and a direction in
    the paper; "asked alone", `alone_p` of at most 0.05.
    """

    a: str
    b: str
    sparsity: float
    printed: Printed
    difference: Difference | None
    adjusted_p: float | None
    verdict: str
    reason: str = ""
    alone_p: float | None = None
    detectable: float | None = None
    counts: tuple[int, int] = (0, 0)
    trains: tuple[float | None, float | None] = (None, None)

    @property
    def p(self) -> float | None:
        """The p before any correction, None if the runs cannot carry a verdict."""
        return None if self.adjusted_p is None or self.difference is None else self.difference.p


def weigh_statements(runs: list[Record], tables: Tables) -> list[Weighed]:
    """Return the statements tested on the runs of one section, or nothing if it has no pair of rows.

    Only runs of the suite's own files at their defaults count. Invariant: the order of the runs is irrelevant, and no
    run of another pair at these sparsities makes a p larger.
    """
    rows = merge_rows(runs)
    claims = {(a, b, claim.sparsity): claim for a, b in STATEMENTS for claim in pair_claims(runs, rows[a], rows[b])}
    keys = [(a, b, sparsity) for a, b in STATEMENTS for sparsity in sorted({place for *_, place in claims})]
    adjusted = correct({key: p_of(claims[key]) if key in claims else None for key in keys})
    found = []
    for key in keys:
        tested = Weighed(*key, find_printed(tables, *key), None, None, NOT_RUN)
        if key in claims:
            found.append(judge(tested, claims[key], adjusted[key], len(keys), grain(runs[0])))
        else:
            lacking = [name for name in key[:2] if key[2] not in rows[name].sparsities()]
            found.append(replace(tested, reason=f"no run of {' and '.join(lacking)}"))
    return found


def correct(ps: Mapping[K, float | None]) -> dict[K, float | None]:
    """Return Holm's adjusted p of each comparison; one without p, not run or not decided, counts as if it had p = 1.

    So the family is that of all questions asked, and no verdict is lost when the rest of a page is run.
    """
    from leaderboard.tables.stats import holm  # here, because scipy takes a second

    adjusted = holm({key: 1.0 if p is None else p for key, p in ps.items()})
    return {key: None if p is None else adjusted[key] for key, p in ps.items()}


def own_rows(runs: list[Record]) -> dict[str, list[Side]]:
    """Return the rows of each method in STATEMENTS: at its defaults, from the suite's own file.

    One row for each version of the file, the version that was run last at the end.
    """
    found: dict[str, list[Side]] = {name: [] for name in dict.fromkeys(name for pair in STATEMENTS for name in pair)}
    for row in split_rows(runs):
        own = [run for run in row.runs if run["method"]["source"] == f"methods/{row.label}.py"]
        if row.label in found and own:
            found[row.label].append(Side(row.label, own, row.settings))
    return {name: sorted(sides, key=lambda side: max(map(finish_key, side.runs))) for name, sides in found.items()}


def merge_rows(runs: list[Record]) -> dict[str, Side]:
    """Return the row that is compared of each method in STATEMENTS, without runs where there is none."""
    return {name: merge_versions(name, versions) for name, versions in own_rows(runs).items()}


def merge_versions(name: str, versions: list[Side]) -> Side:
    """Return the row of a method, without runs if `versions` is empty: at each sparsity those of one version.

    Of the versions with LEAST_SEEDS seeds there, or a run that diverged, the one run last; if none has as many, the one
    run last of all. So a single run of a file just edited hides nothing.
    """
    chosen: dict[float, tuple[bool, list[Record]]] = {}
    for version in versions:
        for sparsity in version.sparsities():
            entry = version.at(sparsity)
            enough = len(entry.finished) >= LEAST_SEEDS or entry.diverged > 0
            if enough or not chosen.get(sparsity, (False, []))[0]:
                chosen[sparsity] = enough, [*entry.counted, *entry.repeats]
    return Side(name, [run for _, of in chosen.values() for run in of], versions[-1].settings if versions else {})


def note_versions(runs: list[Record]) -> str:
    """Return which versions are compared of each method that was run in several, or nothing."""
    several = [merge_versions(name, versions) for name, versions in own_rows(runs).items() if len(versions) > 1]
    files = [
        f"{side.name} (file {', '.join(sorted({plain(run['method']['sha256'][:8]) for run in side.runs}))})"
        for side in several
    ]
    about = "Of several versions of a method's file the newest with enough seeds is compared"
    return f"{about}: {', '.join(files)}." if files else ""


def pair_claims(runs: list[Record], one: Side, other: Side) -> list[Claim]:
    """Return the claims on two rows of a section, one for each sparsity that both have, on the seeds of `share`."""
    from leaderboard.claims.claim import answer

    if not set(one.sparsities()) & set(other.sparsities()):
        return []
    return answer(Question("", runs, share(one, other), share(other, one), ""))


def share(side: Side, other: Side) -> Side:
    """Return a row without the seeds that the other row lacks at a sparsity, unless they share fewer than LEAST_SEEDS.

    What one row alone has may have been added after a look at the rest. A run that diverged stays.
    """
    kept = []
    for sparsity, runs in side.placed.items():
        seeds = {run["seed"] for run in runs} & {run["seed"] for run in other.placed.get(sparsity, [])}
        kept += [run for run in runs if len(seeds) < LEAST_SEEDS or run["seed"] in seeds or run["status"] != "ok"]
    return replace(side, runs=kept)


def p_of(claim: Claim) -> float | None:
    """Return the p that counts, None if the runs cannot carry a winner."""
    return None if claim.verdict == NOT_DECIDED else claim.difference.p


def judge(tested: Weighed, claim: Claim, p: float | None, family: int, step: float) -> Weighed:
    """Return a statement with its verdict; `p` is corrected over `family` comparisons, `step` is one test image."""
    from leaderboard.tables.stats import ALPHA, MOST_SEEDS, seeds_needed, smallest_detectable

    spreads = claim.spreads(step)
    # Holm asks the smallest p of a family to be at most ALPHA / family; what passes that passes at any place.
    least = None if p is None else smallest_detectable(spreads, claim.counts, ALPHA / family)
    tested = replace(
        tested,
        difference=claim.difference,
        counts=claim.counts,
        trains=(claim.score_a.train_share, claim.score_b.train_share),
        adjusted_p=p,
        alone_p=claim.adjusted_p,
        detectable=least,
    )
    if p is None:
        few = 0 < len(claim.reasons) <= sum(count < LEAST_SEEDS for count in claim.counts)  # else there is a graver one
        return replace(tested, verdict=TOO_FEW if few else NOT_DECIDED, reason=plain("; ".join(claim.reasons)))
    agreed = ((claim.difference.mean or 0.0) > 0) == (tested.printed.direction > 0)
    unlike = compare_sizes(claim.difference, tested.printed)
    if p <= ALPHA:
        verdict = UNCLEAR if tested.printed.direction == 0 else AGREES if agreed else REVERSED
        return replace(tested, verdict=verdict, reason=unlike if agreed else "")
    if claim.adjusted_p is not None and claim.adjusted_p <= ALPHA:
        verdict = UNCLEAR_ALONE if tested.printed.direction == 0 else AGREES_ALONE if agreed else REVERSED_ALONE
        return replace(tested, verdict=verdict, reason=unlike if agreed else "")
    reason = "" if least is None else f"detectable: {least:.2f}"
    if reason and unlike:
        reason += f"; {unlike}"
    elif reason and tested.printed.direction and tested.printed.middle is not None:
        seeds = seeds_needed(tested.printed.middle, spreads, ALPHA / family)
        reason += f"; the paper's takes {f'over {MOST_SEEDS:,}' if seeds is None else f'≈ {seeds}'} seeds"
    return replace(tested, verdict=NOT_SHOWN, reason=reason)


def compare_sizes(found: Difference, printed: Printed) -> str:
    """Return whether an interval excludes the paper's median on one side, in words, or nothing."""
    if not printed.direction or printed.middle is None or found.low is None or found.high is None:
        return ""
    low, high = sorted((printed.direction * found.low, printed.direction * found.high))
    size = abs(printed.middle)
    return "less than the paper's" if high < size else "more than the paper's" if low > size else ""


# Methods at their defaults, first less second. Few, because p is corrected over all pairs: each one more makes the
# others harder to show. The first five are the paper's main comparisons, the first three those that are always told.
STATEMENTS = (
    ("granet", "rigl_itop"),
    ("granet", "rigl"),
    ("granet", "gmp"),
    ("granet", "snip"),
    ("granet", "static"),
    ("rigl_itop", "static"),
    ("rigl_itop", "set"),
    ("gmp", "snip"),
)
MAIN = STATEMENTS[:3]
TABLES = (2, 3)  # the first that has both rows counts


@dataclass(frozen=True)
class Printed:
    """What the paper prints of one row less another: in `above` of `cells` entries the first is above the second.

    `table` is None if no table has both rows; `columns` are the sparsities in percent, `middle` is the median
    difference in points, `noise` the median of its printed ±, `statuses` are those of all numbers it rests on; `cited`:
    whether the paper copied a row.
    """

    table: int | None = None
    columns: tuple[int, ...] = ()
    above: int = 0
    below: int = 0
    cells: int = 0
    middle: float | None = None
    noise: float | None = None
    statuses: tuple[str, ...] = ()
    cited: bool = False

    @property
    def direction(self) -> int:
        """1 if the first row is better in the paper, -1 if the second is, else 0.

        Better: above in all entries, or in more than half and by a median of more than the ± printed, where there is
        one. Three of four entries within ± 0.3 say nothing.
        """
        if not self.middle:
            return 0
        with_it = self.above if self.middle > 0 else self.below
        clear = self.noise is None or abs(self.middle) > self.noise
        return (1 if self.middle > 0 else -1) if with_it == self.cells or (2 * with_it > self.cells and clear) else 0


def find_printed(tables: Tables, a: str, b: str, sparsity: float) -> Printed:
    """Return what the paper prints of methods `a` and `b` at their defaults, at a sparsity in [0, 1).

    If the table has no column of that sparsity, all its columns count.
    """
    for number in TABLES:
        pairs = [pair for table in tables.tables if table.number == number for pair in find_pairs(table.parts, a, b)]
        pairs = [pair for pair in pairs if pair.one.top1 is not None and pair.other.top1 is not None]
        if pairs:
            there = [pair for pair in pairs if pair.sparsity == round(100 * sparsity, 6)] or pairs
            return summarise(number, there, tables)
    return Printed()


@dataclass(frozen=True)
class Pair:
    """Two entries in one column of one part of a table."""

    sparsity: int
    rows: tuple[PaperRow, PaperRow]
    one: Published
    other: Published


def find_pairs(parts: Iterable[Part], a: str, b: str) -> list[Pair]:
    """Return the entries of both rows, side by side, from every part of a table that has both."""
    found = []
    for part in parts:
        one, other = (find_row(part, name) for name in (a, b))
        if one is not None and other is not None:
            found += [Pair(sparsity, (one, other), cell, other.cells[sparsity]) for sparsity, cell in one.cells.items()]
    return found


def find_row(part: Part, name: str) -> PaperRow | None:
    """Return the row of a part for a method at its defaults."""
    return next((row for row in part.rows for match in row.ours if match.method == name and not match.changed), None)


def summarise(number: int, pairs: list[Pair], tables: Tables) -> Printed:
    """Return what the pairs of one table say together."""
    # the paper prints two decimals, so a difference has two as well
    differences = [round((pair.one.top1 or 0.0) - (pair.other.top1 or 0.0), 2) for pair in pairs]
    spreads = [
        math.hypot(pair.one.std, pair.other.std)
        for pair in pairs
        if pair.one.std is not None and pair.other.std is not None
    ]
    used = {cell.status for pair in pairs for cell in (pair.one, pair.other)}
    return Printed(
        table=number,
        columns=tuple(sorted({pair.sparsity for pair in pairs})),
        above=sum(difference > 0 for difference in differences),
        below=sum(difference < 0 for difference in differences),
        cells=len(differences),
        middle=median(differences),
        noise=median(spreads) if spreads else None,
        statuses=tuple(status for status in tables.marks if status in used),
        cited=any(row.cited for pair in pairs for row in pair.rows),
    )
