"""GraNet from a dense network that is left dense for a while: the other reading of its dense-to-sparse setting.

Paper: Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", NeurIPS 2021,
arXiv:2106.10404, Eqs. 1 to 3 with s_i = 0. It does not state t0, the step at which pruning begins. The FLOPs counter
that stems from its authors takes the first 5 of 100 epochs of ImageNet as dense; the command of their README begins at
once, as `granet` with start_sparsity=0 does. Where pruning has begun, the two are the same method.

Deviations (point | paper | authors' code | here | why):
- first pruning step, t0 | not stated | the argument of its command is 0; a counter of theirs has 5 of 100 epochs | the
  first multiple of ΔT after the share prune_start of the run | both readings have a row
- regeneration before t0 | not stated | none | none | a dense layer has nothing to exchange
- everything else | see granet | see granet | as granet | one method
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
    all_active,
    cosine,
    cubic,
    drop,
    from_page,
    gradient_magnitude,
    grow,
    keep_top_global,
    magnitude,
    prune_range,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class GraNetLate(Method):
    """Train dense until t0; then prune globally to the cubic schedule and exchange weights within each layer."""

    reference: ClassVar[str] = "Liu et al., 2021, arXiv:2106.10404"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES

    prune_start: float = 0.05  # t0 as a share of the run: 5 of 100 epochs
    prune_rate: float = 0.5  # r: share of a layer's active weights exchanged at an update
    final_prune_rate: float = 0.005  # r at the end of the run
    prune_end: float = from_page(0.5)  # t_f as a share of the run: the first learning-rate drop
    update_every: int = from_page(1000)  # ΔT in steps

    def validate(self) -> None:
        if not 0 <= self.prune_start < self.prune_end:
            raise ValueError(f"prune_start must be in [0, prune_end = {self.prune_end}), got {self.prune_start}")

    def begun(self, steps: range, timeline: Timeline) -> range:
        """Return those of the steps that come after t0."""
        return steps[math.floor(self.prune_start * timeline.total_steps + 1e-9) // self.update_every :]

    def update_steps(self, timeline: Timeline) -> range:
        return self.begun(update_range(self.update_every, timeline.total_steps), timeline)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = self.begun(prune_range(self.update_every, self.prune_end, timeline.total_steps), timeline)
        return cubic(0.0, self.sparsity, sum(at <= step for at in steps) / len(steps) if steps else 0.0)

    def setup(self, view: View) -> Masks:
        return all_active(view)

    def update(self, view: View) -> Stages:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        pruned = keep_top_global(magnitude(view), budget, among=view.masks)  # Eq. 1
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        kept = drop(pruned, magnitude(view), rate, math.ceil)  # Eq. 2
        return pruned, grow(kept, gradient_magnitude(view), like=pruned)  # Eq. 1 zeroes what it prunes; then Eq. 3
