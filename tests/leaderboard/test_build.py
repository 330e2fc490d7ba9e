"""Promises of the build: every page is what the records give, and `verify` finds whatever is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard import write_record
from leaderboard.__main__ import main
from leaderboard.board.build import PAPER, RESULTS, SITE, BuildError, build_all, build_site, find_stale
from leaderboard.board.sheet import PICTURES
from tests.harness.record_factory import make_record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with some records and every page built from them."""
    folder = tmp_path_factory.mktemp("board")
    for name, sparsity, seed in [("granet", 0.9, 0), ("granet", 0.9, 1), ("set", 0.9, 0), ("dense", 0.0, 0)]:
        write_record(make_record(sparsity=sparsity, seed=seed, method={"name": name}), folder / "records")
    build_all(folder / "records", folder / "LEADERBOARD.md")
    return folder


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the built pages that a test may spoil."""
    for path in made.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def faults(board: Path) -> list[str]:
    return find_stale(board / "records", board / "LEADERBOARD.md")


def command(name: str, board: Path, *more: str) -> int:
    return main([name, "--records", str(board / "records"), "--output", str(board / "LEADERBOARD.md"), *more])


def test_what_was_built_is_what_the_records_give(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(board) == []
    assert command("verify", board) == 0
    assert "all sheets and pictures match them" in capsys.readouterr().out
    assert {path.suffix for path in (board / PICTURES).iterdir()} == {".svg", ".png"}
    text = (board / "LEADERBOARD.md").read_text()
    for path in (board / PICTURES).glob("*.svg"):
        assert f"({PICTURES}/{path.name})" in text


def edit_record(board: Path) -> None:
    path = sorted((board / "records").iterdir())[0]
    record = json.loads(path.read_text())
    record["time"]["train_s"] += 1
    path.write_text(json.dumps(record))


def add_record(board: Path) -> None:
    write_record(make_record(seed=7), board / "records")


def edit(board: Path, name: str, old: str, new: str) -> None:
    text = (board / name).read_text()
    assert old in text
    (board / name).write_text(text.replace(old, new, 1))


def rebuild(board: Path) -> None:
    build_all(board / "records", board / "LEADERBOARD.md")


SPOILERS: dict[str, Callable[[Path], object]] = {
    "the page": lambda board: edit(board, "LEADERBOARD.md", "92.50", "99.50"),
    PAPER: lambda board: edit(board, PAPER, "93.73", "93.74"),
    RESULTS: lambda board: edit(board, RESULTS, "**4 runs**", "**5 runs**"),
    SITE: lambda board: (
        build_site(board / "records", board / "LEADERBOARD.md"),
        edit(board, SITE, "92.50", "99.50"),
    ),
    "a record": edit_record,
    "a record, rebuilt": lambda board: (edit_record(board), rebuild(board)),
    "a record too many": add_record,
    "a picture too few": lambda board: sorted((board / PICTURES).glob("*.png"))[0].unlink(),
    "a picture too many": lambda board: (board / PICTURES / "elsewhere.1a2b3c4d.cost.svg").write_text("<svg/>"),
}


@pytest.mark.parametrize("spoilt", SPOILERS)
def test_whatever_is_spoilt_fails_the_check(board: Path, capsys: pytest.CaptureFixture[str], spoilt: str) -> None:
    SPOILERS[spoilt](board)
    before = {path: path.read_bytes() for path in board.rglob("*") if path.is_file()}
    assert command("verify", board) == 1
    assert capsys.readouterr().err.strip()
    assert {path: path.read_bytes() for path in board.rglob("*") if path.is_file()} == before  # it only looks


def test_pictures_of_sections_that_are_gone_are_removed_and_nothing_else(board: Path) -> None:
    drawn = sorted((board / PICTURES).glob("*.svg"))[0]
    gone = drawn.with_name("gone.1a2b3c4d.accuracy.svg")
    gone.write_bytes(drawn.read_bytes())
    (board / PICTURES / "notes.txt").write_text("mine")
    (board / PICTURES / "mine.svg").write_text("<svg/>")
    rebuild(board)
    assert not gone.exists() and (board / PICTURES / "notes.txt").exists() and (board / PICTURES / "mine.svg").exists()
    assert faults(board) == ["picture mine.svg belongs to no record: delete it"]


def test_an_empty_store_has_pages_too(tmp_path: Path) -> None:
    build_all(tmp_path / "records", tmp_path / "LEADERBOARD.md")
    assert find_stale(tmp_path / "records", tmp_path / "LEADERBOARD.md") == []
    assert (tmp_path / PAPER).exists()


BREAKERS = {
    "LEADERBOARD.md": "leaderboard.board.build.make_sheet",
    PAPER: "leaderboard.board.build.paper_text",
    RESULTS: "leaderboard.board.build.results_text",
    "the pictures": "leaderboard.drawing.draw.draw_all",
}


@pytest.mark.parametrize("broken", list(BREAKERS))
def test_a_page_that_cannot_be_made_costs_no_other(
    board: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    add_record(board)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken\x1b[2J")

    with monkeypatch.context() as patch:
        patch.setattr(BREAKERS[broken], fail)
        with pytest.raises(BuildError, match=f"^{broken} could not be made: RuntimeError: broken"):
            build_all(board / "records", board / "LEADERBOARD.md")
        assert command("build", board) == 1
        shown = capsys.readouterr().err
        assert "\x1b" not in shown and "could not be made" in shown
    left = faults(board)
    assert bool(left) == (broken != PAPER)  # the new record is of none of the paper's pages
    assert all(("picture" if broken == "the pictures" else broken) in fault for fault in left)


def test_a_site_that_is_there_is_kept_up_to_date(board: Path) -> None:
    target, summary = build_site(board / "records", board / "LEADERBOARD.md")
    assert target == board / SITE and "4 records" in summary
    add_record(board)
    assert "index.html does not match the records" in faults(board)
    rebuild(board)
    assert faults(board) == [] and "5 records" in target.read_text()


def test_text_from_records_cannot_move_the_cursor(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (board / "records" / "bad\x1b]0;x.json").write_text('{"run": "\x1b[2J"}')
    assert command("verify", board) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_a_damaged_record_is_named_and_the_rest_is_built(board: Path) -> None:
    first = min((board / "records").iterdir())
    first.write_text(first.read_text()[:500])
    summary, _ = build_all(board / "records", board / "LEADERBOARD.md")
    assert "3 records in 1 table, 1 file skipped" in summary
    name = sorted((board / "records").iterdir())[0].name
    assert name in (board / "LEADERBOARD.md").read_text().split("## Skipped files")[1]
    assert (board / "records" / name).exists()


def test_an_unknown_wandb_mode_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("build", tmp_path, "--wandb", "on") == 2
    assert "WANDB must be one of off, offline, online, got 'on'" in capsys.readouterr().err
    assert not (tmp_path / "LEADERBOARD.md").exists()
