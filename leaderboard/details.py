"""The details under a section's tables, in Markdown: seeds, densities, absolute costs, times, notes, records."""

from __future__ import annotations

from collections.abc import Callable

from leaderboard.schema import Record
from leaderboard.table import BLANK, Cell, Row, duration, escape, line, link, mean, mean_and_std, multiple, percent

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
        zero = record["weights"]["active"] - record["weights"].get("nonzero", record["weights"]["active"])
        found = {
            "diverged": record["status"] != "ok",
            f"empty layers: {', '.join(empty)}": empty,
            f"skipped steps: {skipped}": skipped,
            f"active weights that are zero: {zero:,}": zero,
            "uncommitted code": record["git"]["dirty"],
        }
        for note in (note for note, holds in found.items() if holds):
            seeds.setdefault(note, []).append(str(record["seed"]))
    repeats = [f"repeats: {len(cell.repeats)}"] if cell.repeats else []
    return repeats + [f"{note} (seed {', '.join(which)})" for note, which in seeds.items()]
