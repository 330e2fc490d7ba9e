"""Deep Rewiring: weights walk at random under an L1 penalty; what crosses zero is cut, and as many grow elsewhere.

Paper: Bellec et al., "Deep Rewiring: Training very sparse deep networks", ICLR 2018, arXiv:1711.05136, Algorithm 1.
Each position has a fixed random sign and a theta; the weight is sign x theta while theta > 0. After each step theta +=
eta (nu - l1), nu from N(0, noise), and as many dormant positions as were lost are connected at random.

`form=cnn` is the version for convolutional networks of Mostafa & Wang (2019, arXiv:1902.05967), in the code
IntelAI/dynamic-reparameterization: signs are free, the L1 norm is part of the loss, gradients of active weights get
noise from N(0, sqrt(2 eta T)), and after each step weights that changed their sign are cut.

Deviations (point | paper | authors' code | here | why):
- first masks | random | drawn with replacement, at first fewer; cnn: uniform | the page's (ERK), exact | equal starts
- first weights | not stated | abs(N(0, 1)) / sqrt(n_in); cnn: uniform | the page's, by the fixed signs | same networks
- optimiser | SGD | plain, no weight decay; cnn: momentum 0.9 | the page's, as a remark says | one recipe for all
- noise, original | sqrt(2 eta T) | eta N(0, 1e-5) | eta N(0, noise), noise = 1e-5 | as the code
- noise, cnn | sqrt(2 eta T) | eta = 0.01 and T = 1e-5, 1e-8, 1e-12, 1e-15 from epochs 0, 25, 80, 140 of 200, or 0, 25,
  50, 75 of 100 | the same at these shares of the run: schedule=wrn or resnet50 | runs have other lengths
- l1 | alpha | 1e-5; cnn: 1e-5 | 1e-5, on prunable weights | as the code
- candidates for growth | all dormant | the just-cut too; cnn: without these | the same; cnn: if others are | exact
- new weights | zero | 1e-12; cnn: 0 | the same, without momentum | as the code
- counts kept | of the network, or each layer | of each layer; one script: of the network | of each layer | as the code
- full layers | not stated | cnn: neither noise nor cuts | as others: what crosses zero is its own candidate | one rule
- last rewiring | not stated | the last step; cnn: before epoch 190 of 200 or 95 of 100 | the same | as the code
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Method,
    Timeline,
    Update,
    View,
    from_page,
    grow,
    random_masks,
    update_range,
)

ETA, TEMPERATURES = 0.01, (1e-5, 1e-8, 1e-12, 1e-15)
COOLED = {"wrn": (0.125, 0.4, 0.7), "resnet50": (0.25, 0.5, 0.75)}  # to the next temperature, at these shares
END = {"original": 1.0, "cnn": 0.95}  # of noise and rewiring, as a share of the run


def fixed(view: View, name: str) -> Tensor:
    """Return the signs of a layer's positions, the same at every step."""
    return torch.where(view.uniform(name, "sign", run=True) < 0.5, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DeepR(Method):
    """Cut weights that cross zero, and connect as many others of their layer at random, after every step."""

    reference: ClassVar[str] = "Bellec et al., 2018, arXiv:1711.05136"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    keeps_layer_counts: ClassVar[bool] = True
    writes: ClassVar[bool] = True

    form: str = "original"
    l1: float = 1e-5
    noise: float = 1e-5  # of the original form
    schedule: str = "wrn"  # of the temperature, cnn
    distribution: str = from_page("erk")

    def validate(self) -> None:
        for name, known in (("form", END), ("schedule", COOLED)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.l1 < 0 or self.noise < 0:
            raise ValueError(f"l1 and noise must be at least 0, got {self.l1} and {self.noise}")

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return ["the paper trains without weight decay, l1 takes its place: ARGS=weight_decay=0 does so on any page"]

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(1, END[self.form] * timeline.total_steps + 1)

    def setup(self, view: View) -> Update:
        masks = random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))
        if self.form == "cnn":
            return Update(
                masks, state={n: weight.sign().to(torch.int8) * masks[n] for n, weight in view.weights.items()}
            )
        return Update(masks, values={name: weight.abs() * fixed(view, name) for name, weight in view.weights.items()})

    def update(self, view: View) -> Update:
        if self.form == "cnn":
            return self.rewire_changed(view)
        walks = {name: view.lr * (self.noise * view.normal(name, "noise") - self.l1) for name in view.weights}
        sign = {name: fixed(view, name) for name in view.weights}
        theta = {name: weight * sign[name] + walks[name] for name, weight in view.weights.items()}
        kept = {name: mask & (theta[name] > 0) for name, mask in view.masks.items()}
        masks = grow(kept, {name: view.uniform(name, "grow") for name in kept}, like=view.masks)
        values = {name: torch.where(mask, theta[name], 1e-12) * sign[name] for name, mask in kept.items()}
        return Update((kept, masks), values=values)

    def rewire_changed(self, view: View) -> Update:
        """Cut what changed its sign in this step; the just-cut are drawn last."""
        new = {name: weight.sign().to(torch.int8) for name, weight in view.weights.items()}
        kept = {name: mask & (new[name] * view.state[name] >= 0) for name, mask in view.masks.items()}
        draws = {name: view.uniform(name, "grow") - mask.double() for name, mask in view.masks.items()}
        state = {name: new[name] * mask for name, mask in kept.items()}
        return Update((kept, grow(kept, draws, like=view.masks)), state=state)

    def penalty(self, view: View) -> Mapping[str, Tensor]:
        if self.form == "original":
            return {}
        done = (view.step - 1) / view.timeline.total_steps
        heat = TEMPERATURES[sum(done >= share for share in COOLED[self.schedule])] if done < END["cnn"] else 0.0
        std = math.sqrt(2 * ETA * heat)
        return {n: self.l1 * weight.sign() + std * view.normal(n, "noise") for n, weight in view.weights.items()}
