"""The methods in anybody's training loop: masks, gradients and optimiser of one's own network."""

from __future__ import annotations

import copy
import dataclasses
import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from benchmark.base.errors import UserError
from benchmark.data.images import Samples
from benchmark.data.loader import LoaderImages
from benchmark.networks.build import refuse_transposed
from benchmark.networks.costs import Meter
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.training.contract import planned_count
from benchmark.training.given import (
    KEEP_ZEROS,
    choose_method,
    look_through,
    make_page,
    make_timeline,
    refuse_more_than_a_loop,
    refuse_optimizer,
    rehearse_alone,
    take_samples,
    tell_uncovered,
    unwrap,
    waits_for,
)
from benchmark.training.masks import MaskSet, inner_state
from benchmark.training.method_state import MethodState, versions_of
from benchmark.training.report import LayerReport, Report
from benchmark.training.setup import begin_masks
from benchmark.training.sparse import SparseTraining
from benchmark.training.step import make_up, step_under_masks
from benchmark.training.stored import zero_outside
from methods.core import Method

GUARDED: WeakKeyDictionary[Optimizer, ref[UserTraining]] = WeakKeyDictionary()  # optimisers that a Sparsifier steps


@dataclass(kw_only=True)
class UserTraining(SparseTraining):
    """A network in its owner's loop."""

    samples: LoaderImages | None
    scaler: GradScaler | None = None  # of the step in progress
    inner_step: Callable[[], Any] | None = None  # the optimiser's own, where its step() was taken over
    stepping: bool = False  # the optimiser steps for the Sparsifier, not by itself
    guard: RemovableHandle | None = None  # what refuses the optimiser's other steps; None = it was let go

    def scored(self) -> tuple[Samples, int]:
        assert self.samples is not None, "a method that asks for images was given a loader"
        return self.samples, self.samples.batch_size

    @property
    def parameters(self) -> list[nn.Parameter]:  # type: ignore[override]
        """What the optimiser steps now, those of a loss or of a group added later included; other gradients stay."""
        learned = {id(parameter) for parameter in self.method_state.learned.values()}
        groups = self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"] if id(parameter) not in learned]

    def forget(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Have the optimiser begin anew: without state, but for those of which zeros are known to be a beginning."""
        if type(self.optimizer) in KEEP_ZEROS:
            super().forget(parameters)
            return
        state = cast(dict[Tensor, Any], inner_state(self.optimizer))
        for parameter in list(state) if parameters is None else parameters:
            state.pop(parameter, None)

    def keeps_gradients(self) -> bool:
        """Return whether the optimiser is known to leave gradients alone: Nesterov momentum may be added in place."""
        nesterov = any(group.get("nesterov") for group in self.optimizer.param_groups)
        return type(self.optimizer) in KEEP_ZEROS and not nesterov

    def begin_method_state(self, learned: Mapping[str, Tensor]) -> None:
        if learned and hasattr(self.optimizer.step, "_wrapped_by_lr_sched"):
            raise UserError(
                f"method '{self.name}' has learned parameters, whose learning rate the scheduler that was built before "
                "would not move: build it after the Sparsifier"
            )
        super().begin_method_state(learned)

    def step_optimizer(self) -> None:
        self.stepping = True
        try:
            if self.scaler is not None:
                self.scaler.step(self.optimizer)
            else:
                (self.inner_step or self.optimizer.step)()
        finally:
            self.stepping = False
        if type(self.optimizer) not in KEEP_ZEROS and self.maskset.stored is None:
            for name, weight in self.maskset.weights.items():
                zero_outside(self.maskset.masks[name], weight)


def reword(message: str) -> str:
    """Return a message of the runner's with settings as keywords, which its command line writes otherwise."""
    message = message.replace("ARGS=model_args.", "").replace("ARGS=", "").replace("SPARSITY", "sparsity")
    message = message.replace("make new-method NAME=", "sparse-bench new-method ")
    return re.sub("^page '", "network '", message)


@contextmanager
def rewording() -> Iterator[None]:
    """Raise the runner's errors with their messages reworded."""
    try:
        yield
    except UserError as error:
        raise UserError(reword(str(error))) from error.__cause__


class Sparsifier:
    """A method's masks on your own network, in your own training loop.

    model: any nn.Module whose convolutions and linear layers are to be pruned, also one wrapped in
    DistributedDataParallel or by torch.compile. optimizer: over all its parameters. method: a name from
    `sparse-bench methods`, the path of a method file, or a Method; sparsity: the share of the prunable weights that is
    zero at the end, in [0, 1), unless a Method says it. total_steps: optimiser steps of the training, on which the
    schedule is laid out; steps_per_epoch: for methods that count in epochs. data: a loader of (inputs, labels), for
    methods that look at batches. keep_dense: patterns of weight names that are not pruned; `first` and `last` too.
    prune_depthwise: whether depthwise convolutions are pruned. seed: of what the method draws. example: a batch of
    inputs as a step sees it, to count FLOPs by, and to see which layer gives the classes; without it that is the layer
    registered last. settings: of the method, by name.

    Build it after the optimiser and before a learning-rate scheduler; the first masks are applied at once. Raises
    UserError, naming what is wrong and the way out, before anything is changed. Invariant: outside the masks weights
    are exactly zero whenever you look, and after each update the count is what the method promises, to the weight.
    """

    @rewording()
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: str | Path | Method = "granet",
        sparsity: float | None = None,
        *,
        total_steps: int,
        steps_per_epoch: int | None = None,
        data: Iterable[Any] | None = None,
        keep_dense: Sequence[str] = (),
        prune_depthwise: bool = False,
        seed: int = 0,
        example: Tensor | None = None,
        **settings: Any,
    ) -> None:
        network = unwrap(model)
        page = make_page(network, keep_dense, prune_depthwise)
        plugin, chosen = choose_method(page, method, sparsity, settings)
        layers = find_layers(network, page)
        weights = prunable_weights(network, layers)
        timeline = make_timeline(total_steps, steps_per_epoch)
        refuse_optimizer(optimizer, weights, chosen, plugin.name, timeline)
        refuse_more_than_a_loop(chosen, plugin.name, timeline)
        refuse_transposed(plugin.name, dataclasses.asdict(chosen), layers)
        rehearse_alone(chosen, plugin.name, timeline, told=steps_per_epoch is not None)
        costs, last = look_through(network, layers, example)
        classes = network.get_parameter(last.name).shape[int(last.transposed)]
        samples = take_samples(chosen, plugin.name, data, classes, example)
        maskset, meter = MaskSet(weights, last.name), Meter(costs, costs)
        maskset.listeners.append(meter.on_commit)
        self.plugin, self.counted, self.batch_size = plugin, example is not None, 1 if example is None else len(example)
        self.update_steps = chosen.update_steps(timeline)
        self.training = UserTraining(
            method=chosen,
            name=plugin.name,
            model=network,
            optimizer=optimizer,
            maskset=maskset,
            timeline=timeline,
            seed=seed,
            meter=meter,
            method_state=MethodState(),
            samples=samples,
        )
        begin_masks(self.training, None, lambda remark: warnings.warn(reword(remark), stacklevel=6))
        for remark in tell_uncovered(network, layers):
            warnings.warn(remark, stacklevel=3)
        guard(self.training)  # last: where anything before is refused, the optimiser stays free
        self.stored, self.left = maskset.stored, self.look()  # the former may be dropped, and a state brings it back

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The masks by parameter name, bool, True = active; yours to read."""
        return self.training.maskset.masks

    def step(self, scaler: GradScaler | None = None, clip_norm: float = 0.0) -> None:
        """Step the optimiser by the gradients that backward has left, update the masks where due, clear the gradients.

        To be called once per optimiser step, after the last backward where gradients are accumulated. scaler: that of
        mixed precision; call its update() afterwards as ever. clip_norm: the largest norm of the gradients of trained
        weights, 0 = not clipped; clipping before this call would count those of inactive weights as well. A step whose
        gradients are not finite is skipped. Raises UserError where no prunable weight has a gradient.
        """
        self.settle_writes()
        training = self.training
        weights = training.maskset.weights
        if all(weight.grad is None for weight in weights.values()):
            raise UserError("step() found no gradient of a prunable weight: call loss.backward() before it, each time")
        if scaler is not None:
            if training.inner_step is not None:
                raise UserError("take_over() has the optimiser do this step: call scaler.step(optimizer), as ever")
            unscale(scaler, training.optimizer)
        training.step += 1
        training.scaler = scaler
        training.waits = scaler is not None or waits_for(training.optimizer, next(iter(weights.values())))
        due = training.step in self.update_steps or training.update_pending
        charged = training.price_step(due)
        finite = torch.zeros((), device=next(iter(weights.values())).device)
        step_under_masks(training, due, finite, clip_norm)
        make_up(training)
        self.left = self.look()
        training.optimizer.zero_grad(set_to_none=True)
        training.meter.step(self.batch_size, *charged)
        if training.step == training.timeline.total_steps:
            self.tell_missed()

    def tell_missed(self) -> None:
        """Warn where the schedule has ended above the target, for steps were skipped that updates were due at."""
        training, maskset = self.training, self.training.maskset
        planned = planned_count(training.method, maskset, training.step, training.timeline)
        active = maskset.active()
        if planned is not None and active > planned:
            training.settle_skips()
            warnings.warn(
                f"the last of total_steps has come, and {active:,} of {maskset.total:,} weights are active instead of "
                f"{planned:,}: {training.skipped_steps} steps were skipped because gradients were not finite; an "
                "update that was due comes with the next finite step",
                stacklevel=3,
            )

    def take_over(self, clip_norm: float = 0.0) -> None:
        """Have the optimiser's own `step()` do what `step` does, for loops that are not yours, such as Lightning's.

        Build a learning-rate scheduler after this call. Steps that a gradient scaler of the loop skips do not count.
        """
        training, optimizer = self.training, self.training.optimizer
        if training.guard is None:
            raise UserError(
                "this Sparsifier has let go of its optimiser, by release() or for another one: build it anew"
            )
        training.inner_step = training.inner_step or optimizer.step

        def step(_: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            with torch.enable_grad():
                loss = None if closure is None else closure()
            idle = loss is None and all(weight.grad is None for weight in training.maskset.weights.values())
            if closure is None or not idle:  # Lightning skips a batch whose loss is None
                self.step(clip_norm=clip_norm)
            return loss

        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
        # A fused optimiser would be left to divide by a scaler's scale itself, after the norm and the masks.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

    def release(self) -> None:
        """Let go of the optimiser: its steps are its own again, and nothing keeps the masks any longer."""
        let_go(self.training)

    def report(self) -> Report:
        """Return counts and densities of the layers, and FLOPs as shares of dense where an example was given."""
        self.settle_writes()
        training = self.training
        maskset, meter = training.maskset, training.meter
        counts = maskset.counts()
        layers = tuple(LayerReport(name, counts[name], weight.numel()) for name, weight in maskset.weights.items())
        trained = meter.train / meter.train_dense if self.counted and meter.train_dense else None
        training.settle_skips()
        inference = int(meter.forward) / meter.costs.dense if self.counted else None
        return Report(layers, inference, trained, training.skipped_steps)

    @torch.no_grad()
    def apply_masks(self, module: nn.Module) -> None:
        """Set the inactive weights of a copy of the network to zero, such as a moving average."""
        for name, mask in self.masks.items():
            zero_outside(mask, unwrap(module).get_parameter(name))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside those of network and optimiser, to go on to the same bits."""
        self.settle_writes()
        training = self.training
        training.settle_skips()
        return {
            "asked": self.asked(),
            **copy.deepcopy(training.sparse_state()),
            "counters": [training.step, training.skipped_steps, training.updates, int(training.update_pending)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load network and optimiser first, as they were saved beside it.

        Raises UserError, before anything is changed, for the state of another method, schedule or network.
        """
        mine, theirs = self.asked(), state.get("asked")
        if not isinstance(theirs, dict) or not state.keys() >= {"own", "counters"}:
            raise UserError("this is no state of a Sparsifier: give what state_dict() returned")
        for what, value in mine.items():
            if theirs.get(what) != value:
                was, now = differing(theirs.get(what), value)
                raise UserError(
                    f"the state is of another {what}: {was}, and here it is {now}; build the Sparsifier as it was "
                    "built then"
                )
        training, maskset = self.training, self.training.maskset
        with torch.no_grad():
            for name, value in state["own"]["learned"].items():
                training.method_state.learned[name].copy_(value)
        training.unseen_skips = None
        maskset.stored = self.stored
        training.load_sparse_state(state)
        training.step, training.skipped_steps, training.updates, pending = state["counters"]
        training.update_pending = bool(pending)
        maskset.load_effective()
        self.left = self.look()

    def look(self) -> tuple[list[int], Mapping[Tensor, Any]]:
        """Return what shows whether weights were written to, and the optimiser's state loaded."""
        training = self.training
        return versions_of(training.maskset.weights.values()), inner_state(training.optimizer)

    @torch.no_grad()
    def settle_writes(self) -> None:
        """Have the masks hold again where the owner has loaded weights, or the optimiser's state, since the last step.

        Raises UserError where the method keeps values of its own, which such a write does not reach.
        """
        (versions, state), maskset = self.look(), self.training.maskset
        if versions == self.left[0] and state is self.left[1]:
            return
        written = {name: weight.clone() for name, weight in maskset.weights.items()}
        maskset.load_effective()
        maskset.zero_state(self.training.optimizer)
        self.left = self.look()
        lost = [name for name, weight in maskset.weights.items() if not torch.equal(weight, written[name])]
        if maskset.stored is not None and lost:
            raise UserError(
                f"weights were written beside step(), such as {lost[0]}, and method '{self.plugin.name}' keeps values "
                "of them that this does not reach: load weights before the Sparsifier is built, or before its "
                "load_state_dict(); the network has the method's again"
            )

    def __reduce__(self) -> Any:
        raise UserError(
            "a Sparsifier belongs to its network and optimiser and is not copied: build another, and load state_dict()"
        )

    def asked(self) -> dict[str, Any]:
        """Return what a state must have been taken with, for this one to go on from it."""
        training = self.training
        return {
            "method": self.plugin.name,
            "sparsity": training.method.sparsity,
            "settings": dataclasses.asdict(training.method),
            "schedule": dataclasses.asdict(training.timeline),
            "seed": training.seed,
            "network": {name: list(weight.shape) for name, weight in training.maskset.weights.items()},
        }


def guard(training: UserTraining) -> None:
    """Have the optimiser refuse steps that are not the Sparsifier's; one on the same optimiser replaces an earlier."""

    def refuse(*_: Any) -> None:
        if not training.stepping:
            raise UserError(
                "the optimiser was about to step without the masks: call sparse.step() in place of optimizer.step(), "
                "or sparse.take_over() where the loop is not yours; sparse.release() lets go of the optimiser"
            )

    optimizer = training.optimizer
    earlier = GUARDED[optimizer]() if optimizer in GUARDED else None
    if earlier is not None:
        let_go(earlier)
    GUARDED[optimizer] = ref(training)
    # timm's Lookahead runs no hooks of its own, and has an optimiser step that does
    training.guard = getattr(optimizer, "_base_optimizer", optimizer).register_step_pre_hook(refuse)


def let_go(training: UserTraining) -> None:
    """Give the optimiser its own step back and take the guard from it, if it is still this training's."""
    if training.guard is None:
        return
    if training.inner_step is not None:
        training.optimizer.step = training.inner_step  # type: ignore[assignment, method-assign]
        training.inner_step = None
    training.guard.remove()
    training.guard = None
    GUARDED.pop(training.optimizer, None)


def unscale(scaler: GradScaler, optimizer: Optimizer) -> None:
    """Divide the gradients by the scaler's scale, unless the caller has done so."""
    done = scaler.is_enabled() and scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
    if not done:
        scaler.unscale_(optimizer)


def differing(one: Any, other: Any) -> tuple[str, str]:
    """Return two values as text; of two dicts the items alone in which they differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        one, other = ({key: of[key] for key in keys if key in of} for of in (one, other))
    return shorten(one), shorten(other)


def shorten(value: Any) -> str:
    """Return a value as text, not too long for a message."""
    return f"{value!r:.80}"
