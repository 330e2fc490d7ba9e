"""A network without its weights, and the two ways of counting what a forward pass of it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmark.costs import Costs
from benchmark.networks.prunable import Layer

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


COUNTERS: dict[str, Callable[[Backbone], Costs]] = {"macs": count_macs, "operations": count_operations}
