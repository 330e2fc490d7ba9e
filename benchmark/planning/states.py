"""How far a cell is, as its record, its checkpoint and, of a control, the run it is made from say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark.cells import PROTOCOL, Cell
from benchmark.data.sets import Data
from benchmark.environment import choose_precision
from benchmark.errors import UserError
from benchmark.planning.donors import ask_donor, attach, has_masks
from benchmark.planning.gridfile import Item
from benchmark.resume import FINISHED
from leaderboard import Record, RecordError, UnreadableError, read_record
from leaderboard.arithmetic import arithmetic
from leaderboard.records import list_run
from leaderboard.table import gather

STATES = DONE, INTERRUPTED, TO_DO, NO_CONTROL = "finished", "interrupted", "to do", "no control"

Lookup = Callable[[str], list[Record]]  # from a run's name to its records


def read_now(folder: Path) -> Lookup:
    """Return a lookup that reads the store anew each time: other processes write to it. Damaged records are none.

    The lookup raises UserError where the store, or a record of the run, is out of reach: a run that has its record
    would be taken for one to do, and made twice.
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
        return [record for record in found if record["run"] == run]

    return look_up


def index_runs(records: Iterable[Record]) -> Lookup:
    """Return a lookup among records that were read already."""
    by_run: dict[str, list[Record]] = {}
    for record in records:
        by_run.setdefault(record["run"], []).append(record)
    return lambda run: by_run.get(run, [])


@dataclass(frozen=True)
class Ledger:
    """What there is of a grid's cells: records, and the folders of runs that were begun."""

    records: Lookup
    runs: Path
    device: torch.device

    def find(self, cell: Cell, data: Data) -> Record | None:
        """Return the record that finishes a cell: of its run, protocol, data and arithmetic; the first of repeats.

        Where `data` is a stand-in without a fingerprint, its name and the sizes of its parts are compared instead.
        """
        precision = choose_precision(cell.page, self.device)
        found = [
            record
            for record in self.records(cell.identity)
            if record["protocol"] == PROTOCOL and arithmetic(record) == precision and is_same_data(record, data)
        ]
        return gather(found).counted[0] if found else None

    def settle(self, item: Item, data: Data) -> Cell | None:
        """Return the cell of an item, a control's with the counts of its donor's record; None where that is not there.

        For knowing whether a control is finished and what it costs; to run it, `resolve_donors` checks more.
        """
        wanted = ask_donor(item.cell)
        if wanted is None:
            return item.cell
        record = self.find(item.donor, data) if item.donor is not None else None
        return None if record is None else attach(item.cell, wanted, record, wanted.run)

    def find_obstacle(self, item: Item, data: Data) -> str:
        """Return why no control can be made from an item's donor, although that has run; empty where nothing is known.

        Whether the control has been made already is not asked: a finished one needs no file of its donor.
        """
        wanted = ask_donor(item.cell)
        record = self.find(item.donor, data) if item.donor is not None else None
        if wanted is None or record is None:
            return ""
        if record["status"] != "ok":
            return f"its run {record['status']}"
        if wanted.masks and not has_masks(record, self.runs):
            return f"the masks of its run are not in {self.runs}: make that run again, `make bench` with FRESH=1"
        return ""

    def state(self, item: Item, data: Data) -> str:
        """Return how far an item's cell is, one of STATES."""
        cell = self.settle(item, data)
        if cell is None:
            return TO_DO
        if self.find(cell, data) is not None:
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
