"""A latency measurement from request to file: check the request, time every kernel, write and show the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.base.errors import UserError
from benchmark.base.files import Places, check_places
from benchmark.base.system import choose_device, describe_environment, describe_git
from benchmark.config.cells import split_list
from benchmark.inference.kernels import measure_batch
from benchmark.inference.passes import Clock
from benchmark.inference.subject import Subject, dense_bytes, load_subject, packed_bytes
from benchmark.runs.finished import list_repeats
from benchmark.runs.record import stamp
from leaderboard import Record, rebuild
from leaderboard.store.measurements import SCHEMA, Measurement, folder_of, write_measurement
from leaderboard.tables.sections import amount
from leaderboard.tables.table import printable

LARGEST_BATCH = 4096
ENVIRONMENT = ("torch", "timm", "python", "platform", "tf32_matmul", "tf32_conv", "cudnn_benchmark")


@dataclass(frozen=True)
class Request:
    """What to measure with: batch sizes, threads and device, each checked."""

    batches: list[int]
    threads: int
    device: torch.device

    @contextmanager
    def use_threads(self) -> Iterator[None]:
        """Let torch use the request's threads, then its own number again."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def read_request(batches: str, threads: int | None, device: str) -> Request:
    """Return the checked request; raises UserError for impossible sizes or threads, and for a missing GPU.

    The default is one thread on a CPU, where the waiting of more would be timed too, and torch's own number with a GPU.
    """
    sizes = [parse_batch(text) for text in split_list(batches, "BATCH")]
    chosen = choose_device(device)
    if threads is None:
        threads = 1 if chosen.type == "cpu" else torch.get_num_threads()
    there = os.cpu_count() or 1
    if not 1 <= threads <= there:
        raise UserError(f"THREADS must be a whole number from 1 to {there}, this machine's processors, got {threads}")
    return Request(list(dict.fromkeys(sizes)), threads, chosen)


def parse_batch(text: str) -> int:
    """Return a batch size; raises UserError for anything else."""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_BATCH:
        return int(text)
    raise UserError(f"BATCH must be whole numbers from 1 to {LARGEST_BATCH}, comma-separated, got '{text}'")


def measure_run(
    name: str, request: Request, folders: Mapping[str, Path | None], command: str, console: Console
) -> None:
    """Measure a run's speed, show it, write it beside the records that hold the run, and rebuild their sheets.

    folders: records, leaderboard (the sheet) and runs, None for the default. Raises UserError for anything a user can
    fix, before the first pass.
    """
    places = Places(**{key: path for key, path in folders.items() if path is not None})
    subject = load_subject(name, places.records, places.runs)
    target = folder_of(places.records)
    unfiled = why_unfiled(subject.record, places.records)
    if unfiled is None:
        check_places(Places(target, places.leaderboard, places.runs))
    with request.use_threads():
        measurement = make_measurement(subject, request, command, lambda text: console.print(text, style="dim"))
    path = write_measurement(measurement, target) if unfiled is None else None
    print_measurement(console, measurement)
    if path is None:
        console.print(f"nothing was written: {unfiled}", markup=False)
        return
    try:
        rebuild(places.records, places.leaderboard)
    except Exception as error:  # the measurement is done, and any record may be what breaks the sheet
        warning = (
            f"warning: {places.leaderboard} was not rebuilt ({printable(str(error))}): `make leaderboard` tries again"
        )
        console.print(warning, markup=False)
    console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def why_unfiled(record: Record, records: Path) -> str | None:
    """Return why a measurement of this run has no place beside `records`, where no row would show it, or None."""
    if "branch" in record:
        return "the run is a branch, and speed is kept beside the records of whole runs"
    known = record["masks_sha256"] in [found["masks_sha256"] for _, found in list_repeats(record["run"], records)]
    return None if known else f"{records} has no record of this run with these masks: put its record there to keep it"


def make_measurement(subject: Subject, request: Request, command: str, tell: Callable[[str], None]) -> Measurement:
    """Return the measurement of a run; raises UserError for a run whose outputs are not finite."""
    clock = Clock(request.device, request.threads)
    refuse_infinite(subject)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    batches = [
        measure_batch(subject, size, clock, lambda text, size=size: tell(f"batch {size}: {text}"))  # type: ignore[misc]
        for size in request.batches
    ]
    there = describe_environment(request.device, "fp32")
    return {
        "schema": SCHEMA,
        "run": subject.record["run"],
        "masks_sha256": subject.record["masks_sha256"],
        "measured": stamp(datetime.now(timezone.utc)),
        "command": command,
        "device": there["device"],
        "hardware": there["device_name"],
        "threads": request.threads,
        "clock": clock.name,
        "load": load,
        "environment": {key: there[key] for key in ENVIRONMENT if key in there},
        "git": describe_git(),
        "size_bytes": {"dense": dense_bytes(subject), "packed": packed_bytes(subject)},
        "batches": batches,
    }


def refuse_infinite(subject: Subject) -> None:
    """Raise UserError for a network whose outputs are not finite: no kernel could be compared with them."""
    with torch.inference_mode():
        outputs = subject.network(torch.randn(1, *subject.images.shape, generator=torch.Generator().manual_seed(0)))
    if not bool(outputs.isfinite().all()):
        raise UserError(
            f"the outputs of run {subject.record['run']} ({subject.record['status']}) are not finite, so nothing can "
            "be compared with them: measure another seed"
        )


def print_measurement(console: Console, measurement: Measurement) -> None:
    """Print the figures of every kernel at every batch size, and the sizes on disk."""
    machine = f"{measurement['hardware']}, {amount(measurement['threads'], 'thread')}, {measurement['clock']}"
    title = f"{measurement['run']}: one forward pass on {machine}, load {measurement.get('load', 0):.1f}"
    table = Table(title=escape(printable(title)), title_justify="left")
    for column in ("batch", "kernel", "ms", "quartiles", "speed-up", "mode", "what it is"):
        right = column in ("batch", "ms", "quartiles", "speed-up")
        table.add_column(column, overflow="fold", justify="right" if right else "left")
    for entry in measurement["batches"]:
        for row in entry["engines"]:
            table.add_row(str(entry["batch"]), row["engine"], *show_figures(row), escape(row["note"]))
        table.add_section()
    console.print(table)
    dense, packed = measurement["size_bytes"]["dense"], measurement["size_bytes"]["packed"]
    console.print(
        f"on disk: {packed:,} bytes (masks as bits, active weights in fp32), dense {dense:,} bytes "
        f"({dense / packed:.1f} times as much)",
        highlight=False,
    )


def show_figures(row: dict[str, Any]) -> list[str]:
    """Return a kernel's figures as the table shows them, or its status if it has none."""
    if row["status"] != "ok":
        return ["", "", row["status"], ""]
    spread = f"{row['low_ms']:.3g} to {row['high_ms']:.3g}"
    return [f"{row['ms']:.3g}", spread, f"{row['speed_up']:.2f}x", escape(row["mode"])]
