"""What the workers of a sweep tell each other and its driver: small files in one folder, each replaced as a whole.

Locks in the folders of runs decide who trains a cell. The book only holds its attempts, progress and end, for one
sweep: the next one starts counting again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError
from benchmark.base.files import read_note, write_note
from benchmark.runs.checkpoints import FINISHED
from leaderboard.store.records import file_stem

MADE, FOUND, IMPOSSIBLE, FAILED = "made", "finished already", "no control", "failed"
SWEEPS = "sweeps"  # in the folder of runs
KINDS = "attempt", "progress", "end"  # of a cell's notes
SPEC, STOP = "sweep.json", "stop"  # in the sweep's folder: the order for its workers, and the request to stop


class LostError(Exception):
    """A cell's process was lost in every allowed attempt; the message says so."""


@dataclass(frozen=True)
class End:
    """What became of a cell: one of MADE, FOUND, IMPOSSIBLE and FAILED, the last two with a reason.

    `seconds`: of the last attempt; `accuracy_pct`: of the last epoch, None if it was not measured.
    """

    state: str
    reason: str = ""
    seconds: float = 0.0
    accuracy_pct: float | None = None
    diverged: bool = False
    worker: int = 0


@dataclass(frozen=True)
class Book:
    """The files of one sweep. `retries`: how often a cell is tried again. `worker`: who writes, 0 for the driver.

    Invariant: a file is read as it was written, or not at all; and a cell is begun at most retries + 1 times in a row
    without getting further, whichever workers begin it and however they end.
    """

    folder: Path
    retries: int
    worker: int = 0
    known: dict[str, End] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)  # cells with an attempt here that could not be noted
    failures: Counter[str] = field(default_factory=Counter)  # seen here, by the note of the attempt before

    def log(self, worker: int) -> Path:
        """Return where a worker's console text goes."""
        return self.folder / f"worker-{worker}.log"

    def path(self, kind: str, name: str) -> Path:
        """Return the file of a cell's note of a kind, one of KINDS."""
        return self.folder / kind / f"{file_stem(name)}.json"

    def put(self, path: Path, content: dict[str, Any]) -> bool:
        """Write a note and return True; False if the disk refuses, which must not fail a run."""
        with contextlib.suppress(OSError):
            write_note(path, content)
            return True
        return False

    def drop(self, kind: str, name: str) -> None:
        """Delete a cell's note if possible."""
        with contextlib.suppress(OSError):
            self.path(kind, name).unlink(missing_ok=True)

    def ended(self, name: str) -> End | None:
        """Return what became of a cell, whichever worker saw it, or None while it is open."""
        if name not in self.known:
            content = read_note(self.path("end", name))
            if content is None:
                return None
            self.known[name] = End(**content)
        return self.known[name]

    def end(self, name: str, end: End) -> None:
        """Note what became of a cell."""
        self.known[name] = dataclasses.replace(end, worker=self.worker)
        self.put(self.path("end", name), dataclasses.asdict(self.known[name]))
        for kind in ("attempt", "progress"):
            self.drop(kind, name)

    @contextlib.contextmanager
    def counting(self, name: str, run: Path) -> Iterator[None]:
        """Count an attempt at a cell before it starts; the caller holds the lock of the run's folder `run`.

        An attempt that is stopped, or ends with a UserError, is not counted. Raises LostError after too many attempts
        without progress.
        """
        path = self.path("attempt", name)
        fruitless = count_fruitless(read_note(path))
        if fruitless > self.retries:
            raise LostError(self.describe_loss(read_note(path) or {}, fruitless))
        self.put(self.folder / f"worker-{self.worker}.began", {})
        attempt = {"count": fruitless + 1, "run": str(run), "mark": mark_of(run), "worker": self.worker}
        if not self.put(path, attempt):
            self.uncounted.add(name)
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError):
                self.forgive(name, fruitless)
            raise
        except BaseException:
            self.forgive(name, fruitless)
            raise
        finally:
            self.drop("progress", name)

    def forgive(self, name: str, fruitless: int) -> None:
        """Take back an attempt that says nothing about the cell."""
        path = self.path("attempt", name)
        self.put(path, {**(read_note(path) or {}), "count": fruitless})

    def was_begun(self, name: str) -> bool:
        """Return whether a worker has begun the cell and not ended it."""
        return self.path("attempt", name).exists()

    def may_retry(self, name: str) -> bool:
        """Return whether a cell whose attempt has just failed is tried again: not where attempts cannot be counted.

        One that fails before it is counted, or was taken back, leaves the note of the last: it is counted here.
        """
        last = read_note(self.path("attempt", name))
        self.failures[key := f"{name} {last}"] += 1
        known = name not in self.uncounted and last is not None and self.failures[key] <= self.retries
        return known and count_fruitless(last) <= self.retries

    def describe_loss(self, last: dict[str, Any], times: int) -> str:
        """Return the message for a cell that keeps losing its process."""
        often = f"{times} time{'' if times == 1 else 's'}"
        return (
            f"its process was lost {often} without getting any further, possibly out of "
            f"memory: see {self.log(last.get('worker', 0))}; the same command tries again, fewer JOBS leave it more"
        )

    def listed(self, kind: str) -> set[str]:
        """Return the names of the files with notes of a kind, for all cells at once."""
        try:
            return {entry.name for entry in os.scandir(self.folder / kind)}
        except OSError:
            return set()

    def progress(self, name: str) -> dict[str, Any] | None:
        """Return the progress of a cell that a worker is training, or None."""
        return read_note(self.path("progress", name))


@contextlib.contextmanager
def opening(runs: Path, retries: int, keep: bool) -> Iterator[Book]:
    """Make the folder of a new sweep under `runs` and yield its book; its logs stay afterwards if `keep`."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    folder = runs / SWEEPS / f"{stamp}-{secrets.token_hex(3)}"
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
    try:
        yield Book(folder, retries)
    finally:
        for kind in KINDS:
            shutil.rmtree(folder / kind, ignore_errors=True)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def count_fruitless(last: dict[str, Any] | None) -> int:
    """Return how many attempts in a row made no progress; the last does not count if it did."""
    if last is None:
        return 0
    count = int(last["count"])
    return count - 1 if count and mark_of(Path(last["run"])) != last["mark"] else count


def mark_of(run: Path) -> list[int]:
    """Return what changes when a run makes progress: the times of its checkpoint and of its finished record."""
    marks = []
    for name in ("checkpoint", FINISHED):
        try:
            marks.append((run / name).stat().st_mtime_ns)
        except OSError:
            marks.append(0)
    return marks
