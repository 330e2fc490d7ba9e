"""What the browser page shows of a row and its runs, as text and as numbers to sort by."""

from __future__ import annotations

import html
import json
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from leaderboard.store.repeat import ranks_of, repeat_commands
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import make_ranks
from leaderboard.tables.details import notes, slim_cost
from leaderboard.tables.table import (
    BLANK,
    HEADINGS,
    Entry,
    Row,
    count_zeros,
    duration,
    flops,
    make_rows,
    mean,
    mean_and_std,
    multiple,
    percent,
    show_rank,
)
from leaderboard.tables.usage import tell_energy, tell_memory, tell_updates

# Heading, subheading, and the sort order of the first click; numbers are right-aligned.
COLUMNS = (
    ("method", "", "ascending"),
    ("sparsity", "", "ascending"),
    ("accuracy, %", "last epoch, mean ± std", "descending"),
    ("rank", "", "ascending"),
    ("selected on validation, %", "mean ± std", "descending"),
    ("inference FLOPs", "× dense", "ascending"),
    ("training FLOPs", "× dense", "ascending"),
    ("density", "prunable weights", "ascending"),
    ("seeds", "", "descending"),
    ("images/s", "in training", "descending"),
    ("device memory", "peak, MiB", "ascending"),
    ("process memory", "peak, MiB", "ascending"),
    ("GPU energy", "kJ", "ascending"),
    ("CPU energy", "kJ", "ascending"),
    ("group", "", "ascending"),
    ("page", "", "ascending"),
)

# Columns only where a record tells them: where that stands in it, and the unit.
MEASURED = {
    "images/s": (("time", "images_per_s"), 1),
    "device memory": (("usage", "device_peak_bytes"), 2**20),
    "process memory": (("usage", "process_peak_bytes"), 2**20),
    "GPU energy": (("usage", "gpu", "energy_j"), 1000),
    "CPU energy": (("usage", "cpu", "energy_j"), 1000),
}

# What accuracy can be drawn against.
COSTS = ("training FLOPs", "inference FLOPs", "density", *MEASURED)

LABELS = (
    "last epoch, %",
    "selected on validation, %",
    "best on test, % (not for comparison)",
    "inference FLOPs",
    "training FLOPs",
    "density",
    "time",
    "device",
    "author",
    "finished",
    "method settings",
    "of these changed",
    "page settings changed",
    "control",
    "notes",
    "commit",
    "masks, SHA-256",
)

DONORS = {
    "densities": "random masks with the layer densities of {}",
    "masks": "the masks of {}, kept from the start",
    "shuffled masks": "the masks of {}, shuffled in each layer",
    "shuffled filters": "the masks of {}, shuffled in each filter",
}


def visible(text: object) -> str:
    """Return `text` with every invisible character, such as a change of text direction, as its escape."""
    plain_text = str(text)
    if plain_text.isprintable():
        return plain_text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain_text)


def unescape(escaped: str) -> str:
    """Return the text from which `leaderboard.tables.table.escape` made `escaped`, cut and on one line as there."""
    return re.sub(r"\\([\\*\[\]$~#_+=.)-])", r"\1", html.unescape(escaped))


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values, to sort by; None for none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def measure(runs: list[Record], name: str) -> float | None:
    """Return the median of a measured figure; None unless all runs tell it and had one machine."""
    path, unit = MEASURED[name]
    found: list[Any] = list(runs)
    for key in path:
        found = [part.get(key) if part else None for part in found]
    machines = {(device(run).split(", torch ")[0], str(run["environment"].get("threads"))) for run in runs}
    return statistics.median(found) / unit if runs and None not in found and len(machines) == 1 else None


