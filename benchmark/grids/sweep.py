"""A sweep: every cell of a grid that is not finished, in this process or by workers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from benchmark.base.errors import PassingError, RunningError, UserError, explain
from benchmark.base.files import Places, check_places, expand, refuse_lockless, write_note
from benchmark.base.stopping import listen, obey, pause, terminable
from benchmark.base.system import choose_device
from benchmark.base.tracking import check_mode
from benchmark.config.cells import Cell, Item
from benchmark.config.grids import Grid, Source
from benchmark.config.pages import Page
from benchmark.data.sets import Data, load_data
from benchmark.data.standin import stand_in
from benchmark.grids.board import Tally
from benchmark.grids.driver import drive
from benchmark.grids.grid import check_cell, check_cells
from benchmark.grids.plan import group_items
from benchmark.grids.predict import Networks, page_of
from benchmark.grids.states import (
    DONE,
    NO_CONTROL,
    BusyError,
    Ledger,
    Lookup,
    holding,
    index_runs,
    read_now,
    refuse_held,
)
from benchmark.runs.checkpoints import FINISHED, read_finished
from benchmark.runs.donors import find_donors, take_masks
from benchmark.runs.run import Options, Start, publish, run_cell, warner
from benchmark.workers import Order, Pool, check_pool
from benchmark.workers.book import FAILED, FOUND, IMPOSSIBLE, MADE, SPEC, STOP, Book, End, LostError, opening
from leaderboard import Record
from leaderboard.store.records import load_store
from leaderboard.tables.sections import amount

POLL_S = 5.0  # seconds between two looks at cells that other processes hold


class GridSource(Protocol):
    """Where a grid comes from. Invariant: the same plain values give the same grid in every process of one version."""

    def grid(self) -> Grid:
        """Return the grid; raises UserError that lists every fault of it."""

    def as_dict(self) -> dict[str, Any]:
        """Return what was asked as plain values."""


def run_sweep(
    source: GridSource,
    options: Options,
    pool: Pool,
    device: str,
    data_root: Path,
    console: Console,
    tell: Callable[[object], None],
    kind: type[Sweep] | None = None,
) -> int:
    """Run the cells of a grid that are not finished, here or on the workers of `pool`; return how many failed.

    `device` is what the user asked for, decided again where a worker runs; `kind`: a Sweep with cells of other kinds.
    Raises UserError, before the first batch, for every fault of the grid at once, then for every fault of its cells
    that needs no image to be known, workers that cannot be had, folders that cannot be written. Controls that no run
    can be made from do not count as failed.
    """
    check_mode(options.wandb)
    check_pool(pool)
    if pool.is_here and pool.per_gpu > 1:
        raise UserError(f"PER_GPU={pool.per_gpu} is for several workers, and JOBS=1 runs one: give JOBS=auto")
    grid = source.grid()
    check_places(options.places)
    refuse_lockless(options.places.runs)
    with terminable(), opening(options.places.runs, pool.retries, keep=not pool.is_here) as book:
        sweep = (kind or Sweep)(grid, data_root, options, book, console, tell)
        sweep.check()
        if pool.is_here:
            tally = sweep.run()
        else:
            if pool.where == "local":
                sweep.note_finished()
            has_gpu = pool.has_gpu(device, options.device.type != "cpu")
            order = write_order(book, source, options, pool.device_there(device), data_root, has_gpu, sweep.command)
            tally = drive(grid, book, order, pool, device, console)
        return tally.sum_up(options.places.records, sweep.say, tell, sweep.branches)


class NoControlError(Exception):
    """The run that a control would be made from is over, and no control can be made from it; the message says why."""


@dataclass
class Sweep:
    """Runs a grid in this process: the whole of a sweep that is run here, or one of its workers.

    Invariants: a failing cell affects no other; only one page's images are in memory at a time; processes that share
    a grid leave one record of each cell.
    """

    command: ClassVar[str] = "worker"  # of sparse-bench, which starts a worker of such a sweep
    branches: ClassVar[bool] = False  # whether its records may be of branches

    grid: Grid
    data_root: Path
    options: Options
    book: Book
    console: Console
    tell: Callable[[object], None]
    told: set[str] = field(default_factory=set)  # reasons already reported: a page without data fails all its cells
    open: dict[str, Item] = field(default_factory=dict)  # by the cell's name, until it is finished or has failed
    numbers: dict[tuple[str, str], Data] = field(default_factory=dict)  # of each page's data, without its images
    missing: dict[tuple[str, str], Exception] = field(default_factory=dict)  # why a page's data cannot be loaded
    failed_loads: Counter[tuple[str, str]] = field(default_factory=Counter)  # in a row, of a page's data
    loaded: tuple[Page, Data] | None = None  # the page whose images are in memory

    def __post_init__(self) -> None:
        self.ledger = self.make_ledger(read_now(self.options.places.records))
        self.tally = Tally(self.grid)

    def make_ledger(self, records: Lookup) -> Ledger:
        """Return what tells which cells are finished."""
        return Ledger(records, self.options.places.runs, self.options.device)

    def items_to_check(self) -> list[Item]:
        """Return the items whose cells are held, before the first run, to what can be known without images."""
        return self.grid.items

    def read_store(self) -> Ledger:
        """Return a ledger of all records there are now, which are read once."""
        return replace(self.ledger, records=index_runs(load_store(self.options.places.records, self.branches)[0]))

    def run(self) -> Tally:
        """Bring every cell to an end and return what became of them. Raises KeyboardInterrupt when asked to stop."""
        self.open = {item.cell.identity: item for item in in_order(self.grid.items)}
        waiting = False
        while self.open:
            before = len(self.open)
            moved = [self.attempt(item) for item in list(self.open.values())]
            if self.open and not any(moved):  # held by other processes, which may finish them or die
                if not waiting:
                    self.say(f"waiting: another process holds {before} of {len(self.grid.items)} runs")
                waiting = True
                pause(POLL_S)
        self.loaded = None
        return self.tally

    def check(self) -> None:
        """Raise UserError that lists every fault of the cells that can be known without images."""
        self.say(f"{self.grid.title}: {amount(len(self.grid.items), 'run')}; checking before the first")
        faults = find_faults(self.items_to_check(), self.count, self.read_store(), self.options)
        if faults:
            listed = "\n".join(f"  {fault}" for fault in faults)
            number = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
            raise UserError(f"{self.grid.file}: its runs have {number}, and nothing was run:\n{listed}")

    def note_finished(self) -> None:
        """Note which cells are finished, so that no worker has to look; image folders are left to the workers."""
        ledger = self.read_store()
        for item in self.grid.items:
            try:
                if item.cell.page.data != "folder" and ledger.state(item, self.count(item.cell)) == DONE:
                    complete(ledger.settle(item, self.count(item.cell)), self.options, self.console)
                    self.book.end(item.cell.identity, End(FOUND))
            except Exception:  # the cell's own failure, reported at its turn
                continue

    def attempt(self, item: Item) -> bool:
        """Try to finish one cell, unless another process holds it; return whether anything was done."""
        obey()
        name = item.cell.identity
        end = self.book.ended(name)  # another worker of this sweep saw it
        if end is None:
            try:
                end = self.finish(item)
            except (BusyError, RunningError):
                return False
            except NoControlError as error:
                end = End(IMPOSSIBLE, str(error))
            except Exception as error:  # whatever went wrong, the other cells go on
                end = self.judge(item.cell, error)
                if end is None:
                    return True
            if self.book.ended(name) is None:
                self.book.end(name, end)
        del self.open[name]
        self.report(name, end)
        return True

    def judge(self, cell: Cell, error: Exception) -> End | None:
        """Return the end of a cell whose attempt failed, or None if it is tried again."""
        name, reason = cell.identity, str(error) if isinstance(error, LostError) else explain(error)
        again = self.failed_loads[page_of(cell)] > 0 or self.book.may_retry(name)
        if is_final(error) or error is self.missing.get(page_of(cell)) or not again:
            return End(FAILED, reason)
        self.tell(f"{name} failed and is tried again: {reason}")
        return None

    def finish(self, item: Item) -> End:
        """Train one cell, unless it is finished already, and return what became of it.

        Raises BusyError if it has to wait, NoControlError, UserError and whatever else goes wrong.
        """
        self.check_donor(item)
        # The content of an image folder is known by reading it alone.
        if item.cell.page.data != "folder" and self.is_finished(item, self.count(item.cell)):
            return self.found(item)
        self.refuse_held(item)
        data = self.load(item.cell)
        self.numbers[page_of(item.cell)] = replace(self.count(item.cell), fingerprint=data.fingerprint)
        if self.is_finished(item, data):
            return self.found(item)
        cell, began = self.settle(item, data), time.monotonic()
        folder = self.options.places.runs / cell.identity
        with holding(folder):
            if self.ledger.is_made(cell, data):  # another process has published it meanwhile
                return self.book.ended(item.cell.identity) or End(FOUND)
            with self.book.counting(item.cell.identity, folder):
                options = replace(self.options, progress=self.book.path("progress", item.cell.identity))
                record = self.train(cell, data, options)
            accuracy, diverged = record["accuracy_pct"]["last_epoch"], record["status"] != "ok"
            made = End(MADE, "", time.monotonic() - began, accuracy, diverged, self.book.worker)
            self.book.end(item.cell.identity, made)  # before the lock is released, or others would count it as found
            return made

    def train(self, cell: Cell, data: Data, options: Options) -> Record:
        """Check and train a cell that is this process's alone; return its record."""
        cell = take_masks(cell, options.places.runs)
        networks = check_cells([cell], {cell.page_name: data}, options)
        return run_cell(cell, data, options, self.console, Start(networks.take(cell), self.look_for(cell, data)))[0]

    def look_for(self, cell: Cell, data: Data) -> Callable[[], bool]:
        """Return what tells whether a run has its record by now: `make bench` holds no lock of grids."""
        return lambda: self.ledger.find(cell, data) is not None

    def found(self, item: Item) -> End:
        """Return the end of a cell that has a record. Raises BusyError if a worker of this sweep still holds it."""
        if self.book.was_begun(item.cell.identity):
            self.refuse_held(item)
        return self.book.ended(item.cell.identity) or End(FOUND)

    def check_donor(self, item: Item) -> None:
        """Raise BusyError until the run that an item is made from has ended, and UserError if it failed.

        A control that names its run outright waits for all rows, of which it may be one.
        """
        if item.donor is None:
            if item.is_control and any(not other.is_control for other in self.open.values()):
                raise BusyError
            return
        if item.donor.identity in self.open:
            raise BusyError
        end = self.book.ended(item.donor.identity)
        if end is not None and end.state == FAILED and self.ledger.state(item, self.count(item.cell)) != DONE:
            raise UserError("the run it is made from failed")

    def refuse_held(self, item: Item) -> None:
        """Raise BusyError if another process holds the cell, before a page's images are read for nothing."""
        cell = self.ledger.settle(item, self.count(item.cell))
        if cell is not None:
            refuse_held(self.options.places.runs / cell.identity)

    def is_finished(self, item: Item, data: Data) -> bool:
        """Return whether a cell is finished; raises NoControlError if it is not and cannot be."""
        state = self.ledger.state(item, data)
        if state == NO_CONTROL:
            raise NoControlError(self.ledger.find_obstacle(item, data))
        if state == DONE:
            complete(self.ledger.settle(item, data), self.options, self.console)
        return state == DONE

    def settle(self, item: Item, data: Data) -> Cell:
        """Return an item's cell with its donor: the very run of this grid, or the one that the file names outright."""
        known = self.ledger.find_donor(item, data)
        if item.donor is not None and known is None:
            raise UserError("the record of the run it is made from is gone: run the grid again")
        loaded = {item.cell.page_name: data}
        cell = find_donors([item.cell], loaded, self.options.places, self.options.device, known)[0]
        return self.ledger.place(cell, data)

    def count(self, cell: Cell) -> Data:
        """Return the sizes of a page's data, without its images. Raises UserError if they cannot be known."""
        page = page_of(cell)
        if page not in self.numbers:
            self.numbers[page] = stand_in(cell.page, self.data_root)
        return self.numbers[page]

    def load(self, cell: Cell) -> Data:
        """Return the data of a cell's page in place of another page's.

        Data that a user has to mend is tried once; what may pass, such as a device out of memory, as often as a cell.
        """
        page = page_of(cell)
        if page in self.missing:
            raise self.missing[page]
        if self.loaded is None or self.loaded[0] != cell.page:
            self.loaded = None
            try:
                self.loaded = cell.page, load_data(cell.page, self.data_root, self.options.device)
            except Exception as error:
                self.failed_loads[page] += 1
                if is_final(error) or self.failed_loads[page] > self.book.retries:
                    self.missing[page] = error
                raise
            del self.failed_loads[page]
        return self.loaded[1]

    def report(self, name: str, end: End) -> None:
        """Note what became of a cell; print it if it was trained here or failed."""
        self.tally.ends[name] = end
        if end.state == MADE and end.worker == self.book.worker:
            self.say(self.tally.line(name, self.tally.time_left()))
        elif end.state == FAILED and end.reason not in self.told:
            self.told.add(end.reason)
            self.tell(f"{name}: {end.reason}")

    def say(self, text: str) -> None:
        """Print a plain line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def is_final(error: Exception) -> bool:
    """Return whether an error would come again: a user has to mend it, or it was tried as often as it may be."""
    return isinstance(error, UserError | LostError) and not isinstance(error, PassingError)


def in_order(items: list[Item]) -> list[Item]:
    """Return the items page after page, controls last: they need their donors' records."""
    pages = {page: place for place, page in enumerate(dict.fromkeys(page_of(item.cell) for item in items))}
    return sorted(items, key=lambda item: (item.is_control, pages[page_of(item.cell)]))


