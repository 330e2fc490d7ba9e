"""The plan of a grid: cost and state of each row; nothing is trained or written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.base.console import format_flops, format_time
from benchmark.base.errors import UserError
from benchmark.base.files import Places
from benchmark.base.system import describe_environment
from benchmark.config.cells import Cell, Item
from benchmark.config.grids import Grid
from benchmark.data.sets import Data
from benchmark.data.standin import stand_in
from benchmark.grids.memory import Measured, Memory, measured_memory, work_out_memory
from benchmark.grids.predict import Networks, Prediction, page_of, predict
from benchmark.grids.states import DONE, INTERRUPTED, NO_CONTROL, TO_DO, Ledger, index_runs
from benchmark.grids.times import (
    MEMORY,
    SPEED,
    Fleet,
    Job,
    Pace,
    calibrate,
    describe_fleet,
    describe_sharing,
    pace_of_records,
    records_like,
)
from benchmark.runs.run import make_timeline
from benchmark.training.rehearsal import check_budget, rehearse
from leaderboard import Record
from leaderboard.store.records import load_store
from leaderboard.store.repeat import setting_value

LIKELY = "≈"  # before a figure that is not exact


def row_of(cell: Cell) -> tuple[str, str, str, float]:
    """Return what cells that differ only in their seed share."""
    return *page_of(cell), cell.label, cell.sparsity


@dataclass(frozen=True)
class Line:
    """A line of the plan: a row of a page at one sparsity. `states` has one entry for each seed, of states.STATES."""

    cell: Cell
    states: list[str]
    train_macs: int
    share: float
    exact: bool
    seconds: float
    items: list[Item] = field(default_factory=list)

    @property
    def left(self) -> int:
        """The number of runs left to do: neither finished nor controls without a donor."""
        return len(self.states) - self.states.count(DONE) - self.states.count(NO_CONTROL)

    @property
    def status(self) -> str:
        """`finished` when all are; else `interrupted` if one is; else `to do`, or `no control` where none is."""
        return next((state for state in (INTERRUPTED, TO_DO, NO_CONTROL) if state in self.states), DONE)


@dataclass
class Planner:
    """Plans line by line; keeps what the lines of a page share."""

    data_root: Path
    device: torch.device
    records: list[Record]
    ledger: Ledger
    networks: Networks = field(default_factory=Networks)
    data: dict[tuple[str, str], Data] = field(default_factory=dict)
    paces: dict[tuple[str, str], Pace] = field(default_factory=dict)
    calibrated: dict[str, Pace] = field(default_factory=dict)  # by what decides the speed: CIFAR-10 and 100 share it
    memories: dict[tuple[str, str], Memory | Measured] = field(default_factory=dict)  # of the full network of each page
    predictions: dict[tuple[str, str, str, float], Prediction] = field(default_factory=dict)
    obstacles: dict[str, int] = field(default_factory=dict)  # why no control is possible, and of how many runs

    def plan(self, items: list[Item]) -> Line:
        """Return the line of a row's items, which differ in their seed alone.

        Raises UserError for a page whose data is needed and absent, and for a run that could not begin.
        """
        first, cell = items[0], items[0].cell
        data = self.data_of(cell)
        network = self.networks.get(cell, data)
        timeline = make_timeline(cell, data)
        rehearse(cell.method, cell.plugin.name, timeline)
        check_budget(cell, network.built)
        if page_of(cell) not in self.memories and not cell.method.narrows_network:
            alike = records_like(cell, self.records, self.device, MEMORY, ("device", "precision"))
            measured = measured_memory(alike, self.device)
            worked_out = measured or work_out_memory(cell.page, data, network.built, self.device)
            self.memories[page_of(cell)] = worked_out
        settled = self.ledger.settle(first, data) or cell
        donor = self.predictions.get(row_of(first.donor)) if first.donor is not None else None
        if first.donor is not None and donor is None:
            raise UserError(f"{cell.label}: the run it is made from cannot be planned")
        prediction = self.predictions[row_of(cell)] = predict(settled, data, network, donor)
        states = [self.ledger.state(item, data) for item in items]
        for item, state in zip(items, states, strict=True):
            if state == NO_CONTROL:
                obstacle = self.ledger.find_obstacle(item, data)
                self.obstacles[obstacle] = self.obstacles.get(obstacle, 0) + 1
        train, share = prediction.train, prediction.share
        done = [record for item in items if (record := self.finished(item, data)) is not None]
        if done and not prediction.exact:  # a finished seed is a better estimate
            train = sum(record["macs"]["train"] for record in done) // len(done)
            share = train / prediction.train_dense
        # A control's cost follows its donor's layers, which differ between seeds where training decides them.
        exact = prediction.exact and (donor is None or donor.exact)
        timeline = make_timeline(cell, data)
        rounds = timeline.total_steps / timeline.round_ends[0]
        return Line(
            cell, states, train, share, exact, self.pace_of(cell, data).seconds(cell.page, data) * rounds, items
        )

    def finished(self, item: Item, data: Data) -> Record | None:
        """Return the record of an item's cell, or None."""
        cell = self.ledger.settle(item, data)
        return None if cell is None else self.ledger.find(cell, data)

    def data_of(self, cell: Cell) -> Data:
        """Return the numbers of the cell's data set."""
        if page_of(cell) not in self.data:
            self.data[page_of(cell)] = stand_in(cell.page, self.data_root)
        return self.data[page_of(cell)]

    def pace_of(self, cell: Cell, data: Data) -> Pace:
        """Return how fast the cell's page is on this device."""
        page = page_of(cell)
        if page not in self.paces:
            recorded = pace_of_records(cell, data, self.records, self.device)
            self.paces[page] = recorded or self.calibrate(cell, data)
        return self.paces[page]

    def calibrate(self, cell: Cell, data: Data) -> Pace:
        """Return the pace of a few training steps, measured once for pages of the same speed."""
        key = repr([getattr(cell.page, name) for name in SPEED])
        if key not in self.calibrated:
            self.calibrated[key] = calibrate(cell, data, self.networks.get(cell, data).built, self.device)
        return self.calibrated[key]


