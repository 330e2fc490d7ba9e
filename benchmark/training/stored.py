"""Weights whose values outlive their mask: kept beside the network, which holds zero for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from methods.core import Trains
from methods.core.answers import count_each

Weigh = Callable[[str, Tensor], Tensor]  # a weight's name and stored values -> what the network computes with


class Stored:
    """The weights with the values that inactive ones keep, for a method that is STORED.

    `values`: every weight, by name. `trained`: which of them the optimiser steps; None = all. `average`: their moving
    average, where the page keeps one. `weigh`: how the network's weight follows from the stored one where masks do not
    say (a method with learned thresholds); None = by the masks.
    Invariant: at rest the network holds what it computes with, zeros where inactive; between `load_stored` and
    `save_stored`, the optimiser's step, it holds the stored values of the trained weights and zeros elsewhere.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], trains: Trains, averaged: bool) -> None:
        self.weights = weights
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}
        self.average: dict[str, Tensor] = {}
        if averaged:
            self.begin_average()
        self.all = trains is Trains.ALL
        self.dense_gradients = self.all  # whether a step computes the gradient of every weight
        self.trained: dict[str, Tensor] | None = None
        self.factors: list[Tensor] = []  # of the gradients, where not all are trained
        self.counts: dict[str, int] | None = None  # of the trained weights of each layer, where not all are
        self.weigh: Weigh | None = None

    @torch.no_grad()
    def train_only(self, trained: Mapping[str, Tensor]) -> None:
        """Have the optimiser step these weights alone; not for a method that trains all."""
        self.counts = dict(zip(self.weights, count_each(trained[name] for name in self.weights), strict=True))
        self.trained = {name: trained[name].clone() for name in self.weights}
        self.factors = [self.trained[name].to(weight) for name, weight in self.weights.items()]

    @torch.no_grad()
    def load_stored(self) -> None:
        """Let the network hold the stored values of the trained weights, for the optimiser's step."""
        for name, weight in self.weights.items():
            weight.copy_(self.values[name])
            if self.trained is not None:
                zero_outside(self.trained[name], weight)

    @torch.no_grad()
    def save_stored(self) -> None:
        """Keep what the optimiser made of the trained weights; the network is to be shown its weights again."""
        for name, weight in self.weights.items():
            mine = self.values[name]
            mine.copy_(weight if self.trained is None else torch.where(self.trained[name], weight, mine))

    def begin_average(self) -> None:
        """Start the average anew, from the values of now."""
        self.average = {name: value.clone() for name, value in self.values.items()}

    @torch.no_grad()
    def follow(self, decay: float, fine: Tensor | None = None) -> None:
        """Move the average towards the values, all of them: a weight that returns has an average of its own past.

        `fine`: whether to, as the device knows it; None = yes.
        """
        for name, value in self.values.items():
            mine = self.average[name]
            mine.lerp_(value if fine is None else torch.where(fine, value, mine), 1 - decay)

    def state(self) -> dict[str, dict[str, Tensor] | None]:
        """Return what a checkpoint needs."""
        return {"values": self.values, "average": self.average, "trained": self.trained}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor] | None]) -> None:
        """Restore what `state` returned."""
        for mine, theirs in ((self.values, state["values"]), (self.average, state["average"])):
            for name, value in (theirs or {}).items():
                mine[name].copy_(value)
        if (trained := state["trained"]) is not None:
            self.train_only({name: mask.to(self.weights[name].device) for name, mask in trained.items()})


WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numbers by their size in bytes


def zero_outside(mask: Tensor, tensor: Tensor) -> None:
    """Set `tensor` to exactly 0.0 where `mask` is False, in place, whatever stood there.

    The bits are multiplied as a whole number, so neither -0.0 nor an infinity times zero can come of it; a quarter of
    the time of masked_fill_ on a CPU, and no copy of the mask.
    """
    tensor.detach().view(WHOLE[tensor.element_size()]).mul_(mask)
