"""The leaderboard on Weights & Biases: what the real library wrote is read back; its failures cost nothing."""

from __future__ import annotations

import json
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard.drawing.pictures import list_pictures
from leaderboard.tables.sections import make_sections, section_name
from leaderboard.web import wandb_session
from leaderboard.web.wandb_board import COLUMNS, log_board
from tests.harness.record_factory import make_record

SECRET = "0123456789abcdef0123456789abcdef01234567"
TEXTS = 14  # of the columns, the first ones
GRANET = (
    *("granet", "sparse-to-sparse", "", "90 %", "91.50 ± 0.18 (n=2)", "1–3", "92.00 ± 0.00", "95.00 ± 0.00"),
    *("0.28×", "0.28×", "0.1", "0.2174", "0, 1", "0.json, 1.json"),
)


def many() -> list[dict[str, Any]]:
    """Return two methods with two seeds, dense, a run that diverged, and a method on another page."""
    runs = [
        make_record(seed=seed, method={"name": name}, accuracy_pct={"last_epoch": accuracy + seed / 4})
        for name, accuracy in (("granet", 91.37), ("set", 89.5))
        for seed in (0, 1)
    ]
    runs += [make_record(method={"name": "dense"}), make_record(method={"name": "gmp"}, status="diverged")]
    runs += [make_record(method={"name": "rigl"}, page={"variant": "v", "changed": {"lr": 1}})]
    return [{**run, "file": f"{place}.json"} for place, run in enumerate(runs)]


