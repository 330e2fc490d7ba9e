"""How fast a run is done, decided before its first step: threads, and the precision where the page leaves it open."""

from __future__ import annotations

import copy
import ctypes
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn

from benchmark.base.console import format_time
from benchmark.base.errors import UserError
from benchmark.base.system import keep_random_state
from benchmark.config.pages import images_per_pass
from benchmark.distributed.ranks import count_ranks, own_rank
from benchmark.training.precision import make_autocast, supports_bf16
from benchmark.training.state import Training
from leaderboard.tables.sections import amount

# Multiply-adds of a training step below which a second thread costs more than it brings: ResNet-20 on 64 images of 8x8
# (5e8) takes 2.5 times as much processor time with two threads as with one.
SMALL_STEP = 1.5e9
USUAL_THREADS = torch.get_num_threads()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt
TRIED: set[str] = set()  # devices on which torch.compile has worked in this process
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


def has_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bf16 by itself; without such instructions it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return supports_bf16(device)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {"bf16": True}
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def warn_slow(run: Training, told: set[str], warn: Callable[[str], None]) -> None:
    """Tell, once for a page, that its bf16 is slow on this device: how long an epoch takes in it and in fp32.

    Several ranks, which would have to measure together, are told without.
    """
    if (
        own_rank()
        or run.precision != "bf16"
        or run.page.precision == "fastest"
        or run.page.title in told
        or has_bf16(run.device)
    ):
        return
    told.add(run.page.title)
    what = "this processor" if run.device.type == "cpu" else "this GPU"
    found = "fp32 may be faster"
    with suppress(RuntimeError):  # memory for fp32, which the run does not need
        if count_ranks() == 1:
            times, steps = time_precisions(run, 1), run.timeline.steps_per_epoch
            bf16, fp32 = (format_time(times[name] * steps) for name in ("bf16", "fp32"))
            found = f"an epoch of {amount(steps, 'step')} takes about {bf16} in bf16, {fp32} in fp32"
    warn(
        f"{what} has no bf16 instructions: {found}. PRECISION=fp32 (ARGS=precision=fp32) trains in fp32: that is a "
        "table of its own, whose runs are not compared with those in bf16, so all runs to be compared need it. "
        "Continuing in bf16"
    )


def probe_precision(run: Training) -> str:
    """Return "fp32" or "bf16", whichever trains the run's network faster on its page's batch."""
    times = time_precisions(run, ROUNDS)
    return min(times, key=lambda precision: times[precision])


def time_precisions(run: Training, rounds: int) -> dict[str, float]:
    """Return the seconds of a step of a copy of the run's network in fp32 and bf16, by passes as large as the run's.

    Both are timed in turn, and each counts by its median. Neither the network nor any random state is changed.
    """
    data, device, passes = run.data, run.device, min(run.page.accumulate, run.page.batch_size)
    size = -(-images_per_pass(run.page) // count_ranks())
    images = torch.zeros(size, data.channels, data.image_size, data.image_size, device=device)
    if run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    trial = copy.deepcopy(run.model).train()
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with keep_random_state(device):
        for _ in range(rounds + 1):
            for precision, seen in times.items():
                seen.append(time_step(trial, images, precision))
    return {precision: passes * statistics.median(seen[1:]) for precision, seen in times.items()}


def try_compiler(device: torch.device) -> None:
    """Raise UserError where torch.compile cannot work here, for example without a C++ compiler: before training."""
    key = str(device)
    if key in TRIED:
        return
    unlike = time.time_ns() % 1_000_003 + 0.5  # a kernel that no cache holds
    try:
        torch.compile(lambda x: torch.sin(x) * unlike, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # torch has many kinds, each with pages of advice
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"compile=true: torch cannot compile ({reason[:200]}). It needs a C++ compiler: install g++ or clang++ "
            "or name one with CXX=/path/to/g++; or leave compile=true out"
        ) from error
    TRIED.add(key)


def time_step(model: nn.Module, images: torch.Tensor, precision: str) -> float:
    """Return the seconds of one forward and backward pass."""
    began = time.perf_counter()
    with make_autocast(images.device, precision):
        loss = model(images).float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)
    return time.perf_counter() - began
