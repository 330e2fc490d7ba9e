"""The training loop: one for every method, its step in the order that methods/README.md gives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.console import Reporter
from benchmark.base.seeds import derive
from benchmark.data.images import Images
from benchmark.distributed.ranks import (
    check_drift,
    check_shares,
    do_together,
    own_share,
    seed_step,
    share_buffers,
    sum_over_ranks,
    weigh_share,
)
from benchmark.training.contract import commit, propose
from benchmark.training.cuda_graphs import GraphedPasses
from benchmark.training.extras import finish_gradients, follow, forget, go_back, read_moments, step_weights
from benchmark.training.optim import is_finite, learning_rate, set_learning_rate, stepping_where
from benchmark.training.precision import measure_accuracy, set_random_state
from benchmark.training.state import Training
from methods.core import DenseGrads, Update, View

Hook = Callable[[Training], None]


def train(run: Training, reporter: Reporter, after_epoch: Hook, after_step: Hook | None = None) -> None:
    """Train from where the run stands to the page's last epoch; the hooks save and log.

    Invariant: a run restored by `load_state` in either hook goes on to the bits of an undisturbed one.
    """
    update_steps = run.method.update_steps(run.timeline)
    criterion = nn.CrossEntropyLoss(label_smoothing=run.page.label_smoothing)
    check_shares(len(run.data.train), run.page.batch_size, run.page.drop_last)
    if run.graphs:
        run.graphed = GraphedPasses(partial(compute_gradients, run, criterion, 1.0), run.parameters, run.buffers)
    for epoch in range(run.epoch, run.last_epoch()):
        begin_epoch(run, epoch)
        began, first = time.monotonic(), run.epoch_seen
        data, page, at = run.data.train, run.page, run.epoch_step
        for images, labels in data.epoch(run.seed, epoch, page.batch_size, page.drop_last, run.device, at, own_share()):
            run.step += 1
            run.epoch_totals += train_step(run, images, labels, criterion, run.step in update_steps)
            run.epoch_seen += run.batch_length()
            run.epoch_step += 1
            if reporter.step():
                loss = run.epoch_totals[0].item() / run.epoch_seen
                row = history_row(run, epoch + 1, loss, None)
                reporter.show(row, (run.epoch_seen - first) / (time.monotonic() - began))
            if after_step is not None:
                after_step(run)
        loss, correct = (run.epoch_totals / run.epoch_seen).tolist()
        run.settle_skips()
        run.settle_clock()
        speed = (run.epoch_seen - first) / (time.monotonic() - began)
        run.epoch, run.epoch_step, run.epoch_seen = epoch + 1, 0, 0
        check_drift(run.model, {**run.maskset.masks, **run.beside()}, f"after epoch {run.epoch}")
        share_buffers(run.model, run.average)
        evaluate_epoch(run, loss, 100 * correct)
        reporter.epoch(run.history[-1], speed)
        after_epoch(run)


def begin_epoch(run: Training, epoch: int) -> None:
    """Set what an epoch starts from, or, within one that a checkpoint was taken in, what it goes on from."""
    set_learning_rate(run.optimizer, learning_rate(run.schedule or run.page, run.page_epoch(epoch)))
    if run.epoch_step == 0:
        make_up(run)
        go_back(run, epoch)
        torch.manual_seed(derive(run.seed, "epoch", epoch))  # dropout: a function of (seed, epoch)
        run.epoch_totals = torch.zeros(2, device=run.device, dtype=torch.float64)
    elif run.random_state is not None:
        set_random_state(run.random_state, run.device)
    run.model.train()
    run.clock = time.monotonic()


def make_up(run: Training) -> None:
    """Apply a pending update before the next round rewinds the network: the round's last step was not finite.

    One that reads gradients comes at the next finite step, as ever.
    """
    if run.update_pending and run.step in run.timeline.round_ends and run.method.dense_gradients() is DenseGrads.NEVER:
        update_masks(run, None, None)
        run.update_pending = False


def train_step(run: Training, images: Tensor, labels: Tensor, criterion: nn.Module, due: bool) -> Tensor:
    """Do one optimiser step on this rank's images, in the fixed order; return all ranks' (summed loss, correct)."""
    due = due or run.update_pending
    method, maskset = run.method, run.maskset
    reads = method.dense_gradients()
    wants_dense = reads is DenseGrads.EVERY_STEP or (due and reads is DenseGrads.AT_UPDATES)
    forward_macs = run.meter.forward  # of the masks this step's forward pass uses
    trains_all = maskset.stored is not None and maskset.stored.all
    gradient_macs = run.meter.weight_gradients(trains_all, maskset.trained_counts())
    reading = run.meter.weight_gradients(True) - gradient_macs if wants_dense else 0
    batch = run.batch_length()
    seed_step(run.seed, run.step)
    if run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    # 1 forward, backward: gradients are dense, the graph knows nothing of masks
    run.optimizer.zero_grad(set_to_none=True)
    run.keep_buffers()
    share = weigh_share(len(labels), batch)
    logits, loss = (run.graphed or partial(compute_gradients, run, criterion, share))(images, labels)
    with torch.no_grad():
        totals = torch.stack([loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()])
        totals = sum_over_ranks(totals)

    # 2 keep the dense gradients where this update grows by them
    dense = maskset.dense_gradients() if due and wants_dense else None

    # 3 add what the method adds, then zero the gradients of weights that are not trained: from here on all is sparse
    finish_gradients(run)

    # 4 clip by the norm of the trained weights; a step that is not finite changes nothing
    parameters = [p for p in (*run.parameters, *run.own.learned.values()) if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    fine = is_finite(norm, totals[0])
    waits = run.waits or due
    finite = bool(fine) if waits else True
    if finite and run.page.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.page.clip_norm, norm)

    if not waits:  # nothing that follows changes a bit where the step is not finite
        with stepping_where(fine, run.optimizer, run.buffers, run.saved):
            step_weights(run)
        follow(run, fine)
        run.unseen_skips = ~fine + (0 if run.unseen_skips is None else run.unseen_skips)
    elif finite:
        # 5 optimiser step; weights that are not trained have zero gradient and zero state, so they stay as they are
        active = maskset.active_gradients() if due else None
        if not (due and method.replaces_step):
            step_weights(run)
        # 6 the method proposes, the engine commits
        if due:
            update_masks(run, dense, active)
        # 7 the average; inactive weights are zero in both, so they stay zero
        follow(run)
    else:
        run.restore_buffers()
        run.skipped_steps += 1
    run.update_pending = due and not finite  # made up for at the next finite step, so that no target is missed

    # 8 charge the step
    run.meter.step(batch, forward_macs, gradient_macs, reading, again=run.epoch >= run.page.epochs)
    return totals


def compute_gradients(
    run: Training, criterion: nn.Module, share: float, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Leave the gradients of a batch in .grad; return logits and loss. `share`: what these images count in it."""
    with run.autocast():
        logits = run.forward(images)
        loss = criterion(logits, labels)
    (loss if share == 1 else loss * share).backward()
    return logits, loss


