"""What is done about files that were damaged, disks that refuse, clocks that are wrong and publishing cut short."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

import benchmark.runs.record
import leaderboard.board.build
from benchmark.base import BOOT
from benchmark.base.errors import REFUSALS, PassingError, UserError, explain
from benchmark.base.files import Places, check_places, refuse_lockless
from benchmark.cli import shell
from benchmark.cli.shell import train_then_rebuild
from benchmark.data.checks import tell
from benchmark.data.files import read_image
from benchmark.grids.states import read_now
from benchmark.runs.checkpoints import FINISHED, OLDER, read_checkpoint, read_finished, save_checkpoint, write_finished
from benchmark.runs.run import warner
from benchmark.workers.book import Book
from leaderboard import UnreadableError, find_same, read_records, rebuild, write_record
from tests.harness.benches import CONTROLS, HEAD, SET, Grid
from tests.harness.record_factory import make_record
from tests.harness.troubles import Trouble, make_clock

ROOT = Path(__file__).resolve().parents[2]


def test_a_finished_record_waits_sealed_and_one_of_which_a_byte_changed_is_set_aside(tmp_path):
    path, told = tmp_path / FINISHED, []
    assert read_finished(path, told.append) is None and not told
    write_finished(path, make_record())
    found = read_finished(path, told.append)
    assert found is not None and {key: value for key, value in found.items() if key != "seal"} == make_record()

    whole = path.read_bytes()
    place = whole.index(b'"updates":2') + len(b'"updates":')
    edited = whole[:place] + b"3" + whole[place + 1 :]  # still JSON, still a valid record: another number
    for content in (edited, whole[: len(whole) // 2], b""):
        told.clear()
        path.write_bytes(content)
        assert read_finished(path, told.append) is None
        assert len(told) == 1 and "is damaged" in told[0] and "renamed to record.json.damaged" in told[0]
        assert not path.exists() and path.with_name("record.json.damaged").read_bytes() == content


def test_what_a_damaged_record_says_reaches_the_terminal_without_control_characters():
    out = io.StringIO()
    warner(Console(file=out, width=200))("got '\x1b[2J'")
    assert out.getvalue().startswith("warning: got '") and "\x1b" not in out.getvalue()


def test_a_damaged_checkpoint_is_set_aside_and_one_of_another_version_is_refused(tmp_path):
    path, told = tmp_path / "checkpoint", []
    assert read_checkpoint(path, told.append) is None and not told
    save_checkpoint(path, {"step": 3})
    assert read_checkpoint(path, told.append) == {"step": 3}
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_checkpoint(path, told.append) is None
    assert len(told) == 1 and "does not match its checksum" in told[0] and "renamed to checkpoint.damaged" in told[0]
    path.write_bytes(OLDER[0] + content)
    with pytest.raises(UserError, match="earlier version"):
        read_checkpoint(path, told.append)
    assert path.exists()


def test_a_clock_set_back_while_a_run_lasts_costs_no_result(tmp_path, monkeypatch):
    clock = make_clock(Trouble("clock", seconds=-3600.0), lambda: None)
    monkeypatch.setattr(benchmark.runs.record, "datetime", clock)
    grid = Grid(tmp_path)
    assert grid(HEAD + SET) == 0, grid.said
    (record,) = grid.records()
    assert record["finished"] == record["started"]


def out_of_reach(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reading a file of this name fail."""
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)


def test_a_store_out_of_reach_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    """Its runs would be made, and published, a second time."""
    record, folder = make_record(), tmp_path / "records"
    with pytest.raises(UserError, match="nobody knows whether it is finished"):
        read_now(folder)(record["run"])
    with pytest.raises(UnreadableError):
        find_same(record, folder)
    path = write_record(record, folder)
    assert len(read_now(folder)(record["run"])) == 1 and find_same(record, folder) == path
    out_of_reach(path.name, monkeypatch)
    with pytest.raises(UserError, match=r"not readable: Input/output error"):
        read_now(folder)(record["run"])
    with pytest.raises(UnreadableError):
        find_same(record, folder)
    assert read_now(folder)("another run") == []


