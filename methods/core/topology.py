"""Moves on masks, layer by layer: drop some active weights, grow as many elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from methods.core.answers import count_each
from methods.core.declared import Masks
from methods.core.masks import count_active, keep_top_global
from methods.core.scores import take
from methods.core.selection import choose_each


def drop(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    rate: float,
    rounding: Callable[[float], int] = math.floor,
) -> Masks:
    """Return masks without the rounding(rate x active) lowest-scored active weights of each layer.

    Ties keep the lower index. Invariant: the result is a subset of `masks`.
    """
    active = count_each(masks.values())
    keep = [count - rounding(rate * count) for count in active]
    tensors, sized = take(scores, masks)
    chosen = choose_each(tensors, keep, masks.values(), sized)
    return dict(zip(masks, chosen, strict=True))


def grow(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Masks:
    """Return masks with the highest-scored inactive weights added until each layer has as many as in `like`.

    Only inactive positions are candidates, so a layer never loses density to ties or zero scores. Weights dropped in
    the same update are candidates too. Invariant: per-layer counts equal those of `like`.
    """
    present, wanted = count_each(masks.values()), count_each(like[name] for name in masks)
    missing = [want - have for want, have in zip(wanted, present, strict=True)]
    tensors, sized = take(scores, masks)
    added = choose_each(tensors, missing, (~mask for mask in masks.values()), sized)
    return {name: new.logical_or_(mask) for (name, mask), new in zip(masks.items(), added, strict=True)}


def grow_global(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Masks:
    """Return masks with the highest-scored inactive weights of all layers added until there are as many as in `like`.

    Only inactive positions are candidates. Ties go to the earlier tensor, then to the lower index.
    """
    missing = count_active(like) - count_active(masks)
    added = keep_top_global(scores, missing, among={name: ~mask for name, mask in masks.items()})
    return {name: mask | added[name] for name, mask in masks.items()}
