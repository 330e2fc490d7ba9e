"""Building what a cell trains: network, layers, costs."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

import benchmark.networks.cifar  # noqa: F401 (registers the paper's CIFAR networks in timm)
from benchmark.base.errors import UserError, nearest, reason
from benchmark.base.seeds import derive
from benchmark.config.cells import Cell
from benchmark.config.pages import Page
from benchmark.data.sets import Data
from benchmark.distributed.ranks import count_ranks, smallest_share
from benchmark.networks.costs import Costs, count_costs
from benchmark.networks.narrow import find_width, narrow_arguments
from benchmark.networks.prunable import Layer, find_layers, prunable_weights, tell_unmasked
from benchmark.networks.start import load_start
from benchmark.networks.witness import Witness, find_last, recount, watch
from methods.core import count_kept

# Arguments of timm.create_model that load weights. Networks of foreign records are rebuilt too: none may open a file.
LOADED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}


@dataclass(frozen=True)
class Built:
    """A network with its layers and costs; `reference` and the dense counts are those of the full-width network.

    remarks: what the user should know about the network before training. start_sha256: of the weights that the page
    starts from, see `load_start`; empty where the seed draws them. last: the layer whose outputs are the classes; by
    default the one that is registered last.
    """

    model: nn.Module
    layers: list[Layer]
    costs: Costs
    reference: Costs
    dense_prunable: int
    dense_parameters: int
    width: float
    channels_last: bool = False
    remarks: tuple[str, ...] = ()
    start_sha256: str = ""
    last: str = ""

    def __post_init__(self) -> None:
        if not self.last:
            object.__setattr__(self, "last", self.layers[-1].name)


class ImageFacts(Protocol):
    """What a network needs to know of a data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def channels(self) -> int:
        """Channels of an image."""

    @property
    def image_size(self) -> int:
        """Height and width."""


def model_arguments(page: Page, data: ImageFacts) -> dict[str, Any]:
    """Return the arguments for timm.create_model: classes, channels, the image size where it is fixed, the page's.

    Raises UserError for a backbone that timm does not know.
    """
    check_name(page.model)
    arguments: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": data.channels}
    known = timm.get_pretrained_cfg(page.model, allow_unregistered=True)
    if known is not None and known.fixed_input_size:
        arguments["img_size"] = data.image_size
    return {**arguments, **page.model_args}


def check_name(name: str) -> None:
    """Raise UserError unless timm has a model `name`, or `name.tag` with a tag of its weights."""
    family, dot, tag = name.partition(".")
    if not timm.is_model(family):
        raise UserError(
            f"model '{name}' is not known to timm{nearest(name, timm.list_models())}; "
            "`python -c 'import timm; print(timm.list_models())'` lists them"
        )
    tags = [full.partition(".")[2] for full in timm.list_models(f"{family}.*", pretrained=True)]
    if dot and tag not in tags:
        known = f"timm's tags of it are {', '.join(tags)}" if tags else "it has none"
        raise UserError(
            f"model '{name}': '{tag}' is not a tag of {family}{nearest(tag, tags)}; {known}. A tag names pretrained "
            f"weights, which pretrained=true loads; without it model={family} is the same network"
        )


