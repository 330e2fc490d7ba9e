"""Which cells of a grid are finished, begun or to do, by the records, and who holds a run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmark.base.errors import UserError
from benchmark.base.files import refuse_links
from benchmark.config.cells import PROTOCOL, Cell, Item, ask_donor
from benchmark.config.pages import FOLDERS
from benchmark.data.sets import Data
from benchmark.runs.checkpoints import FINISHED, load_checkpoint
from benchmark.runs.donors import attach, has_masks
from benchmark.training.precision import possible_precisions
from leaderboard import Record, RecordError, UnreadableError, read_record
from leaderboard.store.records import list_run
from leaderboard.store.repeat import arithmetic
from leaderboard.tables.table import gather

STATES = DONE, INTERRUPTED, TO_DO, NO_CONTROL = "finished", "interrupted", "to do", "no control"

Lookup = Callable[[str], list[Record]]  # from a run's name, with or without its hash, to the records that may be of it


def read_now(folder: Path) -> Lookup:
    """Return a lookup that reads the store each time, because other processes write to it; damaged records are skipped.

    It raises UserError if the store, or a record of the run, is out of reach: a finished run would be trained again.
    """

    def look_up(run: str) -> list[Record]:
        found = []
        try:
            for path in list_run(run, folder):
                try:
                    found.append({**read_record(path), "file": path.name})
                except UnreadableError:
                    raise
                except RecordError:
                    continue
        except UnreadableError as error:
            unknown = "so nobody knows whether it is finished"
            raise UserError(f"the records of run {run} in {folder} are {error}, {unknown}") from error
        return found

    return look_up


def index_runs(records: Iterable[Record]) -> Lookup:
    """Return a lookup in records that were read already."""
    by_run: dict[str, list[Record]] = {}
    for record in records:
        for name in (record["run"], head(record["run"])):
            by_run.setdefault(name, []).append(record)
    return lambda run: by_run.get(run, [])


def head(run: str) -> str:
    """Return a run's name without its hash, as shared with runs of other settings."""
    return run.rpartition(".")[0]


