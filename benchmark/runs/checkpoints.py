"""Checkpoints: written atomically, verified when read; how a run is saved, continued and finished; snapshots."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmark.base.errors import UserError, kind_of
from benchmark.base.stopping import obey, stop_asked
from benchmark.base.system import name_surroundings
from benchmark.distributed.ranks import count_ranks, own_rank
from benchmark.training.state import Training
from leaderboard import Record, RecordError, UnreadableError, read_record
from leaderboard.store.files import write_atomically
from leaderboard.store.records import file_text
from leaderboard.tables.table import plain

MAGIC = b"sparse-bench checkpoint 3\n"
# Of earlier versions: 1 saved at the ends of epochs only, 2 did not keep which weights had been explored.
OLDER = (b"sparse-bench checkpoint 1\n", b"sparse-bench checkpoint 2\n")


class DamagedError(UserError):
    """A file whose content does not match its checksum: it was cut short or changed after it was written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) with its own SHA-256 in front."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, MAGIC + hashlib.sha256(payload).digest() + payload)


START_OVER = "start the run over with `make bench` and FRESH=1 (sparse-bench run --fresh), or delete the file"


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
            f"checkpoint {path} holds something other than tensors and plain values and was not loaded; {way_out}"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} was not written by sparse-bench: it must hold a dict; {way_out}")
    return state


FINISHED = "record.json"  # in the run's folder, from the end of training until it is published


def write_finished(path: Path, record: Record) -> None:
    """Keep the record of a run that has ended, sealed as in the store, until it is published."""
    write_atomically(path, file_text(record).encode())


def read_finished(path: Path, warn: Callable[[str], None]) -> Record | None:
    """Return the record of a run that ended but may not have been published, or None.

    A damaged one is set aside with a warning: the run continues from its checkpoint to the same record.
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
    """Return the state that a run continues from, or None where it has to start.

    A damaged checkpoint is set aside with a warning, because nothing is lost but time. Raises UserError for one that is
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
    """Rename a damaged file so that nothing is read from it, and warn."""
    damaged = path.with_name(f"{path.name}.damaged")
    os.replace(path, damaged)
    warn(f"{reason}: it was renamed to {damaged.name}, and the run continues without it")


def set_aside_drifted(checkpoint: Path) -> None:
    """Rename a checkpoint whose ranks had drifted apart, so that the same command starts over."""
    if own_rank() == 0 and checkpoint.exists():
        os.replace(checkpoint, checkpoint.with_name("checkpoint.drifted"))


def surroundings(run: Training) -> dict[str, str]:
    """Return what must be the same for a run to continue where it stopped, apart from what its name says."""
    about = {"data": run.data.fingerprint, "precision": run.precision, "device": run.device.type}
    return {**about, "ranks": str(count_ranks())}


def check_same(state: dict[str, Any], run: Training, checkpoint: Path) -> None:
    """Raise UserError when a checkpoint was made on other data or another kind of device, in another precision.

    Likewise for another number of ranks, which sum gradients in another order, to other last bits.
    """
    for key, now in surroundings(run).items():
        if (then := state.get(key, "1" if key == "ranks" else None)) != now:  # no ranks: it was made by one process
            raise UserError(
                f"checkpoint {checkpoint} was made with {key} {then}, now it is {now}: continue as it began, or "
                f"{START_OVER}"
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
        raise UserError(f"checkpoint {checkpoint} does not fit this run ({reason}): {START_OVER}") from error


class Saver:
    """Saves checkpoints of a run, after a step or an epoch, when the last is old enough.

    A run long enough to have checkpoints has one of its end too, so a disk that is full when the record is due costs
    nothing: the same command continues from there.
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
        ended = run.epoch == run.last_epoch() and run.train_s >= self.every_s
        # A large network's checkpoint takes long: at most one part in twenty of the time goes there.
        if time.monotonic() - self.last >= max(self.every_s, 20 * self.cost_s) or ended:
            self.save(run)

    def save(self, run: Training) -> None:
        """Save now; raises UserError when the disk refuses."""
        began = time.monotonic()
        if run.epoch_step:
            run.settle_clock()
        try:
            about = {**surroundings(run), "machine": name_surroundings(run.device), "earlier": list(run.earlier)}
            save_checkpoint(self.path, {**run.state(), **about, **self.facts})
        except OSError as error:
            raise kind_of(error)(f"cannot save the checkpoint {self.path}: {error.strerror or error}") from error
        self.last = run.clock = time.monotonic()
        self.cost_s = self.last - began


SNAPSHOTS = "snapshots"  # in the run's folder


def snapshot_path(folder: Path, epoch: int) -> Path:
    """Return the file of the snapshot after `epoch` epochs of the run in `folder`."""
    return folder / SNAPSHOTS / f"epoch-{epoch}"


def list_snapshots(folder: Path) -> list[int]:
    """Return the epochs of the snapshots of the run in `folder`, rising."""
    names = [path.name for path in (folder / SNAPSHOTS).glob("epoch-*")]
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
        raise kind_of(error)(f"cannot save the snapshot {path}: {error.strerror or error}") from error


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
