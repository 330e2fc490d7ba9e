"""Oracles of the methods that train every weight and compute with some: DNW, SR-STE and STR, from their papers.

What they are shown as `weights` are the stored values, those of inactive weights included; `learned` has STR's s_l.
"""

from __future__ import annotations

import numpy as np

from tests.harness.oracles import ORACLES, Gmp, Oracle, best_of_all, budget, from_fours, layer_counts, moment


class Dnw(Oracle):
    """Wortsman 2019, arXiv:1906.00586: at every step the largest |w| of each layer, from among all weights."""

    defaults = {"distribution": "uniform"}  # noqa: RUF012

    def update_steps(self):
        """Choose after every step."""
        return list(range(1, self.total_steps + 1))

    def masks(self, step, weights, masks, *shown):
        """Return the largest of each layer, whatever was left out before."""
        total = budget(self.sparsity, sum(weight.size for weight in weights.values()))
        counts = layer_counts({name: weight.shape for name, weight in weights.items()}, total, self.distribution)
        return {n: self.best(np.abs(w), counts[n], np.ones(w.shape, bool)) for n, w in weights.items()}


class SrSte(Dnw):
    """Zhou 2021, arXiv:2102.04010, Eq. 9: at every step the N largest |w| of four."""

    defaults = {"pattern": "2:4", "sparse_decay": 2e-4}  # noqa: RUF012

    def planned(self, step):
        """Promise no count: layers without groups stay dense."""

    def masks(self, step, weights, masks, *shown):
        """Return N of every four consecutive inputs, group by group; a layer that has none stays whole."""
        result = {}
        for name, weight in weights.items():
            if weight.shape[1] % 4:
                result[name] = np.ones(weight.shape, bool)
                continue
            groups = np.abs(np.moveaxis(weight, 1, -1).reshape(-1, 4))
            chosen = [self.best(group, int(self.pattern[0]), np.ones(4, bool)) for group in groups]
            result[name] = from_fours(np.array(chosen), weight.shape)
        return result


def sigmoid(s):
    """Return 1 / (1 + exp(-s)) of a float32 number, worked out in float64 and rounded to float32."""
    with np.errstate(over="ignore"):
        return np.float32(1 / (1 + np.exp(-np.float64(s))))


class Str(Gmp):
    """Kusupati 2020, arXiv:2002.03231, Eq. 6, with thresholds led to the cubic schedule and masks fixed at an update."""

    defaults = {"s_init": -3200.0, "controller": True, "prune_end": 0.5, "fix_at": 0.75}  # noqa: RUF012

    def update_steps(self):
        """Shift every dt steps until masks are fixed; the paper's method has its weights to the last step."""
        if not self.controller:
            return [self.total_steps]
        end = moment(self.fix_at, self.total_steps)
        return [step for step in self.every(self.update_every, self.total_steps) if step <= end]

    def planned(self, step):
        """Return the schedule's sparsity; promise nothing without a controller."""
        return super().planned(step) if self.controller else None

    def used(self, weights):
        """Return which weights the thresholds leave: |w| > sigmoid(s)."""
        return {name: np.abs(weight) > sigmoid(self.learned[f"{name}.s"]) for name, weight in weights.items()}

    def stages(self, step, weights, masks, *shown):
        """Return masks at the last update alone: the largest |w| - sigmoid(s) of the whole network."""
        if step == 0 or (self.controller and step < self.update_steps()[-1]):
            return []
        if not self.controller:
            return [self.used(weights)]
        kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
        scores = {name: np.abs(weight) - sigmoid(self.learned[f"{name}.s"]) for name, weight in weights.items()}
        everything = {name: np.ones(weight.shape, bool) for name, weight in weights.items()}
        return [best_of_all(scores, kept, everything, self.best)]

    def values(self, step, weights):
        """Return the range in which a shift of every s leaves what the schedule says; None where nothing is shifted.

        A weight is left while s + shift < logit |w|: of these distances the `kept` largest are left, so the shift lies
        between the next one and the last of them.
        """
        if step == 0 or not self.controller or step >= self.update_steps()[-1]:
            return None
        kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes = {name: np.abs(weight.astype(np.float64)) for name, weight in weights.items()}
            logits = {name: np.where(size < 1, np.log(size) - np.log1p(-size), np.inf) for name, size in sizes.items()}
        far = np.concatenate([(logits[name] - np.float64(self.learned[f"{name}.s"])).ravel() for name in weights])
        far = np.append(np.sort(far)[::-1], -np.inf)
        return far[kept], far[kept - 1] if kept else np.inf


ORACLES |= {"dnw": Dnw, "sr_ste": SrSte, "str": Str}
