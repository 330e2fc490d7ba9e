"""One-shot: magnitude pruning in one step, with or without regeneration: what pruning plasticity is measured of.

Paper: Liu et al., 2021, arXiv:2106.10404, Section 3 (pruning plasticity): of the weights still active a share `rate` is
pruned by magnitude, globally or in each layer, one by one or by whole filters of the smallest L1 norm (Li et al., 2017,
arXiv:1608.08710); with regeneration, as many connections are grown at once by gradient magnitude, filters by the sum of
theirs. Patterns 2:4 and 1:4 (Mishra et al., 2021, arXiv:2104.08378) keep the two, or the one, largest of four.

`sparsity` is that of the end. Without `rate`, as many weights go as lead there from the masks in force. Given, it must
say the same: without regeneration (1 - before)(1 - rate) = 1 - sparsity, with it before = sparsity.

Deviations (point | paper | authors' code | here | why):
- number pruned | a share of the active weights | ceil(rate x active) of each layer go; globally int((1 - rate) x
  active) stay, and what ties with the last of them | the count of the sparsity asked; rounded by layer to the largest
  remainders | the budget is exact
- filters over all layers | not stated | not in VITA-Group/GraNet: its README names prune_structured and
  prune_and_grow_structured, its core.py has neither | ranked by L1 norm, each that fits the count; every layer's best
  first | a layer without filters ends the network
- last layer, filters | not stated | not in VITA-Group/GraNet | keeps its outputs | they are the classes
- count of filters, and of N:M | not stated | neither in VITA-Group/GraNet | an outcome, of filters never above the
  count asked | filters are whole; layers whose inputs are no multiple of four have no groups
- what may be grown | pruned connections | all inactive ones; each layer as many as it lost, also where the pruning is
  global | all inactive ones, from zero; with scope=global over all layers | as in GraNet's Eq. 3
- a filter grown | not stated | not in VITA-Group/GraNet | gets the weights it had, else all of its weights | as many as
  were pruned
- gradient | of the loss | dense, handed over by the caller; its main.py hands over none | dense, of one batch of the
  page's size | one batch is what an update sees
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    N_OF_M,
    Budget,
    Group,
    Masks,
    Method,
    Scoring,
    Stages,
    View,
    check_pattern,
    check_rate,
    check_scope,
    count_active,
    count_kept,
    describe_ungrouped,
    gradient_magnitude,
    grow,
    grow_filters,
    grow_global,
    keep_filters,
    keep_n_of_m,
    keep_top_evenly,
    keep_top_global,
    magnitude,
    refuse_crowded,
    sparsity_before,
)


@dataclass(frozen=True, kw_only=True)
class OneShot(Method):
    """Prune once by magnitude, regenerate where asked, and keep the masks."""

    reference: ClassVar[str] = "Liu et al., 2021, arXiv:2106.10404, Section 3"
    group: ClassVar[Group] = Group.BEFORE_TRAINING

    rate: float = 0.0  # share of the active weights that is pruned; 0: as many as the sparsity asks
    scope: str = "global"  # global or layer
    pattern: str = "none"  # none, filters, 2:4 or 1:4
    regrow: bool = False  # as many as were pruned

    def validate(self) -> None:
        check_pattern(self.pattern, self.sparsity, ("none", "filters", *N_OF_M))
        check_scope(self.scope)
        if self.rate == 1:
            raise ValueError("rate must be below 1, which would empty every layer")
        if self.pattern in N_OF_M and (self.rate or self.regrow):
            raise ValueError(f"pattern={self.pattern} decides what stays: leave rate and regrow out")
        if self.regrow and not self.rate:
            raise ValueError("regrow=true grows as many weights as are pruned: give rate, the share of those active")

    def promised_budget(self) -> Budget:
        return Budget.EXACT if self.pattern == "none" else Budget.OUTCOME

    def start_of_branch(self) -> float:
        return sparsity_before(self.sparsity, self.rate, self.regrow)

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return describe_ungrouped(self.pattern, shapes)

    def scoring(self) -> Scoring | None:
        return Scoring() if self.regrow else None

    def setup(self, view: View) -> Stages:
        if self.pattern in N_OF_M:
            return keep_n_of_m(magnitude(view), N_OF_M[self.pattern], 1.0, view.masks)
        check_rate(view, self.sparsity, self.rate, self.regrow)
        left = count_kept(self.rate, count_active(view.masks)) if self.regrow else view.count(self.sparsity)
        pruned = self.prune(view, left)
        return (pruned, self.regenerate(view, pruned)) if self.regrow else pruned  # what is pruned starts from zero

    def prune(self, view: View, count: int) -> Masks:
        """Return the `count` largest of the active weights, or the largest filters that fit."""
        if self.pattern == "filters":
            refuse_crowded(view, self.sparsity)
            return keep_filters(magnitude(view), count, view.masks, view.last, self.scope == "layer")
        keep = keep_top_global if self.scope == "global" else keep_top_evenly
        return keep(magnitude(view), count, among=view.masks)

    def regenerate(self, view: View, pruned: Masks) -> Masks:
        """Return the masks with as many weights grown, by gradient, as were pruned."""
        if self.pattern == "filters":
            return grow_filters(pruned, gradient_magnitude(view), view.masks, self.scope == "layer")
        grow_as_many = grow_global if self.scope == "global" else grow
        return grow_as_many(pruned, gradient_magnitude(view), like=view.masks)
