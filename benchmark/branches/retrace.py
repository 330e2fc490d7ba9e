"""Making missing snapshots of a run: its first epochs are trained again, to the same bits, and held to its record."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from benchmark.branches.origins import Parent, find_parent
from benchmark.branches.snapshots import FOLDER, keep_snapshot, parse_epochs, read_snapshot, snapshot_path
from benchmark.build import build, place
from benchmark.cells import Cell
from benchmark.checkpoint import load_checkpoint, sweep
from benchmark.console import Reporter
from benchmark.data.sets import Data, load_data
from benchmark.environment import set_determinism
from benchmark.errors import RunningError, UserError
from benchmark.names import refuse_links
from benchmark.outcome import describe_start
from benchmark.places import check_places
from benchmark.planning.donors import resolve_donors
from benchmark.resume import Saver, restore
from benchmark.run import Options, about, prepare, set_up_masks
from benchmark.speed import probe_precision, use_processor
from benchmark.train import Training, train
from leaderboard.page import amount


def take_snapshots(
    name: str, epochs: str, data_root: Path, stores: list[Path], options: Options, console: Console
) -> list[Path]:
    """Make the snapshots of run `name` at `epochs` that are missing; return the files of all.

    Raises UserError for a run or an epoch that is not there, and for a run that cannot be trained again to the same
    numbers, see `retrace`.
    """
    parent = find_parent(name, stores, options.places.runs)
    wanted = parse_epochs(epochs, parent.cell.page.epochs, "--epochs")
    if not wanted:
        raise UserError("--epochs is empty: name the epochs after which to keep a snapshot, such as --epochs 5,10")
    check_places(options.places)
    missing = [epoch for epoch in wanted if not is_there(parent.folder, epoch)]
    if missing:
        retrace(parent, missing, load_data(parent.cell.page, data_root, options.device), options, console)
    return [snapshot_path(parent.folder, epoch) for epoch in wanted]


def is_there(folder: Path, epoch: int) -> bool:
    """Return whether a run has a snapshot of an epoch; raises UserError for one that cannot be used."""
    return snapshot_path(folder, epoch).exists() and bool(read_snapshot(folder, epoch))


def retrace(parent: Parent, epochs: list[int], data: Data, options: Options, console: Console) -> None:
    """Train a run's first epochs again and keep snapshots after `epochs`.

    Killed and called again, it goes on. Raises UserError where another process has the run, and at the first epoch that
    comes out otherwise than the run's history says, or whose end has other masks than its record: then machine,
    versions or code are not those of the run. Invariant: no snapshot of another course than the run's is kept.
    """
    if parent.fingerprint != data.fingerprint:
        raise UserError(f"run {parent.name} was made on other data than there is now: its epochs cannot be made again")
    (cell,) = resolve_donors([parent.cell], {parent.cell.page_name: data}, options.places, options.device)
    cell = cell.with_name(parent.name, data.fingerprint)  # its donor, which is part of it, is known only now
    refuse_links(parent.folder, options.places.runs)
    (parent.folder / FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parent.folder / "lock", timeout=0):
            sweep(parent.folder / FOLDER)
            go_through(parent, cell, epochs, data, options, console)
    except Timeout:
        raise RunningError(f"run {parent.name} is already running in another process; wait for it") from None


def go_through(parent: Parent, cell: Cell, epochs: list[int], data: Data, options: Options, console: Console) -> None:
    """Train the cell up to the last of `epochs`, keeping snapshots; the caller holds the run's lock."""
    set_determinism(cell.page)
    built = place(build(cell, data), cell.page, options.device)
    use_processor(3 * built.costs.dense * cell.page.batch_size, options.device)
    checkpoint = parent.folder / FOLDER / "checkpoint"
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    run = prepare(cell, built, data, options.device)
    if state is not None and state["counters"][1] >= min(epochs):
        state = None  # it stands behind an epoch that is wanted
    if cell.page.precision == "fastest":
        run.precision = parent.record["environment"]["precision"] if parent.record else probe_precision(run)
    if state is None:
        set_up_masks(cell, run)
    else:
        restore(run, state, checkpoint)
    run.schedule, run.page = cell.page, dataclasses.replace(cell.page, epochs=max(epochs))
    facts = {**describe_start(cell, built, datetime.now(timezone.utc), {}), "about": about(cell)}
    saver = Saver(checkpoint, options.checkpoint_s, facts)

    def after_epoch(run: Training) -> None:
        compare(run, parent)
        keep_snapshot(run, epochs, parent.folder, facts)
        saver(run)

    title = f"{parent.name}: its first {amount(max(epochs), 'epoch')} again"
    with Reporter(console, title, run.page.epochs, run.timeline.steps_per_epoch, run.step) as reporter:
        train(run, reporter, after_epoch, saver)
    checkpoint.unlink(missing_ok=True)


def compare(run: Training, parent: Parent) -> None:
    """Raise UserError unless the epoch that has just ended came out as the parent's history says."""
    again = run.history[-1]
    known: dict[str, Any] = next((row for row in parent.history if row["epoch"] == run.epoch), {})
    differing = [key for key, value in known.items() if value is not None and again.get(key) != value]
    if parent.record is not None and run.epoch == parent.cell.page.epochs:
        differing += ["masks"] if run.maskset.sha256() != parent.record["masks_sha256"] else []
    if differing:
        key = differing[0]
        seen = f" ({again.get(key)} now, {known[key]} then)" if key in known else ""
        raise UserError(
            f"run {parent.name} cannot be made again here: epoch {run.epoch} ends with another {key}{seen}; machine, "
            "threads, versions or code differ from those of the run, so make it anew with --snapshots"
        )
