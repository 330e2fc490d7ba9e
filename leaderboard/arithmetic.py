"""What a run computed with, as far as its numbers depend on it: runs that differ here never share a table."""

from __future__ import annotations

from leaderboard.schema import Record


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
