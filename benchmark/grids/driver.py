"""Driving a sweep's workers: start them, replace lost ones, show progress, stop them at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmark.base.stopping import pause
from benchmark.config.grids import Grid
from benchmark.grids.board import Board, Tally
from benchmark.workers import Order, Pool, Status, Workers, open_workers
from benchmark.workers.base import GRACE_S, LOST, QUEUED, RUNNING
from benchmark.workers.book import FOUND, STOP, Book

LOOK_S = 1.0  # between two looks at workers and cells
LAST_LINES = 3  # shown of a lost worker's log


def drive(grid: Grid, book: Book, order: Order, pool: Pool, device: str, console: Console) -> Tally:
    """Have workers run the open cells of a grid; return what became of the cells.

    Raises UserError where they cannot be started, KeyboardInterrupt when stopped. Invariant: when it returns or
    raises, none of its workers is left; if it is killed, its workers end by themselves.
    """
    tally = Tally(grid)
    tally.ends.update(book.known)
    if not tally.left:
        return tally
    workers = open_workers(pool, device)
    jobs = min(len(tally.left), workers.capacity() if pool.jobs == "auto" else int(pool.jobs))
    with Board(console, tally, jobs) as board:
        board.say(f"{jobs} worker{'' if jobs == 1 else 's'} ({pool.where}); their logs: {book.folder}/worker-*.log")
        Driver(book, order, workers, tally, board, jobs).run()
    return tally


@dataclass
class Driver:
    """Watches the workers of one sweep."""

    book: Book
    order: Order
    workers: Workers
    tally: Tally
    board: Board
    jobs: int
    lost: set[int] = field(default_factory=set)  # workers that were lost
    fruitless: int = 0  # lost workers in a row that had begun no cell

    def __post_init__(self) -> None:
        self.names = {self.book.path("end", name).name: name for name in self.tally.items}  # by the names of notes

    def run(self) -> None:
        """Start the workers and watch until every cell has ended or no worker is left."""
        self.started = self.jobs
        try:
            self.workers.start(self.order, range(1, self.jobs + 1))
            while self.watch(self.workers.poll()):
                pause(LOOK_S)
        finally:
            with contextlib.suppress(OSError):  # a full disk does not keep workers from being stopped
                (self.book.folder / STOP).touch()
            if self.tally.left:
                self.board.say("stopping: each worker saves a checkpoint first")
            self.workers.stop(GRACE_S)
            self.look()

    def watch(self, states: dict[int, Status]) -> bool:
        """Update the state of workers and cells, replace lost workers; return whether to continue."""
        lost = {number: status for number, status in states.items() if status.state == LOST}
        due = [number for number, status in lost.items() if number not in self.lost and self.mourn(number, status)]
        self.lost |= lost.keys()
        if due:  # together, for those of one job may share a job again
            self.started += len(due)
            self.workers.start(self.order, range(self.started - len(due) + 1, self.started + 1))
        self.look()
        running = sum(status.state == RUNNING for status in states.values())
        queued = sum(status.state == QUEUED for status in states.values())
        self.board.show(dict(self.progress()), running, queued)
        alive = running + queued + (self.started - len(states))
        return bool(self.tally.left) and alive > 0

    def mourn(self, number: int, status: Status) -> bool:
        """Report a lost worker; return whether another takes its place: not if several in a row never began a cell."""
        began = (self.book.folder / f"worker-{number}.began").exists()
        self.fruitless = 0 if began else self.fruitless + 1
        why = "" if began else f": {last_lines(self.book.log(number))}"
        self.board.say(f"worker {number} was lost ({status.detail}){why}")
        return bool(self.tally.left) and self.fruitless <= self.book.retries

    def look(self) -> None:
        """Read what became of cells since the last look."""
        for name in self.noted("end"):
            end = self.book.ended(name)
            if end is not None:
                self.tally.ends[name] = end
                if end.state != FOUND:
                    self.board.tell_end(name, end, self.tally.time_left(self.jobs, dict(self.progress())))

    def progress(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the cells in training and their progress."""
        for name in self.noted("progress"):
            facts = self.book.progress(name)
            if facts is not None:
                yield name, facts

    def noted(self, kind: str) -> list[str]:
        """Return the open cells that have a note of a kind, in the order of the grid."""
        there = self.book.listed(kind)
        return [name for file, name in self.names.items() if file in there and name not in self.tally.ends]


def last_lines(log: Path) -> str:
    """Return the last lines of a worker's log, joined into one."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return " | ".join(line.strip() for line in lines[-LAST_LINES:] if line.strip()) or "its log is empty"
