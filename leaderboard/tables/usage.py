"""What runs took of their machines, in words: time, memory, energy. Records tell what was known, and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from leaderboard.store.kinds import is_whole
from leaderboard.store.repeat import ranks_of
from leaderboard.store.schema import Record
from leaderboard.tables.sections import amount
from leaderboard.tables.table import BLANK, duration, escape, mean

Read = Callable[[Record], float | None]
PEAKS = {"process_peak_bytes": "process", "device_peak_bytes": "device"}
POWERS = ("", "k", "M", "G", "T")


def count_trainings(run: Record) -> int:
    """Return how often a run had the page's training: once, unless its method trains in rounds."""
    return int(run["rounds"]["count"]) if "rounds" in run else 1


def machine_of(run: Record) -> tuple[str, str, int, int]:
    """Return device, its name, threads and processes of a run; what the record lacks is empty or 0."""
    environment = run["environment"]
    name, threads = environment.get("device_name"), environment.get("threads")
    known = name if isinstance(name, str) else ""
    return environment["device"], known, threads if is_whole(threads) else 0, ranks_of(run)


@lru_cache  # there are many runs and few machines
def name_machine(device: str, name: str, threads: int, ranks: int) -> str:
    """Return `cpu (AMD EPYC), 1 thread, 4 processes`, escaped."""
    shown = f"{escape(device)} ({escape(name)})" if name else escape(device)
    shown += f", {amount(threads, 'thread')}" if threads else ""
    return shown + (f", {ranks} processes" if ranks > 1 else "")


def by_machine(runs: list[Record], read: Read, show: Callable[[float], str], name_machines: bool) -> str:
    """Return the median of a figure for each kind of machine, as those of different ones have none in common.

    Not the mean: one run beside other work takes many times as long.
    """
    known: dict[tuple[str, str, int, int], list[float]] = {}
    for run in runs:
        value = read(run)
        if value is not None:
            known.setdefault(machine_of(run), []).append(value)
    named = {machine: f"{name_machine(*machine)}: " if name_machines else "" for machine in sorted(known)}
    return "; ".join(f"{name}{show(statistics.median(known[machine]))}" for machine, name in named.items()) or BLANK


def tell_updates(runs: list[Record], name_machines: bool) -> str:
    """Return `0.8 s in 12 updates`: the wall time in mask updates and their number; BLANK for none known."""
    told = [run for run in runs if "updates_s" in run["time"]]
    number = mean((run["updates"] for run in told), "{:,.0f}".format)
    seconds = by_machine(told, lambda run: run["time"]["updates_s"], duration, name_machines)
    return f"{seconds} in {number} updates" if told else BLANK


def tell_memory(runs: list[Record], name_machines: bool) -> str:
    """Return `process 1.20 GiB, device 3.40 GiB`: the peaks; BLANK for none known."""
    shown = []
    for key, what in PEAKS.items():
        text = by_machine(runs, partial(read_peak, key), show_bytes, name_machines)
        shown += [f"{what} {text}"] if text != BLANK else []
    return ", ".join(shown) or BLANK


def read_peak(key: str, run: Record) -> int | None:
    """Return a run's peak in bytes, None where it is not known."""
    peak: int | None = run.get("usage", {}).get(key)
    return peak


def tell_energy(runs: list[Record]) -> str:
    """Return `12.3 kJ, 71 % at work: NVIDIA H200 (whole device), NVML`, one for each source; BLANK for none known.

    The text is as it is in the records, not escaped.
    """
    sources: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for kind in ("gpu", "cpu"):
            if (source := run.get("usage", {}).get(kind)) is not None:
                sources.setdefault(source["of"], []).append(source)
    lines = []
    for of, told in sources.items():
        parts = [
            mean((source.get("energy_j") for source in told), show_joules),
            mean((source.get("utilisation_pct") for source in told), "{:.0f} % at work".format),
        ]
        most = max(source.get("processes", 1) for source in told)
        parts += [f"up to {most} processes"] if most > 1 else []
        lines.append(f"{', '.join(part for part in parts if part != BLANK)}: {of}")
    return "; ".join(lines) or BLANK


def show_bytes(size: float) -> str:
    """Return bytes in MiB, or in GiB from one GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def show_joules(energy: float) -> str:
    """Return joules to three digits: `12.3 kJ`."""
    power = 0
    while energy >= 999.5 and power < len(POWERS) - 1:
        energy, power = energy / 1000, power + 1
    return f"{energy:.3g} {POWERS[power]}J"
