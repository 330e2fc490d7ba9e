"""What a method may see of a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from methods.core.declared import Timeline
from methods.core.errors import ContractError


def count_kept(sparsity: float, weights: int) -> int:
    """Return how many of so many weights stay active at `sparsity`: the one place where the budget is rounded."""
    return round((1 - sparsity) * weights)


Value = TypeVar("Value")


def read_only(values: Mapping[str, Value] | None) -> Mapping[str, Value] | None:
    """Return a copy of `values` that cannot be changed, or None."""
    return None if values is None else MappingProxyType(dict(values))


class View:
    """What a method may see: read-only weights, masks, gradients, and random numbers that depend on nothing else.

    `weights`, `masks`: by parameter name, in the model's order; masks are bool, True = active. `step`: 0 in `setup`,
    then the optimiser step just reached. `last`: the layer whose outputs are the classes; empty where it is not
    prunable, or not known. `lr`: the learning rate of this step. Gradients are dense, averaged over ranks, unscaled.
    `stored`: the weights with the values that inactive ones keep (a STORED method; else `weights`). `trained`: which
    weights have a gradient. `state`: the method's own tensors, as its last Update left them. `learned`: its own
    parameters. `round`: of scoring in `setup`, from 0. Reading a gradient, moments or a donor that was not declared
    raises ContractError. Invariant: inactive weights are exactly zero.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        step: int,
        timeline: Timeline,
        seed: int,
        gradients: Mapping[str, Tensor] | None = None,
        hessian_gradients: Mapping[str, Tensor] | None = None,
        donor_counts: Mapping[str, int] | None = None,
        donor_masks: Mapping[str, Tensor] | None = None,
        last: str = "",
        stored: Mapping[str, Tensor] | None = None,
        trained: Mapping[str, Tensor] | None = None,
        state: Mapping[str, Tensor] | None = None,
        learned: Mapping[str, Tensor] | None = None,
        active_gradients: Mapping[str, Tensor] | None = None,
        input_moments: Mapping[str, Tensor] | None = None,
        lr: float = 0.0,
        round: int = 0,
    ) -> None:
        self.weights = MappingProxyType({name: tensor.detach() for name, tensor in weights.items()})
        self.masks = MappingProxyType(dict(masks))
        self.step = step
        self.timeline = timeline
        self.seed = seed
        self.last = last
        self.lr = lr
        self.round = round
        self.stored = self.weights if stored is None else MappingProxyType({n: t.detach() for n, t in stored.items()})
        self.trained = self.masks if trained is None else MappingProxyType(dict(trained))
        self.state = MappingProxyType(dict(state or {}))
        self.learned = MappingProxyType({name: tensor.detach() for name, tensor in (learned or {}).items()})
        self._active_gradients = read_only(active_gradients)
        self._input_moments = read_only(input_moments)
        self._gradients = read_only(gradients)
        self._hessian_gradients = read_only(hessian_gradients)
        self._donor_counts = read_only(donor_counts)
        self._donor_masks = read_only(donor_masks)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every prunable weight, by name, in the model's order."""
        return {name: tuple(weight.shape) for name, weight in self.weights.items()}

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / self.timeline.total_steps

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        """The dense gradients: of the current batch in `update`, of the scoring batches in `setup`."""
        if self._gradients is None:
            raise ContractError(
                "read gradients it did not declare: set dense_grads = DenseGrads.AT_UPDATES for growth, "
                "or return a Scoring from scoring() for gradients before the first step"
            )
        return self._gradients

    @property
    def active_gradients(self) -> Mapping[str, Tensor]:
        """The gradients of the trained weights, zero elsewhere: what the step is taken with, before clipping.

        In `update` only. They cost nothing beyond the step, so nothing needs to be declared.
        """
        if self._active_gradients is None:
            raise ContractError("read active_gradients in setup(): there are none before the first step")
        return self._active_gradients

    @property
    def hessian_gradients(self) -> Mapping[str, Tensor]:
        """The product of the Hessian with the gradient, Hg, over the scoring images (`setup` only)."""
        if self._hessian_gradients is None:
            raise ContractError(
                "read Hessian-gradient products it did not declare: return Scoring(order=2) from scoring()"
            )
        return self._hessian_gradients

    @property
    def input_moments(self) -> Mapping[str, Tensor]:
        """The second moments of each layer's inputs, float64 (groups, fan_in, fan_in), by weight name (`update` only).

        The mean of x x^T over images and output positions, x the inputs that one output of the layer sees, in the order
        of its weights, batch norm in evaluation mode, the network as it is before the update.
        """
        if self._input_moments is None:
            raise ContractError(
                "read input moments it did not declare: return Moments() from moments(); update() alone sees them"
            )
        return self._input_moments

    @property
    def donor_counts(self) -> Mapping[str, int]:
        """The number of active weights that each layer of the donor ended with (`setup` only)."""
        if self._donor_counts is None:
            raise ContractError(
                "read the counts of a donor it did not declare: return Donor(run) from donor(); setup() alone sees it"
            )
        return self._donor_counts

    @property
    def donor_masks(self) -> Mapping[str, Tensor]:
        """The masks that the donor ended with; bool, True = active (`setup` only)."""
        if self._donor_masks is None:
            raise ContractError(
                "read the masks of a donor it did not declare: return Donor(run, 'masks') from donor(); setup() alone "
                "sees them"
            )
        return self._donor_masks

    def count(self, sparsity: float) -> int:
        """Return the number of weights that stay active at `sparsity`: round((1 - sparsity) x prunable weights)."""
        return count_kept(sparsity, sum(weight.numel() for weight in self.weights.values()))

    def random(self, name: str, purpose: str = "", run: bool = False) -> Tensor:
        """Return uniform float64 numbers in [0, 1) in the shape of weight `name`.

        A pure function of (seed, step, name, purpose), with `run` the same at every step: the global random state is
        neither read nor changed, so masks agree between ranks, devices and resumed runs. Drawn on the CPU; methods that
        draw at every step use `uniform`.
        """
        generator = torch.Generator().manual_seed(self.key(name, purpose, run))
        weight = self.weights[name]
        drawn = torch.rand(tuple(weight.shape), generator=generator, dtype=torch.float64)
        return drawn.to(weight.device, non_blocking=True)

    def uniform(self, name: str, purpose: str = "", run: bool = False) -> Tensor:
        """Return uniform float64 numbers in [0, 1) as `random` does, other ones, drawn where the weight lies.

        The i-th number is a hash of (key, i) in whole numbers (SplitMix64; Steele et al., 2014), so it has the same
        bits on every device.
        """
        weight = self.weights[name]
        return hash_uniform(self.key(name, purpose, run), weight.numel(), weight.device).view(weight.shape)

    def normal(self, name: str, purpose: str = "", run: bool = False) -> Tensor:
        """Return standard normal float32 numbers in the shape of weight `name`, drawn as those of `uniform` are.

        By Box and Muller (1958) in float64 and rounded, so devices may differ in the last bit.
        """
        radius = (-2 * torch.log1p(-self.uniform(name, f"{purpose}/radius", run))).sqrt()
        angle = 2 * math.pi * self.uniform(name, f"{purpose}/angle", run)
        return (radius * angle.cos()).float()

    def key(self, name: str, purpose: str, run: bool) -> int:
        """Return 64 bits that depend on seed, name and purpose, and on the step unless `run`."""
        text = f"{self.seed}/{'run' if run else self.step}/{name}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hash_uniform(key: int, count: int, device: torch.device) -> Tensor:
    """Return `count` uniform float64 numbers in [0, 1): the top 53 bits of SplitMix64 of key + i, i from 1."""
    golden, first, second = (signed(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    bits = torch.arange(1, count + 1, device=device, dtype=torch.int64).mul_(golden).add_(signed(key))
    for shift, factor in ((30, first), (27, second), (31, 1)):
        bits = (bits ^ shift_right(bits, shift)).mul_(factor)
    return shift_right(bits, 11).double().mul_(2.0**-53)


def signed(value: int) -> int:
    """Return the int64 that has the low 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63


def shift_right(bits: Tensor, by: int) -> Tensor:
    """Return int64 bits shifted to the right as if they were unsigned."""
    return (bits >> by).bitwise_and_(2 ** (64 - by) - 1)