@dataclass(frozen=True)
class Ledger:
    """What exists of a grid's cells: records, and folders of runs that were begun."""

    records: Lookup
    runs: Path
    device: torch.device

    def find(self, cell: Cell, data: Data) -> Record | None:
        """Return the record that finishes a cell, the first of repeats; see `find_all`."""
        return next(iter(self.find_all(cell, data)), None)

    def find_all(self, cell: Cell, data: Data) -> list[Record]:
        """Return the records of a cell's run, protocol, data and arithmetic: the one that counts, then its repeats.

        Its run may be named by its data or, by an earlier version, without them: see `Cell.names`. Where `data` is a
        stand-in without a fingerprint, its name and the sizes of its parts are compared instead.
        """
        precisions = possible_precisions(cell.page, self.device)
        unknown = cell.page.data in FOLDERS and not data.fingerprint
        names = [head(cell.identity)] if unknown else cell.names(data.fingerprint)
        found = [
            record
            for name in names
            for record in self.records(name)
            if record["protocol"] == PROTOCOL and arithmetic(record) in precisions and is_same_data(record, data)
            if record["run"] in cell.names(record["data"]["fingerprint"])
        ]
        entry = gather(found)
        return [*entry.counted, *entry.repeats]

    def find_donor(self, item: Item, data: Data) -> Record | None:
        """Return the record that a control is made from, None where there is none: the first of the donor's repeats.

        Repeats on other kinds of machine may have other masks: the one whose control is made goes first, then the one
        whose masks lie here.
        """
        found, wanted = self.find_all(item.donor, data) if item.donor is not None else [], ask_donor(item.cell)
        if wanted is None or not wanted.masks or len(found) < 2:
            return next(iter(found), None)
        made = (
            one for one in found if self.is_made(self.place(attach(item.cell, wanted, one, wanted.run), data), data)
        )
        here = (one for one in found if has_masks(one, self.runs))
        return next(itertools.chain(made, here, found))

    def is_made(self, cell: Cell, data: Data) -> bool:
        """Return whether there is everything that a run of the cell leaves."""
        return self.find(cell, data) is not None

    def place(self, cell: Cell, data: Data) -> Cell:
        """Return the cell under the name of its run on these data; unchanged where their fingerprint is not known.

        A run that an earlier version named without its data keeps that name, as far as it is known to be of the same
        data: by its record, or by what its folder holds of a run that was interrupted.
        """
        if not data.fingerprint:
            return cell
        old, new = cell.with_data(""), cell.with_data(data.fingerprint)
        return old if old.identity == new.identity or self.has_run(old.identity, data.fingerprint) else new

    def has_run(self, run: str, fingerprint: str) -> bool:
        """Return whether a run of this name on these data was finished or begun."""
        records = [record for record in self.records(run) if record["run"] == run]
        folder, found = self.runs / run, {record["data"]["fingerprint"] for record in records}
        with contextlib.suppress(RecordError, OSError):
            found.add(read_record(folder / FINISHED)["data"]["fingerprint"])
        with contextlib.suppress(UserError, OSError):  # damaged: left as it is, whosever it was
            if (folder / "checkpoint").is_file():
                found.add(load_checkpoint(folder / "checkpoint").get("data"))
        return fingerprint in found

    def settle(self, item: Item, data: Data) -> Cell | None:
        """Return the cell of an item under its run's name, a control's with the counts of its donor's record.

        None where that is not there. For knowing whether a control is finished and what it costs; to run it,
        `resolve_donors` checks more.
        """
        wanted = ask_donor(item.cell)
        if wanted is None:
            return self.place(item.cell, data)
        record = self.find_donor(item, data)
        return None if record is None else self.place(attach(item.cell, wanted, record, wanted.run), data)

    def find_obstacle(self, item: Item, data: Data) -> str:
        """Return why no control can be made from an item's donor, although that has run; empty if nothing prevents it.

        Whether the control has been made already is not asked: a finished one needs no file of its donor.
        """
        wanted = ask_donor(item.cell)
        record = self.find_donor(item, data)
        if wanted is None or record is None:
            return ""
        if record["status"] != "ok":
            return f"its run {record['status']}"
        if wanted.masks and not has_masks(record, self.runs):
            return f"the masks of its run are not in {self.runs}: make that run again, `make bench` with FRESH=1"
        return ""

    def state(self, item: Item, data: Data) -> str:
        """Return the state of an item's cell, one of STATES."""
        cell = self.settle(item, data)
        if cell is None:
            return TO_DO
        if self.is_made(cell, data):
            return DONE
        if self.find_obstacle(item, data):
            return NO_CONTROL
        folder = self.runs / cell.identity
        return INTERRUPTED if any((folder / name).exists() for name in ("checkpoint", FINISHED)) else TO_DO


def is_same_data(record: Record, data: Data) -> bool:
    """Return whether a record's run had this data."""
    theirs = record["data"]
    if data.fingerprint:
        return bool(theirs["fingerprint"] == data.fingerprint)
    sizes = {"train": len(data.train), "test": len(data.test), "validation": len(data.validation or ())}
    return bool(theirs["name"] == data.name and all(theirs[part] == size for part, size in sizes.items()))


LOCK = "grid.lock"  # in a run's folder: held from the last look at the records until the run's record exists


class BusyError(Exception):
    """Another process is training the cell, or the run that a control waits for."""


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the folder of a run against other grids. Raises BusyError if one holds it.

    Invariant: the lock is the system's, so a process releases it however it ends.
    """
    refuse_links(folder, folder.parent)
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


def refuse_held(folder: Path) -> None:
    """Raise BusyError if another process holds the folder of a run now."""
    if (folder / LOCK).exists():
        with holding(folder):
            pass
