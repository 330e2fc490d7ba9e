"""RigL-ITOP with each filter's gradients normalised before they are ranked: not a published method.

Base: Liu et al., "Do We Actually Need Dense Over-Parameterization?", ICML 2021, arXiv:2102.02887, as `rigl_itop`, whose
deviations hold here as well; growth by the dense gradient: Evci et al., 2020, arXiv:1911.11134.

Batch norm divides by sqrt(variance + 1e-5), so the gradient of a filter without a living weight, whose output does not
vary, is up to 316 times larger than others': at high sparsity growth by gradient magnitude is drawn to such filters. A
layer's growth here ranks |gradient| divided by the L2 norm of the gradient of its filter (a row of the first
dimension); a weight is compared by its share of what its filter asks for.

Deviations (point | paper | authors' code | here | why):
- score of growth | magnitude of the dense gradient | the same | divided by the L2 norm, over all inputs, of the
  gradient of its filter; 0 in a filter whose gradient is zero | otherwise dead filters come first
- precision of the norm | not stated | no such norm | float64, the quotient as well | so that rounding makes no ties
- last layer | not stated | no such norm | as the others | its outputs have no batch norm, but scales of their own too
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
class RigLITOPFilter(Method):
    """Exchange weights as RigL-ITOP does, but grow by each weight's share of its filter's gradient."""

    reference: ClassVar[str] = "this suite's variant of Liu et al., 2021, arXiv:2102.02887"
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
        return grow(kept, normalise_filters(gradient_magnitude(view)), like=view.masks)


def normalise_filters(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return scores divided by the L2 norm of those of their filter; zero where all of a filter's are zero."""
    return {name: divide_rows(score.double()) for name, score in scores.items()}


def divide_rows(score: Tensor) -> Tensor:
    """Return a score, at least two-dimensional, with every row of the first dimension of norm one, or zero."""
    rows = score.contiguous().flatten(1)
    norm = rows.square().sum(1, keepdim=True).sqrt()
    return torch.where(norm > 0, rows / norm, 0.0).reshape(score.shape)
