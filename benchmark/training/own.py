"""What a method has beside masks: its state, its learned parameters, and the network that its rounds go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, describe_failure
from methods.core import Inactive, Method, Rounds, Trains

if TYPE_CHECKING:
    from benchmark.training.train import Training


@dataclass
class Own:
    """What the method of a run keeps: tensors of its own, parameters, and where its rounds of training go back to."""

    rounds: Rounds = field(default_factory=Rounds)
    state: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, nn.Parameter] = field(default_factory=dict)
    origin: dict[str, Tensor] | None = None  # the network's state_dict after `rounds.back_to` epochs
    reached: float | None = None  # the density that learned thresholds had led to when masks took their place

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        learned = {name: parameter.detach().clone() for name, parameter in self.learned.items()}
        return {"state": dict(self.state), "learned": learned, "origin": self.origin, "reached": self.reached}


def weighs(method: Method) -> bool:
    """Return whether the method says by `weigh` what the network computes with."""
    return type(method).weigh is not Method.weigh


def has_penalty(method: Method) -> bool:
    """Return whether the method adds to the gradients that are stepped with."""
    return type(method).penalty is not Method.penalty


def begin_own(run: Training, learned: Mapping[str, Tensor]) -> None:
    """Give the run what its method keeps: stored weights, and learned parameters, which the optimiser steps too."""
    method, maskset = run.method, run.maskset
    if method.inactive is Inactive.STORED:
        maskset.store(method.trains, run.average is not None)
    elif method.trains is Trains.ALL:
        raise UserError(f"method '{run.name}' trains all weights, so it must keep them: inactive = Inactive.STORED")
    check_learned(run.name, method, learned, {name for name, _ in run.model.named_parameters()})
    device = next(run.model.parameters()).device
    run.own.learned = {n: nn.Parameter(v.detach().clone().float().to(device)) for n, v in learned.items()}
    if run.own.learned:
        parameters = list(run.own.learned.values())
        rate = run.optimizer.param_groups[0]["lr"]
        run.optimizer.add_param_group({"params": parameters, "weight_decay": run.page.weight_decay, "lr": rate})
    if weighs(method):
        assert maskset.stored is not None, "check_learned asked for stored weights"
        maskset.stored.weigh = lambda name, stored: method.weigh(name, stored, run.own.learned)


def check_learned(name: str, method: Method, learned: Any, taken: set[str]) -> None:
    """Raise UserError unless learned parameters are finite floating-point tensors under names of their own."""
    broken = f"method '{name}' breaks its contract: learned()"
    if not isinstance(learned, Mapping):
        raise UserError(f"{broken} must return a dict of tensors by name, returned {type(learned).__name__}")
    for own, value in learned.items():
        if own in taken:
            raise UserError(f"{broken} names a parameter '{own}', as the network does: choose another name")
        if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise UserError(f"{broken} must return finite floating-point tensors, that of '{own}' is {value!r:.60}")
    if weighs(method) and (method.inactive is not Inactive.STORED or method.trains is not Trains.ALL):
        raise UserError(
            f"method '{name}' defines weigh(), so it must be STORED and train ALL: inactive = Inactive.STORED, "
            "trains = Trains.ALL"
        )
    if learned and not weighs(method):
        raise UserError(f"method '{name}' has learned parameters and no weigh() that uses them")


def pull_back(run: Training) -> None:
    """Turn the gradients of the weights the network computes with into those of stored weights and learned parameters.

    Invariant: gradients are written in place, so whoever holds the tensors (a recorded graph) sees the new ones.
    """
    stored, learned = run.maskset.stored, run.own.learned
    assert stored is not None
    for name, weight in run.maskset.weights.items():
        if weight.grad is None:
            continue
        with torch.enable_grad():
            values = stored.values[name].detach().requires_grad_()
            used = ask_weigh(run.method, run.name, name, values, learned)
        mine, *theirs = torch.autograd.grad(used, [values, *learned.values()], weight.grad, allow_unused=True)
        weight.grad.zero_() if mine is None else weight.grad.copy_(mine)
        for parameter, gradient in zip(learned.values(), theirs, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def ask_weigh(method: Method, name: str, weight: str, stored: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Return the method's weight for a stored one; raises UserError for another shape or one that has no gradient."""
    try:
        used = method.weigh(weight, stored, learned)
    except Exception as error:  # a plugin may raise anything at all
        raise UserError(f"method '{name}' fails in weigh('{weight}'): {describe_failure(error)}") from error
    if not isinstance(used, Tensor) or used.shape != stored.shape:
        shape = tuple(used.shape) if isinstance(used, Tensor) else type(used).__name__
        raise UserError(f"method '{name}': weigh('{weight}') must have shape {tuple(stored.shape)}, got {shape}")
    if stored.requires_grad and not used.requires_grad:
        raise UserError(
            f"method '{name}': weigh('{weight}') has no gradient: compute it from `stored` by differentiable operations"
        )
    return used


