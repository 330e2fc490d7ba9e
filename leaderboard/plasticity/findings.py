"""The paper's three findings on pruning plasticity, tested on the records of branches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.store.kinds import is_number, parse_time
from leaderboard.store.records import file_key
from leaderboard.store.repeat import drop_epochs
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import grain
from leaderboard.tables.sections import amount, identity, section_title
from leaderboard.tables.table import LEAST_SEEDS, percent

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference


SUPPORTED, NOT_SUPPORTED, NOT_ENOUGH = "supported", "not supported", "not enough runs"
CLAIMS = {
    "rate": "it falls as the learning rate falls",
    "mild": "milder pruning recovers better",
    "regrow": "regeneration helps",
}


class Pruning(NamedTuple):
    """How a branch was pruned. `sparsity` is that of the network before, `rate` the share of its weights pruned."""

    sparsity: float
    rate: float
    regrow: bool
    epoch: int


# The side of a comparison (True: where the paper finds more) and what both sides share; None if on neither side.
Side = Callable[[Pruning], tuple[bool, tuple[object, ...]] | None]


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
    """Return the paper's findings tested on a study: on plasticity and the final gap, corrected for their number."""
    from leaderboard.tables.stats import holm  # here, because scipy takes a while

    found = [weigh(study, kind, claim) for kind in (PLASTICITY, GAP) if study.values[kind] for claim in CLAIMS]
    adjusted = holm({number: finding.difference.p for number, finding in enumerate(found)})
    return [judge(replace(finding, adjusted_p=adjusted[number])) for number, finding in enumerate(found)]


def by_share(study: Study, kind: str, claim: str) -> dict[float, Difference]:
    """Return the effect of a claim among the cells of each share pruned, uncorrected; none for a claim on the share."""
    shares = sorted({cell.rate for cell in study.values[kind]}) if claim != "mild" else []
    return {share: weigh(study, kind, claim, share).difference for share in shares}


def make_sides(study: Study, claim: str) -> tuple[Side, str]:
    """Return which cells a claim compares, as a function and in words, such as the mildest and the harshest rate."""
    cells = [cell for values in study.values.values() for cell in values]
    if claim == "regrow":
        return lambda cell: (cell.regrow, (cell.sparsity, cell.rate, cell.epoch)), "with and without regeneration"
    if claim == "mild":
        low, high = min(cell.rate for cell in cells), max(cell.rate for cell in cells)

        def by_rate(cell: Pruning) -> tuple[bool, tuple[object, ...]] | None:
            if cell.rate not in (low, high) or low == high:
                return None
            return cell.rate == low, (cell.sparsity, cell.regrow, cell.epoch)

        return by_rate, f"{percent(low)} and {percent(high)} of the weights pruned"
    slow, fast = min(study.rates.values()), max(study.rates.values())

    def by_lr(cell: Pruning) -> tuple[bool, tuple[object, ...]] | None:
        rate = study.rates[cell.epoch]
        if rate not in (slow, fast) or slow == fast:
            return None
        return rate == fast, (cell.sparsity, cell.rate, cell.regrow)

    return by_lr, f"epochs at learning rate {fast:g} and at {slow:g}"


def weigh(study: Study, kind: str, claim: str, pruned: float | None = None) -> Finding:
    """Return the difference between the two sides of a claim, paired by seed; of cells with a share `pruned`, if given.

    A seed counts where it has every cell that any seed has; a cell of which a branch diverged counts for no seed.
    """
    from leaderboard.tables.stats import paired_difference

    values = {cell: known for cell, known in study.values[kind].items() if pruned in (None, cell.rate)}
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
    """Return the values of a cell's seeds, or None if a branch diverged."""
    known = {seed: value for seed, value in by_seed.items() if value is not None}
    return known if len(known) == len(by_seed) else None


def pair_cells(cells: Iterable[Pruning], side: Side) -> list[dict[bool, list[Pruning]]]:
    """Return the groups of cells that differ in what is compared alone, each with cells on both sides."""
    groups: dict[tuple[object, ...], dict[bool, list[Pruning]]] = {}
    for cell in sorted(cells):
        found = side(cell)
        if found is not None:
            groups.setdefault(found[1], {True: [], False: []})[found[0]].append(cell)
    return [group for group in groups.values() if group[True] and group[False]]


