"""One forward pass over a batch, in a given precision and memory format, and the clock that times it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.base.system import use_device
from benchmark.training.precision import make_autocast

SAMPLE_S = 0.02  # a timing lasts at least this long: shorter actions are repeated
MOST_REPEATS = 100
HOPELESS = 3.0  # in a trial, an action this many times slower than the fastest in its first pass is dropped
TRIALS = 3  # timings of each action in a trial, in turn


@dataclass(frozen=True)
class Mode:
    """How dense kernels compute: "fp32"; "bf16" (weights stored in it); "bf16 autocast" (cast in every pass)."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.precision}, channels last" if self.channels_last else self.precision


PLAIN = Mode("fp32", False)
MODES = tuple(Mode(precision, last) for precision in ("fp32", "bf16 autocast", "bf16") for last in (False, True))


def modes_of(network: nn.Module) -> tuple[Mode, ...]:
    """Return the modes that a network can run in; three-dimensional convolutions have no channels last."""
    flat = all(weight.dim() < 5 for weight in network.parameters())
    return tuple(mode for mode in MODES if flat or not mode.channels_last)


class Pass:
    """A copy of a network in evaluation mode, ready for passes over `images` in one mode; calling it runs one."""

    def __init__(self, network: nn.Module, images: Tensor, mode: Mode) -> None:
        layout = torch.channels_last if mode.channels_last else torch.contiguous_format
        dtype = torch.bfloat16 if mode.precision == "bf16" else torch.float32
        self.network = copy.deepcopy(network).eval().to(images.device, dtype)
        if mode.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.images = images.to(dtype).contiguous(memory_format=layout)
        self.mode = mode

    def __call__(self) -> Tensor:
        """Return the outputs for the batch, in the mode's dtype."""
        return self.within(lambda: self.network(self.images))

    def within(self, action: Callable[[], Tensor]) -> Tensor:
        """Run `action` under the pass's autocast and without gradients."""
        autocast = make_autocast(self.images.device, "bf16" if self.mode.precision == "bf16 autocast" else "fp32")
        with torch.inference_mode(), autocast:
            return action()


class Clock:
    """Times actions on a device. With one thread on a CPU it measures processor time, which other load hardly affects.

    name: processor time, wall clock, or CUDA events.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        use_device(device)
        self.device = device
        one = device.type == "cpu" and threads == 1
        self.name = "CUDA events" if device.type == "cuda" else "processor time" if one else "wall clock"
        self.now = time.process_time if one else time.perf_counter

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        """Return the seconds that `action` takes, the mean of `repeats` in a row."""
        if self.device.type == "cuda":
            return self.device_seconds(action, repeats)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        began = self.now()
        for _ in range(repeats):
            action()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return (self.now() - began) / repeats

    def device_seconds(self, action: Callable[[], object], repeats: int) -> float:
        """Return the same as `seconds`, between two events on an otherwise idle GPU."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(repeats):
            action()
        end.record()
        torch.cuda.synchronize(self.device)
        return float(start.elapsed_time(end)) / 1000 / repeats

    def in_turn(self, actions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        """Return the seconds of each action in each round, A B A B, after a warm-up round that is discarded."""
        repeats = [self.choose_repeats(action) for action in actions]
        timed = list(zip(actions, repeats, strict=True))
        times = [[self.seconds(action, count) for action, count in timed] for _ in range(rounds + 1)]
        return [list(seen) for seen in zip(*times[1:], strict=True)]

    def choose_repeats(self, action: Callable[[], object]) -> int:
        """Return how often to repeat `action` so that a timing lasts SAMPLE_S."""
        return max(1, min(MOST_REPEATS, math.ceil(SAMPLE_S / max(self.seconds(action), 1e-9))))

    def find_fastest(self, actions: Sequence[Callable[[], object]]) -> tuple[int, list[float]]:
        """Return the index of the fastest action, and each one's median seconds (inf if dropped after one pass)."""
        first = [self.seconds(action) for action in actions]
        near = [number for number, seconds in enumerate(first) if seconds <= HOPELESS * min(first)]
        medians = [math.inf] * len(first)
        for number, seen in zip(near, self.in_turn([actions[number] for number in near], TRIALS), strict=True):
            medians[number] = statistics.median_high(seen)
        return medians.index(min(medians)), medians
