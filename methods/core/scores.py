"""Scores: one number per weight, larger = keep."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.core.base import View


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision scores tie by the thousand."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def magnitude(view: View) -> dict[str, Tensor]:
    """Return |w|."""
    return {name: precise(weight).abs() for name, weight in view.weights.items()}


def gradient_magnitude(view: View) -> dict[str, Tensor]:
    """Return |dL/dw|, dense (RigL, section 3, "grow"; GraNet Eq. 3)."""
    return {name: precise(view.gradients[name]).abs() for name in view.weights}


def random_scores(view: View) -> dict[str, Tensor]:
    """Return uniform random numbers, a pure function of (seed, step, name)."""
    return {name: view.random(name, "grow") for name in view.weights}


def snip_scores(view: View) -> dict[str, Tensor]:
    """Return |g w|, the sensitivity |dL/dc| at c = 1 (SNIP Eq. 6); its normalisation does not change the ranking."""
    return {name: (precise(view.gradients[name]) * precise(weight)).abs() for name, weight in view.weights.items()}


def grasp_scores(view: View) -> dict[str, Tensor]:
    """Return w Hg, so that the largest are kept: GraSP removes the largest of -w Hg (GraSP Eq. 8, Alg. 1)."""
    return {name: precise(weight) * precise(view.hessian_gradients[name]) for name, weight in view.weights.items()}
