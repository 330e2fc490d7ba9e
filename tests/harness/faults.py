"""Faults: grids whose processes, disks and files fail in drawn ways, run once more and held to an undisturbed run.

`make faults N=200 SEED=0` plays scenarios (tests/harness/scenarios.py); `python -m tests.harness.faults --seed 0 --only
17` plays one again. Processes are forked from one that has imported everything. Held afterwards: see `judge`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import benchmark.base.stopping
import benchmark.base.system
import benchmark.cli.app
import benchmark.cli.shell
import benchmark.config.cells
import benchmark.config.pages
import benchmark.grids.driver
import benchmark.grids.sweep
import benchmark.networks.build
import benchmark.networks.costs
import benchmark.runs.record
import benchmark.workers.local
import leaderboard.board.build
import leaderboard.paper.markdown
import leaderboard.paper.published
from benchmark.config.grids import Source
from benchmark.runs.checkpoints import FINISHED
from tests.harness.forks import Forks, Nursery, be_reaper, fork, list_children, save_every, serve, warm
from tests.harness.plants import PLANTS
from tests.harness.scenarios import DAMAGE, TWICE, WEATHER, Damage, Round, Scenario, Start, draw_scenario, read_scenario
from tests.harness.troubles import KINDS, Troublemaker
from tests.harness.verdicts import PAGE, Reader, digest, judge

# 2 x 4 steps of a small network; its dropout and optimiser have states that a run that goes on must get back.
PAGE_SETTINGS = (
    "epochs: 2",
    "batch_size: 400",
    "optimizer: adamw",
    "image_size: 16",
    "model: vit_tiny_patch16_224",
    "model_args: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2, proj_drop_rate: 0.2}",
)
ROWS = {
    "set 0 1": "{method: set, seeds: [0, 1], args: {update_every: 2, PAGE}}",
    "set 1": "{method: set, seeds: [1], args: {update_every: 2, PAGE}}",
    "dense": "{method: dense, seeds: [0, 1], args: {PAGE}}",
    "granet 0": "{method: granet, seeds: [0], args: {update_every: 2, PAGE}}",
    "granet 0 1": "{method: granet, seeds: [0, 1], args: {update_every: 2, PAGE}}",
}
# Of two users: three methods, and a control made from the final masks of each run of set and granet.
FILES = {"ours": ("set 0 1", "dense", "granet 0"), "theirs": ("granet 0 1", "set 1")}
HEAD = "title: Faults\ntasks: [digits_resnet20]\nsparsities: [0.8]\ncontrols: [masks]\nrows:\n"
CELL = ["run", "--method", "set", "--task", "digits_resnet20", "--sparsity", "0.8", "--seed", "0"]
CELL += ["--args", shlex.join(["update_every=2", *(part.replace(": ", "=", 1) for part in PAGE_SETTINGS)])]
OPTIONS = ["--records", "records", "--leaderboard", PAGE, "--runs", "runs", "--data", "data", "--device", "cpu"]
# Every kind of fault there is; one that never strikes in many scenarios is a defect of the drawing.
EXPECTED = {
    *KINDS,
    *WEATHER,
    TWICE,
    *(f"{what} {how}" for what, ways in DAMAGE.items() for how in ways),
    *(f"{name} of a {who} from outside" for name in ("kill", "term") for who in ("process", "driver")),
    "kill of a worker from outside",
}
SAVE_EVERY = 2  # steps between two checkpoints
LONGEST_S = 300.0  # that a round may take before it is said to hang
ENDINGS = {0, 1, 2}  # documented: all is done, a run failed, a mistake or a disk that refuses
STOPPED = {130, -signal.SIGTERM}  # by SIGTERM: as by Ctrl-C while it runs, else as every process


@dataclasses.dataclass
class Report:
    """What became of a scenario."""

    faults: list[str]  # in words; none where it passed
    hits: Counter[str]  # what really struck
    took_s: float
    words: str = ""  # the scenario


def prepare() -> None:
    """Import all that runs need, once, and leave out what costs time and has no part in faults."""
    warm()
    save_every(SAVE_EVERY)
    benchmark.grids.sweep.POLL_S = benchmark.grids.driver.LOOK_S = benchmark.base.stopping.LOOK_S = 0.05
    benchmark.workers.local.subprocess = Forks()  # type: ignore[assignment]
    leaderboard.board.build.draw_pictures = lambda store, folder: "no picture"  # no fault is aimed at them
    published = leaderboard.paper.published
    published.load_tables = cache(published.load_tables)
    published.load_tables()
    count, load = benchmark.networks.costs.count_costs, benchmark.config.pages.load_page
    benchmark.networks.build.count_costs = once(count, lambda model, layers, shape: (tuple(layers), shape))
    benchmark.config.cells.load_page = once(load, lambda *asked: json.dumps(asked, sort_keys=True))
    with tempfile.TemporaryDirectory() as folder:
        write_grids(Path(folder))
        for name in FILES:
            Source.ask(Path(folder) / f"{name}.yaml", {}, "", has_gpu=False).grid()


def once(function: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is called once for each key of its arguments: all cells have the same network."""
    known: dict[Any, Any] = {}

    def call(*arguments: Any) -> Any:
        found = key(*arguments)
        if found not in known:
            known[found] = function(*arguments)
        return known[found]

    return call


