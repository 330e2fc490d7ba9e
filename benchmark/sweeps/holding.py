"""Holding a run's folder against every other sweep, on this machine or on another that shares the folder of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from benchmark.names import refuse_links

LOCK = "grid.lock"  # in a run's folder: held from the last look at the records until the run's record is there


class BusyError(Exception):
    """Another process is training the cell, or the run that a control waits for."""


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the folder of a run against other grids. Raises BusyError where one has it.

    Invariant: the lock is the system's, so a process that dies lets go of it however it ends.
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
    """Raise BusyError where another process holds the folder of a run at this moment."""
    if (folder / LOCK).exists():
        with holding(folder):
            pass