# Read by torch and its libraries when they start. Several processes are fastest on one thread each.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


ASKED, SECRET = ("SPARSE_BENCH_", "WANDB_"), {"WANDB_API_KEY"}  # what a user asks by; a key is written down nowhere


def write_order(
    book: Book,
    source: GridSource,
    options: Options,
    device: str,
    data_root: Path,
    has_gpu: bool,
    command: str = "worker",
) -> Order:
    """Write down what the workers of a sweep are to do and return the order to start them with."""
    places = {key: str(path.resolve()) for key, path in dataclasses.asdict(options.places).items()}
    content = {
        "source": source.as_dict(),
        "cells": fingerprint(source.grid()),
        "device": device,
        "data": str(expand(data_root).resolve()),
        "wandb": options.wandb,
        "checkpoint_s": options.checkpoint_s,
        "command": options.command,
        "places": places,
        "retries": book.retries,
    }
    write_note(book.folder / SPEC, content)
    environment = {key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()}
    environment |= {key: value for key, value in os.environ.items() if key.startswith(ASKED) and key not in SECRET}
    if has_gpu and "OMP_NUM_THREADS" not in os.environ:
        del environment["OMP_NUM_THREADS"]  # on a GPU the host may use all threads
    resolved = Book(book.folder.resolve(), book.retries, known=book.known)
    return Order(resolved, str(Path.cwd()), environment, command)


