"""Runs that are killed: what a killed and restarted run must leave, and what it may not.

A kill leaves what is on the disk, so it is one of as many as there are operations that change a file: for each run a
process that has imported everything (this module, as a program) forks a child, which sends itself SIGKILL before the
n-th such operation, or half-way through it where it writes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

import benchmark.base.system
import benchmark.grids.grid
import benchmark.runs.branching
import benchmark.runs.checkpoints
import benchmark.runs.export
import benchmark.runs.record
import benchmark.runs.run
from benchmark.runs.branching import Stores, make_options, run_branch
from benchmark.runs.checkpoints import FINISHED
from benchmark.training.contract import commit, propose
from benchmark.training.state import Training
from methods.core import View
from tests.harness.benches import run_cells
from tests.harness.forks import Nursery, fork, save_every, serve, warm
from tests.harness.troubles import Trouble, Troublemaker
from tests.harness.verdicts import PAGE, find_torn, judge

SAID = "said"  # a child's last words, in its folder


@dataclass(frozen=True)
class Run:
    """A run to make in a forked child, as the nursery is asked for it."""

    folder: str
    method: str
    arguments: str
    save_every: int = 1  # steps between two checkpoints; an epoch's end always has one
    at: int = 0  # kill at this operation that changes a file; 0 = let it end
    fault: str = ""  # one of FAULTS
    snapshots: str = ""  # epochs after which to keep one
    parent: str = ""  # a folder that a run was made in: the run is a branch of it
    asked: str = ""  # of a branch, in JSON


def is_published(folder: Path, paged: bool = True) -> bool:
    """Return whether a run has left all it leaves: record, page (a branch has none), and nothing to go on from."""
    left = [path for name in (FINISHED, "checkpoint") for path in folder.glob(f"runs/*/{name}")]
    return not left and ((folder / PAGE).exists() or not paged) and any(folder.glob("records/*.json"))


def live(run: Run) -> int:
    """Make a run in this process, saving every few steps, and return by how many operations it changed files."""
    if run.fault:
        FAULTS[run.fault]()
    save_every(run.save_every)
    maker = Troublemaker(Path(run.folder), (), Path(run.folder) / "hits")
    run_cell, changes = benchmark.runs.run.run_cell, []

    def run_watched(*arguments: Any) -> Any:
        maker.changes.clear()
        maker.troubles = (Trouble("kill", at=run.at),) if run.at else ()
        try:
            return run_cell(*arguments)
        finally:
            changes.append(maker.changes["any"])
            maker.troubles = ()

    # not the checks before it, which write nothing that stays
    benchmark.grids.grid.run_cell = benchmark.runs.branching.run_cell = run_watched
    maker.install()
    (call_branch if run.parent else call_grid)(run)
    return changes[0]


def call_branch(run: Run) -> None:
    """Make a branch as the command line does: of the run in `run.parent`, from a copy of its files."""
    folder, parent, said = Path(run.folder), Path(run.parent), io.StringIO()
    if not (folder / "runs").exists():
        shutil.copytree(parent / "runs", folder / "runs")
    stores = Stores(parent / "records", folder / "records")
    options = make_options("cpu", stores, folder / "runs", folder / PAGE, 0.0, "kills")
    name = next((parent / "records").glob("*.json")).stem
    run_branch(name, stores, options, folder / "data", Console(file=said, width=200), **json.loads(run.asked))
    (folder / SAID).write_text(said.getvalue())


def call_grid(run: Run) -> None:
    """Run the grid as the command line does."""
    folder, said = Path(run.folder), io.StringIO()
    failed = run_cells(
        folder,
        methods=run.method,
        sparsities="0.5" if run.method == "sr_ste" else "0.8",  # it takes no other
        arguments=run.arguments,
        command="kills",
        console=Console(file=said, width=200),
        tell=lambda message: said.write(f"{message}\n"),
        snapshots=run.snapshots,
    )
    (folder / SAID).write_text(said.getvalue())
    assert not failed, said.getvalue()


def make(run: Run) -> dict[str, Any]:
    """Make a run in a forked child; return how it ended (0, -9 where it was killed, 1 where it failed) and `live`."""
    changes = Path(run.folder) / "changes"

    def be_child() -> int:
        try:
            changes.write_text(str(live(run)))
        except BaseException:
            (Path(run.folder) / SAID).write_text(traceback.format_exc())
            return 1
        return 0

    status = os.waitstatus_to_exitcode(os.waitpid(fork(be_child), 0)[1])
    return {"status": status, "changes": int(changes.read_text()) if not status else 0}


def prepare() -> None:
    """Import all that runs need, and make one for what is computed at the first run only."""
    warm()
    with tempfile.TemporaryDirectory() as folder:
        call_grid(Run(folder, "dense", "epochs=1 batch_size=1024 model_args.width=0.1"))


class Runs(Nursery):
    """The process that runs are forked from. A context manager."""

    def __init__(self) -> None:
        super().__init__("tests.harness.kills")

    def __call__(self, run: Run) -> dict[str, Any]:
        """Make a run and return how it ended; see `make`."""
        Path(run.folder).mkdir(parents=True, exist_ok=True)
        answer: dict[str, Any] = self.ask(dataclasses.asdict(run))
        return answer


@dataclass
class Ending:
    """What became of a run that was killed and restarted until it ended."""

    kills: int  # how many of those asked for were reached
    torn: list[str]  # found between a kill and the restart
    differences: list[str]  # from the undisturbed run
    resumed: int  # restarts that went on from a checkpoint


class Trials:
    """Kills runs, restarts them and compares what they leave with undisturbed runs, made once each."""

    def __init__(self, nursery: Runs, folder: Path) -> None:
        self.nursery, self.folder = nursery, folder
        self.undisturbed: dict[Run, tuple[Path, int]] = {}
        self.number = 0

    def reference(self, run: Run) -> tuple[Path, int]:
        """Return the folder of an undisturbed run and by how many operations it changed files."""
        key = dataclasses.replace(run, folder="", fault="")
        if key not in self.undisturbed:
            folder = self.folder / f"undisturbed{len(self.undisturbed)}"
            answer = self.nursery(dataclasses.replace(key, folder=str(folder)))
            assert answer["status"] == 0, (folder / SAID).read_text()
            self.undisturbed[key] = folder, answer["changes"]
        return self.undisturbed[key]

    def kill(self, run: Run, *kills: int) -> Ending:
        """Kill a run at each of these operations, then let it end; the same command always."""
        folder = self.folder / f"run{self.number}"
        self.number += 1
        run = dataclasses.replace(run, folder=str(folder))
        ending = Ending(0, [], [], 0)
        for at in (*kills, 0):
            status = self.nursery(dataclasses.replace(run, at=at))["status"]
            if status not in (0, -signal.SIGKILL):
                ending.differences.append(f"refused: {(folder / SAID).read_text()}")
                return ending
            ending.resumed += status == 0 and "continuing" in (folder / SAID).read_text()
            ending.kills += status != 0
            ending.torn += find_torn(folder)
            if status == 0 or is_published(folder, not run.parent):
                break
        ending.differences = judge(folder, self.reference(run)[0])
        return ending


def draw_kills(changes: int, number: int, random: Random) -> list[list[int]]:
    """Draw instants to kill at, one in each part of a run; every third run is killed a second time."""
    drawn = [[1 + (place * changes + random.randrange(changes)) // number] for place in range(number)]
    for kills in drawn[::3]:
        kills.append(random.randint(1, changes // 2))
    return drawn


def after_loading(change: Callable[[Training], Any]) -> Callable[[], None]:
    """Return a fault: `change` is done to every run that goes on from a checkpoint."""

    def plant() -> None:
        load = Training.load_state

        def load_and_change(run: Training, state: dict[str, Any]) -> None:
            load(run, state)
            change(run)

        Training.load_state = load_and_change  # type: ignore[method-assign]

    return plant


def replace(module: Any, name: str, value: Any) -> Callable[[], None]:
    """Return a fault: a module's function is another."""
    return lambda: setattr(module, name, value)


