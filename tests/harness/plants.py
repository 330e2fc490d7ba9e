"""Bugs planted on purpose, that scenarios of faults must find."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import benchmark.grids.sweep
import benchmark.runs.checkpoints
import benchmark.runs.run
from leaderboard.store.records import file_stem, file_text
from tests.harness.kills import FAULTS, replace


def write_record_in_place(record: dict[str, Any], folder: Path) -> Path:
    """Write a record under its own name, piece by piece."""
    text, middle = file_text(record), len(file_text(record)) // 2
    for number in itertools.count(1):
        path = folder / (
            f"{file_stem(record['run'])}.json" if number == 1 else f"{file_stem(record['run'])}.{number}.json"
        )
        if not path.exists():
            break
    with open(path, "w") as file:
        file.write(text[:middle])
        file.flush()
        file.write(text[middle:])
    return path


@contextlib.contextmanager
def hold_nothing(folder: Path) -> Iterator[None]:
    """Take no lock."""
    folder.mkdir(parents=True, exist_ok=True)
    yield


class NoLock:
    """Looks like a FileLock."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def take_no_lock() -> None:
    """Let grids and runs share folders without locks."""
    benchmark.grids.sweep.holding = hold_nothing  # type: ignore[assignment]
    benchmark.runs.run.FileLock = NoLock  # type: ignore[assignment,misc]


def load_anything(path: Path) -> dict[str, Any]:
    """Read a checkpoint without a look at its checksum, past bytes that torch itself does not check."""
    content = path.read_bytes()[len(benchmark.runs.checkpoints.MAGIC) + hashlib.sha256().digest_size :]
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


PLANTS: dict[str, Callable[[], None]] = {
    **{name: FAULTS[name] for name in ("momentum is lost", "masks are drawn anew", "costs are lost")},
    "records are written in place": replace(benchmark.runs.run, "write_record", write_record_in_place),
    "no lock is taken": take_no_lock,
    "checkpoints are read without their checksum": replace(
        benchmark.runs.checkpoints, "load_checkpoint", load_anything
    ),
}
