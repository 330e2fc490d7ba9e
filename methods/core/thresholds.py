"""Learned thresholds, steered to a count: sigmoid(s) of a layer cuts off weights up to that size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def shift(s: Tensor, by: float | Tensor) -> Tensor:
    """Return s + by, rounded once: from -3200 to near 0 a sum in float32 would lose ten of its bits."""
    return (s.double() + by).to(s.dtype)


def find_shift(sizes: Mapping[str, Tensor], s: Mapping[str, Tensor], count: int) -> float:
    """Return the smallest shift of all s, as far as bisection tells, at which at most `count` sizes exceed sigmoid(s).

    Sizes above 1 exceed every threshold, so more than `count` may be left. Invariant: the answer is counted with the
    very thresholds that `shift` gives.
    """
    known = torch.stack([value.double().reshape(()) for value in s.values()])
    low, high = -110 - known.max(), 20 - known.min()  # thresholds of 0 and of 1
    for _ in range(64):  # on the device, which is asked once, at the end
        middle = (low + high) / 2
        counts = [torch.count_nonzero(size > shift(s[name], middle).sigmoid()) for name, size in sizes.items()]
        above = torch.stack(counts).sum() > count
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return float(high)
