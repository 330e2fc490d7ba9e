"""The optimiser, the learning rate and the averaged weights of a page, and steps that are skipped when not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.base.buffers import KeptBuffers
from benchmark.base.errors import UserError
from benchmark.config.pages import Page
from leaderboard.store.repeat import drop_epochs


def learning_rate(page: Page, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0.

    Warm-up lr (e + 1) / (warmup + 1); then times lr_gamma from each epoch in lr_drops x epochs on, rounded down, or a
    cosine to zero.
    """
    if epoch < page.warmup_epochs:
        return page.lr * (epoch + 1) / (page.warmup_epochs + 1)
    if page.lr_schedule == "cosine":
        done = (epoch - page.warmup_epochs) / max(1, page.epochs - page.warmup_epochs)
        return page.lr * (1 + math.cos(math.pi * done)) / 2
    return page.lr * page.lr_gamma ** sum(epoch >= drop for drop in drop_epochs(page.lr_drops, page.epochs))


def make_optimizer(page: Page, model: nn.Module) -> Optimizer:
    """Return the page's optimiser over all trainable parameters of `model`.

    With decay_norm_and_bias off, parameters of one dimension (norms, biases) are not decayed, nor are those whose name
    contains one of no_decay. Raises UserError where no name does.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = {name for name, p in parameters.items() if not page.decay_norm_and_bias and p.ndim <= 1}
    for part in page.no_decay:
        matching = {name for name in parameters if part in name}
        if not matching:
            raise UserError(
                f"no_decay: no parameter of {page.model} has '{part}' in its name: give another part, such as "
                "ARGS='no_decay=[norm]', or exempt all norms and biases: "
                "ARGS='no_decay=[] decay_norm_and_bias=false'"
            )
        spared |= matching
    decayed = [p for name, p in parameters.items() if name not in spared]
    exempt = [p for name, p in parameters.items() if name in spared]
    groups = [{"params": decayed, "weight_decay": page.weight_decay}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0})
    if page.optimizer == "sgd":
        nesterov = page.nesterov and page.momentum > 0
        return torch.optim.SGD(groups, lr=page.lr, momentum=page.momentum, nesterov=nesterov, fused=True)
    kind = torch.optim.Adam if page.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=page.lr, fused=True)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_average(page: Page, model: nn.Module) -> ModelEmaV3 | None:
    """Return timm's exponential moving average of the weights, or None where the page has none."""
    return ModelEmaV3(model, decay=page.ema_decay) if page.ema_decay else None


def is_finite(norm: Tensor, loss: Tensor) -> Tensor:
    """Return, on the device, whether a step's gradient norm and loss are numbers to go on with."""
    return torch.isfinite(norm) & torch.isfinite(loss)


@contextmanager
def stepping_where(fine: Tensor, optimizer: Optimizer, kept: KeptBuffers | None) -> Iterator[None]:
    """Have the optimiser step, and leave the new buffers, where `fine` is true; else weights, state, buffers stay.

    The host does not wait: torch's fused optimisers read from the device whether to step, as under a gradient scaler.
    Invariant: the same bits as to ask `bool(fine)` first, and then to step or to put the kept buffers back.
    """
    fill_momentum(optimizer)
    optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
    if kept is not None:
        kept.put_back(unless=fine)


@dataclass(frozen=True)
class Aim:
    """What a moving average goes to: the model where `fine` is true, and elsewhere the average itself, so it stays."""

    fine: Tensor
    model: nn.Module
    average: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of the model or of the average, as the device knows."""
        average = self.average.state_dict()
        return {name: torch.where(self.fine, new, average[name]) for name, new in self.model.state_dict().items()}


def fill_momentum(optimizer: Optimizer) -> None:
    """Give every parameter its momentum, zero, before the first step.

    Torch makes it uninitialised there, and a first step that is not taken would leave it so.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
