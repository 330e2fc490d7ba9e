"""Scores: one number per weight, larger = keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor

from methods.core.view import View


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision scores tie by the thousand."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Scores(Mapping[str, Tensor]):
    """Scores by weight name, computed each time they are asked for: a network's worth of memory is spared."""

    def __init__(self, names: Iterable[str], compute: Callable[[str], Tensor]) -> None:
        self.names, self.compute = dict.fromkeys(names), compute

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class InOrder(Sequence[Tensor]):
    """The values of a mapping by position, each fetched when it is asked for."""

    def __init__(self, scores: Mapping[str, Tensor]) -> None:
        self.scores, self.names = scores, list(scores)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self.scores[name] for name in self.names[index]]
        return self.scores[self.names[index]]

    def __len__(self) -> int:
        return len(self.names)


def magnitude(view: View) -> Mapping[str, Tensor]:
    """Return |w|, computed layer by layer as it is read."""
    weights = view.weights
    return Scores(weights, lambda name: precise(weights[name]).abs())


def gradient_magnitude(view: View) -> Mapping[str, Tensor]:
    """Return |dL/dw|, dense (RigL, section 3, "grow"; GraNet Eq. 3), computed layer by layer as it is read."""
    gradients = view.gradients
    return Scores(view.weights, lambda name: precise(gradients[name]).abs())


def random_scores(view: View) -> dict[str, Tensor]:
    """Return uniform random numbers, a pure function of (seed, step, name)."""
    return {name: view.random(name, "grow") for name in view.weights}


def snip_scores(view: View) -> dict[str, Tensor]:
    """Return |g w|, the sensitivity |dL/dc| at c = 1 (SNIP Eq. 6); its normalisation does not change the ranking."""
    return {name: (precise(view.gradients[name]) * precise(weight)).abs() for name, weight in view.weights.items()}


def grasp_scores(view: View) -> dict[str, Tensor]:
    """Return w Hg, so that the largest are kept: GraSP removes the largest of -w Hg (GraSP Eq. 8, Alg. 1)."""
    return {name: precise(weight) * precise(view.hessian_gradients[name]) for name, weight in view.weights.items()}
