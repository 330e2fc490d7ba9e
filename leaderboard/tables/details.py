"""What the main table has no room for: details of each row, and measured speed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from leaderboard.store.measurements import Measurement
from leaderboard.store.schema import Record
from leaderboard.tables.table import (
    BLANK,
    Cell,
    Row,
    column_of,
    count_zeros,
    duration,
    escape,
    line,
    link,
    mean,
    mean_and_std,
    multiple,
    percent,
)

DETAILS = [
    "method",
    "sparsity",
    "seeds",
    "last epoch, %",
    "selected on validation, %",
    "best on test, % (not for comparison: chosen on the test set)",
    "density, prunable weights",
    "density, all parameters",
    "inference FLOPs",
    "training FLOPs",
    "training time",
    "images/s",
    "notes",
    "records",
]


def details_table(rows: list[Row], folder: str) -> list[str]:
    """Return the lines of the details: a row for each method and sparsity; links to records lead into `folder`."""
    lines = [line(DETAILS), line(["---"] * len(DETAILS))]
    devices = {
        record["environment"]["device"] for row in rows for cell in row.cells.values() for record in cell.counted
    }
    for row in rows:
        for sparsity, cell in row.cells.items():
            lines.append(line([row.label, percent(sparsity), *detail_cells(cell, folder, len(devices) > 1)]))
    return lines


def detail_cells(cell: Cell, folder: str, name_devices: bool) -> list[str]:
    """Return the details of one method at one sparsity, from `seeds` on."""
    runs = cell.finished
    shown = [", ".join(str(record["seed"]) for record in cell.counted)]
    for key in ("last_epoch", "validation_selected", "best_on_test"):
        shown.append(mean_and_std(record["accuracy_pct"][key] for record in runs))
    for key in ("prunable", "all_parameters"):
        shown.append(mean((record["density"][key] for record in runs), "{:.4g}".format))
    slim = slim_cost(runs)
    shown.append(f"{cell.cost('inference', absolute=True)}{f', {slim}' if slim else ''}")
    shown.append(cell.cost("train", absolute=True))
    shown.append(by_device(runs, "train_s", duration, name_devices))
    shown.append(by_device(runs, "images_per_s", "{:,.0f}".format, name_devices))
    shown.append("; ".join(notes(cell)) or BLANK)
    links = [link(record, folder, "seed") for record in cell.counted]
    shown.append(", ".join(links + [link(record, folder, "repeat of seed") for record in cell.repeats]))
    return shown


def slim_cost(runs: list[Record]) -> str:
    """Return `slim 0.25×`: the mean cost of one image without the removed filters and the inputs that they free.

    A multiple of the dense network's; empty where no run has it, and with `(n=2)` where not every run does.
    """
    macs = [run["macs"] for run in runs if "inference_slim" in run["macs"]]
    if not macs:
        return ""
    shown = mean((costs["inference_slim"] / costs["inference_dense"] for costs in macs), multiple)
    return f"slim {shown}{f' (n={len(macs)})' if len(macs) < len(runs) else ''}"


def by_device(runs: list[Record], key: str, show: Callable[[float], str], name_devices: bool) -> str:
    """Return the mean of time[key] for each device: times of different devices have no common mean."""
    times: dict[str, list[float]] = {}
    for run in runs:
        times.setdefault(run["environment"]["device"], []).append(run["time"][key])
    named = {device: f"{escape(device)}: " if name_devices else "" for device in sorted(times)}
    return "; ".join(f"{name}{mean(times[device], show)}" for device, name in named.items()) or BLANK


def notes(cell: Cell) -> list[str]:
    """Return what a reader must know: diverged seeds, repeats, empty layers, skipped steps, zeros, uncommitted code."""
    seeds: dict[str, list[str]] = {}
    for record in cell.counted:
        empty, skipped = [escape(name) for name in record["empty_layers"]], record["skipped_steps"]
        zero, reached = count_zeros(record), record["density"].get("reached", record["density"]["prunable"])
        found = {
            "diverged": record["status"] != "ok",
            f"empty layers: {', '.join(empty)}": empty,
            f"skipped steps: {skipped}": skipped,
            f"active weights that are zero: {zero:,}": zero,
            f"density before its masks were fixed: {reached:.4g}": reached != record["density"]["prunable"],
            f"asked for {percent(record['sparsity'])}": column_of(record) != record["sparsity"],
            "uncommitted code": record["git"]["dirty"],
        }
        for note in (note for note, holds in found.items() if holds):
            seeds.setdefault(note, []).append(str(record["seed"]))
    repeats = [f"repeats: {len(cell.repeats)}"] if cell.repeats else []
    return repeats + [f"{note} (seed {', '.join(which)})" for note, which in seeds.items()]


ABOUT = (
    "Measured speed: a forward pass in PyTorch, as a multiple of the speed of the full dense network in its best dense "
    "mode on that machine (fp32 or bf16, channels last or not). `dense` is that one's time, `fp32` the plain mode; "
    "`zeros`: the run's network in dense kernels; `CSR`: compressed rows in the layers where they win; `dead filters`: "
    "without the filters that have no effect. These three compute what the run's network does. `slim`: a dense network "
    "of as many weights, untrained. Medians of interleaved rounds, the newest measurement of a run, means over seeds."
)
SHOWN = {"dense fp32": "fp32", "zeros": "zeros", "csr": "CSR", "dead filters": "dead filters", "slim": "slim"}
RARE = {"2:4": "2:4"}  # a column only where it was measured

Place = tuple[int, str, int, str]  # batch, hardware, threads, version of torch
Figures = dict[str, dict[str, Any]]  # of one measurement and batch, by engine


def speed_table(rows: list[Row], measurements: Iterable[Measurement]) -> list[str]:
    """Return the lines of the table, without any where no run of `rows` was measured.

    `measurements` come newest first. A row's line is for one batch size, machine, number of threads and version of
    torch; what is invalid or was not measured is blank.
    """
    by_run: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        by_run.setdefault((measurement["run"], measurement["masks_sha256"]), []).append(measurement)
    found = [
        (row, sparsity, cell, place, seeds)
        for row in rows
        for sparsity, cell in row.cells.items()
        for place, seeds in sorted(gather_places(cell, by_run).items())
    ]
    if not found:
        return []
    rare = {engine: name for engine, name in RARE.items() if any(is_timed(seeds, engine) for *_, seeds in found)}
    costs = ["inference FLOPs", "batch", "dense, ms"]
    head = ["method", "sparsity", *costs, *SHOWN.values(), *rare.values(), "seeds", "machine"]
    lines = [line(head), line(["---", *["---:"] * (len(head) - 2), "---"])]
    for row, sparsity, cell, place, seeds in found:
        shown = [row.label, percent(sparsity), cell.cost("inference", absolute=False), str(place[0])]
        shown.append(average(seeds, "dense", "ms", "{:.3g}"))
        shown += [average(seeds, engine, "speed_up", "{:.2f}×") for engine in (*SHOWN, *rare)]
        lines.append(line([*shown, ", ".join(map(str, sorted(seeds))), describe_place(place)]))
    return lines


def gather_places(cell: Cell, by_run: dict[tuple[str, str], list[Measurement]]) -> dict[Place, dict[int, Figures]]:
    """Return the figures of a cell's runs by place and seed: of several measurements of a seed the newest.

    A newer version of torch on the same machine replaces an older one.
    """
    newest: dict[tuple[int, int, str, int], tuple[str, Figures]] = {}
    for record in [*cell.counted, *cell.repeats]:
        for measurement in by_run.get(identity(record), []):
            for entry in measurement["batches"]:
                key = record["seed"], entry["batch"], measurement["hardware"], measurement["threads"]
                figures = {engine["engine"]: engine for engine in entry["engines"]}
                newest.setdefault(key, (measurement["environment"]["torch"], figures))
    places: dict[Place, dict[int, Figures]] = {}
    for (seed, batch, hardware, threads), (torch, figures) in newest.items():
        places.setdefault((batch, hardware, threads, torch), {})[seed] = figures
    return places


def identity(record: Record) -> tuple[str, str]:
    """Return what a measurement names its run by."""
    return record["run"], record["masks_sha256"]


def is_timed(seeds: dict[int, Figures], engine: str) -> bool:
    """Return whether an engine has figures in any of the measurements."""
    return any("ms" in figures.get(engine, {}) for figures in seeds.values())


def average(seeds: dict[int, Figures], engine: str, figure: str, form: str) -> str:
    """Return the mean over seeds of an engine's figure, or BLANK where it was not timed for every one of them."""
    values = [figures.get(engine, {}).get(figure) for figures in seeds.values()]
    known = [value for value in values if value is not None]
    return form.format(statistics.fmean(known)) if len(known) == len(values) else BLANK


def describe_place(place: Place) -> str:
    """Return the machine of a line: `AMD EPYC, 1 thread, torch 2.14`."""
    _, hardware, threads, torch = place
    return f"{escape(hardware)}, {threads} thread{'' if threads == 1 else 's'}, torch {escape(torch)}"
