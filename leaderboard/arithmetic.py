"""What a run computed with, as far as its numbers depend on it: runs that differ here never share a table."""

from __future__ import annotations

import math
from collections.abc import Iterable

from leaderboard.schema import Record

ROUNDING = 1e-9  # a share of a run that is a whole epoch may be off by the last bits: 0.29 x 100 = 28.999999999999996


def name_arithmetic(precision: str, shares: int) -> str:
    """Return the name of an arithmetic: `fp32`, or `fp32-in-4-shares` where batch norm took a batch in four shares."""
    return precision if shares == 1 else f"{precision}-in-{shares}-shares"


def arithmetic(record: Record) -> str:
    """Return the name of a record's arithmetic. Records from before several processes could train count as one."""
    environment = record["environment"]
    return name_arithmetic(environment["precision"], environment.get("batch_norm_shares", 1))


def ranks_of(record: Record) -> int:
    """Return how many processes trained a run together."""
    return int(record["environment"].get("ranks", 1))


def drop_epochs(shares: Iterable[float], epochs: float) -> list[int]:
    """Return the epochs, counted from 0, from which on the learning rate is lower: shares of the run, rounded down.

    As int() does in the GraNet authors' code, but never before an epoch at the full rate, which a run of one has too.
    """
    return [max(1, math.floor(share * epochs + ROUNDING)) for share in shares]
