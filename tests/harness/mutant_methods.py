"""Deliberately wrong methods, each with one fault that public code has had, or that a newcomer would make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch

from methods.ac_dc import ACDC
from methods.core import (
    DISTRIBUTIONS,
    DenseGrads,
    Donor,
    Masks,
    Scoring,
    Timeline,
    View,
    all_active,
    cosine,
    cubic,
    drop,
    gradient_magnitude,
    grow,
    keep_filters,
    keep_top,
    keep_top_evenly,
    keep_top_global,
    magnitude,
    prune_range,
    random_masks,
    random_scores,
    snip_scores,
)
from methods.gmp import GMP
from methods.gmp_structured import GMPStructured
from methods.gmp_uniform import GMPUniform
from methods.granet import GraNet
from methods.granet_structured import GraNetStructured
from methods.granet_uniform import GraNetUniform
from methods.grasp import GraSP
from methods.mest import MEST
from methods.one_shot import OneShot
from methods.rigl import RigL
from methods.rigl_itop import RigLITOP
from methods.rigl_itop_filter import RigLITOPFilter
from methods.set import SET
from methods.snip import SNIP
from methods.srigl import SRigL
from methods.static import Static

REMEMBERED = "_mutant_memory"


def threshold_of(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k-th largest score."""
    return scores.flatten().sort(descending=True).values[max(k - 1, 0)]


@dataclass(frozen=True, kw_only=True)
class ThresholdKeepsTies(GMP):
    """Keeps whatever is not below a threshold."""

    def update(self, view: View) -> Masks:
        scores = magnitude(view)
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        limit = threshold_of(torch.cat([score.flatten() for score in scores.values()]), budget)
        return {name: score >= limit for name, score in scores.items()}


@dataclass(frozen=True, kw_only=True)
class BernoulliStart(Static):
    """Draws every weight with a probability."""

    def setup(self, view: View) -> Masks:
        return {name: view.random(name) < 1 - self.sparsity for name in view.weights}


@dataclass(frozen=True, kw_only=True)
class ErkSolvedOnce(Static):
    """Cuts layer densities above 1 and does not share out what was cut."""

    def setup(self, view: View) -> Masks:
        raw = {name: sum(shape) / math.prod(shape) for name, shape in view.shapes.items()}
        weight = sum(raw[name] * math.prod(shape) for name, shape in view.shapes.items())
        scale = view.count(self.sparsity) / weight
        counts = {n: round(min(1.0, scale * raw[n]) * math.prod(shape)) for n, shape in view.shapes.items()}
        return random_masks(view, counts)


@dataclass(frozen=True, kw_only=True)
class GrowsOnlyWhereGradientIsPositive(RigLITOP):
    """One-sided growth: candidates without gradient are passed over, and the layer loses weights."""

    def update(self, view: View) -> Masks:
        scores = gradient_magnitude(view)
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        grown = grow(kept, scores, like=view.masks)
        return {name: kept[name] | (grown[name] & (scores[name] > 0)) for name in kept}


@dataclass(frozen=True, kw_only=True)
class GrowsOverActive(RigLITOP):
    """Takes the largest gradients of all weights, active ones included."""

    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        scores, masks = gradient_magnitude(view), {}
        for name, mask in kept.items():
            missing = int(view.masks[name].sum()) - int(mask.sum())
            masks[name] = mask | keep_top(scores[name], missing)
        return masks


@dataclass(frozen=True, kw_only=True)
class GlobalGenerator(SET):
    """Grows by torch's global generator."""

    def update(self, view: View) -> Masks:
        scores = {name: torch.rand(weight.shape) for name, weight in view.weights.items()}
        return grow(self.drop_smallest(view), scores, like=view.masks)


@dataclass(frozen=True, kw_only=True)
class OneGeneratorForAll(Static):
    """Draws layer after layer from one generator, so a layer's mask depends on its place."""

    def setup(self, view: View) -> Masks:
        generator = torch.Generator().manual_seed(view.seed)
        counts = DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity))
        return {n: keep_top(torch.rand(w.shape, generator=generator), counts[n]) for n, w in view.weights.items()}


@dataclass(frozen=True, kw_only=True)
class WritesToWeights(RigLITOP):
    """Zeroes dropped weights itself, past torch's notice."""

    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        for name, weight in view.weights.items():
            numpy.copyto(weight.numpy(), 0, where=(~kept[name]).numpy())
        return grow(kept, gradient_magnitude(view), like=view.masks)


