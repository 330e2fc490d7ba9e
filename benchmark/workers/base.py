"""The interface between a sweep and its workers: start them, poll them, stop them.

Nothing here schedules cells. Every worker is the same sweep over the same grid and takes the first cell that no other
holds, so no result depends on the machine a worker is on, or on when it starts or is lost.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from benchmark.base import BOOT, ROOT
from benchmark.base.errors import UserError, nearest, unknown
from benchmark.base.system import import_extra
from benchmark.workers.attendant import Attendant
from benchmark.workers.book import SPEC, STOP, Book

WHERE = ("local", "ray", "slurm")
QUEUED, RUNNING, ENDED, LOST = "queued", "running", "ended", "lost"
# The variable that says which devices of a kind a process sees.
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
GRACE_S = 60.0  # for workers to save a checkpoint before they are killed


@dataclass(frozen=True)
class Pool:
    """The workers a user asks for, as given: `jobs` is a number or `auto`; `arguments` are `key=value key=value`.

    `where` is one of WHERE; `per_gpu` workers share a GPU; a failed cell is tried again `retries` times.
    """

    where: str = "local"
    jobs: str = "1"
    per_gpu: int = 1
    arguments: str = ""
    retries: int = 2

    @property
    def is_here(self) -> bool:
        """Whether the cells are run one after the other in the process that was asked."""
        return self.where == "local" and self.jobs == "1"

    def device_here(self, device: str) -> str:
        """Return the device to ask of this machine, whose GPUs say nothing of a cluster's."""
        return "auto" if self.where != "local" and device.partition(":")[0] in VISIBLE else device

    def has_gpu(self, device: str, here: bool) -> bool:
        """Return whether the runs are to have a GPU; `here`: whether this machine has one for them.

        Slurm's have what was asked for; of a Ray cluster it is known once it answers, and this machine is the guess.
        """
        if device.partition(":")[0] in VISIBLE or self.settings().get("gpus"):
            return True
        return here and device != "cpu" and self.where != "slurm"

    def device_there(self, device: str) -> str:
        """Return the device for a worker to ask: of several it sees its own alone, so a number says nothing there."""
        kind = device.partition(":")[0]
        return kind if kind in VISIBLE else device

    def settings(self) -> dict[str, Any]:
        """Return the settings of such workers; raises UserError for one that is unknown or unreadable."""
        known: dict[str, Callable[[str], Any]] = find_module(self.where).SETTINGS
        found: dict[str, Any] = {}
        try:
            words = shlex.split(self.arguments)
        except ValueError as error:
            raise UserError(f"WORKERS_ARGS must be key=value key=value, and cannot be read: {error}") from error
        for word in words:
            key, equals, value = word.partition("=")
            if key not in known or not equals:
                there = ", ".join(known) or "none"
                raise UserError(
                    f"WORKERS_ARGS: {self.where} workers have no setting '{word if not equals else key}'"
                    f"{nearest(key, known)}; they have {there}, each as key=value"
                )
            try:
                found[key] = known[key](value)
            except ValueError as error:
                raise UserError(f"WORKERS_ARGS: {key} must be a {known[key].__name__}, got '{value}'") from error
        return found


@dataclass(frozen=True)
class Order:
    """What workers are started with: the sweep's book, the working folder, more environment, and their command."""

    book: Book
    cwd: str
    environment: dict[str, str]
    name: str = "worker"  # of the command of sparse-bench

    def command(self, number: int) -> list[str]:
        """Return the command line of worker `number`."""
        return [sys.executable, "-c", BOOT, str(ROOT), self.name, str(self.book.folder / SPEC), str(number)]

    def log(self, number: int) -> Path:
        """Return where its console text goes."""
        return self.book.log(number)

    def attend(self, numbers: Sequence[int], grace_s: float) -> Attendant:
        """Return what a cluster runs in place of the workers of these numbers."""
        commands, logs = [self.command(number) for number in numbers], [str(self.log(number)) for number in numbers]
        return Attendant(commands, logs, self.cwd, self.environment, str(self.book.folder / STOP), grace_s)


@dataclass(frozen=True)
class Status:
    """A worker's state: QUEUED, RUNNING, ENDED (it saw every cell) or LOST, with the reason if known."""

    state: str
    detail: str = ""


class Workers(Protocol):
    """Workers somewhere. Invariant: after `stop` none of them runs any more, or is about to."""

    def capacity(self) -> int:
        """Return how many workers fit, for JOBS=auto; raises UserError if that cannot be known."""

    def start(self, order: Order, numbers: Sequence[int]) -> None:
        """Start workers of these numbers, or queue them; raises UserError if that is refused."""

    def poll(self) -> dict[int, Status]:
        """Return the status of every worker that was started, by number."""

    def stop(self, grace_s: float) -> None:
        """Wait for all workers, which were asked to end; kill those that take longer than `grace_s`."""


def check_pool(pool: Pool) -> None:
    """Raise UserError that lists everything wrong with a pool that can be known before any worker is started."""
    if pool.where not in WHERE:
        count = "; JOBS= says how many" if pool.where.isdigit() else ""
        raise UserError(f"WORKERS: {unknown('place', pool.where, WHERE)}{count}")
    faults = []
    if pool.jobs != "auto" and not (pool.jobs.isascii() and pool.jobs.isdigit() and int(pool.jobs) > 0):
        faults.append(f"JOBS must be a whole number from 1, or auto, got '{pool.jobs}'")
    if pool.per_gpu < 1:
        faults.append(f"PER_GPU must be a whole number from 1, got {pool.per_gpu}")
    if pool.retries < 0:
        faults.append(f"RETRIES must be a whole number from 0, got {pool.retries}")
    try:
        if find_module(pool.where).NEEDS:
            require(find_module(pool.where).NEEDS)
        pool.settings()
    except UserError as error:
        faults.append(str(error))
    if faults:
        raise UserError("; ".join(faults))


def open_workers(pool: Pool, device: str) -> Workers:
    """Return the workers of a pool, of which none is started yet; `device` is what was asked.

    Raises UserError where its library is absent, a cluster cannot be reached, or PER_GPU is asked without a GPU.
    """
    workers: Workers = find_module(pool.where).open_workers(pool, device)
    return workers


def find_module(where: str) -> Any:
    """Return the module of workers that run there."""
    return import_module(f"benchmark.workers.{where}")


def require(module: str) -> Any:
    """Return the library that such workers need; raises UserError that says what to install where it is absent."""
    return import_extra(module, "workers", "these workers need")
