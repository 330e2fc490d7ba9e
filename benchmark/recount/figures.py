"""The figures of the recount, and the verdict on each printed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.config.cells import Cell, plan_cells
from benchmark.config.grids import read_grid
from benchmark.config.pages import CONFIGS
from benchmark.data.standin import stand_in
from benchmark.grids.plan import group_items
from benchmark.grids.predict import Networks, Prediction, predict
from benchmark.networks.build import Built
from benchmark.recount.counting import (
    COUNTERS,
    LAYOUTS,
    RULES,
    Backbone,
    Layout,
    Question,
    describe_network,
    inference_share,
    train_share,
)
from leaderboard.paper.published import SPARSITIES, Match, PaperRow, Part, Tables

TABLE, NUMBER = "table3", 3
NOWHERE = Path("no data")  # data sets by their published sizes, whatever is on this machine
COLUMNS = SPARSITIES[NUMBER]  # sparsities of the table's columns, in percent
DIGITS = 6  # of a share, in the file of figures
Figures = dict[str, Any]


def find_part(tables: Tables) -> Part:
    """Return the one part of the paper's table that has FLOPs."""
    (part,) = tables.tables[NUMBER - 1].parts
    return part


def work_out(given: dict[str, Any], part: Part) -> Figures:
    """Return all figures for `given`, the content of docs/flops.yaml. Nothing is trained and no image is read.

    `readings`: for each row of the table and each cost, one entry for each combination of conventions, with a share of
    the dense network's cost for each column. `page`: what the suite predicts for the row on its own page.
    """
    planner = PagePlanner()
    (dense,) = plan_cells("dense", "0", part.page, "0", "")
    full = planner.network(dense)
    rows = {row.label: read_row(row, full, planner, given) for row in part.rows}
    return {
        "dense": {"macs": full.costs.dense, "weights": full.weights, "layers": len(full.shapes)},
        "left_out_pct": {
            name: measure_sparsity(entry, full)
            for name, entry in given["layers"].items()
            if entry["formula"].startswith("published")
        },
        "readings": rows,
        "page": {row.label: [planner.show(match) for match in row.ours] for row in part.rows if row.ours},
    }


def read_row(row: PaperRow, full: Backbone, planner: PagePlanner, given: dict[str, Any]) -> dict[str, Any]:
    """Return the readings of a row's costs; none where docs/flops.yaml says why there are none."""
    tried = given["rows"][row.label]
    found: dict[str, Any] = {"inference": [], "training": []}
    for name in tried.get("layers", []):
        layouts = {column: make_layout(name, full, row, column, planner, given) for column in COLUMNS}
        for counter, count in COUNTERS.items():
            kinds = {"layers": name, "counter": counter}
            shares = {
                str(column): round(inference_share(column / 100, layout, full, count), DIGITS)
                for column, layout in layouts.items()
            }
            found["inference"].append({**kinds, "shares": shares})
            for rule in tried["training"]:
                entry = given["training"][rule]
                shares = {
                    str(column): round(
                        train_share(RULES[entry["formula"]](column / 100, entry), layout, full, count), DIGITS
                    )
                    for column, layout in layouts.items()
                }
                found["training"].append({**kinds, "rule": rule, "shares": shares})
    return found


def make_layout(
    name: str, full: Backbone, row: PaperRow, column: int, planner: PagePlanner, given: dict[str, Any]
) -> Layout:
    """Return the layout `name` of docs/flops.yaml for a row and column of the table."""
    entry = given["layers"][name]
    own = planner.network(planner.find(row.ours[0], column)) if entry["formula"] == "own network" else None
    return LAYOUTS[entry["formula"]](Question(full, own, column, entry))


def measure_sparsity(entry: dict[str, Any], full: Backbone) -> dict[str, float]:
    """Return how many of the network's weights a published layout leaves out, in percent and by column."""
    layouts = {column: LAYOUTS[entry["formula"]](Question(full, None, column, entry)) for column in COLUMNS}
    active = {column: sum(layout.counts_at(column / 100).values()) for column, layout in layouts.items()}
    return {str(column): round(100 * (1 - count / full.weights), 2) for column, count in active.items()}


class PagePlanner:
    """Predicts the rows of the grid of the table as PLAN=1 does, each once, on networks that are built once."""

    def __init__(self) -> None:
        self.networks = Networks()
        groups = group_items(read_grid(CONFIGS / "paper" / f"{TABLE}.yaml").items)
        self.cells = [items[0].cell for items in groups if items[0].donor is None]

    def find(self, match: Match, column: int) -> Cell:
        """Return the cell of the grid that stands for a row and column of the table."""
        sparsities = (column / 100, 0.0)  # a dense network has no sparsity
        (cell,) = (
            cell
            for cell in self.cells
            if (cell.plugin.name, cell.method_changes) == (match.method, match.changed) and cell.sparsity in sparsities
        )
        return cell

    def built(self, cell: Cell) -> Built:
        """Return the network of a cell."""
        return self.networks.get(cell, stand_in(cell.page, NOWHERE)).built

    def network(self, cell: Cell) -> Backbone:
        """Return what counting needs of the network of a cell."""
        built = self.built(cell)
        return describe_network(built.model, built.layers, built.costs)

    def predict(self, cell: Cell) -> Prediction:
        """Return what training the cell will cost."""
        data = stand_in(cell.page, NOWHERE)
        return predict(cell, data, self.networks.get(cell, data))

    def show(self, match: Match) -> dict[str, Any]:
        """Return what is predicted for one of our rows: shares by column, and whether they are exact."""
        shown: dict[str, Any] = {"row": self.find(match, COLUMNS[0]).label, "columns": {}}
        for column in COLUMNS:
            cell = self.find(match, column)
            prediction, built = self.predict(cell), self.built(cell)
            shown["columns"][str(column)] = {
                "training": round(prediction.share, DIGITS),
                "inference": round(built.costs.forward(prediction.counts) / built.reference.dense, DIGITS),
                "exact": prediction.exact,
            }
        return shown


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
