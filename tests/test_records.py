"""Promises of the store: a record is written whole or not at all, never overwritten, and only valid ones are read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record_factory import make_record

from leaderboard.records import file_stem, read_records, write_record
from leaderboard.schema import RecordError

ROOT = Path(__file__).resolve().parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(record, tmp_path / "new" / "records")
    assert path.name == "digits_resnet20.granet.0.9.s0.3f9a1c2e.json"
    assert read_records(path.parent) == ([{**record, "file": path.name}], [])


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


@pytest.mark.parametrize(
    ("run", "stem"),
    [
        ("a.granet.0.9.s0.3f9a1c2e", "a.granet.0.9.s0.3f9a1c2e"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("/abs", "_abs"),
        ("..", "run"),
        (".hidden", "hidden"),
        ("a b|c\n\0é", "a_b_c___"),
        ("C:\\x", "C__x"),
    ],
)
def test_a_name_never_leaves_the_folder(tmp_path: Path, run: str, stem: str) -> None:
    assert file_stem(run) == stem
    path = write_record(make_record(run=run), tmp_path / "records")
    assert path == tmp_path / "records" / f"{stem}.json"
    assert names(tmp_path) == ["records"]


def test_long_names_are_cut_and_stay_different(tmp_path: Path) -> None:
    paths = [write_record(make_record(run="x" * 400 + end), tmp_path) for end in ("a", "b")]
    assert [len(path.stem) for path in paths] == [200, 200]
    assert paths[0] != paths[1]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_not_written(tmp_path: Path, number: float) -> None:
    for changes in ({"accuracy_pct": {"best_on_test": number}}, {"page": {"settings": {"lr": number}}}):
        with pytest.raises(RecordError, match="not plain JSON"):
            write_record(make_record(**changes), tmp_path)
    assert names(tmp_path) == []


def test_an_invalid_record_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"record 'r' is invalid and was not written: seed must be .*, got -1"):
        write_record(make_record(run="r", seed=-1), tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_record(make_record(), tmp_path)
    assert names(tmp_path) == []


def write_many(folder: Path, writer: int) -> None:
    for number in range(10):
        write_record(make_record(run="same", seed=writer, updates=number), folder)


def test_concurrent_writers_lose_and_damage_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(tmp_path, writer)) for writer in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    records, problems = read_records(tmp_path)
    assert problems == []
    assert sorted((r["seed"], r["updates"]) for r in records) == [(w, n) for w in range(4) for n in range(10)]
    assert set(names(tmp_path)) == {"same.json", *(f"same.{number}.json" for number in range(2, 41))}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from record_factory import make_record
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


def test_an_absent_or_empty_store_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "absent") == ([], [])
    (tmp_path / "README.md").write_text("not a record")
    assert read_records(tmp_path) == ([], [])


def test_damaged_files_are_skipped_with_a_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    good = write_record(make_record(run="good"), tmp_path)
    (tmp_path / "cut.json").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.json").touch()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "nan.json").write_text(good.read_text().replace("92.5", "NaN"))
    (tmp_path / "huge.json").write_text(good.read_text().replace("92.5", "1e999"))
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
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
    }
    assert list(reasons) == sorted(expected)
    assert all(expected[file] in reason for file, reason in reasons.items())
    assert str(tmp_path) not in " ".join(reasons.values())


def test_records_come_in_an_order_that_does_not_depend_on_file_names(tmp_path: Path) -> None:
    times = ["2025-01-31T13:00:00Z", "2025-01-31T12:30:00.250000+00:00", "2025-01-31T12:30:00+00:00"]
    for number, time in enumerate(times):
        write_record(make_record(run="r", finished=time, updates=number), tmp_path)
    write_record(make_record(run="q"), tmp_path)
    records, _ = read_records(tmp_path)
    assert [(record["run"], record["updates"]) for record in records] == [("q", 2), ("r", 2), ("r", 1), ("r", 0)]
