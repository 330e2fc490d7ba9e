"""GraNet, uniform: gradual pruning of every layer to the same sparsity, with neuroregeneration at every pruning step.

Paper: Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021,
arXiv:2106.10404, Appendix C.3: GraNet with layer-wise uniform sparsity instead of global pruning, the last layer at
density 0.2 or more above 80 % sparsity. The schedule of Eq. 1, and Eqs. 2 and 3, are as in `granet`, whose deviations
hold here as well.

Deviations (point | paper | authors' code | here | why):
- sparsity of a layer | the same in every layer | the same: int(density x n) of each layer, and what ties with the last
  of them, so that all stay where it is 0 | the same, left-over weights to the largest remainders; no layer gets back
  what Eq. 1 took | the sum over layers is exact
- last layer above 80 % | density 0.2 or more | from sparsity 0.8 on: int(0.2 n), the other layers sparser for it | a
  fifth of its weights, rounded up, the other layers sparser for it | the sum over layers is exact
- first masks | not stated | as --sparse-init says, ERK or uniform, each weight drawn with its probability; the sizes
  that the last layer's share needs are counted with ERK alone | drawn with the same uniform counts | a uniform method
  starts uniform
- last layer | the network's classifier | the layer whose name contains 'classifier' | the last of the page's layers;
  where keep_dense exempts it, all others are uniform | the same layers for every method
- last pruning step | t0 + n ΔT | k = floor(n), where n = t_f / ΔT is not rounded (as it is for `granet`), so just short
  of s_f | k = n | the target is hit exactly
- end of pruning, t_f | first learning-rate drop for s_i = 0.5; not stated for s_i = 0 | epoch 80 of 160 in the script,
  110 by default; 30 on ImageNet | the page's prune_end for both starts | as `granet`
- pruned (Eq. 1), regrown at once | pruned weights are set to zero | starts at zero with zero momentum | the same | as
  the code: both masks are applied in turn
- end of regeneration | not stated | none, until the last epoch | the last multiple of ΔT below the last step | weights
  grown at the last step would never be trained
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DenseGrads,
    Group,
    Masks,
    Method,
    Stages,
    Timeline,
    View,
    cosine,
    count_layers,
    cubic,
    drop,
    from_page,
    gradient_magnitude,
    grow,
    keep_top_each,
    magnitude,
    prune_progress,
    prune_range,
    random_masks,
    uniform_but_last,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class GraNetUniform(Method):
    """Prune every layer by magnitude to the cubic schedule, then exchange weights within each layer."""

    reference: ClassVar[str] = "Liu et al., 2021, arXiv:2106.10404, Appendix C.3"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES

    start_sparsity: float = 0.5  # s_i; 0.0 is the dense-to-sparse setting
    prune_rate: float = 0.5  # r: share of a layer's active weights exchanged at an update
    final_prune_rate: float = 0.005  # r at the end of the run
    prune_end: float = from_page(0.5)  # t_f as a share of the run: the first learning-rate drop
    update_every: int = from_page(1000)  # ΔT in steps

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
        return cubic(self.start_sparsity, self.sparsity, prune_progress(step, self.update_every, steps))

    def setup(self, view: View) -> Masks:
        return random_masks(view, uniform_but_last(view.shapes, view.count(self.start_sparsity), view.last))

    def update(self, view: View) -> Stages:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        counts = uniform_but_last(view.shapes, budget, view.last, count_layers(view.masks))
        pruned = keep_top_each(magnitude(view), counts, among=view.masks)  # Eq. 1, layer by layer
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        kept = drop(pruned, magnitude(view), rate, math.ceil)  # Eq. 2
        return pruned, grow(kept, gradient_magnitude(view), like=pruned)  # Eq. 1 zeroes what it prunes; then Eq. 3