def update_masks(run: Training, dense: dict[str, Tensor] | None, active: dict[str, Tensor] | None) -> None:
    """Ask the method for new masks and commit them."""
    view = run.view(dense, active, input_moments=read_moments(run))
    apply(run, do_together(lambda: propose(run.method, run.name, view)), view)
    run.updates += 1


def apply(run: Training, update: Update, view: View) -> None:
    """Commit what the method proposed, and keep the state that it returned."""
    average = run.average.module if run.average is not None else None
    maskset = run.maskset
    before = (
        torch.stack([torch.count_nonzero(mask) for mask in maskset.masks.values()]).sum() if maskset.weighs else None
    )
    update = commit(run.method, run.name, maskset, update, view, run.optimizer, average, run.own.learned)
    if before is not None and maskset.stored is None:  # masks have taken the thresholds' place
        run.own.reached = int(before) / maskset.total
    run.own.state |= {name: tensor.detach().clone() for name, tensor in (update.state or {}).items()}
    if update.forget:
        forget(run)


def evaluate_epoch(run: Training, loss: float, train_acc_pct: float) -> None:
    """Evaluate where the page asks for it and append the epoch's line to the history."""
    started = time.monotonic()
    validation = test = None
    if run.epoch % run.page.eval_every == 0 or run.step in run.timeline.round_ends:
        test = accuracy_pct(run, run.data.test)
        validation = accuracy_pct(run, run.data.validation) if run.data.validation is not None else None
    run.eval_s += time.monotonic() - started
    row = history_row(run, run.epoch, loss, train_acc_pct)
    run.history.append({**row, "validation_acc_pct": validation, "test_acc_pct": test})


def history_row(run: Training, epoch: int, loss: float, train_acc_pct: float | None) -> dict[str, Any]:
    """Return a line of the history as things stand, with the accuracies of the last evaluation."""
    last = run.history[-1] if run.history else {}
    return {
        "epoch": epoch,
        "step": run.step,
        "lr": run.optimizer.param_groups[0]["lr"],
        "loss": loss if math.isfinite(loss) else None,
        "train_acc_pct": train_acc_pct,
        "validation_acc_pct": last.get("validation_acc_pct"),
        "test_acc_pct": last.get("test_acc_pct"),
        "density": run.maskset.active() / run.maskset.total,
        "explored": run.maskset.explored_share(),
        "train_share": run.meter.train / run.meter.train_dense,
    }


def accuracy_pct(run: Training, images: Images) -> float:
    """Return the evaluated network's top-1 accuracy in per cent."""
    return measure_accuracy(run.evaluated(), images, run.device, run.autocast(), run.channels_last)
