"""The training loop: one for every method, its step in the order that methods/README.md gives."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.console import Reporter
from benchmark.base.seeds import derive
from benchmark.data.images import Batches, Images
from benchmark.data.mixing import mix
from benchmark.distributed.ranks import (
    check_drift,
    check_shares,
    count_ranks,
    own_share,
    seed_step,
    share_buffers,
    sum_over_ranks,
    weigh_share,
)
from benchmark.training.cuda_graphs import GraphedPasses
from benchmark.training.optim import learning_rate, set_learning_rate
from benchmark.training.precision import measure_accuracy, set_random_state
from benchmark.training.state import Training
from benchmark.training.step import make_up, step_under_masks

Hook = Callable[[Training], None]


def train(run: Training, reporter: Reporter, after_epoch: Hook, after_step: Hook | None = None) -> None:
    """Train from where the run stands to the page's last epoch; the hooks save and log.

    Invariant: a run restored by `load_state` in either hook goes on to the bits of an undisturbed one.
    """
    update_steps = run.method.update_steps(run.timeline)
    criterion = nn.CrossEntropyLoss(label_smoothing=run.page.label_smoothing)
    check_shares(len(run.data.train), run.page.batch_size, run.page.drop_last)
    if run.graphs:
        run.graphed = make_graphed(run, criterion)
    for epoch in range(run.epoch, run.last_epoch()):
        begin_epoch(run, epoch)
        began, first = time.monotonic(), run.epoch_seen
        for images, labels in serve(run, epoch):
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
        if run.step == run.timeline.total_steps:
            make_up(run)
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


def serve(run: Training, epoch: int) -> Batches:
    """Yield the batches that are left of an epoch; where the page mixes images, with the shares of their classes."""
    page, data, first = run.page, run.data, run.step + 1
    batches = data.train.epoch(
        run.seed, epoch, page.batch_size, page.drop_last, run.device, run.epoch_step, own_share()
    )
    for step, (images, labels) in enumerate(batches, first):
        yield mix(images, labels, page, len(data.classes), run.seed, step)


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


@torch.no_grad()
def go_back(run: Training, epoch: int) -> None:
    """Keep the network that further rounds go back to, and go back to it where one begins.

    The weights that the masks leave get the very bits they had, batch statistics, stored weights and learned parameters
    too; the optimiser starts anew, and so does the average. Where the method keeps its weights, only the learning rate
    goes back.
    """
    rounds, epochs = run.method_state.rounds, run.page.epochs
    if rounds.count == 1:
        return
    if epoch == rounds.back_to:
        run.keep_origin()
    if epoch >= epochs and (epoch - epochs) % (epochs - rounds.back_to) == 0:
        if not rounds.keep_weights:
            run.load_origin()
        run.forget()
        if run.average is not None:
            run.average.set(run.model)
            if run.maskset.stored is not None:
                run.maskset.stored.begin_average()


def train_step(run: Training, images: Tensor, labels: Tensor, criterion: nn.Module, due: bool) -> Tensor:
    """Do one optimiser step on this rank's images, in the fixed order; return all ranks' (summed loss, correct)."""
    due = due or run.update_pending
    charged = run.price_step(due)
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
        right = logits.argmax(1) == (labels.argmax(1) if labels.is_floating_point() else labels)
        totals = torch.stack([loss.detach().double() * len(labels), right.sum().double()])
        totals = sum_over_ranks(totals)

    # 2 to 7: gradients, optimiser and masks
    step_under_masks(run, due, totals[0], run.page.clip_norm)

    # 8 charge the step
    run.meter.step(batch, *charged, repeat_round=run.epoch >= run.page.epochs)
    return totals


def make_graphed(run: Training, criterion: nn.Module) -> GraphedPasses:
    """Return the run's passes, to be recorded; they do not keep the run alive, which keeps them."""
    return GraphedPasses(partial(compute_gradients, weakref.proxy(run), criterion, 1.0), run.parameters, run.buffers)


def compute_gradients(
    run: Training, criterion: nn.Module, share: float, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Leave the gradients of a batch in .grad; return logits and loss. `share`: what these images count in it.

    In the page's `accumulate` passes over equal parts of the images: the gradient is the mean over all of them.
    """
    count = min(run.page.accumulate, len(labels))
    if run.page.sync_batchnorm and count_ranks() > 1:  # each pass is all ranks', and one may have an image fewer
        count = min(count, run.batch_length() // count_ranks())
    passes: list[tuple[Tensor, Tensor]] = []
    for part, targets in zip(images.tensor_split(count), labels.tensor_split(count), strict=True):
        weight = len(targets) / len(labels)
        together = getattr(run.forward, "no_sync", nullcontext)  # ranks exchange gradients in the last pass alone
        with nullcontext() if len(passes) == count - 1 else together():
            with run.autocast():
                logits = run.forward(part)
                loss = criterion(logits, targets)
            (loss if share * weight == 1 else loss * (share * weight)).backward()
        if count == 1:
            return logits, loss
        passes.append((logits.detach(), loss.detach() * weight))
    return torch.cat([logits for logits, _ in passes]), torch.stack([loss for _, loss in passes]).sum()


def evaluate_epoch(run: Training, loss: float, train_acc_pct: float) -> None:
    """Evaluate where the page asks for it and append the epoch's line to the history.

    An update at the epoch's last step has been applied: density and accuracies are those of its masks, still untrained.
    """
    started = time.monotonic()
    validation = test = None
    last = run.epoch == run.last_epoch() or run.step in run.timeline.round_ends  # a branch's is earlier than its page's
    if last or run.epoch % run.page.eval_every == 0:
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