def write_grids(folder: Path) -> None:
    """Write both users' grid files to a folder."""
    for name, rows in FILES.items():
        lines = [f"  - {ROWS[row].replace('PAGE', ', '.join(PAGE_SETTINGS))}\n" for row in rows]
        (folder / f"{name}.yaml").write_text(HEAD + "".join(lines))


def command_of(start: Start) -> list[str]:
    """Return the command line of a process."""
    if start.command == "cell":
        return [*CELL, *OPTIONS, "--checkpoint-s", "0"]
    jobs = ["--jobs", str(start.jobs)] if start.jobs else []
    return ["sweep", f"{start.command}.yaml", *jobs, *OPTIONS, "--checkpoint-s", "0"]


def live(start: Start, folder: Path, log: Path, plant: str, counts: Path | None = None) -> int:
    """Be a process of a scenario; return its exit status."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(folder)
    sys.argv = ["sparse-bench", *command_of(start)]
    if plant:
        PLANTS[plant]()
    maker = Troublemaker(folder, start.troubles, log.with_suffix(".hits"))
    maker.install()
    try:
        benchmark.cli.app.main()
    except SystemExit as ending:
        if counts is not None:
            touches = {f"touches of {place}": number for place, number in maker.touches.items()}
            counts.write_text(json.dumps({**maker.changes, **touches}))
        return ending.code if isinstance(ending.code, int) else 0
    return 0


class Stage:
    """Where scenarios are played: the undisturbed runs, and one scenario after the other in folders of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        be_reaper()
        self.undisturbed: dict[tuple[str, ...], Path] = {}
        self.counts: dict[str, int] = {}

    def make_reference(self) -> None:
        """Run our grid alone, then theirs in a copy, undisturbed, and count the operations of ours."""
        ours, both = self.root / "ours", self.root / "both"
        ours.mkdir()
        write_grids(ours)
        counts = self.root / "counts.json"
        self.run_undisturbed(Start("ours"), ours, counts)
        shutil.copytree(ours, both)
        self.run_undisturbed(Start("theirs"), both, None)
        self.undisturbed = {("ours",): ours, ("ours", "theirs"): both}
        self.counts = json.loads(counts.read_text())

    def run_undisturbed(self, start: Start, folder: Path, counts: Path | None) -> None:
        """Run a grid for reference."""
        log = self.root / f"{folder.name}.log"
        child = fork(lambda: live(start, folder, log, "", counts))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, log.read_text()

    def play(self, scenario: Scenario, plant: str = "") -> Report:
        """Play a scenario to its end and judge what it leaves; `plant`: a bug of PLANTS in every process."""
        began, used = time.monotonic(), sum(os.times()[2:4])
        play = Play(self, scenario, plant)
        try:
            play.run()
            faults = play.faults + judge(play.folder, self.undisturbed[scenario.grids])
        finally:
            play.clean()
        play.hits["CPU seconds"] += round(sum(os.times()[2:4]) - used)
        return Report(faults, play.hits, time.monotonic() - began)


