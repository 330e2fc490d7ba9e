"""SR-STE: N:M sparse networks from scratch, by a sparse-refined straight-through estimator.

Paper: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021,
arXiv:2102.04010, Eq. 9: every weight is kept and trained; the forward pass uses the N largest |w| of every M, the
gradient goes straight through to all, and those left out decay: lambda_w x (1 - mask) w is added to their gradient.

pattern=2:4 asks for SPARSITY=0.5, 1:4 for 0.75. The count of weights is an outcome where a layer has no groups of four.

Deviations (point | paper | authors' code | here | why):
- patterns | N:M, also 2:8, 4:8, 1:16 | any N and M | 2:4 and 1:4 | the groups of four that hardware multiplies by
- groups | consecutive weights | convolutions: input channels at one position; linear layers: inputs | the same |
  Mishra et al., 2021, arXiv:2104.08378
- inputs that are no multiple of four | not stated | a group runs on into the next position of the kernel | stay dense,
  and are named at the start | they have no groups
- first and last layer | not stated | ResNets: every convolution sparse, the classifier dense | sparse where they have
  groups; keep_dense exempts layers | the same prunable layers for every method
- ties | not stated | by torch.argsort | the lower index stays | the same masks everywhere
- choice | at every step | in every forward pass, evaluation included | after every step, and at the start | the same
  masks: weights change in between only
- decay of those left out | added to the gradient, lambda_w = 2e-4 | in the backward pass, decay=0.0002; its unused SGD:
  5 x weight_decay | added to the gradient, before momentum and clipping | as the paper
- weight decay | on all weights, beside it | 5e-5 in its ResNet-50 configs | the page's, on all weights | one recipe for
  every method
- recipe | ImageNet: 120 epochs, cosine | lr 0.1, 5 epochs of warm-up, batch 256, momentum 0.9 | the page's | one recipe
  for every method
- training cost | not stated | not counted in aojunzz/NM-sparsity | 2 f_S + f_D a step | the gradient of every weight is
  computed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from methods.core import (
    N_OF_M,
    Budget,
    Group,
    Inactive,
    Masks,
    Method,
    Timeline,
    Trains,
    View,
    all_active,
    check_pattern,
    describe_ungrouped,
    keep_n_of_m,
)


@dataclass(frozen=True, kw_only=True)
class SRSTE(Method):
    """Train every weight, compute with the N largest of every four, and let the others decay."""

    reference: ClassVar[str] = "Zhou et al., 2021, arXiv:2102.04010"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    budget: ClassVar[Budget] = Budget.OUTCOME
    inactive: ClassVar[Inactive] = Inactive.STORED
    trains: ClassVar[Trains] = Trains.ALL
    keeps_layer_counts: ClassVar[bool] = True

    pattern: str = "2:4"  # or 1:4
    sparse_decay: float = 2e-4  # lambda_w, of the weights left out

    def validate(self) -> None:
        check_pattern(self.pattern, self.sparsity, tuple(N_OF_M))
        if not self.sparse_decay >= 0:
            raise ValueError(f"sparse_decay must be at least 0, got {self.sparse_decay}")

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return describe_ungrouped(self.pattern, shapes)

    def update_steps(self, timeline: Timeline) -> range:
        return range(1, timeline.total_steps + 1)

    def setup(self, view: View) -> Masks:
        return self.keep_largest(view)

    def update(self, view: View) -> Masks:
        return self.keep_largest(view)

    def keep_largest(self, view: View) -> Masks:
        """Return the masks of the N largest weights of every four, left out or not until now."""
        sizes = {name: weight.abs() for name, weight in view.stored.items()}
        return keep_n_of_m(sizes, N_OF_M[self.pattern], 1.0, all_active(view))

    def penalty(self, view: View) -> Mapping[str, Tensor]:
        return {name: self.sparse_decay * weight * ~view.masks[name] for name, weight in view.stored.items()}
