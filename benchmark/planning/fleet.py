"""What a plan says of devices: how many runs one of them can hold, and how long the runs take on many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmark.errors import UserError
from benchmark.planning.memory import Memory, describe_memory, device_memory, gib
from benchmark.planning.pace import format_time
from benchmark.planning.spread import Job, Spread, spread


@dataclass(frozen=True)
class Fleet:
    """A number of devices of one kind, and how many runs share each."""

    devices: int
    per_device: int = 1


def make_fleet(devices: int, per_device: int) -> Fleet | None:
    """Return what a plan is asked to be made for, None for no devices. Raises UserError for a number below 1."""
    if devices < 0:
        raise UserError(f"GPUS must be a whole number of at least 1, got {devices}")
    if per_device < 1:
        raise UserError(f"PER_GPU must be a whole number of at least 1, got {per_device}")
    return Fleet(devices, per_device) if devices else None


def describe_sharing(
    memories: Mapping[tuple[str, str], Memory], device: torch.device, fleet: Fleet | None = None
) -> list[str]:
    """Return what a run of each page needs of the device's memory, and where a fleet asks for more than there is."""
    available = device_memory(device)
    notes = [
        f"memory of a run on {page}: {describe_memory(memory, available)}" for (page, _), memory in memories.items()
    ]
    for (page, _), memory in memories.items():
        if fleet is not None and fleet.per_device > max(1, memory.fits(available)) and available:
            need = gib(fleet.per_device * memory.total)
            notes.append(f"PER_GPU={fleet.per_device} is too much for {page}: {need} GiB of {gib(available)} GiB")
    return notes


def describe_fleet(jobs: Sequence[Job], fleet: Fleet) -> list[str]:
    """Return how long the runs take on a fleet, whole runs, the longest first and controls after their donors.

    What sharing is worth is not known before it is measured, so both ends are told: runs that cost each other nothing,
    and runs that are each slower by as many times as there are on a device.
    """
    if not jobs:
        return []
    free, slow = share_out(jobs, fleet)
    head = f"on {fleet.devices} devices of this kind, {fleet.per_device} at once on each: "
    if fleet.per_device == 1:
        lines = [f"{head}{describe(free, fleet)}"]
    else:
        lines = [
            f"{head}{describe(free, fleet)}, if runs that share a device cost each other nothing;",
            f"    if sharing gains nothing, {describe(slow, fleet)}",
        ]
    chain = f"its longest run, with the control that waits for it, takes {format_time(free.chain_s)}"
    return [*lines, f"    no order of these runs takes less than {format_time(free.least_s)}: {chain}"]


def share_out(jobs: Sequence[Job], fleet: Fleet) -> tuple[Spread, Spread]:
    """Return what the jobs take on a fleet where sharing costs nothing, and where it gains nothing."""
    places = fleet.devices * fleet.per_device
    slower = [Job(job.name, fleet.per_device * job.seconds, job.after) for job in jobs]
    return spread(jobs, places), spread(slower, places)


def describe(result: Spread, fleet: Fleet) -> str:
    """Return a time in words: `3.1 h (198.4 device hours, 97 % at work)`."""
    hours = fleet.devices * result.makespan_s / 3600
    return f"{format_time(result.makespan_s)} ({hours:,.1f} device hours, {100 * result.used_share:.0f} % at work)"
