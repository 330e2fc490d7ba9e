"""Schedules: pure functions of progress and step."""

from __future__ import annotations

import math


def cubic(start: float, end: float, progress: float) -> float:
    """Return s_f + (s_i - s_f)(1 - progress)^3, progress in [0, 1] (Zhu & Gupta, 2017; GraNet Eq. 1).

    Invariant: exactly `start` at 0 and exactly `end` at 1.
    """
    if progress <= 0 or progress >= 1:
        return start if progress <= 0 else end
    return end + (start - end) * (1 - progress) ** 3


def geometric(sparsity: float, progress: float) -> float:
    """Return 1 - rho^progress, with rho = 1 - `sparsity` and progress in [0, 1]: each step removes the same share.

    Invariant: exactly 0 at 0 and exactly `sparsity` at 1.
    """
    return sparsity if progress >= 1 else 1 - (1 - sparsity) ** progress


def cosine(start: float, end: float, progress: float) -> float:
    """Return the value annealed from `start` to `end` by half a cosine, progress in [0, 1]; `end` from 1 on.

    An update that makes up for a skipped one may come after the end of the schedule.
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


ROUNDING = 1e-9  # a share of a run that is a whole step may be off by the last bits: 0.56 x 25 = 14.000000000000002


def update_range(every: int, stop: float) -> range:
    """Return the steps every, 2 every, ... that are smaller than `stop`.

    Weights grown at the last step of a run would never be trained, so callers pass at most the run's total steps.
    """
    return range(every, math.ceil(stop - ROUNDING), every)


def prune_range(every: int, end: float, total_steps: int) -> range:
    """Return the steps at which gradual pruning prunes: every `every` steps up to the share `end` of the run.

    A pruning step that falls on the end itself counts, so the target is in force from there on.
    """
    return update_range(every, min(math.floor(end * total_steps + ROUNDING) + 1, total_steps))


def prune_progress(step: int, every: int, steps: range) -> float:
    """Return k / n, the share of the pruning steps done at `step`: k updates so far, n = len(steps) in all.

    The index form makes the last pruning step hit the target exactly, whatever ΔT divides. With no pruning step at
    all it stays 0, so the run's plan misses its target and is refused before it starts.
    """
    return min(1.0, (step // every) / len(steps)) if len(steps) else 0.0
