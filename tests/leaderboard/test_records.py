"""Promises of the store: a record is written whole or not at all, never overwritten, and only valid ones are read."""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import leaderboard.store.records as module
from leaderboard.store.records import Problem, file_stem, find_same, read_record, read_records, write_record
from leaderboard.store.schema import BROKEN, RecordError, is_sealed_text, lay_out, seal_of
from tests.harness.record_factory import make_record

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(record, tmp_path / "new" / "records")
    assert path.name == "digits_resnet20.granet.0.9.s0.3f9a1c2e.json"
    assert read_records(path.parent) == ([{**record, "seal": seal_of(record), "file": path.name}], [])


def test_a_repeat_gets_a_number_and_overwrites_nothing(tmp_path: Path) -> None:
    first = write_record(make_record(run="r"), tmp_path)
    content = first.read_bytes()
    later = [write_record(make_record(run="r", updates=updates), tmp_path) for updates in (7, 8)]
    assert [first.name, *(path.name for path in later)] == ["r.json", "r.2.json", "r.3.json"]
    assert first.read_bytes() == content
    assert [json.loads(path.read_text())["updates"] for path in later] == [7, 8]
    assert names(tmp_path) == ["r.2.json", "r.3.json", "r.json"]


def test_a_repeat_overwrites_nothing_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "links are not supported")

    monkeypatch.setattr(os, "link", refuse)
    test_a_repeat_gets_a_number_and_overwrites_nothing(tmp_path)


def test_the_name_of_a_file_is_the_run_s_with_what_no_name_may_have_replaced() -> None:
    """Where such a record is written is tested with what else a hostile file may do."""
    given = ["a.granet.0.9.s0.3f9a1c2e", "../../etc/passwd", "..", ".hidden", "a b|c\n\0é", "C:\\x"]
    stems = ["a.granet.0.9.s0.3f9a1c2e", "_.._etc_passwd", "run", "hidden", "a_b_c___", "C__x"]
    assert [file_stem(run) for run in given] == stems
    long = [file_stem("x" * 400 + end) for end in "ab"]  # cut, and still different
    assert list(map(len, long)) == [200, 200] and long[0] != long[1]


