"""One cell from start to record: build, set up masks or resume, train, verify what was written, publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from benchmark.base.console import Reporter
from benchmark.base.errors import RunningError, UserError
from benchmark.base.files import Places, refuse_links, run_folder, sweep
from benchmark.base.system import name_surroundings, use_device
from benchmark.base.tracking import Tracker
from benchmark.config.cells import Cell
from benchmark.data.sets import Data
from benchmark.distributed.ranks import DriftError, announce, count_ranks, own_rank
from benchmark.networks.build import Built, build, place
from benchmark.networks.costs import Meter
from benchmark.networks.prunable import prunable_weights
from benchmark.runs.checkpoints import (
    FINISHED,
    SNAPSHOTS,
    Saver,
    keep_snapshot,
    read_checkpoint,
    read_finished,
    restore,
    set_aside_drifted,
    write_finished,
)
from benchmark.runs.export import export_network
from benchmark.runs.record import describe_start, make_record, price_slim, refuse_invalid, tell_dead
from benchmark.training import method_state
from benchmark.training.cuda_graphs import wants_graphs
from benchmark.training.masks import MaskSet
from benchmark.training.method_state import MethodState, weighs
from benchmark.training.optim import make_average, make_optimizer
from benchmark.training.precision import choose_precision, set_determinism
from benchmark.training.rehearsal import refuse_empty
from benchmark.training.setup import begin_masks
from benchmark.training.speed import probe_precision, use_processor, warn_slow
from benchmark.training.state import Training
from benchmark.training.train import train
from leaderboard import Record, UnreadableError, find_same, write_record
from leaderboard.tables.table import printable
from methods.core import Rounds, Timeline

SUMMARY = ("accuracy_pct", "density", "status", "macs", "updates", "time", "usage")  # of a record, for W&B


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: nothing here may change a number."""

    device: torch.device
    wandb: str = "off"
    fresh: bool = False  # start over although a checkpoint is there
    checkpoint_s: float = 15.0  # at least so long between two checkpoints
    command: str = ""
    places: Places = field(default_factory=Places)
    progress: Path | None = None  # a file that says how far the run is
    snapshots: tuple[int, ...] = ()  # epochs at whose ends a checkpoint is kept
    alone: bool = False  # the command trains this one run
    elsewhere: bool = False  # it trains on other machines, whose devices are not known here
    told: set[str] = field(default_factory=set, compare=False)  # warnings that were given, for once is enough


Warn = Callable[[str], None]


