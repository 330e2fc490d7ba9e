"""Local workers: processes of this machine, one thread each on a CPU, sharing the GPUs where there are some."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmark.base.errors import UserError
from benchmark.base.stopping import name_signal
from benchmark.base.system import choose_device
from benchmark.workers.base import ENDED, LOST, RUNNING, VISIBLE, Order, Pool, Status
from leaderboard.tables.sections import amount

NEEDS = ""
SETTINGS: dict[str, Callable[[str], Any]] = {}
POLL_S = 0.05
CUDA = torch.device("cuda")


def open_workers(pool: Pool, device: str) -> Local:
    """Return the workers. Raises UserError for PER_GPU without a GPU, and for more workers than it allows."""
    chosen = choose_device(device)
    gpus = list_gpus(chosen) if chosen.type != "cpu" else []
    if pool.per_gpu > 1 and not gpus:
        raise UserError(
            f"PER_GPU={pool.per_gpu} needs a GPU, and the runs are on the CPU: leave it out, JOBS= is enough"
        )
    if gpus and pool.jobs != "auto" and int(pool.jobs) > len(gpus) * pool.per_gpu:
        each = -(-int(pool.jobs) // len(gpus))
        raise UserError(
            f"JOBS={pool.jobs} is more than PER_GPU={pool.per_gpu} leaves room for on {amount(len(gpus), 'GPU')}: give "
            f"PER_GPU={each} where their memory allows it, or JOBS=auto"
        )
    return Local(gpus, pool.per_gpu, VISIBLE.get(chosen.type, ""))


def list_gpus(device: torch.device = CUDA) -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them: all, or the one with a number.

    Of a kind that has no such variable all workers use the one device.
    """
    if device.type not in VISIBLE:
        return [str(device)]
    visible = os.environ.get(VISIBLE[device.type])
    there = [part.strip() for part in visible.split(",") if part.strip()] if visible else []
    there = there or [str(number) for number in range(torch.get_device_module(device).device_count())]
    return there if device.index is None else [there[device.index]]


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local:
    """Workers as processes in sessions of their own. Each ends when this process does, because its input closes."""

    def __init__(self, gpus: Sequence[str], per_gpu: int, visible: str = VISIBLE["cuda"]) -> None:
        self.gpus, self.per_gpu, self.visible = list(gpus), per_gpu, visible
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.places: dict[int, str] = {}  # the GPU of each worker

    def capacity(self) -> int:
        """Return the number of cores, or what the GPUs take."""
        return len(self.gpus) * self.per_gpu if self.gpus else count_cores()

    def start(self, order: Order, numbers: Sequence[int]) -> None:
        """Start processes, each on the GPU with the fewest."""
        for number in numbers:
            environment = {**os.environ, **order.environment}
            if self.gpus:
                living = Counter(self.places[other] for other, status in self.poll().items() if status.state == RUNNING)
                self.places[number] = min(self.gpus, key=lambda gpu: living[gpu])
                environment |= {self.visible: self.places[number]} if self.visible else {}
            with open(order.log(number), "ab") as log:
                self.workers[number] = subprocess.Popen(
                    order.command(number),
                    cwd=order.cwd,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def poll(self) -> dict[int, Status]:
        """Return the status of the processes."""
        return {number: status_of(worker.poll()) for number, worker in self.workers.items()}

    def stop(self, grace_s: float) -> None:
        """Ask every process to end, wait, and kill those that are left."""
        living = [worker for worker in self.workers.values() if worker.poll() is None]
        try:
            for worker in living:
                worker.terminate()
            end = time.monotonic() + grace_s
            while any(worker.poll() is None for worker in living) and time.monotonic() < end:
                time.sleep(POLL_S)
        finally:
            for worker in living:
                if worker.poll() is None:
                    worker.kill()
                worker.wait()


def status_of(code: int | None) -> Status:
    """Return a worker's status by its process's exit status, None while it runs."""
    if code is None:
        return Status(RUNNING)
    if code == 0:
        return Status(ENDED)
    return Status(LOST, f"killed by {name_signal(-code)}" if code < 0 else f"ended with status {code}")
