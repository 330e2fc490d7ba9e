"""Checking a record against the files of its run: everything that can be counted or measured again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmark.build import create_network, model_arguments
from benchmark.costs import count_costs
from benchmark.data import Data, load_data
from benchmark.errors import UserError
from benchmark.export import read_export
from benchmark.maskset import hash_masks
from benchmark.narrow import narrow_arguments
from benchmark.pages import Page, merge_settings
from benchmark.prunable import find_layers, prunable_weights
from benchmark.train import make_autocast, measure_accuracy
from leaderboard import Record, RecordError, read_record
from methods.core import count_kept

POINTS = 0.1  # another processor may round a score the other way: so far apart accuracies may be, or by one image

Finding = tuple[str, Any, Any, bool]  # what, in the record, found again, whether they agree


def verify_record(path: Path, runs: Path, data_root: Path) -> list[Finding]:
    """Compare the record at `path` with the network its run exported, rebuilt and evaluated anew.

    Nothing is taken from the record but the settings to rebuild network and data. Raises UserError when the record or
    the files cannot be read, or the weights do not fit the backbone.
    """
    try:
        record = read_record(path)
    except RecordError as error:
        raise UserError(f"record {path}: {error}") from error
    page = merge_settings(record["page"]["settings"], f"record {path}")
    weights, masks = read_export(runs / record["run"])
    data = load_data(page, data_root, torch.device("cpu"))
    model = rebuild_network(record, page, data)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"{runs / record['run']}: the weights do not fit {page.model}: {error}") from error
    return [
        (
            "data",
            record["data"]["fingerprint"][:16],
            data.fingerprint[:16],
            record["data"]["fingerprint"] == data.fingerprint,
        ),
        *compare_masks(record, masks),
        *compare_costs(record, page, model, data, masks),
        compare_accuracy(record, model, data),
    ]


def rebuild_network(record: Record, page: Page, data: Data) -> nn.Module:
    """Return the record's backbone, narrowed where its method narrows."""
    arguments = model_arguments(page, data)
    width = record["method"]["settings"].get("width")
    if width is not None:
        arguments = narrow_arguments(page.model, arguments, width)
    return create_network(page, arguments)


def same(what: str, recorded: Any, found: Any) -> Finding:
    """Return the finding that two values must be equal."""
    return what, recorded, found, recorded == found


def compare_masks(record: Record, masks: Mapping[str, Tensor]) -> list[Finding]:
    """Compare counts, density and masks, layer by layer."""
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    recorded = {layer["name"]: layer["active"] for layer in record["layers"] if layer["prunable"]}
    active = sum(counts.values())
    findings = [
        same("masks (sha256)", record["masks_sha256"][:16], hash_masks(masks)[:16]),
        same("active weights", record["weights"]["active"], active),
        same("layers with the recorded count", f"{len(recorded)} of {len(recorded)}", tally(recorded, counts)),
        same("density", record["density"]["prunable"], active / record["weights"]["dense_prunable"]),
    ]
    if record["method"]["budget"] == "exact":
        budget = count_kept(record["sparsity"], sum(mask.numel() for mask in masks.values()))
        findings.append(same(f"budget at sparsity {record['sparsity']:g}", budget, active))
    return findings


def tally(recorded: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """Return how many layers hold the recorded number of active weights, of how many there are in either."""
    right = sum(counts.get(name) == count for name, count in recorded.items())
    return f"{right} of {len(recorded.keys() | counts.keys())}"


def compare_costs(
    record: Record, page: Page, model: nn.Module, data: Data, masks: Mapping[str, Tensor]
) -> list[Finding]:
    """Count the inference cost again, from the rebuilt network and the masks in the file."""
    layers = find_layers(model, page)
    costs = count_costs(model, layers, (data.channels, data.image_size, data.image_size))
    names = list(prunable_weights(model, layers))
    inference = costs.forward({name: int(mask.sum()) for name, mask in masks.items()})
    return [
        same("prunable layers", len(names), sum(name in masks for name in names)),
        same("inference macs", record["macs"]["inference"], inference),
    ]


def compare_accuracy(record: Record, model: nn.Module, data: Data) -> Finding:
    """Evaluate the network on the test part, in the record's precision."""
    environment, cpu = record["environment"], torch.device("cpu")
    channels_last = bool(environment.get("channels_last"))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    found = measure_accuracy(model, data.test, cpu, make_autocast(cpu, environment["precision"]), channels_last)
    recorded = record["accuracy_pct"]["last_epoch"]
    near = recorded is not None and abs(found - recorded) <= max(POINTS, 100 / len(data.test)) + 1e-9
    return "test accuracy, last epoch (%)", recorded, found, near


def print_findings(console: Console, findings: list[Finding]) -> bool:
    """Print the comparison as a table; return whether everything agrees."""
    table = Table(box=None, pad_edge=False)
    for column in ("what", "record", "found again", "verdict"):
        table.add_column(column, overflow="fold")
    for what, recorded, found, agrees in findings:
        table.add_row(what, show(recorded), show(found), "same" if agrees else "[red]DIFFERS[/red]")
    console.print(table)
    return all(finding[3] for finding in findings)


def show(value: Any) -> str:
    """Return a value as the table shows it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