def test_what_is_invalid_or_no_plain_json_is_not_written(tmp_path: Path) -> None:
    nan, invalid = float("nan"), r"record 'r' is invalid and was not written: seed must be .*, got -1"
    for changes, reason in (
        ({"accuracy_pct": {"best_on_test": nan}}, "not plain JSON"),
        ({"page": {"settings": {"lr": float("inf")}}}, "not plain JSON"),
        ({"run": "r", "seed": -1}, invalid),
    ):
        with pytest.raises(RecordError, match=reason):
            write_record(make_record(**changes), tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_record(make_record(), tmp_path)
    assert names(tmp_path) == []


def write_many(folder: Path, writer: int) -> None:
    for number in range(5):
        write_record(make_record(run="same", seed=writer, updates=number), folder)


def test_concurrent_writers_lose_and_damage_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(tmp_path, writer)) for writer in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    records, problems = read_records(tmp_path)
    assert problems == []
    assert sorted((r["seed"], r["updates"]) for r in records) == [(w, n) for w in range(3) for n in range(5)]
    assert set(names(tmp_path)) == {"same.json", *(f"same.{number}.json" for number in range(2, 16))}


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.harness.record_factory import make_record
from leaderboard import write_record
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
os.{where} = die
write_record(make_record(run="r"), Path(sys.argv[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("where", ["fsync", "link"])
def test_a_writer_killed_before_the_link_leaves_nothing_to_see(tmp_path: Path, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED.replace("{where}", where), str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].endswith(".tmp")
    assert read_records(tmp_path) == ([], [])
    assert write_record(make_record(run="r"), tmp_path).name == "r.json"


# Reading


def test_damaged_files_are_skipped_with_a_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    good = write_record(make_record(run="good"), tmp_path)
    (tmp_path / "cut.json").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.json").touch()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "README.md").write_text("not a record")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "nan.json").write_text(good.read_text().replace("92.5", "NaN"))
    (tmp_path / "huge.json").write_text(good.read_text().replace("92.5", "1e999"))
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "schema.json").write_text(lay_out({**make_record(), "schema": 9}))
    (tmp_path / "script.json").write_text(lay_out(make_record(method={"name": "<script>alert(1)</script>"})))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    records, problems = read_records(tmp_path)
    assert [record["file"] for record in records] == ["good.json"]
    reasons = {problem.file: problem.reason for problem in problems}
    expected = {
        "binary.json": "not readable as JSON",
        "cut.json": "not readable as JSON",
        "deep.json": "not readable as JSON",
        "empty.json": "not readable as JSON",
        "folder.json": "not a file",
        "huge.json": "is not plain JSON",
        "link.json": "not a file",
        "list.json": "a record must be an object, got []",
        "nan.json": "NaN is not a number",
        "schema.json": "schema must be 1 or 2, the ones that this version reads, got 9",
        "script.json": "method.name must be a name: a text that is not empty, without < and >",
    }
    assert list(reasons) == sorted(expected)
    assert all(expected[file] in reason for file, reason in reasons.items())
    assert str(tmp_path) not in " ".join(reasons.values())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_records_come_in_an_order_that_does_not_depend_on_file_names(tmp_path: Path) -> None:
    times = ["2025-01-31T13:00:00Z", "2025-01-31T12:30:00.250000+00:00", "2025-01-31T12:30:00+00:00"]
    for number, time in enumerate(times):
        write_record(make_record(run="r", finished=time, updates=number), tmp_path)
    write_record(make_record(run="q"), tmp_path)
    records, _ = read_records(tmp_path)
    assert [(record["run"], record["updates"]) for record in records] == [("q", 2), ("r", 2), ("r", 1), ("r", 0)]


# Copies and repeats


def test_of_copies_the_first_name_is_kept_and_the_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(make_record(schema=1, run="old")))
    (tmp_path / "another.json").write_text(json.dumps(make_record(schema=1, run="old"), indent=3))
    record = write_record(make_record(run="r"), tmp_path)
    for name in ("r.2.json", "r.10.json", "a much longer name.json"):
        (tmp_path / name).write_bytes(record.read_bytes())
    (tmp_path / "laid out otherwise.json").write_text(json.dumps(read_record(record)))
    records, problems = read_records(tmp_path)
    assert [record["file"] for record in records] == ["old.json", "r.json"]
    assert problems == [
        Problem("a much longer name.json", "a copy of r.json"),
        Problem("another.json", "a copy of old.json"),
        Problem("laid out otherwise.json", "a copy of r.json"),
        Problem("r.10.json", "a copy of r.json"),
        Problem("r.2.json", "a copy of r.json"),
    ]


def test_the_order_in_which_a_folder_lists_its_files_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for updates in range(12):
        path = write_record(make_record(run="r", updates=updates % 5), tmp_path)
    path.write_text("{")
    expected = read_records(tmp_path)
    assert len(expected[0]) == 5 and len(expected[1]) == 7
    listed = list(tmp_path.iterdir())
    for turn in range(4):
        turned = sorted(listed, key=lambda path: hashlib.sha256(f"{turn}{path.name}".encode()).digest())
        monkeypatch.setattr(Path, "iterdir", lambda _, turned=turned: iter(turned))
        assert read_records(tmp_path) == expected


# The seal


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value of a record that is no list and no object."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path
        return
    for key, entry in inner:
        yield from leaves(entry, (*path, key))


def test_a_seal_is_the_sha256_of_the_content_as_canonical_json() -> None:
    content = b'{"a":"\\u00e9","b":[1,0.1,null,true,{"c":1e-07,"d":-0.0}]}'
    record = {"b": [1, 0.1, None, True, {"d": -0.0, "c": 1e-7}], "seal": "x", "file": "y.json", "a": "é"}
    assert seal_of(record) == hashlib.sha256(content).hexdigest()
    assert seal_of({**record, "a": "e"}) != seal_of(record) != seal_of({**record, "b": [1.0, *record["b"][1:]]})


def test_an_edit_of_any_value_is_found_out(tmp_path: Path) -> None:
    sealed = read_record(write_record(make_record(page={"changed": {"lr": 0.1}}), tmp_path))
    edited, found = tmp_path / "edited.json", set()
    for path in leaves(sealed):
        if path in (("seal",), ("schema",)):
            continue
        record = copy.deepcopy(sealed)
        parent: Any = record
        for key in path[:-1]:
            parent = parent[key]
        value = parent[path[-1]]
        parent[path[-1]] = (not value) if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else 1e-9
        for text in (lay_out(record), json.dumps(record)):
            edited.write_text(text)
            with pytest.raises(RecordError, match=BROKEN):
                read_record(edited)
        found.add(path)
    assert len(found) > 100 and ("accuracy_pct", "last_epoch") in found and ("page", "changed", "lr") in found


def test_added_removed_and_downgraded_parts_are_found_out(tmp_path: Path) -> None:
    path = write_record(make_record(), tmp_path)
    sealed = read_record(path)
    wrong = "0" * 64
    for record, reason in (
        ({**sealed, "note": "better than it looks"}, BROKEN),
        ({**sealed, "environment": {**sealed["environment"], "threads": 4}}, BROKEN),
        ({**sealed, "seal": wrong}, BROKEN),
        ({key: sealed[key] for key in sealed if key != "seal"}, "seal is missing"),
        ({**sealed, "schema": 1}, "seal must be absent in a record of schema 1"),
    ):
        for text in (lay_out(record), json.dumps(record)):
            path.write_text(text)
            with pytest.raises(RecordError, match=reason):
                read_record(path)


def test_a_seal_computed_anew_does_not_spare_a_record_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "forged.json"
    for changes, reason in (
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"updates": None}, "updates must be a whole number"),
        ({"macs": {"train": 1}}, "macs.train_share is 0.28"),
    ):
        forged = make_record(**changes)
        forged["seal"] = seal_of(forged)
        assert is_sealed_text(lay_out(forged).encode(), forged["seal"])
        path.write_text(lay_out(forged))
        with pytest.raises(RecordError, match=f"^{reason}"):
            read_record(path)


