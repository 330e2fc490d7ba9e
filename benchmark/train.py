"""The training loop: one for every method, in the order of one step that the design fixes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.console import Reporter
from benchmark.contract import commit, propose
from benchmark.costs import Meter
from benchmark.data import Data
from benchmark.folders import Images
from benchmark.maskset import MaskSet
from benchmark.pages import Page
from benchmark.recipe import learning_rate, set_learning_rate
from benchmark.seeds import derive
from methods.core import DenseGrads, Method, Timeline, View

EVALUATION_BATCH = 512


@dataclass
class Training:
    """A run in progress: everything the loop reads and changes."""

    page: Page
    method: Method
    name: str  # of the method, for messages
    model: nn.Module
    optimizer: Optimizer
    maskset: MaskSet
    meter: Meter
    data: Data
    timeline: Timeline
    seed: int
    device: torch.device
    precision: str
    channels_last: bool
    average: ModelEmaV3 | None = None
    step: int = 0
    epoch: int = 0  # epochs finished
    skipped_steps: int = 0
    updates: int = 0
    update_pending: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    train_s: float = 0.0
    eval_s: float = 0.0
    saved: list[Tensor] = field(default_factory=list)  # buffers before the step

    def evaluated(self) -> nn.Module:
        """Return the network that is evaluated and exported: the average where the page keeps one."""
        return self.average.module if self.average is not None else self.model

    def keep_buffers(self) -> None:
        """Remember the buffers (batch statistics), which a forward pass changes before its loss is known."""
        buffers = list(self.model.buffers())
        if len(self.saved) != len(buffers):
            self.saved = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self.saved, buffers)

    def restore_buffers(self) -> None:
        """Put the remembered buffers back: a step that is not finite must leave no trace."""
        if self.saved:
            torch._foreach_copy_(list(self.model.buffers()), self.saved)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the run's precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on to the same bits from the end of an epoch."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "masks": self.maskset.packed(),
            "meter": self.meter.state(),
            "counters": [self.step, self.epoch, self.skipped_steps, self.updates, int(self.update_pending)],
            "history": self.history,
            "clock": [self.train_s, self.eval_s],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.maskset.load_packed(state["masks"])
        self.meter.load_state(state["meter"])
        self.step, self.epoch, self.skipped_steps, self.updates, pending = state["counters"]
        self.update_pending = bool(pending)
        self.history = state["history"]
        self.train_s, self.eval_s = state["clock"]


def train(run: Training, reporter: Reporter, after_epoch: Callable[[Training], None]) -> None:
    """Train from the run's current epoch to the page's last; `after_epoch` saves and logs."""
    update_steps = run.method.update_steps(run.timeline)
    criterion = nn.CrossEntropyLoss(label_smoothing=run.page.label_smoothing)
    for epoch in range(run.epoch, run.page.epochs):
        started = time.monotonic()
        set_learning_rate(run.optimizer, learning_rate(run.page, epoch))
        torch.manual_seed(derive(run.seed, "epoch", epoch))  # dropout: a function of (seed, epoch), so resume is exact
        run.model.train()
        totals, seen = torch.zeros(2, device=run.device, dtype=torch.float64), 0  # loss and correct, on the device
        batches = run.data.train.epoch(run.seed, epoch, run.page.batch_size, run.page.drop_last, run.device)
        for images, labels in batches:
            run.step += 1
            totals += train_step(run, images, labels, criterion, run.step in update_steps)
            seen += len(labels)
            if reporter.step():
                loss = totals[0].item() / seen
                reporter.show(history_row(run, epoch + 1, loss, None), seen / (time.monotonic() - started))
        loss, correct = (totals / seen).tolist()
        elapsed = time.monotonic() - started
        run.train_s += elapsed
        run.epoch = epoch + 1
        evaluate_epoch(run, loss, 100 * correct)
        reporter.epoch(run.history[-1], seen / elapsed)
        after_epoch(run)


def train_step(run: Training, images: Tensor, labels: Tensor, criterion: nn.Module, due: bool) -> Tensor:
    """Do one optimiser step in the fixed order; return (summed loss, correct) of the batch on the device."""
    due = due or run.update_pending
    method, maskset = run.method, run.maskset
    forward_macs = run.meter.forward  # of the masks this step's forward pass uses
    if run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    # 1 forward, backward: gradients are dense, the graph knows nothing of masks
    run.optimizer.zero_grad(set_to_none=True)
    run.keep_buffers()
    with run.autocast():
        logits = run.model(images)
        loss = criterion(logits, labels)
    loss.backward()

    # 2 keep the dense gradients where this update grows by them
    wants_dense = method.dense_grads is DenseGrads.EVERY_STEP or (due and method.dense_grads is DenseGrads.AT_UPDATES)
    dense = maskset.dense_gradients() if due and wants_dense else None

    # 3 zero inactive gradients: from here on everything is sparse
    maskset.mask_gradients()

    # 4 clip by the norm of the active weights; a step that is not finite changes nothing
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
    if finite and run.page.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.page.clip_norm, norm)

    if finite:
        # 5 optimiser step; inactive weights have zero gradient and zero state, so they stay zero
        if not (due and method.replaces_step):
            run.optimizer.step()
        # 6 the method proposes, the engine commits
        if due:
            update_masks(run, dense)
        # 7 the average; inactive weights are zero in both, so they stay zero
        if run.average is not None:
            run.average.update(run.model)
    else:
        run.restore_buffers()
        run.skipped_steps += 1
    run.update_pending = due and not finite  # made up for at the next finite step, so that no target is missed

    # 8 charge the step
    run.meter.step(len(labels), forward_macs, wants_dense)
    with torch.no_grad():
        return torch.stack([loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()])


def update_masks(run: Training, dense: dict[str, Tensor] | None) -> None:
    """Ask the method for new masks and commit them."""
    view = View(
        weights=run.maskset.weights,
        masks=run.maskset.masks,
        step=run.step,
        timeline=run.timeline,
        seed=run.seed,
        gradients=dense,
    )
    proposed = propose(run.method, run.name, view)
    average = run.average.module if run.average is not None else None
    commit(run.method, run.name, run.maskset, proposed, view, run.optimizer, average)
    run.updates += 1


def evaluate_epoch(run: Training, loss: float, train_acc_pct: float) -> None:
    """Evaluate where the page asks for it and append the epoch's line to the history."""
    started = time.monotonic()
    validation = test = None
    if run.epoch % run.page.eval_every == 0 or run.epoch == run.page.epochs:
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
        "train_share": run.meter.train / run.meter.train_dense,
    }


@torch.no_grad()
def accuracy_pct(run: Training, images: Images) -> float:
    """Return the top-1 accuracy in per cent, in evaluation mode."""
    model = run.evaluated()
    model.eval()
    correct = torch.zeros((), device=run.device, dtype=torch.int64)
    for batch, labels in images.batches(EVALUATION_BATCH, run.device):
        if run.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with run.autocast():
            correct += (model(batch).argmax(1) == labels).sum()
    return 100 * correct.item() / len(images)
