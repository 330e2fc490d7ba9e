"""GraNet, structured: gradual pruning of whole filters, or to N:M masks, with neuroregeneration at every pruning step.

Papers: Liu et al., 2021, arXiv:2106.10404, Eqs. 1 to 3, from a dense start, with filters in the place of weights as in
its Section 3: scored by their L1 norm (Li et al., 2017, arXiv:1608.08710), regrown by the sum of their gradient
magnitudes. 2:4 and 1:4: Mishra et al., 2021, arXiv:2104.08378; a weight is regrown within the group of four that lost
one, so that the pattern holds.

pattern=2:4 asks for SPARSITY=0.5, 1:4 for 0.75. The count of weights is an outcome, and recorded. Patterns, scope and
the schedule are those of `gmp_structured`, exchange and its rate those of `granet`; their deviations hold here as well.

Deviations (point | paper | authors' code | here | why):
- start | s_i = 0.5 or dense | not in VITA-Group/GraNet: its README names prune_structured and
  prune_and_grow_structured, its core.py has neither | dense | a random half of the filters would be a narrower network
- filters dropped, Eq. 2 | TopK of each layer's weights | not in VITA-Group/GraNet | ceil(r n) of the n filters of each
  layer, by L1 norm | as for weights
- filters grown, Eq. 3 | by summed gradient magnitude, among all that are zero | not in VITA-Group/GraNet | as many in
  each layer as were dropped, among those that this update pruned or dropped | batch norm divides by sqrt(variance +
  1e-5), so an empty filter's gradient is up to 316 times larger than others': such filters would always come first
- filters pruned (Eq. 1) and regrown at once | start at zero | not in VITA-Group/GraNet | keep value and momentum, as
  dropped ones do | for the same reason; with both as in the paper, training on the digits page failed (10 to 21 %
  accuracy)
- last layer, filters | not stated | not in VITA-Group/GraNet | keeps its outputs | they are the classes
- exchange, N:M | not stated | no N:M in VITA-Group/GraNet | the ceil(r n) smallest of a layer's n active weights are
  dropped; each group grows as many as it lost, by gradient magnitude, the just dropped included | no group may lose the
  pattern
- weights pruned (Eq. 1) and regrown at once, N:M | pruned weights are set to zero | start at zero with zero momentum |
  the same | as `granet`: both masks are applied in turn
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    N_OF_M,
    Budget,
    DenseGrads,
    Group,
    Masks,
    Method,
    Stages,
    Timeline,
    View,
    all_active,
    check_pattern,
    check_scope,
    cosine,
    cubic,
    describe_ungrouped,
    drop,
    drop_filters,
    from_page,
    gradient_magnitude,
    grow_filters,
    grow_in_groups,
    keep_filters,
    keep_n_of_m,
    magnitude,
    prune_progress,
    prune_range,
    refuse_crowded,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class GraNetStructured(Method):
    """Prune filters, or groups of four to N:M, to the cubic schedule, then exchange within each layer, or group."""

    reference: ClassVar[str] = "Liu et al., 2021, arXiv:2106.10404; filters: Li et al., 2017, arXiv:1608.08710"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES
    budget: ClassVar[Budget] = Budget.OUTCOME

    pattern: str = "filters"  # filters, 2:4 or 1:4
    scope: str = "global"  # of filters: ranked over all layers (global) or within each (layer)
    prune_rate: float = 0.5  # r: share of a layer's active filters, or weights, exchanged at an update
    final_prune_rate: float = 0.005  # r at the end of the run
    prune_end: float = from_page(0.5)  # t_f as a share of the run
    update_every: int = from_page(1000)  # ΔT in steps

    def validate(self) -> None:
        check_pattern(self.pattern, self.sparsity, ("filters", *N_OF_M))
        check_scope(self.scope)

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return describe_ungrouped(self.pattern, shapes)

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, timeline.total_steps)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = prune_range(self.update_every, self.prune_end, timeline.total_steps)
        return cubic(0.0, self.sparsity, prune_progress(step, self.update_every, steps))

    def setup(self, view: View) -> Masks:
        if self.pattern == "filters":
            refuse_crowded(view, self.sparsity)
        return all_active(view)

    def update(self, view: View) -> Stages:
        sparsity, w, g = self.planned_sparsity(view.step, view.timeline), magnitude(view), gradient_magnitude(view)
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        if self.pattern == "filters":
            pruned = keep_filters(w, view.count(sparsity), view.masks, view.last, self.scope == "layer")  # Eq. 1
            kept = drop_filters(pruned, w, rate)  # Eq. 2
            return grow_filters(kept, g, like=pruned, among=view.masks)  # Eq. 3
        pruned = keep_n_of_m(w, N_OF_M[self.pattern], sparsity / self.sparsity, view.masks)
        kept = drop(pruned, w, rate, math.ceil)
        return pruned, grow_in_groups(kept, g, like=pruned)
