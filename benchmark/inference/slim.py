"""The smaller network that a structured run leaves once its dead filters are removed: written, counted and timed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor, nn

import benchmark.networks.cifar  # noqa: F401 (registers the paper's CIFAR networks in timm)
from benchmark.base.errors import UserError, reason
from benchmark.base.files import Places, expand, refuse_links, run_folder
from benchmark.base.system import describe_environment
from benchmark.config.pages import Page, merge_settings
from benchmark.data.sets import load_data
from benchmark.inference.kernels import describe_times, in_best_mode, time_kernels
from benchmark.inference.latency import Request
from benchmark.inference.passes import Clock
from benchmark.inference.subject import Subject, load_subject
from benchmark.networks.build import model_arguments
from benchmark.networks.filters import Removal, count_network, describe_removal, shrink
from benchmark.networks.narrow import narrow_arguments
from benchmark.runs.export import read_tensors
from benchmark.runs.verify import reading_alone, stay_home
from leaderboard.store.files import write_atomically
from leaderboard.tables.sections import amount

COMPARED = 256  # test images on which outputs are compared, or as many as there are


def slim_run(
    name: str, target: Path | None, request: Request, folders: Mapping[str, Path | None], data: Path, console: Console
) -> None:
    """Write a run's network without its dead filters to `target` (default: `slim` in its folder) and print a summary.

    folders: records and runs, None for the default. Raises UserError for anything a user can fix: an unknown run, a run
    without files, a page whose images are not here, a network that cannot be traced.
    """
    places = Places(**{key: path for key, path in folders.items() if path is not None})
    subject = load_subject(name, places.records, places.runs)
    home = run_folder(places.runs, str(subject.record["run"]))
    folder = expand(target) if target else home / "slim"
    if target is None:
        refuse_links(folder, home)
    slim = slim_down(subject, take_images(subject, data))
    with request.use_threads():
        times = [time_batch(subject, slim.network, size, request) for size in request.batches]
    layout = write_slim(slim, subject, folder, times)
    console.print(f"{subject.record['run']}: {describe_removal(slim.removal)}", markup=False, highlight=False)
    if not slim.removal.removed:
        console.print(
            "every filter has an effect; METHOD=gmp_structured, pattern=filters, removes whole filters", style="yellow"
        )
    print_sizes(console, layout)
    print_times(console, layout, request)
    console.print(f"wrote {folder / WEIGHTS} and {folder / LAYOUT}", markup=False, highlight=False, soft_wrap=True)


def take_images(subject: Subject, root: Path) -> Tensor:
    """Return test images of the run's page, as the network sees them."""
    page = stay_home(page_of(subject))
    with reading_alone(page):
        data = load_data(page, root, torch.device("cpu"))
    if data.fingerprint != subject.record["data"]["fingerprint"]:
        raise UserError(
            f"the data in {root} are not those of run {subject.record['run']}, on whose test images outputs are "
            "compared: name the folder of data sets (DATA, or --data)"
        )
    images, _ = next(iter(data.test.batches(COMPARED, torch.device("cpu"))))
    return images


def time_batch(subject: Subject, smaller: torch.nn.Module, batch: int, request: Request) -> dict[str, Any]:
    """Return median and quartiles, in ms, of a forward pass of the full dense network and the smaller one.

    Each runs in its fastest mode; they are timed in turn, by the clock that is named.
    """
    clock = Clock(request.device, request.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *subject.images.shape, generator=generator).to(request.device)
    networks = {"dense": subject.dense, "slim": smaller}
    kernels = [in_best_mode(name, network, images, clock) for name, network in networks.items()]
    rounds, seconds = time_kernels(kernels, images, clock)
    found: dict[str, Any] = {k.name: {**describe_times(seconds[k.name]), "mode": str(k.mode)} for k in kernels}
    hardware = describe_environment(request.device, "fp32")["device_name"]
    about = {"hardware": hardware, "threads": request.threads, "clock": clock.name, "rounds": rounds}
    return {"batch": batch, **found, "speed_up": found["dense"]["ms"] / found["slim"]["ms"], **about}


