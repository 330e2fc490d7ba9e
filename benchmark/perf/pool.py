"""P11: the throughput of a pool of one-thread processes on this machine's cores, and the cost of driving it.

The pool is measured in wall time, so other load on the machine counts and is stated; processor time shows how much the
processes slow each other down.
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmark.base import BOOT, ROOT
from benchmark.base.console import EVERY_S, ProgressFile
from benchmark.base.files import write_note
from benchmark.base.timing import clock, time_in_turn
from benchmark.config.grids import expand_grid
from benchmark.config.plugins import built_in_names
from benchmark.grids.board import Board, Tally
from benchmark.grids.driver import LOOK_S, Driver
from benchmark.perf.goals import Goal
from benchmark.perf.peers import R20, backward, make_batch, make_model, make_sgd, sparsify
from benchmark.workers import Order, Status
from benchmark.workers.base import RUNNING
from benchmark.workers.book import KINDS, Book
from benchmark.workers.local import Local, count_cores

CELLS, WORKERS = 396, 8  # the runs of the GraNet paper's Table 2; the GPUs of a machine
START = BOOT.partition("from ")[0] + "from benchmark.perf.pool import train_on_demand; train_on_demand()"


def measure(quick: bool) -> list[Goal]:
    """Return the pool's throughput relative to one process, and the shares of a core of the driver and the notes."""
    return [*measure_pool(3 if quick else 7, 3.0 if quick else 6.0), *measure_driver()]


def train_on_demand() -> None:
    """Train ResNet-20 for as many seconds as each line of stdin says; print steps per wall and processor second.

    The first line comes unasked, after one step.
    """
    import torch

    torch.set_num_threads(1)
    model, batch = make_model(R20), make_batch(R20, R20.batch)
    maskset, optimizer = sparsify(model, 0.9), make_sgd(model, True)
    for line in itertools.chain(["0"], sys.stdin):
        began, busy, steps = time.monotonic(), clock(), 0
        while steps == 0 or time.monotonic() - began < float(line):
            backward(model, *batch)
            maskset.mask_gradients()
            optimizer.step()
            steps += 1
        print(steps / (time.monotonic() - began), steps / (clock() - busy), flush=True)


def measure_pool(rounds: int, seconds: float) -> list[Goal]:
    """Train in one process, then in two at once, round after round; return the median ratios of steps per second."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, str(ROOT)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    load = os.getloadavg()[0]
    try:
        for process in processes:  # the first step of each warms up
            listen(process)
        alone, both = [], []
        for _ in range(rounds):
            alone.append(train(processes[:1], seconds))
            both.append(train(processes, seconds))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    by_wall, by_processor = (
        statistics.median(two[kind] / one[kind] for one, two in zip(alone, both, strict=True)) for kind in (0, 1)
    )
    steps_per_s = round(statistics.median(one[0] for one in alone), 2)
    details = {"alone_steps_per_s": steps_per_s, "load_before": load, "cores": count_cores()}
    what = "ResNet-20: two one-thread processes / one"
    return [
        Goal("P11", f"{what}, on {count_cores()} cores at load {load:.1f}", by_wall, ">=", 1.6, details=details),
        Goal("P11", f"{what}, by processor time", by_processor, ""),
    ]


def train(processes: list[subprocess.Popen[str]], seconds: float) -> tuple[float, float]:
    """Train in all processes at once; return the sums of their steps per second of wall and processor time."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
    said = [listen(process) for process in processes]
    return sum(wall for wall, _ in said), sum(processor for _, processor in said)


def listen(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return the next figures of a process."""
    assert process.stdout is not None
    wall, processor = process.stdout.readline().split()
    return float(wall), float(processor)


class Resting(Local):
    """Local workers that always run, so that only polling them is timed."""

    def poll(self) -> dict[int, Status]:
        """Return that all workers run."""
        return {number: Status(RUNNING) for number in range(1, WORKERS + 1)}


def measure_driver() -> list[Goal]:
    """Time one poll of a large grid by the driver, and one note of a worker, as shares of the time between two."""
    content = {
        "tasks": ["digits_resnet20"],
        "sparsities": [0.9],
        "seeds": list(range(CELLS)),
        "rows": [{"method": built_in_names()[0]}],
    }
    tally = Tally(expand_grid(Path("perf.yaml"), content))
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder), 2)
        for kind in KINDS:
            (book.folder / kind).mkdir()
        facts = {"step": 5, "first_step": 0, "steps": 10, "epoch": 1, "epochs": 2, "began": 0.0, "at": 9.0}
        for name in list(tally.items)[:WORKERS]:
            write_note(book.path("progress", name), facts)
        board = Board(Console(file=io.StringIO(), width=160, force_terminal=True), tally, WORKERS)
        driver = Driver(book, Order(book, folder, {}), Resting([], 1), tally, board, WORKERS)
        driver.started = WORKERS
        with board:
            looks = time_in_turn({"look": lambda: driver.watch(driver.workers.poll())}, 20)["look"]
        file = ProgressFile(book.path("progress", "run"), 10, 100, 0)

        def note() -> None:
            file.due = 0.0
            file.move(1)

        notes = time_in_turn({"note": note}, 50)["note"]
    look, write = statistics.median(looks), statistics.median(notes)
    what = f"driver with a live table, {CELLS} cells, {WORKERS} in training: share of a core"
    return [
        Goal("P11", what, 100 * look / LOOK_S, "<=", 1.0, "%", {"look_ms": round(1000 * look, 2)}),
        Goal("P11", "a worker's notes: share of its time", 100 * write / EVERY_S, "<=", 1.0, "%"),
    ]
