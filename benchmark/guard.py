"""A step that is not finite must leave no trace: the ways to see to it, with and without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


def is_finite(norm: Tensor, loss: Tensor) -> Tensor:
    """Return, on the device, whether a step's gradient norm and loss are numbers to go on with."""
    return torch.isfinite(norm) & torch.isfinite(loss)


def step_where(fine: Tensor, optimizer: Optimizer, buffers: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Do the optimiser step and keep the new buffers where `fine` is true; else leave weights, state and buffers alone.

    The host does not wait: torch's fused optimisers read from the device whether to step, as under a gradient scaler.
    Invariant: the same bits as to ask `bool(fine)` first, and then to step or to restore the buffers.
    """
    fill_momentum(optimizer)
    optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
    for buffer, before in zip(buffers, saved, strict=True):
        buffer.copy_(torch.where(fine, buffer, before))


def fill_momentum(optimizer: Optimizer) -> None:
    """Give every parameter its momentum, zero, before the first step.

    Torch makes it uninitialised there, and a first step that is not taken would leave it so.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
