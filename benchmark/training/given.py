"""What a Sparsifier is given, checked: network, optimiser, method, lengths, images and an example of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from benchmark.base.errors import UserError
from benchmark.base.system import keep_random_state
from benchmark.config.pages import Page
from benchmark.config.plugins import Plugin, find_method
from benchmark.data.loader import LoaderImages
from benchmark.networks.build import confirm
from benchmark.networks.costs import Costs, count_costs
from benchmark.networks.prunable import MOST, Layer, describe
from benchmark.networks.witness import find_last, recount
from benchmark.training.method_state import ask_rounds
from benchmark.training.rehearsal import rehearse
from methods.core import Inactive, Method, Timeline

# With masked gradients these keep weights and state that are zero at zero; others are masked again after each step.
KEEP_ZEROS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
KEEP_WEIGHTS = ("MADGRAD", "Lookahead")  # timm's whose state holds weights, which stored ones would contradict
START_ABOVE_ZERO = ("Rprop", "RMSpropTF")  # with a step size or a mean square, of each weight, that is not zero
WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel, ModelEmaV2, ModelEmaV3)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network itself, without DistributedDataParallel, torch.compile or an average around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def make_page(network: nn.Module, keep_dense: Sequence[str], prune_depthwise: bool) -> Page:
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
        prune_depthwise=prune_depthwise,
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


def refuse_optimizer(
    optimizer: Optimizer, weights: Mapping[str, nn.Parameter], method: Method, name: str, timeline: Timeline
) -> None:
    """Raise UserError unless the optimiser steps every prunable weight, by the gradients it finds.

    And where masks change in training, but its state of a weight does not begin at zero.
    """
    if type(optimizer).__name__ in START_ABOVE_ZERO and len(method.update_steps(timeline)):
        raise UserError(
            f"{type(optimizer).__name__} begins with a state of each weight that is not zero, and method '{name}' "
            "changes masks in training, where the state of a new weight is: use another optimiser, such as SGD or AdamW"
        )
    if method.inactive is Inactive.STORED and type(optimizer).__name__ in KEEP_WEIGHTS:
        raise UserError(
            f"method '{name}' keeps the values of inactive weights, and {type(optimizer).__name__} keeps weights in "
            "its state, which would contradict them: use another optimiser"
        )
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


def make_timeline(total_steps: int, steps_per_epoch: int | None) -> Timeline:
    """Return the length of the training; raises UserError for lengths that are none."""
    whole = all(isinstance(steps, Integral) for steps in (total_steps, steps_per_epoch or 1))
    if not whole or total_steps < 1 or not (steps_per_epoch is None or 1 <= steps_per_epoch <= total_steps):
        raise UserError(
            "total_steps must be a whole number of at least 1, and steps_per_epoch between 1 and that many: "
            f"got {total_steps} and {steps_per_epoch}"
        )
    return Timeline(int(total_steps), int(steps_per_epoch or total_steps))


def rehearse_alone(method: Method, name: str, timeline: Timeline, told: bool) -> None:
    """Rehearse the method; raises UserError as well where it asks how long an epoch is and nobody told.

    That comes first: under an epoch as long as the training a method may miss what it promises.
    """
    watched = WatchedTimeline(timeline.total_steps, timeline.steps_per_epoch)
    try:
        rehearse(method, name, watched, "a larger total_steps")
    except UserError:
        if told or not watched.asked:
            raise
    if watched.asked and not told:
        raise UserError(f"method '{name}' counts in epochs: say how many steps one has, steps_per_epoch=len(loader)")


@dataclass(frozen=True, eq=False, repr=False)
class WatchedTimeline(Timeline):
    """A timeline that tells whether a method asked how long an epoch is, by plan or at an update; equal to no other."""

    __eq__, __hash__, __repr__ = object.__eq__, object.__hash__, object.__repr__  # which ask for nothing

    @property
    def asked(self) -> bool:
        """Whether `steps_per_epoch` was read."""
        return "_asked" in vars(self)

    def __getattribute__(self, name: str) -> Any:
        if name == "steps_per_epoch":
            vars(self)["_asked"] = True
        return super().__getattribute__(name)


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
    if data is not None and not isinstance(data, Iterable):
        raise UserError(f"data must be a loader of batches (inputs, labels), got {type(data).__name__}")
    if data is None:
        what = "the shape of an input: give example=inputs" if flow else "batches: give data=loader"
        raise UserError(f"method '{name}' asks for {what}")
    asked = [part.batches for part in (wanted, method.moments()) if part is not None]
    with keep_random_state(torch.device("cpu")):  # in which a loader draws its order
        return LoaderImages(data, wanted, classes, max(asked))


def look_through(network: nn.Module, layers: list[Layer], example: Tensor | None) -> tuple[Costs, Layer]:
    """Return the multiply-adds of a forward pass, by two counts that agree, and the layer that gives the classes.

    Without an example the costs are all zero, and that layer is the one registered last.
    """
    if example is not None and not isinstance(example, Tensor):
        raise UserError(f"example must be a tensor, a batch of inputs, got {type(example).__name__}")
    if example is None:
        return Costs({layer.name: 0 for layer in layers if layer.prunable}, {}, 0, 0, {}, {}), layers[-1]
    shape, dtype = tuple(example.shape[1:]), None if example.is_floating_point() else example.dtype
    costs, seen = count_costs(network, layers, shape, dtype), recount(network, shape, dtype)
    confirm(costs, seen, whole=False)  # what nobody reads is in one total alone
    name = find_last(seen, [layer.name for layer in layers])
    return costs, next(layer for layer in layers if layer.name == name)


def tell_uncovered(network: nn.Module, layers: list[Layer]) -> list[str]:
    """Return what an owner may not expect to stay dense: frozen layers, and matrices outside layers, if there are many.

    The latter are of recurrent layers, embeddings and parameters of the network's own.
    """
    sizes = {name: weight.numel() for name, weight in network.named_parameters()}
    masked, total = {layer.name for layer in layers}, sum(sizes.values())
    matrices = [name for name, weight in network.named_parameters() if weight.dim() > 1 and name not in masked]
    others = {name: sizes[name] for name in matrices}
    frozen = {name: sizes[name] for name in sizes if name in masked and not network.get_parameter(name).requires_grad}
    told = [f"frozen layers are not pruned: {describe(frozen, total)}"] if frozen else []
    if sum(others.values()) > MOST * total:
        told.append(f"masks cover convolutions and linear layers alone, not {describe(others, total)}")
    return told


def waits_for(optimizer: Optimizer, weight: Tensor) -> bool:
    """Return whether a step must wait for the device to say that its gradients are finite.

    Asked at every step, as a loaded state may change what the optimiser's groups say. Dampening scales all gradients
    but the first: a first step that is not taken would count as one.
    """
    groups = optimizer.param_groups
    fused = type(optimizer) in KEEP_ZEROS and all(group.get("fused") and not group.get("dampening") for group in groups)
    return weight.device.type == "cpu" or not fused