def add_penalty(run: Training) -> None:
    """Add the method's penalty to the gradients of the weights; those that are not trained lose it with their own."""
    weights = run.maskset.weights
    with torch.no_grad():
        penalty = check_penalty(run.name, run.method.penalty(run.view()), weights)
        for name, extra in penalty.items():
            weight = weights[name]
            weight.grad = extra.to(weight) if weight.grad is None else weight.grad.add_(extra)


def check_penalty(name: str, penalty: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the penalty; raises UserError unless it is tensors by weight name, shaped as the weights."""
    broken = f"method '{name}' breaks its contract: penalty()"
    if not isinstance(penalty, Mapping):
        raise UserError(f"{broken} must return a dict of tensors by weight name, returned {type(penalty).__name__}")
    for weight, extra in penalty.items():
        if weight not in weights:
            raise UserError(f"{broken} names '{weight}', which is no prunable weight")
        if not isinstance(extra, Tensor) or extra.shape != weights[weight].shape:
            got = tuple(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
            raise UserError(f"{broken} of '{weight}' must have shape {tuple(weights[weight].shape)}, got {got}")
    return penalty


def step_stored(run: Training) -> None:
    """Step the stored weights, then have the network hold what it computes with again."""
    stored = run.maskset.stored
    assert stored is not None
    stored.lend()
    run.optimizer.step()
    stored.take_back()
    show(run)


def show(run: Training) -> None:
    """Have the network hold what it computes with: by the masks, or by what the method weighs."""
    stored = run.maskset.stored
    if stored is not None and stored.weigh is not None:
        run.maskset.show_weighed()
    else:
        run.maskset.show()


def follow(run: Training) -> None:
    """Update the moving average: of stored weights that of all values, shown where the network has weights."""
    if run.average is None:
        return
    run.average.update(run.model)
    stored = run.maskset.stored
    if stored is not None:
        stored.follow(run.average.get_decay())
        shown = run.average.module
        run.maskset.show_weighed(shown) if stored.weigh is not None else run.maskset.show(shown)


@torch.no_grad()
def go_back(run: Training, epoch: int) -> None:
    """Keep the network that further rounds go back to, and go back to it where one begins.

    The weights that the masks leave get the very bits they had, batch statistics too; the optimiser starts anew, and so
    does the average. Where the method keeps its weights, only the learning rate goes back.
    """
    rounds, epochs = run.own.rounds, run.page.epochs
    if rounds.count == 1:
        return
    if epoch == rounds.back_to:
        run.own.origin = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    if epoch >= epochs and (epoch - epochs) % (epochs - rounds.back_to) == 0:
        if not rounds.keep_weights:
            assert run.own.origin is not None, "it was kept in the first round"
            run.model.load_state_dict(run.own.origin)
            run.maskset.show()
        forget(run)
        if run.average is not None:
            run.average.set(run.model)


def forget(run: Training) -> None:
    """Start the optimiser's state anew: momentum, moments and counts are zero."""
    for state in run.optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
