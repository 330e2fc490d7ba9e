"""GraNet: gradual magnitude pruning with neuroregeneration at every pruning step.

Paper: Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021,
arXiv:2106.10404. Eq. 1: cubic sparsity schedule and global magnitude pruning; Eq. 2: layer-wise drop of the smallest
weights; Eq. 3: regrowth of as many by gradient magnitude.

start_sparsity 0.5 is the paper's sparse-to-sparse setting, 0.0 its dense-to-sparse setting.

Deviations: exact-count ERK instead of the authors' Bernoulli draw; the schedule's last step is k = n, so the target is
hit exactly (the authors' code stops at n - 1); exactly K weights are kept instead of those above a threshold; growth
never lands on active weights. As in their code: the update follows the optimiser step, the drop rate is annealed to
0.005 over the whole run, regeneration goes on after the target is reached, and a weight dropped and regrown in one
update keeps its value and momentum.
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
        last = min(self.prune_end * timeline.total_steps + 1, timeline.total_steps)
        done = prune_progress(step, self.update_every, update_range(self.update_every, last))
        return cubic(self.start_sparsity, self.sparsity, done)

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.start_sparsity)))

    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        pruned = keep_top_global(magnitude(view), budget, among=view.masks)  # Eq. 1
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        kept = drop(pruned, magnitude(view), rate, math.ceil)  # Eq. 2
        return grow(kept, gradient_magnitude(view), like=pruned)  # Eq. 3
