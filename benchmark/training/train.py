"""The training loop: one for every method, in the order of one step that the design fixes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.base.console import Reporter
from benchmark.base.seeds import derive
from benchmark.config.pages import Page
from benchmark.data.images import Images
from benchmark.data.sets import Data
from benchmark.distributed.ranks import (
    WARM_UP,
    average_gradients,
    check_drift,
    check_shares,
    count_ranks,
    do_together,
    own_share,
    seed_step,
    share_buffers,
    sum_over_ranks,
    weigh_share,
)
from benchmark.networks.costs import Meter
from benchmark.training.contract import commit, propose
from benchmark.training.cuda_graphs import GraphedPasses
from benchmark.training.masks import MaskSet, pack_all
from benchmark.training.optim import is_finite, learning_rate, set_learning_rate, step_where
from benchmark.training.own import (
    Own,
    add_penalty,
    begin_own,
    follow,
    forget,
    go_back,
    has_penalty,
    pull_back,
    step_stored,
)
from benchmark.training.precision import get_random_state, make_autocast, measure_accuracy, set_random_state
from methods.core import DenseGrads, Method, Timeline, Update, View


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
    own: Own = field(default_factory=Own)  # of the method
    average: ModelEmaV3 | None = None
    schedule: Page | None = None  # whose learning rates it has; None = its own page's
    first_epoch: int = 0  # epochs finished before it began: those of the run that it branches from
    waits: bool = True  # for the device to say whether a step is finite; at updates it always does
    graphs: bool = False  # whether forward and backward are recorded once and replayed
    graphed: GraphedPasses | None = None
    step: int = 0
    epoch: int = 0  # epochs finished
    skipped_steps: int = 0
    unseen_skips: Tensor | None = None  # counted on the device, not yet in skipped_steps
    updates: int = 0
    update_pending: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    train_s: float = 0.0
    eval_s: float = 0.0
    saved: list[Tensor] = field(default_factory=list)  # buffers before the step
    # of the epoch in progress
    epoch_step: int = 0  # steps done
    epoch_seen: int = 0  # images
    epoch_totals: Tensor = field(
        default_factory=lambda: torch.zeros(2, dtype=torch.float64)
    )  # loss, correct; all ranks'
    clock: float = 0.0  # when training time was last added to train_s
    random_state: list[Tensor] | None = None  # of torch's generators, to go on within an epoch

    def evaluated(self) -> nn.Module:
        """Return the network that is evaluated and exported: the average where the page keeps one."""
        return self.average.module if self.average is not None else self.model

    @cached_property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """The network as a training step calls it: compiled where the page says so, with shapes taken as fixed.

        Several ranks call it through torch's DistributedDataParallel; `model` and its names stay plain.
        """
        if count_ranks() > 1:
            data, kind = self.data, self.parameters[0].dtype
            shape = (WARM_UP, data.channels, data.image_size, data.image_size)
            return average_gradients(self.model, torch.zeros(shape, dtype=kind, device=self.device))
        return torch.compile(self.model, dynamic=False) if self.page.compile else self.model

    def last_epoch(self) -> int:
        """Return how many epochs the run has, those of all its rounds."""
        rounds = self.own.rounds
        return self.page.epochs + (rounds.count - 1) * (self.page.epochs - rounds.back_to)

    def page_epoch(self, epoch: int) -> int:
        """Return which of the page's epochs an epoch of the run is, both from 0: a further round starts over."""
        first = self.own.rounds.back_to
        return epoch if epoch < self.page.epochs else first + (epoch - self.page.epochs) % (self.page.epochs - first)

    def view(
        self, dense: dict[str, Tensor] | None = None, active: dict[str, Tensor] | None = None, **more: Any
    ) -> View:
        """Return what the method is shown as things stand, with these dense gradients and those of trained weights."""
        maskset = self.maskset
        shown: dict[str, Any] = {
            "weights": maskset.weights,
            "masks": maskset.masks,
            "step": self.step,
            "timeline": self.timeline,
            "seed": self.seed,
            "gradients": dense,
            "active_gradients": active,
            "last": maskset.last,
            "stored": None if maskset.stored is None else maskset.stored.values,
            "trained": maskset.trained(),
            "state": self.own.state,
            "learned": self.own.learned,
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        return View(**{**shown, **more})

    def batch_length(self) -> int:
        """Return how many images the batch in progress has, those of all ranks."""
        return min(self.page.batch_size, len(self.data.train) - self.epoch_step * self.page.batch_size)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The network's parameters; to walk through its modules at every step would take a millisecond."""
        return list(self.model.parameters())

    @cached_property
    def buffers(self) -> list[Tensor]:
        """The network's buffers."""
        return list(self.model.buffers())

    def keep_buffers(self) -> None:
        """Remember the buffers (batch statistics), which a forward pass changes before its loss is known."""
        if not self.saved:
            self.saved = [buffer.clone() for buffer in self.buffers]
        elif self.buffers:
            torch._foreach_copy_(self.saved, self.buffers)

    def restore_buffers(self) -> None:
        """Put the remembered buffers back: skip non-finite steps without side effects."""
        if self.saved:
            torch._foreach_copy_(self.buffers, self.saved)

    def settle_skips(self) -> None:
        """Count the skipped steps that the host has not yet heard of; waits for the device."""
        if self.unseen_skips is not None:
            self.skipped_steps += int(self.unseen_skips)
            self.unseen_skips = None

    def beside(self) -> dict[str, Tensor]:
        """Return the tensors that the method has beside the network, for ranks to compare."""
        stored = self.maskset.stored
        return {
            **{f"{name} (state)": tensor for name, tensor in self.own.state.items()},
            **{f"{name} (learned)": tensor for name, tensor in self.own.learned.items()},
            **{f"{name} (stored)": tensor for name, tensor in (stored.values if stored is not None else {}).items()},
        }

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the run's precision."""
        return make_autocast(self.device, self.precision)

    def settle_clock(self) -> None:
        """Add the time since the last call, or since the epoch's start, to the training time."""
        now = time.monotonic()
        self.train_s += now - self.clock
        self.clock = now

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on to the same bits after any step."""
        self.settle_skips()
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "own": self.own.saved(),
            "stored": None if self.maskset.stored is None else self.maskset.stored.state(),
            "masks": self.maskset.packed(),
            "explored": pack_all(self.maskset.explored),
            "meter": self.meter.state(),
            "counters": [self.step, self.epoch, self.skipped_steps, self.updates, int(self.update_pending)],
            "history": self.history,
            "clock": [self.train_s, self.eval_s],
            "position": [self.epoch_step, self.epoch_seen],
            "totals": self.epoch_totals.cpu(),
            "random": get_random_state(self.device),
            "threads": torch.get_num_threads(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        own, stored = state.get("own", Own().saved()), state.get("stored")  # checkpoints of old versions have none
        begin_own(self, own["learned"])
        self.own.state = {name: tensor.to(self.device) for name, tensor in own["state"].items()}
        self.own.origin = own["origin"]
        self.own.reached = own.get("reached")
        if stored is None:
            self.maskset.stored = None
        elif self.maskset.stored is not None:
            self.maskset.stored.load_state(stored)
        self.optimizer.load_state_dict(state["optimizer"])
        self.maskset.load_packed(state["masks"])
        self.maskset.load_explored(state["explored"])
        self.meter.load_state(state["meter"])
        self.step, self.epoch, self.skipped_steps, self.updates, pending = state["counters"]
        self.update_pending = bool(pending)
        self.history = state["history"]
        self.train_s, self.eval_s = state["clock"]
        self.epoch_step, self.epoch_seen = state["position"]
        self.epoch_totals = state["totals"].to(self.device)
        self.random_state = state["random"]
        if self.device.type == "cpu":  # sums divided among other threads have other last bits
            torch.set_num_threads(state.get("threads", torch.get_num_threads()))


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
        go_back(run, epoch)
        torch.manual_seed(derive(run.seed, "epoch", epoch))  # dropout: a function of (seed, epoch)
        run.epoch_totals = torch.zeros(2, device=run.device, dtype=torch.float64)
    elif run.random_state is not None:
        set_random_state(run.random_state, run.device)
    run.model.train()
    run.clock = time.monotonic()


def train_step(run: Training, images: Tensor, labels: Tensor, criterion: nn.Module, due: bool) -> Tensor:
    """Do one optimiser step on this rank's images, in the fixed order; return all ranks' (summed loss, correct)."""
    due = due or run.update_pending
    method, maskset = run.method, run.maskset
    reads = method.dense_gradients()
    wants_dense = reads is DenseGrads.EVERY_STEP or (due and reads is DenseGrads.AT_UPDATES)
    forward_macs = run.meter.forward  # of the masks this step's forward pass uses
    trains_all = maskset.stored is not None and maskset.stored.all
    gradient_macs = run.meter.weight_gradients(wants_dense or trains_all, maskset.trained_counts())
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
    if maskset.stored is not None and maskset.stored.weigh is not None:
        pull_back(run)
    if has_penalty(method):
        add_penalty(run)
    maskset.mask_gradients()

    # 4 clip by the norm of the trained weights; a step that is not finite changes nothing
    parameters = [p for p in (*run.parameters, *run.own.learned.values()) if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    fine = is_finite(norm, totals[0])
    waits = run.waits or due
    finite = bool(fine) if waits else True
    if finite and run.page.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.page.clip_norm, norm)

    if not waits:
        step_where(fine, run.optimizer, run.buffers, run.saved)
        run.unseen_skips = ~fine + (0 if run.unseen_skips is None else run.unseen_skips)
    elif finite:
        # 5 optimiser step; weights that are not trained have zero gradient and zero state, so they stay as they are
        active = maskset.active_gradients() if due else None
        if not (due and method.replaces_step):
            run.optimizer.step() if maskset.stored is None else step_stored(run)
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
    run.meter.step(batch, forward_macs, gradient_macs, again=run.epoch >= run.page.epochs)
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
    view = run.view(dense, active)
    apply(run, do_together(lambda: propose(run.method, run.name, view)), view)
    run.updates += 1


def apply(run: Training, update: Update, view: View) -> None:
    """Commit what the method proposed, and keep the state that it returned."""
    average = run.average.module if run.average is not None else None
    maskset = run.maskset
    weighed = maskset.stored is not None and maskset.stored.weigh is not None
    reached = maskset.active() / maskset.total if weighed else None
    update = commit(run.method, run.name, maskset, update, view, run.optimizer, average, run.own.learned)
    if weighed and maskset.stored is None:  # masks have taken the thresholds' place
        run.own.reached = reached
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
