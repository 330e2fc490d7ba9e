"""Going on after a kill: what is saved while a run lasts, and what must be the same when it continues."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmark.checkpoint import DamagedError, load_checkpoint, save_checkpoint, write_atomically
from benchmark.errors import UserError
from benchmark.processes.ranks import count_ranks, own_rank
from benchmark.stopping import obey, stop_asked
from benchmark.train import Training
from leaderboard import Record, RecordError, UnreadableError, read_record
from leaderboard.records import file_text
from leaderboard.table import plain

FINISHED = "record.json"  # in the run's folder, from the end of training until it is published


def write_finished(path: Path, record: Record) -> None:
    """Keep the record of a run that has ended, sealed as in the store, until it is published."""
    write_atomically(path, file_text(record).encode())


def read_finished(path: Path, warn: Callable[[str], None]) -> Record | None:
    """Return the record of a run that ended but may not have been published, or None.

    A damaged one is set aside with a warning: the run goes on from its checkpoint to the same record.
    """
    if not path.exists():
        return None
    try:
        return read_record(path)
    except UnreadableError as error:
        raise UserError(f"finished run {path}: {error}; the same command tries again") from error
    except RecordError as error:
        set_aside(path, warn, f"finished run {path} is damaged ({error})")
        return None


def read_checkpoint(path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the state that a run goes on from, or None where it has to start.

    A damaged checkpoint is set aside with a warning, for nothing is lost but time. Raises UserError for one that is
    whole and cannot be used, see `load_checkpoint`.
    """
    if not path.exists():
        return None
    try:
        return load_checkpoint(path)
    except DamagedError as error:
        set_aside(path, warn, str(error).partition(";")[0])
        return None


def set_aside(path: Path, warn: Callable[[str], None], reason: str) -> None:
    """Rename a damaged file so that nothing is read from it, and tell of it."""
    damaged = path.with_name(f"{path.name}.damaged")
    os.replace(path, damaged)
    warn(f"{reason}: it was renamed to {damaged.name}, and the run goes on without it")


def set_aside_drifted(checkpoint: Path) -> None:
    """Rename a checkpoint that may hold what no undisturbed run had, so that the same command starts over."""
    if own_rank() == 0 and checkpoint.exists():
        os.replace(checkpoint, checkpoint.with_name("checkpoint.drifted"))


def surroundings(run: Training) -> dict[str, str]:
    """Return what must be the same for a run to go on where it stopped, apart from what its name says."""
    about = {"data": run.data.fingerprint, "precision": run.precision, "device": run.device.type}
    return {**about, "ranks": str(count_ranks())}


def check_same(state: dict[str, Any], run: Training, checkpoint: Path) -> None:
    """Raise UserError when a checkpoint was made on other data or another kind of device, in another precision.

    Likewise for another number of ranks: they add up gradients in another order, to other last bits.
    """
    for key, now in surroundings(run).items():
        if (then := state.get(key, "1" if key == "ranks" else None)) != now:  # no ranks: it was made by one process
            raise UserError(
                f"checkpoint {checkpoint} was made with {key} {then}, now it is {now}: go on as it was begun, or start "
                "over with FRESH=1 (sparse-bench run --fresh)"
            )


def restore(run: Training, state: dict[str, Any], checkpoint: Path) -> datetime:
    """Set a run to where its checkpoint was taken and return when it was begun.

    Raises UserError for a checkpoint that `check_same` refuses, and for one that is not of this network and method.
    """
    check_same(state, run, checkpoint)
    try:
        run.load_state(state)
        return datetime.fromisoformat(state["started"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = plain(f"{type(error).__name__}: {error}")
        raise UserError(
            f"checkpoint {checkpoint} does not fit this run ({reason}): start over with FRESH=1 (sparse-bench run "
            "--fresh), or delete the file"
        ) from error


class Saver:
    """Saves checkpoints of a run, after a step or an epoch, when the last is old enough.

    A run long enough to have checkpoints has one of its end too, so a disk that is full when the record is due costs
    nothing: the same command goes on from there.
    """

    def __init__(self, path: Path, every_s: float, facts: dict[str, Any]) -> None:
        self.path = path
        self.every_s = every_s
        self.facts = facts  # of the run, for whoever reads the checkpoint
        self.last = time.monotonic()
        self.cost_s = 0.0  # of the last checkpoint

    def __call__(self, run: Training) -> None:
        """Save where a checkpoint is due; raises KeyboardInterrupt, after it is saved, where a stop was asked for."""
        if own_rank():  # rank 0 saves for all: what is not the same on every rank is its own
            return
        if stop_asked():
            self.save(run)
            obey()
        ended = run.epoch == run.page.epochs and run.train_s >= self.every_s
        # A large network's checkpoint takes long: at most one part in twenty of the time goes there.
        if time.monotonic() - self.last >= max(self.every_s, 20 * self.cost_s) or ended:
            self.save(run)

    def save(self, run: Training) -> None:
        """Save now; raises UserError when the disk refuses."""
        began = time.monotonic()
        if run.epoch_step:
            run.settle_clock()
        try:
            save_checkpoint(self.path, {**run.state(), **surroundings(run), **self.facts})
        except OSError as error:
            raise UserError(f"cannot save the checkpoint {self.path}: {error.strerror or error}") from error
        self.last = run.clock = time.monotonic()
        self.cost_s = self.last - began
