"""Promises of measured speed on the leaderboard: sealed files beside the records, and a table made from them alone."""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard import RecordError, rebuild, render, write_record
from leaderboard.board.build import find_stale
from leaderboard.board.sheet import store_state
from leaderboard.store.measurements import (
    find_faults,
    folder_of,
    load_measurements,
    read_measurement,
    write_measurement,
)
from leaderboard.store.schema import seal_of
from leaderboard.tables.details import ABOUT, ONNX
from tests.harness.record_factory import RUN, batch, engine, make_measurement, make_record


def page_of(*measurements: dict[str, Any], records: list[dict[str, Any]] | None = None) -> str:
    """Return the page of records with measurements in the order given, newest first."""
    records = [make_record()] if records is None else records
    files = [{**record, "file": f"{record['run']}.json"} for record in records]
    return render(files, [], measured=[{**one, "file": "x.json"} for one in measurements])


def lines_of(text: str) -> list[list[str]]:
    """Return the cells of the table of measured speed, without its head."""
    after = text.split(ABOUT)[1].split("\n\n")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in after.splitlines()[2:]]


# Files


def test_a_measurement_is_sealed_read_back_and_never_overwritten(tmp_path):
    first = write_measurement(make_measurement(), tmp_path)
    second = write_measurement(make_measurement(measured="2025-03-02T12:00:00Z"), tmp_path)
    assert (first.name, second.name) == (f"{RUN}.Some_CPU.t1.json", f"{RUN}.Some_CPU.t1.2.json")
    read = read_measurement(first)
    assert read.pop("file") == first.name and read.pop("seal") == seal_of(make_measurement())
    assert read == make_measurement()
    assert list(tmp_path.glob(".*")) == []


def test_names_from_a_measurement_never_leave_the_folder(tmp_path):
    path = write_measurement(make_measurement(run="../../evil", hardware="a/b\0.9"), tmp_path / "latency")
    assert path.parent == tmp_path / "latency" and [p.name for p in tmp_path.iterdir()] == ["latency"]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a speed-up of its own": (
        lambda m: m["batches"][0]["engines"][3].update(speed_up=40.0),
        "batch 1, csr: speed_up is 40.0, dense / it is 4.0",
    ),
    "a median off its quartiles": (
        lambda m: m["batches"][0]["engines"][2].update(low_ms=9.0),
        "batch 1, zeros: the median 8.0 is not within the quartiles 9.0",
    ),
    "figures of an invalid engine": (
        lambda m: m["batches"][0]["engines"][4].update(ms=1.0),
        "batch 1, dead filters is invalid and has ms",
    ),
    "no figures of a valid one": (
        lambda m: m["batches"][0]["engines"].__setitem__(5, {"engine": "slim", "status": "ok", "note": ""}),
        "batch 1, slim is ok and has no figures",
    ),
    "an engine twice": (lambda m: m["batches"][0]["engines"].append(engine("csr", 2.0, 8.0)), "names an engine twice"),
    "no dense network": (lambda m: m["batches"][0]["engines"].pop(0), "batch 1 has no time of the dense network"),
    "a batch twice": (lambda m: m["batches"].append(batch(1)), r"each batch size once, got \[1, 64, 1\]"),
    "an unknown engine": (lambda m: m["batches"][0]["engines"][2].update(engine="magic"), "must be one of dense"),
    "no threads": (lambda m: m.update(threads=0), "threads must be a whole number of at least 1"),
    "no time": (lambda m: m["batches"][0]["engines"][2].update(ms=0.0), "must be a number above 0"),
    "no run": (lambda m: m.pop("run"), "run is missing"),
    "not a number": (lambda m: m.update(load=float("nan")), "is not plain JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_measurement_whose_figures_disagree_is_not_written_and_not_read(tmp_path, fault):
    spoil, message = FAULTS[fault]
    content = make_measurement()
    spoil(content)
    assert any(re.search(message, text) for text in find_faults(content)), find_faults(content)
    with pytest.raises(RecordError, match="was not written"):
        write_measurement(content, tmp_path / "latency")
    assert not (tmp_path / "latency").exists()
    if fault != "not a number":
        sealed = tmp_path / "sealed.json"
        sealed.write_text(json.dumps({**content, "seal": seal_of(content)}))
        with pytest.raises(RecordError, match=message):
            read_measurement(sealed)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A board with one record, one measurement of it, and the page built."""
    write_record(make_record(), tmp_path / "records")
    write_measurement(make_measurement(), folder_of(tmp_path / "records"))
    rebuild(tmp_path / "records", tmp_path / "LEADERBOARD.md")
    return tmp_path


def stale(board: Path) -> list[str]:
    """Return what `verify` finds, pictures and the paper's page apart, which show no measurement."""
    faults = find_stale(board / "records", board / "LEADERBOARD.md")
    return [fault for fault in faults if fault.startswith(("record", "measurement", "LEADERBOARD.md"))]


def test_the_built_page_shows_it_and_verify_holds_it(board):
    text = (board / "LEADERBOARD.md").read_text()
    assert lines_of(text)[0][7] == "4.00×" and stale(board) == []
    (next((board / "latency").iterdir())).unlink()
    assert stale(board) == ["LEADERBOARD.md does not match the records"]


def edit(path: Path) -> None:
    content = json.loads(path.read_text())  # the change is consistent in itself: only the seal can tell
    content["batches"][0]["engines"][3].update(ms=0.2, low_ms=0.1, high_ms=0.3, speed_up=40.0)
    path.write_text(json.dumps(content))


def unseal(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["seal"]
    path.write_text(json.dumps(content))


def orphan(path: Path) -> None:
    content = make_measurement(masks_sha256="ef" * 32)
    path.write_text(json.dumps({**content, "seal": seal_of(content)}))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (edit, "does not match its seal: it was edited or damaged"),
        (unseal, "seal is missing"),
        (orphan, "there is no record of the run '.*' with these masks"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "not readable as JSON"),
    ],
)
def test_a_measurement_that_was_harmed_is_named_and_set_aside_and_the_rest_is_built(board, harm, reason):
    other = make_measurement(hardware="Other", batches=[batch(1, 6.0, 6.0, 2.0)])
    write_measurement(other, board / "latency")
    path = board / "latency" / f"{RUN}.Some_CPU.t1.json"
    harm(path)
    (named,) = [fault for fault in stale(board) if fault.startswith("measurement")]
    assert re.search(f"measurement latency/{path.name}: .*{reason}", named)
    rebuild(board / "records", board / "LEADERBOARD.md")
    text = (board / "LEADERBOARD.md").read_text()
    assert f"- latency/{path.name}: " in text and "## Skipped files" in text
    assert [line[-1] for line in lines_of(text)] == ["Other, 1 thread, torch 2.14"]
    assert path.exists() and stale(board) == [named]  # the page is what the files give; the file is still at fault


