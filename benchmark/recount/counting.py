"""What the paper's ImageNet table may have counted: ways to lay out weights, count passes and charge training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from benchmark.config.cells import plan_cells
from benchmark.data.standin import stand_in
from benchmark.networks.build import build
from benchmark.networks.costs import Costs, Meter
from benchmark.networks.prunable import Layer
from leaderboard.paper.published import SPARSITIES, PaperRow, Part
from methods.core import cubic, erk, uniform

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Backbone:
    """What counting needs of a network whose layers are all prunable: its costs, and the shapes of its weights."""

    costs: Costs
    shapes: dict[str, Shape]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each layer."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    @property
    def weights(self) -> int:
        """The number of weights."""
        return sum(self.sizes.values())


def describe_network(model: nn.Module, layers: list[Layer], costs: Costs) -> Backbone:
    """Return the backbone of a network that was built and counted."""
    return Backbone(costs, {layer.name: tuple(model.get_parameter(layer.name).shape) for layer in layers})


def count_macs(backbone: Backbone) -> Costs:
    """Return the costs in multiply-adds, the unit of this suite's records."""
    return backbone.costs


def count_operations(backbone: Backbone) -> Costs:
    """Return the costs by RigL's own counter: a product and a sum per active weight, one operation more per output.

    A sum of v products takes v - 1 sums; its counter gives each layer a bias and a ReLU, one operation each (RigL's
    repository: `get_stats` of sparse_utils.py on `count_ops` of the MicroNet challenge). The operations per output are
    there whatever is masked, so a share by this counter is never below the one in multiply-adds.
    """
    costs = backbone.costs
    outputs = sum(costs.layers[name] // math.prod(shape[1:]) for name, shape in backbone.shapes.items())
    fixed = 2 * costs.fixed + outputs
    return dataclasses.replace(
        costs,
        per_weight={name: 2 * macs for name, macs in costs.per_weight.items()},
        fixed=fixed,
        dense=fixed + sum(2 * costs.per_weight[name] * size for name, size in backbone.sizes.items()),
    )


def narrow_as_rigl(backbone: Backbone, width: float) -> Backbone:
    """Return the backbone with all channels but the image's and the classes' times `width`, rounded down.

    So does RigL's counter for small-dense (`width` of `get_stats`): no network is built, the stem is narrowed too.
    """
    names = list(backbone.shapes)
    shapes: dict[str, Shape] = {}
    for name, (out, into, *kernel) in backbone.shapes.items():
        out = out if name == names[-1] else int(out * width)
        into = into if name == names[0] else int(into * width)
        shapes[name] = (out, into, *kernel)
    layers = {name: backbone.costs.per_weight[name] * math.prod(shape) for name, shape in shapes.items()}
    dense = backbone.costs.fixed + sum(layers.values())
    return Backbone(dataclasses.replace(backbone.costs, layers=layers, dense=dense), shapes)


Counter = Callable[[Backbone], Costs]
COUNTERS: dict[str, Counter] = {"macs": count_macs, "operations": count_operations}


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
    """Return the sparsity from `step` on: cubic from `start` to `end`."""
    done = (step - given["start"]) / (given["end"] - given["start"])
    return cubic(0.0, sparsity, min(1.0, max(0.0, done)))


def prune_by_points(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """The mean over the grid points of the schedule, first and last step included: the end counts once too often."""
    points = range(0, given["steps"] + 1, given["every"])
    return [Charge(1, prune_at(step, sparsity, given)) for step in points]


def prune_by_steps(sparsity: float, given: Mapping[str, Any]) -> list[Charge]:
    """The sum over the steps that are taken, each at its own sparsity."""
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
        meter.step(charge.steps, meter.forward, meter.weight_gradients(charge.dense_gradients))
    return meter.train / meter.train_dense


def inference_share(sparsity: float, layout: Layout, full: Backbone, counter: Counter) -> float:
    """Return what a forward pass costs at `sparsity`, as a multiple of one of the dense network `full`."""
    return counter(layout.backbone).forward(layout.counts_at(sparsity)) / counter(full).dense


Counts = dict[str, int]


@dataclass(frozen=True)
class Layout:
    """A network, and how many weights of each layer are active at a sparsity."""

    backbone: Backbone
    counts_at: Callable[[float], Counts]


@dataclass(frozen=True)
class Question:
    """What a layout is made from: the full network, the row's own network on our page, the column, its settings.

    `column`: sparsity in percent, as in the table's head. `given`: the layout's entry in docs/flops.yaml.
    """

    full: Backbone
    own: Backbone | None
    column: int
    given: Mapping[str, Any]


def whole(backbone: Backbone) -> Layout:
    """Return the layout in which every weight is active, whatever the sparsity."""
    return Layout(backbone, lambda sparsity: backbone.sizes)


def lay_first_dense(question: Question) -> Layout:
    """Uniform, first convolution dense; the sparsity is that of the other layers."""
    first, *others = question.full.shapes
    rest = {name: question.full.shapes[name] for name in others}
    size = sum(map(math.prod, rest.values()))
    dense = {first: question.full.sizes[first]}
    return Layout(question.full, lambda sparsity: {**dense, **uniform(rest, round((1 - sparsity) * size))})


def lay_uniform(question: Question) -> Layout:
    """Uniform in every layer."""
    full = question.full
    return Layout(full, lambda sparsity: uniform(full.shapes, round((1 - sparsity) * full.weights)))


def lay_erk(question: Question) -> Layout:
    """Erdos-Renyi-Kernel in every layer."""
    full = question.full
    return Layout(full, lambda sparsity: erk(full.shapes, round((1 - sparsity) * full.weights)))


def lay_published(question: Question) -> Layout:
    """Published sparsities, one for each layer in network order. Raises ValueError for another number of them."""
    sparsities = question.given["sparsities"][question.column]
    sizes = question.full.sizes.items()
    counts = {name: round((1 - sparsity) * size) for (name, size), sparsity in zip(sizes, sparsities, strict=True)}
    return Layout(question.full, lambda sparsity: counts)


def lay_rigls_width(question: Question) -> Layout:
    """A dense network of the width that RigL's authors published."""
    return whole(narrow_as_rigl(question.full, question.given["widths"][question.column]))


def lay_own(question: Question) -> Layout:
    """The network that the row's method has on our page, dense."""
    if question.own is None:
        raise ValueError("a row without a method in the suite has no network of its own")
    return whole(question.own)


LAYOUTS: dict[str, Callable[[Question], Layout]] = {
    "dense": lambda question: whole(question.full),
    "first dense": lay_first_dense,
    "uniform": lay_uniform,
    "erk": lay_erk,
    "published sparsities": lay_published,
    "published widths": lay_rigls_width,
    "own network": lay_own,
}


NOWHERE = Path("no data")  # data sets by their published sizes, whatever is on this machine
COLUMNS = SPARSITIES[3]  # sparsities of the table's columns, in percent
DIGITS = 6  # of a share, in the file of figures
Figures = dict[str, Any]


@cache
def build_backbone(page: str, method: str, sparsity: float) -> Backbone:
    """Return the network that a method has on a page."""
    (cell,) = plan_cells(method, str(sparsity), page, "0", "")
    built = build(cell, stand_in(cell.page, NOWHERE))
    return describe_network(built.model, built.layers, built.costs)


def work_out(given: dict[str, Any], part: Part) -> Figures:
    """Return all figures for `given`, the content of docs/flops.yaml. Nothing is trained and no image is read.

    `readings`: for each row of the table and each cost, one entry for each combination of conventions, with a share of
    the dense network's cost for each column.
    """
    full = build_backbone(part.page, "dense", 0.0)
    return {
        "dense": {"macs": full.costs.dense, "weights": full.weights, "layers": len(full.shapes)},
        "left_out_pct": {
            name: measure_sparsity(entry, full)
            for name, entry in given["layers"].items()
            if entry["formula"].startswith("published")
        },
        "readings": {row.label: read_row(row, full, part.page, given) for row in part.rows},
    }


def read_row(row: PaperRow, full: Backbone, page: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the readings of a row's costs; none if docs/flops.yaml says why."""
    tried = given["rows"][row.label]
    found: dict[str, Any] = {"inference": [], "training": []}
    for name in tried.get("layers", []):
        layouts = {column: make_layout(given["layers"][name], full, row, column, page) for column in COLUMNS}
        for counter, count in COUNTERS.items():
            how = {"layers": name, "counter": counter}
            shares = {at: inference_share(at / 100, layout, full, count) for at, layout in layouts.items()}
            found["inference"].append({**how, "shares": to_digits(shares)})
            for rule in tried["training"]:
                entry = given["training"][rule]
                charges = {at: RULES[entry["formula"]](at / 100, entry) for at in COLUMNS}
                shares = {at: train_share(charges[at], layout, full, count) for at, layout in layouts.items()}
                found["training"].append({**how, "rule": rule, "shares": to_digits(shares)})
    return found


def to_digits(shares: Mapping[int, float]) -> dict[str, float]:
    """Return shares by column as the file of figures has them."""
    return {str(column): round(share, DIGITS) for column, share in shares.items()}


def make_layout(entry: dict[str, Any], full: Backbone, row: PaperRow, column: int, page: str) -> Layout:
    """Return the layout that an entry of docs/flops.yaml describes, for a row and column of the table."""
    own = build_backbone(page, row.ours[0].method, column / 100) if entry["formula"] == "own network" else None
    return LAYOUTS[entry["formula"]](Question(full, own, column, entry))


def measure_sparsity(entry: dict[str, Any], full: Backbone) -> dict[str, float]:
    """Return how many of the network's weights a published layout leaves out, in percent and by column."""
    layouts = {column: LAYOUTS[entry["formula"]](Question(full, None, column, entry)) for column in COLUMNS}
    active = {column: sum(layout.counts_at(column / 100).values()) for column, layout in layouts.items()}
    return {str(column): round(100 * (1 - count / full.weights), 2) for column, count in active.items()}