def create_network(page: Page, arguments: dict[str, Any]) -> nn.Module:
    """Return timm's network for the page; raises UserError for an unknown name or arguments it does not take."""
    check_name(page.model)
    loaded = sorted(set(arguments) & LOADED)
    if loaded:
        raise UserError(
            f"model_args must not name {', '.join(loaded)}: initial weights are those of the seed, or those that "
            "init=FILE or pretrained=true name, the same for every method; leave it out"
        )
    try:
        model = timm.create_model(page.model, pretrained=False, **arguments)
    except Exception as error:  # a backbone may raise anything
        raise UserError(f"model '{page.model}' cannot be built with {arguments}: {reason(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def draw_network(page: Page, arguments: dict[str, Any], seed: int) -> nn.Module:
    """Return the page's network with the initial weights of `seed`; `conv_init` says how convolutions are drawn."""
    torch.manual_seed(derive(seed, "weights"))
    model = create_network(page, arguments)
    if page.conv_init != "network":
        mode: Literal["fan_in", "fan_out"] = "fan_in" if page.conv_init == "fan_in" else "fan_out"
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
    return model


def make_network(page: Page, data: Data, seed: int = 0) -> tuple[nn.Module, Witness]:
    """Return the page's network with the initial weights of `seed`, and the count of a pass; see `check_network`.

    Raises UserError as `check_network` and `draw_network` do, suggesting an image size that works where size is to
    blame.
    """
    arguments = model_arguments(page, data)
    try:
        model = draw_network(page, arguments, seed)
    except UserError as error:
        sized = "img_size" in arguments and "img_size" not in page.model_args
        if not sized or not (way_out := offer_size(page, data)):
            raise
        raise UserError(f"{error}; {way_out}") from error
    return model, check_network(model, page, data)


def check_network(model: nn.Module, page: Page, data: Data) -> Witness:
    """Return the count of a pass in evaluation mode.

    Raises UserError unless the network gives one score per class and can train on the smallest batch of an epoch.
    """
    alone = smallest_share(len(data.train), page.batch_size, page.drop_last)[0] // page.accumulate <= 1
    images = torch.zeros(1, data.channels, data.image_size, data.image_size)
    trial = copy.deepcopy(model)
    try:
        logits, seen = watch(trial.eval(), images)
        if alone:
            check_single(trial, images, page)
    except UserError:
        raise
    except Exception as error:  # a backbone may raise anything
        raise UserError(
            f"model '{page.model}' cannot take images of {tuple(images.shape[1:])}: {reason(error)}; "
            f"{offer_size(page, data) or 'choose another model'}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, len(data.classes)):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"model '{page.model}' must return scores of shape (1, {len(data.classes)}), got {shape}")
    return seen


@torch.no_grad()
def check_single(model: nn.Module, images: torch.Tensor, page: Page) -> None:
    """Raise UserError when the network cannot train on a batch of one image, as an epoch's last batch may be."""
    try:
        model.train()(images)
    except ValueError as error:
        raise UserError(
            f"the last batch of an epoch has one image{' per process' if count_ranks() > 1 else ''}, which this "
            f"backbone cannot train on ({reason(error)}): set drop_last=true, or a batch_size other than "
            f"{page.batch_size}"
        ) from error


def offer_size(page: Page, data: Data) -> str:
    """Suggest the image size of timm's weights where the network takes it; otherwise return an empty string."""
    known = timm.get_pretrained_cfg(page.model, allow_unregistered=True)
    size = known.input_size[-1] if known is not None else 32
    works = size != data.image_size and takes_size(page, data, size)
    return f"it takes images of {size}x{size}: try ARGS=image_size={size}" if works else ""


@torch.no_grad()
def takes_size(page: Page, data: Data, size: int) -> bool:
    """Return whether the network can be built for images of this size and run on one; keeps the random state."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = create_network(page, model_arguments(page, dataclasses.replace(data, image_size=size))).eval()
            model(torch.zeros(1, data.channels, size, size))
        except Exception:  # a backbone may raise anything
            return False
    return True


def count_prunable(model: nn.Module, page: Page) -> int:
    """Return the number of weights that the page prunes in a network."""
    return sum(w.numel() for w in prunable_weights(model, find_layers(model, page)).values())


def fit_width(page: Page, data: ImageFacts, budget: int) -> tuple[float, dict[str, Any]]:
    """Return the width whose prunable weights come closest to `budget` without exceeding it, and its arguments.

    Raises UserError where the backbone cannot be narrowed (that far).
    """
    arguments = model_arguments(page, data)

    def narrow(width: float) -> dict[str, Any]:
        return narrow_arguments(page.model, arguments, width)

    width = find_width(lambda w: create_network(page, narrow(w)), lambda model: count_prunable(model, page), budget)
    return width, narrow(width)


def build(cell: Cell, data: Data) -> Built:
    """Build the cell's network on the CPU and count its costs.

    Initial weights depend on page and seed alone; `place` moves them to the run's device, so every device starts from
    the same ones. A method that narrows the network gets the widest one whose prunable weights fit its budget. Raises
    UserError as `make_network` and `load_start` do.
    """
    page, width = cell.page, 1.0
    shape = (data.channels, data.image_size, data.image_size)
    if cell.method.narrows_network and (page.init or page.pretrained):
        raise UserError(
            f"method '{cell.plugin.name}' trains a narrower network, which weights of the full one do not fit: leave "
            f"{'init' if page.init else 'pretrained'} out, or choose another method"
        )
    model, seen = make_network(page, data, cell.seed)
    started = load_start(model, page, model_arguments(page, data))
    layers = find_layers(model, page)
    refuse_transposed(cell.plugin.name, cell.method_settings(), layers)
    reference = costs = count_costs(model, layers, shape)
    confirm(costs, seen)
    remarks = tell_unmasked(model, layers, seen.factors, page)
    sizes = count_prunable(model, page), sum(p.numel() for p in model.parameters())
    if cell.method.narrows_network:
        width, arguments = fit_width(page, data, count_kept(cell.sparsity, sizes[0]))
        model = draw_network(page, arguments, cell.seed)
        layers = find_layers(model, page)
        costs = count_costs(model, layers, shape)
        seen = recount(model, shape)
        confirm(costs, seen)
    last = find_last(seen, [layer.name for layer in layers])
    return Built(
        model, layers, costs, reference, *sizes, width, remarks=tuple(remarks), start_sha256=started, last=last
    )


def place(built: Built, page: Page, device: torch.device) -> Built:
    """Return a network as it is trained: on its device, in the page's memory format, norms synchronised over ranks."""
    model = synchronise_norms(built.model, page).to(device)
    channels_last = page.channels_last and not is_unsafe(model, device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return dataclasses.replace(built, model=model, channels_last=channels_last)


def refuse_transposed(name: str, settings: Mapping[str, Any], layers: list[Layer]) -> None:
    """Raise UserError for a method that prunes by rows where the rows of a prunable weight are inputs, not filters."""
    rows = {"pattern": settings.get("pattern", "none"), "shuffle": settings.get("shuffle", "none")}
    chosen = [f"{key}={value}" for key, value in rows.items() if value not in ("none", "layers")]
    names = [layer.name for layer in layers if layer.prunable and layer.transposed]
    if chosen and names:
        raise UserError(
            f"method '{name}': {', '.join(chosen)} treats the rows of a weight as filters, and those of "
            f"a transposed convolution are its inputs ({', '.join(names)}): keep these layers dense with "
            f"ARGS=keep_dense=[{','.join(names)}], or leave {chosen[0].partition('=')[0]} out"
        )


def confirm(costs: Costs, seen: Witness, whole: bool = True) -> None:
    """Raise UserError unless both counts of the network agree: in every conv and linear layer and, `whole`, in all."""
    differing = [name for name, macs in costs.layers.items() if seen.weights[name] != macs]
    if differing or (whole and costs.dense != seen.total):
        where = f", in {', '.join(differing[:3])}" if differing else ""
        raise UserError(
            f"the cost of this backbone cannot be counted: its layers and operators take {costs.dense:,} multiply-adds "
            f"for one image, a second count finds {seen.total:,}{where}; a weight that is also used outside its layer "
            "causes this, or a compiled part; choose another backbone"
        )


def is_unsafe(model: nn.Module, device: torch.device) -> bool:
    """Return whether channels_last would fail (three-dimensional convolutions) or corrupt memory.

    On a CPU, torch's backward of a strided 1x1 convolution does: seen in torch 2.11 and 2.14 with fewer than 8 input
    channels, as narrowed residual networks have; 16 leaves a margin.
    """
    if any(isinstance(module, nn.Conv3d | nn.ConvTranspose3d) for module in model.modules()):
        return True
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    strided = [conv for conv in convolutions if set(conv.kernel_size) == {1} and max(conv.stride) > 1]
    return device.type == "cpu" and any(conv.in_channels < 16 for conv in strided)


def synchronise_norms(model: nn.Module, page: Page) -> nn.Module:
    """Return the network with batch norms that normalise over all ranks' images, where the page asks for that.

    By timm, which keeps the activations inside its batch norms. Parameters and their names stay.
    """
    converted: nn.Module = convert_sync_batchnorm(model) if page.sync_batchnorm else model
    return converted