class Play:
    """One scenario being played."""

    def __init__(self, stage: Stage, scenario: Scenario, plant: str) -> None:
        self.stage, self.scenario, self.plant = stage, scenario, plant
        self.name = f"{scenario.seed}.{scenario.number}"
        self.folder, self.logs = stage.root / f"play.{self.name}", stage.root / f"logs.{self.name}"
        self.faults: list[str] = []
        self.hits: Counter[str] = Counter()
        self.damaged: dict[str, str] = {}
        self.started = 0
        self.statuses: list[int] = []  # of the last round
        for folder in (self.folder, self.logs):
            folder.mkdir()
        write_grids(self.folder)

    def run(self) -> None:
        """Play every round, then run every grid undisturbed, which must succeed."""
        for one in self.scenario.rounds:
            for damage in one.damage:
                self.damage(damage)
            self.run_round(one)
        for name in self.scenario.grids:
            self.run_round(Round((Start(name),)), last=True)

    def clean(self) -> None:
        """Remove the folders of the scenario."""
        for folder in (self.folder, self.logs):
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, start: Start) -> tuple[int, Path]:
        """Start a process; return its number and its log."""
        self.started += 1
        log = self.logs / f"{self.started}.log"
        return fork(lambda: live(start, self.folder, log, self.plant)), log

    def run_round(self, one: Round, last: bool = False) -> None:
        """Run the processes of a round side by side under a reader's eyes, until all have ended."""
        seen = self.logs / "seen.json"
        reader = fork(Reader(self.folder, seen, self.damaged))
        first = one.starts[:1] if one.twice else one.starts  # the others follow when the first holds its cell
        processes = [(start, *self.start(start)) for start in first]
        Watch(self, one, processes).wait()
        os.kill(reader, signal.SIGTERM)
        os.waitpid(reader, 0)
        found, looks = json.loads(seen.read_text())
        self.faults += found
        self.hits["looks of a reader"] += looks
        self.reap()
        for start, _, log in processes:
            self.check_log(start, log)
        if last and any(self.statuses):
            self.faults.append(f"the grid run undisturbed ended with {self.statuses}: {self.tail(log)}")

    def reap(self) -> None:
        """Wait for what a killed process left running."""
        patience = time.monotonic() + LONGEST_S
        while time.monotonic() < patience:
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    time.sleep(0.01)
            except ChildProcessError:
                return
        self.faults.append("a process outlives its driver")

    def check_log(self, start: Start, log: Path) -> None:
        """Look for what no process may say, and count what struck."""
        text = log.read_text() if log.exists() else ""
        if "Traceback" in text or "internal error" in text:
            self.faults.append(f"{start.command} said: {self.tail(log)}")
        hits = log.with_suffix(".hits")
        self.hits.update(hits.read_text().split("\n")[:-1] if hits.exists() else [])

    def tail(self, log: Path) -> str:
        """Return the end of what a process said."""
        return log.read_text()[-1500:]

    def damage(self, damage: Damage) -> None:
        """Damage a file that is there."""
        runs = self.folder / "runs"
        cells = [path for path in sorted(runs.glob("digits*")) if path.is_dir()]
        if damage.what == "lock":
            for path in [folder / name for folder in cells for name in ("lock", "grid.lock")]:
                path.write_text("12345\n")
        elif damage.what == "hidden file":
            # A run whose record is out has no writer that could have left anything.
            begun = [folder for folder in cells if not list((self.folder / "records").glob(f"{folder.name}*.json"))]
            for path in [self.folder / "records" / ".partial-1-ab.tmp", *(f / ".checkpoint.ab" for f in begun)]:
                if path.parent.exists():
                    path.write_text('{"run": "half of it')
        else:
            name = FINISHED if damage.what == "finished record" else "checkpoint"
            paths = sorted(runs.glob(f"*/{name}"))
            if not paths:
                return
            path = paths[int(damage.which * len(paths))]
            path.write_bytes(spoil(path.read_bytes(), damage))
            self.damaged[str(path)] = digest(path)
        self.hits[f"{damage.what} {damage.how}"] += 1


