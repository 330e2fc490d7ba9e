"""A step under masks: from the gradients of a batch to the weights, masks and average that follow from them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.base.seeds import derive
from benchmark.base.system import keep_random_state
from benchmark.distributed.ranks import do_together, share_tensors
from benchmark.training.contract import ask_penalty, commit, propose
from benchmark.training.method_state import ask_weigh, has_penalty
from benchmark.training.moments import take_moments
from benchmark.training.optim import Aim, is_finite, stepping_where
from benchmark.training.sparse import SparseTraining
from methods.core import ContractError, DenseGrads, Update, View
from methods.core.answers import asking_together, look


def step_under_masks(run: SparseTraining, due: bool, loss: Tensor, clip_norm: float) -> None:
    """Step the weights by the gradients in .grad and update the masks where that is due, in the fixed order.

    A step whose loss or gradient norm is not finite changes nothing; an update that was due then comes at the next one.
    """
    maskset = run.maskset
    # 2 keep the dense gradients where this update grows by them
    dense = maskset.dense_gradients() if due and run.reads_dense(due) else None

    # 3 add what the method adds, then zero the gradients of weights that are not trained: from here on all is sparse
    finish_gradients(run)
    copied = clip_norm > 0 or not run.keeps_gradients()  # clipping is in place
    active = maskset.active_gradients(copied=copied) if due else None

    # 4 clip by the norm of the trained weights; a step that is not finite changes nothing
    parameters = [p for p in (*run.parameters, *run.method_state.learned.values()) if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    fine = is_finite(norm, loss)
    finite = bool(fine) if run.waits else True  # an accelerator is not asked: where it is not, no bit changes
    if finite and clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)

    if finite:
        # 5 optimiser step; weights that are not trained have zero gradient and zero state, so they stay as they are
        with nullcontext() if run.waits else stepping_where(fine, run.optimizer, run.kept):
            if not (due and run.method.replaces_step):
                step_weights(run)
        # 6 the method proposes, the engine commits
        if due:
            finite = update_masks(run, dense, active, None if run.waits else fine)
        # 7 the average; inactive weights are zero in both, so they stay zero
        follow(run, None if run.waits else fine)
    else:
        run.restore_buffers()
        run.skipped_steps += 1
    if not run.waits:
        run.unseen_skips = ~fine + (0 if run.unseen_skips is None else run.unseen_skips)
    run.update_pending = due and not finite  # made up for at the next finite step, so that no target is missed


def finish_gradients(run: SparseTraining) -> None:
    """Add what the method adds to the gradients, then zero those of weights that are not trained."""
    if run.maskset.weighs:
        backprop_to_stored(run)
    if has_penalty(run.method):
        add_penalty(run)
    run.maskset.mask_gradients()


def backprop_to_stored(run: SparseTraining) -> None:
    """Turn the gradients of the weights the network computes with into those of stored weights and learned parameters.

    Invariant: gradients are written in place, so whoever holds the tensors (a recorded graph) sees the new ones.
    """
    stored, learned = run.maskset.stored, run.method_state.learned
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


def add_penalty(run: SparseTraining) -> None:
    """Add the method's penalty to the gradients of the weights; those that are not trained lose it with their own."""
    weights = run.maskset.weights
    trained = {} if run.maskset.trains_all else run.maskset.trained()
    with torch.no_grad():
        for name, extra in ask_penalty(run.method, run.name, run.view()).items():
            weight = weights[name]
            if name in trained:  # what is said of the others is not asked, not even whether it is a number
                extra = torch.where(trained[name], extra, 0.0)
            weight.grad = extra.to(weight) if weight.grad is None else weight.grad.add_(extra)


def step_weights(run: SparseTraining) -> None:
    """Step the weights; stored ones in their place, then have the network hold what it computes with again."""
    stored = run.maskset.stored
    if stored is None:
        run.step_optimizer()
        return
    stored.load_stored()
    run.step_optimizer()
    stored.save_stored()
    run.maskset.load_effective()


