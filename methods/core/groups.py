"""N:M masks: at most N active weights in every group of M = 4 that follow each other along the input of a row.

A group holds four input channels of a convolution (four in-features of a linear layer) at one output and one kernel
position: the layout that sparse tensor cores multiply by (Mishra et al., 2021, arXiv:2104.08378). Layers whose inputs
are no multiple of four have no groups and are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from methods.core.declared import Masks
from methods.core.selection import choose

GROUP = 4
N_OF_M = {"2:4": 2, "1:4": 1}  # by pattern: how many of four stay


def check_pattern(pattern: str, sparsity: float, patterns: Sequence[str]) -> None:
    """Raise ValueError for a pattern that is not one of `patterns`, and for an N:M pattern at another sparsity."""
    if pattern not in patterns:
        hint = "; in a YAML file write '2:4' in quotes, or it is read in base 60" if pattern.isdigit() else ""
        raise ValueError(f"pattern must be one of {', '.join(patterns)}, got {pattern!r}{hint}")
    if pattern in N_OF_M and sparsity != 1 - N_OF_M[pattern] / GROUP:
        possible = 1 - N_OF_M[pattern] / GROUP
        raise ValueError(
            f"pattern={pattern} keeps {N_OF_M[pattern]} of every {GROUP} weights, so its sparsity is {possible:g}, got "
            f"{sparsity:g}: ask SPARSITY={possible:g}"
        )


def has_groups(shape: tuple[int, ...]) -> bool:
    """Return whether a weight of this shape divides into groups: its inputs, the second dimension, by four."""
    return shape[1] % GROUP == 0


def describe_ungrouped(pattern: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return a sentence that names the layers which an N:M pattern leaves as they are, none for another pattern."""
    left = [name for name, shape in shapes.items() if not has_groups(shape)]
    if pattern not in N_OF_M or not left:
        return []
    return [f"pattern={pattern} leaves {', '.join(left)} dense: inputs that are no multiple of {GROUP}"]


def fold(values: Tensor) -> Tensor:
    """Return the values as groups, a matrix of four columns; consecutive inputs of a row stand in one group."""
    return values.movedim(1, -1).reshape(-1, GROUP)


def unfold(groups: Tensor, like: Tensor) -> Tensor:
    """Return groups in the shape of `like`, from which they were folded."""
    return groups.reshape(like.movedim(1, -1).shape).movedim(-1, 1).contiguous()


def rank_in_groups(groups: Tensor, among: Tensor) -> Tensor:
    """Return each candidate's rank in its group, 0 for the largest; ties go to the lower index.

    Those that are no candidates come last.
    """
    values = groups.double().masked_fill(~among, -math.inf)
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def keep_n_of_m(scores: Mapping[str, Tensor], n: int, share: float, among: Mapping[str, Tensor]) -> Masks:
    """Return masks in which round(share x groups) groups keep at most their n largest scores among the active ones.

    Groups that hold the pattern already are the first of them, then those that lose the smallest sum of scores; ties go
    to the earlier tensor, then to the lower index. Invariant: a subset of `among`; a share of 1 gives the pattern
    everywhere.
    """
    names = [name for name, mask in among.items() if has_groups(tuple(mask.shape))]
    kept, losses = {}, []
    for name in names:
        active = fold(among[name])
        kept[name] = active & (rank_in_groups(fold(scores[name]), active) < n)
        lost = (fold(scores[name]).double() * (active & ~kept[name])).sum(1)
        losses.append(lost.masked_fill(active.sum(1) <= n, -1.0))
    masks = {name: mask.clone() for name, mask in among.items()}
    if not names:
        return masks
    chosen = choose([-lost for lost in losses], round(share * sum(map(len, losses))), [None] * len(losses))
    for name, groups in zip(names, chosen, strict=True):
        masks[name] &= unfold(kept[name] | ~groups.unsqueeze(1), masks[name])
    return masks


def grow_in_groups(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Masks:
    """Return masks with the highest-scored inactive weights of each group added until it has as many as in `like`.

    A layer without groups is that of `like`. Ties go to the lower index. Invariant: every group has as many active
    weights as in `like`.
    """
    grown = {}
    for name, mask in masks.items():
        if not has_groups(tuple(mask.shape)):
            grown[name] = like[name].clone()
            continue
        kept = fold(mask)
        missing = fold(like[name]).sum(1, keepdim=True) - kept.sum(1, keepdim=True)
        new = ~kept & (rank_in_groups(fold(scores[name]), ~kept) < missing)
        grown[name] = mask | unfold(new, mask)
    return grown
