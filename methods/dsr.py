"""DSR: dynamic sparse reparameterisation.

Paper: Mostafa & Wang, "Parameter Efficient Training of Deep Convolutional Neural Networks by Dynamic Sparse
Reparameterization", ICML 2019, arXiv:1902.05967, Algorithm 1: every so many steps remove all weights with |w| < H, one
threshold for the network; grow as many at random, each layer in proportion to the weights that survived in it; halve H
if more than about N_p went, double it if fewer. The authors' code is that of IntelAI/dynamic-reparameterization.

Deviations (point | paper | authors' code | here | why):
- dense layers | first convolution, 1x1 shortcuts; on CIFAR the classifier | the same | by keep_dense | as every method
- sparsity | of the sparse tensors: "80 / 90 %" of ResNet-50 are 71.3 / 80.2 % of all | the same | of all prunable
  weights; a remark tells the paper's count | one budget for every method
- first masks | uniform at random | int((1 - S) n + 0.1) of each tensor | uniform, exact counts | the budget is exact
- N_p | 20,000 of some 150,000 (WRN-28-2), 400,000 (ResNet-50) | the same | a tenth of the active | for every network
- period | WRN-28-2: 100 steps, doubled at epochs 25, 80, 140 of 200; ResNet-50: 1000, at 25, 50, 75 of 100 | the same,
  to epoch 190 or 95 | update_every, by shares of the run: schedule=wrn or resnet50 | runs have other lengths
- a layer that would lose all | not stated | keeps its first weight | the same | as the code
- H, at first 0.001 | halved or doubled | after growth, where N_p is missed by a tenth | the same | as the code
- rounding of growth | not stated | the rest to a random layer | the rest to random layers, one each | as the code
- candidates for growth | zero weights | without the just-removed | the same while there are others | the exact budget
- new weights | zero | zero; momentum is what it was | zero, without momentum | as every method's
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Method,
    Timeline,
    Update,
    View,
    count_layers,
    keep_top,
    keep_top_each,
    random_masks,
    update_range,
)

DOUBLED = {"wrn": (0.125, 0.4, 0.7), "resnet50": (0.25, 0.5, 0.75)}  # the period, from these shares of the run on
END = 0.95


@dataclass(frozen=True, kw_only=True)
class DSR(Method):
    """Remove what is below an adaptive threshold; regrow at random where most survive."""

    reference: ClassVar[str] = "Mostafa & Wang, 2019, arXiv:1902.05967"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE

    exchange: float = 0.1  # N_p as a share of the active weights
    threshold: float = 1e-3  # H at first
    update_every: int = 100  # steps, before it is doubled
    schedule: str = "wrn"
    distribution: str = "uniform"

    def validate(self) -> None:
        if not (0 < self.exchange < 1 and self.threshold > 0):
            raise ValueError(f"exchange must be in (0, 1), threshold above 0, got {self.exchange}, {self.threshold}")
        if self.schedule not in DOUBLED:
            raise ValueError(f"schedule must be one of {', '.join(DOUBLED)}, got {self.schedule!r}")

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        short = [n for n, s in shapes.items() if s[2:] == (1, 1) and ("shortcut" in n or "downsample" in n)]
        dense, total = sum(sizes[name] for name in {next(iter(shapes)), *short}), sum(sizes.values())
        here = self.sparsity * (1 - dense / total)
        told = f"dense ({dense:,} of {total:,} weights), so that its sparsity {self.sparsity:g} is {here:.4g} here"
        return [f"the paper counts sparse tensors alone and keeps the first convolution and 1x1 shortcuts {told}"]

    def update_steps(self, timeline: Timeline) -> list[int]:
        total, shares = timeline.total_steps, DOUBLED[self.schedule]
        periods = {s: self.update_every * 2 ** sum(s > share * total for share in shares) for s in range(1, total + 1)}
        return [step for step in update_range(1, END * total) if step % periods[step] == 0]

    def setup(self, view: View) -> Update:
        masks = random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))
        device = next(iter(masks.values())).device
        return Update(masks, state={"threshold": torch.tensor(self.threshold, dtype=torch.float64, device=device)})

    def update(self, view: View) -> Update:
        limit = float(view.state["threshold"])
        kept = {name: keep_large(mask, view.weights[name].abs() >= limit) for name, mask in view.masks.items()}
        had, left = count_layers(view.masks), count_layers(kept)
        gone, free = {n: had[n] - left[n] for n in had}, {n: mask.numel() - had[n] for n, mask in kept.items()}
        removed, wanted = sum(gone.values()), self.exchange * sum(had.values())
        order = sorted(had, key=lambda name: view.key(name, "rest", False))
        new = share_out(min(removed, sum(free.values())), left, free, order)
        back = share_out(removed - sum(new.values()), gone, gone, order)  # of the just-removed: there are no others
        draws = {name: view.uniform(name, "grow") - mask.double() for name, mask in view.masks.items()}
        grown = keep_top_each(draws, {n: new[n] + back[n] for n in had}, {n: ~mask for n, mask in kept.items()})
        factor = 0.5 if removed > 1.1 * wanted else 2.0 if removed < 0.9 * wanted else 1.0
        masks = {name: mask | grown[name] for name, mask in kept.items()}
        return Update((kept, masks), state={"threshold": view.state["threshold"] * factor})


def keep_large(mask: Tensor, large: Tensor) -> Tensor:
    """Return the mask where weights are large, or its first weight where none is."""
    kept = mask & large
    return kept if bool(kept.any()) else keep_top(mask.float(), min(1, int(mask.sum())), mask)


def share_out(total: int, parts: Mapping[str, int], room: Mapping[str, int], order: list[str]) -> dict[str, int]:
    """Divide `total` among layers in proportion to `parts`, none above its room; `order`: who gets the rest."""
    given = dict.fromkeys(room, 0)
    while left := total - sum(given.values()):
        open_layers = [name for name in order if given[name] < room[name]]
        whole = sum(parts[name] for name in open_layers)
        shares = {name: left * parts[name] // whole if whole else 0 for name in open_layers}
        for name in open_layers[: left - sum(shares.values())]:
            shares[name] += 1
        given |= {name: min(room[name], given[name] + share) for name, share in shares.items()}
    return given
