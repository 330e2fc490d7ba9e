"""SRigL: RigL with the same number of inputs for every neuron of a layer, and neurons that may be given up.

Paper: Lasby et al., "Dynamic Sparse Training with Structured Sparsity", ICLR 2024, arXiv:2305.02299, section 3; code:
calgaryml/condensed-sparsity, rigl_constant_fan.py. A layer keeps its largest weights and grows by dense-gradient
magnitude, as in RigL, but in every neuron (a row of the first dimension) up to the layer's constant fan-in. Salient are
the weights that RigL would keep or grow; a neuron with fewer than gamma times the fan-in of them is ablated, and its
inputs go to the neurons that are left. The count is an outcome, as equal fan-ins rarely sum to what is asked: at most
that, unless one input for each neuron is more.

Deviations (point | paper | authors' code | here | why):
- fan-in of a layer | its share of the weights by ERK, divided among its neurons | rounded up | rounded down, at least
  one; then one more in the layers of the largest remainders, as far as the asked count allows | nearest to the budget
- salient weights | kept by magnitude or grown by gradient, over the layer | the same; active weights are ranked by
  gradient too | the same | as the code
- gamma | 0.3 of the fan-in | max(1, int(0.3 times)) the dense or, by a flag, the sparse one; 0.05 for CIFAR-10 | at
  least 0.3 of the sparse one before ablation, unrounded: 2 of 5, where the code asks for 1 | the paper's
- ablated neurons | not stated | judged anew at each update, so that they can return | the same | as the code
- last layer | never ablated | the same, by its name | the same | its neurons are the classes
- all neurons of a layer fail | not stated | as many stay as hold its weights | the most salient one stays | never empty
- fan-in after ablation | the freed inputs go to the others | the layer's count divided by the neurons left, of which
  more stay if that exceeds all inputs | the same, rounded down, at most all inputs | simpler
- more weights kept in a neuron than its fan-in | not stated | some of them stay | the largest stay | counts are exact
- zero weights | not stated | not kept where that leaves too few | ranked as others | a grown weight is active
- update and step, drop rate, T_end, dropped and regrown | as RigL | as RigL | as `rigl` | the paper's
- ΔT | 100 steps of 4096 images; on CIFAR-10 of 128 | 100; on ImageNet 800 of 512, 8 batches' gradients averaged | 100
  steps of the page's batch size, the current batch's gradient; short pages set another number | as `rigl`
- initial values | scaled to the sparse fan-in | the same, by a flag | the network's own | every method starts alike
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core import (
    DISTRIBUTIONS,
    Budget,
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
    keep_top,
    magnitude,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class SRigL(Method):
    """Exchange weights as RigL does, every neuron of a layer with as many inputs, neurons of little use given up."""

    reference: ClassVar[str] = "Lasby et al., 2024, arXiv:2305.02299"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES
    budget: ClassVar[Budget] = Budget.OUTCOME
    replaces_step: ClassVar[bool] = True

    prune_rate: float = 0.3  # alpha
    gamma: float = 0.3  # a neuron with fewer salient weights than this share of the fan-in is ablated; 0: none is
    update_every: int = 100  # ΔT in steps
    update_end: float = 0.75  # T_end as a share of the run
    distribution: str = from_page("erk")

    def validate(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, self.update_end * timeline.total_steps)

    def fan_ins(self, view: View) -> dict[str, int]:
        """Return the constant fan-in of each layer before any ablation."""
        total, rows = view.count(self.sparsity), {name: shape[0] for name, shape in view.shapes.items()}
        counts = DISTRIBUTIONS[self.distribution](view.shapes, total)
        fans = {name: max(1, counts[name] // rows[name]) for name in rows}
        room = total - sum(fans[name] * rows[name] for name in rows)
        for name in sorted(rows, key=lambda name: -(counts[name] % rows[name]) / rows[name]):
            if fans[name] * rows[name] < counts[name] and rows[name] <= room:
                fans[name] += 1
                room -= rows[name]
        return fans

    def setup(self, view: View) -> Masks:
        fans = self.fan_ins(view)
        return {name: keep_in_rows(view.random(name, "mask"), fan, view.masks[name]) for name, fan in fans.items()}

    def update(self, view: View) -> Masks:
        rate = cosine(self.prune_rate, 0.0, view.step / (self.update_end * view.timeline.total_steps))
        kept, fans = drop(dict(view.masks), magnitude(view), rate), self.fan_ins(view)
        return {name: self.exchange(view, name, kept[name], fans[name]) for name in kept}

    def exchange(self, view: View, name: str, kept: Tensor, fan: int) -> Tensor:
        """Return the next mask of a layer: RigL's kept weights and growth, by neurons, of which some are ablated."""
        mask, w, g = view.masks[name], magnitude(view)[name], gradient_magnitude(view)[name]
        if fan == mask[0].numel():
            return mask.clone()
        left = int(kept.sum())
        salient = (kept | keep_top(g, int(mask.sum()) - left)).flatten(1).sum(1)
        alive = torch.ones_like(salient, dtype=torch.bool) if name == view.last else salient >= self.gamma * fan
        alive = alive if alive.any() else keep_top(salient.double(), 1)
        rows = alive.view(-1, *[1] * (mask.dim() - 1))
        fan = min(mask[0].numel(), fan * len(mask) // int(alive.sum()))
        stay = keep_in_rows(w, fan, keep_top(w, min(left, int((mask & rows).sum())), mask & rows))
        return stay | keep_in_rows(g, fan - stay.flatten(1).sum(1, keepdim=True), ~stay & rows)


def keep_in_rows(scores: Tensor, counts: Tensor | int, among: Tensor) -> Tensor:
    """Return a mask of the `counts` largest candidates of each row (first dimension), the lower index first on ties."""
    ranked = (scores.double() + 0.0).masked_fill(~among, -1.0).contiguous().flatten(1)
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < counts).reshape(scores.shape) & among