def test_a_number_too_large_for_a_float_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    record = make_record(page={"settings": {"lr": 12345.5}})
    text = lay_out({**record, "seal": seal_of(record)}).replace("12345.5", "-1e999")
    content = "".join(line.lstrip() for line in text.split("\n") if not line.startswith(' "seal"'))
    forged = text.replace(seal_of(record), hashlib.sha256(content.encode()).hexdigest())  # by its text all is well
    assert is_sealed_text(forged.encode(), hashlib.sha256(content.encode()).hexdigest())
    (tmp_path / "huge.json").write_text(forged)
    with pytest.raises(RecordError, match="is not plain JSON: -1e999 is beyond the largest number"):
        read_record(tmp_path / "huge.json")


def test_the_layout_of_a_file_does_not_matter(tmp_path: Path) -> None:
    path = write_record(make_record(command="make  a\tb", page={"title": "two  spaces,\n {a line} é"}), tmp_path)
    sealed, data = read_record(path), path.read_bytes()
    assert is_sealed_text(data, sealed["seal"])
    turned = dict(reversed(sealed.items()))
    for text in (json.dumps(turned), json.dumps(turned, indent=4), json.dumps(sealed, indent="\t", ensure_ascii=False)):
        assert not is_sealed_text(text.encode(), sealed["seal"])
        path.write_text(text, encoding="utf-8")
        assert read_record(path) == sealed
    path.write_bytes(data.replace(b"\n", b"\r\n"))
    assert read_record(path) == sealed


def test_by_its_text_a_file_is_judged_as_by_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_record(make_record(run="good"), tmp_path).read_text()
    for number, (old, new) in enumerate(
        [("92.5", "92.6"), ('"seed":0', '"seed":1'), (" ", "  "), ('"seal"', '"seat"')]
    ):
        assert old in good
        (tmp_path / f"{number}.json").write_text(good.replace(old, new))
    expected = read_records(tmp_path)
    assert len(expected[0]) == 1 and len(expected[1]) == 4
    monkeypatch.setattr(module, "is_sealed_text", lambda data, seal: False)
    assert read_records(tmp_path) == expected


def test_numbers_survive_exactly_and_what_json_writes_otherwise_is_sealed_as_it_is_read(tmp_path: Path) -> None:
    # As numbers the keys are sorted 2, 10; as the texts that JSON makes of them "10", "2".
    numbers = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, 1e-7, 1.0, 1, 10**30, True]
    odd = {"drops": (0.5, 0.75), "by_epoch": {2: "\ud800", 10: "b"}, "numbers": numbers}
    read = read_record(write_record(make_record(page={"settings": odd}), tmp_path))
    settings = read["page"]["settings"]
    assert list(map(repr, settings["numbers"])) == list(map(repr, numbers))
    assert (settings["drops"], settings["by_epoch"]) == ([0.5, 0.75], {"2": "\ud800", "10": "b"})


def test_a_wrong_seal_is_not_written_and_a_right_one_is_kept(tmp_path: Path) -> None:
    record = make_record(run="r")
    with pytest.raises(RecordError, match=f"record 'r' is invalid and was not written: {BROKEN}"):
        write_record({**record, "seal": seal_of({**record, "seed": 1})}, tmp_path)
    assert not list(tmp_path.iterdir())
    sealed = {**record, "seal": seal_of(record)}
    assert read_record(write_record(sealed, tmp_path)) == sealed


def test_a_record_of_schema_1_is_written_without_a_seal(tmp_path: Path) -> None:
    record = make_record(schema=1)  # of a run that finished before an update of the suite and is published after it
    assert read_record(write_record(record, tmp_path)) == record
    assert find_same(record, tmp_path) == tmp_path / f"{record['run']}.json"


def test_the_very_record_is_found_again_with_and_without_its_seal(tmp_path: Path) -> None:
    record = make_record(run="r")
    assert find_same(record, tmp_path) is None
    first, second = (write_record(make_record(run="r", updates=updates), tmp_path) for updates in (2, 3))
    assert find_same(record, tmp_path) == find_same(read_records(tmp_path)[0][0], tmp_path) == first
    assert find_same(make_record(run="r", updates=3), tmp_path) == second
    assert find_same(make_record(run="r", updates=4), tmp_path) is None
    first.write_text(first.read_text().replace("92.5", "92.6"))
    assert find_same(record, tmp_path) is None
