"""MEST: exchange the least important weights of each layer for random ones, within a fixed memory (EM, EM&S).

Paper: Yuan et al., "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge", NeurIPS 2021,
arXiv:2110.14032; code: boone891214/MEST, scripts/resnet32. Elastic mutation (EM): at each update every layer loses a
share of its active weights, the mutation ratio, and gets as many back at random; the ratio falls in two steps to zero.

`soft=0.05` is the authors' soft memory bound (EM&S): the run starts with that share of all weights above the target,
each update prunes to the target and grows at random as many as are still allowed beyond it, in the end none.

Deviations (point | paper | authors' code | here | why):
- importance | magnitude plus lambda times that of the gradient | the same; lambda is 0 by default and in its scripts |
  the same, gradient_weight=0 by default | as the code is run; the paper's own lambda was not found
- first masks | random | the largest of each layer, exchanged at once | random, exact counts | alike for equal budgets
- layer densities | the same in every layer | the same in every layer that its profile lists, the others dense | the
  page's distribution (ERK) | the same layers and start for every method
- mutation ratio | not stated | 0.02 of all weights at 90 %, 0.01 at 95 %, halved at epoch 90 of 160, none from epoch
  120 on | 0.2 of the active weights, halved and ended at the same shares of the run | the same numbers, at any sparsity
- soft memory bound | denser than the target at first | by 0.05 of all weights (in its README 0.02), half of it from
  epoch 90, none from epoch 120 on | soft=0.05, likewise | as the script; 0 is EM
- when | every 5 epochs | the same, first before the first step | every ΔT of the page | short runs need updates too
- last update | not stated | until the last epoch, those from epoch 120 on change nothing | the first multiple of ΔT at
  or after 0.75 of the run | the same
- number exchanged | a share of a layer | above a percentile of its importances, ties lost | the same share of every
  layer, in whole weights that sum to the budget | counts are exact
- candidates for growth | not stated | zero weights, the just removed included | the same | as the code
- new weights | zero | zero, the just removed as well | zero with zero momentum; removed first, then grown | as the code
- momentum of removed weights | not stated | kept | zero | an inactive weight has none, for every method
- update and step | not stated | before an epoch's first step | follows the step | as every method
- recipe | ResNet-32, 160 epochs, batch 64 | lr 0.1, cosine, 8 epochs of warm-up | the page's | one for every method
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Masks,
    Method,
    Stages,
    Timeline,
    View,
    count_layers,
    from_page,
    keep_top_each,
    magnitude,
    random_masks,
    random_scores,
    uniform,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class MEST(Method):
    """Exchange a falling share of the smallest weights for random ones; with `soft`, start denser than the target."""

    reference: ClassVar[str] = "Yuan et al., 2021, arXiv:2110.14032"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE

    prune_rate: float = 0.2  # mutation ratio of EM at first: share of the active weights
    soft: float = 0.0  # EM&S: share of all weights active beyond the target at first; 0: EM
    gradient_weight: float = 0.0  # lambda: weights are removed by |w| + lambda |dL/dw|
    halve_at: float = 0.5625  # share of the run from which on half as many are exchanged, or active beyond the target
    update_end: float = 0.75  # share of the run from which on none are
    update_every: int = from_page(1000)  # ΔT in steps
    distribution: str = from_page("erk")

    def validate(self) -> None:
        if not 0 <= self.soft <= self.sparsity:
            raise ValueError(f"soft must be in [0, sparsity = {self.sparsity}], got {self.soft}")
        if self.gradient_weight < 0:
            raise ValueError(f"gradient_weight must be 0 or more, got {self.gradient_weight}")
        if not 0 <= self.halve_at <= 1:
            raise ValueError(f"halve_at must be in [0, 1], got {self.halve_at}")

    def update_steps(self, timeline: Timeline) -> range:
        before = len(update_range(self.update_every, self.update_end * timeline.total_steps))
        return update_range(self.update_every, min((before + 1) * self.update_every + 1, timeline.total_steps))

    def share(self, step: int, timeline: Timeline) -> float:
        """Return what part of the exchange, or of `soft`, is left at the last planned update up to `step`."""
        done = min(step // self.update_every, len(self.update_steps(timeline)))
        progress = done * self.update_every / timeline.total_steps
        if progress >= self.update_end:
            return 0.0
        return 0.5 if progress >= self.halve_at else 1.0

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        return self.sparsity - self.share(step, timeline) * self.soft

    def setup(self, view: View) -> Masks:
        count = view.count(self.planned_sparsity(0, view.timeline))
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, count))

    def update(self, view: View) -> Stages:
        share = self.share(view.step, view.timeline)
        exchanged = 0.0 if self.soft else share * self.prune_rate * (1 - self.sparsity)
        grown = self.divide(count_layers(view.masks), view.count(self.planned_sparsity(view.step, view.timeline)))
        left = self.divide(grown, view.count(self.sparsity + exchanged))
        kept = keep_top_each(self.importance(view), left, view.masks)
        missing = {name: grown[name] - left[name] for name in grown}
        new = keep_top_each(random_scores(view), missing, {name: ~mask for name, mask in kept.items()})
        return kept, {name: kept[name] | new[name] for name in kept}  # what is removed and drawn again starts at zero

    def importance(self, view: View) -> Mapping[str, Tensor]:
        """Return |w| + lambda |dL/dw|."""
        if not self.gradient_weight:
            return magnitude(view)
        gradients = view.active_gradients
        return {n: size + self.gradient_weight * gradients[n].abs() for n, size in magnitude(view).items()}

    def divide(self, counts: dict[str, int], total: int) -> dict[str, int]:
        """Return `total` in proportion to the counts of the layers, none above its own."""
        return uniform({name: (count,) for name, count in counts.items()}, total)
