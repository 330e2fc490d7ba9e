"""SNFS, sparse networks from scratch: grow where the momentum of the gradient is largest (sparse momentum).

Paper: Dettmers & Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing Performance", 2019,
arXiv:1907.04840, Algorithm 1: M = alpha M + (1 - alpha) dE/dW of all weights at every step; after each epoch the layers
lose a share r of their weights by magnitude, get new ones in proportion to the mean |M| of their active weights, and
grow those of the largest |M|. RigL's version of it, by ERK the 'SNFS (ERK)' of the GraNet paper's Table 3:
`redistribute=false prune_rate=0.3 final_prune_rate=0 update_every=100 update_end=0.75`.

Deviations (point | paper | authors' code | here | why):
- first masks | uniform | drawn by probability, uniform; RigL's: ERK by a flag | the page's (ERK), exact | equal starts
- momentum | average of gradients | SGD's buffer, with decay; RigL's: an average | the paper's | for every optimiser
- a new weight's momentum | not stated | what the buffer holds; RigL's: zero | zero | as every method's new weights
- when | after each epoch | after each epoch, the last too; RigL's: every 100 steps | after each epoch but the last, or
  every update_every steps | weights grown after the last step would never be trained
- share r | 0.5, annealed | by a cosine to 0.005; RigL's: 0.3, to 0 | by a cosine to 0.005 at update_end | as the code
- weights removed | of smallest magnitude | ceil(r n), ties too; RigL's: floor(r n) | the same, no ties | exact counts
- dense layers | not stated | at sparsity s < 0.2 and a share of momentum above 1 / L: r <= s | the same | as the code
- shares | by the mean magnitude of M | rounded up, at most 0.99 of the free places, the rest spread evenly in up to
  1000 rounds, rounded down | not rounded up; what is missing to the largest remainders | the budget is exact
- drift of the count | not stated | made up for: 0.25 of the last adjustment + 0.75 of what is missing + the mean of all
  that was missing | none: nothing is ever missing | the budget is exact at every update
- candidates for growth | zero weights | all not kept; the just-removed keep their values | the same | as the code
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core import (
    DISTRIBUTIONS,
    DenseGrads,
    Group,
    Masks,
    Method,
    Timeline,
    Update,
    View,
    cosine,
    count_layers,
    drop,
    from_page,
    grow,
    keep_top_each,
    magnitude,
    random_masks,
    update_range,
)

ALPHA = 0.9  # of the momentum: in the paper, its code and RigL's


@dataclass(frozen=True, kw_only=True)
class SNFS(Method):
    """Exchange the smallest weights for those of the largest momentum, the layers sharing by theirs."""

    reference: ClassVar[str] = "Dettmers & Zettlemoyer, 2019, arXiv:1907.04840"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.EVERY_STEP

    prune_rate: float = 0.5  # r
    final_prune_rate: float = 0.005
    redistribute: bool = True  # false: each layer grows as many as it lost
    update_every: int = 0  # steps between exchanges; 0: once per epoch
    update_end: float = 1.0  # share of the run after which masks stay
    distribution: str = from_page("erk")

    def update_steps(self, timeline: Timeline) -> range:
        return range(1, timeline.total_steps + 1)  # the momentum moves at each, the masks at some

    def setup(self, view: View) -> Update:
        masks = random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))
        return Update(masks, state={name: torch.zeros_like(weight) for name, weight in view.weights.items()})

    def update(self, view: View) -> Update:
        state = {name: ALPHA * view.state[name] + (1 - ALPHA) * g for name, g in view.gradients.items()}
        every, end = self.update_every or view.timeline.steps_per_epoch, self.update_end * view.timeline.total_steps
        due, done = view.step // every, int(view.state.get("exchanges", 0))  # a skipped step's comes at the next
        if due == done or due * every not in update_range(every, end):
            return Update(state=state)
        rate = cosine(self.prune_rate, self.final_prune_rate, min(1.0, view.step / end))
        masks = self.exchange(view, {name: value.abs() for name, value in state.items()}, rate)
        return Update(masks, state={**state, "exchanges": next(iter(state.values())).new_tensor(due)})

    def exchange(self, view: View, size: Mapping[str, Tensor], rate: float) -> Masks:
        """Return the masks after one removal and one growth by `size`, |M|."""
        if not self.redistribute:
            return grow(drop(dict(view.masks), magnitude(view), rate), size, like=view.masks)
        active = count_layers(view.masks)
        means = {n: float((size[n].double() * mask).sum()) / max(1, active[n]) for n, mask in view.masks.items()}
        shares = {name: mean / (math.fsum(means.values()) or 1.0) for name, mean in means.items()}
        sparsity = {name: (mask.numel() - active[name]) / mask.numel() for name, mask in view.masks.items()}
        caps = {name: s if s < 0.2 and shares[name] > 1 / len(shares) else 1.0 for name, s in sparsity.items()}
        removed = {name: math.ceil(min(rate, caps[name]) * count) for name, count in active.items()}
        kept = keep_top_each(magnitude(view), {name: active[name] - removed[name] for name in active}, view.masks)
        inactive = {name: ~mask for name, mask in kept.items()}
        grown = keep_top_each(size, share_out(sum(removed.values()), shares, count_layers(inactive)), inactive)
        return {name: mask | grown[name] for name, mask in kept.items()}


def share_out(total: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Return how many of `total` weights each layer grows in its `room`, by its share of the momentum."""
    wanted, most = {n: share * total for n, share in shares.items()}, {n: 0.99 * free for n, free in room.items()}
    for _ in range(1000):
        over = math.fsum(max(0.0, count - most[name]) for name, count in wanted.items())
        wanted = {name: min(count, most[name]) + over / len(wanted) for name, count in wanted.items()}
        if over == 0:
            break
    counts = {name: math.floor(min(count, most[name])) for name, count in wanted.items()}
    largest_remainder = itertools.cycle(sorted(counts, key=lambda name: counts[name] - wanted[name]))
    while sum(counts.values()) < total:
        name = next(largest_remainder)
        counts[name] += counts[name] < room[name]
    return counts