def begin_anew(run: Training) -> None:
    """Forget how far the epoch was."""
    run.step, run.epoch_step, run.epoch_seen = run.step - run.epoch_step, 0, 0


def redraw(run: Training) -> None:
    """Ask the method for its first masks once more."""
    view = View(weights=run.maskset.weights, masks=run.maskset.masks, step=0, timeline=run.timeline, seed=1 + run.seed)
    average = run.average.module if run.average else None
    commit(run.method, run.name, run.maskset, propose(run.method, run.name, view), view, run.optimizer, average)


def write_in_place(path: Path, content: bytes) -> None:
    """Write a file under its own name, so that a kill leaves a part of it."""
    with open(path, "wb") as file:
        file.write(content)


def write_all_in_place() -> None:
    """Let every writer of the run's folder write in place."""
    for module in (benchmark.runs.checkpoints, benchmark.runs.export):
        module.write_atomically = write_in_place  # type: ignore[attr-defined]


FAULTS: dict[str, Callable[[], None]] = {
    "momentum is lost": after_loading(lambda run: run.optimizer.state.clear()),
    "the epoch begins anew": after_loading(begin_anew),
    "masks are drawn anew": after_loading(redraw),
    "random state is lost": after_loading(lambda run: setattr(run, "random_state", None)),
    "the average is lost": after_loading(lambda run: run.average and run.average.set(run.model)),
    "costs are lost": after_loading(lambda run: setattr(run.meter, "train", 0)),
    "the history is lost": after_loading(lambda run: run.history.clear()),
    "files are written in place": write_all_in_place,
    "a published record is not found again": replace(benchmark.runs.run, "find_same", lambda record, folder: None),
    "nothing is swept": replace(benchmark.runs.run, "sweep", lambda *folders: None),
}

if __name__ == "__main__":
    serve(lambda asked: make(Run(**asked)), prepare)