def spoil(content: bytes, damage: Damage) -> bytes:
    """Return a file's content, damaged."""
    place = int(damage.at * len(content))
    if damage.how == "flipped" and content:  # an emptied one may be met again
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    return content[:place] if damage.how == "cut short" else b""


class Watch:
    """Waits for the processes of a round, and lets happen what comes from outside."""

    def __init__(self, play: Play, one: Round, processes: list[tuple[Start, int, Path]]) -> None:
        self.play, self.round, self.processes = play, one, processes
        self.running = {child: start for start, child, _ in processes}
        self.logs = {child: log for _, child, log in processes}
        self.began = time.monotonic()
        self.sent: set[int] = set()
        self.weather_until: float | None = None
        self.paused = False
        play.statuses.clear()

    def wait(self) -> None:
        """Return when all have ended."""
        while self.running:
            for child in list(self.running):
                self.look_at(child)
            now = time.monotonic() - self.began
            if self.weather_until is not None and now > self.weather_until:
                self.end_weather()
            if now > LONGEST_S:
                for child in self.running:
                    self.play.faults.append(f"{self.running[child]} hangs: {self.play.tail(self.logs[child])}")
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                self.running.clear()
            time.sleep(0.003)
        self.end_weather()

    def look_at(self, child: int) -> None:
        """Meet a process that has ended or paused, and send the signal that is due."""
        found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        start = self.running[child]
        if not found:
            due = start.signal and time.monotonic() - self.began > start.after_s
            if due and child not in self.sent:
                self.sent.add(child)
                self.send(child, start)
        elif os.WIFSTOPPED(status):
            self.on_pause(child)
            os.kill(child, signal.SIGCONT)
        else:
            del self.running[child]
            self.check_status(start, os.waitstatus_to_exitcode(status), self.logs[child])

    def send(self, child: int, start: Start) -> None:
        """Send a signal from outside: to a worker where that is meant, and there is one, else to the process."""
        workers = list_children(child) if start.to_worker else []
        name = "worker" if workers else "driver" if start.jobs else "process"
        os.kill(workers[0] if workers else child, signal.SIGKILL if start.signal == "kill" else signal.SIGTERM)
        self.play.hits[f"{start.signal} of a {name} from outside"] += 1

    def check_status(self, start: Start, status: int, log: Path) -> None:
        """Hold an exit status to those that are documented, or to the signal that was sent."""
        self.play.statuses.append(status)
        signals = {start.signal, *(trouble.kind for trouble in start.troubles)}
        killed = {-signal.SIGKILL} if "kill" in signals else set()
        stopped = STOPPED if "term" in signals else set()
        if status not in ENDINGS | killed | stopped:
            self.play.faults.append(f"{start} ended with {status}: {self.play.tail(log)}")

    def on_pause(self, child: int) -> None:
        """Let the weather begin, or the paused cell be started once more."""
        if self.round.twice:
            self.start_twice()
        elif self.round.weather is not None and self.await_starts(child):
            records = self.play.folder / "records"
            records.rename(records.with_name("records.away"))
            self.play.hits[self.round.weather.kind] += 1
            self.weather_until = time.monotonic() - self.began + self.round.weather.for_s

    def await_starts(self, paused: int) -> bool:
        """Wait until every process has looked for its store, and return whether: without any it may begin a new one."""

        def has_looked(child: int) -> bool:
            text = self.logs[child].read_text() if self.logs[child].exists() else ""
            return any(said in text for said in ("checking before the first", "run 1/1", "error: "))

        patience = time.monotonic() + LONGEST_S / 4
        while has_looked(paused) and time.monotonic() < patience:
            if all(map(has_looked, self.running)):
                return True
            time.sleep(0.01)
        return False

    def start_twice(self) -> None:
        """Start the cell that a paused process holds; it must be refused."""
        child, log = self.play.start(Start("cell"))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.play.hits[TWICE] += 1
        if status != 2 or "already running in another process" not in log.read_text():
            self.play.faults.append(f"a cell started twice ended with {status}: {self.play.tail(log)}")
        for start in self.round.starts[1:]:
            child, log = self.play.start(start)
            self.processes.append((start, child, log))
            self.running[child], self.logs[child] = start, log

    def end_weather(self) -> None:
        """Let it be as before."""
        if self.weather_until is None:
            return
        self.weather_until = None
        folder = self.play.folder
        records, away = folder / "records", folder / "records.away"
        if away.exists():
            if not any(away.iterdir()):  # no store yet: whoever started meanwhile may have made one
                away.rmdir() if records.exists() else away.rename(records)
                return
            if records.exists():
                self.play.faults.append(f"records went to another folder: {sorted(p.name for p in records.iterdir())}")
                shutil.rmtree(records)
            away.rename(records)