def test_a_damaged_record_does_not_finish_its_run(tmp_path):
    path = write_record(make_record(), tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    assert read_now(tmp_path)(make_record()["run"]) == []


def test_a_cell_whose_attempts_cannot_be_counted_on_a_full_disk_is_not_tried_for_ever(tmp_path, monkeypatch):
    """The last note that could be written says of a run which has got further since that it may be tried again."""
    book, run = Book(tmp_path, retries=2), tmp_path / "run"
    run.mkdir()
    (tmp_path / "attempt").mkdir()

    def fail() -> None:
        with pytest.raises(OSError, match="full"), book.counting("cell", run):
            (run / "checkpoint").write_bytes(b"further")
            raise OSError(errno.ENOSPC, "full")

    fail()
    assert book.may_retry("cell")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("benchmark.workers.book.write_note", refuse)
    fail()
    assert not book.may_retry("cell")


def test_a_cell_that_fails_before_its_attempt_is_counted_is_not_tried_for_ever(tmp_path):
    """Its folder may have become read-only, so that its lock is refused, or the failure one that is taken back."""
    book, run = Book(tmp_path, retries=2), tmp_path / "run"
    run.mkdir()
    (tmp_path / "attempt").mkdir()
    with pytest.raises(OSError, match="full"), book.counting("cell", run):
        raise OSError(errno.ENOSPC, "full")
    assert [book.may_retry("cell") for _ in range(4)] == [True, True, False, False]
    (run / "checkpoint").write_bytes(b"further")  # by another worker: it counts anew
    for _ in range(3):
        with pytest.raises(PassingError), book.counting("cell", run):
            raise PassingError("stale")
    assert [book.may_retry("cell") for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("moment", ["sweep", "find_same"])  # with the run's lock held; just before it is written
def test_a_finished_run_waits_for_a_store_that_is_out_of_reach(moment, tmp_path, monkeypatch):
    grid = Grid(tmp_path)
    assert grid(HEAD + SET) == 0
    (record,) = grid.records()
    folder = tmp_path / "runs" / record["run"]
    path = tmp_path / "records" / record["file"]
    write_finished(folder / FINISHED, json.loads(path.read_bytes()))
    path.unlink()

    def vanish(*_: object) -> None:
        (tmp_path / "records").rename(tmp_path / "away")

    with monkeypatch.context() as patch:
        patch.setattr(f"benchmark.runs.run.{moment}", vanish)
        assert grid(HEAD + SET) == 1
    assert "the same command publishes it" in grid.said[0] and not (tmp_path / "records").exists()
    (tmp_path / "away").rename(tmp_path / "records")
    assert grid(HEAD + SET) == 0
    assert [one["finished"] for one in grid.records()] == [record["finished"]]


def test_a_sweep_completes_the_publishing_of_a_killed_one(tmp_path):
    """Killed between the record and the page: the cell is finished, and nobody would write the page."""
    grid, text = Grid(tmp_path), HEAD + SET + CONTROLS
    assert grid(text) == 0
    page = (tmp_path / "L.md").read_text()
    for record in grid.records():
        folder = tmp_path / "runs" / record["run"]
        write_finished(folder / FINISHED, json.loads((tmp_path / "records" / record["file"]).read_bytes()))
        (folder / "checkpoint").write_bytes(b"of its last step")
    (tmp_path / "L.md").write_text("as it was before")
    assert grid(text) == 0
    assert (tmp_path / "L.md").read_text() == page
    assert len(grid.records()) == 2
    assert not [path for name in (FINISHED, "checkpoint") for path in tmp_path.glob(f"runs/*/{name}")]


def test_a_page_that_is_not_what_the_records_give_is_rebuilt_by_the_next_command(tmp_path, monkeypatch):
    records, page, built = tmp_path / "records", tmp_path / "L.md", []
    write_record(make_record(), records)
    monkeypatch.setattr(leaderboard.board.build, "build_all", lambda *places: built.append(places))
    rebuild(records, page)
    train_then_rebuild(lambda: 0, records, page)
    assert built == []
    page.write_text("a page of a process that could not read the records")
    train_then_rebuild(lambda: 0, records, page)
    page.unlink()
    train_then_rebuild(lambda: 0, records, page)
    assert built == [(records, page)] * 2


def test_a_folder_of_records_that_is_gone_is_not_made_anew_while_its_page_is_there(tmp_path):
    places = Places(tmp_path / "records", tmp_path / "L.md", tmp_path / "runs")
    check_places(places)
    rebuild(places.records, places.leaderboard)
    places.records.rmdir()
    check_places(places)  # its page shows no record
    write_record(make_record(), places.records)
    rebuild(places.records, places.leaderboard)
    places.records.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"is gone, and .*L\.md shows records of it"):
        check_places(places)
    assert not places.records.exists()
    check_places(Places(tmp_path / "others", places.leaderboard, places.runs))  # the page is not of these
    (tmp_path / "away").rename(places.records)
    check_places(places)
    assert len(read_records(places.records)[0]) == 1


def test_a_folder_whose_files_cannot_be_locked_is_refused_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    refuse_lockless(tmp_path / "runs")

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)  # as on Lustre, mounted without them
    with pytest.raises(UserError, match=r"runs cannot be locked, .*: mount it with flock"):
        refuse_lockless(tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("number", sorted(REFUSALS))
def test_what_a_disk_refuses_is_told_in_a_sentence(number):
    said = explain(OSError(number, os.strerror(number), "records/r.json"))
    assert said == f"{os.strerror(number)}: records/r.json; what was finished before is kept"
    assert explain(OSError(errno.EBADF, "a fault of the program")).startswith("OSError: ")  # with its traceback
    assert explain(ValueError("likewise")).startswith("ValueError: ")


# Ctrl-C, and output that nobody takes


@pytest.mark.parametrize("module", ["typer", "benchmark.config.plugins"])
def test_ctrl_c_while_the_command_starts_is_one_line_and_status_130(module):
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
from benchmark.__main__ import main
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["sparse-bench", "methods"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped\n")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "checkpoint"), 2, "File too large: checkpoint; what was "),
    ],
)
def test_what_ends_a_command_is_told_and_gives_its_exit_status(error, status, said, monkeypatch):
    told: list[object] = []

    def fail() -> None:
        raise error

    monkeypatch.setattr(shell, "tell", told.append)
    with pytest.raises(typer.Exit) as ended:
        shell.guarded(fail)
    assert ended.value.exit_code == status
    assert len(told) == 1 and str(told[0]).startswith(said)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), None])
