"""Promises of a record's rules: every key is there and typed, and every number agrees with what it is made from."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard.store.kinds import (
    AT_LEAST_0,
    BOOL,
    NUMBER,
    PERCENT,
    SHARE,
    TEXT,
    WHOLE,
    Kind,
    list_of,
    or_null,
    type_faults,
)
from leaderboard.store.records import read_records
from leaderboard.store.schema import FIELDS, find_faults, is_typed
from tests.harness.record_factory import make_record


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
OPTIONAL = {("environment", "threads"), ("history", 0, "explored")}
REQUIRED = [p for p in paths(make_record()) if p not in OPTIONAL and (p[:2] not in FREE or len(p) == 2)]
DONOR = {
    "run": "digits_resnet20.granet.0.9.s0.3f9a1c2e",
    "label": "granet",
    "sparsity": 0.9,
    "seed": 0,
    "kind": "shuffled masks",
    "masks_sha256": "ab" * 32,
}


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
        ({"schema": 3, "seed": "new"}, "schema must be 1 or 2, the ones that this version reads, got 3"),
        ({"schema": True}, "schema must be 1 or 2, the ones that this version reads, got true"),
        ({"seal": "AB" * 32}, "seal must be 64 hex digits, got"),
        ({}, "seal is missing"),
        (
            {"method": {"donor": {**DONOR, "kind": "weights"}}},
            "method.donor.kind must be one of densities, masks, shuff",
        ),
        ({"method": {"donor": {**DONOR, "sparsity": 1}}}, "method.donor.sparsity must be a number in [0, 1), got 1"),
        ({"method": {"donor": {}}}, "method.donor.run is missing; method.donor.label is missing"),
        ({"run": "<b>run</b>"}, 'run must be a name: a text that is not empty, without < and >, got "<b>run</b>"'),
        ({"method": {"name": "a>b"}}, "method.name must be a name"),
        ({"status": "fine"}, 'status must be one of ok, diverged, got "fine"'),
        ({"seed": 1.0}, "seed must be a whole number of at least 0, got 1.0"),
        ({"sparsity": 1.0}, "sparsity must be a number in [0, 1), got 1.0"),
        ({"accuracy_pct": {"best_on_test": 100.5}}, "accuracy_pct.best_on_test must be a number in [0, 100], or null"),
        ({"data": {"classes": 0}}, "data.classes must be a whole number from 1 to 1,000,000, got 0"),
        ({"data": {"classes": 10**30}}, "data.classes must be a whole number from 1 to 1,000,000"),
        (
            {"page": {"settings": {"epochs": "ten"}}},
            'page.settings.epochs must be a whole number of at least 1, got "ten"',
        ),
        (
            {"page": {"changed": {"a": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}}},
            "page.changed must be an object, nested at most 20 deep",
        ),
        ({"method": {"sha256": "# Owned"}}, 'method.sha256 must be 64 hex digits, got "# Owned"'),
        ({"finished": "2025-01-31T12:01:00+02:00"}, "finished must be an ISO-8601 time in UTC"),
        ({"finished": "2025-01-31T11:59:59Z"}, "finished (2025-01-31T11:59:59Z) is before started"),
        ({"method": {"group": "magic"}}, "method.group must be one of dense, before training"),
        ({"weights": {"active": 101}}, "weights.active is 101, the prunable layers have 100"),
        ({"weights": {"nonzero": 101}}, "weights.nonzero is 101, more than weights.active (100)"),
        ({"selected": {"ties": "best"}}, 'selected.ties must be one of first, last, got "best"'),
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
        ({"accuracy_pct": {"best_on_test": 12.0}}, "best_on_test is 12.0, below last_epoch (92.5)"),
        ({"time": {"train_s": 1.7e308}}, "time.train_s must be a finite number of at least 0, got 1.7e+308"),
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


# Schemas


def schema_1(**changes: Any) -> dict[str, Any]:
    """Return a record as it was written before there were seals and shares of weights ever active."""
    record = make_record(schema=1, **changes)
    for row in record["history"]:
        del row["explored"]
    return record


def test_a_record_of_schema_1_still_loads_and_has_no_seal(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(schema_1()))
    records, problems = read_records(tmp_path)
    assert (records, problems) == ([{**schema_1(), "file": "old.json"}], [])
    reason = plant(schema_1(seal="ab" * 32), tmp_path / "sealed")
    assert reason == f'seal must be absent in a record of schema 1, got "{"ab" * 29}…'


# The share of weights ever active


def with_explored(*shares: float | None) -> dict[str, Any]:
    """Return a record of density 0.1 whose history has these shares of weights ever active; None: an epoch without."""
    record = make_record()
    for row, share in zip(record["history"], shares, strict=True):
        del row["explored"]
        if share is not None:
            row["explored"] = share
    return record


@pytest.mark.parametrize(
    ("shares", "faults"),
    [
        ((0.1, 0.1, 0.3), []),
        ((None, None, None), []),
        ((0.2, None, 0.2), []),
        ((0.1 - 1e-10, 0.5, 1), []),  # rounding is no fault
        ((0.1, 0.5, 1.1), ["history[2].explored must be a number in [0, 1], got 1.1"]),
        ((0.09, 0.5, 0.5), ["history[0].explored is 0.09, below the density 0.1"]),
        ((0.3, 0.2, 0.2), ["history[1].explored is 0.2, after 0.3: it can only grow"]),
        ((0.3, None, 0.2), ["history[2].explored is 0.2, after 0.3: it can only grow"]),
    ],
)
def test_the_share_ever_active_holds_the_active_ones_and_only_grows(
    shares: tuple[float | None, ...], faults: list[str]
) -> None:
    assert find_faults(with_explored(*shares)) == faults


# The quick test of a record against the one that finds words

ODD = [None, True, False, 0, 1, -1, 0.5, 1.5, -0.5, 101, 1e300, 10**31, "", " ", "x", "<", [], [[]], [1], ["x"], {}]
ODD += [{"x": 1}, {"x": -1}]


def test_the_quick_test_of_a_record_is_as_strict_as_the_one_with_words() -> None:
    plain = make_record(method={"donor": DONOR}, seal="ab" * 32)
    verdicts = set()
    for path in paths(plain):
        for place in (0, 2):  # of the first and the last row of a list of three
            for odd in [*ODD, "delete"]:
                record = copy.deepcopy(plain)
                parent: Any = record
                for key in path[:-1]:
                    parent = parent[place if isinstance(key, int) else key]
                if odd == "delete":
                    del parent[path[-1]]
                else:
                    parent[path[-1]] = odd
                verdicts.add(is_typed(record))
                assert is_typed(record) == (not list(type_faults(record, FIELDS, ""))), (path, place, odd)
    assert verdicts == {True, False}
    for odd in ODD:
        for record in (odd, {**plain, "layers": [odd]}, {**plain, "history": [odd, odd]}):
            assert is_typed(record) == (not list(type_faults(record, FIELDS, "")))


@pytest.mark.parametrize(
    "kind",
    [WHOLE, NUMBER, AT_LEAST_0, SHARE, PERCENT, TEXT, BOOL, or_null(PERCENT), list_of(WHOLE)],
    ids=lambda k: k.rule,
)
def test_many_values_are_tested_as_strictly_as_one_by_one(kind: Kind) -> None:
    good = [odd for odd in ODD if kind.accepts(odd)]
    assert good and kind.accepts_all(good) and kind.accepts_all([])
    for odd in ODD:
        for values in ([odd], [*good, odd], [odd, *good]):
            assert kind.accepts_all(values) == kind.accepts(odd), values
