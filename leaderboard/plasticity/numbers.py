"""What the pictures of pruning plasticity show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PruningLine:
    """Points regained after pruning a share `rate` of a network of some `sparsity`, by the epoch at which it was."""

    sparsity: float
    rate: float
    regrow: bool
    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class Schedule:
    """The epochs of a page, and those at which its learning rate falls."""

    epochs: float
    drops: list[float]
