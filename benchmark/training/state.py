"""A run in progress: what the training loop reads and changes, saves and restores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.base.system import to_cpu
from benchmark.config.pages import Page
from benchmark.data.sets import Data
from benchmark.distributed.ranks import WARM_UP, average_gradients, count_ranks
from benchmark.networks.costs import Meter
from benchmark.training.cuda_graphs import GraphedPasses
from benchmark.training.masks import MaskSet, pack_all
from benchmark.training.own import Own, check_learned, check_storage, weighs
from benchmark.training.precision import get_random_state, make_autocast
from methods.core import Inactive, Method, Timeline, View


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
    schedule: Page | None = None  # whose learning-rate schedule is used; None = its own page's
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

    def begin_own(self, learned: Mapping[str, Tensor]) -> None:
        """Give the run what its method keeps: stored weights, and learned parameters, which the optimiser steps too."""
        method, maskset = self.method, self.maskset
        if method.inactive is Inactive.STORED:
            maskset.store(method.trains, self.average is not None)
        check_storage(self.name, method)
        check_learned(self.name, method, learned, {name for name, _ in self.model.named_parameters()})
        device = next(self.model.parameters()).device
        self.own.learned = {n: nn.Parameter(v.detach().clone().float().to(device)) for n, v in learned.items()}
        if self.own.learned:
            parameters = list(self.own.learned.values())
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.add_param_group({"params": parameters, "weight_decay": self.page.weight_decay, "lr": rate})
        if weighs(method):
            assert maskset.stored is not None, "check_learned asked for stored weights"
            maskset.stored.weigh = lambda name, stored: method.weigh(name, stored, self.own.learned)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on to the same bits after any step."""
        self.settle_skips()
        saved = {
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
            "totals": self.epoch_totals,
            "random": get_random_state(self.device),
            "threads": torch.get_num_threads(),
        }
        return to_cpu(saved)

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        own, stored = state.get("own", Own().saved()), state.get("stored")  # checkpoints of old versions have none
        self.begin_own(own["learned"])
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