def test_output_that_nobody_takes_costs_a_warning_and_no_run(error, monkeypatch, capsys):
    """As in `sparse-bench run | head -1`, `> /dev/full` and `>&-`."""

    class Gone:
        def write(self, text: str) -> int:
            raise error

        flush = write

    monkeypatch.setattr(sys, "stdout", None if error is None else Gone())
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    for _ in range(3):
        shell.console.print("epoch 1")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("warning: output cannot be written")
    assert (error.strerror if error else "it is closed") in said
    sys.stdout.close()


def test_records_elsewhere_have_their_sheet_beside_them_and_not_the_repositorys(tmp_path):
    there = Places(records=tmp_path / "mine" / "records")
    assert there.leaderboard == tmp_path / "mine" / "LEADERBOARD.md" and there.runs == Places.runs
    assert Places().leaderboard == ROOT / "leaderboard" / "LEADERBOARD.md"
    assert Places(tmp_path / "records", tmp_path / "sheet.md").leaderboard == tmp_path / "sheet.md"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOSPC])
def test_what_may_pass_is_told_apart_from_a_damaged_file(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("PIL.Image.open", refuse)
    with pytest.raises(PassingError, match=r"cannot be read now .*: try again"):
        read_image("im.png")
    monkeypatch.setattr("PIL.Image.open", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="replace or remove the file") as caught:
        read_image("im.png")
    assert not isinstance(caught.value, PassingError)


def test_lines_on_data_that_nobody_reads_end_no_run(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    for name, warn in (("stdout", False), ("stderr", True)):
        with monkeypatch.context() as there:
            there.setattr(sys, name, Closed())
            tell("read 3 images", warn)
            assert getattr(sys, name).name == os.devnull
            tell("again", warn)


def test_processes_of_a_run_import_the_suite_whatever_lies_in_the_working_folder(tmp_path):
    (tmp_path / "benchmark").mkdir()
    for name in ("benchmark/__init__.py", "statistics.py", "inspect.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file')")
    command = [sys.executable, "-c", BOOT, str(ROOT), "methods"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0 and "granet" in found.stdout, found.stderr


def test_a_log_that_is_not_utf8_ends_no_command(tmp_path):
    command = [sys.executable, "-m", "benchmark", "sweep", "configs/grids/digits.yaml", "--plan", "--method", "granet"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0 and b"\\u2248" in found.stdout, found.stderr
