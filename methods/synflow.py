"""SynFlow: iterative synaptic flow pruning, without data.

Paper: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS
2020, arXiv:2006.05467, Eq. 2 and Algorithm 1: the flow R is the sum of the outputs of the network of absolute weights
|w| for an input of ones, the score of a weight is dR/d|w| |w|, and in round k of n the density is rho^(k/n), by one
ranking of the whole network. Nothing but the shape of an image is read.

A layer can end without a weight: on residual networks the flow passes by, and the 1x1 convolutions of shortcuts score
low. That is the method's doing: it is told, and the record names the layers.

Deviations (point | paper | authors' code | here | why):
- rounds n | 100 | --prune-epochs is 1 by default; its results are of 100 | 100; score_rounds=N | the paper's: in one
  round layers collapse
- density of round k | rho^(k/n) of all parameters | the same with k from 1; int((1 - d) N) weights are removed, and all
  that tie with the last of them | rho^(k/n), exactly round(d N) kept, the sparsity asked in the last round; ties to the
  lower index | the budget is exact
- what is pruned | all but batch norms and biases | the same; --dense-classifier spares the last layer, flags add
  others | the page's prunable weights | the same layers for every method
- weights removed before | set to zero while scoring, so their score is zero | the same; scores of zero tie with them,
  in some versions they are set to minus infinity | no candidates | no weight comes back by a tie
- absolute values | of all parameters | of the whole state_dict: parameters, statistics of batch norm | the same, on a
  copy | as the code
- score | the product of dR/dw and w, not negative where activations rise | its absolute value | the same | as the
  code: the flow through attention falls with some weights
- batch norm while scoring | not stated | inference mode: running mean 0 and variance 1 (--prune-train-mode: training) |
  inference mode | as the code; in training mode one image of ones gives no statistics
- precision | not stated | float32; float64 stands there commented out | float64 | in deep networks without
  normalisation the flow leaves the range of float32
- cost | called small, not counted | counted nowhere in the repository (pruners.py, prune.py) | a forward and backward
  pass of one image a round, under its masks | everything is charged
- weights trained | the initial ones, signs restored | the same; --reinitialize draws new ones | the initial ones | as
  the paper
- recipe | by network and data set, in its appendix | set by flags, nothing by network | the page's | one recipe for
  every method
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Masks, Method, Scoring, View, geometric, keep_top_global


@dataclass(frozen=True, kw_only=True)
class SynFlow(Method):
    """Remove the weights that carry the least flow, a few in each of many rounds before training."""

    reference: ClassVar[str] = "Tanaka et al., 2020, arXiv:2006.05467"
    group: ClassVar[Group] = Group.BEFORE_TRAINING

    score_rounds: int = 100  # n

    def validate(self) -> None:
        if self.score_rounds < 1:
            raise ValueError(f"score_rounds must be at least 1, got {self.score_rounds}")

    def scoring(self) -> Scoring:
        return Scoring(rounds=self.score_rounds, flow=True)

    def setup(self, view: View) -> Masks:
        scores = {name: (flow * view.weights[name]).abs() for name, flow in view.gradients.items()}  # Eq. 2
        kept = view.count(geometric(self.sparsity, (view.round + 1) / self.score_rounds))
        return keep_top_global(scores, kept, among=view.masks)
