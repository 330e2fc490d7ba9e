"""The paper's findings on pruning plasticity, tested: seeds are the unit, cells are averaged within each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from leaderboard.plasticity.points import GAP, PLASTICITY, Cell, Study
from leaderboard.table import LEAST_SEEDS, percent

if TYPE_CHECKING:
    from leaderboard.stats import Difference

SUPPORTED, NOT_SUPPORTED, NOT_ENOUGH = "supported", "not supported", "not enough runs"
CLAIMS = {
    "rate": "it falls as the learning rate falls",
    "mild": "milder pruning recovers better",
    "regrow": "regeneration helps",
}
# A side of a comparison (True: where the paper finds more), and what both sides share; None for neither.
Side = Callable[[Cell], tuple[bool, tuple[object, ...]] | None]


@dataclass(frozen=True)
class Finding:
    """A claim and what the runs say of it: a mean difference in points over seeds, positive where the paper's holds.

    `compared` says in words which cells; `pairs` is how many of them each seed averages; `adjusted_p` is Holm's over
    the claims of a study. Invariant: supported only with three seeds or more, a positive difference and an adjusted p
    of at most 0.05.
    """

    claim: str
    kind: str
    compared: str
    difference: Difference
    pairs: int
    adjusted_p: float | None
    verdict: str
    reason: str


def find_findings(study: Study) -> list[Finding]:
    """Return the paper's findings on a study, on plasticity and on the final gap, corrected for their number."""
    from leaderboard.stats import holm  # here, because scipy takes a while

    found = [weigh(study, kind, claim) for kind in (PLASTICITY, GAP) if study.values[kind] for claim in CLAIMS]
    adjusted = holm({number: finding.difference.p for number, finding in enumerate(found)})
    return [judge(replace(finding, adjusted_p=adjusted[number])) for number, finding in enumerate(found)]


def make_sides(study: Study, claim: str) -> tuple[Side, str]:
    """Return which cells a claim compares, as a function and in words; the mildest rate with the harshest and so on."""
    cells = [cell for values in study.values.values() for cell in values]
    if claim == "regrow":
        return lambda cell: (cell.regrow, (cell.sparsity, cell.rate, cell.epoch)), "with and without regeneration"
    if claim == "mild":
        low, high = min(cell.rate for cell in cells), max(cell.rate for cell in cells)

        def by_rate(cell: Cell) -> tuple[bool, tuple[object, ...]] | None:
            if cell.rate not in (low, high) or low == high:
                return None
            return cell.rate == low, (cell.sparsity, cell.regrow, cell.epoch)

        return by_rate, f"{percent(low)} and {percent(high)} of the weights pruned"
    slow, fast = min(study.rates.values()), max(study.rates.values())

    def by_lr(cell: Cell) -> tuple[bool, tuple[object, ...]] | None:
        rate = study.rates[cell.epoch]
        if rate not in (slow, fast) or slow == fast:
            return None
        return rate == fast, (cell.sparsity, cell.rate, cell.regrow)

    return by_lr, f"epochs at learning rate {fast:g} and at {slow:g}"


def weigh(study: Study, kind: str, claim: str) -> Finding:
    """Return the difference between the two sides of a claim, paired by seed.

    A seed counts where it has every cell that any seed has; a cell of which a branch diverged counts for no seed.
    """
    from leaderboard.stats import paired_difference

    values = study.values[kind]
    whole = {cell: known for cell, by_seed in values.items() if (known := finished(by_seed)) is not None}
    seeds = [seed for seed in study.seeds(kind) if all(seed in by_seed for by_seed in whole.values())]
    side, words = make_sides(study, claim)
    groups = pair_cells(whole, side)
    one: dict[int, float] = {}
    other: dict[int, float] = {}
    for seed in seeds if groups else ():
        for means, place in ((one, True), (other, False)):
            means[seed] = fmean(fmean(whole[cell][seed] for cell in group[place]) for group in groups)
    reason = explain(study, kind, len(values) - len(whole), seeds, bool(groups))
    difference = paired_difference(one, other, study.grain)
    return Finding(claim, kind, words, difference, len(groups), None, NOT_ENOUGH, reason)


def finished(by_seed: dict[int, float | None]) -> dict[int, float] | None:
    """Return the values of a cell's seeds, or None where a branch diverged."""
    known = {seed: value for seed, value in by_seed.items() if value is not None}
    return known if len(known) == len(by_seed) else None


def pair_cells(cells: Iterable[Cell], side: Side) -> list[dict[bool, list[Cell]]]:
    """Return the groups of cells that differ in what is compared alone, each with cells on both sides."""
    groups: dict[tuple[object, ...], dict[bool, list[Cell]]] = {}
    for cell in sorted(cells):
        found = side(cell)
        if found is not None:
            groups.setdefault(found[1], {True: [], False: []})[found[0]].append(cell)
    return [group for group in groups.values() if group[True] and group[False]]


def explain(study: Study, kind: str, diverged: int, seeds: list[int], paired: bool) -> str:
    """Return what limits a comparison, in words; empty where nothing does."""
    every = study.seeds(kind)
    reasons = []
    if not paired:
        reasons.append("the branches show one side of the comparison only")
    elif len(seeds) < LEAST_SEEDS:
        reasons.append(f"{len(seeds)} complete seed{'' if len(seeds) == 1 else 's'}, {LEAST_SEEDS} are needed")
    lacking = sorted(set(every) - set(seeds))
    if lacking:
        reasons.append(f"seed {', '.join(map(str, lacking))} lacks branches that others have")
    if diverged:
        reasons.append(f"{diverged} cells left out, of which a branch diverged")
    return "; ".join(reasons)


def judge(finding: Finding) -> Finding:
    """Return the finding with its verdict."""
    from leaderboard.stats import ALPHA

    difference, p = finding.difference, finding.adjusted_p
    if difference.n < LEAST_SEEDS or difference.mean is None or p is None:
        return finding
    if p <= ALPHA and difference.mean > 0:
        return replace(finding, verdict=SUPPORTED)
    reverse = "the difference is the other way" if p <= ALPHA else ""
    return replace(finding, verdict=NOT_SUPPORTED, reason="; ".join(filter(None, (reverse, finding.reason))))
