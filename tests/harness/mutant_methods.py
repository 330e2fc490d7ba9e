"""Deliberately wrong methods, each with one fault that public code has had, or that a newcomer would make.

What is wrong with each is said where they are listed, in `mutants.METHODS`.
"""

from __future__ import annotations

import math
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
from methods.granet_late import GraNetLate
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


class ThresholdKeepsTies(GMP):
    def update(self, view: View) -> Masks:
        scores = magnitude(view)
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        limit = threshold_of(torch.cat([score.flatten() for score in scores.values()]), budget)
        return {name: score >= limit for name, score in scores.items()}


class BernoulliStart(Static):
    def setup(self, view: View) -> Masks:
        return {name: view.random(name) < 1 - self.sparsity for name in view.weights}


class ErkSolvedOnce(Static):
    def setup(self, view: View) -> Masks:
        raw = {name: sum(shape) / math.prod(shape) for name, shape in view.shapes.items()}
        weight = sum(raw[name] * math.prod(shape) for name, shape in view.shapes.items())
        scale = view.count(self.sparsity) / weight
        counts = {n: round(min(1.0, scale * raw[n]) * math.prod(shape)) for n, shape in view.shapes.items()}
        return random_masks(view, counts)


class GrowsOnlyWhereGradientIsPositive(RigLITOP):
    def update(self, view: View) -> Masks:
        scores = gradient_magnitude(view)
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        grown = grow(kept, scores, like=view.masks)
        return {name: kept[name] | (grown[name] & (scores[name] > 0)) for name in kept}


class GrowsOverActive(RigLITOP):
    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        scores, masks = gradient_magnitude(view), {}
        for name, mask in kept.items():
            missing = int(view.masks[name].sum()) - int(mask.sum())
            masks[name] = mask | keep_top(scores[name], missing)
        return masks


class GlobalGenerator(SET):
    def update(self, view: View) -> Masks:
        scores = {name: torch.rand(weight.shape) for name, weight in view.weights.items()}
        return grow(self.drop_smallest(view), scores, like=view.masks)


class OneGeneratorForAll(Static):
    def setup(self, view: View) -> Masks:
        generator = torch.Generator().manual_seed(view.seed)
        counts = DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity))
        return {n: keep_top(torch.rand(w.shape, generator=generator), counts[n]) for n, w in view.weights.items()}


class WritesToWeights(RigLITOP):
    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        for name, weight in view.weights.items():
            numpy.copyto(weight.numpy(), 0, where=(~kept[name]).numpy())
        return grow(kept, gradient_magnitude(view), like=view.masks)


class ScheduleOneShort(GraNet):
    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = prune_range(self.update_every, self.prune_end, timeline.total_steps)
        done = min(step // self.update_every, len(steps) - 1) / max(1, len(steps))
        return cubic(self.start_sparsity, self.sparsity, done)


class RemembersBetweenUpdates(SET):
    def update(self, view: View) -> Masks:
        before = getattr(self, REMEMBERED, {name: torch.zeros_like(w) for name, w in view.weights.items()})
        object.__setattr__(self, REMEMBERED, {name: weight.abs().clone() for name, weight in view.weights.items()})
        scores = {name: magnitude(view)[name] + before[name] for name in view.weights}
        return grow(drop(dict(view.masks), scores, self.prune_rate), random_scores(view), like=view.masks)


class UndeclaredGradients(RigLITOP):
    dense_grads: ClassVar[DenseGrads] = DenseGrads.NEVER


class DeclaresGradientsForNothing(SET):
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES


class HalfPrecisionScores(RigLITOP):
    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        scores = {name: score.bfloat16().float() for name, score in gradient_magnitude(view).items()}
        return grow(kept, scores, like=view.masks)


class HalfPrecisionAtSetup(SNIP):
    def setup(self, view: View) -> Masks:
        scores = {name: score.bfloat16().float() for name, score in snip_scores(view).items()}
        return keep_top_global(scores, view.count(self.sparsity))


class DrawsInPenalty(SET):
    def penalty(self, view: View) -> dict[str, torch.Tensor]:
        return {name: 0 * torch.rand(weight.shape) for name, weight in view.weights.items()}


class WritesInLearned(SET):
    def learned(self, view: View) -> dict[str, torch.Tensor]:
        for weight in view.weights.values():
            weight.data.mul_(0.5)
        return {}


class UpdatesPastTheEnd(SET):
    def update_steps(self, timeline: Timeline) -> range:
        return range(6, timeline.total_steps + 7, 6)


class MovesWeightsBetweenLayers(RigLITOP):
    def update(self, view: View) -> Masks:
        return keep_top_global(gradient_magnitude(view), view.count(self.sparsity))


class AsksForMoreThanItReads(SNIP):
    def scoring(self) -> Scoring:
        return Scoring(order=2, samples_per_class=4, chunks=2)


class FailsOnLinearLayers(Static):
    def setup(self, view: View) -> Masks:
        return {name: keep_top(view.random(name), shape[0] * shape[2]) for name, shape in view.shapes.items()}


class EmptiesSmallLayers(Static):
    def setup(self, view: View) -> Masks:
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        return random_masks(view, {n: 0 if math.prod(view.shapes[n]) < 9 else count for n, count in counts.items()})


# Wrong in what the paper says, and right in everything the interface asks: for the oracles to catch.


class GraSPWrongSign(GraSP):
    def setup(self, view: View) -> Masks:
        scores = {name: -weight * view.hessian_gradients[name] for name, weight in view.weights.items()}
        return keep_top_global(scores, view.count(self.sparsity))


class SNIPWithoutWeights(SNIP):
    def setup(self, view: View) -> Masks:
        return keep_top_global(gradient_magnitude(view), view.count(self.sparsity))


class SNIPLayerWise(SNIP):
    def setup(self, view: View) -> Masks:
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        return {name: keep_top(score, counts[name]) for name, score in snip_scores(view).items()}


class RigLNeverRegrows(RigL):
    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), cosine(self.prune_rate, 0.0, view.progress / self.update_end))
        scores = gradient_magnitude(view)
        return grow(kept, {n: torch.where(view.masks[n], -1.0, s) for n, s in scores.items()}, like=view.masks)


