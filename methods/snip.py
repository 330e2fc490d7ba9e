"""SNIP: single-shot network pruning by connection sensitivity.

Paper: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv:1810.02340,
Eqs. 5-6 and Algorithm 1: one mini-batch, score |dL/dc| at c = 1, which is |g w|, one global top-k.

Deviations (point | paper | authors' code | here | why):
- what is pruned | not stated | weights and biases | the page's prunable weights | the same layers for every method
- score | sensitivity to a connection's removal at c = 1, divided by the sum of all | absolute product of gradient and
  weight, divided by its sum | the same, not divided | a common factor leaves the ranking as it is
- ranking | one top-k over the whole network | the same, k = round((1 - S) N); RigL's own version of SNIP ranks within
  each layer at given densities | one top-k over the whole network, exactly k, ties to the lower index | the paper's
- batch | one mini-batch | one of 100 images by default | one of the page's size, augmented as in training; more with
  score_batches=N | one batch may not hold every class of CIFAR-100
- batch norm while scoring | not stated | not stated | batch statistics; running ones are put back | as in training
- initial weights | not stated | variance scaling | the network's own, the ones that are trained | every method starts
  from the same weights
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Masks, Method, Scoring, View, keep_top_global, snip_scores


@dataclass(frozen=True, kw_only=True)
class SNIP(Method):
    """Keep the weights whose removal would change the loss most, judged once before training."""

    reference: ClassVar[str] = "Lee et al., 2019, arXiv:1810.02340"
    group: ClassVar[Group] = Group.BEFORE_TRAINING

    score_batches: int = 1  # mini-batches to score on; more for many classes

    def validate(self) -> None:
        if self.score_batches < 1:
            raise ValueError(f"score_batches must be at least 1, got {self.score_batches}")

    def scoring(self) -> Scoring:
        return Scoring(order=1, batches=self.score_batches)

    def setup(self, view: View) -> Masks:
        return keep_top_global(snip_scores(view), view.count(self.sparsity))
