"""The plan of a study of pruning plasticity: how many runs, how far they are and about what they cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.branches.branch import make_branch
from benchmark.branches.branching import Stores
from benchmark.branches.origins import Parent
from benchmark.branches.plasticity import Study
from benchmark.branches.study import Job, list_jobs
from benchmark.console import format_flops
from benchmark.data.sets import Data
from benchmark.data.standin import stand_in
from benchmark.planning.pace import calibrate, format_time, pace_of_records
from benchmark.planning.planner import Networks
from benchmark.planning.states import Ledger, index_runs
from benchmark.run import Options
from leaderboard.store import load_store

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
