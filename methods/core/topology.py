"""Moves on masks, layer by layer: drop some active weights, grow as many elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from methods.core.base import Masks
from methods.core.masks import keep_top


def drop(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    rate: float,
    rounding: Callable[[float], int] = math.floor,
) -> Masks:
    """Return masks without the rounding(rate x active) lowest-scored active weights of each layer.

    Ties keep the lower index. Invariant: the result is a subset of `masks`.
    """
    kept = {}
    for name, mask in masks.items():
        active = int(mask.sum())
        kept[name] = keep_top(scores[name], active - rounding(rate * active), among=mask)
    return kept


def grow(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Masks:
    """Return masks with the highest-scored inactive weights added until each layer has as many as in `like`.

    Only inactive positions are candidates, so a layer never loses density to ties or zero scores. Weights dropped in
    the same update are candidates too. Invariant: per-layer counts equal those of `like`.
    """
    grown = {}
    for name, mask in masks.items():
        missing = int(like[name].sum()) - int(mask.sum())
        grown[name] = mask | keep_top(scores[name], missing, among=~mask)
    return grown
