"""What a step does for methods that do more than choose masks: stored or learned weights, penalties, rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.base.seeds import derive
from benchmark.distributed.ranks import do_together, share_tensors
from benchmark.training.moments import take_moments
from benchmark.training.optim import Aim
from benchmark.training.own import ask_weigh, check_penalty, has_penalty
from benchmark.training.state import Training


def finish_gradients(run: Training) -> None:
    """Add what the method adds to the gradients, then zero those of weights that are not trained."""
    if run.maskset.weighs:
        pull_back(run)
    if has_penalty(run.method):
        add_penalty(run)
    run.maskset.mask_gradients()


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


def add_penalty(run: Training) -> None:
    """Add the method's penalty to the gradients of the weights; those that are not trained lose it with their own."""
    weights = run.maskset.weights
    with torch.no_grad():
        penalty = check_penalty(run.name, run.method.penalty(run.view()), weights)
        for name, extra in penalty.items():
            weight = weights[name]
            weight.grad = extra.to(weight) if weight.grad is None else weight.grad.add_(extra)


def step_weights(run: Training) -> None:
    """Step the weights; stored ones in their place, then have the network hold what it computes with again."""
    stored = run.maskset.stored
    if stored is None:
        run.optimizer.step()
        return
    stored.lend()
    run.optimizer.step()
    stored.take_back()
    run.maskset.show()


def follow(run: Training, fine: Tensor | None = None) -> None:
    """Update the moving average: of stored weights that of all values, shown where the network has weights.

    `fine`: whether the step is finite, as the device knows it; where it is not, the average stays. None = it is.
    """
    if run.average is None:
        return
    with torch.no_grad():
        run.average.update(run.model if fine is None else Aim(fine, run.model, run.average.module))
    stored = run.maskset.stored
    if stored is not None:
        stored.follow(run.average.get_decay(), fine)
        run.maskset.show(run.average.module)


def read_moments(run: Training) -> dict[str, Tensor] | None:
    """Return the second moments of layers' inputs, rank 0's, and charge them; None where the method asks for none."""
    wanted, seed = run.method.moments(), derive(run.seed, "input moments", run.step)
    if wanted is None:
        return None
    weights, train, batch = run.maskset.weights, run.data.train, run.page.batch_size
    moments, images = do_together(lambda: take_moments(run.model, weights, train, wanted, batch, seed))
    share_tensors(list(moments.values()))
    run.meter.charge_moments(images, {name: moment.numel() for name, moment in moments.items()})
    return moments


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
