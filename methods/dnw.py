"""DNW: discovering neural wirings, as a way to train sparse networks.

Paper: Wortsman et al., "Discovering Neural Wirings", NeurIPS 2019, arXiv:1906.00586, its section on sparse networks:
every weight is kept and trained; the forward pass uses the largest |w| of each layer, at the full sparsity from the
first step on, and the gradient of the weights it uses goes straight through to all.

Every layer is as sparse as the others; distribution=erk spreads the same budget by ERK. Of a small first layer a
uniform share is next to nothing: 3 of 144 weights of ResNet-20's at 98 %, where DNW ends far below itself with ERK.

Deviations (point | paper | authors' code | here | why):
- layers | the same share of every layer; also with the first layer dense | `prune_rate` for every convolution and the
  classifier, a 1x1 convolution there; the first dense with ignore_first_conv | the same; keep_dense on the page leaves
  the first dense; distribution=erk or er: other shares | the same prunable layers for every method
- weights left out | not stated | int(S n) of each layer | counts per layer that sum to the budget | the budget is exact
- ties | not stated | by torch.sort | the lower index stays | the same masks everywhere
- choice | at every step | in every forward pass, evaluation included | after every step, and at the start | the same
  masks: weights change in between only
- gradient | straight through to all weights | the same | the same | as the paper
- weight decay | on all weights | 3.05e-5 in RAIVNLab/STR's resnet50-dnw.yaml, batch norm exempt | the page's, on all
  weights, those left out too | one recipe for every method
- recipe | ImageNet: that of dense training | RAIVNLab/STR: lr 0.256 cosine, 5 epochs of warm-up, momentum 0.875, batch
  256, label smoothing 0.1, 100 epochs | the page's | one recipe for every method
- training cost | not stated | not counted in RAIVNLab/STR nor allenai/dnw | 2 f_S + f_D a step | the gradient of every
  weight is computed
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Inactive,
    Masks,
    Method,
    Timeline,
    Trains,
    View,
    count_kept,
    keep_top,
)


@dataclass(frozen=True, kw_only=True)
class DNW(Method):
    """Train every weight, and compute with the largest of each layer."""

    reference: ClassVar[str] = "Wortsman et al., 2019, arXiv:1906.00586"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    inactive: ClassVar[Inactive] = Inactive.STORED
    trains: ClassVar[Trains] = Trains.ALL
    keeps_layer_counts: ClassVar[bool] = True

    distribution: str = "uniform"  # not the page's: the same sparsity in every layer is part of the method

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        counts = DISTRIBUTIONS[self.distribution](shapes, count_kept(self.sparsity, sum(sizes.values())))
        thin = [f"{n} ({counts[n]} of {size:,})" for n, size in sizes.items() if counts[n] < shapes[n][0]]
        if not thin:
            return []
        return [f"fewer weights than outputs stay in {', '.join(thin)}: distribution=erk, or keep_dense, leaves more"]

    def update_steps(self, timeline: Timeline) -> range:
        return range(1, timeline.total_steps + 1)

    def setup(self, view: View) -> Masks:
        return self.keep_largest(view)

    def update(self, view: View) -> Masks:
        return self.keep_largest(view)

    def keep_largest(self, view: View) -> Masks:
        """Return the masks of the largest weights of each layer, left out or not until now."""
        counts = DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity))
        return {name: keep_top(weight.abs(), counts[name]) for name, weight in view.stored.items()}
