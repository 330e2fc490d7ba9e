"""Atomic writes: a reader sees the old file or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write `content` to `path` atomically: a reader, or a crash at any time, sees the old content or the new.

    `durable`: flush the content to disk before it gets its name, so that it survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with hidden_file(content, path.parent, durable) as hidden:
        os.replace(hidden, path)


@contextlib.contextmanager
def hidden_file(content: bytes, folder: Path, durable: bool = True) -> Iterator[Path]:
    """Write a hidden file with a unique name to `folder`; it is deleted unless the caller renames it.

    Invariant: only a killed process leaves one, `.partial-*.tmp`, which readers and git ignore.
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