@dataclass
class Start:
    """How a run begins, and what its record says of that: here afresh, from initial weights drawn by the seed.

    `network`: the cell's, where it was built already to check the cell; it is used up by the run. `is_made`: asked once
    no other process can train the run, whether it has its record by now.
    """

    network: Built | None = None
    is_made: Callable[[], bool] = lambda: False

    def build(self, cell: Cell, data: Data, device: torch.device) -> Built:
        """Return the cell's network on its device."""
        built, self.network = self.network or build(cell, data), None
        return place(built, cell.page, device)

    def arrange(self, run: Training) -> None:
        """Set the epochs that the run trains, and whose learning-rate schedule it uses."""

    def begin(self, cell: Cell, run: Training, warn: Warn) -> dict[str, Any]:
        """Bring the run to its first step; return what its record says beyond that of a run begun afresh."""
        set_up_masks(cell, run, warn)
        return {}

    def recall(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what `begin` returned when the run of a checkpoint began."""
        return {}


def check_room(cell: Cell, built: Built, places: Places) -> None:
    """Raise UserError when the disk cannot hold two checkpoints and the exported weights of this network."""
    if own_rank():  # whose machine may have no such folder
        return
    copies = (4 if cell.page.optimizer != "sgd" else 3) + (ask_rounds(cell).count > 1)  # one to go back to
    needed = 4 * built.dense_parameters * (2 * copies + 1)
    free = shutil.disk_usage(places.runs).free
    if free < needed:
        raise UserError(
            f"{places.runs} has {free / 2**20:,.0f} MiB free and this run's checkpoints need {needed / 2**20:,.0f}: "
            "make room, or point --runs elsewhere"
        )


def make_timeline(cell: Cell, data: Data) -> Timeline:
    """Return the run's length in steps; raises UserError when an epoch has none."""
    batch = cell.page.batch_size
    steps = len(data.train) // batch if cell.page.drop_last else -(-len(data.train) // batch)
    if steps == 0:
        raise UserError(f"batch_size {batch} is larger than the {len(data.train)} training images and drop_last is on")
    epochs, rounds = cell.page.epochs, ask_rounds(cell)
    ends = [steps * (epochs + extra * (epochs - rounds.back_to)) for extra in range(rounds.count)]
    return Timeline(ends[-1], steps, tuple(ends))


def ask_rounds(cell: Cell) -> Rounds:
    """Return how often the method has the page's training done; raises UserError where that makes no sense."""
    rounds = method_state.ask_rounds(cell.method, cell.plugin.name, cell.page.epochs)
    if rounds.count > 1 and rounds.back_to >= cell.page.epochs:
        raise UserError(
            f"method '{cell.plugin.name}' rewinds to epoch {rounds.back_to} of {cell.page.epochs}: rewind to an "
            "earlier one, or train longer with ARGS=epochs=N"
        )
    return rounds


def refuse_rounds(cell: Cell, what: str) -> None:
    """Raise UserError, naming `what` was asked for, for a method whose snapshots nothing can branch from."""
    if weighs(cell.method) or ask_rounds(cell).count > 1:
        raise UserError(
            f"{what}: nothing can branch from {cell.plugin.name}, which trains in rounds, or weighs its weights: a "
            "snapshot of that is no network of its own; take another method's run"
        )


def run_cell(
    cell: Cell, data: Data, options: Options, console: Console, start: Start | None = None
) -> tuple[Record, Path]:
    """Train one cell and publish its record; return the record and its file. `start`: None = afresh.

    Continues an interrupted run of the same cell: from its checkpoint, or with publishing its record where training
    was over. Raises UserError for anything a user can fix. Several ranks train together; rank 0 alone reads and writes
    files, and tells the others. Invariants: a record is written only after the exported file was read back and found to
    hold its budget; killed at any instant and called again, a run leaves one record.
    """
    start = start or Start()
    if own_rank() == 0:
        return announce(lead_cell(cell, data, options, console, start))
    found: tuple[Record, Path] | None = announce(None)
    if found is None:
        train_cell(cell, data, options, console, run_folder(options.places.runs, cell.identity), start)
        found = announce(found)
    assert found is not None, "rank 0 announces what it has published"
    return found


def lead_cell(cell: Cell, data: Data, options: Options, console: Console, start: Start) -> tuple[Record, Path]:
    """Do what `run_cell` promises, as rank 0; before training it announces None to the others."""
    folder = run_folder(options.places.runs, cell.identity)
    refuse_links(folder, options.places.runs)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            sweep(folder, folder / SNAPSHOTS)
            finished = read_finished(folder / FINISHED, warner(console))
            if finished is not None:  # never lost, whatever is asked now
                path = publish(finished, folder, options.places)
                console.print(f"published the run that finished {finished['finished']}: {path.name}", markup=False)
                if not options.fresh and finished["data"]["fingerprint"] == data.fingerprint:
                    return finished, path
            if start.is_made():
                raise RunningError(f"run {cell.identity} was just finished by another process")
            if options.fresh:
                (folder / "checkpoint").unlink(missing_ok=True)
            announce(None)
            record = train_cell(cell, data, options, console, folder, start)
            write_finished(folder / FINISHED, record)
            return record, publish(record, folder, options.places)
    except Timeout:
        raise RunningError(f"run {cell.identity} is already running in another process; wait for it") from None


def publish(record: Record, folder: Path, places: Places) -> Path:
    """Write a finished run's record, unless it is there already, and clear the run's folder; return the record's file.

    Killed anywhere and called again, it ends with one record. Raises UserError where the store is out of reach: to
    write then would be to write elsewhere, or twice.
    """
    kept = f"the finished run is kept in {folder}, and the same command publishes it"
    try:
        path = find_same(record, places.records) or write_record(record, places.records, begin=False)
    except (UnreadableError, FileNotFoundError) as error:
        gone = error if isinstance(error, UnreadableError) else "out of reach"
        raise UserError(f"the records of run {record['run']} in {places.records} are {gone}; {kept}") from error
    (folder / "checkpoint").unlink(missing_ok=True)  # before the finished record: a kill here repeats nothing
    (folder / FINISHED).unlink()
    return path


def warner(console: Console) -> Warn:
    """Return a function that prints a warning, which may quote a file: printable it is."""
    return lambda text: console.print(f"warning: {printable(text)}", style="yellow", markup=False)


def tell(remarks: tuple[str, ...], options: Options, console: Console) -> None:
    """Print what a user should know about a network, once for all runs of a grid."""
    for remark in remarks:
        if remark not in options.told:
            options.told.add(remark)
            warner(console)(remark)


def train_cell(cell: Cell, data: Data, options: Options, console: Console, folder: Path, start: Start) -> Record:
    """Build, set up or resume, train, export and verify; return the record, which only rank 0 has."""
    started = datetime.now(timezone.utc)
    use_device(options.device)
    set_determinism(cell.page, options.device)
    built = start.build(cell, data, options.device)
    tell(built.remarks, options, console)
    use_processor(3 * built.costs.dense * cell.page.batch_size, options.device)
    check_room(cell, built, options.places)  # again: the cells before this one have written
    checkpoint = folder / "checkpoint"
    state = announce(read_checkpoint(checkpoint, warner(console)) if own_rank() == 0 else None)
    run = prepare(cell, built, data, options.device)
    start.arrange(run)
    if cell.page.precision == "fastest":  # a continued run keeps what was chosen, whatever is faster now
        run.precision = str(state.get("precision")) if state else announce(probe_precision(run))
    warn_slow(run, options.told, warner(console))
    run.usage.begin(options.device, count_ranks())  # after the probes, whose memory is not the run's
    if state is None:
        begun = start.begin(cell, run, warner(console))
    else:
        started, begun = restore(run, state, checkpoint), start.recall(state)
        tell_continued(cell, run, state, console)
    tracker = start_tracker(cell, run, options, folder, started, console)
    shown = f"{cell.plugin.name} {cell.sparsity:g} s{cell.seed}", run.last_epoch(), run.timeline.steps_per_epoch
    facts = {**describe_start(cell, built, started, begun), "about": about(cell)}
    saver = Saver(checkpoint, options.checkpoint_s, facts)

    def after_epoch(run: Training) -> None:
        tracker.log(run.history[-1], run.step)
        keep_snapshot(run, options.snapshots, folder, facts)  # before the checkpoint, which continues after it
        saver(run)

    summary: dict[str, Any] = {"status": "failed"}
    try:
        with Reporter(console, *shown, run.step, options.progress) as reporter, run.usage.watch():
            train(run, reporter, after_epoch, saver)
        if own_rank():
            return {}
        files = export_network(run.evaluated().state_dict(), run.maskset.masks, folder, about(cell))
        record = {**make_record(cell, built, run, options.command, started), "files_sha256": files, **begun}
        tell_dead(record, run, warner(console))
        price_slim(record, run, warner(console))
        refuse_invalid(record, folder)
        summary = {key: record[key] for key in SUMMARY if key in record}
    except DriftError:
        set_aside_drifted(checkpoint)
        raise
    finally:
        tracker.finish(summary)  # or the next run of a grid would be logged into this one
    return record


def tell_continued(cell: Cell, run: Training, state: dict[str, Any], console: Console) -> None:
    """Say where a run goes on, and whether on another processor, accelerator or version, which the record tells."""
    console.print(f"continuing {cell.identity} after step {run.step} of {run.timeline.total_steps}", markup=False)
    now, run.earlier = name_surroundings(run.device), list(state.get("earlier", []))
    if (before := state.get("machine", now)) != now:  # old checkpoints do not say
        warner(console)(f"it ran under {before} and goes on under {now}, which may round to other last bits")
        run.earlier += [before] if before not in run.earlier else []


def start_tracker(
    cell: Cell, run: Training, options: Options, folder: Path, started: datetime, console: Console
) -> Tracker:
    """Return the log of a run that starts or continues; only rank 0 has one."""
    mode = "off" if own_rank() else options.wandb
    tracker = Tracker(mode, folder, partial(console.print, style="yellow", markup=False, soft_wrap=True), options.alone)
    config = {"page": vars(cell.page), "method": cell.method_settings()}
    tracker.start(cell.identity, cell.page_name, config, started, run.history)
    return tracker


def about(cell: Cell) -> dict[str, str]:
    """Return what an exported file says of where it comes from."""
    return {"model": cell.page.model, "run": cell.identity}


def prepare(cell: Cell, built: Built, data: Data, device: torch.device) -> Training:
    """Return the run before its first step, every weight still active."""
    optimizer = make_optimizer(cell.page, built.model)
    meter = Meter(built.costs, built.reference)
    maskset = MaskSet(prunable_weights(built.model, built.layers), built.last)
    maskset.listeners.append(meter.on_commit)
    return Training(
        page=cell.page,
        method=cell.method,
        name=cell.plugin.name,
        model=built.model,
        optimizer=optimizer,
        maskset=maskset,
        meter=meter,
        data=data,
        timeline=make_timeline(cell, data),
        seed=cell.seed,
        device=device,
        precision=choose_precision(cell.page, device),
        channels_last=built.channels_last,
        method_state=MethodState(ask_rounds(cell)),
        average=make_average(cell.page, built.model),
        waits=device.type == "cpu",
        graphs=wants_graphs(cell.page, device),
    )


def set_up_masks(cell: Cell, run: Training, warn: Warn = lambda text: None, may_empty: bool = False) -> None:
    """Commit the method's first masks, see `begin_masks`.

    A layer without weights is refused, unless the page allows it or `may_empty`, where the sparsity alone decides;
    where scores or a donor decide (SNIP's layer collapse) it is a result: told through `warn` and kept in the record.
    """
    begin_masks(run, cell.donor, warn)
    if cell.method.scoring() is None and cell.donor is None and not may_empty:
        refuse_empty(cell, run.maskset.counts())
    empty = [name for name, count in run.maskset.counts().items() if count == 0]
    if empty:
        warn(f"{run.name} leaves no weight in layer {', '.join(empty)}; the record says so")
