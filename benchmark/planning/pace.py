"""How long a run will take here: from records of the same page and device, or from a few steps of training."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from benchmark.arithmetic import make_autocast
from benchmark.build import Built
from benchmark.cells import Cell
from benchmark.data.sets import Data
from benchmark.environment import choose_precision, describe_environment, set_determinism
from benchmark.pages import Page
from benchmark.recipe import make_optimizer
from leaderboard import Record
from leaderboard.arithmetic import ranks_of

# Settings that decide how fast a page trains; others (epochs, learning rate) do not.
SPEED = ("model", "model_args", "image_size", "batch_size", "ema_decay", "channels_last", "deterministic")
STEP_MACS = 3e10  # of a calibration step on a CPU, about: there a large network takes a minute for a whole batch
LEAST_BATCH = 4
LONGEST_S = 1.0  # of calibration after the first step
MOST_STEPS = 10
FORWARD_SHARE = 1 / 3  # of the time of an image in training that it takes in evaluation: no backward pass


@dataclass(frozen=True)
class Pace:
    """Images per second, evaluation included, and where that is from: `3 records` or `calibrated`."""

    images_per_s: float
    source: str

    def seconds(self, page: Page, data: Data) -> float:
        """Return the estimated time of a run."""
        return page.epochs * images_per_epoch(data) / self.images_per_s


def images_per_epoch(data: Data) -> float:
    """Return how many images an epoch is worth: those trained on, and those evaluated, which cost less."""
    return len(data.train) + FORWARD_SHARE * (len(data.test) + len(data.validation or ()))


def pace_of_records(cell: Cell, data: Data, records: Iterable[Record], device: torch.device) -> Pace | None:
    """Return the median pace of the records of the cell's page on this device, or None where there are none."""
    here = describe_environment(device, choose_precision(cell.page, device))
    speeds = []
    for record in records:
        settings, there = record["page"]["settings"], record["environment"]
        same_page = record["page"]["name"] == cell.page_name and all(
            settings.get(name) == getattr(cell.page, name) for name in SPEED
        )
        if (
            same_page
            and ranks_of(record) == 1
            and all(there[key] == here[key] for key in ("device", "device_name", "precision"))
        ):
            speeds.append(settings["epochs"] * images_per_epoch(data) / record["time"]["total_s"])
    if not speeds:
        return None
    return Pace(statistics.median(speeds), f"{len(speeds)} record{'' if len(speeds) == 1 else 's'}")


def calibrate(cell: Cell, data: Data, built: Built, device: torch.device) -> Pace:
    """Return the pace of a few training steps on noise; reading and augmenting images is not in it.

    The network built for planning is left as it was, and so is the global random state.
    """
    page = cell.page
    set_determinism(page)
    affordable = max(LEAST_BATCH, int(STEP_MACS / (3 * built.costs.dense)))
    batch = page.batch_size if device.type == "cuda" else min(affordable, page.batch_size)
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


def format_time(seconds: float) -> str:
    """Return a rough time: `45 s`, `12 min`, `3.5 h`, `4.2 days`."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.1f} {unit}" if unit == "h" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