class RigLConstantRate(RigL):
    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        return grow(kept, gradient_magnitude(view), like=view.masks)


class SETOneRanking(SET):
    def drop_smallest(self, view: View) -> Masks:
        return drop(dict(view.masks), magnitude(view), self.prune_rate)


class RigLITOPFilterAsItIs(RigLITOPFilter):
    """Grows by the gradient, as it is."""

    update = RigLITOP.update  # type: ignore[assignment]


class ACDCLayerWise(ACDC):
    """Compresses every layer to the same sparsity."""

    def update(self, view: View) -> Masks:
        count = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_top_evenly(magnitude(view), count, {n: torch.ones_like(m) for n, m in view.masks.items()})


class SRigLAsRigL(SRigL):
    """Grows wherever in the layer the gradient is largest."""

    update = RigL.update  # type: ignore[assignment]


class MESTNeverHalves(MEST):
    """Exchanges as many until the end."""

    def share(self, step: int, timeline: Timeline) -> float:
        return 1.0


class GraNetTooLate(GraNetLate):
    def begun(self, steps: range, timeline: Timeline) -> range:
        return super().begun(steps, timeline)[1:]


class GraNetLayerWise(GraNet):
    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        counts = DISTRIBUTIONS["uniform"](view.shapes, budget)
        pruned = {n: keep_top(score, counts[n]) for n, score in magnitude(view).items()}
        rate = cosine(self.prune_rate, self.final_prune_rate, view.progress)
        return grow(drop(pruned, magnitude(view), rate, math.ceil), gradient_magnitude(view), like=pruned)


class GMPLinear(GMP):
    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        steps = self.update_steps(timeline)
        done = sum(s <= step for s in steps) / len(steps)
        return self.sparsity if done == 1 else self.sparsity * done


class StaticByMagnitude(Static):
    def setup(self, view: View) -> Masks:
        counts = DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity))
        return {name: keep_top(score, counts[name]) for name, score in magnitude(view).items()}


class UndeclaredDonor(Static):
    def setup(self, view: View) -> Masks:
        return random_masks(view, view.donor_counts)


class DonorForNothing(Static):
    def donor(self) -> Donor:
        return Donor("granet", "masks")

    def setup(self, view: View) -> Masks:
        return random_masks(view, view.donor_counts)


class GMPUniformGlobal(GMPUniform):
    update = GMP.update


class GraNetUniformFromERK(GraNetUniform):
    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS["erk"](view.shapes, view.count(self.start_sparsity)))


class GMPStructuredBySquares(GMPStructured):
    def update(self, view: View) -> Masks:
        squares = {name: score.square() for name, score in magnitude(view).items()}
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_filters(squares, budget, view.masks, view.last, self.scope == "layer")


class GraNetStructuredPrunesOnly(GraNetStructured):
    def update(self, view: View) -> Masks:
        budget = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_filters(magnitude(view), budget, view.masks, view.last, self.scope == "layer")


class OneShotLayerWise(OneShot):
    def setup(self, view: View) -> Masks:
        kept = {name: round((1 - self.sparsity) * weight.numel()) for name, weight in view.weights.items()}
        return {name: keep_top(score, kept[name]) for name, score in magnitude(view).items()}
