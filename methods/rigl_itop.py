"""RigL-ITOP: RigL in the in-time over-parameterisation setting, the 'RigL' of the GraNet paper's Table 2.

Paper: Liu et al., "Do We Actually Need Dense Over-Parameterization?", ICML 2021, arXiv:2102.02887; settings of the
GraNet authors' code: ERK, a share r = 0.5 of each layer's active weights exchanged every ΔT = 1000 steps (CIFAR) or
4000 (ImageNet), annealed by a cosine to 0.005 over the whole run, updates until the end, weight update not skipped.

Deviations: exact counts where the authors' code draws Bernoulli masks and compares with a threshold.
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
    drop,
    from_page,
    gradient_magnitude,
    grow,
    magnitude,
    random_masks,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class RigLITOP(Method):
    """Exchange weights as RigL does, rarely and many at a time, so that new ones have time to prove themselves."""

    reference: ClassVar[str] = "Liu et al., 2021, arXiv:2102.02887"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES

    prune_rate: float = 0.5  # r
    final_prune_rate: float = 0.005  # r at the end of the run
    update_every: int = from_page(1000)  # ΔT in steps
    distribution: str = from_page("erk")

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, timeline.total_steps)

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))

    def update(self, view: View) -> Masks:
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        kept = drop(dict(view.masks), magnitude(view), rate, math.ceil)
        return grow(kept, gradient_magnitude(view), like=view.masks)
