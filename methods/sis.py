"""SIS: sparsify a trained network layer by layer, each layer's outputs kept near what they were.

Paper: Verma & Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021, PMLR 139. Of a layer with
weights W0 and inputs x_t, the weights of least L1 norm are sought among those whose outputs differ from the old ones by
no more than a share eta of these: min |W|_1 subject to sum_t |(W - W0) x_t|^2 <= eta sum_t |W0 x_t|^2. Solved by
Douglas-Rachford: soft-thresholding and the projection onto the constraint in turn, relaxed by 1.5.

One training is dense, a second one goes on from the sparse weights; both are charged.

Deviations (point | paper | authors' code | here | why):
- what was read of the paper | its problem and algorithm, not its experiments | no code was found | every choice below
  that is not in the problem is ours | nothing to follow
- distance | to the subdifferential of the activation: of ReLU, one-sided where its output is 0 | no code was found | of
  the layer's outputs, as if the activation were the identity | batch norm stands between layer and ReLU
- images | training images, in mini-batches; subgradient projections | no code was found | score_batches batches of the
  page, as second moments of the inputs (all that squares need); exact projections | no inner iteration
- inputs | those of the dense network | no code was found | the same, augmented, batch norm in evaluation mode | the
  network as it is used
- biases | part of the problem | no code was found | left as they are | not prunable
- eta | given; it sets the sparsity | no code was found | one for all layers, the largest of 12 bisection steps that
  leaves no fewer weights than the budget | a sparsity is asked for
- weights kept | those that are not zero | no code was found | of these the largest of the whole network, ties to the
  lower index | the budget is exact
- iterations | a relaxation in (0, 2), until they converge | no code was found | 1.5; a fixed number for each eta, from
  where the last one ended; soft threshold at the layer's mean size | the same bits in every process
- fine-tuning | not read | no code was found | the page's training once more, masks fixed, optimiser anew;
  fine_tune=false: none | as iterative pruning is retrained
- cost | not read | no code was found | both trainings and the second moments; the solver's own work is not | costs
  count products with images
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    Group,
    Masks,
    Method,
    Moments,
    NearOutputs,
    Rounds,
    Timeline,
    Update,
    View,
    all_active,
    keep_top_global,
)

LEAST, BISECTIONS = 1e-4, 12  # eta is sought from here to 1, where zero weights will do


@dataclass(frozen=True, kw_only=True)
class SIS(Method):
    """Train, find sparse weights with nearly the same outputs in each layer, and train on with these."""

    reference: ClassVar[str] = "Verma & Pesquet, 2021, PMLR 139"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    writes: ClassVar[bool] = True

    fine_tune: bool = True  # False: the update is the end
    iterations: int = 25  # of Douglas-Rachford, for each eta tried
    score_batches: int = 16  # training batches that the layers' inputs are seen over

    def validate(self) -> None:
        for name in ("iterations", "score_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return ["trains twice, dense and then sparse, and both are charged"] if self.fine_tune else []

    def moments(self) -> Moments:
        return Moments(self.score_batches)

    def rounds(self, epochs: int) -> Rounds:
        return Rounds(2, keep_weights=True) if self.fine_tune else Rounds()

    def update_steps(self, timeline: Timeline) -> tuple[int, ...]:
        return timeline.round_ends[:1]

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        return self.sparsity if step >= timeline.round_ends[0] else 0.0

    def setup(self, view: View) -> Masks:
        return all_active(view)

    def update(self, view: View) -> Update:
        kept = view.count(self.sparsity)
        layers = {name: NearOutputs(weight, view.input_moments[name]) for name, weight in view.weights.items()}
        values, low, high = dict(view.weights), LEAST, 1.0
        for _ in range(BISECTIONS):
            eta = math.sqrt(low * high)
            sparse = {name: layer.sparsify(eta, self.iterations) for name, layer in layers.items()}
            if sum(int(weight.count_nonzero()) for weight in sparse.values()) >= kept:
                low, values = eta, sparse
            else:
                high = eta
        return Update(keep_top_global({name: value.abs() for name, value in values.items()}, kept), values=values)
