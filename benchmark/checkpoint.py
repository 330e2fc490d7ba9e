"""Checkpoints: written atomically, verified when read."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmark.errors import UserError

MAGIC = b"sparse-bench checkpoint 3\n"
# Of earlier versions: 1 saved at the ends of epochs only, 2 did not keep which weights had been explored.
OLDER = (b"sparse-bench checkpoint 1\n", b"sparse-bench checkpoint 2\n")


class DamagedError(UserError):
    """A file whose content does not match its checksum: it was cut short or changed after it was written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Delete what killed writers left in `folder`; the caller holds the folder's lock, so no other is writing."""
    for path in folder.glob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) with its own SHA-256 in front."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, MAGIC + hashlib.sha256(payload).digest() + payload)


START_OVER = "start the run over with FRESH=1 (sparse-bench run --fresh), or delete the file"


def load_checkpoint(path: Path, way_out: str = START_OVER) -> dict[str, Any]:
    """Read a checkpoint back onto the CPU.

    Raises DamagedError, naming the file and the `way_out`, where it is not as it was written, and UserError where it
    cannot be read or is of an earlier version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}; {way_out}") from error
    if content.startswith(OLDER):
        raise UserError(
            f"checkpoint {path} was written by an earlier version of sparse-bench and cannot be used; {way_out}"
        )
    digest, payload = content[len(MAGIC) : len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    if not content.startswith(MAGIC) or hashlib.sha256(payload).digest() != digest:
        raise DamagedError(f"checkpoint {path} is damaged: its content does not match its checksum; {way_out}")
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # of a pickle that asks for code, or of no pickle: torch raises many kinds
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain values, or none, and was not loaded; {way_out}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} is none of sparse-bench's: it must hold a dict; {way_out}")
    return state