def explain(study: Study, kind: str, diverged: int, seeds: list[int], paired: bool) -> str:
    """Return what limits a comparison, or an empty text."""
    every = study.seeds(kind)
    reasons = []
    if not paired:
        reasons.append("the branches show one side of the comparison only")
    elif len(seeds) < LEAST_SEEDS:
        reasons.append(f"{amount(len(seeds), 'complete seed')}, {LEAST_SEEDS} are needed")
    lacking = sorted(set(every) - set(seeds))
    if lacking:
        reasons.append(f"seed {', '.join(map(str, lacking))} lacks branches that others have")
    if diverged:
        reasons.append(f"{amount(diverged, 'cell')} left out, of which a branch diverged")
    return "; ".join(reasons)


def judge(finding: Finding) -> Finding:
    """Return the finding with its verdict."""
    from leaderboard.tables.stats import ALPHA

    difference, p = finding.difference, finding.adjusted_p
    if difference.n < LEAST_SEEDS or difference.mean is None or p is None:
        return finding
    if p <= ALPHA and difference.mean > 0:
        return replace(finding, verdict=SUPPORTED)
    reverse = "the difference is the other way" if p <= ALPHA else ""
    return replace(finding, verdict=NOT_SUPPORTED, reason="; ".join(filter(None, (reverse, finding.reason))))


PLASTICITY, GAP = "plasticity", "gap"
NAMES = {PLASTICITY: "plasticity", GAP: "final gap"}
PARENTS = ("dense", "static (distribution=uniform)")  # labels of the runs that are pruned


Values = dict[Pruning, dict[int, float | None]]  # points by seed; None where the branch diverged


@dataclass(frozen=True)
class Study:
    """Comparable branches: of one page, scope, pattern and version of the method.

    `values` by kind: plasticity is the accuracy `more` epochs after pruning, at an unchanged learning rate, less that
    just before; gap is the accuracy at the end of training less that of the unpruned network. Both are on the test
    images after the last epoch, in points.
    """

    title: str
    about: str
    page: str  # its title, as records have it
    name: str  # of the page
    epochs: int  # of the page
    drops: tuple[int, ...]  # epochs at which the learning rate falls
    rates: dict[int, float]  # the learning rate by epoch of pruning
    grain: float  # points that one test image is worth
    scope: str
    pattern: str
    more: int
    values: dict[str, Values]
    runs: int

    def sparsities(self) -> list[float]:
        """Return the sparsities of the networks before pruning, in ascending order."""
        return sorted({cell.sparsity for values in self.values.values() for cell in values})

    def seeds(self, kind: str) -> list[int]:
        """Return the seeds with any branch of a kind, in ascending order."""
        return sorted({seed for by_seed in self.values[kind].values() for seed in by_seed})


def is_pruning(record: Record) -> bool:
    """Return whether a record is of a branch that was pruned once, from a parent in PARENTS."""
    branch, settings = record.get("branch"), record["method"]["settings"]
    if branch is None:
        return False
    plain = branch["parent_label"] == "static" and record["page"]["settings"].get("distribution") == "uniform"
    if branch["parent_label"] not in PARENTS and not plain:  # a page's own default is not in a label
        return False
    rate = settings.get("rate")
    shaped = is_number(rate) and 0 < rate < 1 and isinstance(settings.get("regrow"), bool)
    return shaped and all(isinstance(settings.get(key), str) for key in ("scope", "pattern"))


def kind_of(record: Record) -> str | None:
    """Return what a branch measures: PLASTICITY, GAP, or None for one that ends at another epoch."""
    branch = record["branch"]
    if branch["hold_lr"]:
        return PLASTICITY
    ends = branch["last_epoch"] == record["page"]["settings"].get("epochs")
    return GAP if ends and branch["unpruned_acc_pct"] is not None else None


