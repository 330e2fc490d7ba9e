"""Sweeps and engines: what is refused, how attempts are counted, how workers start, end and are lost."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import benchmark.workers.base
import benchmark.workers.local
from benchmark.base.console import ProgressFile, Reporter
from benchmark.base.errors import UserError
from benchmark.base.files import read_note
from benchmark.config.grids import Grid, Source
from benchmark.grids.board import Board, Tally
from benchmark.grids.driver import Driver
from benchmark.grids.sweep import run_sweep
from benchmark.runs.run import Options
from benchmark.workers import Order, Pool, Status, check_pool, open_workers
from benchmark.workers.attendant import Attendant
from benchmark.workers.base import ENDED, LOST, RUNNING
from benchmark.workers.book import FAILED, FOUND, IMPOSSIBLE, KINDS, MADE, Book, End, LostError, opening
from benchmark.workers.local import Local
from tests.harness.benches import ask


def make_book(folder: Path, retries: int = 2, worker: int = 1) -> Book:
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    return Book(folder, retries, worker)


# ------------------------------------------------------------------------------------------------------- bad input


def test_everything_wrong_with_a_pool_is_told_at_once_before_anything_is_written():
    with pytest.raises(UserError) as caught:
        check_pool(Pool(jobs="0", per_gpu=0, retries=-1, arguments="cpus=2"))
    for part in (
        "JOBS must be",
        "got '0'",
        "PER_GPU must be",
        "RETRIES must be",
        "local workers have no setting 'cpus'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        *((Pool(jobs=jobs), "JOBS must be a whole number from 1, or auto") for jobs in ("-1", "1.5", "", "²")),
        (Pool("slrum"), r"unknown place 'slrum': did you mean 'slurm'\? available: local, ray, slurm"),
        (Pool(per_gpu=2), "PER_GPU=2 needs a GPU"),
        (
            Pool("slurm", arguments="partitoin=gpu"),
            r"no setting 'partitoin': did you mean 'partition'\?; they have part",
        ),
        (Pool("slurm", arguments="cpus=many"), "cpus must be a int, got 'many'"),
        (Pool("slurm"), "there is no srun here"),
        (Pool("slurm", "auto", arguments="cluster=local"), "JOBS=auto: a queue has no number"),
        (Pool("slurm", arguments="cluster=loca"), "cluster must be slurm, or local"),
        (Pool("slurm", per_gpu=2, arguments="cluster=local"), "PER_GPU=2 needs a GPU"),
        (Pool("slurm", arguments="cluster=local gpus=4"), "gpus must be 0 or 1, .* got 4: ask for more jobs"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_with_the_way_out(pool, message, monkeypatch):
    if pool.where == "slurm":
        pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=message):
        check_pool(pool)
        open_workers(pool, "cpu" if pool.where == "local" else "auto").capacity()


def test_no_more_workers_share_a_gpu_than_were_allowed(monkeypatch):
    monkeypatch.setattr(benchmark.workers.local, "choose_device", torch.device)
    monkeypatch.setattr(benchmark.workers.local, "list_gpus", lambda _: ["0", "1"])
    for jobs, per_gpu in (("auto", 1), ("2", 1), ("4", 2), ("1", 2)):
        open_workers(Pool(jobs=jobs, per_gpu=per_gpu), "cuda")
    with pytest.raises(UserError, match="JOBS=5 is more than PER_GPU=2 leaves room for on 2 GPUs: give PER_GPU=3"):
        open_workers(Pool(jobs="5", per_gpu=2), "cuda")
    with pytest.raises(UserError, match="PER_GPU=2 is for several workers, and JOBS=1 runs one: give JOBS=auto"):
        run_sweep(None, Options(torch.device("cpu")), Pool(per_gpu=2), "cpu", Path(), None, print)


def test_a_cluster_is_asked_for_gpus_by_its_settings_and_not_by_this_machine():
    slurm, ray = Pool("slurm"), Pool("ray")
    asked = [(Pool("slurm", arguments="gpus=1"), "auto"), (slurm, "cuda"), (slurm, "auto"), (ray, "auto"), (ray, "cpu")]
    for here in (False, True):
        assert [pool.has_gpu(device, here) for pool, device in asked] == [True, True, False, here, False]
    assert Source.ask(None, {"METHOD": "set"}, "", True).lists["TASK"] == "cifar10_vgg19"


def test_a_sweep_says_what_was_chosen_for_it_and_a_plan_that_cannot_be_made_fails(tmp_path):
    everything = Source.ask(None, {"METHOD": "all", "SPARSITY": "0.9"}, "", False)
    assert "do not take SPARSITY=0.9: sr_ste" in everything.left_out()
    assert Source.ask(None, {"METHOD": "set"}, "", False).left_out() == ""
    plan = ["sweep", "--method", "dense", "--plan", "--data", str(tmp_path), "--records", str(tmp_path / "records")]
    chosen, fails = ask(*plan), ask(*plan, "--task", "folder_resnet20")
    assert "TASK=auto: digits_resnet20" in chosen.output and chosen.exit_code == 0
    assert "TASK=auto" not in fails.output and fails.exit_code == 1


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_package_is_absent_says_what_to_install(engine, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    with pytest.raises(UserError, match=rf"need the package {package}.*pip install .*\[workers\]"):
        check_pool(Pool(engine))


def test_a_ray_address_where_nobody_listens_is_refused_in_seconds():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(UserError, match=rf"no Ray cluster at address=127.0.0.1:{port}.*ray start --head"):
            open_workers(Pool("ray", arguments=f"address={address}"), "cpu")
    with pytest.raises(UserError, match="address must be auto, host:port or ray://host:port, got 'nowhere'"):
        open_workers(Pool("ray", arguments="address=nowhere"), "cpu")
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_ray_address_that_answers_and_is_no_cluster_is_refused_in_under_30_seconds():
    pytest.importorskip("ray")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        began = time.monotonic()
        with pytest.raises(UserError, match="is not a healthy Ray cluster"):
            open_workers(Pool("ray", arguments=f"address=127.0.0.1:{mute.getsockname()[1]}"), "cpu")
    assert time.monotonic() - began < 30


# ------------------------------------------------------------------------------------------------------- attempts


vanished = []


def vanish(book: Book, run: Path) -> None:
    """Begin the cell and never say how it ended, as a process does that is killed."""
    attempt = book.counting("cell", run)
    attempt.__enter__()
    vanished.append(attempt)  # or Python would end it


@pytest.fixture(autouse=True)
def let_go():
    """Let Python end what vanished after a test, not when it exits."""
    yield
    vanished.clear()


def test_a_cell_is_begun_once_more_than_it_may_be_retried_whichever_workers_begin_it(tmp_path):
    books = [make_book(tmp_path / "sweep", retries=2, worker=number) for number in (1, 2)]
    run = tmp_path / "run"
    run.mkdir()
    for number in range(3):
        vanish(books[number % 2], run)
    with pytest.raises(LostError, match=r"lost 3 times without getting any further.*worker-1\.log"):
        books[1].counting("cell", run).__enter__()


def test_an_attempt_that_got_further_than_the_one_before_does_not_count(tmp_path):
    book, run = make_book(tmp_path / "sweep", retries=0), tmp_path / "run"
    run.mkdir()
    for moment in range(1, 6):
        vanish(book, run)
        (run / "checkpoint").touch()
        os.utime(run / "checkpoint", ns=(moment, moment))
    vanish(book, run)
    with pytest.raises(LostError):
        book.counting("cell", run).__enter__()


def test_a_stopped_or_refused_attempt_does_not_count_and_a_failed_one_does(tmp_path):
    book, run = make_book(tmp_path / "sweep", retries=1), tmp_path / "run"
    run.mkdir()
    for error in (KeyboardInterrupt, SystemExit, UserError, KeyboardInterrupt):
        with pytest.raises(error), book.counting("cell", run):
            raise error
    for may_retry in (True, False):
        with pytest.raises(ValueError), book.counting("cell", run):
            raise ValueError
        assert book.may_retry("cell") is may_retry
    assert not book.may_retry("a cell that was never begun")


def test_another_sweep_counts_anew_and_leaves_no_notes_behind(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):
        with opening(tmp_path / "runs", 0, keep=False) as book:
            vanish(book, run)
            with pytest.raises(LostError):
                book.counting("cell", run).__enter__()
        assert not book.folder.exists()
    with opening(tmp_path / "runs", 0, keep=True) as book:
        book.log(1).write_text("said")
    assert [path.name for path in book.folder.iterdir()] == ["worker-1.log"]


def test_what_became_of_a_cell_is_seen_by_all_and_ends_its_attempts(tmp_path):
    first, second = (make_book(tmp_path / "sweep", worker=number) for number in (1, 2))
    assert second.ended("cell") is None
    vanish(first, tmp_path)
    assert second.was_begun("cell")
    first.end("cell", End(MADE, seconds=2.5, accuracy_pct=90.0))
    assert second.ended("cell") == End(MADE, "", 2.5, 90.0, False, worker=1)
    assert not second.was_begun("cell")


# ------------------------------------------------------------------------------------------------------- the sum


def small_grid(*seeds: int) -> Grid:
    cells = Source("command line", None, {"METHOD": "set", "SPARSITY": "0.9", "TASK": "digits_resnet20",
                   "SEED": ",".join(map(str, seeds))}).grid().items  # fmt: skip
    return Grid("a file", "A title", cells)


def test_the_time_left_follows_from_cells_made_and_from_those_in_training():
    """Two made in 10 and 30 s, so 20 s each; four left, of which one is three quarters done: 65 s for one worker."""
    tally = Tally(small_grid(*range(6)))
    names = list(tally.items)
    assert tally.time_left() == ""
    tally.ends[names[0]], tally.ends[names[1]] = End(MADE, seconds=10), End(MADE, seconds=30)
    assert tally.seconds_left() == (80, True)
    progress = {names[2]: {"step": 75, "first_step": 0, "steps": 100, "began": 0.0, "at": 99.0}}
    assert tally.seconds_left(1, progress) == (65, True)
    assert tally.seconds_left(2, progress) == (32.5, True)
    assert tally.seconds_left(100, progress) == (20, True)  # no cell is divided
    assert tally.time_left(2, progress) == ", about 32 s"
    promised = {names[2]: {"step": 75, "first_step": 50, "steps": 100, "began": 0.0, "at": 10.0}}
    tally.ends.clear()
    assert tally.seconds_left(1, promised) == (5 * 40 + 10, True)  # 25 steps in 10 s


def test_the_sum_counts_every_cell_once_and_groups_failures_by_their_reason(tmp_path):
    tally = Tally(small_grid(*range(6)))
    names = list(tally.items)
    ends = [End(MADE), End(FOUND), End(IMPOSSIBLE, "why not"), End(FAILED, "no disk"), End(FAILED, "no disk")]
    tally.ends.update(zip(names, ends, strict=False))
    said, told = [], []
    assert tally.sum_up(tmp_path, said.append, told.append) == 3
    assert said[0] == "A title: 1 made, 1 finished already, 1 without a run to be made from, 2 failed, 1 not run"
    assert told == [f"failed: {names[3]}, {names[4]}: no disk"]


# ------------------------------------------------------------------------------------------------------- the lists


def test_every_fault_of_the_lists_is_told_at_once(tmp_path):
    with pytest.raises(UserError, match="nothing to sweep: name a grid file"):
        Source.ask(None, {"METHOD": ""}, "", False)
    with pytest.raises(UserError, match="ARGS go into the rows of a grid file"):
        Source.ask(tmp_path / "grid.yaml", {}, "epochs=1", False)
    lists = {"METHOD": "sett,granet", "SPARSITY": "90", "TASK": "digits", "SEED": "x"}
    with pytest.raises(UserError) as caught:
        Source.ask(None, lists, "epochz=1", False).grid()
    head, *faults = str(caught.value).splitlines()
    assert "5 faults, and nothing was run" in head
    for fault, part in zip(faults, ("'sett'", "got 90", "page 'digits'", "SEED must be", "'epochz'"), strict=True):
        assert part in fault


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_is_written_at_most_once_a_second_and_a_failure_is_ignored(tmp_path, monkeypatch):
    clock, written = [100.0], []
    monkeypatch.setattr("benchmark.base.console.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("benchmark.base.console.write_note", lambda path, content: written.append(content))
    file = ProgressFile(tmp_path / "p.json", epochs=4, steps=100, first_step=10)
    for step in range(11, 60):
        clock[0] += 0.125
        file.move(step)
    assert [content["step"] for content in written] == [10, 18, 26, 34, 42, 50, 58]
    assert [content["epoch"] for content in written] == [1, 1, 2, 2, 2, 3, 3]

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("benchmark.base.console.write_note", refuse)
    clock[0] += 2
    file.move(99)


def test_a_reporter_writes_figures_that_it_was_given_and_asks_for_none(tmp_path):
    path = tmp_path / "p.json"
    row = {"epoch": 1, "loss": 1.0, "validation_acc_pct": None, "test_acc_pct": 71.5, "density": 1, "train_share": 1}
    with Reporter(Console(file=io.StringIO()), "a run", 2, 10, 0, path) as reporter:
        assert reporter.step() is False
        reporter.epoch(row, 1234.0)
        reporter.progress.due = 0.0
        reporter.step()
    note = read_note(path)
    assert (note["step"], note["steps"], note["accuracy_pct"], note["images_per_s"]) == (2, 20, 71.5, 1234.0)


# ------------------------------------------------------------------------------------------------------- workers


class Commands(Order):
    """An order whose workers run a piece of Python instead of a sweep."""

    def __init__(self, book: Book, code: str, environment: dict[str, str] | None = None) -> None:
        super().__init__(book, str(Path.cwd()), environment or {})
        object.__setattr__(self, "code", code)

    def command(self, number: int) -> list[str]:
        return [sys.executable, "-c", self.code, str(number)]


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_local_workers_are_told_apart_by_how_they_end_and_share_gpus_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    engine = Local(benchmark.workers.local.list_gpus(), per_gpu=2)
    assert engine.capacity() == 4
    code = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    order = Commands(make_book(tmp_path), code)
    engine.start(order, [1, 2, 3, 4])
    wait_for(lambda: all(order.log(number).read_text() for number in (1, 2, 3, 4)))
    assert [order.log(number).read_text().strip() for number in (1, 2, 3, 4)] == ["4", "7", "4", "7"]
    engine.workers[2].kill()
    engine.workers[4].stdin.close()  # as when whoever started it is gone
    wait_for(lambda: engine.poll()[2].state != RUNNING and engine.poll()[4].state != RUNNING)
    assert engine.poll()[2] == Status(LOST, "killed by SIGKILL") and engine.poll()[4] == Status(ENDED)
    engine.start(order, [5])
    assert engine.places[5] == "7"  # the card that lost its workers
    engine.stop(5)
    assert not [number for number, status in engine.poll().items() if status.state == RUNNING]


def test_one_thread_is_a_worker_s_share_of_a_cpu_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    from benchmark.grids.sweep import write_order
    from benchmark.runs.run import Options

    source = Source.ask(None, {"METHOD": "set"}, "", False)
    options = Options(torch.device("cpu"))
    for asked, expected in ((None, "1"), ("3", "3")):
        monkeypatch.delenv("OMP_NUM_THREADS") if asked is None else monkeypatch.setenv("OMP_NUM_THREADS", asked)
        order = write_order(make_book(tmp_path), source, options, "cpu", tmp_path, False)
        assert order.environment["OMP_NUM_THREADS"] == expected


STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
)


def test_a_worker_that_does_not_end_in_time_is_killed(tmp_path):
    engine, order = Local([], 1), Commands(make_book(tmp_path), STUBBORN)
    engine.start(order, [1])
    wait_for(lambda: order.log(1).read_text())
    engine.stop(0.2)
    assert engine.poll()[1] == Status(LOST, "killed by SIGKILL")


def attend(folder: Path, code: str) -> Attendant:
    log, stop = str(folder / "log"), str(folder / "stop")
    return Attendant([[sys.executable, "-c", code]], [log], str(folder), {"WORD": "x"}, stop, 10.0)


def test_an_attendant_fails_with_its_worker_unless_the_sweep_was_stopped(tmp_path):
    attend(tmp_path, "import os; print(os.environ['WORD'])")()
    assert (tmp_path / "log").read_text() == "x\n"
    job = attend(tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match="status -9"):
        job()
    (tmp_path / "stop").touch()
    job()


def test_a_pre_empted_attendant_lets_its_worker_end_and_can_be_queued_again(tmp_path):
    submitit = pytest.importorskip("submitit")
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(130)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    job = attend(tmp_path, code)
    job.start(job.commands[0], job.logs[0])
    wait_for(lambda: (tmp_path / "log").read_text() == "up\n")
    again = job.checkpoint()
    assert (tmp_path / "log").read_text() == "up\nsaved\n"
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.function is job and job.workers == []


PRE_EMPTED = """
import importlib.util, os, signal, sys, threading
spec = importlib.util.spec_from_file_location("attendant", sys.argv[1])
attendant = sys.modules["attendant"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(attendant)
job = attendant.Attendant([[sys.executable, "-c", "import time; time.sleep(60)"]], ["log"], ".", {}, "stop", 10.0)
signal.signal(signal.SIGUSR2, lambda *_: (job.checkpoint(), print("queued again", flush=True), os._exit(0)))
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR2)).start()
job()
"""


def test_an_attendant_that_is_pre_empted_while_it_waits_does_not_wait_for_itself(tmp_path):
    """The signal's handler runs in the thread that waits: a lock that this thread holds would never be let go."""
    pytest.importorskip("submitit")
    path = str(Path(benchmark.workers.base.__file__).with_name("attendant.py"))
    command = [sys.executable, "-c", PRE_EMPTED, path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.stdout == "queued again\n", done.stderr


# ------------------------------------------------------------------------------------------------------- the driver


class Script:
    """An engine whose workers do, when they are looked at, what a list says: `die`, `work`, `end`."""

    def __init__(self, book: Book, names: list[str], plan: dict[int, str]) -> None:
        self.book, self.names, self.plan = book, names, plan
        self.started: list[int] = []
        self.stopped = 0

    def capacity(self) -> int:
        return 2

    def start(self, order, numbers) -> None:
        self.started += numbers

    def poll(self) -> dict[int, Status]:
        found = {}
        for number in self.started:
            do = self.plan.get(number, "work")
            if do == "die in a cell":
                (self.book.folder / f"worker-{number}.began").touch()
            elif do == "work" and self.names:
                self.book.end(self.names.pop(), End(MADE, seconds=1.0, accuracy_pct=50.0))
            found[number] = Status(LOST, "killed by SIGKILL") if do.startswith("die") else Status(RUNNING)
        return found

    def stop(self, grace_s: float) -> None:
        self.stopped += 1


def run_driver(tmp_path: Path, plan: dict[int, str], cells: int, monkeypatch) -> tuple[Script, Tally, str]:
    monkeypatch.setattr("benchmark.grids.driver.LOOK_S", 0.0)
    tally, out = Tally(small_grid(*range(cells))), io.StringIO()
    book = make_book(tmp_path, retries=1, worker=0)
    engine = Script(make_book(tmp_path, worker=9), list(tally.items), plan)
    with Board(Console(file=out, width=200), tally, 2) as board:
        Driver(book, Order(book, ".", {}), engine, tally, board, 2).run()
    return engine, tally, out.getvalue()


def test_the_driver_replaces_lost_workers_and_tells_every_cell_once(tmp_path, monkeypatch):
    engine, tally, shown = run_driver(tmp_path, {1: "die in a cell", 2: "die", 3: "die in a cell"}, 3, monkeypatch)
    assert engine.started == [1, 2, 3, 4, 5] and engine.stopped == 1
    assert not tally.left
    assert re.findall(r"(\d)/3 done: set at sparsity 0.9", shown) == ["1", "2", "3"]
    assert "worker 1 was lost (killed by SIGKILL)\n" in shown
    assert "worker 2 was lost (killed by SIGKILL): it left no log" in shown


def test_workers_that_never_get_to_work_are_not_replaced_for_ever(tmp_path, monkeypatch):
    """With one retry: two at first, one in place of the first, and then no more."""
    engine, tally, _ = run_driver(tmp_path, dict.fromkeys(range(1, 99), "die"), 3, monkeypatch)
    assert engine.started == [1, 2, 3] and engine.stopped == 1
    assert len(tally.left) == 3
    said: list[str] = []
    assert tally.sum_up(tmp_path / "records", said.append, said.append) == 3
    assert "3 not run" in said[0]


def test_the_table_of_a_terminal_has_the_cells_in_training_and_counts_the_others(tmp_path):
    tally = Tally(small_grid(*range(5)))
    names = list(tally.items)
    tally.ends[names[0]], tally.ends[names[1]] = End(MADE, seconds=20), End(FAILED, "why")
    facts = {"epoch": 3, "epochs": 4, "step": 50, "first_step": 0, "steps": 100, "began": 0.0, "at": 1.0}
    progress = {names[2]: {**facts, "images_per_s": 1234.5, "accuracy_pct": 71.5}}
    out = io.StringIO()
    board = Board(Console(file=out, width=160, force_terminal=True), tally, 2)
    Console(file=out, width=160).print(board.draw(progress, 1, 1))
    shown = out.getvalue()
    assert re.search(r"set at sparsity 0.9, seed 2 on digits_resnet20\s+3/4\s+50%\s+1,234\s+71.50 %", shown)
    assert "1 done, 1 running, 2 waiting, 1 failed; 50% of all, about 25 s left; 1 of 2 workers, 1 queued" in shown
