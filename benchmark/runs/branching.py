"""Running a branch, and making the snapshots that a run lacks."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from benchmark.base.console import Reporter, print_result
from benchmark.base.errors import RunningError, UserError
from benchmark.base.files import Places, check_places, refuse_links, show, sweep
from benchmark.base.system import choose_device, use_device
from benchmark.config.cells import Cell
from benchmark.data.sets import Data, load_data
from benchmark.networks.build import build, place
from benchmark.runs.branch import Branch, FromSnapshot, make_branch
from benchmark.runs.checkpoints import (
    SNAPSHOTS,
    DamagedError,
    Saver,
    keep_snapshot,
    parse_epochs,
    read_checkpoint,
    read_snapshot,
    restore,
    snapshot_path,
)
from benchmark.runs.donors import resolve_donors
from benchmark.runs.parents import Parent, find_parent
from benchmark.runs.record import describe_start
from benchmark.runs.run import Options, about, make_timeline, prepare, refuse_rounds, run_cell, set_up_masks, warner
from benchmark.training.precision import set_determinism
from benchmark.training.rehearsal import rehearse
from benchmark.training.speed import probe_precision, use_processor
from benchmark.training.state import Training
from benchmark.training.train import train
from leaderboard import Record
from leaderboard.tables.sections import amount

BRANCHES = "branches"  # beside the folder of records


class Stores:
    """Where records are: those of ordinary runs, and those of branches, by default beside them."""

    def __init__(self, records: Path | None = None, branches: Path | None = None) -> None:
        self.records = records or Places.records
        self.branches = branches or self.records.parent / BRANCHES

    @property
    def both(self) -> list[Path]:
        """The folders, in the order in which a run is looked up."""
        return [self.records, self.branches]


def make_options(
    device: str,
    stores: Stores,
    runs: Path | None,
    page: Path | None,
    checkpoint_s: float,
    command: str,
    fresh: bool = False,
) -> Options:
    """Return the options of branches, whose records go to their own store."""
    return Options(
        device=choose_device(device),
        fresh=fresh,
        checkpoint_s=checkpoint_s,
        command=command,
        places=Places(stores.branches, page or Places.leaderboard, runs or Places.runs),
    )


def run_branch(
    name: str,
    stores: Stores,
    options: Options,
    data_root: Path,
    console: Console,
    file: Path | None = None,
    **asked: Any,
) -> tuple[Record, Path]:
    """Branch the run `name` as `asked`, see `make_branch`; print its table, return the record and its file.

    file: of the run's method, see `find_parent`. Raises UserError before the first batch where possible.
    """
    parent = find_parent(name, stores.both, options.places.runs, file)
    cell = make_branch(parent, **asked)
    read_snapshot(parent.folder, cell.epoch)
    check_places(options.places)
    data = load_data(cell.page, data_root, options.device)
    check_method(cell, data)
    record, path = run_cell(cell, data, options, console, FromSnapshot(branch=cell))
    print_result(console, record, show(path), "branches are in no table")
    console.print(describe(record), highlight=False, markup=False, soft_wrap=True)
    return record, path


def check_method(cell: Branch, data: Data) -> None:
    """Rehearse a method that updates masks during training; one that prunes once is checked at the start anyway."""
    timeline = make_timeline(cell, data)
    if len(cell.method.update_steps(timeline)):
        rehearse(cell.method, cell.plugin.name, timeline)


def describe(record: Record) -> str:
    """Describe a branch's accuracy in one line: before and after pruning, and at the end."""
    branch = record["branch"]
    epochs = branch["last_epoch"] - branch["epoch"]
    last = record["accuracy_pct"]["last_epoch"]
    ended = "diverged" if last is None else f"{last:.2f} %"
    return (
        f"epoch {branch['epoch']} of {branch['parent']}: {branch['before']['test_acc_pct']:.2f} % before, "
        f"{branch['after']['test_acc_pct']:.2f} % after, {ended} at the end, {amount(epochs, 'epoch')} later"
    )