# The table


def test_a_measurement_that_arrives_changes_what_a_rebuild_waits_for(board):
    before = store_state(board / "records")
    write_measurement(make_measurement(threads=2), board / "latency")
    assert len(store_state(board / "records")) == len(before) + 1


def test_without_a_measurement_the_page_keeps_its_bytes():
    records = [make_record(), make_record(seed=1)]
    foreign = make_measurement(run="another run")
    assert page_of(records=records) == page_of(foreign, records=records)
    assert "Measured speed" not in page_of()


def test_a_line_has_the_figures_of_one_batch_on_one_machine():
    assert lines_of(page_of(make_measurement())) == [
        # granet, theoretical share, batch, best dense; plain fp32, zeros, csr, dead filters (invalid), slim
        ["granet", "90 %", "0.28×", "1", "8", "0.50×", "1.00×", "4.00×", "·", "2.00×", "0",
         "Some CPU, 1 thread, torch 2.14"],
        ["granet", "90 %", "0.28×", "64", "80", "0.50×", "1.00×", "0.80×", "·", "2.00×", "0",
         "Some CPU, 1 thread, torch 2.14"],
    ]  # fmt: skip


def test_several_seeds_are_a_mean_and_blank_where_one_lacks_the_figure():
    records = [make_record(seed=seed) for seed in (0, 1)]
    ours = [make_measurement(run=record["run"], batches=[batch(1, 8.0, 8.0, csr)])
            for record, csr in zip(records, (2.0, 4.0), strict=True)]  # fmt: skip
    (line,) = lines_of(page_of(*ours, records=records))
    assert line[7] == "3.00×" and line[10] == "0, 1"
    del ours[1]["batches"][0]["engines"][3]
    (line,) = lines_of(page_of(*ours, records=records))
    assert line[7] == "·" and line[6] == "1.00×"


def test_the_newest_measurement_of_a_run_on_a_machine_counts_batch_by_batch(tmp_path):
    for day, entries in ((1, [batch(1), batch(64)]), (3, [batch(1, 8.0, 8.0, 1.0)]), (2, [batch(1, 8.0, 8.0, 8.0)])):
        write_measurement(make_measurement(measured=f"2025-03-0{day}T12:00:00Z", batches=entries), tmp_path)
    measured, problems = load_measurements(tmp_path, [make_record()])
    assert [entry["measured"][9] for entry in measured] == ["3", "2", "1"] and problems == []
    assert [(line[3], line[7]) for line in lines_of(page_of(*measured))] == [("1", "8.00×"), ("64", "4.00×")]


@pytest.mark.parametrize("name", ["2:4", "onnxruntime"])
def test_a_rare_engine_has_a_column_where_it_was_measured(name):
    measurement = make_measurement(batches=[batch(1)])
    measurement["batches"][0]["engines"][6] = engine(name, 4.0, 8.0)
    text = page_of(measurement)
    assert f"| slim | {name} | seeds |" in text and lines_of(text)[0][10] == "2.00×"
    assert (ONNX in text) == (name == "onnxruntime")
    assert name not in page_of(make_measurement()).replace(ABOUT, "")


def test_the_page_does_not_depend_on_the_order_of_files(tmp_path):
    records = [make_record(seed=seed) for seed in range(3)]
    for record in records:
        for threads in (1, 2):
            write_measurement(make_measurement(run=record["run"], threads=threads), tmp_path)
    measured, _ = load_measurements(tmp_path, records)
    expected = page_of(*measured, records=records)
    for number in range(5):
        mixed = copy.copy(records)
        random.Random(number).shuffle(mixed)
        assert page_of(*measured, records=mixed) == expected


def test_machines_and_threads_are_lines_of_their_own():
    places = [{"threads": 2}, {"hardware": "A GPU", "device": "xpu"}, {"threads": 1}]
    measured = [make_measurement(batches=[batch(1)], **place) for place in places]
    expected = ["A GPU, 1 thread, torch 2.14", "Some CPU, 1 thread, torch 2.14", "Some CPU, 2 threads, torch 2.14"]
    for order in itertools.permutations(measured):
        assert [line[-1] for line in lines_of(page_of(*order))] == expected
