"""Sweeps on workers, for real: the same records as alone, whoever is killed, and nobody left behind."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmark.base.files import read_note
from benchmark.grids.driver import Driver
from benchmark.workers import Pool
from benchmark.workers.base import LOST, Status
from benchmark.workers.book import SWEEPS
from tests.harness.benches import BROKEN, DENSE, HEAD, SET, Grid, start

LONG = "  - {method: set, args: {epochs: 4, update_every: 8}}\n"

# Takes its process down where the broken method raises: at the first update of a real network.
KILLER = "import os\nimport signal\n" + BROKEN.replace("Broken", "Killer").replace(
    'raise RuntimeError("too many layers")', "os.kill(os.getpid(), signal.SIGKILL)"
)


@pytest.fixture
def grid(tmp_path) -> Grid:
    (tmp_path / "pool").mkdir()
    return Grid(tmp_path / "pool")


def essence(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what must be the same bit for bit, by run."""
    keys = ("masks_sha256", "history", "accuracy_pct", "macs", "density", "layers")
    return {record["run"]: {key: record[key] for key in keys} for record in records}


def logs(folder: Path) -> dict[int, str]:
    found = sorted(folder.glob(f"runs/{SWEEPS}/*/worker-*.log"))
    return {int(re.search(r"worker-(\d+)", path.name)[1]): path.read_text() for path in found}