def follow(run: SparseTraining, fine: Tensor | None = None) -> None:
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
        run.maskset.load_effective(run.average.module)


def read_moments(run: SparseTraining) -> tuple[dict[str, Tensor] | None, int]:
    """Return the second moments of layers' inputs, rank 0's, and of how many images; None where no method asks."""
    wanted, seed = run.method.moments(), derive(run.seed, "input moments", run.step)
    if wanted is None:
        return None, 0
    images, batch = run.scored()
    weights = run.maskset.weights
    moments, seen = do_together(lambda: take_moments(run.model, weights, images, wanted, batch, seed))
    share_tensors(list(moments.values()))
    return moments, seen


def update_masks(
    run: SparseTraining, dense: dict[str, Tensor] | None, active: dict[str, Tensor] | None, fine: Tensor | None = None
) -> bool:
    """Ask the method for new masks and commit them; return whether: not where the step turns out not to be finite.

    `fine`: whether it is, as the device knows it, which is asked together with what the proposal asks; None = it is.
    Invariant: torch's generator is as it was, whatever a method draws: dropout is that of every other method.
    """
    with keep_random_state(next(iter(run.maskset.weights.values())).device):
        return ask_and_apply(run, dense, active, fine)


def ask_and_apply(
    run: SparseTraining, dense: dict[str, Tensor] | None, active: dict[str, Tensor] | None, fine: Tensor | None
) -> bool:
    """Do what `update_masks` does."""
    began = time.monotonic()
    moments, seen = read_moments(run)
    view = run.view(dense, active, input_moments=moments)
    skipped: list[int] = []  # 1 or 0, once the device has told
    try:
        with asking_together():
            if fine is not None:
                look(partial(refuse_skipped, skipped), ~fine)
            update = do_together(lambda: propose(run.method, run.name, view))
    except (UserError, ContractError):  # of numbers that are not finite, anything may be said
        if fine is None or not (skipped[0] if skipped else ~fine):
            raise
        return False
    if moments is not None:  # charged only now, as on a device that is asked before whether the step is finite
        run.meter.charge_moments(seen, {name: moment.numel() for name, moment in moments.items()})
    apply(run, update, view)
    run.updates += 1
    run.usage.updates_s += time.monotonic() - began
    return True


def make_up(run: SparseTraining) -> None:
    """Apply a pending update at the end of a round whose last step was not finite, since no later step is the round's.

    It is shown zeros as active gradients, for no step was taken. An update that reads dense gradients waits for the
    next finite step, as ever, and is lost where none follows. A run whose weights end up not finite keeps its masks.
    """
    ends, maskset = run.timeline.round_ends, run.maskset
    if not run.update_pending or run.step not in ends or run.method.dense_gradients() is not DenseGrads.NEVER:
        return
    if run.step < ends[-1] or all(bool(torch.isfinite(weight).all()) for weight in maskset.weights.values()):
        update_masks(run, None, {name: torch.zeros_like(weight) for name, weight in maskset.weights.items()})
        run.update_pending = False


def refuse_skipped(told: list[int], skipped: int) -> None:
    """Keep whether the step is skipped; raises ContractError where it is."""
    told.append(skipped)
    if skipped:
        raise ContractError("was asked at a step that is not finite")


def apply(run: SparseTraining, update: Update, view: View) -> None:
    """Commit what the method proposed, and keep the state that it returned."""
    average = run.average.module if run.average is not None else None
    maskset = run.maskset
    before = torch.stack([torch.count_nonzero(m) for m in maskset.masks.values()]).sum() if maskset.weighs else None
    update = commit(run.method, run.name, maskset, update, view, run.optimizer, average, run.method_state.learned)
    if before is not None and maskset.stored is None:  # masks have taken the thresholds' place
        run.method_state.reached = int(before) / maskset.total
    run.method_state.state |= {name: tensor.detach().clone() for name, tensor in (update.state or {}).items()}
    if isinstance(update.forget, tuple):
        known = {**maskset.weights, **run.method_state.learned}
        run.forget([known[name] for name in update.forget])
    elif update.forget:
        run.forget()
