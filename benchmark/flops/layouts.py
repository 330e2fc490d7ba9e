"""How the active weights are shared out among the layers, under each convention that a printed cost may follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.flops.counting import Backbone, narrow_as_rigl
from methods.core import erk, uniform

Counts = dict[str, int]


@dataclass(frozen=True)
class Layout:
    """A network, and how many weights of each layer are active at a sparsity."""

    backbone: Backbone
    counts_at: Callable[[float], Counts]


@dataclass(frozen=True)
class Question:
    """What a layout is made from: the full network, the row's own one on our page, the column, the given numbers.

    `column`: sparsity in percent, as the table is headed. `given`: the layout's entry in docs/flops.yaml.
    """

    full: Backbone
    own: Backbone | None
    column: int
    given: Mapping[str, Any]


def whole(backbone: Backbone) -> Layout:
    """Return the layout in which every weight is active, whatever the sparsity."""
    return Layout(backbone, lambda sparsity: backbone.sizes)


def keep_first_dense(backbone: Backbone, sparsity: float) -> Counts:
    """Return uniform counts with the first convolution dense; the sparsity is that of the other layers."""
    first, *others = backbone.shapes
    rest = {name: backbone.shapes[name] for name in others}
    total = round((1 - sparsity) * sum(map(math.prod, rest.values())))
    return {first: math.prod(backbone.shapes[first]), **uniform(rest, total)}


def keep_densities(backbone: Backbone, sparsities: Sequence[float]) -> Counts:
    """Return the active weights of layers whose sparsities were published, in the order of the network's layers.

    Raises ValueError where there are not as many sparsities as layers.
    """
    sizes = backbone.sizes.items()
    return {name: round((1 - sparsity) * size) for (name, size), sparsity in zip(sizes, sparsities, strict=True)}


def lay_first_dense(question: Question) -> Layout:
    """Uniform, first convolution dense."""
    return Layout(question.full, lambda sparsity: keep_first_dense(question.full, sparsity))


def lay_uniform(question: Question) -> Layout:
    """Uniform in every layer."""
    full = question.full
    return Layout(full, lambda sparsity: uniform(full.shapes, round((1 - sparsity) * full.weights)))


def lay_erk(question: Question) -> Layout:
    """Erdos-Renyi-Kernel in every layer."""
    full = question.full
    return Layout(full, lambda sparsity: erk(full.shapes, round((1 - sparsity) * full.weights)))


def lay_published(question: Question) -> Layout:
    """The sparsities that were published for each layer."""
    counts = keep_densities(question.full, question.given["sparsities"][question.column])
    return Layout(question.full, lambda sparsity: counts)


def lay_rigls_width(question: Question) -> Layout:
    """A dense network of the width that RigL's authors published."""
    return whole(narrow_as_rigl(question.full, question.given["widths"][question.column]))


def lay_own(question: Question) -> Layout:
    """The network that the row's method has on our page, dense."""
    if question.own is None:
        raise ValueError("a row without a method in the suite has no network of its own")
    return whole(question.own)


def lay_whole(question: Question) -> Layout:
    """The dense network."""
    return whole(question.full)


LAYOUTS: dict[str, Callable[[Question], Layout]] = {
    "dense": lay_whole,
    "first dense": lay_first_dense,
    "uniform": lay_uniform,
    "erk": lay_erk,
    "published sparsities": lay_published,
    "published widths": lay_rigls_width,
    "own network": lay_own,
}