def fingerprint(grid: Grid) -> str:
    """Return a hash of which cells a grid has."""
    names = json.dumps([item.cell.identity for item in grid.items])
    return hashlib.sha256(names.encode()).hexdigest()


def work(
    spec: Path,
    number: int,
    console: Console,
    tell: Callable[[object], None],
    read: Callable[..., GridSource] = Source,
    kind: type[Sweep] = Sweep,
) -> None:
    """Run a sweep's cells as its worker `number`; `read` makes what was asked of its plain values.

    Raises UserError where the code gives other cells here.
    """
    listen(spec.parent / STOP)
    content: dict[str, Any] = json.loads(spec.read_text())
    grid = read(**content["source"]).grid()
    if fingerprint(grid) != content["cells"]:
        raise UserError(f"{spec}: the methods, pages or code have changed since this sweep began: start it again")
    places = Places(**{key: Path(path) for key, path in content["places"].items()})
    options = Options(
        device=choose_device(content["device"]),
        wandb=content["wandb"],
        checkpoint_s=content["checkpoint_s"],
        command=content["command"],
        places=places,
    )
    console.print(f"worker {number}, process {os.getpid()}, {torch.get_num_threads()} thread(s)", highlight=False)
    book = Book(spec.parent, content["retries"], number)
    kind(grid, Path(content["data"]), options, book, console, tell).run()


