"""Oracles of the methods that work in rounds: of scoring before training, or of training."""

from __future__ import annotations

import numpy as np

from tests.harness.oracles import ORACLES, Oracle, best_of_all, budget, magnitudes


class Thinning(Oracle):
    """Scored in rounds; after k of n the density is rho^(k / n)."""

    round = 0  # told by the engine, from 0

    def thinned(self, done):
        """Return the sparsity after so many rounds."""
        return self.sparsity if done == self.score_rounds else 1 - (1 - self.sparsity) ** (done / self.score_rounds)

    def candidates(self, masks):
        """Return which weights are ranked: those that are left."""
        return masks

    def stages(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Return the round's masks: the largest scores of the whole network."""
        scores = {name: np.abs(gradients[name] * weights[name]) for name in weights}
        kept = budget(self.thinned(self.round + 1), sum(weight.size for weight in weights.values()))
        return [best_of_all(scores, kept, self.candidates(masks), self.best)]


class SynFlow(Thinning):
    """Tanaka 2020, arXiv:2006.05467, Eq. 2 and Alg. 1; the gradients are those of R_SF, in float64."""

    defaults = {"score_rounds": 100}  # noqa: RUF012

    def scoring(self):
        """No data: |network| at an input of ones, under the masks so far."""
        return {"order": 1, "rounds": self.score_rounds, "flow": True}


class Force(Thinning):
    """De Jorge 2021, arXiv:2006.09081, FORCE: dense weights times the gradient of the thinned network; or Iter-SNIP."""

    defaults = {"score_rounds": 60, "score_batches": 1, "resurrect": True}  # noqa: RUF012

    def scoring(self):
        """One gradient of the loss in each round, each on other images."""
        few = {"batches": self.score_batches, "samples_per_class": 0, "temperature": 1.0, "batch_norm": "batch"}
        return {"order": 1, "rounds": self.score_rounds, "fresh": True, "flow": False, "augmented": True, **few}

    def candidates(self, masks):
        """Return all weights in FORCE, so that pruned ones come back, and in Iter-SNIP those that are left."""
        return {name: mask | self.resurrect for name, mask in masks.items()}


class Imp(Oracle):
    """Frankle & Carbin 2019, arXiv:1803.03635: after each training the smallest 20 % of what is left, globally."""

    defaults = {"prune_rate": 0.2, "rewind_epoch": 0, "keep_weights": False}  # noqa: RUF012

    def __init__(self, settings, timeline):
        super().__init__(settings, timeline)
        self.ends = list(timeline.round_ends)

    def update_steps(self):
        """Prune at the end of every round but the last."""
        return self.ends[:-1]

    def planned(self, step):
        """Return what so many prunings leave, the target after the last of them."""
        done, left, needed = sum(end <= step for end in self.ends[:-1]), 1.0, 0
        while left > (1 - self.sparsity) * (1 + 1e-8):
            left, needed = left * (1 - self.prune_rate), needed + 1
        return self.sparsity if done == max(1, needed) else 1 - (1 - self.prune_rate) ** done

    def masks(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Start dense; prune what is left by size."""
        kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
        return best_of_all(magnitudes(weights), kept, masks, self.best)


ORACLES.update({"synflow": SynFlow, "force": Force, "imp": Imp})
