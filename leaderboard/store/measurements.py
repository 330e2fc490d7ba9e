"""Measured speed of runs: a sealed JSON file for each measurement, kept beside the records and never edited.

Speed can be measured after a run, repeatedly and on other machines, so a measurement is a file of its own in
`latency/` that names the run and its masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from leaderboard.store.kinds import (
    ABOVE_0,
    AT_LEAST_0,
    DIGEST,
    NAME,
    OBJECT,
    TEXT,
    TIME,
    Kind,
    is_number,
    is_whole,
    one_of,
    parse_time,
)
from leaderboard.store.records import Problem, file_key, list_faults, list_files, publish_sealed, read_json
from leaderboard.store.schema import BROKEN, Record, RecordError, content_of, measured_faults

Measurement = dict[str, Any]
SCHEMA = 1
FOLDER = "latency"  # beside the folder of records
# How a pass is computed: "dense" is the full network in its best dense mode, the reference of all speed-ups.
ENGINES = ("dense", "dense fp32", "zeros", "csr", "dead filters", "slim", "2:4", "onnxruntime")
ORPHAN = "restore the record, or delete this file with it"
FIGURES = ("ms", "low_ms", "high_ms", "speed_up")  # of what was timed: median and quartiles, in milliseconds

POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
FIELDS: dict[str, Any] = {
    "schema": Kind(f"{SCHEMA}, the one that this version reads", lambda value: is_whole(value) and value == SCHEMA),
    "seal?": DIGEST,
    "run": NAME,
    "masks_sha256": TEXT,
    "measured": TIME,
    "command": TEXT,
    "device": TEXT,
    "hardware": TEXT,
    "threads": ABOVE_0,
    "clock": TEXT,
    "load?": AT_LEAST_0,  # the load average of the minute before
    "environment": {"torch": TEXT, "python": TEXT, "platform": TEXT},
    "git?": OBJECT,
    "size_bytes": {"dense": ABOVE_0, "packed": ABOVE_0},
    "batches": [
        {
            "batch": ABOVE_0,
            "rounds": ABOVE_0,
            "engines": [
                {
                    "engine": one_of(*ENGINES),
                    "status": one_of("ok", "skipped", "invalid"),
                    "note": Kind("a text", lambda value: isinstance(value, str)),
                    "mode?": TEXT,
                    **{f"{figure}?": POSITIVE for figure in FIGURES},
                    "error?": AT_LEAST_0,
                }
            ],
        }
    ],
}


def folder_of(records: Path) -> Path:
    """Return the folder of measurements that belongs to a folder of records."""
    return records.parent / FOLDER


def find_faults(measurement: Any) -> list[str]:
    """Return every rule that a measurement breaks, in words; an empty list for a valid one.

    A broken seal comes first; one still to be written may lack its seal.
    """
    faults = measured_faults(measurement, FIELDS)
    return faults if set(faults) - {BROKEN} else [*faults, *figure_faults(measurement)]


def figure_faults(measurement: Measurement) -> Iterator[str]:
    """Yield where the figures of a measurement contradict each other."""
    sizes = [entry["batch"] for entry in measurement["batches"]]
    if not sizes or len(set(sizes)) < len(sizes):
        yield f"batches must name each batch size once, got {sizes}"
    for entry in measurement["batches"]:
        engines, where = {row["engine"]: row for row in entry["engines"]}, f"batch {entry['batch']}"
        if len(engines) < len(entry["engines"]):
            yield f"{where} names an engine twice"
        if "ms" not in engines.get("dense", {}):
            yield f"{where} has no time of the dense network"
            continue
        for name, row in engines.items():
            yield from engine_faults(f"{where}, {name}", row, engines["dense"]["ms"])


def engine_faults(where: str, row: dict[str, Any], dense_ms: float) -> Iterator[str]:
    """Yield what is wrong with one way to compute a pass."""
    there = [figure for figure in FIGURES if figure in row]
    if len(there) != (len(FIGURES) if row["status"] == "ok" else 0):
        yield f"{where} is {row['status']} and has {', '.join(there) or 'no figures'}"
    elif there and not row["low_ms"] <= row["ms"] <= row["high_ms"]:
        yield f"{where}: the median {row['ms']} is not within the quartiles {row['low_ms']} and {row['high_ms']}"
    elif there and abs(row["speed_up"] * row["ms"] / dense_ms - 1) > 1e-9:
        yield f"{where}: speed_up is {row['speed_up']}, dense / it is {dense_ms / row['ms']}"


def write_measurement(measurement: Measurement, folder: Path) -> Path:
    """Seal a measurement, write it to `folder` as a file of its own, and return its path.

    The file is named by run, machine and threads; if the name is taken, it becomes `.2.json`, `.3.json` …
    Raises RecordError for an invalid one, before anything is written. Invariant: no existing file is ever changed.
    """
    content = json.loads(json.dumps(content_of(measurement)))
    faults = find_faults(content)
    if faults:
        raise RecordError(f"measurement of '{measurement.get('run')}' was not written: {list_faults(faults)}")
    name = f"{content['run']}.{content['hardware'].replace('.', '_')}.t{content['threads']}"
    return publish_sealed(content, folder, name)


def read_measurement(path: Path) -> Measurement:
    """Read one measurement. Raises RecordError for a file that is damaged, was edited or breaks a rule."""
    _, measurement = read_json(path)
    faults = find_faults(measurement)
    if not faults and "seal" not in measurement:
        faults = ["seal is missing"]
    if faults:
        raise RecordError(list_faults(faults))
    assert isinstance(measurement, dict)
    return {**measurement, "file": path.name}


def load_measurements(folder: Path, records: Iterable[Record]) -> tuple[list[Measurement], list[Problem]]:
    """Return the measurements in `folder`, the newest first, and a Problem for each file that was skipped.

    Skipped are damaged and edited files, and those of a run and masks that none of `records` has; problems name files
    as `latency/NAME`. Invariant: every file is in exactly one of the two lists, in a stable order.
    """
    known = {(record["run"], record["masks_sha256"]) for record in records}
    found, problems = [], []
    for path in list_files(folder):
        try:
            measurement = read_measurement(path)
            if (measurement["run"], measurement["masks_sha256"]) not in known:
                raise RecordError(f"there is no record of the run '{measurement['run']}' with these masks: {ORPHAN}")
        except RecordError as error:
            problems.append(Problem(f"{FOLDER}/{path.name}", str(error)))
            continue
        found.append(measurement)
    found.sort(key=lambda entry: (parse_time(entry["measured"]), *file_key(entry["file"])), reverse=True)
    return found, problems