def wait_for(condition, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def worker_pids(folder: Path) -> list[int]:
    return [int(pid) for text in logs(folder).values() for pid in re.findall(r"process (\d+)", text)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_alone(folder: Path, text: str) -> dict[str, Any]:
    folder.mkdir()
    alone = Grid(folder)
    assert alone(text) == 0
    return essence(alone.records())


def test_a_pool_leaves_the_records_of_a_run_alone_although_a_worker_is_killed_in_a_cell(grid, tmp_path):
    """Also: the cell of the killed one goes on from its checkpoint, and each worker has one thread."""
    text = HEAD + LONG + DENSE
    alone = run_alone(tmp_path / "alone", text)

    def kill() -> None:
        wait_for(lambda: list(grid.folder.glob("runs/*.set.*/checkpoint")))
        (attempt,) = grid.folder.glob(f"runs/{SWEEPS}/*/attempt/*.set.*.json")
        said = logs(grid.folder)[read_note(attempt)["worker"]]
        os.kill(int(re.search(r"process (\d+)", said)[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    grid.pool, grid.checkpoint_s = Pool(jobs="2"), 0.3
    failed = grid(text)
    killer.join()
    assert failed == 0, grid.shown
    assert essence(grid.records()) == alone
    assert re.search(r"worker \d was lost \(killed by SIGKILL\)", grid.shown)
    assert any("continuing digits_resnet20.set" in said for said in logs(grid.folder).values())
    assert "2/2 done" in grid.shown and "none left" in grid.shown
    assert not [pid for pid in worker_pids(grid.folder) if is_alive(pid)]
    threads = re.findall(r"process \d+, (\d+) thread", "".join(logs(grid.folder).values()))
    assert len(threads) >= 2 and set(threads) == {"1"}  # one that came when all was done may not have got to say so


def test_workers_that_are_lost_together_are_replaced_together(tmp_path):
    """Four of one job, which share its GPU, get one job again, not four."""
    for number in range(1, 5):
        (tmp_path / f"worker-{number}.began").touch()
    book = mock.Mock(folder=tmp_path, retries=2)
    driver = Driver(book, mock.Mock(), mock.Mock(), mock.Mock(items={}, left=1), mock.Mock(), jobs=4)
    driver.started = 4
    states = {number: Status(LOST, "the node failed") for number in range(1, 5)}
    for _ in range(2):  # looked at twice, lost once
        assert driver.watch(states)
    driver.workers.start.assert_called_once_with(driver.order, range(5, 9))


@pytest.mark.slow
def test_a_cell_that_always_takes_its_process_down_fails_after_the_bound_and_the_rest_is_done(grid):
    plugin = grid.folder / "killer.py"
    plugin.write_text(KILLER)
    grid.pool, grid.checkpoint_s = Pool(jobs="2", retries=1), 3600.0  # or attempts get further, and do not count
    assert grid(HEAD + f"  - {{method: {plugin}, args: {{epochs: 1}}}}\n" + DENSE + SET) == 1
    assert sorted(record["method"]["name"] for record in grid.records()) == ["dense", "set"]
    assert "its process was lost 2 times without getting any further" in grid.said[-1]
    assert len(re.findall(r"worker \d was lost", grid.shown)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_driver_leaves_no_worker_and_the_same_command_goes_on_to_the_same_records(grid, tmp_path, how):
    # So long that the first run still trains when the second begins, on a busy machine, too.
    text = HEAD.replace("seeds: [0]", "seeds: [0, 1]") + LONG.replace("epochs: 4", "epochs: 16")
    alone = run_alone(tmp_path / "alone", text)
    grid.write(text)
    driver = start(grid.folder, "sweep", "grid.yaml", "--jobs", "2", "--checkpoint-s", "3600")
    folder = grid.folder / "runs" / SWEEPS
    wait_for(lambda: len(list(folder.glob("*/progress/*.json"))) == 2)
    pids = worker_pids(grid.folder)
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    driver.send_signal(how)
    said = driver.communicate(timeout=300)[0]
    if how is signal.SIGKILL:
        assert driver.returncode == -signal.SIGKILL
    else:
        assert driver.returncode == 130
        assert "the same command continues" in said
        assert not [pid for pid in pids if is_alive(pid)]
    wait_for(lambda: not [pid for pid in pids if is_alive(pid)], 60)
    assert len(list(grid.folder.glob("runs/*/checkpoint"))) == 2  # though none was due for an hour
    again = start(grid.folder, "sweep", "grid.yaml", "--jobs", "2")
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert essence(grid.records()) == alone
    assert sum("continuing" in text for text in logs(grid.folder).values()) == 2


ENGINES = [("ray", "ray", ""), ("slurm", "submitit", "cluster=local")]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "package", "arguments"), ENGINES)
def test_each_engine_finishes_a_grid_with_the_records_of_a_run_alone(engine, package, arguments, grid, tmp_path):
    pytest.importorskip(package)
    text = HEAD + SET + DENSE + "controls: [densities]\n"
    alone = run_alone(tmp_path / "alone", text)
    grid.pool = Pool(engine, "2", arguments=arguments)
    assert grid(text) == 0, grid.shown
    assert essence(grid.records()) == alone
    assert "Small: 3 made" in grid.shown
    assert not [pid for pid in worker_pids(grid.folder) if is_alive(pid)]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "package", "arguments"), ENGINES)
def test_each_engine_goes_on_after_a_worker_was_killed(engine, package, arguments, grid):
    pytest.importorskip(package)
    grid.pool, grid.checkpoint_s = Pool(engine, "1", arguments=arguments), 0.3

    def kill() -> None:
        wait_for(lambda: list(grid.folder.glob("runs/*.set.*/checkpoint")))
        os.kill(worker_pids(grid.folder)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert grid(HEAD + LONG) == 0, grid.shown
    killer.join()
    assert "continuing digits_resnet20.set" in "".join(logs(grid.folder).values())


@pytest.mark.slow
def test_a_pre_empted_job_saves_a_checkpoint_and_goes_on_when_it_is_queued_again(grid, monkeypatch):
    pytest.importorskip("submitit")
    from benchmark.workers.slurm import Slurm

    grid.pool, grid.checkpoint_s = Pool("slurm", "1", arguments="cluster=local"), 3600.0
    begun: list[Any] = []
    start_jobs = Slurm.start

    def note(engine: Slurm, *rest: Any) -> None:
        start_jobs(engine, *rest)
        begun.append(engine)

    monkeypatch.setattr(Slurm, "start", note)

    def pre_empt() -> None:
        wait_for(lambda: list(grid.folder.glob(f"runs/{SWEEPS}/*/progress/*.json")))
        task = int(wait_for(lambda: children(begun[0].jobs[0][1]._process.pid))[0])
        os.kill(task, signal.SIGUSR2)

    stopper = threading.Thread(target=pre_empt)
    stopper.start()
    assert grid(HEAD + LONG) == 0, grid.shown
    stopper.join()
    assert "was lost" not in grid.shown
    (said,) = logs(grid.folder).values()
    assert said.index("stopped") < said.index("continuing digits_resnet20.set")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
