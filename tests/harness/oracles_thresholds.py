"""Oracles of the methods that train every weight and compute with some: DNW, SR-STE and STR, from their papers.

What they are shown as `weights` are the stored values, those of inactive weights included; `learned` has STR's s_l.
"""

from __future__ import annotations

import numpy as np

from tests.harness.oracles import ORACLES, Gmp, Oracle, best_of_all, budget, layer_counts, moment


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
            rows = np.array(chosen).reshape(len(weight), *weight.shape[2:], weight.shape[1])
            result[name] = np.moveaxis(rows, -1, 1)
        return result

    def penalty_of(self, weights, masks):
        """Return lambda_w (1 - mask) w."""
        return {n: np.where(masks[n], 0, np.float32(self.sparse_decay) * weights[n]) for n in weights}


def sigmoid(s):
    """Return 1 / (1 + exp(-s)) of a float32 number, worked out in float64 and rounded to float32."""
    with np.errstate(over="ignore"):
        return np.float32(1 / (1 + np.exp(-np.float64(s))))


class Str(Gmp):
    """Kusupati 2020, arXiv:2002.03231, Eq. 6, thresholds led to the cubic schedule, masks fixed at the last update."""

    defaults = {"s_init": -3200.0, "controller": True, "prune_end": 0.5, "fix_at": 0.75}  # noqa: RUF012
    forgets = True  # momentum of s on its way from s_init leads away from where it is shifted to

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
        """Return every s after the shift, the smallest that leaves at most what the schedule says; none at the ends.

        A weight is left while the shift is below logit |w| - s: the next of these distances, past the `kept` largest.
        Thresholds lie between those of -110 and 20.
        """
        if step == 0 or not self.controller or step >= self.update_steps()[-1]:
            return {}
        kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
        s = {name: float(self.learned[f"{name}.s"]) for name in weights}
        with np.errstate(divide="ignore"):
            sizes = {name: np.abs(weight.astype(np.float64)) for name, weight in weights.items()}
            logits = {
                n: np.where(size < 1, np.log(size) - np.log1p(-np.minimum(size, 1)), np.inf)
                for n, size in sizes.items()
            }
        distances = np.concatenate([(logits[name] - s[name]).ravel() for name in weights])
        following = np.append(np.sort(distances)[::-1], -np.inf)[kept]
        by = np.clip(following, -110 - max(s.values()), 20 - min(s.values()))
        return {f"{name}.s": np.float32(s[name] + by) for name in weights}


ORACLES |= {"dnw": Dnw, "sr_ste": SrSte, "str": Str}

# ------------------------------------------------------------------------------- settings and errors that are tried

N_OF_M = [{"pattern": "2:4", "sparsity": 0.5}, {"pattern": "1:4", "sparsity": 0.75}]
VARIANTS = {
    "dnw": [{}, {"distribution": "erk"}],
    "sr_ste": N_OF_M,
    "str": [{}, {"prune_end": 0.75, "update_every": 2}, {"s_init": -3.0, "fix_at": 1.0}, {"controller": False}],
}


def active_only(method):
    """Return a choice of masks from among the weights that are active alone."""

    def masks(self, step, weights, masks, *shown):
        return method(self, step, {name: weight * masks[name] for name, weight in weights.items()}, masks, *shown)

    return {"masks": masks}


def of_other(oracle, **settings):
    """Return what an oracle does under other settings."""

    def answer(self, *shown):
        return oracle({**self.settings, **settings}, self).masks(*shown)

    return {"masks": answer}


def by_magnitude(self, step, weights, *shown):
    """Fix the largest |w|, whatever their thresholds."""
    masks = Str.stages(self, step, weights, *shown)
    kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
    sizes = {name: np.abs(weight) for name, weight in weights.items()}
    return masks and [best_of_all(sizes, kept, {n: np.ones(w.shape, bool) for n, w in weights.items()})]


def shift_each(self, step, weights):
    """Shift every layer by an amount of its own."""
    shifted = Str.values(self, step, weights)
    return {name: value + np.float32(place) for place, (name, value) in enumerate(shifted.items())}


WRONG = {
    "dnw": [
        ("weights never return", active_only(Dnw.masks)),
        ("ERK for uniform", of_other(Dnw, distribution="erk")),
        ("chosen once an epoch", {"update_steps": lambda self: list(range(1, self.total_steps + 1, 4))}),
    ],
    "sr_ste": [
        ("weights never return", active_only(SrSte.masks)),
        ("1:4 for 2:4", of_other(SrSte, pattern="1:4")),
        ("not at the end", {"update_steps": lambda self: list(range(1, self.total_steps))}),
    ],
    "str": [
        ("masks by |w|", {"stages": by_magnitude}),
        ("every layer for itself", {"values": shift_each}),
        (
            "no shift",
            {"values": lambda self, *shown: {n: np.float32(self.learned[n]) for n in Str.values(self, *shown)}},
        ),
        ("linear", {"planned": lambda self, step: 1 - (1 - self.sparsity) * max(step, 1) / self.total_steps}),
    ],
}