@dataclass(frozen=True, kw_only=True)
class ScheduleOneShort(GraNet):
    """Stops at k = n - 1 of n pruning steps, as the authors' code once did."""

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = prune_range(self.update_every, self.prune_end, timeline.total_steps)
        done = min(step // self.update_every, len(steps) - 1) / max(1, len(steps))
        return cubic(self.start_sparsity, self.sparsity, done)


@dataclass(frozen=True, kw_only=True)
class RemembersBetweenUpdates(SET):
    """Keeps what it saw in itself: lost when the run is continued by another process."""

    def update(self, view: View) -> Masks:
        before = getattr(self, REMEMBERED, {name: torch.zeros_like(w) for name, w in view.weights.items()})
        object.__setattr__(self, REMEMBERED, {name: weight.abs().clone() for name, weight in view.weights.items()})
        scores = {name: magnitude(view)[name] + before[name] for name in view.weights}
        return grow(drop(dict(view.masks), scores, self.prune_rate), random_scores(view), like=view.masks)


@dataclass(frozen=True, kw_only=True)
class UndeclaredGradients(RigLITOP):
    """Reads gradients it never asked for."""

    dense_grads: ClassVar[DenseGrads] = DenseGrads.NEVER


@dataclass(frozen=True, kw_only=True)
class DeclaresGradientsForNothing(SET):
    """Is charged for dense gradients and never looks at them."""

    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionScores(RigLITOP):
    """Ranks bfloat16 gradients."""

    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        scores = {name: score.bfloat16().float() for name, score in gradient_magnitude(view).items()}
        return grow(kept, scores, like=view.masks)


@dataclass(frozen=True, kw_only=True)
class UpdatesPastTheEnd(SET):
    """Plans updates that the run never reaches."""

    def update_steps(self, timeline: Timeline) -> range:
        return range(6, timeline.total_steps + 7, 6)


@dataclass(frozen=True, kw_only=True)
class MovesWeightsBetweenLayers(RigLITOP):
    """Says that layers keep their counts and ranks them all together."""

    def update(self, view: View) -> Masks:
        return keep_top_global(gradient_magnitude(view), view.count(self.sparsity))


@dataclass(frozen=True, kw_only=True)
class AsksForMoreThanItReads(SNIP):
    """Has the Hessian-gradient product computed, and charged, for nothing."""

    def scoring(self) -> Scoring:
        return Scoring(order=2, samples_per_class=4, chunks=2)


@dataclass(frozen=True, kw_only=True)
class FailsOnLinearLayers(Static):
    """Takes every layer for a convolution."""

    def setup(self, view: View) -> Masks:
        return {name: keep_top(view.random(name), shape[0] * shape[2]) for name, shape in view.shapes.items()}


@dataclass(frozen=True, kw_only=True)
class EmptiesSmallLayers(Static):
    """Rounds the count of a layer down, and gives the rest to nobody, where a layer has few weights."""

    def setup(self, view: View) -> Masks:
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        return random_masks(view, {n: 0 if math.prod(view.shapes[n]) < 9 else count for n, count in counts.items()})


# Wrong in what the paper says, and right in everything the interface asks: for the oracles to catch.


@dataclass(frozen=True, kw_only=True)
class GraSPWrongSign(GraSP):
    """Removes the smallest of -w Hg."""

    def setup(self, view: View) -> Masks:
        scores = {name: -weight * view.hessian_gradients[name] for name, weight in view.weights.items()}
        return keep_top_global(scores, view.count(self.sparsity))


@dataclass(frozen=True, kw_only=True)
class SNIPWithoutWeights(SNIP):
    """Scores |g| instead of |g w|."""

    def setup(self, view: View) -> Masks:
        return keep_top_global(gradient_magnitude(view), view.count(self.sparsity))


@dataclass(frozen=True, kw_only=True)
class SNIPLayerWise(SNIP):
    """Ranks each layer apart, at ERK densities."""

    def setup(self, view: View) -> Masks:
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        return {name: keep_top(score, counts[name]) for name, score in snip_scores(view).items()}


@dataclass(frozen=True, kw_only=True)
class RigLNeverRegrows(RigL):
    """Leaves what it has just dropped out of the candidates."""

    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), cosine(self.prune_rate, 0.0, view.progress / self.update_end))
        scores = gradient_magnitude(view)
        return grow(kept, {n: torch.where(view.masks[n], -1.0, s) for n, s in scores.items()}, like=view.masks)


