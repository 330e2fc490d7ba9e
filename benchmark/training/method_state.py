"""What a method has beside masks: its state, its learned parameters, and the network that its rounds go back to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, describe_failure
from methods.core import ContractError, Inactive, Method, Rounds, Trains


@dataclass
class MethodState:
    """What the method of a run keeps: tensors of its own, parameters, and where its rounds of training go back to."""

    rounds: Rounds = field(default_factory=Rounds)
    state: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, nn.Parameter] = field(default_factory=dict)
    origin: dict[str, Tensor] | None = None  # the network's state_dict after `rounds.back_to` epochs
    origin_beside: dict[str, Tensor] = field(default_factory=dict)  # and the values that were stored or learned then
    reached: float | None = None  # the density that learned thresholds had led to when masks took their place

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        learned = {name: parameter.detach().clone() for name, parameter in self.learned.items()}
        origins = {"origin": self.origin, "origin_beside": self.origin_beside}
        return {"state": dict(self.state), "learned": learned, **origins, "reached": self.reached}


def ask_rounds(method: Method, name: str, epochs: int) -> Rounds:
    """Return how often the method has a training of so many epochs done; raises UserError for impossible rounds."""
    try:
        return method.rounds(epochs)
    except ContractError as error:
        raise UserError(f"method '{name}' breaks its contract in rounds(): it {error}") from error


def weighs(method: Method) -> bool:
    """Return whether the method says by `weigh` what the network computes with."""
    return type(method).weigh is not Method.weigh


def has_penalty(method: Method) -> bool:
    """Return whether the method adds to the gradients that are stepped with."""
    return type(method).penalty is not Method.penalty


def check_storage(name: str, method: Method) -> None:
    """Raise UserError for a method that trains or weighs what it does not store."""
    if method.trains is Trains.ALL and method.inactive is not Inactive.STORED:
        raise UserError(f"method '{name}' trains all weights, so it must keep them: inactive = Inactive.STORED")
    if weighs(method) and (method.inactive is not Inactive.STORED or method.trains is not Trains.ALL):
        raise UserError(
            f"method '{name}' defines weigh(), so it must be STORED and train ALL: inactive = Inactive.STORED, "
            "trains = Trains.ALL"
        )


def check_learned(name: str, method: Method, learned: Any, taken: set[str]) -> None:
    """Raise UserError unless learned parameters are finite floating-point tensors under names of their own."""
    broken = f"method '{name}' breaks its contract: learned()"
    if not isinstance(learned, Mapping):
        raise UserError(f"{broken} must return a dict of tensors by name, returned {type(learned).__name__}")
    for own, value in learned.items():
        if own in taken:
            raise UserError(f"{broken} names a parameter '{own}', as the network does: choose another name")
        if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise UserError(f"{broken} must return finite floating-point tensors, that of '{own}' is {value!r:.60}")
    if learned and not weighs(method):
        raise UserError(f"method '{name}' has learned parameters and no weigh() that uses them")


def versions_of(tensors: Iterable[Tensor]) -> list[int]:
    """Return torch's counts of writes to tensors: they differ once any of these was written to."""
    return [tensor._version for tensor in tensors]


@contextmanager
def asking(method: Method, name: str, hook: str, shown: Iterable[Tensor]) -> Iterator[None]:
    """Raise UserError, naming the hook, where the method fails in it or writes to what it is shown."""
    shown = list(shown)
    versions = versions_of(shown)
    try:
        yield
    except Exception as error:  # a plugin may raise anything at all
        raise UserError(f"method '{name}' fails in {hook}: {describe_failure(error, type(method))}") from error
    if versions != versions_of(shown):
        raise UserError(
            f"method '{name}' breaks its contract: {hook} must not write to what it is shown: return tensors of its own"
        )


def ask_weigh(method: Method, name: str, weight: str, stored: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Return the method's weight for a stored one; raises UserError for another shape or one that has no gradient."""
    with asking(method, name, f"weigh('{weight}')", [stored, *learned.values()]):
        used = method.weigh(weight, stored, learned)
    if not isinstance(used, Tensor) or used.shape != stored.shape:
        shape = tuple(used.shape) if isinstance(used, Tensor) else type(used).__name__
        raise UserError(f"method '{name}': weigh('{weight}') must have shape {tuple(stored.shape)}, got {shape}")
    if stored.requires_grad and not used.requires_grad:
        raise UserError(
            f"method '{name}': weigh('{weight}') has no gradient: compute it from `stored` by differentiable operations"
        )
    return used


def check_penalty(name: str, penalty: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the penalty; raises UserError unless it is tensors by weight name, shaped as the weights."""
    broken = f"method '{name}' breaks its contract: penalty()"
    if not isinstance(penalty, Mapping):
        raise UserError(f"{broken} must return a dict of tensors by weight name, returned {type(penalty).__name__}")
    for weight, extra in penalty.items():
        if weight not in weights:
            raise UserError(f"{broken} names '{weight}', which is no prunable weight")
        if not isinstance(extra, Tensor) or extra.shape != weights[weight].shape:
            got = tuple(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
            raise UserError(f"{broken} of '{weight}' must have shape {tuple(weights[weight].shape)}, got {got}")
    return penalty
