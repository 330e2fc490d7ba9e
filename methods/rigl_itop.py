"""RigL-ITOP: RigL in the in-time over-parameterisation setting, the 'RigL' of the GraNet paper's Table 2.

Paper: Liu et al., "Do We Actually Need Dense Over-Parameterization?", ICML 2021, arXiv:2102.02887; settings of the
GraNet authors' code: ERK, a share r = 0.5 of each layer's active weights exchanged every ΔT = 1000 steps (CIFAR) or
4000 (ImageNet), annealed by a cosine to 0.005 over the whole run, updates until the end, weight update not skipped.

Deviations (point | paper | authors' code | here | why):
- first masks | not stated | ERK, each weight drawn with its probability | ERK, exact counts | the budget is exact
- ΔT in steps | not stated | ITOP's: 4000 (CIFAR and ImageNet); GraNet's: 1000 (CIFAR), 4000 (ImageNet) | the page's: as
  GraNet's, fewer on short pages | the row of the GraNet paper's Table 2
- drop rate | not stated | 0.5, by a cosine to 0.005 over the whole run | the same | as the code
- last update | not stated | no T_end: updates until the end | the last multiple of ΔT below the last step | weights
  grown at the last step would never be trained
- update and step | not stated | update follows the weight update, which is not skipped | the same | as the code
- weights dropped | not stated | GraNet's: ceil(r n) by a threshold, ties dropped as well (CIFAR); sorted (ImageNet) |
  exactly ceil(r n) of each layer, ties kept at the lower index | counts are exact
- candidates for growth | not stated | GraNet's: gradient times the inverted mask, which can land on active weights
  where few gradients are non-zero | inactive weights only, the just-dropped included | no layer loses density
- new weights | not stated | zero, with zero momentum | the same | as the code
- dropped and regrown in one update | not stated | GraNet's: keeps its value and momentum | keeps both | as the code
- length of training | not stated | ITOP's: 250 epochs, batch 128 (CIFAR); GraNet's: 160 epochs | the page's epochs |
  the same number of steps for every method
- accuracy | not stated | ITOP's: selected on 5,000 validation images; GraNet's: best on test | of the last epoch; both
  others are recorded apart | a test set must not choose
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
    keeps_layer_counts: ClassVar[bool] = True

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
