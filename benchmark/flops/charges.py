"""What training costs under each formula that a printed cost may follow, charged by the meter of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.costs import Costs, Meter
from benchmark.flops.counting import Backbone
from benchmark.flops.layouts import Layout
from methods.core import cubic

Counter = Callable[[Backbone], Costs]


@dataclass(frozen=True)
class Charge:
    """So many steps at one sparsity; `dense_gradients`: whether they read the gradients of inactive weights."""

    steps: int
    sparsity: float
    dense_gradients: bool = False


def stay_sparse(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """3 f_S."""
    return [Charge(1, sparsity)]


def grow_at_times(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1): ΔT sparse steps, and one with dense gradients."""
    return [Charge(given["every"], sparsity), Charge(1, sparsity, True)]


def grow_always(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """2 f_S + f_D."""
    return [Charge(1, sparsity, True)]


def prune_at(step: int, sparsity: float, given: Mapping[str, Any]) -> float:
    """Return the sparsity in force from `step` on: cubic from `start` to `end`."""
    done = (step - given["start"]) / (given["end"] - given["start"])
    return cubic(0.0, sparsity, min(1.0, max(0.0, done)))


def prune_by_points(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """The mean over the grid points of the schedule, first and last step included: the end counts once too often."""
    points = range(0, given["steps"] + 1, given["every"])
    return [Charge(1, prune_at(step, sparsity, given)) for step in points]


def prune_by_steps(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """The sum over the steps that are taken, each at the sparsity then in force."""
    points = range(0, given["steps"], given["every"])
    return [Charge(given["every"], prune_at(step, sparsity, given)) for step in points]


RULES: dict[str, Callable[[float, Mapping[str, Any]], list[Charge]]] = {
    "sparse": stay_sparse,
    "dense gradients at times": grow_at_times,
    "dense gradients always": grow_always,
    "pruning, mean of points": prune_by_points,
    "pruning, sum of steps": prune_by_steps,
}


def train_share(charges: list[Charge], layout: Layout, full: Backbone, counter: Counter) -> float:
    """Return what the charged steps cost, as a multiple of as many steps of the dense network `full`."""
    meter = Meter(counter(layout.backbone), counter(full))
    for charge in charges:
        meter.on_commit(layout.counts_at(charge.sparsity))
        meter.step(charge.steps, meter.forward, charge.dense_gradients)
    return meter.train / meter.train_dense


def inference_share(sparsity: float, layout: Layout, full: Backbone, counter: Counter) -> float:
    """Return what a forward pass costs at `sparsity`, as a multiple of one of the dense network `full`."""
    return counter(layout.backbone).forward(layout.counts_at(sparsity)) / counter(full).dense
