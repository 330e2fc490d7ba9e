"""Making the runs of a study, and the plan of what there is to make."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark import ROOT
from benchmark.base.console import format_flops, format_time
from benchmark.base.errors import RunningError, UserError
from benchmark.base.files import check_places
from benchmark.base.stopping import pause
from benchmark.config.cells import Cell
from benchmark.data.sets import Data, load_data
from benchmark.data.standin import stand_in
from benchmark.grids.grid import check_cells
from benchmark.grids.predict import Networks
from benchmark.grids.states import BusyError, Ledger, holding, index_runs, read_now
from benchmark.grids.times import calibrate, pace_of_records
from benchmark.runs.branch import FromSnapshot, make_branch
from benchmark.runs.branching import Stores, is_there, take_snapshots
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.runs.parents import Parent, find_parent
from benchmark.runs.run import Options, Start, run_cell
from benchmark.studies.plasticity import Study
from leaderboard import Record
from leaderboard.store.records import load_store
from leaderboard.tables.sections import amount

POLL_S = 2.0  # between two looks at what other processes have
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Job:
    """A parent, or, where `asked` says how it is pruned, a branch of it."""

    parent: Cell
    asked: dict[str, Any] | None = None

    def __str__(self) -> str:
        name = f"{self.parent.plugin.name} {self.parent.sparsity:g}, seed {self.parent.seed}"
        if self.asked is None:
            return name
        words = dict(word.split("=") for word in self.asked["arguments"].split())
        grown = " and regrown" if words["regrow"] == "true" else ""
        length = amount(self.asked["more"], "more epoch") if self.asked["more"] else "to the end"
        return f"{name}, {words['rate']} pruned{grown} at epoch {self.asked['epoch']}, {length}"


def list_jobs(study: Study) -> list[Job]:
    """Return all runs in the order in which they are made: the parents of a seed, then what is branched from them."""
    jobs = []
    for seed in dict.fromkeys(parent.seed for parent in study.parents):
        parents = [parent for parent in study.parents if parent.seed == seed]
        jobs += [Job(parent) for parent in parents]
        jobs += [Job(parent, asked) for parent in parents for asked in study.branches(parent)]
    return jobs


@dataclass
class Runner:
    """Makes the runs of a study in this process, with one set of images and one process for all.

    Invariants: a run that fails costs no other, apart from its branches; processes that share a study leave one record
    of each run.
    """

    study: Study
    data: Data
    data_root: Path
    stores: Stores
    options: Options
    console: Console
    tell: Callable[[object], None]
    parents: dict[str, Parent | None] = field(default_factory=dict)  # that are over, by name; None: failed
    failed: dict[str, list[str]] = field(default_factory=dict)  # runs by what went wrong
    made: int = 0
    spent_s: float = 0.0  # on what was made here

    def __post_init__(self) -> None:
        self.ledger = Ledger(read_now(self.stores.branches), self.options.places.runs, self.options.device)
        self.study = dataclasses.replace(
            self.study, parents=[self.ledger.place(parent, self.data) for parent in self.study.parents]
        )
        self.jobs = list_jobs(self.study)
        self.left = list(self.jobs)

    def run(self) -> int:
        """Make every run that is not finished; return how many failed."""
        waiting = False
        while self.left:
            before = len(self.left)
            for job in list(self.left):
                self.attempt(job)
            if self.left and len(self.left) == before:  # others have them, who may finish, or die and leave them
                if not waiting:
                    self.say(f"waiting: another process has {before} of {len(self.jobs)} runs")
                waiting = True
                pause(POLL_S)
        failed = sum(map(len, self.failed.values()))
        before = len(self.jobs) - self.made - failed
        self.say(f"{self.made} made, {before} finished already or by others, {failed} failed")
        for reason, names in self.failed.items():
            self.tell(f"failed: {'; '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}: {reason}")
        return failed

    def attempt(self, job: Job) -> None:
        """Bring one run to an end, finished or failed, unless another process has it: then it is left."""
        began = time.monotonic()
        try:
            record = self.finish(job)
        except (BusyError, RunningError):
            return
        except Exception as error:  # one run must not cost the others theirs, whatever went wrong
            reason = str(error) if isinstance(error, UserError) else traceback.format_exc()
            self.failed.setdefault(reason, []).append(str(job))
            if job.asked is None:
                self.parents[job.parent.identity] = None
            self.left.remove(job)
            return
        self.left.remove(job)
        if record is not None:
            self.made += 1
            self.spent_s += time.monotonic() - began
            self.report(job, record)

    def finish(self, job: Job) -> Record | None:
        """Return the record of a run that was made now; None where it was finished before.

        Raises BusyError, UserError and whatever else goes wrong.
        """
        if job.asked is None:
            return self.finish_parent(job.parent)
        if job.parent.identity not in self.parents:
            raise BusyError
        parent = self.parents[job.parent.identity]
        if parent is None:
            raise UserError("the run it starts from failed")
        cell = make_branch(parent, **job.asked)
        record = self.make(cell, self.options, FromSnapshot(branch=cell))
        for file in (WEIGHTS, MASKS) if record is not None else ():
            # hundreds of networks that differ in one mask; `sparse-bench branch` makes any of them again
            (self.options.places.runs / cell.identity / file).unlink(missing_ok=True)
        return record

    def finish_parent(self, cell: Cell) -> Record | None:
        """Make a parent with its snapshots, or what is missing of these."""
        epochs = self.study.epochs
        folder = self.options.places.runs / cell.identity
        record = self.make(cell, dataclasses.replace(self.options, snapshots=epochs))
        if not all(is_there(folder, epoch) for epoch in epochs):  # begun without them, or deleted since
            wanted = ",".join(map(str, epochs))
            take_snapshots(cell.identity, wanted, self.data_root, [self.stores.branches], self.options, QUIET)
        self.parents[cell.identity] = find_parent(cell.identity, [self.stores.branches], self.options.places.runs)
        return record

    def make(self, cell: Cell, options: Options, start: Start | None = None) -> Record | None:
        """Train a cell that is not finished and return its record; None for one that is."""
        if self.ledger.find(cell, self.data) is not None:
            return None
        with holding(options.places.runs / cell.identity):
            if self.ledger.find(cell, self.data) is not None:  # it was published while this process looked elsewhere
                return None
            return run_cell(cell, self.data, options, QUIET, start)[0]

    def report(self, job: Job, record: Record) -> None:
        """Print the line of a run that has just finished."""
        last = record["accuracy_pct"]["last_epoch"]
        shown = "diverged" if last is None else f"{last:.2f} %"
        if "branch" in record:
            shown = f"{record['branch']['before']['test_acc_pct']:.2f} -> {shown}"
        left = format_time(len(self.left) * self.spent_s / self.made)
        self.say(
            f"{len(self.jobs) - len(self.left)}/{len(self.jobs)} {job}: {shown}; about {left} left for one process"
        )

    def say(self, text: str) -> None:
        """Print a plain line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_study(
    study: Study,
    data_root: Path,
    stores: Stores,
    options: Options,
    console: Console,
    tell: Callable[[object], None],
    jobs: int = 1,
) -> int:
    """Make a study's runs; return how many failed.

    `jobs` processes share the work: this one, and others that are given the same command. Raises UserError before the
    first batch for what cannot be run.
    """
    if jobs < 1:
        raise UserError(f"JOBS must be at least 1, got {jobs}")
    first = study.parents[0]
    check_places(options.places)
    data = load_data(first.page, data_root, options.device)
    check_cells(study.parents, {first.page_name: data}, options)
    words = [sys.executable, "-m", "benchmark", *alone(sys.argv[1:])]
    helpers = [subprocess.Popen(words, env=this_code()) for _ in range(jobs - 1)]
    try:
        return Runner(study, data, data_root, stores, options, console, tell).run()
    finally:
        for helper in helpers:
            helper.wait()  # an interrupt reached it too