def group_items(items: Iterable[Item]) -> list[list[Item]]:
    """Return the items by row and sparsity, page after page, otherwise in the order of the file."""
    pages: dict[tuple[str, str], dict[tuple[str, str, str, float], list[Item]]] = {}
    for item in items:
        pages.setdefault(page_of(item.cell), {}).setdefault(row_of(item.cell), []).append(item)
    return [group for page in pages.values() for group in page.values()]


def make_jobs(lines: Iterable[Line]) -> list[Job]:
    """Return the runs left to do, each with its time and the run it has to wait for."""
    return [
        Job(item.cell.identity, line.seconds, item.donor.identity if item.donor is not None else "")
        for line in lines
        for item, state in zip(line.items, line.states, strict=True)
        if state not in (DONE, NO_CONTROL)
    ]


def print_plan(
    grid: Grid, data_root: Path, places: Places, device: torch.device, console: Console, fleet: Fleet | None = None
) -> int:
    """Print the plan of a grid, for one device and for `fleet`; return how many of its runs could not begin.

    Nothing is trained or written, and nothing downloaded but the weights that a page starts from.
    """
    records = load_store(places.records)[0]
    planner = Planner(data_root, device, records, Ledger(index_runs(records), places.runs, device))
    lines, refused = [], 0
    faults: dict[str, None] = {}
    for items in group_items(grid.items):
        try:
            lines.append(planner.plan(items))
        except UserError as error:
            refused += len(items)
            faults[f"{items[0].cell.page_name}: {error}"] = None
    console.print(make_table(grid, lines))
    notes = make_notes(planner, lines) + describe_sharing(planner.memories, device, fleet)
    notes += describe_fleet(make_jobs(lines), fleet) if fleet is not None else []
    for note in dict.fromkeys(notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if refused:
        console.print(f"{refused} of {len(grid.items)} runs cannot be planned:", style="bold red")
        for fault in faults:
            console.print(f"  {fault}", markup=False, highlight=False, soft_wrap=True)
    return refused


def make_table(grid: Grid, lines: list[Line]) -> Table:
    """Return the table of a plan."""
    table = Table(title=escape(grid.title), title_justify="left", box=None, pad_edge=False)
    for name in ("page", "method"):
        table.add_column(name, overflow="fold")
    for name in ("sparsity", "done", "train FLOPs", "x dense", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    variants: dict[str, set[str]] = {}
    for line in lines:
        variants.setdefault(line.cell.page_name, set()).add(line.cell.variant)
    for line in lines:
        changed = ", ".join(f"{key}={setting_value(value)}" for key, value in line.cell.page_changes.items())
        beside = f" ({changed})" if changed and len(variants[line.cell.page_name]) > 1 else ""
        likely = "" if line.exact else f"{LIKELY} "
        dense = line.cell.method.leaderboard_group().value == "dense"
        table.add_row(
            escape(line.cell.page_name + beside),
            escape(line.cell.label),
            "" if dense else f"{line.cell.sparsity:g}",
            f"{line.states.count(DONE)}/{len(line.states)}",
            f"{likely}{format_flops(line.train_macs)}",
            f"{likely}{line.share:.3f}",
            format_time(line.seconds),
            line.status,
        )
    return table


def make_notes(planner: Planner, lines: list[Line]) -> list[str]:
    """Return the notes under a plan: what is left, and where the figures come from."""
    left = sum(line.left for line in lines)
    macs = sum(line.left * line.train_macs for line in lines)
    hours = format_time(sum(line.left * line.seconds for line in lines))
    name = describe_environment(planner.device, "")["device_name"]
    of_all = sum(len(line.states) for line in lines)
    notes = [f"to do: {left} of {of_all} runs, {format_flops(macs)} training FLOPs, about {hours} on this {name}"]
    sources = ", ".join(f"{page} {pace.source}" for (page, _), pace in planner.paces.items())
    if sources:
        notes.append(f"FLOPs and times are of one run; times are estimated, from: {sources}")
    if any(not line.exact for line in lines):
        notes.append(
            f"{LIKELY} which layers keep their weights is decided in training: as in finished seeds or, before there "
            "is one, the count that is planned, divided among the layers as the page divides it"
        )
    for obstacle, number in planner.obstacles.items():
        notes.append(f"no control possible: {number} of {of_all} runs: {obstacle}")
    unread = {page for (page, _), data in planner.data.items() if not data.fingerprint}
    if unread:
        notes.append(f"the images were not read: {', '.join(sorted(unread))} by the sizes of their data sets")
    return notes
