"""The really smaller network of a run: filters without an effect cut out, the same outputs, written to be rebuilt.

Cut is what `benchmark.latency.filters` finds: filters whose channel one layer alone reads. Channels of residual streams
keep their width, and so do depthwise and grouped convolutions. The smaller network is the page's backbone with other
widths, so two files hold it: its weights, and the width of every layer that has another one than the backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

import benchmark.networks.cifar  # noqa: F401 (registers the paper's CIFAR networks in timm)
from benchmark.build import ImageFacts, model_arguments
from benchmark.checkpoint import write_atomically
from benchmark.errors import UserError, reason
from benchmark.export import read_tensors
from benchmark.latency.filters import Removal
from benchmark.latency.subject import Subject
from benchmark.networks.narrow import narrow_arguments
from benchmark.pages import Page, merge_settings
from benchmark.slim.network import count_network, shrink

WEIGHTS, LAYOUT = "slim.safetensors", "slim.json"
FORMAT = 1
Widths = dict[str, dict[str, int | bool]]


@dataclass(frozen=True)
class Slim:
    """A run's network with fewer filters: what was removed, its size and cost, and how far its outputs are off.

    `macs` and `parameters` of one image and network: of the dense backbone, of its masks (macs alone), and really.
    """

    network: nn.Module
    removal: Removal
    macs: dict[str, int]
    parameters: dict[str, int]
    images: int
    error: float


def slim_down(subject: Subject, images: Tensor) -> Slim:
    """Return the smaller network of a run, compared with the run's on these images.

    Raises UserError for a network that torch.fx cannot follow, and where an output differs by more than the tolerance.
    """
    try:
        smaller, removal, off = shrink(subject.network, images)
    except UserError as error:
        raise UserError(f"run {subject.record['run']}: {error}; nothing was written") from error
    page, shape = page_of(subject), subject.images.shape
    dense, really = count_network(subject.dense, page, shape), count_network(smaller, page, shape)
    parameters = {"dense": count_parameters(subject.dense), "slim": count_parameters(smaller)}
    macs = {"dense": dense, "masks": int(subject.record["macs"]["inference"]), "slim": really}
    return Slim(smaller, removal, macs, parameters, len(images), off)


def page_of(subject: Subject) -> Page:
    """Return the page that the run's record holds."""
    return merge_settings(subject.record["page"]["settings"], f"record of {subject.record['run']}")


def count_parameters(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(weight.numel() for weight in network.parameters())


def backbone_arguments(subject: Subject, images: ImageFacts) -> dict[str, Any]:
    """Return what timm is asked for with the run's backbone: with its width where the run narrowed it."""
    page, settings = page_of(subject), subject.record["method"]["settings"]
    arguments = model_arguments(page, images)
    same = [w.shape for w in subject.network.parameters()] == [w.shape for w in subject.dense.parameters()]
    return arguments if same else narrow_arguments(page.model, arguments, settings["width"])


def describe_widths(network: nn.Module) -> Widths:
    """Return the widths of every layer and batch norm, by module name."""
    widths: Widths = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            widths[name] = {"in": module.in_channels, "out": module.out_channels, "bias": module.bias is not None}
        elif isinstance(module, nn.Linear):
            widths[name] = {"in": module.in_features, "out": module.out_features, "bias": module.bias is not None}
        elif isinstance(module, nn.BatchNorm2d):
            widths[name] = {"out": module.num_features}
    return widths


def write_slim(slim: Slim, subject: Subject, folder: Path, times: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the smaller network to `folder` and read it back; return what the layout's file says.

    Raises UserError where the network that is read back is another one.
    """
    backbone = timm.create_model(page_of(subject).model, **backbone_arguments(subject, subject.images))
    usual, widths = describe_widths(backbone), describe_widths(slim.network)
    layout = {
        "format": FORMAT,
        "run": subject.record["run"],
        "masks_sha256": subject.record["masks_sha256"],
        "model": page_of(subject).model,
        "arguments": backbone_arguments(subject, subject.images),
        "image": list(subject.images.shape),
        "widths": {name: width for name, width in widths.items() if width != usual[name]},
        "filters": {"of": slim.removal.filters, "removed": slim.removal.removed, **slim.removal.reasons},
        "parameters": slim.parameters,
        "macs": slim.macs,
        "outputs": {"images": slim.images, "relative_error": slim.error},
        "times": times,
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in slim.network.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state, metadata={"run": str(layout["run"])}))
    write_atomically(folder / LAYOUT, (json.dumps(layout, indent=1) + "\n").encode())
    again = load_slim(folder).state_dict()
    if again.keys() != state.keys() or any(not torch.equal(again[name], state[name]) for name in state):
        raise UserError(f"{folder}: the network that was written is not the one that is read back; it is invalid")
    return layout


def load_slim(folder: Path) -> nn.Module:
    """Return the network that `write_slim` wrote to `folder`, in evaluation mode.

    Raises UserError for files that are missing, damaged or of another format.
    """
    weights, _ = read_tensors(folder / WEIGHTS)
    try:
        layout = json.loads((folder / LAYOUT).read_text())
        if layout["format"] != FORMAT:
            raise UserError(f"{folder / LAYOUT} has format {layout['format']}, this version reads {FORMAT}")
        network: nn.Module = timm.create_model(layout["model"], pretrained=False, **layout["arguments"])
        resize(network, layout["widths"])
        network.load_state_dict(weights, strict=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: {LAYOUT} does not fit {WEIGHTS}: {reason(error)}; run sparse-bench slim again"
        ) from error
    return network.eval()


def resize(network: nn.Module, widths: Mapping[str, Mapping[str, Any]]) -> None:
    """Give layers and batch norms these widths, in place; their new parameters hold no numbers yet."""
    for name, width in widths.items():
        module = network.get_submodule(name)
        if isinstance(module, nn.BatchNorm2d):
            replacement: nn.Module = nn.BatchNorm2d(width["out"])
            module.num_features = width["out"]
        elif isinstance(module, nn.Conv2d):
            kernel, (ahead, across) = module.kernel_size, (width["in"], width["out"])
            replacement = nn.Conv2d(ahead, across, (kernel[0], kernel[1]), groups=module.groups, bias=width["bias"])
            module.in_channels, module.out_channels = ahead, across
        else:
            replacement = nn.Linear(width["in"], width["out"], bias=width["bias"])
            module.in_features, module.out_features = width["in"], width["out"]
        for part, tensor in [*replacement.named_parameters(), *replacement.named_buffers()]:
            setattr(module, part, tensor)
