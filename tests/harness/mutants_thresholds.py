"""Wrong forms of the methods that train every weight and compute with some; rows for `mutants.Mutant`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from methods.core import Masks, Timeline, Update, View, count_layers, find_shift, keep_top, keep_top_global, shift
from methods.dnw import DNW
from methods.sr_ste import SRSTE
from methods.str import STR, name_of


@dataclass(frozen=True, kw_only=True)
class DNWNeverReturns(DNW):
    """Chooses among the active weights alone: a weight left out stays out, whatever it has grown to."""

    def update(self, view: View) -> Masks:
        counts = count_layers(view.masks)
        return {name: keep_top(weight.abs(), counts[name], view.masks[name]) for name, weight in view.stored.items()}


@dataclass(frozen=True, kw_only=True)
class DNWGlobal(DNW):
    """Ranks all layers together; layer counts move."""

    def update(self, view: View) -> Masks:
        return keep_top_global({name: w.abs() for name, w in view.stored.items()}, view.count(self.sparsity))


@dataclass(frozen=True, kw_only=True)
class SRSTEDecaysAll(SRSTE):
    """Adds the decay of the weights left out to those that are used, too."""

    def penalty(self, view: View) -> Mapping[str, Tensor]:
        return {name: self.sparse_decay * weight for name, weight in view.stored.items()}


@dataclass(frozen=True, kw_only=True)
class SRSTEOfTheWrongFour(SRSTE):
    """Takes groups along the outputs."""

    def update(self, view: View) -> Masks:
        sizes = {name: weight.abs().transpose(0, 1) for name, weight in view.stored.items()}
        turned = {name: keep_top(size, size.numel() // 2) for name, size in sizes.items()}
        return {name: mask.transpose(0, 1).contiguous() for name, mask in turned.items()}


@dataclass(frozen=True, kw_only=True)
class STRFixesByMagnitude(STR):
    """Fixes the masks of the largest weights, whatever their thresholds."""

    def update(self, view: View) -> Update:
        update = super().update(view)
        if update.masks is None:
            return update
        return Update(keep_top_global({n: w.abs() for n, w in view.stored.items()}, view.count(self.sparsity)))


@dataclass(frozen=True, kw_only=True)
class STRShiftsEachLayer(STR):
    """Gives every layer the same sparsity, so that nothing of what they learned is left."""

    def update(self, view: View) -> Update:
        update = super().update(view)
        if update.masks is not None:
            return update
        density = 1 - self.planned_sparsity(view.step, view.timeline)
        values = {}
        for name, weight in view.stored.items():
            s = view.learned[name_of(name)]
            by = find_shift({name: weight.abs()}, {name: s}, round(density * weight.numel()))
            values[name_of(name)] = shift(s, by)
        return Update(values=values)


@dataclass(frozen=True, kw_only=True)
class STRKeepsMomentum(STR):
    """Leaves the optimiser the momentum that led a threshold to where it no longer is."""

    def update(self, view: View) -> Update:
        return replace(super().update(view), forget=False)


@dataclass(frozen=True, kw_only=True)
class STRPaysForAll(STR):
    """Says that weights below their thresholds have gradients."""

    straight_through: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class STRPassesAll(STR):
    """Lets gradients through to all weights, and says that it does not."""

    def weigh(self, name: str, stored: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return super().weigh(name, stored, learned) + (stored - stored.detach())


@dataclass(frozen=True, kw_only=True)
class STRNeverFixes(STR):
    """Shifts to the end, and leaves the count to chance."""

    def update_steps(self, timeline: Timeline) -> range:
        return range(self.update_every, timeline.total_steps + 1, self.update_every)

    def update(self, view: View) -> Update:
        sizes = {name: weight.abs() for name, weight in view.stored.items()}
        s = {name: view.learned[name_of(name)] for name in sizes}
        by = find_shift(sizes, s, view.count(self.planned_sparsity(view.step, view.timeline)))
        return Update(values={name_of(name): shift(s[name], by) for name in s})


METHODS = [
    ("DNW never returns", "only active weights are candidates", "oracle:dnw", DNWNeverReturns),
    ("DNW globally", "layer counts move, though declared kept", "layer-counts", DNWGlobal),
    ("SR-STE decays all", "active weights decay twice", "oracle:sr_ste", SRSTEDecaysAll),
    ("SR-STE of no groups", "half of each layer instead of two of four", "oracle:sr_ste", SRSTEOfTheWrongFour),
    ("STR fixed by |w|", "thresholds forgotten when masks are fixed", "oracle:str", STRFixesByMagnitude),
    ("STR layer by layer", "a shift for each layer", "oracle:str", STRShiftsEachLayer),
    ("STR keeps momentum", "momentum from s_init outlives a shift", "oracle:str", STRKeepsMomentum),
    ("STR pays for all", "charged for gradients that nobody computes", "training-cost", STRPaysForAll),
    ("STR passes all", "gradients of all weights for the price of the active", "training-cost", STRPassesAll),
    (
        "STR never fixed",
        "an exact budget promised, its count left to chance",
        "runs",
        STRNeverFixes,
    ),
]
