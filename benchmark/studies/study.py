"""Making the runs of a study as a sweep, and the plan of what there is to make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from benchmark.base.console import format_flops, format_time
from benchmark.config.cells import Cell, Item
from benchmark.data.sets import Data
from benchmark.data.standin import stand_in
from benchmark.grids.predict import Networks
from benchmark.grids.states import DONE, Ledger, Lookup, index_runs
from benchmark.grids.sweep import Sweep, run_sweep, work
from benchmark.grids.times import calibrate, pace_of_records
from benchmark.runs.branch import Branch, FromSnapshot
from benchmark.runs.branching import Stores, is_there, take_snapshots
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.runs.parents import Parent, find_parent
from benchmark.runs.run import Options, run_cell
from benchmark.studies.plasticity import Study, StudyGrid, make_study
from benchmark.workers import Pool
from leaderboard import Record
from leaderboard.store.records import load_store

QUIET = Console(quiet=True)
HERE = Pool()  # one run after the other, in this process


@dataclass(frozen=True)
class StudyLedger(Ledger):
    """A ledger that knows branches, and that a parent is made when its `snapshots` are there too."""

    snapshots: tuple[int, ...] = ()

    def is_made(self, cell: Cell, data: Data) -> bool:
        folder = self.runs / cell.identity
        return super().is_made(cell, data) and (
            isinstance(cell, Branch) or all(is_there(folder, epoch) for epoch in self.snapshots)
        )

    def place(self, cell: Cell, data: Data) -> Cell:
        if not isinstance(cell, Branch):
            return super().place(cell, data)
        parent = self.place(cell.parent.cell, data)  # whose name is part of the branch's
        return replace(cell, parent=Parent(parent, self.runs / parent.identity, None, [], ""))


class StudySweep(Sweep):
    """A sweep over parents and branches; its records lie in the store of branches."""

    command: ClassVar[str] = "study-worker"
    branches: ClassVar[bool] = True

    def make_ledger(self, records: Lookup) -> Ledger:
        assert isinstance(self.grid, StudyGrid)
        return StudyLedger(records, self.options.places.runs, self.options.device, self.grid.snapshots)

    def items_to_check(self) -> list[Item]:
        """Return the parents: a branch was checked when it was made, the rest needs its snapshot."""
        return [item for item in self.grid.items if item.donor is None]

    def load(self, cell: Cell) -> Data:
        """Return the data, which are the same for all runs of a study."""
        return super().load(self.grid.items[0].cell)

    def train(self, cell: Cell, data: Data, options: Options) -> Record:
        """Make a branch, or a parent with its snapshots, or what is missing of these."""
        assert isinstance(self.ledger, StudyLedger)
        store, runs = options.places.records, options.places.runs
        if not isinstance(cell, Branch):
            options = replace(options, snapshots=self.ledger.snapshots)
            record = self.ledger.find(cell, data) or super().train(cell, data, options)
            if not self.ledger.is_made(cell, data):  # begun without snapshots, or they were deleted since
                wanted = ",".join(map(str, self.ledger.snapshots))
                take_snapshots(cell.identity, wanted, self.data_root, [store], options, QUIET)
            return record
        branch = replace(cell, parent=find_parent(cell.parent.name, [store], runs))
        start = FromSnapshot(branch=branch, is_made=self.look_for(branch, data))
        record = run_cell(branch, data, options, QUIET, start)[0]
        for file in (WEIGHTS, MASKS):
            # hundreds of networks that differ in one mask; `sparse-bench branch` makes any of them again
            (runs / branch.identity / file).unlink(missing_ok=True)
        return record


def run_study(
    study: Study, data_root: Path, options: Options, console: Console, tell: Callable[[object], None], pool: Pool = HERE
) -> int:
    """Make a study's runs with these workers; return how many failed. Raises UserError as `run_sweep` does."""
    return run_sweep(study, options, pool, str(options.device), data_root, console, tell, StudySweep)


def work_on_study(spec: Path, number: int, console: Console, tell: Callable[[object], None]) -> None:
    """Make a study's runs as worker `number` of its sweep."""
    work(spec, number, console, tell, make_study, StudySweep)


KINDS = ("runs that are pruned from", "branches, plasticity", "branches, to the end")


def print_study(study: Study, data_root: Path, stores: Stores, options: Options, console: Console) -> int:
    """Print the plan; return 0. Nothing is trained or written.

    FLOPs take every layer to keep the same share of its weights, and leave scoring out.
    """
    grid, first = study.grid(), study.parents[0]
    data = stand_in(first.page, data_root)
    records = [record for store in stores.both for record in load_store(store, branches=True)[0]]
    built = Networks().get(first, data).built
    pace = pace_of_records(first, data, records, options.device) or calibrate(first, data, built, options.device)
    ledger = StudyLedger(index_runs(records), options.places.runs, options.device, grid.snapshots)
    per_epoch_s = pace.seconds(first.page, data) / first.page.epochs
    table = Table(box=None, pad_edge=False)
    for name in ("", "runs", "finished", "epochs to train", "train FLOPs", "time"):
        table.add_column(name, justify="right" if name else "left")
    for kind in KINDS:
        items = [item for item in grid.items if kind_of(item.cell) == kind]
        left = [item.cell for item in items if ledger.state(item, data) != DONE]
        macs = sum(3 * built.costs.dense * len(data.train) * epochs_of(cell) * (1 - cell.sparsity) for cell in left)
        epochs = sum(map(epochs_of, left))
        done, cost = str(len(items) - len(left)), f"≈ {format_flops(macs)}"
        table.add_row(kind, str(len(items)), done, str(epochs), cost, format_time(epochs * per_epoch_s))
    console.print(grid.title)
    console.print(table)
    console.print(f"times are of one process, by {pace.source}", highlight=False)
    return 0


def kind_of(cell: Cell) -> str:
    """Return which of KINDS a run is."""
    return KINDS[0] if not isinstance(cell, Branch) else KINDS[1] if cell.hold_lr else KINDS[2]


def epochs_of(cell: Cell) -> int:
    """Return how many epochs a run trains itself."""
    return cell.end - cell.epoch if isinstance(cell, Branch) else cell.page.epochs
