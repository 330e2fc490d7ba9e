"""Runs that kill themselves at a chosen line: what a killed and restarted run must leave, and what it may not.

`Nursery` starts one process that has imported everything (this module, as a program). For each run it forks a child,
which is traced line by line and sends itself SIGKILL before the n-th line of a named spot. A fork costs milliseconds
where a fresh interpreter costs seconds, and the nursery has no threads and no GPU that a fork could break.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import linecache
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open

import benchmark.base.system
import benchmark.grids.grid
import benchmark.runs.branching
import benchmark.runs.checkpoints
import benchmark.runs.export
import benchmark.runs.record
import benchmark.runs.run
from benchmark.base.errors import UserError
from benchmark.config.plugins import built_in_names, find_method
from benchmark.runs.branching import Stores, make_options, run_branch
from benchmark.runs.checkpoints import FINISHED, Saver, load_checkpoint
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.training.contract import commit, propose
from benchmark.training.train import Training
from leaderboard import read_records
from leaderboard.board.page import make_page
from methods.core import View
from tests.harness.benches import run_cells

ROOT = Path(__file__).resolve().parents[2]
TRACED = tuple(str(ROOT / room) + os.sep for room in ("benchmark", "methods", "leaderboard"))
PAGE = "LEADERBOARD.md"
# Where a line is, by the functions that are running; the first one here decides, so a checkpoint that is written when
# an epoch ends belongs to the epoch's end.
SPOTS = {
    "records.write_record": "record",
    "records.find_same": "record",
    "export.export_network": "export",
    "train.evaluate_epoch": "epoch end",
    "run.after_epoch": "epoch end",
    "checkpoints.save": "checkpoint",
    "train.update_masks": "update",
    "train.train_step": "step",
    "run.set_up_masks": "setup",
    "checkpoints.load_checkpoint": "load",
    "train.load_state": "load",
    "run.train_cell": "cell",
    "run.run_cell": "publish",
}
RANKS = {function: place for place, function in enumerate(SPOTS)}
LOADED = 100  # about so many lines read a checkpoint back; an undisturbed run has none to count
ANYWHERE = "anywhere"  # every line counts here too
# Before these lines files change from one state to another; such a line of a spot is also counted as "SPOT!".
DELICATE = ("file.write(", "fsync(", "os.replace(", "os.link(", "unlink(")
SAID = "said"  # a child's last words, in its folder


@dataclass(frozen=True)
class Run:
    """A run to make in a forked child, as the nursery is asked for it."""

    folder: str
    method: str
    arguments: str
    save_every: int = 1  # steps between two checkpoints; an epoch's end always has one
    spot: str = ""  # kill at line number `line` of this spot; "" = only count them
    line: int = 0
    count: bool = False  # whether to return how many lines each spot has
    after_s: float = 0.0  # kill from outside after so long; 0 = never
    fault: str = ""  # one of FAULTS
    snapshots: str = ""  # epochs after which to keep one
    parent: str = ""  # a folder that a run was made in: the run is a branch of it
    asked: str = ""  # of a branch, in JSON


class Killer:
    """A trace function that counts lines by spot and kills its own process at the one that was asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.counts: Counter[str] = Counter()
        self.names: dict[CodeType, str] = {}  # of code that is traced, "" = not traced
        self.kinds: dict[tuple[CodeType, int, str], tuple[str, ...]] = {}  # what a line of code counts as
        self.over = False

    def name(self, code: CodeType) -> str:
        """Return a function as `file.function`, or "" where lines are not counted."""
        if code not in self.names:
            traced = code.co_filename.startswith(TRACED) or code is write_in_place.__code__
            self.names[code] = f"{Path(code.co_filename).stem}.{code.co_name}" if traced else ""
        return self.names[code]

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        name = self.name(frame.f_code)
        if not name or self.over:
            return None
        function = min(name, function_above(frame.f_back), key=rank)

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "line" and not self.over:
                # Past its last step a run is over: to start it again is to repeat it, and a repeat is a new record.
                self.over = name == "run.run_cell" and is_published(Path(self.run.folder), not self.run.parent)
                if not self.over:
                    self.meet(frame, SPOTS[function])
            return trace

        trace.function = function  # type: ignore[attr-defined]
        return trace

    def meet(self, frame: FrameType, spot: str) -> None:
        """Count the line that `frame` is about to run, and die where it is the one."""
        line = frame.f_code, frame.f_lineno, spot
        if line not in self.kinds:
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            delicate = (f"{spot}!",) if any(word in text for word in DELICATE) else ()
            self.kinds[line] = (ANYWHERE, spot, *delicate)
        for kind in self.kinds[line]:
            self.counts[kind] += 1
            if kind == self.run.spot and self.counts[kind] == self.run.line:
                die(frame)


def function_above(frame: FrameType | None) -> str:
    """Return the function of SPOTS that decides for the nearest traced frame from `frame` on."""
    while frame is not None:
        if frame.f_trace is not None:
            return frame.f_trace.function  # type: ignore[attr-defined,no-any-return]
        frame = frame.f_back
    return ""


