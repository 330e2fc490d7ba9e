"""Which conventions give a printed cost, and whether one and the same gives a row's costs at all its sparsities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leaderboard.paper.published import PaperRow

HALF = 0.005  # half of the last digit printed
NEAREST, UP = "to the nearest", "up"
AGREES, ROUNDING, MIXED, MISSED = "one convention", "two roundings", "two conventions", "not reproduced"
KINDS = (MIXED, MISSED, ROUNDING, AGREES)
COSTS = ("inference", "training")
Reading = dict[str, Any]


def find_roundings(share: float, printed: float) -> frozenset[str]:
    """Return how `share` has to be rounded to two digits to give what is printed: NEAREST, UP, either or not at all.

    A share half-way between two digits may be printed as either.
    """
    slack = 1e-9
    fits = {NEAREST: abs(share - printed) <= HALF + slack, UP: -slack <= printed - share < 2 * HALF - slack}
    return frozenset(way for way, right in fits.items() if right)


@dataclass(frozen=True)
class Verdict:
    """What is known of the printed shares of one cost, by column.

    `matches`: for each column the readings that give it, those that do so to the nearest where there are any. `kind`:
    AGREES where a reading gives all columns with one `rounding`; ROUNDING where one gives them all, but not with one
    rounding; MIXED where each is given, but no reading gives all; MISSED where a column is given by none. `best`: the
    readings that AGREES or ROUNDING rests on.
    """

    matches: dict[str, list[Reading]]
    kind: str
    rounding: str
    best: list[Reading]


def judge(readings: list[Reading], printed: Mapping[str, float]) -> Verdict:
    """Return the verdict over the readings of one cost. Invariant: rounded up counts only where nothing is nearest."""
    ways = [
        {column: find_roundings(reading["shares"][column], share) for column, share in printed.items()}
        for reading in readings
    ]
    pairs = list(zip(readings, ways, strict=True))
    matches = {
        column: [reading for reading, way in pairs if NEAREST in way[column]]
        or [reading for reading, way in pairs if way[column]]
        for column in printed
    }
    for rounding in (NEAREST, UP):
        best = [reading for reading, way in pairs if all(rounding in found for found in way.values())]
        if best:
            return Verdict(matches, AGREES, rounding, best)
    best = [reading for reading, way in pairs if all(way.values())]
    if best:
        return Verdict(matches, ROUNDING, "", best)
    return Verdict(matches, MIXED if all(matches.values()) else MISSED, "", [])


@dataclass(frozen=True)
class Entry:
    """Printed costs that are recounted alike: `rows` has the costs of each label; `printed`, `statuses` by column."""

    rows: dict[str, list[str]]
    printed: dict[str, float]
    statuses: dict[str, str]
    readings: list[Reading]
    verdict: Verdict


def printed_shares(row: PaperRow, cost: str) -> dict[str, float]:
    """Return what is printed of a row's cost, by column; nothing where a column has none."""
    shares = {
        str(column): cell.inference_share if cost == "inference" else cell.train_share
        for column, cell in row.cells.items()
    }
    return {column: share for column, share in shares.items() if share is not None}


def judge_all(rows: tuple[PaperRow, ...], readings: Mapping[str, Mapping[str, list[Reading]]]) -> list[Entry]:
    """Return the verdicts over all printed costs that have readings, in the order of the table.

    Costs with the same printed shares, status, layers and recounted shares are one entry: at a constant sparsity those
    of training and of inference are, and those of rows that differ in which weights live alone.
    """
    entries: dict[str, Entry] = {}
    for cost, row in ((cost, row) for row in rows for cost in COSTS):
        printed, tried = printed_shares(row, cost), readings[row.label][cost]
        if not printed or not tried:
            continue
        statuses = {str(column): cell.status for column, cell in row.cells.items()}
        shares = [(reading["layers"], reading["counter"], reading["shares"]) for reading in tried]
        key = repr([printed, statuses, shares])
        entry = entries.setdefault(key, Entry({}, printed, statuses, tried, judge(tried, printed)))
        entry.rows.setdefault(row.label, []).append(cost)
    return list(entries.values())


def count_printed(entries: list[Entry]) -> dict[str, int]:
    """Return how many printed shares are given to the nearest, only rounded up, and by nothing that was tried."""
    counts = {NEAREST: 0, UP: 0, MISSED: 0}
    for entry in entries:
        number = sum(map(len, entry.rows.values()))
        for column, share in entry.printed.items():
            ways = set().union(*(find_roundings(reading["shares"][column], share) for reading in entry.readings))
            counts[NEAREST if NEAREST in ways else UP if UP in ways else MISSED] += number
    return counts
