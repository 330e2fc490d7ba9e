"""Masks that are constant over filters: a filter is whatever leads to one output, a row of the first dimension.

Its score is the sum of its weights' scores, which for magnitudes is its L1 norm (Li et al., 2017, arXiv:1608.08710),
its size the number of its active weights. Sums are taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from methods.core.answers import count_each
from methods.core.declared import Masks
from methods.core.distributions import uniform
from methods.core.errors import ContractError, RefusedError
from methods.core.selection import choose_each
from methods.core.view import View


def check_scope(scope: str) -> None:
    """Raise ValueError for a scope that is neither `global` (all layers together) nor `layer` (each by itself)."""
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be global or layer, got {scope!r}")


def sum_rows(values: Tensor) -> Tensor:
    """Return the sum over each row of the first dimension, in float64 and in row-major order."""
    return values.contiguous().flatten(1).sum(1, dtype=torch.float64)


def spread(rows: Tensor, like: Tensor) -> Tensor:
    """Return a bool tensor shaped as `like` that is True in the rows that are True."""
    return rows.view(-1, *[1] * (like.dim() - 1)).expand(like.shape).clone()


def refuse_crowded(view: View, sparsity: float) -> None:
    """Raise RefusedError when the last layer, whose filters are the classes and stay, has more weights than are kept.

    Counted are the active ones, fewer than all in a branch. The message says what sparsity is possible.
    """
    whole = int(view.masks[view.last].sum()) if view.last in view.masks else 0
    total = sum(weight.numel() for weight in view.weights.values())
    if whole > view.count(sparsity):
        raise RefusedError(
            f"whole filters cannot reach sparsity {sparsity:g} here: the last layer '{view.last}' keeps its outputs, "
            f"the classes, and its {whole:,} weights are more than the {view.count(sparsity):,} that stay: ask "
            f"SPARSITY={math.floor(1e4 * (1 - whole / total)) / 1e4:g} or less, or leave it out with "
            f"ARGS=keep_dense=[{view.last}]"
        )


def keep_filters(
    scores: Mapping[str, Tensor], count: int, among: Mapping[str, Tensor], last: str = "", layerwise: bool = False
) -> Masks:
    """Return masks that keep whole filters of `among`: the highest-scored ones that fit into `count` weights.

    The layer `last` keeps all it has. The best filter of every other layer comes first, so that none is emptied while
    `count` has room for one filter of each; then come the others in order of score, each that still fits. layerwise:
    the others compete within their layer, for an equal share of every layer. Ties go to the earlier tensor, then to the
    lower index. Invariant: at most `count` weights stay, or those of `last` where it alone has more.
    """
    names = [name for name in among if name != last]
    masks = {name: among[name] for name in names}
    room = max(0, count - sum(count_each(mask for name, mask in among.items() if name == last)))
    active = dict(zip(names, count_each(masks.values()), strict=True))
    room = min(room, sum(active.values()))
    rooms = list(uniform({name: (n,) for name, n in active.items()}, room).values()) if layerwise and room else None
    rows = fill_room(
        [sum_rows(scores[name] * masks[name]) for name in names],
        [sum_rows(mask) for mask in masks.values()],
        room,
        rooms,
        best_first=True,
    )
    kept = {name: spread(row, masks[name]) & masks[name] for name, row in zip(names, rows, strict=True)}
    return {name: kept.get(name, mask).clone() for name, mask in among.items()}


def drop_filters(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], rate: float) -> Masks:
    """Return masks without the ceil(rate x filters) lowest-scored of each layer's filters that have an active weight.

    Ties keep the lower index.
    """
    alive = [mask.flatten(1).any(1) for mask in masks.values()]
    counts = [count - math.ceil(rate * count) for count in count_each(alive)]
    sums = (sum_rows(scores[name] * mask) for name, mask in masks.items())
    rows = choose_each(sums, counts, alive)
    return {name: spread(row, mask) & mask for (name, mask), row in zip(masks.items(), rows, strict=True)}


def grow_filters(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    layerwise: bool = True,
    among: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Return masks with whole filters added where none of a filter's weights is active: as many weights as in `like`.

    The highest-scored come first, each that still fits; layerwise: in every layer as many weights as it has in `like`.
    among: the weights that a filter gets, none where it is no candidate; by default those it had in `like` or, where it
    had none, all. Ties go to the earlier tensor, then to the lower index. Invariant: never more weights than in `like`.
    """
    present, wanted = count_each(masks.values()), count_each(like[name] for name in masks)
    missing = [want - have for want, have in zip(wanted, present, strict=True)]
    new = {}
    for name, mask in masks.items():
        blank = spread(~like[name].flatten(1).any(1), mask)
        new[name] = (like[name] | blank if among is None else among[name]) & spread(~mask.flatten(1).any(1), mask)
    rows = fill_room(
        [sum_rows(scores[name] * mask) for name, mask in new.items()],
        [sum_rows(mask) for mask in new.values()],
        sum(missing),
        missing if layerwise else None,
    )
    return {name: masks[name] | (spread(row, new[name]) & new[name]) for name, row in zip(masks, rows, strict=True)}


def fill_room(
    scores: Sequence[Tensor], sizes: Sequence[Tensor], room: int, rooms: Sequence[int] | None, best_first: bool = False
) -> list[Tensor]:
    """Return which filters of each layer are taken, given the scores and sizes of each layer's: see `keep_filters`.

    Filters of size zero are no candidates. rooms: what each layer may take at most; the best of a layer, where they
    come first, may exceed it. Raises ContractError for a score that is not finite.
    """
    flat, size = torch.cat(list(scores)), torch.cat(list(sizes))
    ranked = (flat + 0.0).sort(descending=True, stable=True).indices  # -0.0 becomes 0.0
    order, weights, finite = torch.stack([ranked, size.long(), torch.isfinite(flat).long()]).tolist()
    if not all(finite):
        raise ContractError("ranked a score that is not finite")
    layer = [place for place, part in enumerate(scores) for _ in range(len(part))]
    best = {layer[i]: i for i in reversed(order) if weights[i]} if best_first else {}
    first = [i for i in order if best.get(layer[i]) == i]
    left = list(rooms) if rooms is not None else [room] * len(scores)
    taken = torch.zeros(len(flat), dtype=torch.bool)
    for i in (*first, *(i for i in order if best.get(layer[i]) != i)):
        if 0 < weights[i] <= room and (weights[i] <= left[layer[i]] or best.get(layer[i]) == i):
            taken[i] = True
            room -= weights[i]
            left[layer[i]] -= weights[i]
    return list(taken.to(flat.device, non_blocking=True).split([len(part) for part in scores]))
