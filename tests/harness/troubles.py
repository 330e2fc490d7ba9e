"""Troubles inside one process: kills, full and read-only disks, folders out of reach, clocks that are wrong.

They strike at counted operations, so that a scenario repeats: a change (a file opened for writing, a piece written, an
fsync, a rename, a link, a deletion, a new folder) or, for folders out of reach, any touch (reading and listing too) of
a place of the grid's folder: `records`, `runs`, `page` or `any` of them. `Troublemaker.install` is for a forked child:
what it hangs into the interpreter cannot be taken out again.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import TracebackType
from typing import Any

import benchmark.runs.record
import benchmark.runs.run

PLACES = ("records", "runs", "page", "any")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "pause": signal.SIGSTOP}
# What the operating system says of a folder out of reach: gone, forbidden, a failing disk, a network file system.
FAILURES = {"gone": errno.ENOENT, "forbidden": errno.EACCES, "failing": errno.EIO, "stale": errno.ESTALE}
KINDS = (*SIGNALS, "full", "read-only", *FAILURES, "clock")
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir"}
LISTINGS = {"os.listdir", "os.scandir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Trouble:
    """One thing that goes wrong in a process."""

    kind: str  # one of KINDS
    place: str = "any"
    at: int = 1  # the operation of its place that it begins at; of a clock, the first reading that is wrong
    length: int = 0  # operations that it lasts, 0 = as long as the process; a signal has one
    share: float = 0.5  # of the piece being written that reaches the disk before the kill, or before the disk is full
    seconds: float = 0.0  # that a clock is wrong by

    def strikes(self, count: int) -> bool:
        """Return whether it strikes at the `count`-th operation of its place."""
        if self.kind in SIGNALS:
            return count == self.at
        return count >= self.at and (not self.length or count < self.at + self.length)


class Troublemaker:
    """Counts the operations of this process on a grid's folder and lets troubles strike at the chosen ones."""

    def __init__(self, folder: Path, troubles: tuple[Trouble, ...], hits: Path) -> None:
        self.folder = f"{folder.resolve()}{os.sep}"
        self.troubles = troubles
        self.struck: set[Trouble] = set()
        self.changes: Counter[str] = Counter()
        self.touches: Counter[str] = Counter()
        self.hits = os.open(hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def install(self) -> None:
        """Watch this process from now on."""
        real_open, real_fsync = io.open, os.fsync

        def open_watched(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            opened = real_open(file, mode, *rest, **options)
            place = self.find_place(file)
            return Watched(opened, self, place) if place and set(mode) & set("wxa+") else opened

        def fsync_watched(handle: int) -> None:
            self.change(self.find_place(handle))
            real_fsync(handle)

        io.open = builtins.open = open_watched  # type: ignore[assignment]
        os.fsync = fsync_watched  # type: ignore[assignment]
        sys.addaudithook(self.audit)
        for trouble in self.troubles:
            if trouble.kind == "clock":
                clock = make_clock(trouble, lambda trouble=trouble: self.note(trouble))
                benchmark.runs.run.datetime = benchmark.runs.record.datetime = clock  # type: ignore[attr-defined]

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Meet an operation before it happens; what is raised here is raised by it."""
        if event == "open":
            path, _, flags = arguments
            self.meet(self.find_place(path), bool(flags & WRITING), path)
        elif event in CHANGES:
            place = self.find_place(arguments[1] if event == "os.link" else arguments[0])
            self.meet(place, True, arguments[0])
        elif event in LISTINGS:
            self.meet(self.find_place(arguments[0] or "."), False, arguments[0])

    def meet(self, place: str, changes: bool, path: Any) -> None:
        """Count a touch and, where it is one, a change."""
        if place:
            self.touch(place, path)
            if changes:
                self.change(place, path)

    def find_place(self, path: Any) -> str:
        """Return the place of a path or an open file of the grid's folder, "" elsewhere."""
        try:
            name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)  # noqa: PTH115
            full = os.path.abspath(name)  # noqa: PTH100 (resolving links would touch the disk)
        except (OSError, TypeError, ValueError):
            return ""
        if not f"{full}{os.sep}".startswith(self.folder):
            return ""
        top = full[len(self.folder) :].partition(os.sep)[0]
        return top if top in PLACES else "page"

    def touch(self, place: str, path: Any) -> None:
        """Let the folder be out of reach where a trouble says so."""
        for trouble in self.due(place, self.touches, tuple(FAILURES)):
            self.note(trouble)
            number = FAILURES[trouble.kind]
            raise OSError(number, os.strerror(number), os.fsdecode(path))

    def change(self, place: str, path: Any = None, file: Watched | None = None, content: Any = None) -> None:
        """Let a signal or a disk that refuses strike before, or half-way through, an operation that changes a file."""
        if not place:
            return
        for trouble in self.due(place, self.changes, (*SIGNALS, "full", "read-only")):
            if trouble.kind == "full" and file is None:
                continue  # names still fit
            self.note(trouble)
            if file is not None and trouble.kind in ("kill", "term", "full"):
                file.file.write(content[: int(trouble.share * len(content))])
                file.file.flush()
            if trouble.kind in SIGNALS:
                os.kill(os.getpid(), SIGNALS[trouble.kind])
            else:
                number = errno.ENOSPC if trouble.kind == "full" else errno.EROFS
                raise OSError(number, os.strerror(number), *([] if path is None else [os.fsdecode(path)]))

    def due(self, place: str, counts: Counter[str], kinds: tuple[str, ...]) -> list[Trouble]:
        """Count an operation of a place and return the troubles of these kinds that strike at it."""
        counts[place] += 1
        counts["any"] += 1
        found = [trouble for trouble in self.troubles if trouble.kind in kinds and trouble.place in (place, "any")]
        return [trouble for trouble in found if trouble.strikes(counts[trouble.place])]

    def note(self, trouble: Trouble) -> None:
        """Write down, once, that a trouble struck."""
        if trouble not in self.struck:
            self.struck.add(trouble)
            os.write(self.hits, f"{trouble.kind}\n".encode())


class Watched:
    """A file open for writing whose writes are operations."""

    def __init__(self, file: Any, maker: Troublemaker, place: str) -> None:
        self.file, self.maker, self.place = file, maker, place

    def write(self, content: Any) -> int:
        """Write, unless a trouble strikes."""
        self.maker.change(self.place, None, self, content)
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.file.close()


def make_clock(trouble: Trouble, note: Any) -> type[datetime]:
    """Return `datetime` with a clock that is wrong from a reading on."""
    readings = 0

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            nonlocal readings
            readings += 1
            if readings < trouble.at:
                return datetime.now(tz)
            note()
            return datetime.now(tz) + timedelta(seconds=trouble.seconds)

    return Clock
