"""From records of branches to studies: how much accuracy a network regained after it was pruned at an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from leaderboard.arithmetic import drop_epochs
from leaderboard.kinds import is_number, parse_time
from leaderboard.page import identity, section_title
from leaderboard.records import file_key
from leaderboard.schema import Record
from leaderboard.table import percent

PLASTICITY, GAP = "plasticity", "gap"
PARENTS = ("dense", "static (distribution=uniform)")  # labels of the runs that are pruned


class Cell(NamedTuple):
    """What was done in a branch. `sparsity` is that of the network before, `rate` the share of its weights pruned."""

    sparsity: float
    rate: float
    regrow: bool
    epoch: int


Values = dict[Cell, dict[int, float | None]]  # points by seed; None where the branch diverged


@dataclass(frozen=True)
class Study:
    """Branches that may be compared: of one page, scope and pattern, of one version of the method.

    `values` by kind: plasticity is the accuracy `more` epochs after pruning, at the learning rate then in force, less
    that just before; gap is the accuracy at the page's end less that of the network that was not pruned. Both are of
    the test images after the last epoch, in points.
    """

    title: str
    about: str
    page: str  # its title, as records have it
    name: str  # of the page
    epochs: int  # of the page
    drops: tuple[int, ...]  # epochs at which the learning rate falls
    rates: dict[int, float]  # the learning rate in force by epoch
    grain: float  # points that one test image is worth
    scope: str
    pattern: str
    more: int
    values: dict[str, Values]
    runs: int

    def sparsities(self) -> list[float]:
        """Return the sparsities of the networks before they were pruned, rising."""
        return sorted({cell.sparsity for values in self.values.values() for cell in values})

    def seeds(self, kind: str) -> list[int]:
        """Return the seeds of which there is any branch of a kind, rising."""
        return sorted({seed for by_seed in self.values[kind].values() for seed in by_seed})


def is_pruning(record: Record) -> bool:
    """Return whether a record is of a branch that was pruned once and is measured here."""
    branch, settings = record.get("branch"), record["method"]["settings"]
    if branch is None or branch["parent_label"] not in PARENTS:
        return False
    rate = settings.get("rate")
    shaped = is_number(rate) and 0 < rate < 1 and isinstance(settings.get("regrow"), bool)
    return shaped and all(isinstance(settings.get(key), str) for key in ("scope", "pattern"))


def kind_of(record: Record) -> str | None:
    """Return what a branch measures: plasticity, gap, or None for one that ends elsewhere."""
    branch = record["branch"]
    if branch["hold_lr"]:
        return PLASTICITY
    ends = branch["last_epoch"] == record["page"]["settings"].get("epochs")
    return GAP if ends and branch["unpruned_acc_pct"] is not None else None


def value_of(record: Record, kind: str) -> float | None:
    """Return the points that a branch gives; None where it diverged."""
    last: float | None = record["accuracy_pct"]["last_epoch"]
    branch = record["branch"]
    before: float = branch["before"]["test_acc_pct"] if kind == PLASTICITY else branch["unpruned_acc_pct"]
    return None if last is None or record["status"] != "ok" else last - before


def make_studies(records: Iterable[Record]) -> list[Study]:
    """Return the studies that the records of a store of branches give, in a stable order.

    Of several branches of one cell and seed the one that finished first counts. Invariant: the same records in any
    order give the same studies.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if is_pruning(record) and kind_of(record) is not None:
            groups.setdefault(key_of(record), []).append(record)
    ordered = [sorted(group, key=order_of) for _, group in sorted(groups.items())]
    return [make_study(group, more) for group in ordered for more in lengths_of(group)]


def key_of(record: Record) -> tuple[Any, ...]:
    """Return what the branches of a study have in common."""
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


def make_study(group: list[Record], more: int) -> Study:
    """Return the study of branches in the order in which they finished."""
    values: dict[str, Values] = {PLASTICITY: {}, GAP: {}}
    rates = {}
    runs = 0
    for record in group:
        branch, kind = record["branch"], kind_of(record)
        if kind is None or (kind == PLASTICITY and branch["last_epoch"] - branch["epoch"] != more):
            continue
        settings = record["method"]["settings"]
        cell = Cell(branch["parent_sparsity"], float(settings["rate"]), settings["regrow"], branch["epoch"])
        values[kind].setdefault(cell, {}).setdefault(record["seed"], value_of(record, kind))
        rates[branch["epoch"]] = float(branch["lr"])
        runs += 1
    first = group[0]
    settings, method = first["page"]["settings"], first["method"]
    images = first["data"]["test"]
    return Study(
        title=f"{section_title(first)}: {describe_pruning(method['settings'])}",
        about=f"{identity(first)}, method file {method['sha256'][:8]}",
        page=first["page"]["title"],
        name=first["page"]["name"],
        epochs=int(settings.get("epochs") or 0),
        drops=find_drops(settings),
        rates=dict(sorted(rates.items())),
        grain=100 / images if images else 0.0,
        scope=method["settings"]["scope"],
        pattern=method["settings"]["pattern"],
        more=more,
        values=values,
        runs=runs,
    )


def describe_pruning(settings: dict[str, Any]) -> str:
    """Return what was pruned, in words."""
    what = "whole filters" if settings["pattern"] == "filters" else "single weights"
    return f"{what} {'in each layer' if settings['scope'] == 'layer' else 'over all layers'}"


def find_drops(settings: dict[str, Any]) -> tuple[int, ...]:
    """Return the epochs at which a page's learning rate falls by steps; empty for another schedule."""
    epochs: Any = settings.get("epochs")
    drops = settings.get("lr_drops")
    if settings.get("lr_schedule", "step") != "step" or not is_number(epochs) or not isinstance(drops, list):
        return ()
    return tuple(drop_epochs([drop for drop in drops if is_number(drop)], epochs))


def mean_of(by_seed: dict[int, float | None]) -> float | None:
    """Return the mean over the seeds whose branch did not diverge, or None."""
    known = [value for value in by_seed.values() if value is not None]
    return fmean(known) if known else None


def describe_rate(rate: float) -> str:
    """Return a pruning rate as lines and rows are called by it."""
    return f"{percent(rate)} pruned"