def alone(words: list[str]) -> list[str]:
    """Return the words of a command with `--jobs N` taken out."""
    kept = [word for word, before in zip(words, ["", *words], strict=False) if "--jobs" not in (word, before)]
    return [word for word in kept if not word.startswith("--jobs=")]


def this_code() -> dict[str, str]:
    """Return the environment in which a new process finds this very suite."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


KINDS = ("runs that are pruned from", "branches, plasticity", "branches, to the end")


def print_study(study: Study, data_root: Path, stores: Stores, options: Options, console: Console) -> int:
    """Print the plan; return 0. Nothing is trained or written.

    FLOPs take every layer to keep the same share of its weights, and leave scoring out.
    """
    first = study.parents[0]
    data = stand_in(first.page, data_root)
    records = [record for store in stores.both for record in load_store(store, branches=True)[0]]
    built = Networks().get(first, data).built
    pace = pace_of_records(first, data, records, options.device) or calibrate(first, data, built, options.device)
    ledger = Ledger(index_runs(records), options.places.runs, options.device)
    study = dataclasses.replace(study, parents=[ledger.place(parent, data) for parent in study.parents])
    per_epoch_s = pace.seconds(first.page, data) / first.page.epochs
    table = Table(box=None, pad_edge=False)
    for name in ("", "runs", "finished", "epochs to train", "train FLOPs", "time"):
        table.add_column(name, justify="right" if name else "left")
    for kind in KINDS:
        jobs = [job for job in list_jobs(study) if kind_of(job) == kind]
        left = [job for job in jobs if not is_finished(job, ledger, data, options)]
        macs = sum(3 * built.costs.dense * len(data.train) * epochs_of(job) * density_of(job) for job in left)
        epochs = sum(map(epochs_of, left))
        done = len(jobs) - len(left)
        cost = f"≈ {format_flops(macs)}"
        table.add_row(kind, str(len(jobs)), str(done), str(epochs), cost, format_time(epochs * per_epoch_s))
    console.print(f"{first.title}: pruned at epochs {', '.join(map(str, study.epochs))} of {first.page.epochs}")
    console.print(table)
    console.print(f"times are of one process, by {pace.source}", highlight=False)
    return 0


def kind_of(job: Job) -> str:
    """Return which of KINDS a run is."""
    return KINDS[0] if job.asked is None else KINDS[1] if job.asked["more"] else KINDS[2]


def epochs_of(job: Job) -> int:
    """Return how many epochs a run trains itself."""
    end: int = job.parent.page.epochs
    return end if job.asked is None else job.asked["more"] or end - job.asked["epoch"]


def density_of(job: Job) -> float:
    """Return the share of weights that a run trains."""
    return 1 - (job.parent.sparsity if job.asked is None else float(job.asked["sparsity"]))


def is_finished(job: Job, ledger: Ledger, data: Data, options: Options) -> bool:
    """Return whether a run has a record."""
    cell = job.parent
    if job.asked is not None:
        cell = make_branch(Parent(cell, options.places.runs / cell.identity, None, [], ""), **job.asked)
    return ledger.find(cell, data) is not None
