"""What a trial sees: the method's calls through a watched view, and copies of the run's state."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmark.train import Training
from methods.core import Method, Stages, View


@dataclass
class Call:
    """One call of the method's `setup` (step 0) or `update`."""

    step: int
    gradients: dict[str, Tensor] | None  # what the view offered
    hessian_gradients: dict[str, Tensor] | None
    reads: set[str] = field(default_factory=set)  # what the method read of it
    changed: list[str] = field(default_factory=list)  # inputs that had other bits afterwards
    masks: dict[str, Tensor] | None = None  # what it returned; None where it raised or returned something else


@dataclass(frozen=True)
class State:
    """Copies of all that a step may change, by name; `optimizer` by weight name and state name."""

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[tuple[str, str], Tensor]
    masks: dict[str, Tensor]

    def differences(self, other: State) -> list[str]:
        """Return the names of tensors that are not bit for bit the same in the other state."""
        different = []
        for part in ("model", "average", "optimizer", "masks"):
            mine, theirs = getattr(self, part), getattr(other, part)
            for key in {**mine, **theirs}:
                if key not in mine or key not in theirs or not same_bits(mine[key], theirs[key]):
                    different.append(f"{part} {key if isinstance(key, str) else ' '.join(key)}")
        return different


@dataclass(frozen=True)
class Commit:
    """One change of masks: the state before and after it."""

    step: int
    before: State
    after: State
    digest: str
    counts: dict[str, int]


@dataclass(frozen=True)
class StepSeen:
    """The state after a step, with the training cost charged so far."""

    step: int
    state: State
    train_macs: int


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, a nan being equal to a nan."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def snapshot(run: Training) -> State:
    """Return copies of weights, buffers, average, optimiser state and masks as they are now."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    optimizer = {}
    for parameter, state in run.optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                optimizer[names[id(parameter)], key] = value.detach().clone()
    return State(
        model=clone(run.model.state_dict()),
        average=clone(run.average.module.state_dict()) if run.average is not None else {},
        optimizer=optimizer,
        masks=clone(run.maskset.masks),
    )


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class SpyView(View):
    """The view it is made from, taking note of what is read."""

    def __init__(self, view: View, reads: set[str]) -> None:
        self.__dict__.update(vars(view))
        self.reads = reads

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        """The view's gradients; the reading is noted."""
        self.reads.add("gradients")
        return super().gradients

    @property
    def hessian_gradients(self) -> Mapping[str, Tensor]:
        """The view's Hessian-gradient products; the reading is noted."""
        self.reads.add("Hessian-gradient products")
        return super().hessian_gradients

    @property
    def donor_counts(self) -> Mapping[str, int]:
        """The view's counts of a donor; the reading is noted."""
        self.reads.add("donor counts")
        return super().donor_counts

    @property
    def donor_masks(self) -> Mapping[str, Tensor]:
        """The view's masks of a donor; the reading is noted."""
        self.reads.add("donor masks")
        return super().donor_masks


def inputs_of(view: View) -> dict[str, Tensor]:
    """Return every tensor a view shows, by kind and name."""
    kinds: dict[str, Mapping[str, Tensor]] = {"weight": view.weights, "mask": view.masks}
    kinds["gradient"], kinds["product"] = view._gradients or {}, view._hessian_gradients or {}
    kinds["donor's mask"] = view._donor_masks or {}
    return {f"{kind} {name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}


def spy_on(method: Method, calls: list[Call], before_call: Callable[[], None]) -> Method:
    """Return the same method, watched: each call of `setup` and `update` is appended to `calls`."""
    cls = type(method)

    def watched(original: Callable[[Any, View], Stages]) -> Callable[[Any, View], Stages]:
        def ask(self: Any, view: View) -> Stages:
            before_call()
            gradients, products = view._gradients, view._hessian_gradients
            call = Call(view.step, clone(gradients) if gradients else None, clone(products) if products else None)
            calls.append(call)
            inputs = inputs_of(view)
            before = clone(inputs)
            try:
                masks = original(self, SpyView(view, call.reads))
            finally:
                call.changed = [name for name, tensor in inputs.items() if not same_bits(tensor, before[name])]
            last = masks[-1] if isinstance(masks, tuple) and masks else masks
            if isinstance(last, Mapping) and all(isinstance(mask, torch.Tensor) for mask in last.values()):
                call.masks = clone(last)
            return masks

        return ask

    members: dict[str, Any] = {"setup": watched(cls.setup), "__module__": cls.__module__}
    if cls.update is not Method.update:
        members["update"] = watched(cls.update)
    spy = copy.copy(method)
    object.__setattr__(
        spy, "__class__", types.new_class(cls.__name__, (cls,), exec_body=lambda space: space.update(members))
    )
    return spy