def drop_unmeasured(lines: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Take out of `lines` the measured columns of which no row has a figure; return the columns that are left."""
    places = range(len(COLUMNS))
    told = {at for at in places for line in lines if line["about"]["raw"][at] is not None}
    kept = [at for at in places if COLUMNS[at][0] not in MEASURED or at in told]
    for line in lines:
        line["shown"] = [line["shown"][at] for at in kept]
        line["about"]["raw"] = [line["about"]["raw"][at] for at in kept]
    return [COLUMNS[at] for at in kept]


def make_lines(number: int, title: str, runs: list[Record], records: str) -> list[dict[str, Any]]:
    """Return the rows of section `number`, one for each method and sparsity, in the order of the Markdown sheet.

    Each has `shown`, a text for each of COLUMNS, and `about`: what the script needs, including numbers to sort by.
    """
    rows = make_rows(runs)
    ranks = make_ranks(rows)
    return [
        make_line(number, unescape(title), row, sparsity, entry, ranks.get((place, sparsity)), records)
        for place, row in enumerate(rows)
        for sparsity, entry in row.cells.items()
    ]


def make_line(
    number: int, title: str, row: Row, sparsity: float, entry: Entry, rank: tuple[int, int] | None, records: str
) -> dict[str, Any]:
    """Return one row of the table; every figure is that of the Markdown sheet."""
    runs, label, group = entry.finished, unescape(row.label), HEADINGS[row.group]
    made = [*((run, False) for run in entry.counted), *((run, True) for run in entry.repeats)]
    costs = {part: entry.cost(part, absolute=True) for part in ("inference", "train")}
    words = [control_of(entry.counted[0], row.made_from), unescape(row.reference), *map(unescape, notes(entry))]
    told = [*filter(None, words), f"inference {costs['inference']} FLOPs, training {costs['train']} FLOPs"]
    accuracies = {key: [run["accuracy_pct"][key] for run in runs] for key in ("last_epoch", "validation_selected")}
    densities = [run["density"]["prunable"] for run in runs]
    measured = {name: measure(runs, name) for name in MEASURED}
    cells: list[tuple[str, float | str | None]] = [
        (label, label.lower()),
        (percent(sparsity), sparsity),
        (entry.accuracy(), average(accuracies["last_epoch"])),
        (show_rank(rank), rank and rank[0] + rank[1] / 1e6),
        (mean_and_std(accuracies["validation_selected"]), average(accuracies["validation_selected"])),
        (entry.cost("inference", absolute=False), average(run["macs"]["inference_share"] for run in runs)),
        (entry.cost("train", absolute=False), average(run["macs"]["train_share"] for run in runs)),
        (mean(densities, "{:.4g}".format), average(densities)),
        (", ".join(str(run["seed"]) for run in entry.counted), len(entry.counted)),
        *((mean([figure], "{:,.4g}".format), figure) for figure in measured.values()),
        (group, group),
        (title, title.lower()),
    ]
    known = [accuracy for accuracy in accuracies["last_epoch"] if accuracy is not None]
    about = {
        "section": str(number),
        "name": visible(label),
        "group": group,
        "sparsity": percent(sparsity),
        "raw": [raw for _, raw in cells],
        "spread": statistics.stdev(known) if len(known) > 1 else None,
        "about": visible(f"{label} at {percent(sparsity)} on {title}: {'; '.join(told)}."),
        "search": visible(" ".join([label, group, title, *words, *(search_text(run) for run, _ in made)])),
        "repeat": [visible(command) for command in repeat_commands([run for run, _ in made], row.settings)],
        "runs": [make_run(run, repeat, records) for run, repeat in made],
    }
    return {"shown": [shown for shown, _ in cells], "under": words[0], "about": about}


def search_text(run: Record) -> str:
    """Return what a search finds a run by: names, settings, machine, code; no numbers, which would match anything."""
    parts = [run["file"], settings(run["method"]["settings"]), settings(run["page"]["changed"]), device(run)]
    return " ".join([*parts, run.get("author", ""), str(run["git"]["commit"]), run["masks_sha256"], run["status"]])


def make_run(run: Record, repeat: bool, records: str) -> dict[str, Any]:
    """Return one run as the script shows it: `values` has a text for each of LABELS, empty if there is none."""
    badges = [["finished", ""] if run["status"] == "ok" else [run["status"], "warn"]]
    badges += [["repeat: not counted", "warn"]] if repeat else []
    return {
        "seed": run["seed"],
        "badges": badges,
        "values": [visible(value) for value in run_values(run)],
        "command": visible(run["command"]),
        "file": visible(run["file"]),
        "link": f"{quote(records)}/{quote(run['file'], errors='replace')}",
    }


def run_values(run: Record) -> list[str]:
    """Return the text of a run for each of LABELS."""
    accuracy, epochs = run["accuracy_pct"], run["selected"]
    method, macs, weights, density = run["method"], run["macs"], run["weights"], run["density"]
    time, git = run["time"], run["git"]
    shown = {key: mean([value], "{:.2f}".format) for key, value in accuracy.items()}
    for key, epoch in (("validation_selected", "validation_epoch"), ("best_on_test", "test_epoch")):
        shown[key] += "" if epochs[epoch] is None else f" (epoch {epochs[epoch]})"
    told = [f"trained {run['rounds']['count']} times"] if "rounds" in run else []
    told += [f"{run['skipped_steps']} steps skipped"] if run["skipped_steps"] else []
    told += [f"layers without weights: {', '.join(run['empty_layers'])}"] if run["empty_layers"] else []
    zero = count_zeros(run)
    told += [f"active weights that are zero: {zero:,}"] if zero else []
    donor = method.get("donor")
    slim = slim_cost([run])
    updates, memory, energy = tell_updates([run], False), tell_memory([run], False), tell_energy([run])
    took = {"peak memory: ": memory, "energy: ": energy}
    return [
        shown["last_epoch"],
        shown["validation_selected"],
        shown["best_on_test"],
        f"{multiple(macs['inference_share'])} dense ({flops(macs['inference'])} of {flops(macs['inference_dense'])})"
        f"{f', {slim}' if slim else ''}",
        f"{multiple(macs['train_share'])} dense ({flops(macs['train'])} of {flops(macs['train_dense'])})",
        f"{density['prunable']:.4g} of prunable weights ({weights['active']:,} of {weights['dense_prunable']:,}), "
        f"{density['all_parameters']:.4g} of all",
        f"{duration(time['train_s'])} training, {duration(time['eval_s'])} evaluation, "
        f"{time['images_per_s']:,.0f} images/s{'' if updates == BLANK else f', {updates}'}",
        "; ".join([device(run), *(f"{what}{text}" for what, text in took.items() if text != BLANK)]),
        run.get("author", ""),
        run["finished"],
        settings(method["settings"]) or "none",
        settings(method["changed"]) or "none",
        settings(run["page"]["changed"]) or "none",
        f"{control_of(run)} (run {donor['run']}, masks {donor['masks_sha256']})" if donor else "",
        "; ".join(told),
        f"{(git['commit'] or 'not known')[:12]}{', with uncommitted changes' if git['dirty'] else ''}",
        run["masks_sha256"],
    ]


def settings(values: Mapping[str, Any]) -> str:
    """Return settings in one line: `prune_rate = 0.5, distribution = "erk"`."""
    return ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(values.items()))


def device(run: Record) -> str:
    """Return the device of a run, its name if known, precision, processes and torch."""
    about = run["environment"]
    names = [about["device"], *([str(about["device_name"])] if "device_name" in about else []), about["precision"]]
    together = [f"{ranks_of(run)} processes"] if ranks_of(run) > 1 else []
    return ", ".join([*names, *together, f"torch {about['torch']}"])


def control_of(run: Record, row: str = "") -> str:
    """Return what a run is a control of, in words, with the name of the `row`; empty if it is no control."""
    donor = run["method"].get("donor")
    return DONORS.get(donor["kind"], f"{donor['kind']} of {{}}").replace("{}", row or donor["label"]) if donor else ""
