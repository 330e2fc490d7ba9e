"""Faults of methods that work in rounds, and of the engine that repeats them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Inactive, Masks, Trains, View, keep_top_evenly, keep_top_global, magnitude
from methods.force import FORCE
from methods.imp import IMP
from methods.synflow import SynFlow


@dataclass(frozen=True, kw_only=True)
class SynFlowLinear(SynFlow):
    """Thins by the same number of weights in each round."""

    def setup(self, view: View) -> Masks:
        scores = {name: (flow * view.weights[name]).abs() for name, flow in view.gradients.items()}
        return keep_top_global(scores, view.count(self.sparsity * (view.round + 1) / self.score_rounds), view.masks)


@dataclass(frozen=True, kw_only=True)
class ForceByMaskedWeights(FORCE):
    """Scores weights as the masks leave them, so that none comes back."""

    def setup(self, view: View) -> Masks:
        weights = {name: weight * view.masks[name] for name, weight in view.weights.items()}
        masked = View(
            weights=weights,
            masks=view.masks,
            step=0,
            timeline=view.timeline,
            seed=view.seed,
            gradients=view.gradients,
            round=view.round,
        )
        return super().setup(masked)


@dataclass(frozen=True, kw_only=True)
class IMPLayerWise(IMP):
    """Prunes each layer by the rate."""

    def update(self, view: View) -> Masks:
        kept = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_top_evenly(magnitude(view), kept, view.masks)


@dataclass(frozen=True, kw_only=True)
class TwoRounds(IMP):
    """At sparsity 0.9 one pruning; nothing is wrong with it."""

    prune_rate: float = 0.9


@dataclass(frozen=True, kw_only=True)
class StoredTwoRounds(TwoRounds):
    """Keeps and trains all weights; nothing is wrong with it."""

    inactive: ClassVar[Inactive] = Inactive.STORED
    trains: ClassVar[Trains] = Trains.ALL


def go_on_with(statistics_alone: bool):
    """Return a fault: a round begins with what was trained, or with its batch statistics alone."""

    def make(original):
        def go_back(run, epoch):
            kept = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
            original(run, epoch)
            chosen = {name: tensor for name, tensor in kept.items() if not statistics_alone or "running" in name}
            run.model.load_state_dict(chosen, strict=False)

        return go_back

    return make


def go_on_with_stored(original):
    """Return a fault: a round begins with the stored weights that were trained."""

    def go_back(run, epoch):
        kept = {name: value.clone() for name, value in run.maskset.stored.values.items()}
        original(run, epoch)
        for name, value in run.maskset.stored.values.items():
            value.copy_(kept[name])
        run.maskset.load_effective()

    return go_back


METHODS = [
    ("SynFlow linear", "as many weights in each round", "oracle:synflow", SynFlowLinear),
    ("FORCE of masked weights", "no weight comes back", "oracle:force", ForceByMaskedWeights),
    ("IMP layer by layer", "no global ranking", "oracle:imp", IMPLayerWise),
]
ENGINE = [
    ("weights not rewound", "a round begins from the trained weights", "rounds", TwoRounds, go_on_with(False)),
    ("statistics not rewound", "a round begins with trained batch statistics", "rounds", TwoRounds, go_on_with(True)),
    ("stored not rewound", "a round begins from trained stored weights", "rounds", StoredTwoRounds, go_on_with_stored),
]
