"""Learned thresholds, steered to a count: sigmoid(s) of a layer cuts off weights up to that size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def shift(s: Tensor, by: float) -> Tensor:
    """Return s + by, rounded once: from -3200 to near 0 a sum in float32 would lose ten of its bits."""
    return (s.double() + by).to(s.dtype)


def find_shift(sizes: Mapping[str, Tensor], s: Mapping[str, Tensor], count: int) -> float:
    """Return the smallest shift of all s, as far as bisection tells, at which at most `count` sizes exceed sigmoid(s).

    Sizes above 1 exceed every threshold, so more than `count` may be left. Invariant: the answer is counted with the
    very thresholds that `shift` gives.
    """
    low, high = -110 - max(map(float, s.values())), 20 - min(map(float, s.values()))  # thresholds of 0 and of 1
    for _ in range(64):
        middle = (low + high) / 2
        left = sum(int((size > shift(s[name], middle).sigmoid()).sum()) for name, size in sizes.items())
        low, high = (middle, high) if left > count else (low, middle)
    return high
