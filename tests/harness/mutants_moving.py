"""Faults in methods that move weights by more than a mask, and in what the engine does for them, as rows of MUTANTS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import benchmark.training.contract as contract
import benchmark.training.step as stepping
import benchmark.training.train as loop
from benchmark.training.masks import MaskSet
from benchmark.training.stored import Stored
from methods.core import Masks, Method, Update, View, count_layers, keep_top
from methods.deep_r import DeepR
from methods.dsr import DSR
from methods.snfs import SNFS
from methods.top_kast import TopKAST


@dataclass(frozen=True, kw_only=True)
class TopKASTForgets(TopKAST):
    """Ranks what the network computes with, so that what is inactive never returns."""

    def update(self, view: View) -> Update:
        shown = View(
            weights=view.weights,
            masks=view.masks,
            step=view.step,
            timeline=view.timeline,
            seed=view.seed,
            last=view.last,
        )
        return self.choose(shown)


@dataclass(frozen=True, kw_only=True)
class SNFSGrowsByGradient(SNFS):
    """Grows by the gradient of the step."""

    def exchange(self, view: View, size: Mapping[str, Tensor], rate: float) -> Masks:
        return super().exchange(view, {name: g.abs() for name, g in view.gradients.items()}, rate)


@dataclass(frozen=True, kw_only=True)
class DeepRRegrowsNever(DeepR):
    """Never draws what was just cut."""

    def update(self, view: View) -> Update:
        found = super().update(view)
        assert isinstance(found.masks, tuple) and found.values is not None
        kept, _ = found.masks
        draws = {name: view.uniform(name, "grow") - mask.double() for name, mask in view.masks.items()}
        counts = count_layers(view.masks)
        masks = {n: keep_top(draws[n] + 2 * mask, counts[n]) for n, mask in kept.items()}
        return Update((kept, masks), values=found.values)


@dataclass(frozen=True, kw_only=True)
class DSRKeepsThreshold(DSR):
    """Never moves H."""

    def update(self, view: View) -> Update:
        return Update(super().update(view).masks, state=dict(view.state))


METHODS: list[tuple[str, str, str, type[Method]]] = [
    ("Top-KAST forgets", "inactive weights are ranked as zeros", "oracle:top_kast", TopKASTForgets),
    ("SNFS by gradient", "growth by one batch's gradient", "oracle:snfs", SNFSGrowsByGradient),
    ("Deep-R regrows never", "the just-cut are no candidates", "oracle:deep_r", DeepRRegrowsNever),
    ("DSR's threshold stays", "H is not adapted", "oracle:dsr", DSRKeepsThreshold),
]


def keep_all_lent(original: Any) -> Callable[[Stored], None]:
    def save_stored(self: Stored) -> None:
        for name, weight in self.weights.items():
            self.values[name].copy_(weight.detach())

    return save_stored


def add_twice(original: Any) -> Any:
    return lambda run: (original(run), original(run))


def zero_stored(original: Any) -> Any:
    def commit(self: MaskSet, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        for name, value in (self.stored.values if self.stored is not None else {}).items():
            value.mul_(self.masks[name])

    return commit


def lose_state(original: Any) -> Any:
    def apply(run: Any, *rest: Any) -> None:
        kept = dict(run.method_state.state)
        original(run, *rest)
        run.method_state.state = kept

    return apply


def resume_without(key: str, part: str) -> Callable[[Any], Any]:
    """Return a load_state that restores zeros for a part of what the method keeps."""

    def make(original: Any) -> Any:
        def load_state(self: Any, state: dict[str, Any]) -> None:
            zeros = {name: torch.zeros_like(tensor) for name, tensor in state[key][part].items()}
            original(self, {**state, key: {**state[key], part: zeros}})

        return load_state

    return make


ENGINE: list[tuple[str, str, str, str, Any, str, Callable[[Any], Any]]] = [
    ("all that was lent", "weights outside B come back as zeros", "trained-weights", "top_kast",
     Stored, "save_stored", keep_all_lent),
    ("penalty unheard", "the engine never asks for it", "penalty", "top_kast",
     stepping, "add_penalty", lambda original: lambda run: None),
    ("penalty twice", "added to the gradients twice", "penalty", "top_kast", stepping, "add_penalty", add_twice),
    ("stored values zeroed", "a commit zeroes what it makes inactive", "stored-values", "top_kast",
     MaskSet, "commit", zero_stored),
    ("values dropped", "new values of weights are not written", "written-values", "deep_r",
     contract, "write", lambda original: lambda *rest: None),
    ("state dropped", "an update's state is not kept", "state", "snfs", stepping, "apply", lose_state),
    ("state lost", "a continued run's method starts from zeros", "resume", "snfs",
     loop.Training, "load_state", resume_without("own", "state")),
    ("stored weights lost", "a continued run has zeros outside its masks", "resume", "top_kast",
     loop.Training, "load_state", resume_without("stored", "values")),
]  # fmt: skip
