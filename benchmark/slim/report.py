"""`sparse-bench slim`, from the run's name to the files: cut, compared on the page's test images, timed, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmark.data.sets import load_data
from benchmark.environment import describe_environment
from benchmark.errors import UserError
from benchmark.latency.engines import describe_times, in_best_mode, time_engines
from benchmark.latency.filters import describe_removal
from benchmark.latency.passes import Clock
from benchmark.latency.report import Request
from benchmark.latency.subject import Subject, load_subject
from benchmark.names import refuse_links, run_folder
from benchmark.places import Places
from benchmark.slim.cut import LAYOUT, WEIGHTS, page_of, slim_down, write_slim
from benchmark.verify import stay_home

COMPARED = 256  # test images on which outputs are compared, or as many as there are


def slim_run(
    name: str, target: Path | None, request: Request, folders: Mapping[str, Path | None], data: Path, console: Console
) -> None:
    """Write the really smaller network of a run to `target` (default: `slim` in the run's folder) and show what it is.

    `folders`: records and runs where they are not the usual ones. Raises UserError for anything a user can mend: an
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
