"""Details of each row, and measured speed, for which the main table has no room."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from leaderboard.store.measurements import Measurement
from leaderboard.store.schema import Record
from leaderboard.tables.sections import amount
from leaderboard.tables.table import (
    BLANK,
    Entry,
    Row,
    count_zeros,
    duration,
    escape,
    line,
    list_links,
    mean,
    mean_and_std,
    multiple,
    percent,
    place_runs,
)
from leaderboard.tables.usage import by_machine, count_trainings, machine_of, tell_energy, tell_memory, tell_updates

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


# Columns only where a record tells them, each with the column that it stands before, and what it shows.
RARE_DETAILS: dict[str, tuple[str, Callable[[Entry, bool], str]]] = {
    "dead filters, dead weights": ("inference FLOPs", lambda entry, _: dead_shares(entry)),
    "mask updates": ("notes", lambda entry, several: tell_updates(entry.finished, several)),
    "peak memory": ("notes", lambda entry, several: tell_memory(entry.finished, several)),
    "energy": ("notes", lambda entry, _: escape(tell_energy(entry.finished))),
}


def details_table(rows: list[Row], folder: str) -> list[str]:
    """Return the lines of the details: a row for each method and sparsity; links to records lead into `folder`."""
    cells = [(row, sparsity, entry) for row in rows for sparsity, entry in row.cells.items()]
    several = len({machine_of(record) for *_, entry in cells for record in entry.counted}) > 1
    rare = {name: [show(entry, several) for *_, entry in cells] for name, (_, show) in RARE_DETAILS.items()}
    rare = {name: texts for name, texts in rare.items() if set(texts) - {BLANK}}
    head = list(DETAILS)
    for name in rare:
        head.insert(head.index(RARE_DETAILS[name][0]), name)
    lines = [line(head), line(["---"] * len(head))]
    for place, (row, sparsity, entry) in enumerate(cells):
        usual = [row.label, percent(sparsity), *detail_cells(entry, folder, several)]
        shown = {**dict(zip(DETAILS, usual, strict=True)), **{name: texts[place] for name, texts in rare.items()}}
        lines.append(line([shown[name] for name in head]))
    return lines


def dead_shares(entry: Entry) -> str:
    """Return `12.0 %, 3.4 %`: the mean shares of filters and of active weights that are dead; n if not all know."""
    told = entry.dead()
    parts = [
        [100 * dead["filters"] / dead["of"] for _, dead in told],
        [100 * dead["weights"] / max(1, run["weights"]["active"]) for run, dead in told if "weights" in dead],
    ]
    shown = ", ".join(mean(shares, "{:.1f} %".format) for shares in parts if shares)
    return f"{shown} (n={len(told)})" if 0 < len(told) < len(entry.finished) else shown or BLANK


def detail_cells(entry: Entry, folder: str, name_machines: bool) -> list[str]:
    """Return the details of one method at one sparsity, from `seeds` on."""
    runs = entry.finished
    shown = [", ".join(str(record["seed"]) for record in entry.counted)]
    for key in ("last_epoch", "validation_selected", "best_on_test"):
        shown.append(mean_and_std(record["accuracy_pct"][key] for record in runs))
    for key in ("prunable", "all_parameters"):
        shown.append(mean((record["density"][key] for record in runs), "{:.4g}".format))
    slim = slim_cost(runs)
    shown.append(f"{entry.cost('inference', absolute=True)}{f', {slim}' if slim else ''}")
    shown.append(f"{entry.cost('train', absolute=True)}{uncharged_cost(runs)}")
    shown.append(by_machine(runs, lambda run: run["time"]["train_s"], duration, name_machines))
    shown.append(by_machine(runs, lambda run: run["time"]["images_per_s"], "{:,.0f}".format, name_machines))
    shown.append("; ".join(notes(entry)) or BLANK)
    shown.append(list_links(entry, folder))
    return shown


def slim_cost(runs: list[Record]) -> str:
    """Return `slim 0.25×`: the mean cost of one image without removed filters and the inputs that they free.

    A multiple of the dense network's; empty if no run has it, with `(n=2)` if not every run does.
    """
    macs = [run["macs"] for run in runs if "inference_slim" in run["macs"]]
    if not macs:
        return ""
    shown = mean((costs["inference_slim"] / costs["inference_dense"] for costs in macs), multiple)
    return f"slim {shown}{f' (n={len(macs)})' if len(macs) < len(runs) else ''}"


def uncharged_cost(runs: list[Record]) -> str:
    """Return `, 0.37× without dense gradients`: the training cost as if growth read them for free, as authors count.

    Empty unless all runs tell what they cost.
    """
    macs = [run["macs"] for run in runs]
    if not macs or not all("dense_gradients" in costs for costs in macs):
        return ""
    shares = ((costs["train"] - costs["dense_gradients"]) / costs["train_dense"] for costs in macs)
    return f", {mean(shares, multiple)} without dense gradients"


def notes(entry: Entry) -> list[str]:
    """Return notes: repeats, rounds, diverged seeds, empty layers, skipped steps, zeros, uncommitted code."""
    seeds: dict[str, list[str]] = {}
    placed = place_runs([*entry.counted, *entry.repeats]).items()
    moved = {run["sparsity"] for sparsity, runs in placed for run in runs if run["sparsity"] != sparsity}
    for record in entry.counted:
        empty, skipped = [escape(name) for name in record["empty_layers"]], record["skipped_steps"]
        rounds = count_trainings(record)
        zero, reached = count_zeros(record), record["density"].get("reached", record["density"]["prunable"])
        found = {
            "diverged": record["status"] != "ok",
            f"trained {rounds} times": rounds > 1,
            f"empty layers: {', '.join(empty)}": empty,
            f"skipped steps: {skipped}": skipped,
            f"active weights that are zero: {zero:,}": zero,
            f"density before its masks were fixed: {reached:.4g}": reached != record["density"]["prunable"],
            f"asked for {percent(record['sparsity'])}": record["sparsity"] in moved,
            "uncommitted code": record["git"]["dirty"],
            f"begun under {escape(record['environment'].get('earlier', ''))}": "earlier" in record["environment"],
            f"by {escape(record.get('author', ''))}": "author" in record,
        }
        for note in (note for note, holds in found.items() if holds):
            seeds.setdefault(note, []).append(str(record["seed"]))
    repeats = [f"repeats: {len(entry.repeats)}"] if entry.repeats else []
    return repeats + [f"{note} (seed {', '.join(which)})" for note, which in seeds.items()]


ABOUT = (
    "Measured speed: a forward pass in PyTorch, as a multiple of the speed of the full dense network in its best dense "
    "mode on that machine (fp32 or bf16, channels last or not). `dense` is that one's time, `fp32` the plain mode; "
    "`zeros`: the run's network in dense kernels; `CSR`: compressed rows in the layers where they win; `dead filters`: "
    "without the filters that have no effect. These three compute what the run's network does. `slim`: a dense network "
    "of as many weights, untrained. Medians of interleaved rounds, the newest measurement of a run, means over seeds."
)
SHOWN = {"dense fp32": "fp32", "zeros": "zeros", "csr": "CSR", "dead filters": "dead filters", "slim": "slim"}
RARE = {"2:4": "2:4", "onnxruntime": "onnxruntime"}  # a column only where it was measured
ONNX = (
    "`onnxruntime`: the run's network in that library's dense kernels, fp32. What it gains on `zeros` is the library's "
    "merit, not that of sparsity."
)

Place = tuple[int, str, int, str]  # batch, hardware, threads, version of torch
Figures = dict[str, dict[str, Any]]  # of one measurement and batch, by engine


def speed_table(rows: list[Row], measurements: Iterable[Measurement]) -> list[str]:
    """Return the lines of the table, and what a rare column is; none if no run of `rows` was measured.

    `measurements` come newest first. A line is for one batch size, machine, number of threads and version of torch;
    what is invalid or was not measured is blank.
    """
    by_run: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        by_run.setdefault((measurement["run"], measurement["masks_sha256"]), []).append(measurement)
    found = [
        (row, sparsity, entry, place, seeds)
        for row in rows
        for sparsity, entry in row.cells.items()
        for place, seeds in sorted(gather_places(entry, by_run).items())
    ]
    if not found:
        return []
    rare = {engine: name for engine, name in RARE.items() if any(is_timed(seeds, engine) for *_, seeds in found)}
    costs = ["inference FLOPs", "batch", "dense, ms"]
    head = ["method", "sparsity", *costs, *SHOWN.values(), *rare.values(), "seeds", "machine"]
    lines = [line(head), line(["---", *["---:"] * (len(head) - 2), "---"])]
    for row, sparsity, entry, place, seeds in found:
        shown = [row.label, percent(sparsity), entry.cost("inference", absolute=False), str(place[0])]
        shown.append(average(seeds, "dense", "ms", "{:.3g}"))
        shown += [average(seeds, engine, "speed_up", "{:.2f}×") for engine in (*SHOWN, *rare)]
        lines.append(line([*shown, ", ".join(map(str, sorted(seeds))), describe_place(place)]))
    return lines + (["", ONNX] if "onnxruntime" in rare else [])


def gather_places(entry: Entry, by_run: dict[tuple[str, str], list[Measurement]]) -> dict[Place, dict[int, Figures]]:
    """Return the figures of the runs by place and seed, the newest of several measurements.

    A newer version of torch on the same machine replaces an older one.
    """
    newest: dict[tuple[int, int, str, int], tuple[str, Figures]] = {}
    for record in [*entry.counted, *entry.repeats]:
        for measurement in by_run.get(identity(record), []):
            for batch in measurement["batches"]:
                key = record["seed"], batch["batch"], measurement["hardware"], measurement["threads"]
                figures = {engine["engine"]: engine for engine in batch["engines"]}
                newest.setdefault(key, (measurement["environment"]["torch"], figures))
    places: dict[Place, dict[int, Figures]] = {}
    for (seed, batch, hardware, threads), (torch, figures) in newest.items():
        places.setdefault((batch, hardware, threads, torch), {})[seed] = figures
    return places


def identity(record: Record) -> tuple[str, str]:
    """Return what identifies the run of a measurement."""
    return record["run"], record["masks_sha256"]


def is_timed(seeds: dict[int, Figures], engine: str) -> bool:
    """Return whether any measurement has figures for a way to compute."""
    return any("ms" in figures.get(engine, {}) for figures in seeds.values())


def average(seeds: dict[int, Figures], engine: str, figure: str, form: str) -> str:
    """Return the mean of a figure over seeds, or BLANK unless it was timed for all of them."""
    values = [figures.get(engine, {}).get(figure) for figures in seeds.values()]
    known = [value for value in values if value is not None]
    return form.format(statistics.fmean(known)) if len(known) == len(values) else BLANK


def describe_place(place: Place) -> str:
    """Return the machine of a line: `AMD EPYC, 1 thread, torch 2.14`."""
    _, hardware, threads, torch = place
    return f"{escape(hardware)}, {amount(threads, 'thread')}, torch {escape(torch)}"