def complete(cell: Cell | None, options: Options, console: Console) -> None:
    """Finish publishing a cell that has its record, and clear the run's folder, unless another process holds the run.

    Invariant: a record that is in the store is not written again.
    """
    if cell is None or not (options.places.runs / cell.identity / FINISHED).exists():
        return
    folder = options.places.runs / cell.identity
    with contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):
        finished = read_finished(folder / FINISHED, warner(console))
        if finished is not None:
            publish(finished, folder, options.places)


def find_faults(items: list[Item], numbers: Callable[[Cell], Data], ledger: Ledger, options: Options) -> list[str]:
    """Return the faults of the cells that are not finished, one line for each row of a page and fault.

    `numbers` gives the data of a cell's page, possibly a stand-in. Errors that are no UserError of the check are the
    cells' own failures, reported at their turn. One seed stands for all seeds of a row.
    """
    networks = Networks()
    faults: dict[str, None] = {}
    for group in group_items(items):
        try:
            data = numbers(group[0].cell)
            left = [item.cell for item in group if ledger.state(item, data) != DONE]
        except Exception:
            continue
        try:
            for cell in left[:1]:
                check_cell(cell, data, options, networks)
        except UserError as error:
            faults[f"{group[0].cell.page_name}, {group[0].cell.label}: {error}"] = None
        except Exception:
            continue
    return list(faults)
