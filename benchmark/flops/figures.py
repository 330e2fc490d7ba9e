"""What the sheet of recounted costs is made from: all readings of the printed costs, and what our page would cost."""

from __future__ import annotations

from typing import Any

from benchmark.build import Built
from benchmark.cells import Cell, plan_cells
from benchmark.data.standin import stand_in
from benchmark.flops.charges import RULES, inference_share, train_share
from benchmark.flops.counting import COUNTERS, Backbone, describe_network
from benchmark.flops.layouts import LAYOUTS, Layout, Question
from benchmark.planning.gridfile import read_grid
from benchmark.planning.plan import group_items
from benchmark.planning.planner import Networks, Prediction, predict
from benchmark.scale.figures import NOWHERE, grid_file
from leaderboard.paper.published import SPARSITIES, Match, PaperRow, Part, Tables

TABLE, NUMBER = "table3", 3
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
        groups = group_items(read_grid(grid_file(TABLE)).items)
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