def write_pictures(runs: list[dict[str, Any]], folder: Path) -> list[str]:
    """Write a small PNG and SVG for every picture of a section; return their names."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    names = []
    for picture in list_pictures(runs):
        name = f"{section_name(runs[0])}.{picture.kind}"
        Image.new("RGB", (4, 2)).save(folder / f"{name}.png")
        (folder / f"{name}.svg").write_text("<svg/>")
        names += [f"{name}.png", f"{name}.svg"]
    return names


def read_log(path: Path) -> Iterator[bytes]:
    """Yield the entries of a .wandb file: LevelDB's log format after a header of 7 bytes.

    Blocks of 32 KiB; each piece of an entry has a checksum (4 bytes), a length (2) and a type (1): full, first, middle,
    last.
    """
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, entry = 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # the rest of a block, too short for a head
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            return
        entry += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield entry
            entry = b""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep W&B's files, settings and key apart from the user's."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return tmp_path


def test_the_real_library_holds_tables_pictures_and_pages_offline(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb
    from wandb.proto import wandb_internal_pb2

    records = many()
    sections = make_sections(records)
    names = [name for _, runs in sections for name in write_pictures(runs, home / "pictures")]
    (home / "LEADERBOARD.md").write_text("the page")
    said: list[str] = []
    assert log_board(sections, home / "pictures", "offline", home / "runs", said.append)
    assert said == [] and "".join(capfd.readouterr()) == ""

    wandb.teardown()  # what is logged is on the disk once W&B's own process has ended
    (file,) = (home / "runs").rglob("*.wandb")
    assert SECRET.encode() not in file.read_bytes()
    entries = [wandb_internal_pb2.Record.FromString(entry) for entry in read_log(file)]
    (run,) = (entry.run for entry in entries if entry.WhichOneof("record_type") == "run")
    assert (run.project, run.job_type, run.display_name) == ("sparse-bench", "leaderboard", "leaderboard")
    assert run.host == "" and not run.HasField("git")
    (history,) = (entry.history for entry in entries if entry.WhichOneof("record_type") == "history")
    logged: dict[str, dict[str, Any]] = {}
    for item in history.item:
        key, *inner = item.nested_key
        logged.setdefault(key, {})[".".join(inner)] = json.loads(item.value_json)
    media = file.parent / "files"
    shown = set()
    for _, runs in sections:
        name = section_name(runs[0])
        table = json.loads((media / logged[f"{name}/table"]["path"]).read_text())
        assert table["columns"] == list(COLUMNS)
        shown |= {tuple(row[:TEXTS]) for row in table["data"]}
        for picture in list_pictures(runs):
            image = logged[f"{name}/{picture.kind}"]
            assert image["_type"] == "image-file" and image["caption"] == picture.title
            assert (media / image["path"]).read_bytes() == (
                home / "pictures" / f"{name}.{picture.kind}.png"
            ).read_bytes()
    assert {row[0] for row in shown} == {"granet", "set", "dense", "gmp", "rigl"} and len(shown) == 5
    assert GRANET in shown

    artifacts = [entry.artifact for entry in entries if entry.WhichOneof("record_type") == "artifact"]
    artifacts += [e.request.log_artifact.artifact for e in entries if e.request.HasField("log_artifact")]
    (board,) = (artifact for artifact in artifacts if artifact.type == "leaderboard")
    held = {entry.path for entry in board.manifest.contents}
    tables = {f"{section_name(runs[0])}.table.json" for _, runs in sections}
    assert {f"pictures/{name}" for name in names} | tables | {"LEADERBOARD.md"} <= held
    (page,) = (entry for entry in board.manifest.contents if entry.path == "LEADERBOARD.md")
    assert Path(page.local_path).read_text() == "the page"


def test_numbers_are_there_too_not_rounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert log_board(make_sections(many()), None, "offline", tmp_path, print)
    tables = [value for key, value in fake.logged.items() if key.endswith("/table")]
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for columns, data in tables for row in data}
    granet = rows["granet"]
    assert granet["accuracy, %"] == "91.50 ± 0.18 (n=2)"  # 91.37 and 91.62
    assert granet["accuracy_mean_pct"] == pytest.approx(91.495, abs=1e-12)
    assert granet["accuracy_std_pct"] == pytest.approx(0.25 / 2**0.5, abs=1e-12)
    assert [granet[key] for key in ("n", "diverged", "sparsity_share", "inference_share")] == [2, 0, 0.9, 0.28]
    figures = [rows["gmp"][key] for key in ("n", "diverged", "accuracy_mean_pct", "accuracy_std_pct")]
    assert figures == [0, 1, None, None]
    assert rows["rigl"]["accuracy_std_pct"] is None and fake.finished == [None]


class Fake(types.ModuleType):
    """A stand-in for wandb that remembers, and fails where told to."""

    def __init__(self, fail: str = "", key: str | None = None) -> None:
        super().__init__("wandb")
        self.fail, self.logged, self.finished, self.mode = fail, {}, [], ""
        self.api = types.SimpleNamespace(api_key=key)
        self.config: dict[str, Any] = {}
        self.Settings = dict

    def setup(self) -> Any:
        return types.SimpleNamespace(settings=types.SimpleNamespace(base_url=""))

    def may_fail(self, where: str) -> None:
        if self.fail == where:
            raise RuntimeError(f"{where} broke with key {SECRET}")

    def init(self, **settings: Any) -> Fake:
        self.may_fail("init")
        self.mode = settings["mode"]
        return self

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:  # noqa: N802
        return columns, data

    def Artifact(self, name: str, type: str) -> Any:  # noqa: N802
        self.may_fail("artifact")
        return types.SimpleNamespace(add=lambda table, name: None, add_file=lambda path, name: None)

    def log(self, values: dict[str, Any]) -> None:
        self.may_fail("log")
        self.logged.update(values)

    def log_artifact(self, artifact: Any) -> None:
        self.may_fail("log_artifact")

    def finish(self, exit_code: int | None = None) -> None:
        self.finished.append(exit_code)
        self.may_fail("finish")


@pytest.mark.parametrize("where", ["init", "artifact", "log", "log_artifact", "finish"])
def test_a_failing_library_warns_once_and_names_no_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    fake, said = Fake(fail=where), []
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr(wandb_session, "is_reachable", lambda url: True)
    assert not log_board(make_sections(many()), None, "online", tmp_path, said.append)
    failed = "W&B failed and the leaderboard is not logged"
    assert said == [f"{failed}: RuntimeError: {where} broke with key (WANDB_API_KEY)"]
    assert fake.finished[-1:] == ([] if where == "init" else [1])  # no run stays open


def test_a_missing_library_and_a_folder_that_cannot_be_made_cost_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", Fake())
    (tmp_path / "file").write_text("")
    assert not log_board([], None, "offline", tmp_path / "file" / "runs", said.append)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert not log_board([], None, "offline", tmp_path, said.append)
    assert len(said) == 2


def test_online_without_a_key_becomes_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    fake, said = Fake(), []
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert log_board([], None, "online", tmp_path, said.append)
    assert fake.mode == "offline" and len(said) == 1 and "no key is set" in said[0]
    fake.api.api_key = SECRET
    monkeypatch.setattr(wandb_session, "is_reachable", lambda url: True)
    assert log_board([], None, "online", tmp_path, said.append)
    assert fake.mode == "online" and len(said) == 1


@pytest.mark.parametrize("mode", ["off", "Online"])
def test_another_mode_is_refused(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=f"WANDB must be offline or online to log the leaderboard, got '{mode}'"):
        log_board([], None, mode, tmp_path, print)
