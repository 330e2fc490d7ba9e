"""The ranges of hyper-parameters: finite for all, and those that several methods have under one name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from methods.core.distributions import DISTRIBUTIONS

SHARES = {"sparsity", "rate", "prune_rate", "final_prune_rate", "prune_end", "update_end", "start_sparsity"}


def check_ranges(method: Any) -> None:
    """Raise ValueError for a hyper-parameter that is not finite, or has a standard name and is outside its range."""
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name in SHARES and not 0 <= value <= 1:
            raise ValueError(f"{field.name} must be in [0, 1], got {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} must be a finite number, got {value}")
        if field.name == "update_every" and value < 1 and value != field.default:
            raise ValueError(f"update_every must be at least 1 step, got {value}")
        if field.name == "distribution" and value not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {value!r}")
