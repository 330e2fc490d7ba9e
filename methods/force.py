"""FORCE: foresight connection sensitivity by progressive sparsification, and its Iter-SNIP form.

Paper: de Jorge et al., "Progressive Skeletonization: Trimming more fat from a network at initialization", ICLR 2021,
arXiv:2006.09081: in step k of T the gradient g is that of the network under the masks m so far, the score is |w g(w m)|
with w the initial, dense weights, and as many are kept as exp(log(rho) k / T) says, by one ranking of the whole
network. FORCE ranks all weights, so that pruned ones can return; Iter-SNIP ranks those that are left
(`resurrect=false`).

Deviations (point | paper | authors' code | here | why):
- steps T | not looked up: the paper was not at hand | 10 by default, 60 in its README | 60; score_rounds=N | the
  setting its README gives for experiments
- density of step k | exponential or linear decay, exponential in its experiments | exp(log(rho) k / T), or linear by
  --mode | exponential | the default of both
- weights kept | top-k | int(d N) by a threshold, ties kept | exactly round(d N), the sparsity asked in the last step;
  ties to the lower index | the budget is exact
- weights pruned before, Iter-SNIP | never return | their score is set to the smallest of all, with which others may tie
  | no candidates | no weight comes back by a tie
- loss scored by | cross-entropy | nll_loss of outputs that are logits, without their softmax | cross-entropy,
  without the page's label smoothing or mixup | the paper's
- batches in a step | not looked up: the paper was not at hand | 1 on CIFAR-10, 10 on CIFAR-100, 20 on Tiny-ImageNet, 40
  on ImageNet, 128 images each | the page's: 1, 10 and 40 of the page's size; score_batches=N | as the code
- images of a step | not stated | the first batch of a fresh shuffle for each one that is drawn, so that an image can be
  drawn twice | the first batches of one shuffle, another for each step | no image counts twice in a step
- images augmented | not stated | as in training | the same | as the code
- batch norm while scoring | not stated | training mode | the same | as the code
- prunable weights | not stated | all convolutions and linear layers | the page's prunable weights | the same layers for
  every method
- initial weights | Kaiming normal in its experiments | Kaiming normal, fan_in, by default | the network's own | every
  method starts from the same weights
- cost | not counted | counted nowhere in the repository (pruning_algos.py) | each step is charged, under its masks |
  everything is charged
- training images | not stated | 90 % of them on CIFAR (--frac-train-data) | the page's | one recipe for every method
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Masks, Method, Scoring, View, geometric, keep_top_global, snip_scores


@dataclass(frozen=True, kw_only=True)
class FORCE(Method):
    """Thin the network step by step to the weights that matter most to the loss of what is left."""

    reference: ClassVar[str] = "de Jorge et al., 2021, arXiv:2006.09081"
    group: ClassVar[Group] = Group.BEFORE_TRAINING

    score_rounds: int = 60  # T
    score_batches: int = 1  # mini-batches of a step; more for many classes
    resurrect: bool = True  # whether pruned weights can return; False: Iter-SNIP

    def validate(self) -> None:
        for name in ("score_rounds", "score_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def scoring(self) -> Scoring:
        return Scoring(batches=self.score_batches, rounds=self.score_rounds, fresh=True)

    def setup(self, view: View) -> Masks:
        kept = view.count(geometric(self.sparsity, (view.round + 1) / self.score_rounds))
        return keep_top_global(snip_scores(view), kept, among=None if self.resurrect else view.masks)
