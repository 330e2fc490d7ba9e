"""How long runs take: their pace, spread over devices, and on a fleet of them."""

from __future__ import annotations

import copy
import heapq
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmark.base.console import format_time
from benchmark.base.errors import UserError
from benchmark.base.system import describe_environment
from benchmark.config.cells import Cell
from benchmark.config.pages import Page, images_per_pass
from benchmark.data.sets import Data
from benchmark.grids.memory import Measured, Memory, describe_memory, device_memory, gib
from benchmark.networks.build import Built
from benchmark.training.optim import make_optimizer
from benchmark.training.precision import choose_precision, make_autocast, set_determinism
from leaderboard import Record
from leaderboard.store.repeat import ranks_of

# Settings that decide how fast a page trains; others (epochs, learning rate) do not.
SPEED = ("model", "model_args", "image_size", "batch_size", "ema_decay", "channels_last", "deterministic")
MEMORY = (*SPEED, "optimizer", "momentum", "in_memory", "compile")  # and those that decide how much memory it takes
STEP_MACS = 3e10  # of a calibration step on a CPU, about: there a large network takes a minute for a whole batch
LEAST_BATCH = 4
LONGEST_S = 1.0  # calibration after the first step
MOST_STEPS = 10
FORWARD_SHARE = 1 / 3  # of the time of an image in training that it takes in evaluation: no backward pass


@dataclass(frozen=True)
class Pace:
    """Images per second, evaluation included, and its source: `3 records` or `calibrated`."""

    images_per_s: float
    source: str

    def seconds(self, page: Page, data: Data) -> float:
        """Return the estimated time of a run."""
        return page.epochs * images_per_epoch(data) / self.images_per_s


def images_per_epoch(data: Data) -> float:
    """Return an epoch's images, those evaluated weighed by their lower cost."""
    return len(data.train) + FORWARD_SHARE * (len(data.test) + len(data.validation or ()))


def images_of(record: Record) -> float:
    """Return an epoch's images of a record, weighed alike."""
    data = record["data"]
    return float(data["train"] + FORWARD_SHARE * (data["test"] + data["validation"]))


def records_like(
    cell: Cell, records: Iterable[Record], device: torch.device, settings: Iterable[str], environment: Iterable[str]
) -> list[Record]:
    """Return the records of one process on the cell's page that agree with it in these settings of the page.

    They were made on a device that agrees with this one in these facts of the environment.
    """
    here = describe_environment(device, choose_precision(cell.page, device))
    same_page = (record for record in records if record["page"]["name"] == cell.page_name and ranks_of(record) == 1)
    return [
        record
        for record in same_page
        if all(record["page"]["settings"].get(name) == getattr(cell.page, name) for name in settings)
        and all(record["environment"].get(key) == here[key] for key in environment)
    ]


def pace_of_records(cell: Cell, data: Data, records: Iterable[Record], device: torch.device) -> Pace | None:
    """Return the median pace of the records of the cell's page on this device, or None where there are none."""
    speeds = [
        epochs_of(record) * images_of(record) / record["time"]["total_s"]
        for record in records_like(cell, records, device, SPEED, ("device", "device_name", "precision"))
        if record["time"]["total_s"]
    ]
    if not speeds:
        return None
    return Pace(statistics.median(speeds), f"{len(speeds)} record{'' if len(speeds) == 1 else 's'}")


def epochs_of(record: Record) -> int:
    """Return how many epochs a run trained: those of all its rounds, or of a branch its own."""
    if "branch" in record:
        return int(record["branch"]["last_epoch"] - record["branch"]["epoch"])
    epochs: int = record["page"]["settings"]["epochs"]
    rounds: dict[str, int] = record.get("rounds", {"last_begins": 0, "back_to": 0})
    return rounds["last_begins"] + epochs - rounds["back_to"]


def calibrate(cell: Cell, data: Data, built: Built, device: torch.device) -> Pace:
    """Return the pace of a few training steps on noise, without reading and augmenting images.

    The network built for planning and the global random state are left as they were.
    """
    page = cell.page
    set_determinism(page, device)
    affordable = max(LEAST_BATCH, int(STEP_MACS / (3 * built.costs.dense)))
    batch = images_per_pass(page) if device.type != "cpu" else min(affordable, images_per_pass(page))
    with torch.random.fork_rng(devices=[]):
        model = copy.deepcopy(built.model).to(device).train()
        images = torch.randn(batch, data.channels, data.image_size, data.image_size).to(device)
    if built.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % len(data.classes)
    optimizer = make_optimizer(page, model)
    autocast = make_autocast(device, choose_precision(page, device))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    step()  # the first is slow: memory is allocated, kernels are chosen
    began, steps = time.monotonic(), 0
    while steps < MOST_STEPS and (steps == 0 or time.monotonic() - began < LONGEST_S):
        step()
        steps += 1
    return Pace(steps * batch / (time.monotonic() - began), "calibrated")


@dataclass(frozen=True)
class Job:
    """A run to be made. `after`: the name of the run that has to be over before it, or empty."""

    name: str
    seconds: float
    after: str = ""


