"""Running a grid file: cell after cell, finished ones skipped, controls last, several processes side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from benchmark.cells import Cell
from benchmark.data.sets import Data, load_data
from benchmark.data.standin import stand_in
from benchmark.engines import Pool, check_pool
from benchmark.engines.book import FAILED, FOUND, IMPOSSIBLE, MADE, Book, End, LostError, opening
from benchmark.environment import choose_device
from benchmark.errors import RunningError, UserError, explain
from benchmark.pages import Page
from benchmark.places import Places, check_places
from benchmark.planning.donors import find_donors, take_masks
from benchmark.planning.fleet import Fleet
from benchmark.planning.foresight import check_cells, find_faults
from benchmark.planning.gridfile import Grid, Item
from benchmark.planning.plan import page_of, print_plan
from benchmark.planning.source import Source
from benchmark.planning.states import DONE, NO_CONTROL, Ledger, index_runs, read_now
from benchmark.run import Options, Start, run_cell
from benchmark.stopping import obey, pause, terminable
from benchmark.sweeps.driver import drive
from benchmark.sweeps.holding import BusyError, holding, refuse_held
from benchmark.sweeps.leftovers import complete
from benchmark.sweeps.tally import Tally
from benchmark.sweeps.worker import write_order
from benchmark.tracking import check_mode
from leaderboard.page import amount
from leaderboard.store import load_store

POLL_S = 5.0  # seconds between two looks at cells that other processes hold


def run_sweep(
    *,
    file: Path | None,
    lists: dict[str, str],
    arguments: str,
    plan: bool,
    device: str,
    data_root: Path,
    wandb: str,
    checkpoint_s: float,
    places: dict[str, Path | None],
    pool: Pool,
    command: str,
    console: Console,
    tell: Callable[[object], None],
    fleet: Fleet | None = None,
) -> int:
    """Run the cells of a grid that are not finished, here or on the workers of `pool`, or print its plan.

    Returns how many failed. The grid is that of a file, which `lists` narrow (see `gridfile.narrow`), or without one
    that of the lists themselves; a plan is made for `fleet` too. Raises UserError, before the first batch, for every
    fault of the grid at once, then for every fault of its cells that needs no image to be known, a narrowing that
    leaves nothing, a device or an engine that is absent, folders that cannot be written. Controls that no run can be
    made from do not count as failed.
    """
    check_mode(wandb)
    check_pool(pool)
    remote = pool.engine != "local"  # what this machine has says nothing of the cluster's
    chosen = choose_device("auto" if remote and device == "cuda" else device)
    source = Source.ask(file, lists, arguments, chosen.type == "cuda")
    grid = source.grid()
    where = Places(**{key: path for key, path in places.items() if path is not None})
    if plan:
        return print_plan(grid, data_root, where, chosen, console, fleet)
    check_places(where)
    options = Options(device=chosen, wandb=wandb, checkpoint_s=checkpoint_s, command=command, places=where)
    with terminable(), opening(where.runs, pool.retries, keep=not pool.is_here) as book:
        sweep = Sweep(grid, data_root, options, book, console, tell)
        sweep.check()
        if pool.is_here:
            return sweep.run().sum_up(where.records, sweep.say, tell)
        if pool.engine == "local":
            sweep.note_finished()
        order = write_order(book, source, options, device, data_root)
        return drive(grid, book, order, pool, device, console).sum_up(where.records, sweep.say, tell)


class NoControlError(Exception):
    """The run that a control would be made from is over, and no control can be made from it; the message says why."""


@dataclass
class Sweep:
    """Runs a grid in this process: the whole of a sweep that is run here, or one of its workers.

    Invariants: a cell that fails costs no other cell; only one page's images are in memory at a time; processes that
    share a grid leave one record of each cell.
    """

    grid: Grid
    data_root: Path
    options: Options
    book: Book
    console: Console
    tell: Callable[[object], None]
    told: set[str] = field(default_factory=set)  # reasons of failures: a page without data fails all its cells alike
    open: dict[str, Item] = field(default_factory=dict)  # by the cell's name, until it is finished or has failed
    numbers: dict[tuple[str, str], Data] = field(default_factory=dict)  # of each page's data, without its images
    missing: dict[tuple[str, str], Exception] = field(default_factory=dict)  # why a page's data is not to be had
    loaded: tuple[Page, Data] | None = None  # the page whose images are in memory

    def __post_init__(self) -> None:
        self.ledger = Ledger(read_now(self.options.places.records), self.options.places.runs, self.options.device)
        self.tally = Tally(self.grid)

    def run(self) -> Tally:
        """Bring every cell to an end and return what became of them. Raises KeyboardInterrupt when asked to stop."""
        self.open = {item.cell.identity: item for item in in_order(self.grid.items)}
        waiting = False
        while self.open:
            before = len(self.open)
            moved = [self.attempt(item) for item in list(self.open.values())]
            if self.open and not any(moved):  # held by others, who may finish them, or die and leave them
                if not waiting:
                    self.say(f"waiting: another process holds {before} of {len(self.grid.items)} runs")
                waiting = True
                pause(POLL_S)
        self.loaded = None
        return self.tally

    def check(self) -> None:
        """Raise UserError that lists every fault of the cells that can be known without images."""
        self.say(f"{self.grid.title}: {amount(len(self.grid.items), 'run')}; checking before the first")
        records = load_store(self.options.places.records)[0]
        ledger = Ledger(index_runs(records), self.options.places.runs, self.options.device)
        faults = find_faults(self.grid.items, self.count, ledger, self.options)
        if faults:
            listed = "\n".join(f"  {fault}" for fault in faults)
            number = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
            raise UserError(f"{self.grid.file}: its runs have {number}, and nothing was run:\n{listed}")

    def note_finished(self) -> None:
        """Write down which cells are finished, so that no worker has to look; image folders are for them to read."""
        ledger = replace(self.ledger, records=index_runs(load_store(self.options.places.records)[0]))
        for item in self.grid.items:
            try:
                if item.cell.page.data != "folder" and ledger.state(item, self.count(item.cell)) == DONE:
                    complete(ledger.settle(item, self.count(item.cell)), self.options, self.console)
                    self.book.end(item.cell.identity, End(FOUND))
            except Exception:  # the cell's own failure, told when its turn comes
                continue

    def attempt(self, item: Item) -> bool:
        """Try to bring one cell to an end, unless another process holds it; return whether anything was done."""
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
            except Exception as error:  # one cell must not cost the others theirs, whatever went wrong
                end = self.judge(name, error)
                if end is None:
                    return True
            if self.book.ended(name) is None:
                self.book.end(name, end)
        del self.open[name]
        self.report(name, end)
        return True

    def judge(self, name: str, error: Exception) -> End | None:
        """Return what a cell ends with whose attempt failed, or None where it is tried again."""
        reason = str(error) if isinstance(error, LostError) else explain(error)
        if isinstance(error, UserError | LostError) or not self.book.may_retry(name):
            return End(FAILED, reason)
        self.tell(f"{name} failed and is tried again: {reason}")
        return None

    def finish(self, item: Item) -> End:
        """Train one cell, unless it is finished already, and return what became of it.

        Raises BusyError where it has to wait, NoControlError, UserError and whatever else goes wrong.
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
            if self.ledger.find(cell, data) is not None:  # it was published while this process looked elsewhere
                return self.book.ended(item.cell.identity) or End(FOUND)
            with self.book.counting(item.cell.identity, folder):
                cell = take_masks(cell, self.options.places.runs)
                networks = check_cells([cell], {cell.page_name: data}, self.options)
                options = replace(self.options, progress=self.book.path("progress", item.cell.identity))
                record = run_cell(cell, data, options, self.console, Start(networks.take(cell)))[0]
            accuracy, diverged = record["accuracy_pct"]["last_epoch"], record["status"] != "ok"
            made = End(MADE, "", time.monotonic() - began, accuracy, diverged, self.book.worker)
            self.book.end(item.cell.identity, made)  # before the cell is let go, or others take it for found
            return made

    def found(self, item: Item) -> End:
        """Return the end of a cell that has a record. Raises BusyError where a worker of this sweep is still at it."""
        if self.book.was_begun(item.cell.identity):
            self.refuse_held(item)
        return self.book.ended(item.cell.identity) or End(FOUND)

    def check_donor(self, item: Item) -> None:
        """Raise BusyError while the run that a control is made from is not over, and UserError where it failed.

        A control that names its run outright waits for all rows, of which it may be one.
        """
        if item.donor is None:
            if item.is_control and any(not other.is_control for other in self.open.values()):
                raise BusyError
            return
        if item.donor.identity in self.open:
            raise BusyError
        end = self.book.ended(item.donor.identity)
        if end is not None and end.state == FAILED:
            raise UserError("the run it is made from failed")

    def refuse_held(self, item: Item) -> None:
        """Raise BusyError where another process has the cell, before a page's images are read for nothing."""
        cell = self.ledger.settle(item, self.count(item.cell))
        if cell is not None:
            refuse_held(self.options.places.runs / cell.identity)

    def is_finished(self, item: Item, data: Data) -> bool:
        """Return whether a cell is finished; raises NoControlError where it is not and cannot be."""
        state = self.ledger.state(item, data)
        if state == NO_CONTROL:
            raise NoControlError(self.ledger.find_obstacle(item, data))
        if state == DONE:
            complete(self.ledger.settle(item, data), self.options, self.console)
        return state == DONE

    def settle(self, item: Item, data: Data) -> Cell:
        """Return an item's cell with its donor: the very run of this grid, or the one that the file names outright."""
        known = self.ledger.find(item.donor, data) if item.donor is not None else None
        if item.donor is not None and known is None:
            raise UserError("the record of the run it is made from is not there any more: run the grid again")
        loaded = {item.cell.page_name: data}
        cell = find_donors([item.cell], loaded, self.options.places, self.options.device, known)[0]
        return self.ledger.place(cell, data)

    def count(self, cell: Cell) -> Data:
        """Return the numbers of a page's data, without its images. Raises UserError where they cannot be known."""
        page = page_of(cell)
        if page not in self.numbers:
            self.numbers[page] = stand_in(cell.page, self.data_root)
        return self.numbers[page]

    def load(self, cell: Cell) -> Data:
        """Return the data of a cell's page, let go of another page's, and try only once what cannot be had."""
        page = page_of(cell)
        if page in self.missing:
            raise self.missing[page]
        if self.loaded is None or self.loaded[0] != cell.page:
            self.loaded = None
            try:
                self.loaded = cell.page, load_data(cell.page, self.data_root, self.options.device)
            except Exception as error:
                self.missing[page] = error
                raise
        return self.loaded[1]

    def report(self, name: str, end: End) -> None:
        """Take in what became of a cell; tell of a run that was made here and of a failure."""
        self.tally.ends[name] = end
        if end.state == MADE and end.worker == self.book.worker:
            self.say(self.tally.line(name, self.tally.time_left()))
        elif end.state == FAILED and end.reason not in self.told:
            self.told.add(end.reason)
            self.tell(f"{name}: {end.reason}")

    def say(self, text: str) -> None:
        """Print a plain line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def in_order(items: list[Item]) -> list[Item]:
    """Return the items in two passes, the controls last, since they need their donors' records; page after page."""
    pages = {page: place for place, page in enumerate(dict.fromkeys(page_of(item.cell) for item in items))}
    return sorted(items, key=lambda item: (item.is_control, pages[page_of(item.cell)]))
