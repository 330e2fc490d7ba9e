"""Exact selection: rank, take exactly k, ties broken by position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.core.base import ContractError, Masks, View


def all_active(view: View) -> Masks:
    """Return masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in view.weights.items()}


def count_active(masks: Mapping[str, Tensor]) -> int:
    """Return the number of active weights over all masks."""
    return sum(int(mask.sum()) for mask in masks.values())


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return a bool vector that is True at the k largest of a vector of scores.

    Equal scores are taken in order of position, so the answer is that of a stable descending sort, on every device,
    for any thread count. Raises ContractError for a score that is not finite and for k outside [0, len(scores)].
    """
    if not 0 <= k <= scores.numel():
        raise ContractError(f"cannot keep {k} of {scores.numel()} candidates")
    if not bool(torch.isfinite(scores).all()):
        raise ContractError("ranked a score that is not finite")
    if k == 0 or k == scores.numel():
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    rank = scores.numel() - k  # of the k-th largest, from below
    # kthvalue is refused on a GPU in deterministic mode, although its value is well defined.
    threshold = scores.sort().values[rank] if scores.is_cuda else scores.kthvalue(rank + 1).values
    above = scores > threshold
    ties = scores == threshold
    needed = k - above.sum()
    return above | (ties & (ties.cumsum(0) <= needed))


def keep_top(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Return a mask of exactly k True: the k largest scores, among the positions where `among` is True.

    scores: any shape; among: bool of the same shape, default everywhere. Ties go to the lower row-major index.
    """
    if among is None:
        return top_k(scores.reshape(-1), k).reshape(scores.shape)
    mask = torch.zeros_like(among)
    mask[among] = top_k(scores[among], k)
    return mask


def keep_top_global(scores: Mapping[str, Tensor], k: int, among: Mapping[str, Tensor] | None = None) -> Masks:
    """Return masks with exactly k True over all tensors: the k largest scores of all candidates together.

    Ties go to the earlier tensor, then to the lower row-major index.
    """
    among = among or {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    candidates = [score[among[name]] for name, score in scores.items()]
    chosen = top_k(torch.cat(candidates), k).split([part.numel() for part in candidates])
    masks = {name: torch.zeros_like(among[name]) for name in scores}
    for mask, name, part in zip(masks.values(), scores, chosen, strict=True):
        mask[among[name]] = part
    return masks


def random_masks(view: View, counts: Mapping[str, int]) -> Masks:
    """Return masks with exactly `counts[name]` weights active in each layer, drawn uniformly at random."""
    return {name: keep_top(view.random(name, "mask"), counts[name]) for name in view.weights}
