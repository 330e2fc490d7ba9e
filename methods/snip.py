"""SNIP: single-shot network pruning by connection sensitivity.

Paper: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv:1810.02340,
Eqs. 5-6 and Algorithm 1: one mini-batch, score |dL/dc| at c = 1, which is |g w|, one global top-k.

`batch_norm=running augment=false` scores as the authors' code does; a row that is called `snip` alone does not.

Deviations (point | paper | authors' code | here | why):
- what is pruned | not stated | weights and biases | the page's prunable weights | the same layers for every method
- score | sensitivity to a connection's removal at c = 1, divided by the sum of all | absolute product of gradient and
  weight, divided by its sum | the same, not divided | a common factor leaves the ranking as it is
- ranking | one top-k over the whole network | the same, k = round((1 - S) N); RigL's own version of SNIP ranks within
  each layer at given densities | one top-k over the whole network, exactly k, ties to the lower index | the paper's
- batch | one mini-batch | one of 100 images by default | one of the page's size; more with score_batches=N | one batch
  may not hold every class of CIFAR-100
- images to score on | not stated | not augmented | augmented as in training; augment=false: not | scored is what
  training will see, if in another order
- batch norm while scoring | not stated | inference mode: running mean 0 and variance 1, so that nothing is normalised |
  batch statistics, the table's row; batch_norm=running: the code's | scored is the network that is trained; running
  statistics of an untrained one let activations grow from layer to layer, and scores with them. At most 37 % of the
  masks' weights are the same at sparsity 0.9, 26 % at 0.98 (ResNet-20)
- weights scored | those that are trained | others: a second set is drawn after pruning, and trained | the very weights
  that are trained | the paper's; every method starts from the same weights
- initial weights | variance scaling | variance scaling, for both sets | the network's own | as above
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
    batch_norm: str = "batch"  # statistics that batch norms score with: batch or running
    augment: bool = True  # whether the images to score on are cropped and flipped as in training

    def validate(self) -> None:
        if self.score_batches < 1:
            raise ValueError(f"score_batches must be at least 1, got {self.score_batches}")
        if self.batch_norm not in ("batch", "running"):
            raise ValueError(f"batch_norm must be batch or running, got '{self.batch_norm}'")

    def scoring(self) -> Scoring:
        return Scoring(order=1, batches=self.score_batches, batch_norm=self.batch_norm, augmented=self.augment)

    def setup(self, view: View) -> Masks:
        return keep_top_global(snip_scores(view), view.count(self.sparsity))
