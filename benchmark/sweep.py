"""Running a grid file: cell after cell, finished ones skipped, controls last, several processes side by side."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from benchmark.cells import Cell
from benchmark.data import Data, load_data
from benchmark.donors import find_donors, take_masks
from benchmark.environment import choose_device
from benchmark.errors import UserError
from benchmark.foresight import check_cells, find_faults
from benchmark.gridfile import Grid, Item, narrow, read_grid
from benchmark.pace import format_time
from benchmark.pages import Page
from benchmark.plan import page_of, print_plan
from benchmark.run import Options, Places, check_places, run_cell
from benchmark.standin import stand_in
from benchmark.states import DONE, NO_CONTROL, Ledger, index_runs, read_now
from benchmark.tracking import check_mode
from leaderboard import Record
from leaderboard.store import load_store
from leaderboard.table import printable

LOCK = "grid.lock"  # in a run's folder: held from the last look at the records until the run's record is there
RUNNING = "already running in another process"  # what run_cell says of a cell that someone else trains
POLL_S = 5.0  # seconds between two looks at cells that other processes hold


def run_grid_file(
    *,
    file: Path,
    wanted: dict[str, str],
    plan: bool,
    device: str,
    data_root: Path,
    wandb: str,
    checkpoint_s: float,
    places: dict[str, Path | None],
    command: str,
    console: Console,
    tell: Callable[[object], None],
) -> int:
    """Run the cells of a grid file that are not finished, or print its plan; return how many failed.

    `wanted` narrows the grid, see `gridfile.narrow`. Raises UserError, before the first batch, for every fault of the
    file at once, then for every fault of its cells that needs no image to be known, a narrowing that leaves nothing, a
    device that is absent, folders that cannot be written. Controls that no run can be made from do not count as failed.
    """
    check_mode(wandb)
    chosen = choose_device(device)
    grid = narrow(read_grid(file), wanted)
    where = Places(**{key: path for key, path in places.items() if path is not None})
    if plan:
        return print_plan(grid, data_root, where, chosen, console)
    check_places(where)
    options = Options(device=chosen, wandb=wandb, checkpoint_s=checkpoint_s, command=command, places=where)
    return Sweep(grid, data_root, options, console, tell).run()


class BusyError(Exception):
    """Another process is training the cell, or the run that a control waits for."""


class NoControlError(Exception):
    """The run that a control would be made from is over, and no control can be made from it; the message says why."""


@dataclass
class Sweep:
    """Runs a grid in this process.

    Invariants: a cell that fails costs no other cell; only one page's images are in memory at a time; processes that
    share a grid leave one record of each cell.
    """

    grid: Grid
    data_root: Path
    options: Options
    console: Console
    tell: Callable[[object], None]
    open: dict[str, Item] = field(default_factory=dict)  # by the cell's name, until it is finished or has failed
    failed: dict[str, list[str]] = field(default_factory=dict)  # names of cells by what went wrong
    impossible: dict[str, list[Cell]] = field(default_factory=dict)  # controls by why no run can be made from
    numbers: dict[tuple[str, str], Data] = field(default_factory=dict)  # of each page's data, without its images
    missing: dict[tuple[str, str], Exception] = field(default_factory=dict)  # why a page's data is not to be had
    loaded: tuple[Page, Data] | None = None  # the page whose images are in memory
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # seconds of the runs made here, by page

    def run(self) -> int:
        """Run every cell that is not finished; return how many failed."""
        self.ledger = Ledger(read_now(self.options.places.records), self.options.places.runs, self.options.device)
        self.open = {item.cell.identity: item for item in in_order(self.grid.items)}
        self.say(f"{self.grid.title}: {len(self.open)} runs; checking them before the first")
        self.refuse_faults()
        waiting = False
        while self.open:
            before = len(self.open)
            for item in list(self.open.values()):
                self.attempt(item)
            if self.open and len(self.open) == before:  # held by others, who may finish them, or die and leave them
                if not waiting:
                    self.say(f"waiting: another process holds {before} of {len(self.grid.items)} runs")
                waiting = True
                time.sleep(POLL_S)
        self.loaded = None
        return self.sum_up()

    def refuse_faults(self) -> None:
        """Raise UserError that lists every fault of the cells that can be known without images."""
        records = load_store(self.options.places.records)[0]
        ledger = Ledger(index_runs(records), self.options.places.runs, self.options.device)
        faults = find_faults(self.grid.items, self.count, ledger, self.options)
        if faults:
            listed = "\n".join(f"  {fault}" for fault in faults)
            number = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
            raise UserError(f"{self.grid.file}: its runs have {number}, and nothing was run:\n{listed}")

    def attempt(self, item: Item) -> None:
        """Bring one cell to an end, finished or failed, unless another process holds it: then it stays open."""
        name = item.cell.identity
        began = time.monotonic()
        try:
            record = self.finish(item)
        except BusyError:
            return
        except NoControlError as error:
            self.impossible.setdefault(str(error), []).append(item.cell)
            del self.open[name]
            return
        except Exception as error:  # one cell must not cost the others theirs, whatever went wrong
            if isinstance(error, UserError) and RUNNING in str(error):
                return
            reason = str(error) if isinstance(error, UserError) else traceback.format_exc()
            if reason not in self.failed:  # a page without data fails all its cells alike
                self.tell(f"{name}: {reason}")
            self.failed.setdefault(reason, []).append(name)
            del self.open[name]
            return
        del self.open[name]
        if record is not None:
            self.times.setdefault(page_of(item.cell), []).append(time.monotonic() - began)
            self.report(item.cell, record)

    def finish(self, item: Item) -> Record | None:
        """Train one cell and return its record, or None where it is finished already.

        Raises BusyError where it has to wait, NoControlError, UserError and whatever else goes wrong.
        """
        self.check_donor(item)
        # The content of an image folder is known by reading it alone.
        if item.cell.page.data != "folder" and self.is_finished(item, self.count(item.cell)):
            return None
        data = self.load(item.cell)
        if self.is_finished(item, data):
            return None
        cell = self.settle(item, data)
        with holding(self.options.places.runs / cell.identity):
            if self.ledger.find(cell, data) is not None:  # it was published while this process looked elsewhere
                return None
            cell = take_masks(cell, self.options.places.runs)
            check_cells([cell], {cell.page_name: data}, self.options)
            return run_cell(cell, data, self.options, self.console)[0]

    def check_donor(self, item: Item) -> None:
        """Raise BusyError while the run that a control is made from is not over, and UserError where it failed."""
        if item.donor is None:
            return
        if item.donor.identity in self.open:
            raise BusyError
        if any(item.donor.identity in names for names in self.failed.values()):
            raise UserError("the run it is made from failed")

    def is_finished(self, item: Item, data: Data) -> bool:
        """Return whether a cell is finished; raises NoControlError where it is not and cannot be."""
        state = self.ledger.state(item, data)
        if state == NO_CONTROL:
            raise NoControlError(self.ledger.find_obstacle(item, data))
        return state == DONE

    def settle(self, item: Item, data: Data) -> Cell:
        """Return an item's cell with its donor: the very run of this grid, or the one that the file names outright."""
        known = self.ledger.find(item.donor, data) if item.donor is not None else None
        if item.donor is not None and known is None:
            raise UserError("the record of the run it is made from is not there any more: run the grid again")
        loaded = {item.cell.page_name: data}
        return find_donors([item.cell], loaded, self.options.places, self.options.device, known)[0]

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

    def report(self, cell: Cell, record: Record) -> None:
        """Print the line of a run that has just finished."""
        accuracy = record["accuracy_pct"]["last_epoch"]
        shown = "diverged" if record["status"] != "ok" else "no accuracy" if accuracy is None else f"{accuracy:.2f} %"
        total = len(self.grid.items)
        left = f"{len(self.open)} left{self.time_left()}" if self.open else "none left"
        took = format_time(self.times[page_of(cell)][-1])
        self.say(f"{total - len(self.open)}/{total} done: {describe(cell)}: {shown} in {took}; {left}")

    def time_left(self) -> str:
        """Return `, about 4 min` by the runs made here; `, more than` where a page has had none yet."""
        means = {page: sum(times) / len(times) for page, times in self.times.items()}
        known = [means[page_of(item.cell)] for item in self.open.values() if page_of(item.cell) in means]
        if not known:
            return ""
        return f", {'about' if len(known) == len(self.open) else 'more than'} {format_time(sum(known))}"

    def sum_up(self) -> int:
        """Print what became of the grid, each failure with its reason; return how many failed."""
        failed = sum(len(names) for names in self.failed.values())
        without = sum(len(cells) for cells in self.impossible.values())
        made = sum(len(times) for times in self.times.values())
        before = len(self.grid.items) - made - without - failed
        lost = f"{without} without a run to be made from, " if without else ""
        self.say(f"{self.grid.title}: {made} made, {before} finished already, {lost}{failed} failed")
        for problem in load_store(self.options.places.records)[1]:
            self.tell(printable(f"record {problem.file} was skipped: {problem.reason}"))
        for reason, cells in self.impossible.items():
            self.say(f"no control possible ({reason}): {'; '.join(describe(cell) for cell in cells)}")
        for reason, names in self.failed.items():
            self.tell(f"failed: {', '.join(names)}: {reason}")
        return failed

    def say(self, text: str) -> None:
        """Print a plain line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the folder of a run against other grids. Raises BusyError where one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError from None
    try:
        yield
    finally:
        lock.release()


def in_order(items: list[Item]) -> list[Item]:
    """Return the items in two passes, the controls last, since they need their donors' records; page after page."""
    pages = {page: place for place, page in enumerate(dict.fromkeys(page_of(item.cell) for item in items))}
    return sorted(items, key=lambda item: (item.is_control, pages[page_of(item.cell)]))


def describe(cell: Cell) -> str:
    """Return a cell in words: `granet at sparsity 0.9, seed 0 on digits_resnet20`."""
    sparsity = f" at sparsity {cell.sparsity:g}" if cell.sparsity else ""
    return f"{cell.label}{sparsity}, seed {cell.seed} on {cell.page_name}"