@dataclass(frozen=True, kw_only=True)
class RigLConstantRate(RigL):
    """Does not anneal its rate, as the reference code does not by default."""

    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        return grow(kept, gradient_magnitude(view), like=view.masks)


@dataclass(frozen=True, kw_only=True)
class SETOneRanking(SET):
    """Ranks both signs together."""

    def drop_smallest(self, view: View) -> Masks:
        return drop(dict(view.masks), magnitude(view), self.prune_rate)


@dataclass(frozen=True, kw_only=True)
class RigLITOPFilterAsItIs(RigLITOPFilter):
    """Grows by the gradient, as it is."""

    update = RigLITOP.update  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class ACDCLayerWise(ACDC):
    """Compresses every layer to the same sparsity."""

    def update(self, view: View) -> Masks:
        count = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_top_evenly(magnitude(view), count, all_active(view))


@dataclass(frozen=True, kw_only=True)
class SRigLAsRigL(SRigL):
    """Grows wherever in the layer the gradient is largest."""

    update = RigL.update  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class MESTNeverHalves(MEST):
    """Exchanges as many until the end."""

    def share(self, step: int, timeline: Timeline) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class GraNetLayerWise(GraNet):
    """Prunes each layer to the same density instead of globally."""

    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        counts = DISTRIBUTIONS["uniform"](view.shapes, budget)
        pruned = {n: keep_top(score, counts[n]) for n, score in magnitude(view).items()}
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        return grow(drop(pruned, magnitude(view), rate, math.ceil), gradient_magnitude(view), like=pruned)


@dataclass(frozen=True, kw_only=True)
class GMPLinear(GMP):
    """Raises sparsity linearly instead of by the cubic."""

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = self.update_steps(timeline)
        done = sum(s <= step for s in steps) / len(steps)
        return self.sparsity if done == 1 else self.sparsity * done


@dataclass(frozen=True, kw_only=True)
class StaticByMagnitude(Static):
    """Keeps the largest initial weights: not random at all."""

    def setup(self, view: View) -> Masks:
        counts = DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity))
        return {name: keep_top(score, counts[name]) for name, score in magnitude(view).items()}


@dataclass(frozen=True, kw_only=True)
class DenseButOne(Static):
    """A control that is not what it says: everything is kept, whatever was asked."""

    def setup(self, view: View) -> Masks:
        return all_active(view)


@dataclass(frozen=True, kw_only=True)
class UndeclaredDonor(Static):
    """Draws as another run has it, without asking for one."""

    def setup(self, view: View) -> Masks:
        return random_masks(view, view.donor_counts)


@dataclass(frozen=True, kw_only=True)
class DonorForNothing(Static):
    """Asks for the masks of another run and reads its counts alone."""

    def donor(self) -> Donor:
        return Donor("granet", "masks")

    def setup(self, view: View) -> Masks:
        return random_masks(view, view.donor_counts)


@dataclass(frozen=True, kw_only=True)
class GMPUniformGlobal(GMPUniform):
    """Prunes globally under a name that says uniform."""

    update = GMP.update


@dataclass(frozen=True, kw_only=True)
class GraNetUniformFromERK(GraNetUniform):
    """Starts with the layer densities of ERK."""

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS["erk"](view.shapes, view.count(self.start_sparsity)))


@dataclass(frozen=True, kw_only=True)
class GMPStructuredBySquares(GMPStructured):
    """Ranks filters by the squares of their weights, the L2 norm instead of the L1 norm."""

    def update(self, view: View) -> Masks:
        squares = {name: score.square() for name, score in magnitude(view).items()}
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_filters(squares, budget, view.masks, view.last, self.scope == "layer")


@dataclass(frozen=True, kw_only=True)
class GraNetStructuredPrunesOnly(GraNetStructured):
    """Prunes filters and regrows none."""

    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_filters(magnitude(view), budget, view.masks, view.last, self.scope == "layer")


@dataclass(frozen=True, kw_only=True)
class OneShotLayerWise(OneShot):
    """Prunes each layer to the same share where all are to be ranked together."""

    def setup(self, view: View) -> Masks:
        kept = {name: round((1 - self.sparsity) * weight.numel()) for name, weight in view.weights.items()}
        return {name: keep_top(score, kept[name]) for name, score in magnitude(view).items()}
