"""What the sheet of costs is made from: figures that follow from the grids, pages and methods alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmark import ROOT
from benchmark.config.cells import PROTOCOL, Cell, Item, plan_cells
from benchmark.config.grids import CONTROLS, Grid, read_grid, read_yaml
from benchmark.config.pages import CONFIGS
from benchmark.config.plugins import find_method
from benchmark.config.settings import resolve
from benchmark.data.sets import Data
from benchmark.data.standin import stand_in
from benchmark.grids.memory import nbytes, work_out_memory
from benchmark.grids.plan import group_items, row_of
from benchmark.grids.predict import Networks, Prediction, predict
from benchmark.grids.times import images_per_epoch
from benchmark.networks.build import Built
from benchmark.runs.run import make_timeline
from leaderboard import Record, read_record
from leaderboard.store.records import list_files
from leaderboard.store.schema import lay_out

TABLES = ("table2", "table3")
NOWHERE = Path("no data")  # data sets by their published sizes, whatever is on this machine
Figures = dict[str, Any]


def grid_file(table: str) -> Path:
    """Return the file of the grid of one of the paper's tables."""
    return CONFIGS / "paper" / f"{table}.yaml"


def ask() -> str:
    """Return a hash over all that decides the runs of the tables: their grids, pages and methods, and the protocol.

    A figure of another hash is of other runs. A change of how costs are counted is not in it; a test works out some of
    the figures anew.
    """
    contents = [resolve(read_yaml(grid_file(table))) for table in TABLES]
    controls = [(*made, find_method(made[0]).sha256) for made in CONTROLS.values()]
    methods = {row["method"]: find_method(row["method"]).sha256 for content in contents for row in content["rows"]}
    pages = {
        task: plan_cells("dense", "0", task, "0", "")[0].variant for content in contents for task in content["tasks"]
    }
    return hashlib.sha256(json.dumps([PROTOCOL, contents, controls, methods, pages]).encode()).hexdigest()


def work_out() -> Figures:
    """Return all figures: for each table and page its runs, their training FLOPs, time in images, memory and files."""
    return {
        "question": ask(),
        "records": measure_records([read_record(path) for path in list_files(ROOT / "leaderboard" / "records")]),
        "tables": {table: work_out_table(read_grid(grid_file(table))) for table in TABLES},
    }


def work_out_table(grid: Grid) -> dict[str, Any]:
    """Return the figures of a table, page by page; `rows` has the multiply-adds of training one run of each."""
    networks = Networks()
    predictions: dict[tuple[str, str, str, float], Prediction] = {}
    pages: dict[str, Any] = {}
    for items in group_items(grid.items):
        cell = items[0].cell
        data = stand_in(cell.page, NOWHERE)
        prediction = predictions[row_of(cell)] = predict_row(items[0], data, networks, predictions)
        page = pages.setdefault(
            cell.page_name, {"rows": {}, "runs": 0, "controls": 0, "train_macs": 0, "exact_runs": 0}
        )
        page["rows"][name_row(cell)] = prediction.train
        page["runs"] += len(items)
        page["controls"] += len(items) if items[0].donor is not None else 0
        page["train_macs"] += len(items) * prediction.train
        page["exact_runs"] += len(items) if prediction.exact else 0
        if not cell.method.narrows_network and "model" not in page:
            page |= describe_page(cell, data, networks.get(cell, data).built)
    return pages


def predict_row(
    item: Item, data: Data, networks: Networks, known: dict[tuple[str, str, str, float], Prediction]
) -> Prediction:
    """Return what a row's run will cost; a control's by what is predicted of its donor, which comes before it."""
    donor = known[row_of(item.donor)] if item.donor is not None else None
    return predict(item.cell, data, networks.get(item.cell, data), donor)


def name_row(cell: Cell) -> str:
    """Return a row and sparsity in words: `granet (start_sparsity=0.0) at 0.9`."""
    return f"{cell.label} at {cell.sparsity:g}"


def describe_page(cell: Cell, data: Data, built: Built) -> dict[str, Any]:
    """Return what holds for every run of a page on the full network: sizes, images, memory and files, in bytes."""
    page = dataclasses.replace(cell.page, precision="bf16")  # a GPU's
    memory = work_out_memory(page, data, built, torch.device("cuda"))
    stored = sum(nbytes(tensor) for tensor in built.model.state_dict().values())
    bits = -(-built.dense_prunable // 8)
    return {
        "model": page.model,
        "epochs": page.epochs,
        "batch_size": page.batch_size,
        "steps": make_timeline(cell, data).total_steps,
        "images_per_epoch": images_per_epoch(data),
        "dense_macs": built.costs.dense,
        "dense_train_macs": 3 * built.costs.dense * page.epochs * trained_images(cell, data),
        "parameters": built.dense_parameters,
        "layers": len(built.layers),
        "memory_bytes": memory.total,
        "weights_bytes": stored,
        "masks_bytes": bits,
        "checkpoint_bytes": stored + memory.optimizer + 2 * bits,
    }


def trained_images(cell: Cell, data: Data) -> int:
    """Return how many images an epoch trains on."""
    whole = cell.page.batch_size * (len(data.train) // cell.page.batch_size)
    return whole if cell.page.drop_last else len(data.train)


def measure_records(records: list[Record]) -> dict[str, int]:
    """Return the bytes of a record's file: for each epoch, for each layer, and the rest; medians over `records`."""
    parts: dict[str, list[float]] = {"epoch": [], "layer": [], "rest": []}
    for record in records:
        rest = len(lay_out({**record, "history": [], "layers": []}))
        parts["rest"].append(rest)
        for name, key in (("epoch", "history"), ("layer", "layers")):
            parts[name].append(
                (len(lay_out({**record, key: record[key]})) - len(lay_out({**record, key: []}))) / len(record[key])
            )
    return {name: round(statistics.median(sizes)) for name, sizes in parts.items()}