class Theatre(Nursery):
    """The process that plays scenarios. A context manager."""

    def __init__(self) -> None:
        super().__init__("tests.harness.faults", "--serve")

    def __call__(self, scenario: Scenario | tuple[int, int], plant: str = "") -> Report:
        """Play a scenario, or that of a seed and a number, and return its report."""
        asked = dataclasses.asdict(scenario) if isinstance(scenario, Scenario) else scenario
        answer = self.ask([asked, plant])
        return Report(**{**answer, "hits": Counter(answer["hits"])})


def play_all(root: Path) -> None:
    """Be the process of a Theatre."""
    stage = Stage(root)

    def play(asked: Any) -> dict[str, Any]:
        scenario, plant = asked
        drawn = read_scenario(scenario) if isinstance(scenario, dict) else draw_scenario(*scenario, stage.counts)
        return vars(dataclasses.replace(stage.play(drawn, plant), words=str(drawn)))

    def begin() -> None:
        prepare()
        stage.make_reference()

    serve(play, begin)


def main() -> int:
    """Play scenarios from the command line; return how many failed, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=20, help="scenarios to play")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, action="append", help="play this scenario; may be given several times")
    parser.add_argument("--streams", type=int, default=2, help="scenarios that are played side by side")
    parser.add_argument("--plant", default="", choices=["", *PLANTS], help="a bug to plant")
    parser.add_argument("--serve", action="store_true", help="play what comes from standard input; for tests")
    asked = parser.parse_args()
    if asked.serve:
        with tempfile.TemporaryDirectory(prefix="faults") as root:
            play_all(Path(root))
        return 0
    numbers = asked.only or list(range(asked.count))
    began, passed, hits = time.monotonic(), 0, Counter()

    def play(some: list[int]) -> None:
        nonlocal passed
        with Theatre() as theatre:
            for number in some:
                report = theatre((asked.seed, number), asked.plant)
                hits.update(report.hits)
                passed += not report.faults
                verdict = "FAILED" if report.faults else "passed"
                print(f"scenario {number}: {verdict} in {report.took_s:.1f} s", flush=True)
                if report.faults:
                    print(report.words, *(f"  - {fault}" for fault in report.faults), sep="\n")
                    print(f"  again: python -m tests.harness.faults --seed {asked.seed} --only {number}", flush=True)

    with ThreadPoolExecutor(asked.streams) as pool:
        list(pool.map(play, [numbers[stream :: asked.streams] for stream in range(asked.streams)]))
    print(f"{passed} of {len(numbers)} scenarios passed in {time.monotonic() - began:.0f} s; what struck:")
    for name, times in sorted(hits.items()):
        print(f"  {times:6,}  {name}")
    print(f"never struck: {', '.join(sorted(EXPECTED - hits.keys())) or 'nothing'}")
    return int(passed < len(numbers))


if __name__ == "__main__":
    sys.exit(main())
