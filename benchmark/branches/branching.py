"""Making one branch: from what a user asks to its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark.branches.branch import Branch, FromSnapshot, make_branch
from benchmark.branches.origins import find_parent
from benchmark.branches.snapshots import read_snapshot
from benchmark.console import print_result
from benchmark.contract import rehearse
from benchmark.data.sets import Data, load_data
from benchmark.environment import choose_device
from benchmark.grid import show
from benchmark.places import Places, check_places
from benchmark.run import Options, make_timeline, run_cell
from leaderboard import Record
from leaderboard.page import amount

BRANCHES = "branches"  # beside the folder of records


class Stores:
    """Where records are: those of ordinary runs, and those of branches, beside them unless said otherwise."""

    def __init__(self, records: Path | None = None, branches: Path | None = None) -> None:
        self.records = records or Places.records
        self.branches = branches or self.records.parent / BRANCHES

    @property
    def both(self) -> list[Path]:
        """The folders in the order in which a run is looked up."""
        return [self.records, self.branches]


def make_options(
    device: str,
    stores: Stores,
    runs: Path | None,
    page: Path | None,
    checkpoint_s: float,
    command: str,
    fresh: bool = False,
) -> Options:
    """Return how branches are run: their records go to a store of their own."""
    return Options(
        device=choose_device(device),
        fresh=fresh,
        checkpoint_s=checkpoint_s,
        command=command,
        places=Places(stores.branches, page or Places.page, runs or Places.runs),
    )


def run_branch(
    name: str, stores: Stores, options: Options, data_root: Path, console: Console, **asked: Any
) -> tuple[Record, Path]:
    """Branch the run `name` as `asked`, see `make_branch`; return the record and its file, and print its table.

    Raises UserError, before the first batch, for anything wrong that can be known by then.
    """
    parent = find_parent(name, stores.both, options.places.runs)
    cell = make_branch(parent, **asked)
    read_snapshot(parent.folder, cell.epoch)
    check_places(options.places)
    data = load_data(cell.page, data_root, options.device)
    check_method(cell, data)
    record, path = run_cell(cell, data, options, console, FromSnapshot(branch=cell))
    print_result(console, record, show(path), "a branch is on no table")
    console.print(describe(record), highlight=False, markup=False, soft_wrap=True)
    return record, path


def check_method(cell: Branch, data: Data) -> None:
    """Rehearse a method that will update masks; what prunes once is held to its contract when it does, at the start."""
    timeline = make_timeline(cell, data)
    if len(cell.method.update_steps(timeline)):
        rehearse(cell.method, cell.plugin.name, timeline)


def describe(record: Record) -> str:
    """Return what became of a branch's accuracy, in one line."""
    branch = record["branch"]
    epochs = branch["last_epoch"] - branch["epoch"]
    last = record["accuracy_pct"]["last_epoch"]
    ended = "diverged" if last is None else f"{last:.2f} %"
    return (
        f"epoch {branch['epoch']} of {branch['parent']}: {branch['before']['test_acc_pct']:.2f} % before, "
        f"{branch['after']['test_acc_pct']:.2f} % after, {ended} at the end, {amount(epochs, 'epoch')} later"
    )
