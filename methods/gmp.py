"""GMP: gradual magnitude pruning.

Paper: Zhu & Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878 (cubic schedule); as run by the GraNet authors
as their baseline: global magnitude instead of layer-wise, from a dense start, "the only difference is regeneration".

Deviations (point | paper | authors' code | here | why):
- ranking | within each layer | GraNet's: over all layers | over all layers | the GraNet authors' baseline
- pruned weights | not stated | TensorFlow's: keep their values without being updated, so they can return; GraNet's:
  zeroed, never return | zeroed, with their momentum; never return | an inactive weight is zero for every method
- weights kept | the largest | GraNet's: those above a threshold (CIFAR), or at or above it (ImageNet) | exactly K, ties
  to the lower index | the budget is exact
- schedule | cubic, from s_i to s_f at t0 + n ΔT | GraNet's: cubic in k / n; STR's: over end - start + 1 epochs | cubic
  in k / n from s_i = 0 | as GraNet's
- last pruning step | reaches s_f | GraNet's: k = n - 1; STR's: not exactly s_f | k = n | the target is hit exactly
- when pruning ends | not stated | GraNet's: epoch 110 by default, 80 in its script for GraNet; RigL's: step 25,000 of
  32,000 (ImageNet) and 75,000 of 97,656 (CIFAR); STR's: epoch 79 | the page's prune_end, as for GraNet | one schedule
  for both; prune_end=0.6875 is epoch 110
- when pruning starts | not stated | RigL's: step 10,000 (ImageNet), 20,000 (CIFAR); STR's: epoch 20; GraNet's: step ΔT
  | step ΔT | as GraNet's
- ΔT in steps | not stated | GraNet's: 1000 (CIFAR), 4000 (ImageNet); RigL's: 1000 | the page's, as for GraNet | as
  GraNet's
- layers left dense | not stated | GraNet's: none; Gale et al. (2019): first convolution dense, last layer at most 80 %
  sparse, the others uniform | none unless the page's keep_dense says so | the same layers for every method
- length of training | not stated | Gale et al. (2019): also 1.5 times as long | the page's epochs | the same number of
  steps for every method
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    Group,
    Masks,
    Method,
    Timeline,
    View,
    all_active,
    cubic,
    from_page,
    keep_top_global,
    magnitude,
    prune_progress,
    prune_range,
)


@dataclass(frozen=True, kw_only=True)
class GMP(Method):
    """Prune globally by magnitude to the cubic schedule, from dense."""

    reference: ClassVar[str] = "Zhu & Gupta, 2017, arXiv:1710.01878"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE

    prune_end: float = from_page(0.5)  # t_f as a share of the run
    update_every: int = from_page(1000)  # ΔT in steps

    def update_steps(self, timeline: Timeline) -> range:
        return prune_range(self.update_every, self.prune_end, timeline.total_steps)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        return cubic(0.0, self.sparsity, prune_progress(step, self.update_every, self.update_steps(timeline)))

    def setup(self, view: View) -> Masks:
        return all_active(view)

    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_top_global(magnitude(view), budget, among=view.masks)
