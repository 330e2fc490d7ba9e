"""The oracle of SIS: the paper's problem by Douglas-Rachford, projections by bisection in the basis of an SVD."""

from __future__ import annotations

import numpy as np

from tests.harness.oracles import ORACLES, Oracle, best_of_all, budget


class Sis(Oracle):
    """Verma & Pesquet 2021: after a dense training, min |W|_1 at a bounded change of every layer's outputs."""

    defaults = {"fine_tune": True, "iterations": 25, "score_batches": 16}  # noqa: RUF012

    def __init__(self, settings, timeline):
        super().__init__(settings, timeline)
        self.first_end = timeline.round_ends[0]
        self.solved = {}

    def update_steps(self):
        """Once, at the end of the dense training."""
        return [self.first_end]

    def planned(self, step):
        """Dense until then."""
        return self.sparsity if step >= self.first_end else 0.0

    def imagine(self, dense, layers, rng):
        """Return made-up second moments: of more rows than inputs, or of fewer."""
        moments = {}
        for place, (name, weight) in enumerate(dense.items()):
            groups = len(weight) if name == "depthwise" else 1
            fan_in = weight[0].size
            rows = rng.standard_normal((groups, 2 * fan_in if place % 2 else 1 + fan_in // 2, fan_in))
            moments[name] = np.einsum("gri,grj->gij", rows, rows) / rows.shape[1]
        return {"input_moments": moments}

    def masks(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Start dense; then the largest of the sparse weights stay."""
        everything = {name: np.ones(weight.shape, bool) for name, weight in weights.items()}
        if step == 0:
            return everything
        kept = budget(self.sparsity, sum(weight.size for weight in weights.values()))
        self.solved = self.solve(weights, self.view["input_moments"], kept)
        return best_of_all({n: np.abs(weight) for n, weight in self.solved.items()}, kept, everything, self.best)

    def values(self, step, stored):
        """Return the sparse weights."""
        return self.solved

    def solve(self, weights, moments, kept):
        """Bisect the share of the outputs that may change, geometrically from 1e-4 to 1, in 12 steps."""
        shape = {name: (len(moments[name]), -1, moments[name].shape[-1]) for name in weights}
        given = {name: weight.astype(float).reshape(shape[name]) for name, weight in weights.items()}
        turns = {name: np.linalg.svd(moment) for name, moment in moments.items()}
        points, found, low, high = dict(given), weights, np.log(1e-4), 0.0
        for _ in range(12):
            middle, sparse = (low + high) / 2, {}
            for name, weight in given.items():
                points[name], new = self.descend(weight, points[name], *turns[name][:2], np.exp(middle))
                sparse[name] = new.reshape(weights[name].shape).astype(np.float32)
            if sum(np.count_nonzero(weight) for weight in sparse.values()) >= kept:
                low, found = middle, sparse
            else:
                high = middle
        return found

    def descend(self, given, point, basis, spectrum, share):
        """Return where the iteration stands after so many rounds, and its sparse side."""
        squares = spectrum[:, None, :] * (given @ basis) ** 2
        if squares.sum() == 0:
            return point, np.zeros_like(given)
        step, sparse = np.abs(given).mean(), given
        for _ in range(self.iterations):
            sparse = np.where(np.abs(point) > step, point - step * np.sign(point), 0)
            turned = (2 * sparse - point - given) @ basis
            off = spectrum * (turned**2).sum(1)
            shrink = 1 + self.multiplier(off, spectrum, share * squares.sum()) * spectrum[:, None, :]
            near = given + (turned / shrink) @ np.swapaxes(basis, 1, 2)
            point = point + 1.5 * (near - sparse)
        return point, sparse

    def multiplier(self, off, spectrum, most):
        """Return the m at which sum off / (1 + m spectrum)^2 is `most`, 0 where it is less already."""

        def left(tries):
            return (off / (1 + tries[:, None, None] * spectrum) ** 2).sum((1, 2))

        if off.sum() <= most:
            return 0.0
        low, high = 0.0, 1.0
        while left(np.array([high]))[0] > most:
            low, high = high, 16 * high
        for _ in range(11):
            tries = np.linspace(low, high, 33)
            last = int(np.flatnonzero(left(tries) >= most).max(initial=0))
            low, high = tries[last], tries[min(last + 1, 32)]
        return (low + high) / 2


ORACLES["sis"] = Sis

VARIANTS = {"sis": [{"iterations": 6, "score_batches": 2}, {"iterations": 4, "fine_tune": False, "score_batches": 1}]}
