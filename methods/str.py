"""STR: soft threshold reparameterisation, one learned threshold for each layer.

Paper: Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity", ICML 2020, arXiv:2002.03231,
Eqs. 5-6: the forward pass uses sign(w) relu(|w| - sigmoid(s_l)), s_l being trained by the optimiser of the weights.

In the paper the sparsity is an outcome of weight decay and s_init: controller=false. By default a controller leads it:
an update shifts all s_l by one amount, to as many weights as a schedule says; how layers differ is learned. A shift
starts the momentum of s_l anew: that of its way from s_init would carry it from -5 to 7, past every weight. At `fix_at`
the largest |w| - sigmoid(s_l) become masks that stay, as many as were asked for, and the network trains on with the
thresholded values. The record keeps the density that the thresholds had reached by then.

Deviations (point | paper | authors' code | here | why):
- sparsity | an outcome of weight decay and s_init | the same | the controller's; controller=false: the outcome | a row
  belongs to the sparsity that was asked for
- shift of s_l | none | none in RAIVNLab/STR's main.py and trainer.py | every 10 steps, by bisection; momentum anew |
  outcomes differ from seed to seed; in 31 steps thresholds drifted to eight times the weights planned
- schedule | none | none for STR, a cubic one for its GMP | the cubic of Zhu & Gupta, to the page's prune_end | as `gmp`
- end | thresholds learn to the last step | the same | masks are fixed at fix_at = 0.75 of the run; controller=false: at
  the last step | the budget is exact, and its weights have time to settle
- s_init | -3200 for 90 % of ResNet-50 | sInit_value, the same | -3200: thresholds of zero, a dense start | as the code
- s_l at first | its gradient is zero, decay alone raises it | the same | the same, then the first shift | as the code
- weight decay | on weights and s_l | --st-decay for s_l where given; weights below the threshold decay too | the
  page's, on all of them | one recipe for every method
- layers | convolutions and the classifier | the same, a 1x1 convolution as classifier | the page's prunable layers |
  the same layers for every method
- recipe | ImageNet: lr 0.256 cosine, 5 epochs of warm-up, batch 256, weight decay 2.2518e-5 for 90 %, label smoothing
  0.1, 100 epochs | the same, resnet50-str.yaml | the page's | one recipe for every method
- accuracy | not stated | of the best validation epoch | of the last; best recorded apart | a test set must not choose
- training cost | not stated | not counted in RAIVNLab/STR | 3 f_S a step | a weight below its threshold has no
  gradient, so none is computed, of s_l neither
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core import (
    Budget,
    Group,
    Inactive,
    Method,
    Timeline,
    Trains,
    Update,
    View,
    cubic,
    find_shift,
    from_page,
    keep_top_global,
    prune_progress,
    prune_range,
    shift,
)


@dataclass(frozen=True, kw_only=True)
class STR(Method):
    """Subtract a learned threshold from every weight's size, and steer the thresholds to the sparsity asked."""

    reference: ClassVar[str] = "Kusupati et al., 2020, arXiv:2002.03231"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    inactive: ClassVar[Inactive] = Inactive.STORED
    trains: ClassVar[Trains] = Trains.ALL
    writes: ClassVar[bool] = True  # the thresholds
    straight_through: ClassVar[bool] = False

    s_init: float = -3200.0  # of every layer; its threshold is sigmoid(s)
    controller: bool = True  # False: the sparsity is an outcome
    prune_end: float = from_page(0.5)  # share of the run after which the controller holds the sparsity asked
    fix_at: float = 0.75  # share of the run after which the controller's masks stay
    update_every: int = 10  # ΔT in steps, between two shifts

    def validate(self) -> None:
        if self.controller and not self.prune_end <= self.fix_at <= 1:
            raise ValueError(f"fix_at must be in [prune_end, 1], here [{self.prune_end}, 1], got {self.fix_at}")

    def promised_budget(self) -> Budget:
        return Budget.EXACT if self.controller else Budget.OUTCOME

    def update_steps(self, timeline: Timeline) -> range:
        if not self.controller:
            return range(timeline.total_steps, timeline.total_steps + 1)
        return prune_range(self.update_every, self.fix_at, timeline.total_steps)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        if not self.controller:
            return self.sparsity
        steps = prune_range(self.update_every, self.prune_end, timeline.total_steps)
        return cubic(0.0, self.sparsity, prune_progress(step, self.update_every, steps))

    def setup(self, view: View) -> Update:
        return Update()

    def learned(self, view: View) -> Mapping[str, Tensor]:
        return {name_of(name): torch.tensor(self.s_init) for name in view.weights}

    def weigh(self, name: str, stored: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return stored.sign() * (stored.abs() - learned[name_of(name)].sigmoid()).relu()

    def update(self, view: View) -> Update:
        if not self.controller:
            return Update({n: self.weigh(n, weight, view.learned) != 0 for n, weight in view.stored.items()})
        count = view.count(self.planned_sparsity(view.step, view.timeline))
        sizes = {name: weight.abs() for name, weight in view.stored.items()}
        s = {name: view.learned[name_of(name)] for name in sizes}
        if view.step >= self.update_steps(view.timeline)[-1]:
            return Update(keep_top_global({name: size - s[name].sigmoid() for name, size in sizes.items()}, count))
        by = find_shift(sizes, s, count)
        shifted = {name_of(name): shift(s[name], by) for name in s}
        return Update(values=shifted, forget=tuple(shifted))


def name_of(weight: str) -> str:
    """Return what the threshold of a weight is called among the learned parameters."""
    return f"{weight}.s"