def take_snapshots(
    name: str,
    epochs: str,
    data_root: Path,
    stores: list[Path],
    options: Options,
    console: Console,
    file: Path | None = None,
) -> list[Path]:
    """Make the missing snapshots of run `name` at `epochs`; return the files of all.

    file: of the run's method, see `find_parent`. Raises UserError for an unknown run or epoch, and for a run that
    cannot be reproduced, see `retrace`.
    """
    parent = find_parent(name, stores, options.places.runs, file)
    refuse_rounds(parent.cell, f"run {parent.name}")
    wanted = parse_epochs(epochs, parent.cell.page.epochs, "--epochs")
    if not wanted:
        raise UserError("--epochs is empty: list the epochs after which to keep a snapshot, such as --epochs 5,10")
    check_places(options.places)
    missing = [epoch for epoch in wanted if not is_there(parent.folder, epoch)]
    if missing:
        retrace(parent, missing, load_data(parent.cell.page, data_root, options.device), options, console)
    return [snapshot_path(parent.folder, epoch) for epoch in wanted]


def is_there(folder: Path, epoch: int) -> bool:
    """Return whether a run has a whole snapshot of an epoch; raises UserError for one that is another's.

    A damaged one costs the time to make it again, as a damaged checkpoint does.
    """
    try:
        return snapshot_path(folder, epoch).exists() and bool(read_snapshot(folder, epoch))
    except DamagedError:
        return False


def retrace(parent: Parent, epochs: list[int], data: Data, options: Options, console: Console) -> None:
    """Train a run's first epochs again and keep snapshots after `epochs`; if killed, the next call continues.

    Raises UserError where another process has the run, and at the first epoch that differs from the run's history, or
    whose masks differ from its record: machine, versions or code have changed. Invariant: only snapshots that agree
    with the history are kept.
    """
    if parent.fingerprint != data.fingerprint:
        raise UserError(f"run {parent.name} was trained on other data: its epochs cannot be repeated on these")
    (cell,) = resolve_donors([parent.cell], {parent.cell.page_name: data}, options.places, options.device)
    cell = cell.with_name(parent.name, data.fingerprint)  # the name depends on the donor, known only now
    refuse_links(parent.folder, options.places.runs)
    (parent.folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parent.folder / "lock", timeout=0):
            sweep(parent.folder / SNAPSHOTS)
            go_through(parent, cell, epochs, data, options, console)
    except Timeout:
        raise RunningError(f"run {parent.name} is already running in another process; wait for it") from None


def go_through(parent: Parent, cell: Cell, epochs: list[int], data: Data, options: Options, console: Console) -> None:
    """Train the cell up to the last of `epochs`, keeping snapshots; the caller holds the run's lock."""
    use_device(options.device)
    set_determinism(cell.page, options.device)
    built = place(build(cell, data), cell.page, options.device)
    use_processor(3 * built.costs.dense * cell.page.batch_size, options.device)
    checkpoint = parent.folder / SNAPSHOTS / "checkpoint"
    state = read_checkpoint(checkpoint, warner(console))
    run = prepare(cell, built, data, options.device)
    if state is not None and state["counters"][1] >= min(epochs):
        state = None  # it is past a wanted epoch
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
    """Raise UserError unless the epoch that has just ended agrees with the parent's history."""
    again = run.history[-1]
    known: dict[str, Any] = next((row for row in parent.history if row["epoch"] == run.epoch), {})
    differing = [key for key, value in known.items() if value is not None and again.get(key) != value]
    if parent.record is not None and run.epoch == parent.cell.page.epochs:
        differing += ["masks"] if run.maskset.sha256() != parent.record["masks_sha256"] else []
    if differing:
        key = differing[0]
        seen = f" ({again.get(key)} now, {known[key]} then)" if key in known else ""
        raise UserError(
            f"run {parent.name} cannot be repeated here: epoch {run.epoch} ends with another {key}{seen}; machine, "
            "threads, versions or code have changed, so run it again with --snapshots"
        )
