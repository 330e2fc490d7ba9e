"""Timing side by side: variants in turn, round after round, so that fluctuations affect all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

clock = time.process_time  # of one thread: less sensitive to other load than wall time


def time_in_turn(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round, A B A B; a warm-up round before the first is left out.

    If a variant returns a float, that counts instead: the seconds of the part it timed itself.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, action in variants.items():
            began = clock()
            own = action()
            seconds = own if isinstance(own, float) else clock() - began
            if number:
                times[name].append(seconds)
    return times


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over rounds of one variant's time as a multiple of another's in the same round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def milliseconds(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each variant in milliseconds."""
    return {name: round(1000 * statistics.median(seen), 3) for name, seen in times.items()}
