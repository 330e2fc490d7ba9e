"""Splitting a training part: by functions of its labels alone, the same for every method, seed and machine."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.errors import UserError
from benchmark.seeds import derive


def split_indices(labels: Tensor, split: str, shuffled: bool) -> tuple[Tensor, Tensor]:
    """Return the indices that train and those that validate (10 %, rounded up), both rising.

    split "holdout": drawn by `stratify`. split "paper": the last 10 % in stored order, or of a fixed permutation if
    `shuffled`. Invariant: disjoint, together all images, a function of (labels, split, shuffled) alone.
    """
    count = len(labels)
    share = -(-count // 10)
    if count < 2:
        raise UserError(f"split={split} needs at least 2 training images, got {count}; use split=full")
    if split == "holdout":
        held_out = stratify(labels, share, "holdout")
    else:
        order = sorted(range(count), key=lambda i: derive("paper split", i)) if shuffled else list(range(count))
        held_out = torch.tensor(sorted(order[count - share :]))
    return torch.ones(count, dtype=torch.bool).index_fill_(0, held_out, False).nonzero().squeeze(1), held_out


def stratify(labels: Tensor, total: int, name: str) -> Tensor:
    """Choose `total` indices, from each class in proportion to its size, by a draw that depends on `name` alone.

    Within a class images are ordered by a hash of (name, index); the k-th of n stands at (k + 1/2) / n, and the `total`
    lowest places over all classes are taken (Sainte-Lague's apportionment). Returns rising indices.
    """
    places: list[tuple[float, int, int]] = []
    for label in sorted(set(labels.tolist())):
        members = sorted((labels == label).nonzero().squeeze(1).tolist(), key=lambda i: derive(name, i))
        places += [((k + 0.5) / len(members), label, i) for k, i in enumerate(members)]
    return torch.tensor(sorted(i for _, _, i in sorted(places)[:total]))
