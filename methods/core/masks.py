"""Exact selection: rank, take exactly k, ties broken by position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.core.answers import count_each
from methods.core.declared import Masks
from methods.core.distributions import uniform
from methods.core.scores import take
from methods.core.selection import choose, choose_each
from methods.core.view import View


def all_active(view: View) -> Masks:
    """Return masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in view.weights.items()}


def count_active(masks: Mapping[str, Tensor]) -> int:
    """Return the number of active weights over all masks."""
    return sum(count_each(masks.values()))


def keep_top(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Return a mask of exactly k True: the k largest scores, among the positions where `among` is True.

    scores: any shape; among: bool of the same shape, default everywhere. Ties go to the lower row-major index, on every
    device, for any thread count. Raises ContractError for a score that is not finite and for k outside [0, candidates].
    """
    return choose([scores], k, [among])[0]


def keep_top_global(scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor] | None = None) -> Masks:
    """Return masks with exactly k True over all tensors: the k largest scores of all candidates together.

    Ties go to the earlier tensor, then to the lower row-major index.
    """
    tensors, sized = take(scores, scores)
    chosen = choose(list(tensors), k, [among[name] if among else None for name in scores], sized)
    return dict(zip(scores, chosen, strict=True))


def count_layers(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of active weights of each layer."""
    return dict(zip(masks, count_each(masks.values()), strict=True))


def keep_top_each(scores: Mapping[str, Tensor], counts: Mapping[str, int], among: Mapping[str, Tensor]) -> Masks:
    """Return masks with exactly counts[name] True in each layer: its largest scores among its candidates.

    Ties go to the lower row-major index.
    """
    tensors, sized = take(scores, among)
    chosen = choose_each(tensors, [counts[name] for name in among], among.values(), sized)
    return dict(zip(among, chosen, strict=True))


def keep_top_evenly(scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor]) -> Masks:
    """Return masks with exactly k True over all tensors: of each layer's candidates the same share, its largest scores.

    The weights left over by rounding go to the largest remainders, of equal ones to the earlier layer.
    """
    counts = uniform({name: (count,) for name, count in count_layers(among).items()}, k)
    return keep_top_each(scores, counts, among)


def random_masks(view: View, counts: Mapping[str, int]) -> Masks:
    """Return masks with exactly `counts[name]` weights active in each layer, drawn uniformly at random."""
    return {name: keep_top(view.random(name, "mask"), counts[name]) for name in view.weights}
