"""Building what a cell trains: network, layers, costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import timm
import torch
from torch import nn

import benchmark.networks.cifar  # noqa: F401 (registers the paper's CIFAR networks in timm)
from benchmark.cells import Cell
from benchmark.costs import Costs, count_costs
from benchmark.data.sets import Data
from benchmark.errors import UserError, nearest
from benchmark.networks.narrow import find_width, narrow_arguments
from benchmark.networks.prunable import Layer, find_layers, prunable_weights
from benchmark.pages import Page
from benchmark.processes.ranks import count_ranks, smallest_share
from benchmark.processes.replicas import synchronise_norms
from benchmark.seeds import derive
from methods.core import count_kept

# Arguments of timm.create_model that name weights to load. Records of others are rebuilt too: none may open a file.
LOADED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}


@dataclass(frozen=True)
class Built:
    """A network with its layers and costs; `reference` and the dense counts are those of the full-width network."""

    model: nn.Module
    layers: list[Layer]
    costs: Costs
    reference: Costs
    dense_prunable: int
    dense_parameters: int
    width: float
    channels_last: bool


class ImageFacts(Protocol):
    """What a network must know of a data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def channels(self) -> int:
        """Of an image."""

    @property
    def image_size(self) -> int:
        """Height and width."""


def model_arguments(page: Page, data: ImageFacts) -> dict[str, Any]:
    """Return the arguments for timm.create_model: classes, channels, the image size where it is fixed, the page's."""
    arguments: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": data.channels}
    fixed = timm.get_pretrained_cfg(page.model, allow_unregistered=True)
    if fixed is not None and fixed.fixed_input_size:
        arguments["img_size"] = data.image_size
    return {**arguments, **page.model_args}


def create_network(page: Page, arguments: dict[str, Any]) -> nn.Module:
    """Return timm's network for the page; raises UserError for an unknown name or arguments it does not take."""
    if not timm.is_model(page.model.split(".")[0]):
        raise UserError(
            f"model '{page.model}' is not known to timm{nearest(page.model, timm.list_models())}; "
            "`python -c 'import timm; print(timm.list_models())'` lists them"
        )
    loaded = sorted(set(arguments) & LOADED)
    if loaded:
        raise UserError(
            f"model_args must not name {', '.join(loaded)}: weights are drawn by the seed, the same for every method, "
            "and no file or download is opened for them; leave it out"
        )
    try:
        model = timm.create_model(page.model, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"model '{page.model}' cannot be built with {arguments}: {error}") from error
    assert isinstance(model, nn.Module)
    return model


def draw_network(page: Page, arguments: dict[str, Any], seed: int) -> nn.Module:
    """Return the page's network with the initial weights of `seed`, its convolutions drawn as `conv_init` says."""
    torch.manual_seed(derive(seed, "weights"))
    model = create_network(page, arguments)
    if page.conv_init != "network":
        mode: Literal["fan_in", "fan_out"] = "fan_in" if page.conv_init == "fan_in" else "fan_out"
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
    return model


@torch.no_grad()
def check_network(model: nn.Module, page: Page, data: Data) -> None:
    """Raise UserError unless the network gives one score per class, also in training mode on the smallest batch."""
    alone = smallest_share(len(data.train), page.batch_size, page.drop_last)[0] == 1
    images = torch.zeros(1, data.channels, data.image_size, data.image_size)
    trial = copy.deepcopy(model)
    try:
        logits = trial.eval()(images)
        if alone:
            check_single(trial, images, page)
    except UserError:
        raise
    except Exception as error:  # a backbone may raise anything at all
        raise UserError(
            f"model '{page.model}' cannot take images of {tuple(images.shape[1:])}: {error}; "
            "try ARGS=image_size=32 or another model"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, len(data.classes)):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"model '{page.model}' must give scores of shape (1, {len(data.classes)}), it gives {shape}")


def check_single(model: nn.Module, images: torch.Tensor, page: Page) -> None:
    """Raise UserError when the network cannot train on the single image an epoch's last batch has."""
    try:
        model.train()(images)
    except ValueError as error:
        raise UserError(
            f"the last batch of an epoch has one image{' for a process' if count_ranks() > 1 else ''}, which this "
            f"backbone cannot train on ({error}): set drop_last=true, or a batch_size other than {page.batch_size}"
        ) from error


def count_prunable(page: Page) -> Callable[[nn.Module], int]:
    """Return a function that counts the weights the page prunes in a network."""
    return lambda model: sum(w.numel() for w in prunable_weights(model, find_layers(model, page)).values())


def build(cell: Cell, data: Data, device: torch.device) -> Built:
    """Build the cell's network with initial weights that depend on page and seed only, and count its costs.

    Weights are drawn on the CPU, so every device starts from the same ones. A method that narrows the network gets the
    widest network whose prunable weights are within its budget.
    """
    page = cell.page
    arguments = model_arguments(page, data)
    count = count_prunable(page)
    width = 1.0
    model = draw_network(page, arguments, cell.seed)
    check_network(model, page, data)
    shape = (data.channels, data.image_size, data.image_size)
    layers = find_layers(model, page)
    reference = costs = count_costs(model, layers, shape)
    dense_prunable, dense_parameters = count(model), sum(p.numel() for p in model.parameters())
    if cell.method.narrows_network:

        def narrowed(factor: float) -> nn.Module:
            return create_network(page, narrow_arguments(page.model, arguments, factor))

        width = find_width(narrowed, count, count_kept(cell.sparsity, dense_prunable))
        model = draw_network(page, narrow_arguments(page.model, arguments, width), cell.seed)
        layers = find_layers(model, page)
        costs = count_costs(model, layers, shape)
    model = synchronise_norms(model, page).to(device)
    channels_last = page.channels_last and not is_unsafe(model, device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Built(model, layers, costs, reference, dense_prunable, dense_parameters, width, channels_last)


def is_unsafe(model: nn.Module, device: torch.device) -> bool:
    """Return whether channels_last would fail (three-dimensional convolutions) or corrupt memory.

    On a CPU, torch's backward of a strided 1x1 convolution does:
    seen in torch 2.11 and 2.14 with fewer than 8 input channels, as narrowed residual networks have; 16 is the margin.
    """
    if any(isinstance(module, nn.Conv3d) for module in model.modules()):
        return True
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    strided = [conv for conv in convolutions if set(conv.kernel_size) == {1} and max(conv.stride) > 1]
    return device.type == "cpu" and any(conv.in_channels < 16 for conv in strided)
