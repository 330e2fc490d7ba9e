"""GMP, structured: gradual magnitude pruning of whole filters, or to N:M masks.

Papers: Zhu & Gupta, 2017, arXiv:1710.01878 (cubic schedule); Li et al., "Pruning Filters for Efficient ConvNets", ICLR
2017, arXiv:1608.08710: a filter's score is the L1 norm of its weights; Mishra et al., "Accelerating Sparse Deep Neural
Networks", 2021, arXiv:2104.08378, and Zhou et al., 2021, arXiv:2102.04010: of every four consecutive inputs the two
(2:4), or the one (1:4), of the largest magnitude.

pattern=filters prunes to any sparsity: the removed filters are what `sparse-bench slim` takes out of the network.
pattern=2:4 asks for SPARSITY=0.5, 1:4 for 0.75. Either way the count of weights is an outcome, and recorded.

Deviations (point | paper | authors' code | here | why):
- schedule of filters | once, after training (Li et al.) | Li et al.: no code of theirs found, only rewritings by others
  | the cubic of Zhu & Gupta, in k / n | as every gradual method
- ranking of filters | within each layer (Li et al.) | Li et al.: no code of theirs found, only rewritings by others |
  over all layers; scope=layer: within each | as `gmp`
- count of filters | a number for each layer | Li et al.: no code of theirs found, only rewritings by others | in order
  of score each filter that fits the weights planned, the best of every layer first | filters are whole, and a layer
  without filters ends the network
- last layer, filters | convolutions only (Li et al.) | Li et al.: no code of theirs found, only rewritings by others |
  keeps its outputs; its weights count | they are the classes
- inputs that a removed filter fed | removed as well (Li et al.) | Li et al.: no code of theirs found, only rewritings
  by others | stay in the masks and in the cost; `sparse-bench slim` removes them and counts again | one way of counting
  for every method
- residual blocks | the last filters of a block follow the shortcut (Li et al.) | Li et al.: no code of theirs found,
  only rewritings by others | every layer by itself | masks belong to layers
- schedule of N:M | once, after training (Mishra et al.); from the first step, masked weights kept and trained on by a
  straight-through estimator (Zhou et al.) | NVIDIA/apex (ASP): once, after training; aojunzz/NM-sparsity (Zhou et al.):
  from the first step | the share of groups that have the pattern follows the cubic, those first whose lost weights are
  smallest in sum | inactive weights are zero for every method; gradual as `gmp`
- layers whose inputs are no multiple of four | not stated | ASP: layers whose inputs are no multiple of 16, or outputs
  none of 8, stay dense; NM-sparsity: a group of four runs on into the next position of the kernel | stay dense, and are
  named at the start | they have no groups
- first and last layer, N:M | sparse where it fits | ASP: sparse where they fit; NM-sparsity's ResNets: every
  convolution sparse, the classifier dense | the same; keep_dense exempts layers | the same layers for every method
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    N_OF_M,
    Budget,
    Group,
    Masks,
    Method,
    Timeline,
    View,
    all_active,
    check_pattern,
    check_scope,
    cubic,
    describe_ungrouped,
    from_page,
    keep_filters,
    keep_n_of_m,
    magnitude,
    prune_progress,
    prune_range,
    refuse_crowded,
)


@dataclass(frozen=True, kw_only=True)
class GMPStructured(Method):
    """Prune filters of the smallest L1 norm, or groups of four to N:M, to the cubic schedule, from dense."""

    reference: ClassVar[str] = "Zhu & Gupta, 2017, arXiv:1710.01878; filters: Li et al., 2017, arXiv:1608.08710"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    budget: ClassVar[Budget] = Budget.OUTCOME

    pattern: str = "filters"  # filters, 2:4 or 1:4
    scope: str = "global"  # of filters: ranked over all layers (global) or within each (layer)
    prune_end: float = from_page(0.5)  # t_f as a share of the run
    update_every: int = from_page(1000)  # ΔT in steps

    def validate(self) -> None:
        check_pattern(self.pattern, self.sparsity, ("filters", *N_OF_M))
        check_scope(self.scope)

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return describe_ungrouped(self.pattern, shapes)

    def update_steps(self, timeline: Timeline) -> range:
        return prune_range(self.update_every, self.prune_end, timeline.total_steps)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        return cubic(0.0, self.sparsity, prune_progress(step, self.update_every, self.update_steps(timeline)))

    def setup(self, view: View) -> Masks:
        if self.pattern == "filters":
            refuse_crowded(view, self.sparsity)
        return all_active(view)

    def update(self, view: View) -> Masks:
        sparsity = self.planned_sparsity(view.step, view.timeline)
        if self.pattern == "filters":
            layerwise = self.scope == "layer"
            return keep_filters(magnitude(view), view.count(sparsity), view.masks, view.last, layerwise)
        return keep_n_of_m(magnitude(view), N_OF_M[self.pattern], sparsity / self.sparsity, view.masks)
