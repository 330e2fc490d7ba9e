"""GMP: gradual magnitude pruning.

Paper: Zhu & Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878 (cubic schedule); as run by the GraNet authors
as their baseline: global magnitude instead of layer-wise, from a dense start, "the only difference is regeneration".

Deviations: Zhu & Gupta's code keeps the values of pruned weights, so they can return; here, as in the GraNet authors'
code, a pruned weight is zero and stays pruned. The last pruning step hits the target exactly.
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
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class GMP(Method):
    """Prune globally by magnitude to the cubic schedule, from dense."""

    reference: ClassVar[str] = "Zhu & Gupta, 2017, arXiv:1710.01878"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE

    prune_end: float = from_page(0.5)  # t_f as a share of the run
    update_every: int = from_page(1000)  # ΔT in steps

    def update_steps(self, timeline: Timeline) -> range:
        last = min(self.prune_end * timeline.total_steps + 1, timeline.total_steps)
        return update_range(self.update_every, last)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        return cubic(0.0, self.sparsity, prune_progress(step, self.update_every, self.update_steps(timeline)))

    def setup(self, view: View) -> Masks:
        return all_active(view)

    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_top_global(magnitude(view), budget, among=view.masks)
