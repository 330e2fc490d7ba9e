"""The one way to write a file that somebody may be reading: whole, in one instant."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Give `path` the content in one instant: a reader, or a crash at any time, sees the old content or the new.

    `durable`: the content is on the disk before it has the name, so that it outlives a power cut too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with hidden_file(content, path.parent, durable) as hidden:
        os.replace(hidden, path)


@contextlib.contextmanager
def hidden_file(content: bytes, folder: Path, durable: bool = True) -> Iterator[Path]:
    """Write a hidden file of a unique name to `folder`, to be given its own name by the caller; else it is deleted.

    Invariant: only a killed process leaves one, `.partial-*.tmp`, which no reader looks at and git ignores.
    """
    path = folder / f".partial-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        with open(path, "xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)