def rank(function: str) -> int:
    """Return a function's place in SPOTS; others come last."""
    return RANKS.get(function, len(RANKS))


def die(frame: FrameType) -> None:
    """Kill this process before the line of `frame`, or half-way through it where it writes a file."""
    if "file.write(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
        content = frame.f_locals["text" if "text" in frame.f_locals else "content"]
        frame.f_locals["file"].write(content[: len(content) // 2])
        frame.f_locals["file"].flush()
    os.kill(os.getpid(), signal.SIGKILL)


def is_published(folder: Path, paged: bool = True) -> bool:
    """Return whether a run has left all it leaves: record, page (a branch has none), and nothing to go on from."""
    left = [path for name in (FINISHED, "checkpoint") for path in folder.glob(f"runs/*/{name}")]
    return not left and ((folder / PAGE).exists() or not paged) and any(folder.glob("records/*.json"))


def live(run: Run) -> Counter[str]:
    """Make a run in this process, saving every few steps, and return its lines by spot."""
    torch.set_num_threads(1)
    if run.fault:
        FAULTS[run.fault]()

    def save_often(saver: Saver, training: Training) -> None:
        if training.step % run.save_every == 0 or not training.epoch_step:
            saver.save(training)

    Saver.__call__ = save_often  # type: ignore[method-assign]  # a real one waits until twenty times its cost is over
    killer, run_cell = Killer(run), benchmark.runs.run.run_cell

    def run_traced(*arguments: Any) -> Any:
        sys.settrace(killer if run.spot or run.count else None)
        try:
            return run_cell(*arguments)
        finally:
            sys.settrace(None)

    # not the checks before it, which write nothing that stays
    benchmark.grids.grid.run_cell = benchmark.runs.branching.run_cell = run_traced
    (call_branch if run.parent else call_grid)(run)
    return killer.counts


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


def fork(run: Run) -> dict[str, Any]:
    """Make a run in a forked child; return how it ended: 0, -9 where it was killed, 1 where it failed."""
    lines = Path(run.folder) / "lines"
    child = os.fork()
    if not child:
        status = 1
        try:
            counts = live(run)
            if run.count:
                lines.write_text(json.dumps(counts))
            status = 0
        except BaseException:
            (Path(run.folder) / SAID).write_text(traceback.format_exc())
        finally:
            os._exit(status)
    if run.after_s:
        time.sleep(run.after_s)
        os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still this child's
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "lines": json.loads(lines.read_text()) if run.count and not status else {}}


def serve() -> None:
    """Read runs from standard input, one JSON object a line, and answer each when it has ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a child prints must not be taken for an answer
    torch.set_num_threads(1)
    for name in built_in_names():
        find_method(name)
    git = benchmark.base.system.describe_git()
    benchmark.runs.record.describe_git = lambda: git  # the checkout may change while the tests run
    with tempfile.TemporaryDirectory() as folder:  # once, for what is imported and computed at the first run only
        call_grid(Run(folder, "dense", "epochs=1 batch_size=1024 model_args.width=0.1"))
    gc.freeze()  # or every child would search, and so copy, all that was imported
    for line in sys.stdin:
        answers.write(json.dumps(fork(Run(**json.loads(line)))) + "\n")
        answers.flush()


class Nursery:
    """The process that runs are forked from. A context manager."""

    def __enter__(self) -> Nursery:
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.harness.kills"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **alone}, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def __call__(self, run: Run) -> dict[str, Any]:
        """Make a run and return how it ended; see `fork`."""
        assert self.process.stdin and self.process.stdout
        Path(run.folder).mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(json.dumps(dataclasses.asdict(run)) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@dataclass
class Outcome:
    """What a run left behind, without what may differ between two runs: times and the state of the checkout."""

    records: list[dict[str, Any]]
    files: dict[str, Any]  # of the run's folder, by name
    page: str
    litter: list[str] = field(default_factory=list)  # hidden files among records and beside the page


def read_outcome(folder: Path) -> Outcome:
    """Read what the runs in `folder` left. A record that was published twice counts as two."""
    records, problems = read_records(folder / "records", branches=True)
    copies = [problem for problem in problems if problem.reason.startswith("a copy of ")]
    assert copies == problems, problems
    records += [{"copy": problem.file} for problem in copies]
    files = {str(path.relative_to(folder)): read_content(path) for path in folder.glob("runs/*/*") if path.is_file()}
    page = (folder / PAGE).read_text() if (folder / PAGE).exists() else ""
    litter = [path.name for room in (folder, folder / "records") for path in room.glob(".*")]
    return Outcome([timeless(record) for record in records], files, without_times(page), litter)


def read_content(path: Path) -> Any:
    """Return what a file holds: bytes, or of a safetensors file, whose metadata come in any order, each part."""
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        return content
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without times, environment, state of the checkout, and the seal that all of it goes into."""
    apart = ("started", "finished", "time", "environment", "git", "seal")
    return {key: record[key] for key in record if key not in apart}


def without_times(page: str) -> str:
    """Return a leaderboard page without the columns that show times."""
    lines, hidden = [], []
    for line in page.splitlines():
        cells = line.split(" | ")
        if "training time" in cells:
            hidden = [cells.index("training time"), cells.index("images/s")]
        lines.append(" | ".join(cell for i, cell in enumerate(cells) if len(cells) == 1 or i not in hidden))
    return "\n".join(lines)


def find_differences(wanted: Outcome, found: Outcome) -> list[str]:
    """Return what is not as it should be, by name: parts of the record, files, the page."""
    if len(found.records) != 1:
        return [f"{len(found.records)} records"]
    (one,), (two,) = wanted.records, found.records
    names = [f"record: {key}" for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    every = sorted(wanted.files.keys() | found.files.keys())
    names += [Path(name).name for name in every if wanted.files.get(name) != found.files.get(name)]
    return names + (["page"] if wanted.page != found.page else [])


def find_torn(folder: Path) -> list[str]:
    """Return what a reader of `folder`, at this very instant, would find damaged or untrue."""
    torn = [
        f"record {problem.file}: {problem.reason}" for problem in read_records(folder / "records", branches=True)[1]
    ]
    page = folder / PAGE
    if page.exists() and page.read_text() != make_page(folder / "records", page)[0]:
        torn.append("page")
    for path in folder.glob(f"runs/*/{FINISHED}"):
        with contextlib.suppress(ValueError):
            json.loads(path.read_bytes())
            continue
        torn.append(FINISHED)
    for path in folder.glob("runs/*/checkpoint"):
        try:
            load_checkpoint(path)
        except UserError:
            torn.append("checkpoint")
    for path in [path for name in (WEIGHTS, MASKS) for path in folder.glob(f"runs/*/{name}")]:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (OSError, SafetensorError):
            torn.append(path.name)
    return torn


@dataclass
class Ending:
    """What became of a run that was killed and restarted until it ended."""

    kills: int  # how many of those asked for were reached
    torn: list[str]  # found between a kill and the restart
    differences: list[str]  # from the undisturbed run
    litter: list[str]
    resumed: int  # restarts that went on from a checkpoint


class Trials:
    """Kills runs, restarts them and compares what they leave with undisturbed runs, made once each."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.folder = nursery, folder
        self.undisturbed: dict[Run, tuple[Outcome, dict[str, int]]] = {}
        self.number = 0

    def reference(self, run: Run) -> tuple[Outcome, dict[str, int]]:
        """Return what an undisturbed run leaves and how many lines each spot has."""
        key = dataclasses.replace(run, folder="", fault="")
        if key not in self.undisturbed:
            folder = self.folder / f"undisturbed{len(self.undisturbed)}"
            answer = self.nursery(dataclasses.replace(key, folder=str(folder), count=True))
            assert answer["status"] == 0, (folder / SAID).read_text()
            self.undisturbed[key] = read_outcome(folder), answer["lines"]
        return self.undisturbed[key]

    def kill(self, run: Run, kills: Sequence[tuple[str, int] | float]) -> Ending:
        """Kill a run at each of `kills`, a (spot, line) or a time in seconds, then let it end; same command always."""
        folder = self.folder / f"run{self.number}"
        self.number += 1
        run = dataclasses.replace(run, folder=str(folder))
        ending = Ending(0, [], [], [], 0)
        for kill in [*kills, None]:
            spot, line = kill if isinstance(kill, tuple) else ("", 0)
            after_s = kill if isinstance(kill, float) else 0.0
            status = self.nursery(dataclasses.replace(run, spot=spot, line=line, after_s=after_s))["status"]
            if status not in (0, -signal.SIGKILL):
                ending.differences.append(f"refused: {(folder / SAID).read_text()}")
                return ending
            ending.resumed += status == 0 and "continuing" in (folder / SAID).read_text()
            ending.kills += status != 0
            ending.torn += find_torn(folder)
            if status == 0 or is_published(folder, not run.parent):
                break
        found = read_outcome(folder)
        ending.litter = found.litter
        ending.differences = find_differences(self.reference(run)[0], found)
        return ending


def draw_kills(lines: dict[str, int], number: int, random: Random) -> list[list[tuple[str, int]]]:
    """Draw instants to kill at: a line of each spot, the others anywhere; every third run is killed a second time."""
    spots = sorted(lines.keys() - {ANYWHERE})
    random.shuffle(spots)
    spots += [ANYWHERE] * (number - len(spots))
    drawn = [[(spot, random.randint(1, lines[spot]))] for spot in spots[:number]]
    for kills in drawn[::3]:
        spot = random.choice([ANYWHERE, "load", "checkpoint!", "export!", "record!", "publish"])
        kills.append((spot, random.randint(1, lines.get(spot, LOADED) // 2)))
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
    for module in (benchmark.runs.checkpoints, benchmark.runs.export, benchmark.runs.checkpoints):
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
    "nothing is swept": replace(benchmark.runs.run, "sweep", lambda folder: None),
}

if __name__ == "__main__":
    serve()
