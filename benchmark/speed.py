"""How fast a run is done, decided before its first step: threads, and the precision where the page leaves it open."""

from __future__ import annotations

import copy
import ctypes
import os
import statistics
import time

import torch
from torch import nn

from benchmark.arithmetic import make_autocast
from benchmark.train import Training

# Multiply-adds of a training step below which a second thread costs more than it brings: ResNet-20 on 64 images of 8x8
# (5e8) takes 2.5 times as much processor time with two threads as with one.
SMALL_STEP = 1.5e9
USUAL_THREADS = torch.get_num_threads()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
ROUNDS = 3  # steps of each precision that a probe times, after one of each that it does not


def choose_threads(step_macs: float, device: torch.device) -> int:
    """Return how many threads a run should use: one for steps so small that threads get in each other's way.

    OMP_NUM_THREADS, where it is set, stands. Invariant: a function of the page, never of a timing, so that a run that
    is continued or repeated has as many, and with them the same bits.
    """
    small = device.type == "cpu" and step_macs < SMALL_STEP and "OMP_NUM_THREADS" not in os.environ
    return 1 if small else USUAL_THREADS


def keep_freed_memory() -> None:
    """Have the C library keep the memory of a step for the next, where it is one that can be asked (glibc).

    It would give every large block back to the system and take it again, page by page, twice per layer and step.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    set_option(M_TRIM_THRESHOLD, 2**30)
    set_option(M_MMAP_THRESHOLD, 2**25)


def use_processor(step_macs: float, device: torch.device) -> None:
    """Set threads and memory as suits steps of so many multiply-adds."""
    torch.set_num_threads(choose_threads(step_macs, device))
    keep_freed_memory()


def probe_precision(run: Training) -> str:
    """Return "fp32" or "bf16", whichever trains a copy of the run's network faster on its page's batch.

    Both are timed in turn, and each counts by its median. Neither the network nor any random state is changed.
    """
    data, device = run.data, run.device
    images = torch.zeros(run.page.batch_size, data.channels, data.image_size, data.image_size, device=device)
    if run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    trial = copy.deepcopy(run.model).train()
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(ROUNDS + 1):
            for precision, seen in times.items():
                seen.append(time_step(trial, images, precision))
    return min(times, key=lambda precision: statistics.median(times[precision][1:]))


def time_step(model: nn.Module, images: torch.Tensor, precision: str) -> float:
    """Return the seconds of one forward and backward pass."""
    began = time.perf_counter()
    with make_autocast(images.device, precision):
        loss = model(images).float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began
