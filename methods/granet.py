"""GraNet: gradual magnitude pruning with neuroregeneration at every pruning step.

Paper: Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021,
arXiv:2106.10404. Eq. 1: cubic sparsity schedule and global magnitude pruning; Eq. 2: layer-wise drop of the smallest
weights; Eq. 3: regrowth of as many by gradient magnitude.

start_sparsity 0.5 is the paper's sparse-to-sparse setting, 0.0 its dense-to-sparse setting.

Deviations (point | paper | authors' code | here | why):
- first masks | not stated | ERK, each weight drawn with its probability | ERK, exact counts | the budget is exact
- schedule | Eq. 1, printed with Δt as denominator | cubic in k / n, first at step ΔT (k = 1) | as the code | the
  denominator can only be n ΔT, as in Zhu & Gupta
- last pruning step | t0 + n ΔT | k = n - 1 (until January 2022: n) | k = n | the target is hit exactly
- end of pruning, t_f | first learning-rate drop for s_i = 0.5; not stated for s_i = 0 | epoch 80 of 160 in the script
  (s_i = 0.5), 110 by default; 30 on ImageNet | the page's prune_end for both starts: epoch 80, on ImageNet 30 |
  prune_end=0.6875 is epoch 110
- ΔT | every few thousand steps | 1000 (CIFAR), 4000 (ImageNet) | the page's: the same, fewer on short pages | a short
  run needs updates too
- weights kept, Eq. 1 | by global magnitude | CIFAR: above a threshold, ties lost; ImageNet: at or above it, so that all
  masks turn dense where it is 0 | exactly K of the active, ties to the lower index | the budget is exact
- weights dropped, Eq. 2 | TopK of each layer | CIFAR: ceil(r n) by a threshold, ties dropped as well; ImageNet: sorted
  | exactly ceil(r n) of each layer | counts are exact
- candidates, Eq. 3 | zero weights | gradient times the inverted mask, which can land on active weights where few
  gradients are non-zero | inactive weights only, the just-dropped included | no layer loses density
- gradient, Eq. 3 | dense | of the current batch, from before the step and the pruning | the same | as the code
- new weights | not stated | zero, with zero momentum | the same | as the code
- dropped (Eq. 2), regrown at once | not stated | keeps its value and momentum | keeps both | as the code
- pruned (Eq. 1), regrown at once | pruned weights are set to zero | starts at zero with zero momentum | the same | as
  the code: both masks are applied in turn
- update and step | right after a pruning step | follows the weight update, which is not skipped | the same | as the
  code
- drop rate r | not stated | 0.5, by a cosine to 0.005 over the whole run | the same | as the code
- end of regeneration | not stated | none, until the last epoch | the last multiple of ΔT below the last step | weights
  grown at the last step would never be trained
- prunable weights | those of all layers | every tensor of two or four dimensions | those of convolutions and linear
  layers, by type | other tensors have two dimensions too, such as position embeddings
- accuracy | on test | of the best test epoch after t_f (ImageNet: of all) | of the last; best recorded apart | a test
  set must not choose
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DISTRIBUTIONS,
    DenseGrads,
    Group,
    Masks,
    Method,
    Stages,
    Timeline,
    View,
    cosine,
    cubic,
    drop,
    from_page,
    gradient_magnitude,
    grow,
    keep_top_global,
    magnitude,
    prune_progress,
    prune_range,
    random_masks,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class GraNet(Method):
    """Prune globally by magnitude to the cubic schedule, then exchange weights within each layer."""

    reference: ClassVar[str] = "Liu et al., 2021, arXiv:2106.10404"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES

    start_sparsity: float = 0.5  # s_i; 0.0 is the paper's dense-to-sparse setting
    prune_rate: float = 0.5  # r: share of a layer's active weights exchanged at an update
    final_prune_rate: float = 0.005  # r at the end of the run
    prune_end: float = from_page(0.5)  # t_f as a share of the run: the first learning-rate drop
    update_every: int = from_page(1000)  # ΔT in steps
    distribution: str = from_page("erk")  # of the first masks

    def validate(self) -> None:
        if not 0 <= self.start_sparsity <= self.sparsity:
            raise ValueError(
                f"start_sparsity must be in [0, sparsity = {self.sparsity}], got {self.start_sparsity}: "
                "lower it (ARGS=start_sparsity=0) or raise SPARSITY"
            )

    def leaderboard_group(self) -> Group:
        return Group.SPARSE_TO_SPARSE if self.start_sparsity > 0 else Group.DENSE_TO_SPARSE

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, timeline.total_steps)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = prune_range(self.update_every, self.prune_end, timeline.total_steps)
        done = prune_progress(step, self.update_every, steps)
        return cubic(self.start_sparsity, self.sparsity, done)

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.start_sparsity)))

    def update(self, view: View) -> Stages:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        pruned = keep_top_global(magnitude(view), budget, among=view.masks)  # Eq. 1
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        kept = drop(pruned, magnitude(view), rate, math.ceil)  # Eq. 2
        return pruned, grow(kept, gradient_magnitude(view), like=pruned)  # Eq. 1 zeroes what it prunes; then Eq. 3
