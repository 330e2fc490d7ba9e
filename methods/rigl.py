"""RigL: drop by magnitude, grow by gradient.

Paper: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, arXiv:1911.11134, section 3 and
Algorithm 1: every ΔT steps until T_end, each layer drops a share f(t) = alpha/2 (1 + cos(t pi / T_end)) of its active
weights by magnitude and grows as many by dense-gradient magnitude; the update takes the place of the optimiser step.

Deviations: the reference code adds N(0, 1e-5) noise to break ties; here ties go to the lower index. An update uses up
one of the page's steps, as in Algorithm 1, where the reference code does not count it: every method gets the same
number of batches. Layer densities come from the page (ERK); with distribution=uniform the first layer is exempt only
where the page's keep_dense says so. As in that code,
just-dropped weights are candidates for growth and then keep their value and momentum. The variant the GraNet paper's
Table 2 calls RigL is `rigl_itop`.
"""

from __future__ import annotations

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
    drop,
    from_page,
    gradient_magnitude,
    grow,
    magnitude,
    random_masks,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class RigL(Method):
    """Exchange the smallest weights of each layer for those with the largest gradients."""

    reference: ClassVar[str] = "Evci et al., 2020, arXiv:1911.11134"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES
    replaces_step: ClassVar[bool] = True  # Alg. 1: either an update or an SGD step

    prune_rate: float = 0.3  # alpha
    update_every: int = 100  # ΔT in steps
    update_end: float = 0.75  # T_end as a share of the run
    distribution: str = from_page("erk")

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, self.update_end * timeline.total_steps)  # t < T_end

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))

    def update(self, view: View) -> Masks:
        rate = cosine(self.prune_rate, 0.0, view.progress / self.update_end)
        kept = drop(dict(view.masks), magnitude(view), rate)
        return grow(kept, gradient_magnitude(view), like=view.masks)
