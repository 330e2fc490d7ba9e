"""Promises of a record's rules: every key is there and typed, and every number agrees with what it is made from."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from record_factory import make_record

from leaderboard.records import read_records
from leaderboard.schema import find_faults


def plant(record: dict[str, Any], folder: Path, name: str = "planted.json") -> str:
    """Put a record into the store without the writer's checks, read it, and return why it was refused."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(record), encoding="utf-8")
    records, problems = read_records(folder)
    assert records == [] and [problem.file for problem in problems] == [name]
    return problems[0].reason


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every key of a record, through dicts and the first entries of lists of dicts."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in inner:
        if isinstance(value, dict):
            yield (*path, key)
        yield from paths(entry, (*path, key))


FREE = {("environment", "threads"), ("page", "settings"), ("macs", "operators"), ("macs", "omitted")}
REQUIRED = [p for p in paths(make_record()) if p[:2] not in FREE or (len(p) == 2 and p != ("environment", "threads"))]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_every_key_is_required_and_typed(path: tuple[str | int, ...]) -> None:
    name = ".".join(map(str, path)).replace(".0.", "[0].")
    for planted in ("missing", "wrong type"):
        record = copy.deepcopy(make_record())
        parent: Any = record
        for key in path[:-1]:
            parent = parent[key]
        if planted == "missing":
            del parent[path[-1]]
            assert find_faults(record) == [f"{name} is missing"]
        else:
            parent[path[-1]] = [1.5, "x"]  # no key takes such a list
            faults = find_faults(record)
            assert faults and all(fault.startswith(name) for fault in faults)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema must be 1, the only one this version reads, got 2"),
        ({"status": "fine"}, 'status must be one of ok, diverged, got "fine"'),
        ({"seed": True}, "seed must be a whole number of at least 0, got true"),
        ({"seed": 1.0}, "seed must be a whole number of at least 0, got 1.0"),
        ({"sparsity": 1.0}, "sparsity must be a number in [0, 1), got 1.0"),
        ({"accuracy_pct": {"best_on_test": 100.5}}, "accuracy_pct.best_on_test must be a number in [0, 100], or null"),
        (
            {"accuracy_pct": {"validation_selected": -1}},
            "accuracy_pct.validation_selected must be a number in [0, 100]",
        ),
        ({"finished": "2025-01-31T12:01:00"}, "finished must be an ISO-8601 time in UTC"),
        ({"finished": "2025-01-31T12:01:00+02:00"}, "finished must be an ISO-8601 time in UTC"),
        ({"finished": "2025-01-31T11:59:59Z"}, "finished (2025-01-31T11:59:59Z) is before started"),
        ({"method": {"group": "magic"}}, "method.group must be one of dense, before training"),
        ({"weights": {"active": 101}}, "weights.active is 101, the prunable layers have 100"),
        ({"weights": {"prunable": 999}}, "weights.prunable is 999, the prunable layers have 1000"),
        ({"weights": {"active_parameters": 251}}, "active_parameters is 251, parameters less inactive ones is 250"),
        ({"weights": {"dense_prunable": 0}}, "weights.dense_prunable must be a whole number of at least 1, got 0"),
        ({"weights": {"dense_prunable": 2000}}, "weights.prunable is 1000, the full network has 2000"),
        ({"density": {"prunable": 0.1 + 1e-11}}, "density.prunable is 0.10000000001, active / dense_prunable is 0.1"),
        ({"density": {"all_parameters": 0.1}}, "density.all_parameters is 0.1, active_parameters / dense_parameters"),
        ({"empty_layers": ["first.weight"]}, 'empty_layers is ["first.weight"], without active weights are []'),
        ({"macs": {"inference_share": 0.28 + 1e-8}}, "macs.inference_share is 0.28000001, inference / inference_dense"),
        ({"macs": {"train": 1}}, "macs.train_share is 0.28, train / train_dense is 1.1"),
        ({"macs": {"scoring": 10**12}}, "macs.scoring is 1000000000000, more than macs.train (2520000)"),
        ({"accuracy_pct": {"last_epoch": None}}, "accuracy_pct.last_epoch is null in a run that did not diverge"),
        ({"history": []}, "history is empty in a run that did not diverge"),
        ({"history": [{**make_record()["history"][0], "test_acc_pct": 9.0}]}, "is 92.5, the history ends at 9.0"),
    ],
)
def test_every_planted_fault_is_caught_with_its_reason(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    assert reason in plant(make_record(**changes), tmp_path)


@pytest.mark.parametrize(
    ("index", "changes", "reason"),
    [
        (0, {"active": 99}, "layer 'stem.weight' is not prunable but has 99 active of 100 weights"),
        (1, {"shape": [6, 4, 5, 4]}, "layer 'first.weight' has 600 weights, its shape [6, 4, 5, 4] has 480"),
        (1, {"active": 601}, "layer 'first.weight' has 601 active of 600 weights"),
        (2, {"active": 0}, "weights.active is 100, the prunable layers have 60"),
        (2, {"prunable": 1}, "layers[2].prunable must be true or false, got 1"),
    ],
)
def test_a_fault_in_a_layer_is_caught(tmp_path: Path, index: int, changes: dict[str, Any], reason: str) -> None:
    record = make_record()
    record["layers"][index].update(changes)
    assert reason in plant(record, tmp_path)


def test_a_run_that_misses_its_budget_by_one_weight_is_invalid(tmp_path: Path) -> None:
    # Of 1,000 weights 100 are active, consistent in every count; sparsity 0.899 asks for 101, 0.9004 for 100 (99.6).
    assert "misses its budget: 100 active weights, sparsity 0.899 asks for 101" in plant(
        {**make_record(), "sparsity": 0.899}, tmp_path
    )
    assert find_faults({**make_record(), "sparsity": 0.9004}) == []
    assert find_faults(make_record(method={"budget": "outcome"}) | {"sparsity": 0.5}) == []
    assert find_faults({**make_record(status="diverged"), "sparsity": 0.5}) == []  # may have stopped on the way


def test_a_dense_run_keeps_every_weight(tmp_path: Path) -> None:
    dense = make_record(method={"name": "dense"})
    assert dense["weights"]["active"] == 1000 and find_faults(dense) == []
    assert "sparsity must be 0 for a dense budget, got 0.9" in plant({**dense, "sparsity": 0.9}, tmp_path)
    pruned = make_record(method={"name": "dense"}, sparsity=0.9) | {"sparsity": 0}
    assert "misses its budget: 100 active weights, sparsity 0 asks for 1000" in plant(pruned, tmp_path)


def test_a_narrower_network_is_measured_against_the_full_one() -> None:
    narrow = make_record(
        sparsity=0.0,
        method={"name": "small_dense", "budget": "outcome", "group": "control"},
        weights={"dense_prunable": 10_000, "dense_parameters": 11_500},
        density={"prunable": 0.1, "all_parameters": 0.1},
    ) | {"sparsity": 0.9}
    assert find_faults(narrow) == []


def test_many_faults_are_told_in_one_short_line(tmp_path: Path) -> None:
    assert plant({"schema": 1}, tmp_path) == "protocol is missing; run is missing; started is missing; and 22 more"


def test_a_diverged_run_without_accuracy_is_valid() -> None:
    assert find_faults(make_record(status="diverged")) == []