def value_of(record: Record, kind: str) -> float | None:
    """Return the points that a branch measures; None if it diverged."""
    last: float | None = record["accuracy_pct"]["last_epoch"]
    branch = record["branch"]
    before: float = branch["before"]["test_acc_pct"] if kind == PLASTICITY else branch["unpruned_acc_pct"]
    return None if last is None or record["status"] != "ok" else last - before


def make_studies(records: Iterable[Record]) -> list[Study]:
    """Return the studies that branches make up, in a stable order.

    Of several branches of one cell and seed the first to finish counts. Invariant: the order of the records is
    irrelevant.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if is_pruning(record) and kind_of(record) is not None:
            groups.setdefault(key_of(record), []).append(record)
    ordered = [sorted(group, key=order_of) for _, group in sorted(groups.items())]
    return [
        make_study(group, more, with_gap=number == 0)
        for group in ordered
        for number, more in enumerate(lengths_of(group))
    ]


def key_of(record: Record) -> tuple[Any, ...]:
    """Return what the branches of a study share."""
    page, settings = record["page"], record["method"]["settings"]
    where = page["name"], page["variant"], record["data"]["fingerprint"], record["environment"]["precision"]
    return -record["protocol"], *where, settings["scope"], settings["pattern"], record["method"]["sha256"]


def order_of(record: Record) -> tuple[Any, ...]:
    """Return what decides which of several branches counts: the first that finished."""
    return parse_time(record["finished"]), file_key(record["file"])


def lengths_of(group: list[Record]) -> list[int]:
    """Return the lengths in epochs over which plasticity was measured; each is a study of its own."""
    held = [record["branch"] for record in group if kind_of(record) == PLASTICITY]
    return sorted({branch["last_epoch"] - branch["epoch"] for branch in held}) or [0]


def make_study(group: list[Record], more: int, with_gap: bool) -> Study:
    """Return the study of branches, which come in the order in which they finished.

    with_gap: whether those that end with the page's epochs are its own too, as of one length of recovery.
    """
    values: dict[str, Values] = {PLASTICITY: {}, GAP: {}}
    rates = {}
    runs = 0
    for record in group:
        branch, kind = record["branch"], kind_of(record)
        if kind is None or (branch["last_epoch"] - branch["epoch"] != more if kind == PLASTICITY else not with_gap):
            continue
        settings = record["method"]["settings"]
        cell = Pruning(branch["parent_sparsity"], float(settings["rate"]), settings["regrow"], branch["epoch"])
        by_seed = values[kind].setdefault(cell, {})
        runs += record["seed"] not in by_seed
        by_seed.setdefault(record["seed"], value_of(record, kind))
        rates[branch["epoch"]] = float(branch["lr"])
    first = group[0]
    settings, method = first["page"]["settings"], first["method"]
    return Study(
        title=f"{section_title(first)}: {describe_pruning(method['settings'])}",
        about=f"{identity(first)}, method file {method['sha256'][:8]}",
        page=first["page"]["title"],
        name=first["page"]["name"],
        epochs=int(settings.get("epochs") or 0),
        drops=find_drops(settings),
        rates=dict(sorted(rates.items())),
        grain=grain(first),
        scope=method["settings"]["scope"],
        pattern=method["settings"]["pattern"],
        more=more,
        values=values,
        runs=runs,
    )


def describe_pruning(settings: dict[str, Any]) -> str:
    """Return in words what was pruned."""
    what = "whole filters" if settings["pattern"] == "filters" else "single weights"
    return f"{what} {'in each layer' if settings['scope'] == 'layer' else 'over all layers'}"


def find_drops(settings: dict[str, Any]) -> tuple[int, ...]:
    """Return the epochs at which a page's learning rate falls by steps; empty for another schedule."""
    epochs, drops = settings.get("epochs"), settings.get("lr_drops")
    if settings.get("lr_schedule", "step") != "step" or not isinstance(epochs, int) or not isinstance(drops, list):
        return ()
    return tuple(drop_epochs((drop for drop in drops if is_number(drop)), epochs))
