"""Sparse weights of a layer whose outputs stay near what they were."""

from __future__ import annotations

import torch
from torch import Tensor

RELAXATION = 1.5
NEWTON, CLOSE = 60, 1e-13  # steps to the projection's multiplier at most, and its relative error


class NearOutputs:
    """min |W|_1 subject to sum |(W - W0) x|^2 <= eta sum |W0 x|^2, for one eta after the other.

    By Douglas-Rachford in float64, each time from where the last one ended; weights stand as (groups, outputs, fan_in).
    `moments`: the second moments of the inputs x, (groups, fan_in, fan_in), as `View.input_moments` has them.
    """

    def __init__(self, weight: Tensor, moments: Tensor) -> None:
        self.weight = weight
        self.given = weight.double().reshape(len(moments), -1, moments.shape[-1])
        spectrum, basis = torch.linalg.eigh(moments.double())
        self.spectrum: Tensor = spectrum.clamp_min(0)
        self.basis: Tensor = basis
        self.total = float((self.spectrum * (self.given @ self.basis).square().sum(1)).sum())
        self.point, self.threshold = self.given, self.given.abs().mean()
        self.multiplier = self.given.new_zeros(())

    def sparsify(self, eta: float, iterations: int) -> Tensor:
        """Return weights of small L1 norm whose outputs are off by no more than about `eta` of their squares."""
        if self.total == 0:  # whatever the weights, there is no output
            return torch.zeros_like(self.weight)
        sparse = self.given
        for _ in range(iterations):
            sparse = self.point.sign() * (self.point.abs() - self.threshold).relu()
            near = self.project(2 * sparse - self.point, eta * self.total)
            self.point = self.point + RELAXATION * (near - sparse)
        return sparse.reshape(self.weight.shape).to(self.weight.dtype)

    def project(self, point: Tensor, most: float) -> Tensor:
        """Return the nearest weights whose outputs are off by a sum of squares of at most `most`."""
        turned = (point - self.given) @ self.basis
        self.multiplier = self.find_multiplier(self.spectrum * turned.square().sum(1), most)
        return self.given + (turned / (1 + self.multiplier * self.spectrum).unsqueeze(1)) @ self.basis.mT

    def find_multiplier(self, squares: Tensor, most: float) -> Tensor:
        """Return the least m >= 0 with sum(squares / (1 + m spectrum)^2) <= most, by Newton on the inverse root."""
        multiplier = self.multiplier
        for _ in range(NEWTON):
            shrunk = 1 + multiplier * self.spectrum
            parts = squares / shrunk.square()
            slope = (parts * self.spectrum / shrunk).sum().clamp_min(torch.finfo(torch.float64).tiny)
            change = ((parts.sum() / most).sqrt() - 1) * parts.sum() / slope
            before, multiplier = multiplier, (multiplier + change).clamp_min(0)
            if bool((multiplier - before).abs() <= CLOSE * multiplier):
                break
        return multiplier
