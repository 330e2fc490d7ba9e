"""The really smaller network of a structured run: cut, written, counted and timed."""

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
from benchmark.base.files import Places, refuse_links, run_folder
from benchmark.base.system import describe_environment
from benchmark.config.pages import Page, merge_settings
from benchmark.data.sets import load_data
from benchmark.inference.kernels import describe_times, in_best_mode, time_engines
from benchmark.inference.latency import Request
from benchmark.inference.passes import Clock
from benchmark.inference.subject import Subject, load_subject
from benchmark.networks.build import ImageFacts, model_arguments
from benchmark.networks.filters import Removal, count_network, describe_removal, shrink
from benchmark.networks.narrow import narrow_arguments
from benchmark.runs.export import read_tensors
from benchmark.runs.verify import stay_home
from leaderboard.store.files import write_atomically

COMPARED = 256  # test images on which outputs are compared, or as many as there are


def slim_run(
    name: str, target: Path | None, request: Request, folders: Mapping[str, Path | None], data: Path, console: Console
) -> None:
    """Write the really smaller network of a run to `target` (default: `slim` in the run's folder) and show what it is.

    `folders`: records and runs where they are not the usual ones. Raises UserError for anything a user can fix: an
    unknown run, one without files, a page whose images are not here, a network that cannot be followed.
    """
    places = Places(**{key: path for key, path in folders.items() if path is not None})
    subject = load_subject(name, places.records, places.runs)
    home = run_folder(places.runs, str(subject.record["run"]))
    folder = target or home / "slim"
    if target is None:
        refuse_links(folder, home)
    slim = slim_down(subject, take_images(subject, data))
    before = torch.get_num_threads()
    torch.set_num_threads(request.threads)
    try:
        times = [time_batch(subject, slim.network, size, request) for size in request.batches]
    finally:
        torch.set_num_threads(before)
    layout = write_slim(slim, subject, folder, times)
    console.print(f"{subject.record['run']}: {describe_removal(slim.removal)}", markup=False, highlight=False)
    if not slim.removal.removed:
        console.print(
            "every filter has an effect; METHOD=gmp_structured, pattern=filters, removes whole ones", style="yellow"
        )
    print_sizes(console, layout)
    print_times(console, layout, request)
    console.print(f"wrote {folder / WEIGHTS} and {folder / LAYOUT}", markup=False, highlight=False, soft_wrap=True)


def take_images(subject: Subject, root: Path) -> Tensor:
    """Return test images of the run's page, as it feeds them to a network."""
    data = load_data(stay_home(page_of(subject)), root, torch.device("cpu"))
    if data.fingerprint != subject.record["data"]["fingerprint"]:
        raise UserError(
            f"the data in {root} are not those of run {subject.record['run']}: outputs are compared on its own test "
            "images; name the folder with --data"
        )
    images, _ = next(iter(data.test.batches(COMPARED, torch.device("cpu"))))
    return images


def time_batch(subject: Subject, smaller: torch.nn.Module, batch: int, request: Request) -> dict[str, Any]:
    """Return the milliseconds of a forward pass of the full dense network and of the smaller one, in turn.

    Each in the mode of arithmetic and memory that is its fastest; medians and quartiles of processor time, or of
    another clock that is named.
    """
    clock = Clock(request.device, request.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *subject.images.shape, generator=generator).to(request.device)
    engines = [
        in_best_mode(name, network, images, clock) for name, network in (("dense", subject.dense), ("slim", smaller))
    ]
    rounds, seconds = time_engines(engines, images, clock)
    there = describe_environment(request.device, "fp32")
    found: dict[str, Any] = {engine.name: describe_times(seconds[engine.name]) for engine in engines}
    for engine in engines:
        found[engine.name]["mode"] = str(engine.mode)
    about = {"hardware": there["device_name"], "threads": request.threads, "clock": clock.name, "rounds": rounds}
    return {"batch": batch, **found, "speed_up": found["dense"]["ms"] / found["slim"]["ms"], **about}


def print_sizes(console: Console, layout: Mapping[str, Any]) -> None:
    """Print parameters and multiply-adds of the dense network, of its masks and of the smaller network."""
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
        f"outputs on {outputs['images']} test images: {outputs['relative_error']:.1e} of the largest apart",
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
    plural = "" if request.threads == 1 else "s"
    console.print(f"medians, {first['clock']}, {request.threads} thread{plural}, {first['hardware']}", highlight=False)


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
