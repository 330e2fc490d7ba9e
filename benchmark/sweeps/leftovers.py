"""What a process that was killed while it published a run has left undone."""

from __future__ import annotations

import contextlib

from filelock import FileLock, Timeout
from rich.console import Console

from benchmark.cells import Cell
from benchmark.resume import FINISHED, read_finished
from benchmark.run import Options, publish, warner


def complete(cell: Cell | None, options: Options, console: Console) -> None:
    """Finish the publishing of a cell that has its record: the page, and the run's folder.

    A run that another process has is its own business. Invariant: a record that is in the store is not written again.
    """
    if cell is None or not (options.places.runs / cell.identity / FINISHED).exists():
        return
    folder = options.places.runs / cell.identity
    with contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):
        finished = read_finished(folder / FINISHED, warner(console))
        if finished is not None:
            publish(finished, folder, options.places)
