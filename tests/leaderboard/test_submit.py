"""What `make submit` refuses, and what it says of the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leaderboard import write_record
from leaderboard.__main__ import main
from leaderboard.board import build
from leaderboard.board.build import BuildError
from leaderboard.board.submit import examine, submit
from leaderboard.store.schema import AUTHOR
from tests.harness.record_factory import make_record


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return a store in a repository of its own, with two committed records of the third protocol."""
    folder = tmp_path / "leaderboard" / "records"
    for seed in (0, 1):
        write_record(make_record(seed=seed, protocol=3), folder)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "records")
    return folder


def add(folder: Path, **changes: Any) -> Path:
    return write_record(make_record(**{"protocol": 3, "author": "Ada <b>", **changes}), folder)


def test_what_may_not_be_merged_is_named_with_its_reason(records: Path) -> None:
    first, second = sorted(records.glob("*.json"))
    good = add(records, seed=2)
    assert examine(records).faults == [] and [path for path, _ in examine(records).added] == [good]
    wanted = {
        add(records, seed=3, protocol=2).name: "protocol 2 is not the newest here (3)",
        add(records, seed=4, git={"dirty": True}).name: "nobody else has the code",
        write_record(make_record(seed=5, protocol=3), records).name: "it has no author",
        add(records, seed=7, method={"source": "/home/ada/mine.py"}).name: "its method is of /home/ada/mine.py",
        add(records, seed=6).name: "does not match its seal",
        first.name: "never edited",
        second.name: "never deleted",
    }
    edited = next(path for path in records.iterdir() if ".s6." in path.name)
    edited.write_text(edited.read_text().replace("c0ffee", "c0ffed"))
    first.write_text(first.read_text() + "\n")
    second.unlink()
    git(records, "add", ".")  # staged or not is the same
    faults = dict(fault.split(": ", 1) for fault in examine(records).faults)
    assert faults.keys() == wanted.keys()
    assert all(reason in faults[name] for name, reason in wanted.items()), faults


def test_a_record_names_its_author_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.runs.record import describe_author

    monkeypatch.delenv(AUTHOR, raising=False)
    assert describe_author() == {}
    monkeypatch.setenv(AUTHOR, " Ada\n Lovelace ")
    assert describe_author() == {"author": "Ada Lovelace"}


def test_a_fault_of_a_record_is_told_before_anything_is_rebuilt_or_measured(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["submit", "--records", str(records), "--output", str(records.parent / "LEADERBOARD.md")]
    built: list[object] = []
    monkeypatch.setattr(build, "build_all", lambda *_: built.append(_) or ("built", ([], [])))
    nameless = write_record(make_record(seed=5, protocol=3), records)
    assert main(places) == 1 and built == []
    assert f"export {AUTHOR}='Your Name'" in capsys.readouterr().err
    nameless.unlink()
    add(records, seed=5)
    assert main(places) == 0 and len(built) == 1


def test_weights_at_hand_are_measured_again_and_decide(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = add(records, seed=2), tmp_path / "runs"
    assert submit(records, "", runs, tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"sparse-bench verify {path}" in shown and "a repeat" not in shown
    repeat = add(records, seed=1)
    assert submit(records, "", runs, tmp_path) == 0
    assert "a repeat of a run that is here: it counts in" in capsys.readouterr().out
    repeat.unlink()
    weights = runs / make_record(seed=2)["run"] / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    for verdict, status, said in (("/bin/true", 0, "verified again"), ("/bin/false", 1, "NOT verified")):
        monkeypatch.setattr(sys, "executable", verdict)
        assert submit(records, "", runs, tmp_path) == status
        assert said in capsys.readouterr().out
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "mine")
    assert submit(records, "", runs, tmp_path) == 1 and "nothing to submit" in capsys.readouterr().err
    assert submit(records, "HEAD~1", tmp_path, tmp_path) == 0
    with pytest.raises(BuildError, match=r"which records .* are new"):
        examine(records, "no-such-branch")
