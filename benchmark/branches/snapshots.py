"""Snapshots: checkpoints of a run that are kept at the ends of epochs, so that it can be branched there."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmark.checkpoint import load_checkpoint, save_checkpoint
from benchmark.errors import UserError
from benchmark.processes.ranks import own_rank
from benchmark.resume import surroundings
from benchmark.train import Training
from leaderboard.table import plain

FOLDER = "snapshots"  # in the run's folder


def snapshot_path(folder: Path, epoch: int) -> Path:
    """Return the file of the snapshot after `epoch` epochs of the run in `folder`."""
    return folder / FOLDER / f"epoch-{epoch}"


def list_snapshots(folder: Path) -> list[int]:
    """Return the epochs of the snapshots of the run in `folder`, rising."""
    names = [path.name for path in (folder / FOLDER).glob("epoch-*")]
    return sorted(int(name[6:]) for name in names if re.fullmatch(r"epoch-[0-9]+", name))


def keep_snapshot(run: Training, wanted: Collection[int], folder: Path, facts: dict[str, Any]) -> None:
    """Keep a snapshot where the epoch that has just ended is among those `wanted`.

    It has the form of a checkpoint, `facts` of the run included. Raises UserError when the disk refuses.
    Invariant: to keep it changes no bit of the run.
    """
    if run.epoch not in wanted or own_rank():  # rank 0 saves for all, as it does checkpoints
        return
    path = snapshot_path(folder, run.epoch)
    try:
        save_checkpoint(path, {**run.state(), **surroundings(run), **facts})
    except OSError as error:
        raise UserError(f"cannot save the snapshot {path}: {error.strerror or error}") from error


def read_snapshot(folder: Path, epoch: int) -> dict[str, Any]:
    """Return the snapshot after `epoch` epochs of the run in `folder`, as the run's `state` with its facts.

    Raises UserError where it is missing, damaged, or another run's.
    """
    path, name = snapshot_path(folder, epoch), folder.name
    again = f"make it again: sparse-bench snapshot {name} --epochs {epoch}"
    if not path.is_file():
        there = ", ".join(map(str, list_snapshots(folder))) or "none"
        raise UserError(f"run {name} has no snapshot of epoch {epoch} (there: {there}); {again}")
    state = load_checkpoint(path, f"delete the file and {again}")
    try:
        whose, page, taken = state["cell"]["run"], state["cell"]["page"]["name"], state["counters"][1]
    except (LookupError, TypeError) as error:
        raise UserError(f"{path} is no snapshot: delete the file and {again}") from error
    if whose != name:
        of = plain(f"run {whose} on page {page}")
        raise UserError(f"snapshot {path} must be one of run {name}, it is of {of}: delete the file and {again}")
    if taken != epoch:
        raise UserError(f"snapshot {path} was taken after epoch {plain(taken)}: delete the file and {again}")
    return state


def parse_epochs(text: str, last: int, what: str) -> tuple[int, ...]:
    """Return the epochs in a comma-separated list, rising; raises UserError unless each is from 1 to `last`.

    `what` names the list in messages.
    """
    epochs = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        if not (word.isascii() and word.isdigit() and 1 <= int(word) <= last):
            raise UserError(f"{what} must be whole numbers of epochs from 1 to {last}, the run's end, got '{word}'")
        epochs.add(int(word))
    if text.strip() and not epochs:
        raise UserError(f"{what} must name an epoch, such as 5,10, got '{text}'")
    return tuple(sorted(epochs))
