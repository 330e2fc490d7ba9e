"""The methods in anybody's training loop: masks, gradients and optimiser of one's own network."""

from __future__ import annotations

import dataclasses
import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from benchmark.base.errors import UserError
from benchmark.config.pages import Page
from benchmark.config.plugins import Plugin, find_method
from benchmark.data.images import Samples
from benchmark.data.loader import LoaderImages
from benchmark.networks.costs import Costs, Meter, count_costs
from benchmark.networks.prunable import Layer, find_layers, prunable_weights
from benchmark.networks.witness import find_last, recount
from benchmark.training.masks import MaskSet
from benchmark.training.method_state import MethodState, ask_rounds
from benchmark.training.rehearsal import rehearse
from benchmark.training.report import LayerReport, Report
from benchmark.training.setup import begin_masks
from benchmark.training.sparse import SparseTraining
from benchmark.training.step import make_up, step_under_masks
from benchmark.training.stored import zero_outside
from methods.core import Method, Timeline

# With masked gradients these keep weights and state that are zero at zero; others are masked again after each step.
KEEP_ZEROS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
GUARDS: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()  # of optimisers that a Sparsifier steps

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel, ModelEmaV2, ModelEmaV3)


@dataclass(kw_only=True)
class UserTraining(SparseTraining):
    """A network in its owner's loop."""

    samples: LoaderImages | None
    scaler: GradScaler | None = None  # of the step in progress
    inner_step: Callable[[], Any] | None = None  # the optimiser's own, where its step() was taken over
    stepping: bool = False  # the optimiser steps for the Sparsifier, not by itself

    def scored(self) -> tuple[Samples, int]:
        assert self.samples is not None, "a method that asks for images was given a loader"
        return self.samples, self.samples.batch_size

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The network's parameters, and what else the optimiser steps, such as those of a loss."""
        stepped = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        learned = {id(parameter) for parameter in self.method_state.learned.values()}
        every = {id(parameter): parameter for parameter in (*self.model.parameters(), *stepped)}
        return [parameter for own, parameter in every.items() if own not in learned]

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
    seed: of what the method draws. example: a batch of inputs as a step sees it, to count FLOPs by, and to see which
    layer gives the classes; without it that is the layer registered last. settings: of the method, by name.

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
        seed: int = 0,
        example: Tensor | None = None,
        **settings: Any,
    ) -> None:
        network = unwrap(model)
        page = make_page(network, keep_dense)
        plugin, chosen = choose_method(page, method, sparsity, settings)
        layers = find_layers(network, page)
        weights = prunable_weights(network, layers)
        refuse_optimizer(optimizer, weights)
        timeline = make_timeline(chosen, plugin.name, total_steps, steps_per_epoch)
        refuse_more_than_a_loop(chosen, plugin.name, timeline)
        rehearse(chosen, plugin.name, timeline, "a larger total_steps")
        costs = count(network, layers, example)
        last = find_classifier(network, layers, example)
        classes = network.get_parameter(last.name).shape[int(last.transposed)]
        samples = take_samples(chosen, plugin.name, data, classes, example)
        meter = Meter(costs, costs)
        maskset = MaskSet(weights, last.name)
        maskset.listeners.append(meter.on_commit)
        self.plugin, self.counted = plugin, example is not None
        self.batch_size = 1 if example is None else len(example)
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
            waits=waits_for(optimizer, next(iter(weights.values()))),
        )
        begin_masks(self.training, None, lambda remark: warnings.warn(reword(remark), stacklevel=5))
        guard(self.training)  # last: where anything before is refused, the optimiser stays free
        self.stored = maskset.stored  # which a method may drop at its end, and a state of before brings back

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
        due = training.step in self.update_steps or training.update_pending
        charged = training.price_step(due)
        waits, training.waits = training.waits, training.waits or scaler is not None
        finite = torch.zeros((), device=next(iter(weights.values())).device)
        step_under_masks(training, due, finite, clip_norm)
        make_up(training)
        training.waits = waits
        training.optimizer.zero_grad(set_to_none=True)
        training.meter.step(self.batch_size, *charged)

    def take_over(self, clip_norm: float = 0.0) -> None:
        """Have the optimiser's own `step()` do what `step` does, for loops that are not yours, such as Lightning's.

        Build a learning-rate scheduler after this call. Steps that a gradient scaler of the loop skips do not count.
        """
        training, optimizer = self.training, self.training.optimizer
        training.inner_step = training.inner_step or optimizer.step

        def step(_: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            with torch.enable_grad():
                loss = None if closure is None else closure()
            self.step(clip_norm=clip_norm)
            return loss

        optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
        # A fused optimiser would be left to divide by a scaler's scale itself, after the norm and the masks.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

    def release(self) -> None:
        """Let go of the optimiser: its steps are its own again, and nothing keeps the masks any longer."""
        optimizer = self.training.optimizer
        if self.training.inner_step is not None:
            vars(optimizer).pop("step", None)
        GUARDS.pop(optimizer).remove()

    def report(self) -> Report:
        """Return counts and densities of the layers, and FLOPs as shares of dense where an example was given."""
        training = self.training
        maskset, meter = training.maskset, training.meter
        counts = maskset.counts()
        layers = tuple(LayerReport(name, counts[name], weight.numel()) for name, weight in maskset.weights.items())
        trained = meter.train / meter.train_dense if self.counted and meter.train_dense else None
        return Report(layers, int(meter.forward) / meter.costs.dense if self.counted else None, trained)

    @torch.no_grad()
    def apply_masks(self, module: nn.Module) -> None:
        """Set the inactive weights of a copy of the network to zero, such as a moving average."""
        for name, mask in self.masks.items():
            zero_outside(mask, unwrap(module).get_parameter(name))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside those of network and optimiser, to go on to the same bits."""
        training = self.training
        training.settle_skips()
        return {
            "asked": self.asked(),
            **training.sparse_state(),
            "counters": [training.step, training.skipped_steps, training.updates, int(training.update_pending)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; load network and optimiser first, as they were saved beside it.

        Raises UserError, before anything is changed, for the state of another method, schedule or network.
        """
        mine, theirs = self.asked(), state.get("asked")
        if not isinstance(theirs, dict):
            raise UserError("this is no state of a Sparsifier: give what state_dict() returned")
        for what, value in mine.items():
            if theirs.get(what) != value:
                raise UserError(f"the state is of another {what}: {shorten(theirs.get(what))}, and here it is "
                                f"{shorten(value)}; build the Sparsifier as it was built then")  # fmt: skip
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
    if optimizer in GUARDS:
        GUARDS.pop(optimizer).remove()
    GUARDS[optimizer] = optimizer.register_step_pre_hook(refuse)


def unscale(scaler: GradScaler, optimizer: Optimizer) -> None:
    """Divide the gradients by the scaler's scale, unless the caller has done so."""
    done = scaler.is_enabled() and scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
    if not done:
        scaler.unscale_(optimizer)


def shorten(value: Any) -> str:
    """Return a value as text, not too long for a message."""
    return f"{value!r:.80}"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network itself, without DistributedDataParallel, torch.compile or an average around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def make_page(network: nn.Module, keep_dense: Sequence[str]) -> Page:
    """Return a page that says which layers of a network are pruned; the rest of it is not used."""
    if isinstance(keep_dense, str):
        raise UserError(f"keep_dense must be a list of patterns, got the text '{keep_dense}': write ['{keep_dense}']")
    name = type(network).__name__
    return Page(
        title=name,
        data="folder",
        model=name,
        epochs=1,
        lr=0.0,
        update_every=1,
        mean=[],
        std=[],
        keep_dense=list(keep_dense),
    )


def choose_method(
    page: Page, method: str | Path | Method, sparsity: float | None, settings: dict[str, Any]
) -> tuple[Plugin, Method]:
    """Return the method asked for, with its defaults where there is no page; raises UserError for bad settings."""
    if isinstance(method, Method):
        if settings or sparsity not in (None, method.sparsity) or not 0 <= method.sparsity < 1:
            raise UserError("a Method holds its sparsity and settings: give them to it, and not to the Sparsifier")
        name = type(method).__name__
        return Plugin(name, type(method), name, ""), method
    if not isinstance(method, str | Path):
        raise UserError(
            f"method must be a name, the path of a method file, or a Method with its settings: got {method!r}"
        )
    plugin = find_method(str(method))
    if not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise UserError(f"sparsity must be in [0, 1), the share of weights that is zero at the end; got {sparsity!r}")
    defaults = {
        f.name: f.default
        for f in dataclasses.fields(plugin.cls)
        if f.metadata.get("from_page") and f.default is not dataclasses.MISSING
    }
    return plugin, plugin.build(page, float(sparsity), {**defaults, **settings})


def refuse_optimizer(optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
    """Raise UserError unless the optimiser steps every prunable weight, by the gradients it finds."""
    if isinstance(optimizer, torch.optim.LBFGS) or getattr(optimizer, "is_second_order", False):
        raise UserError(
            f"{type(optimizer).__name__} needs more than the gradients of one backward pass, so its steps cannot be "
            "masked: use another optimiser"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, weight in weights.items() if id(weight) not in held]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"the optimiser does not hold {', '.join(missing[:3])}{more}: build it over model.parameters() of this "
            "network, after moving it to its device, or exempt weights with keep_dense=[...]"
        )
    sharded = [name for name, weight in weights.items() if type(weight.data) is not Tensor]
    if sharded:
        raise UserError(f"{sharded[0]} is a {type(weights[sharded[0]].data).__name__}: sharded weights are not masked")


def make_timeline(method: Method, name: str, total_steps: int, steps_per_epoch: int | None) -> Timeline:
    """Return the length of the training; raises UserError where the method counts in epochs and is told none."""
    whole = all(isinstance(steps, Integral) for steps in (total_steps, steps_per_epoch or 1))
    if not whole or total_steps < 1 or not (steps_per_epoch is None or 1 <= steps_per_epoch <= total_steps):
        raise UserError(
            "total_steps must be a whole number of at least 1, and steps_per_epoch between 1 and that many: "
            f"got {total_steps} and {steps_per_epoch}"
        )
    if steps_per_epoch is None:
        plans = [
            [*method.update_steps(timeline), *(method.planned_sparsity(step, timeline) for step in (0, total_steps))]
            for timeline in (Timeline(total_steps, total_steps), Timeline(total_steps, max(1, total_steps // 2)))
        ]
        if plans[0] != plans[1]:
            raise UserError(
                f"method '{name}' counts in epochs: say how many steps one has, steps_per_epoch=len(loader)"
            )
    return Timeline(int(total_steps), int(steps_per_epoch or total_steps))


def refuse_more_than_a_loop(method: Method, name: str, timeline: Timeline) -> None:
    """Raise UserError for a method that needs more than a loop: repeated training, another network, another run."""
    rounds = ask_rounds(method, name, max(2, timeline.total_steps // timeline.steps_per_epoch)).count
    needs = {
        f"repeats the training {rounds} times": rounds > 1,
        "builds a narrower network": method.narrows_network,
        "is made from another run": method.donor() is not None,
    }
    for what, needed in needs.items():
        if needed:
            raise UserError(f"method '{name}' {what}, which no loop around it can do: use sparse-bench run")


def take_samples(
    method: Method, name: str, data: Iterable[Any] | None, classes: int, example: Tensor | None
) -> LoaderImages | None:
    """Return the images that the method asks for; raises UserError where it does and none are given."""
    wanted = method.scoring()
    if wanted is None and method.moments() is None:
        return None
    flow = wanted is not None and wanted.flow
    if flow and example is not None:  # whose shape is all that it takes
        data = [(example[:1], torch.zeros(1, dtype=torch.int64))]
    if data is None:
        what = "the shape of an input: give example=inputs" if flow else "batches: give data=loader"
        raise UserError(f"method '{name}' asks for {what}")
    return LoaderImages(data, wanted, classes)


def count(network: nn.Module, layers: list[Layer], example: Tensor | None) -> Costs:
    """Return the multiply-adds of a forward pass, by fvcore; all zero without an example."""
    if example is not None:
        return count_costs(network, layers, tuple(example.shape[1:]))
    return Costs({layer.name: 0 for layer in layers if layer.prunable}, {}, 0, 0, {}, {})


def find_classifier(network: nn.Module, layers: list[Layer], example: Tensor | None) -> Layer:
    """Return the layer whose outputs are the classes: seen in a pass, or, without an example, registered last."""
    if example is None:
        return layers[-1]
    name = find_last(recount(network, tuple(example.shape[1:])), [layer.name for layer in layers])
    return next(layer for layer in layers if layer.name == name)


def waits_for(optimizer: Optimizer, weight: Tensor) -> bool:
    """Return whether a step must wait for the device to say that its gradients are finite."""
    fused = type(optimizer) in KEEP_ZEROS and all(group.get("fused") for group in optimizer.param_groups)
    return weight.device.type == "cpu" or not fused
