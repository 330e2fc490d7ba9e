"""Measured growth: what an update grows by gradients in bf16, in fp32 and of another batch; a sealed file for each run.

Written by `benchmark.studies.precision`, kept in `precision/` beside the records and never edited.
"""

from __future__ import annotations

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
    WHOLE,
    Kind,
    is_number,
    is_whole,
    list_of,
    or_null,
)
from leaderboard.store.records import Problem, file_key, list_faults, list_files, publish_sealed, read_json
from leaderboard.store.schema import RecordError, measured_faults

Growth = dict[str, Any]
SCHEMA = 1
FOLDER = "precision"  # beside the folder of records
REFERENCE, OTHERS = "fp32", ("bf16", "batch")  # fp32 gradients, and what is compared with what they grow

CORRELATION = or_null(Kind("a number in [-1, 1]", lambda value: is_number(value) and -1 <= value <= 1))
COUNTED: dict[str, Any] = {
    "grown": list_of(WHOLE),  # weights that become active, by layer
    "zero": AT_LEAST_0,  # of the inactive weights, those whose gradient is exactly zero; so below, in all layers
    "tied": AT_LEAST_0,  # those whose |gradient| another of the layer has too
    "by_index": AT_LEAST_0,  # of the grown, those that the order of equal gradients decided
    "grown_at_zero": AT_LEAST_0,  # of the grown, those without any gradient
}
COMPARED = {**COUNTED, "shared": list_of(WHOLE), "correlation": CORRELATION}  # shared: grown in the reference, too
FIELDS: dict[str, Any] = {
    "schema": Kind(f"{SCHEMA}, the one that this version reads", lambda value: is_whole(value) and value == SCHEMA),
    "seal?": DIGEST,
    "run": NAME,  # in fp32, whose weights these are
    "masks_sha256": TEXT,  # at its end
    "page": {"name": NAME, "title": TEXT, "changed?": OBJECT},
    "method": {"label": TEXT, "sha256": DIGEST},
    "sparsity": AT_LEAST_0,
    "seed": WHOLE,
    "data": {"name": TEXT, "fingerprint": TEXT},
    "steps": ABOVE_0,
    "layers": list_of(TEXT),
    "updates": [{"step": ABOVE_0, "inactive": ABOVE_0, REFERENCE: COUNTED, **dict.fromkeys(OTHERS, COMPARED)}],
    "measured": TIME,
    "command": TEXT,
    "environment": {"device": TEXT, "device_name": TEXT, "torch": TEXT},
    "git?": OBJECT,
}


def find_faults(growth: Any) -> list[str]:
    """Return every rule that a measurement of growth breaks, in words; a broken seal comes first."""
    return measured_faults(growth, FIELDS)


def write_growth(growth: Growth, folder: Path) -> Path:
    """Seal a measurement and write it to `folder` as a file of its own; return its path.

    Raises RecordError for an invalid one. Invariant: no existing file is ever changed.
    """
    if faults := find_faults(growth):
        raise RecordError(f"growth of '{growth.get('run')}' was not written: {list_faults(faults)}")
    return publish_sealed(growth, folder, growth["run"])


def load_growth(folder: Path) -> tuple[list[Growth], list[Problem]]:
    """Return the first measurement of each run in `folder`, by name, and a Problem for each file that is damaged."""
    found: dict[str, Growth] = {}
    problems = []
    for path in sorted(list_files(folder), key=lambda path: file_key(path.name)):
        try:
            growth = read_json(path)[1]
            faults = find_faults(growth)
            if not faults and "seal" not in growth:
                faults = ["seal is missing"]
            if faults:
                raise RecordError(list_faults(faults))
        except RecordError as error:
            problems.append(Problem(f"{FOLDER}/{path.name}", str(error)))
        else:
            found.setdefault(growth["run"], growth)
    return list(found.values()), problems