@dataclass(frozen=True)
class Spread:
    """The seconds a set of runs takes on `places` places: from start to end, of work, and of the longest chain."""

    places: int
    makespan_s: float
    work_s: float
    chain_s: float

    @property
    def least_s(self) -> float:
        """The time that no order of the runs can go below."""
        return max(self.chain_s, self.work_s / self.places)

    @property
    def used_share(self) -> float:
        """The share of the places' time in which they work."""
        return self.work_s / (self.places * self.makespan_s) if self.makespan_s else 1.0


def spread(jobs: Sequence[Job], places: int) -> Spread:
    """Return the time of the jobs on `places` places that do one job at a time.

    A job whose `after` names none of the jobs waits for nothing. Jobs that name each other in a circle raise
    ValueError. Invariant: least_s <= makespan_s <= (2 - 1 / places) * least_s.
    """
    chains = chain_lengths(jobs)
    waiting: dict[str, list[int]] = {}
    names = {job.name for job in jobs}
    ready: list[tuple[float, int]] = []  # longest chain first, then in their order
    for number, job in enumerate(jobs):
        if job.after in names:
            waiting.setdefault(job.after, []).append(number)
        else:
            heapq.heappush(ready, (-chains[number], number))
    running: list[tuple[float, int]] = []  # by the moment of the end
    now = 0.0
    while ready or running:
        while ready and len(running) < places:
            number = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + jobs[number].seconds, number))
        now, ended = heapq.heappop(running)
        for number in waiting.pop(jobs[ended].name, []):
            heapq.heappush(ready, (-chains[number], number))
    return Spread(places, now, sum(job.seconds for job in jobs), max(chains, default=0.0))


def chain_lengths(jobs: Sequence[Job]) -> list[float]:
    """Return for each job the seconds of the longest chain that begins with it. Raises ValueError for a circle."""
    followers: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        followers.setdefault(job.after, []).append(number)
    lengths: dict[int, float] = {}

    def measure(number: int, above: frozenset[int]) -> float:
        if number in above:
            raise ValueError(f"job {jobs[number].name} waits for itself")
        if number not in lengths:
            after = followers.get(jobs[number].name, [])
            longest = max((measure(follower, above | {number}) for follower in after), default=0.0)
            lengths[number] = jobs[number].seconds + longest
        return lengths[number]

    return [measure(number, frozenset()) for number in range(len(jobs))]


@dataclass(frozen=True)
class Fleet:
    """A number of devices of one kind, and how many runs share each."""

    devices: int
    per_device: int = 1


def make_fleet(devices: int, per_device: int) -> Fleet | None:
    """Return the fleet that a plan is made for, None for no devices. Raises UserError for a number below 1."""
    if devices < 0:
        raise UserError(f"GPUS must be a whole number of at least 1, got {devices}")
    if per_device < 1:
        raise UserError(f"PER_GPU must be a whole number of at least 1, got {per_device}")
    return Fleet(devices, per_device) if devices else None


def describe_sharing(
    memories: Mapping[tuple[str, str], Memory | Measured], device: torch.device, fleet: Fleet | None = None
) -> list[str]:
    """Return the memory of a run of each page, and a note where a fleet asks for more than the device has."""
    available = device_memory(device)
    notes = [
        f"memory of a run on {page}: {describe_memory(memory, available)}" for (page, _), memory in memories.items()
    ]
    for (page, _), memory in memories.items():
        if fleet is not None and fleet.per_device > max(1, memory.fits(available)) and available:
            need = gib(fleet.per_device * memory.total)
            notes.append(f"PER_GPU={fleet.per_device} is too much for {page}: {need} GiB of {gib(available)} GiB")
    return notes


def describe_fleet(jobs: Sequence[Job], fleet: Fleet) -> list[str]:
    """Return how long the runs take on a fleet, whole runs, the longest first and controls after their donors.

    The gain from sharing a device is unknown until measured, so both bounds are given: runs that do not slow each
    other down, and runs each slowed by the number on a device.
    """
    if not jobs:
        return []
    free, slow = share_out(jobs, fleet)
    head = f"on {fleet.devices} devices of this kind, {fleet.per_device} at once on each: "
    if fleet.per_device == 1:
        lines = [f"{head}{describe(free, fleet)}"]
    else:
        lines = [
            f"{head}{describe(free, fleet)}, if runs that share a device cost each other nothing;",
            f"    if sharing gains nothing, {describe(slow, fleet)}",
        ]
    chain = f"its longest run, with the control that waits for it, takes {format_time(free.chain_s)}"
    return [*lines, f"    no order of these runs takes less than {format_time(free.least_s)}: {chain}"]


def share_out(jobs: Sequence[Job], fleet: Fleet) -> tuple[Spread, Spread]:
    """Return the time of the jobs on a fleet if sharing costs nothing, and if it gains nothing."""
    places = fleet.devices * fleet.per_device
    slower = [Job(job.name, fleet.per_device * job.seconds, job.after) for job in jobs]
    return spread(jobs, places), spread(slower, places)


def describe(result: Spread, fleet: Fleet) -> str:
    """Return a time in words: `3.1 h (198.4 device hours, 97 % at work)`."""
    hours = fleet.devices * result.makespan_s / 3600
    return f"{format_time(result.makespan_s)} ({hours:,.1f} device hours, {100 * result.used_share:.0f} % at work)"
