"""A whole store in little memory and time: ten thousand records for the pages, checked as strictly as one.

Two processes read and check the files. What many records have in common (settings, environment, layers, the epochs of
a history) is kept once and shared, and histories become columns of numbers.
"""

from __future__ import annotations

import marshal
import math
import sys
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from leaderboard.records import Problem, list_files, read_file, sort_out
from leaderboard.schema import Record

COLUMNS = ("epoch", "lr", "density", "train_share", "explored", "test_acc_pct", "validation_acc_pct")
PROCESSES = 2
WORTH_A_POOL = 500  # files; below it, starting processes costs more than it saves
CHUNK = 200  # files that a process reads at a time, so that only few full records exist at once

Found = tuple[str, Record] | Problem


def load_store(folder: Path, branches: bool = False) -> tuple[list[Record], list[Problem]]:
    """Read every record of `folder` as `leaderboard.records.read_records` does, but compact.

    In place of `history` a record has `curves`, as the function of that name gives them. Records share their equal
    parts, so they are for reading only. `branches` as there. Invariant: the records, the problems and their order are
    those of `read_records`, whatever the number of files and of processes.
    """
    sharing = Sharing()
    found: list[Found] = []
    for chunk in read_chunks(list_files(folder)):
        found += sharing.entries(chunk)
    return sort_out(found, branches)


def read_chunks(paths: list[Path]) -> Iterator[list[Found]]:
    """Yield what is in the files at `paths`, in their order, a chunk at a time; two processes read many files."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    done = 0
    # Forked processes start in milliseconds and import nothing. Forking is safe on Linux, where no other thread holds
    # a lock at that instant; elsewhere everything is read here.
    if len(paths) >= WORTH_A_POOL and sys.platform == "linux" and threading.active_count() == 1:
        try:
            with ProcessPoolExecutor(PROCESSES, mp_context=get_context("fork")) as pool:
                for chunk in pool.map(read_chunk, chunks):
                    yield chunk
                    done += 1
        except Exception:  # no processes to be had, or one was killed: what is left is read here
            pass
    yield from map(read_chunk, chunks[done:])


def read_chunk(paths: list[Path]) -> list[Found]:
    """Return what is in the files at `paths`, compact; equal parts are one, so they pass between processes once."""
    sharing = Sharing()
    found: list[Found] = []
    for path in paths:
        entry = read_file(path)
        found.append(entry if isinstance(entry, Problem) else (entry[0], compact(entry[1])))
    return sharing.entries(found)


def curves(record: Record) -> dict[str, array[float]]:
    """Return the history of a record, full or compact, as columns: one value for each epoch, NaN where unknown.

    The columns are those of COLUMNS, of equal length; shares and per cent as in the record's history.
    """
    if "history" not in record:
        ready: dict[str, array[float]] = record["curves"]
        return ready
    return {name: column(record["history"], name) for name in COLUMNS}


def column(history: list[dict[str, Any]], name: str) -> array[float]:
    """Return one value of every epoch of a history, NaN where it is null or absent."""
    values = [row.get(name) for row in history]
    return array("d", [math.nan if value is None else value for value in values])


def compact(record: Record) -> Record:
    """Return the record with `curves` in place of `history`."""
    short = {key: value for key, value in record.items() if key != "history"}
    return {**short, "curves": curves(record)}


class Sharing:
    """Keeps one of all equal parts of records. What it returns equals what it is given, but may be an older one."""

    def __init__(self) -> None:
        self.by_content: dict[bytes, Any] = {}
        self.by_identity: dict[int, tuple[Any, Any]] = {}  # the part given, so that it lives, and the one kept

    def entries(self, found: list[Found]) -> list[Found]:
        """Return what was found in files, the records made of shared parts."""
        shared: list[Found] = [
            entry if isinstance(entry, Problem) else (entry[0], self.record(entry[1])) for entry in found
        ]
        self.by_identity.clear()
        return shared

    def record(self, record: Record) -> Record:
        """Return a compact record made of shared parts."""
        columns = {name: self.part(column) for name, column in record["curves"].items()}
        try:
            parts = {sys.intern(key): self.part(value) for key, value in record.items() if key != "curves"}
        except RecursionError:  # settings nested hundreds deep are valid; such a record shares nothing
            parts = record
        return {**parts, "curves": columns}

    def part(self, value: Any) -> Any:
        """Return what `keep` returns; without a look at its content where this very value was given before."""
        known = self.by_identity.get(id(value))
        if known is None:
            known = self.by_identity[id(value)] = (value, self.keep(value))
        return known[1]

    def keep(self, value: Any) -> Any:
        """Return the one value kept of all that have the content of `value`: at first this, of kept parts itself."""
        kind = type(value)
        if kind is str:
            return sys.intern(value)
        if kind is array:
            return self.by_content.setdefault(sha256(value).digest(), value)
        if kind is not dict and kind is not list:
            return value
        key = marshal.dumps(value, 2)  # in this version equal bytes are equal values of equal types
        kept = self.by_content.get(key)
        if kept is None:
            if kind is dict:
                kept = {sys.intern(name): self.keep(inner) for name, inner in value.items()}
            else:
                kept = [self.keep(inner) for inner in value]
            self.by_content[key] = kept
        return kept
