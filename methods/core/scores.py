"""Scores: one number per weight, larger = keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from methods.core.view import View


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision scores tie by the thousand."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Sizes(Mapping[str, Tensor]):
    """Absolute values by weight name, computed each time they are asked for: a network's worth of memory is spared."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values_sized = values

    def __getitem__(self, name: str) -> Tensor:
        return precise(self.values_sized[name]).abs()

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_sized)

    def __len__(self) -> int:
        return len(self.values_sized)


def take(scores: Mapping[str, Tensor], names: Iterable[str]) -> tuple[Iterator[Tensor], bool]:
    """Return the scores of these names, one after the other; or, and True, what they are the absolute values of."""
    sized = isinstance(scores, Sizes)
    source = scores.values_sized if isinstance(scores, Sizes) else scores
    return (source[name] for name in names), sized


def magnitude(view: View) -> Mapping[str, Tensor]:
    """Return |w|, computed layer by layer as it is read."""
    return Sizes(view.weights)


def gradient_magnitude(view: View) -> Mapping[str, Tensor]:
    """Return |dL/dw|, dense (RigL, section 3, "grow"; GraNet Eq. 3), computed layer by layer as it is read."""
    gradients = view.gradients
    return Sizes({name: gradients[name] for name in view.weights})


def random_scores(view: View) -> dict[str, Tensor]:
    """Return uniform random numbers, a pure function of (seed, step, name)."""
    return {name: view.random(name, "grow") for name in view.weights}


def snip_scores(view: View) -> dict[str, Tensor]:
    """Return |g w|, the sensitivity |dL/dc| at c = 1 (SNIP Eq. 6); its normalisation does not change the ranking."""
    return {name: (precise(view.gradients[name]) * precise(weight)).abs() for name, weight in view.weights.items()}


def grasp_scores(view: View) -> dict[str, Tensor]:
    """Return w Hg, so that the largest are kept: GraSP removes the largest of -w Hg (GraSP Eq. 8, Alg. 1)."""
    return {name: precise(weight) * precise(view.hessian_gradients[name]) for name, weight in view.weights.items()}
