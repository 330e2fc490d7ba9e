"""Top-KAST: compute with the largest weights, and train some more than these.

Paper: Jayakumar et al., "Top-KAST: Top-K Always Sparse Training", NeurIPS 2020, arXiv:2106.03517. The forward pass uses
A, the share D of the weights that is largest in magnitude; the backward pass trains B, the share D + M, a superset of
A. What leaves A keeps its value. An exploration loss shrinks the weights: lambda |w| in A, lambda |w| / D in the rest
of B, nothing elsewhere. A step costs 2 f(A) + f(B).

Deviations (point | paper | authors' code | here | why):
- layer densities | top-k of each layer; which densities was not checked | none public | the page's (ERK) for A and for
  B, with at least A's weights of each layer in B | methods of equal budget have the same layers
- size of B | pairs of sparsities, such as 0.8 and 0.5 or 0.9 and 0.8 (not checked) | none public; SparseML's example:
  0.9 and 0.5 | M = extra x D, by default twice A | one setting for every sparsity; the paper's pair 0.9 and 0.8
- first sets | the largest of the initial weights | none public | the same | the paper's
- masks recomputed | every step; every N = 100 steps serve as well | none public; SparseML's: at each step or every so
  many epochs | every 100 steps, on the digits page 31 of 630; update_every=N | selection costs more than
  a step
- exploration loss | the magnitude, divided by D outside A | none public; SparseML's and torch_topkast: the L2 norm |
  its subgradient, explore x sign(w), is added to the gradients; D is that of the whole network | the paper's
- lambda | 1e-4 on ImageNet (not checked) | none public; SparseML's: 1e-4 | 1e-4 | the only number found
- weight decay | not stated | none public; SparseML's: the exploration loss alone | the page's as well, on B | one
  recipe for every method; ARGS=weight_decay=0 leaves it out
- weights outside B | keep their values, neither used nor trained | none public; SparseML's: the same | the same | the
  paper's
- momentum | not stated | none public; SparseML's: its plain SGD has none | the page's; zero for what leaves B | one
  optimiser for every method
- end of exploration | after some step M is 0 | none public | never; explore_end=0.5, say: from the first update after
  half the run on A stays and B is A | the paper's main runs explore to the end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Inactive,
    Method,
    Timeline,
    Update,
    View,
    from_page,
    keep_top,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class TopKAST(Method):
    """Compute with the largest weights of each layer, and train the next largest beside them."""

    reference: ClassVar[str] = "Jayakumar et al., 2020, arXiv:2106.03517"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    inactive: ClassVar[Inactive] = Inactive.STORED

    extra: float = 1.0  # M / D: how many weights outside A are trained, as a multiple of A
    explore: float = 1e-4  # lambda
    update_every: int = 100  # N in steps
    explore_end: float = 1.0  # share of the run after which only A is trained, and stays
    distribution: str = from_page("erk")

    def validate(self) -> None:
        for name, rule, fine in (
            ("extra", "at least 0", self.extra >= 0),
            ("explore", "at least 0", self.explore >= 0),
            ("explore_end", "in [0, 1]", 0 <= self.explore_end <= 1),
        ):
            if not fine:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")

    def update_steps(self, timeline: Timeline) -> range:
        end = self.explore_end * timeline.total_steps
        return update_range(self.update_every, min(end + self.update_every, timeline.total_steps))

    def setup(self, view: View) -> Update:
        return self.choose(view)

    def update(self, view: View) -> Update:
        return self.choose(view)

    def choose(self, view: View) -> Update:
        """Return A, the largest weights of each layer, as masks, and B, more of them, as what is trained."""
        size = {name: value.abs() for name, value in view.stored.items()}
        active = view.count(self.sparsity)
        exploring = view.step < self.explore_end * view.timeline.total_steps
        wanted = min(view.count(0.0), round((1 + self.extra) * active)) if exploring else active
        forward = DISTRIBUTIONS[self.distribution](view.shapes, active)
        backward = DISTRIBUTIONS[self.distribution](view.shapes, wanted)
        return Update(
            {name: keep_top(size[name], forward[name]) for name in size},
            trained={name: keep_top(size[name], max(forward[name], backward[name])) for name in size},
        )

    def penalty(self, view: View) -> Mapping[str, Tensor]:
        outside = self.explore / (1 - self.sparsity)
        return {n: torch.where(view.masks[n], self.explore, outside) * w.sign() for n, w in view.stored.items()}
