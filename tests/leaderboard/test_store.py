"""Promises of the compact store: it says of every file what the plain reader says, in little memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import pytest

import leaderboard.store.records as store
from leaderboard.store.records import COLUMNS, curves, load_store, read_records, write_record
from leaderboard.store.schema import lay_out
from tests.harness import perf_sheets
from tests.harness.perf_sheets import write_varied
from tests.harness.record_factory import make_record

ROOT = Path(__file__).resolve().parents[2]


def plain(value: Any) -> Any:
    """Return a compact value as JSON text: columns as lists, so that equal NaNs are equal and 1 is not 1.0."""
    return json.dumps(value, default=list, sort_keys=True)


def expect(folder: Path) -> tuple[str, list[Any]]:
    """Return what the plain reader says of `folder`, its histories as columns."""
    records, problems = read_records(folder)
    short = [{key: value for key, value in record.items() if key != "history"} for record in records]
    return plain([{**kept, "curves": curves(record)} for kept, record in zip(short, records, strict=True)]), problems


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def make_zoo(folder: Path) -> None:
    """Fill `folder` with records, repeats, copies and files that are wrong in every known way."""
    good = write_record(make_record(run="r"), folder)
    for seed in range(4):
        write_record(make_record(run="r", seed=seed), folder)
        write_record(make_record(run=f"s{seed}", seed=seed, method={"name": "dense"}), folder)
    write_record(make_record(run="diverged", status="diverged"), folder)
    write_record(make_record(schema=1, run="old"), folder)
    for depth in (100, 450):
        write_record(make_record(run=f"deep {depth}", more=nest(depth)), folder)
    (folder / "deep settings.json").write_text(lay_out(make_record(page={"settings": {"nested": nest(30)}})))
    for number, wrong in enumerate(
        [{"seed": -1}, {"schema": 3}, {"history": [1]}, {"layers": None}, {"weights": {"active": 1}}, {"seal": "x"}]
    ):
        (folder / f"wrong {number}.json").write_text(lay_out(make_record(**wrong)))
    text = good.read_text()
    (folder / "copy.json").write_text(text)
    (folder / "r.10.json").write_text(json.dumps(json.loads(text)))
    (folder / "edited.json").write_text(text.replace("92.5", "92.6"))
    (folder / "nan.json").write_text(text.replace("92.5", "NaN"))
    (folder / "huge.json").write_text(text.replace("92.5", "1e999"))
    (folder / "script.json").write_text(lay_out(make_record(method={"name": "<script>"})))
    (folder / "cut.json").write_text(text[:500])
    (folder / "list.json").write_text("[1]")
    (folder / "too deep.json").write_text("[" * 100_000)
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.json").touch()
    (folder / "folder.json").mkdir()
    (folder / "link.json").symlink_to(folder / "nowhere")
    (folder / ".hidden.json").write_text("{")


# The same verdicts


@pytest.mark.parametrize("processes", ["one process", "two processes"])
def test_the_store_says_of_every_file_what_the_plain_reader_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    make_zoo(tmp_path)
    monkeypatch.setattr(store, "CHUNK", 3)
    if processes == "two processes":
        monkeypatch.setattr(store, "WORTH_A_POOL", 1)
    assert load_store(tmp_path / "absent") == ([], [])
    records, problems = load_store(tmp_path)
    assert (plain(records), problems) == expect(tmp_path)
    assert len(records) == 12 and len(problems) == 21
    files = {record["file"] for record in records} | {problem.file for problem in problems}
    assert files == {path.name for path in tmp_path.glob("[!.]*")}
    assert ("copy.json", "a copy of r.json") in {(problem.file, problem.reason) for problem in problems}


# Processes


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems read in one process")
@pytest.mark.parametrize("threads", [1, 2])
def test_many_files_are_read_by_other_processes_unless_a_thread_could_hold_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    for seed in range(6):
        write_record(make_record(seed=seed), tmp_path)
    read_file, here = store.read_file, []

    def read_and_note(path: Path) -> Any:
        here.append(path.name)  # in a forked process this is another list
        return read_file(path)

    monkeypatch.setattr(store, "CHUNK", 2)
    monkeypatch.setattr(store, "read_file", read_and_note)
    expected = load_store(tmp_path)
    assert len(here) == 6
    monkeypatch.setattr(store, "WORTH_A_POOL", 6)
    monkeypatch.setattr(threading, "active_count", lambda: threads)
    found = load_store(tmp_path)
    assert plain(found[0]) == plain(expected[0]) and found[1] == expected[1] == []
    assert len(here) == (6 if threads == 1 else 12)


def test_where_a_process_is_killed_its_files_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_zoo(tmp_path)
    read_file, here = store.read_file, os.getpid()

    def read_or_die(path: Path) -> Any:
        if os.getpid() != here and path.name == "nan.json":
            die(path)
        return read_file(path)

    monkeypatch.setattr(store, "CHUNK", 3)
    monkeypatch.setattr(store, "WORTH_A_POOL", 1)
    monkeypatch.setattr(store, "read_file", read_or_die)
    records, problems = load_store(tmp_path)
    assert (plain(records), problems) == expect(tmp_path)


# Curves


def test_curves_are_columns_of_the_history_from_either_form(tmp_path: Path) -> None:
    record = make_record()
    record["history"][1].update(test_acc_pct=None, validation_acc_pct=None)
    del record["history"][1]["explored"]
    write_record(record, tmp_path)
    (compact,), _ = load_store(tmp_path)
    assert "history" not in compact and curves(compact) is compact["curves"]
    for found in (curves(record), curves(compact)):
        assert tuple(found) == COLUMNS
        assert all(isinstance(column, array) and column.typecode == "d" for column in found.values())
        assert list(found["epoch"]) == [1, 2, 3] and list(found["lr"]) == [0.1, 0.1, 0.1]
        assert list(found["train_share"]) == [0.2] * 3 and list(found["density"]) == [0.1] * 3
        assert (found["explored"][0], found["explored"][2]) == (0.1, 0.2) and math.isnan(found["explored"][1])
        assert (found["test_acc_pct"][0], found["test_acc_pct"][2]) == (92.5, 92.5)
        assert math.isnan(found["test_acc_pct"][1]) and math.isnan(found["validation_acc_pct"][1])


# Memory


def test_a_record_with_a_key_nested_thousands_deep_is_kept_as_it_is() -> None:
    """Some versions of Python read it, and none can write it as bytes."""
    record = {"more": nest(2500), "curves": {}}
    assert store.Sharing().record(record)["more"] is record["more"]


def test_a_key_named_curves_in_a_file_is_not_taken_for_the_history(tmp_path: Path) -> None:
    record = make_record(curves={"epoch": [7]})
    assert list(curves(record)["epoch"]) == [1, 2, 3]
    write_record(record, tmp_path)
    assert list(load_store(tmp_path)[0][0]["curves"]["epoch"]) == [1, 2, 3]


def test_equal_parts_are_kept_once_and_unequal_ones_apart(tmp_path: Path) -> None:
    values = [1, 1.0, True, "1", [1], [1.0], -0.0, 0.0]
    for seed, value in enumerate(values):
        write_record(make_record(seed=seed, page={"settings": {"value": value}}), tmp_path)
    records, _ = load_store(tmp_path)
    by_seed = sorted(records, key=lambda record: record["seed"])
    assert [repr(record["page"]["settings"]["value"]) for record in by_seed] == [repr(value) for value in values]
    first, second = records[:2]
    for part in ("layers", "environment", "data", "git", "method"):
        assert first[part] is second[part]
    assert first["curves"]["lr"] is second["curves"]["lr"] and first["page"] is not second["page"]


def test_ten_thousand_records_would_fit_well_below_300_megabytes(tmp_path: Path) -> None:
    for number in range(0, 9600, 97):  # every method, sparsity and page
        write_varied(tmp_path, number)
    tracemalloc.start()
    try:
        records, _ = load_store(tmp_path)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(records) == 99
    assert used / 99 * 10_000 < 200e6


# The benchmark


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.harness.perf_sheets", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("50 records of ") and f"goal < {perf_sheets.GOAL_S} s" in done.stdout
