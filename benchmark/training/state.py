"""A run in progress: what the training loop reads and changes, saves and restores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.system import code_of_process, continue_git, to_cpu
from benchmark.config.pages import Page
from benchmark.data.images import Samples
from benchmark.data.sets import Data
from benchmark.distributed.ranks import WARM_UP, average_gradients, count_ranks
from benchmark.training.cuda_graphs import GraphedPasses
from benchmark.training.precision import get_random_state, make_autocast
from benchmark.training.sparse import SparseTraining


@dataclass(kw_only=True)
class Training(SparseTraining):
    """A run in progress: everything the loop reads and changes."""

    page: Page
    data: Data
    device: torch.device
    precision: str
    channels_last: bool
    schedule: Page | None = None  # whose learning-rate schedule is used; None = its own page's
    first_epoch: int = 0  # epochs finished before it began: those of the run that it branches from
    graphs: bool = False  # whether forward and backward are recorded once and replayed
    graphed: GraphedPasses | None = None
    epoch: int = 0  # epochs finished
    history: list[dict[str, Any]] = field(default_factory=list)
    git: dict[str, Any] = field(default_factory=code_of_process)  # the code that it began with
    earlier: list[str] = field(default_factory=list)  # machines and versions that it began or went on with before
    train_s: float = 0.0
    eval_s: float = 0.0
    # of the epoch in progress
    epoch_step: int = 0  # steps done
    epoch_seen: int = 0  # images
    epoch_totals: Tensor = field(
        default_factory=lambda: torch.zeros(2, dtype=torch.float64)
    )  # loss, correct; all ranks'
    clock: float = 0.0  # when training time was last added to train_s
    random_state: list[Tensor] | None = None  # of torch's generators, to go on within an epoch

    def scored(self) -> tuple[Samples, int]:
        return self.data.train, self.page.batch_size

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
        rounds = self.method_state.rounds
        return self.page.epochs + (rounds.count - 1) * (self.page.epochs - rounds.back_to)

    def page_epoch(self, epoch: int) -> int:
        """Return which of the page's epochs an epoch of the run is, both from 0: a further round starts over."""
        first = self.method_state.rounds.back_to
        return epoch if epoch < self.page.epochs else first + (epoch - self.page.epochs) % (self.page.epochs - first)

    def batch_length(self) -> int:
        """Return how many images the batch in progress has, those of all ranks."""
        return min(self.page.batch_size, len(self.data.train) - self.epoch_step * self.page.batch_size)

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
        saved = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            **self.sparse_state(),
            "counters": [self.step, self.epoch, self.skipped_steps, self.updates, int(self.update_pending)],
            "history": self.history,
            "git": self.git,
            "clock": [self.train_s, self.eval_s],
            "usage": self.usage.state(),
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
        self.begin_method_state(state["own"]["learned"] if "own" in state else {})
        self.load_sparse_state(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch, self.skipped_steps, self.updates, pending = state["counters"]
        self.update_pending = bool(pending)
        self.history = state["history"]
        self.git = continue_git(state.get("git", self.git), self.git)
        self.train_s, self.eval_s = state["clock"]
        self.usage.load_state(state.get("usage"))  # checkpoints of old versions have none
        self.epoch_step, self.epoch_seen = state["position"]
        self.epoch_totals = state["totals"].to(self.device)
        self.random_state = state["random"]
        if self.device.type == "cpu":  # sums divided among other threads have other last bits
            torch.set_num_threads(state.get("threads", torch.get_num_threads()))
