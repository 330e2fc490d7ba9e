"""A network under a method's masks: what a training step reads and changes, whoever drives the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.base.buffers import KeptBuffers
from benchmark.base.meters import Usage
from benchmark.data.images import Samples
from benchmark.networks.costs import Meter
from benchmark.training.masks import MaskSet, pack_all
from benchmark.training.method_state import MethodState, check_learned, check_storage, weighs
from methods.core import DenseGrads, Inactive, Method, Timeline, View


@dataclass(kw_only=True)
class SparseTraining:
    """A network, its masks, its optimiser and the method that decides over them.

    `update_pending`: an update was due at a step that was skipped, and is made up for at the next one.
    """

    method: Method
    name: str  # of the method, for messages
    model: nn.Module
    optimizer: Optimizer
    maskset: MaskSet
    timeline: Timeline
    seed: int
    meter: Meter
    method_state: MethodState = field(default_factory=MethodState)  # of the method
    average: ModelEmaV3 | None = None
    usage: Usage = field(default_factory=Usage)  # of the machine
    step: int = 0
    updates: int = 0
    update_pending: bool = False
    kept: KeptBuffers | None = None  # before the step; a loop of one's own keeps none
    unseen_skips: Tensor | None = None  # counted on the device, not yet in skipped_steps
    skipped_steps: int = 0
    waits: bool = True  # for the device to say whether a step is finite; else only updates ask it

    def scored(self) -> tuple[Samples, int]:
        """Return the images that a method scores on and takes moments of, and their batch size."""
        raise NotImplementedError

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The network's parameters; to walk through its modules at every step would take a millisecond."""
        return list(self.model.parameters())

    def weight_group(self) -> dict[str, Any]:
        """Return the optimiser's group of the first prunable weight: its first group may be of norms and biases."""
        first = next(iter(self.maskset.weights.values()))
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return next((group for group in groups if any(p is first for p in group["params"])), groups[0])

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
            "state": self.method_state.state,
            "learned": self.method_state.learned,
            "lr": self.weight_group()["lr"],
        }
        return View(**{**shown, **more})

    def beside(self) -> dict[str, Tensor]:
        """Return the tensors that the method has beside the network, for ranks to compare."""
        return {f"{name} (state)": tensor for name, tensor in self.method_state.state.items()} | self.trained_beside()

    def trained_beside(self) -> dict[str, Tensor]:
        """Return the tensors beside the network that are trained: learned parameters and stored weights."""
        stored = self.maskset.stored
        return {
            **{f"{name} (learned)": tensor for name, tensor in self.method_state.learned.items()},
            **{f"{name} (stored)": tensor for name, tensor in (stored.values if stored is not None else {}).items()},
        }

    def keep_origin(self) -> None:
        """Keep the network, with what is trained beside it, for further rounds to go back to."""
        own = self.method_state
        own.origin = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        own.origin_beside = {name: tensor.detach().clone() for name, tensor in self.trained_beside().items()}

    @torch.no_grad()
    def load_origin(self) -> None:
        """Go back to what `keep_origin` kept, under the masks of now; the method's own state stays."""
        own = self.method_state
        assert own.origin is not None, "it was kept in the first round"
        for name, tensor in self.model.state_dict().items():  # in place: others hold the buffers
            tensor.copy_(own.origin[name])
        for name, tensor in self.trained_beside().items():
            tensor.copy_(own.origin_beside[name])
        self.maskset.load_effective()

    def begin_method_state(self, learned: Mapping[str, Tensor]) -> None:
        """Give the run what its method keeps: stored weights, and learned parameters, which the optimiser steps too."""
        method, maskset = self.method, self.maskset
        if method.inactive is Inactive.STORED:
            maskset.store(method.trains, self.average is not None)
        check_storage(self.name, method)
        check_learned(self.name, method, learned, {name for name, _ in self.model.named_parameters()})
        device = next(self.model.parameters()).device
        self.method_state.learned = {n: nn.Parameter(v.detach().clone().float().to(device)) for n, v in learned.items()}
        if self.method_state.learned:
            first = self.weight_group()
            as_weights: dict[str, Any] = {key: first[key] for key in ("lr", "weight_decay") if key in first}
            learned_now = self.method_state.learned
            params = list(learned_now.items() if "param_names" in first else learned_now.values())
            self.optimizer.add_param_group({"params": params, **as_weights})
        if weighs(method):
            assert maskset.stored is not None, "check_learned asked for stored weights"
            maskset.stored.dense_gradients = method.straight_through
            own = self.method_state  # not self: run and masks would keep each other, and a card's memory with them
            maskset.stored.weigh = lambda name, stored: method.weigh(name, stored, own.learned)

    @cached_property
    def buffers(self) -> list[Tensor]:
        """The network's buffers."""
        return list(self.model.buffers())

    def keep_buffers(self) -> None:
        """Remember the buffers (batch statistics), which a forward pass changes before its loss is known."""
        if self.kept is None:
            self.kept = KeptBuffers(self.buffers)
        else:
            self.kept.keep()

    def restore_buffers(self) -> None:
        """Put the remembered buffers back: skip non-finite steps without side effects."""
        if self.kept is not None:
            self.kept.put_back()

    def settle_skips(self) -> None:
        """Count the skipped steps that the host has not yet heard of; waits for the device."""
        if self.unseen_skips is not None:
            self.skipped_steps += int(self.unseen_skips)
            self.unseen_skips = None

    def sparse_state(self) -> dict[str, Any]:
        """Return the part of a checkpoint that is of masks, method and costs."""
        maskset = self.maskset
        return {
            "own": self.method_state.saved(),
            "stored": None if maskset.stored is None else maskset.stored.state(),
            "masks": maskset.packed(),
            "explored": pack_all(maskset.explored),
            "meter": self.meter.state(),
        }

    def load_sparse_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `sparse_state` returned, but for learned parameters; weights are to be there already."""
        maskset = self.maskset
        own, stored = state.get("own"), state.get("stored")  # checkpoints of old versions have none
        if own is not None:
            device = next(iter(maskset.weights.values())).device
            self.method_state.state = {name: tensor.to(device) for name, tensor in own["state"].items()}
            self.method_state.origin = own["origin"]
            self.method_state.origin_beside = own.get("origin_beside", {})
            self.method_state.reached = own.get("reached")
        if stored is None:
            maskset.stored = None
        elif maskset.stored is not None:
            maskset.stored.load_state(stored)
        maskset.load_packed(state["masks"])
        maskset.load_explored(state["explored"])
        self.meter.load_state(state["meter"])

    def reads_dense(self, due: bool) -> bool:
        """Return whether the method reads dense gradients at this step."""
        reads = self.method.dense_gradients()
        if reads is DenseGrads.EVERY_STEP:  # after the last planned step only what that has left undone
            return due or self.step <= self.timeline.total_steps
        return due and reads is DenseGrads.AT_UPDATES

    def price_step(self, due: bool) -> tuple[int | Tensor, int | Tensor, int]:
        """Return an image's multiply-adds in this step: forward, weight gradients, further gradients that are read.

        To be asked before the step, under the masks of its forward pass.
        """
        meter, stored = self.meter, self.maskset.stored
        gradients = meter.weight_gradients(stored is not None and stored.dense_gradients, self.maskset.trained_counts())
        read = int(meter.weight_gradients(True) - gradients) if self.reads_dense(due) else 0
        return meter.forward, gradients, read

    def step_optimizer(self) -> None:
        """Step the weights by their gradients."""
        self.optimizer.step()

    def keeps_gradients(self) -> bool:
        """Return whether the optimiser leaves gradients as they are."""
        return True

    def forget(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Start the optimiser's state anew, of all parameters or of these: momentum, moments and counts are zero."""
        own = self.optimizer.state
        for parameter in list(own) if parameters is None else parameters:
            for value in own.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    value.zero_()