def print_sizes(console: Console, layout: Mapping[str, Any]) -> None:
    """Print parameters and multiply-adds of the dense network, by the masks, and of the smaller network."""
    macs, parameters = layout["macs"], layout["parameters"]
    table = Table(box=None, pad_edge=False)
    for column in ("", "dense", "by its masks", "slim", "slim / dense"):
        table.add_column(column, justify="left" if not column else "right")
    share = f"{parameters['slim'] / parameters['dense']:.4f}"
    table.add_row("parameters", f"{parameters['dense']:,}", "", f"{parameters['slim']:,}", share)
    share = f"{macs['slim'] / macs['dense']:.4f}"
    table.add_row("multiply-adds", f"{macs['dense']:,}", f"{macs['masks']:,}", f"{macs['slim']:,}", share)
    console.print(table)
    outputs = layout["outputs"]
    console.print(
        f"outputs on {outputs['images']} test images differ by {outputs['relative_error']:.1e} of the largest",
        highlight=False,
    )


def print_times(console: Console, layout: Mapping[str, Any], request: Request) -> None:
    """Print the time of a forward pass of both networks at each batch size."""
    table = Table(box=None, pad_edge=False)
    for column in ("batch", "dense, ms", "slim, ms", "speed-up", "modes"):
        table.add_column(column, justify="left" if column == "modes" else "right")
    for row in layout["times"]:
        modes = " and ".join(dict.fromkeys((row["dense"]["mode"], row["slim"]["mode"])))
        figures = f"{row['dense']['ms']:.3g}", f"{row['slim']['ms']:.3g}", f"{row['speed_up']:.2f}x"
        table.add_row(str(row["batch"]), *figures, modes)
    console.print(table)
    first = layout["times"][0]
    threads = amount(request.threads, "thread")
    console.print(f"medians, {first['clock']}, {threads}, {first['hardware']}", highlight=False)


WEIGHTS, LAYOUT = "slim.safetensors", "slim.json"
FORMAT = 1


@dataclass(frozen=True)
class Slim:
    """A run's network without its dead filters: what was removed, its size and cost, and the error of its outputs.

    macs, parameters: of the dense network, by the masks (macs only), and of the smaller network ("slim").
    """

    network: nn.Module
    removal: Removal
    macs: dict[str, int]
    parameters: dict[str, int]
    images: int
    error: float


def slim_down(subject: Subject, images: Tensor) -> Slim:
    """Return the smaller network of a run, compared with the run's on these images.

    Raises UserError for a network that torch.fx cannot trace, and for outputs that differ by more than the tolerance.
    """
    try:
        smaller, removal, off = shrink(subject.network, images)
    except UserError as error:
        raise UserError(f"run {subject.record['run']}: {error}; nothing was written") from error
    page, shape = page_of(subject), subject.images.shape
    networks = {"dense": subject.dense, "slim": smaller}
    parameters = {name: sum(w.numel() for w in network.parameters()) for name, network in networks.items()}
    macs = {name: count_network(network, page, shape) for name, network in networks.items()}
    macs["masks"] = int(subject.record["macs"]["inference"])
    return Slim(smaller, removal, macs, parameters, len(images), off)


def page_of(subject: Subject) -> Page:
    """Return the page of the run's record."""
    return merge_settings(subject.record["page"]["settings"], f"record of {subject.record['run']}")


def backbone_arguments(subject: Subject) -> dict[str, Any]:
    """Return timm's arguments for the run's backbone, including its width if the run narrowed it."""
    page, settings = page_of(subject), subject.record["method"]["settings"]
    arguments = model_arguments(page, subject.images)
    return narrow_arguments(page.model, arguments, settings["width"]) if subject.is_narrow else arguments


def describe_widths(network: nn.Module) -> dict[str, dict[str, int | bool]]:
    """Return the widths of every layer and batch norm, by module name."""
    widths: dict[str, dict[str, int | bool]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            widths[name] = {"in": module.in_channels, "out": module.out_channels, "bias": module.bias is not None}
        elif isinstance(module, nn.Linear):
            widths[name] = {"in": module.in_features, "out": module.out_features, "bias": module.bias is not None}
        elif isinstance(module, nn.BatchNorm2d):
            widths[name] = {"out": module.num_features}
    return widths


def write_slim(slim: Slim, subject: Subject, folder: Path, times: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the smaller network to `folder` and read it back; return the content of the layout file.

    Raises UserError where the network that is read back differs.
    """
    model, arguments = page_of(subject).model, backbone_arguments(subject)
    usual, widths = describe_widths(timm.create_model(model, **arguments)), describe_widths(slim.network)
    layout = {
        "format": FORMAT,
        "run": subject.record["run"],
        "masks_sha256": subject.record["masks_sha256"],
        "model": model,
        "arguments": arguments,
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
        raise UserError(f"{folder}: the network that was read back is not the one that was written; do not use it")
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
    """Give layers and batch norms these widths, in place; their new parameters are placeholders."""
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
