"""GMP, uniform: gradual magnitude pruning that prunes every layer to the same sparsity.

Papers: Zhu & Gupta, 2017, arXiv:1710.01878 (cubic schedule, ranking within each layer); Liu et al., 2021,
arXiv:2106.10404, Appendix C.3: uniform pruning for GraNet and GMP, with the last layer at density 0.2 or more above
80 % sparsity, as in Gale et al., 2019, arXiv:1902.09574. Everything else is as in `gmp`.

Deviations (point | paper | authors' code | here | why):
- sparsity of a layer | the same in every layer | GraNet's: the same: int(density x n) of each layer, and what ties with
  the last of them, so that all stay where it is 0 | the same, left-over weights to the largest remainders; no layer
  gets back what it lost | the sum over layers is exact
- last layer above 80 % | density 0.2 or more | GraNet's: from sparsity 0.8 on: int(0.2 n), the other layers sparser for
  it | a fifth of its weights, rounded up, the other layers sparser for it | the sum over layers is exact
- first layer | dense in Gale et al. | GraNet's: pruned; --rm-first exempts that of ResNet-20 and of VGG | pruned as the
  others; keep_dense=[first] exempts it | which layers are prunable belongs to the page, the same for every method
- last layer | the network's classifier | GraNet's: the layer whose name contains 'classifier' | the last of the page's
  layers; where keep_dense exempts it, all others are uniform | the same layers for every method
- pruned weights | not stated | TensorFlow's: keep their values, so they can return; GraNet's: zeroed, never return |
  zeroed, never return | an inactive weight is zero for every method
- schedule | cubic, from s_i to s_f at t0 + n ΔT | GraNet's: cubic in k / n, where n = t_f / ΔT is not rounded (as it is
  for `gmp`), so that it ends at k = floor(n), just short of s_f | cubic in k / n from s_i = 0 to k = n, first at step
  ΔT | as `gmp`; the target is hit exactly
- end of pruning, ΔT | not stated | GraNet's: epoch 110 by default; 1000 steps (CIFAR), 4000 (ImageNet) | the page's
  prune_end and update_every | as `gmp`
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
    count_layers,
    cubic,
    from_page,
    keep_top_each,
    magnitude,
    prune_progress,
    prune_range,
    uniform_but_last,
)


@dataclass(frozen=True, kw_only=True)
class GMPUniform(Method):
    """Prune every layer by magnitude to the cubic schedule, from dense."""

    reference: ClassVar[str] = "Zhu & Gupta, 2017, arXiv:1710.01878; uniform as in arXiv:2106.10404, C.3"
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
        counts = uniform_but_last(view.shapes, budget, view.last, count_layers(view.masks))
        return keep_top_each(magnitude(view), counts, among=view.masks)
