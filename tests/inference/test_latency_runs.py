"""Promises of `sparse-bench latency` from the command to the page: which run is measured, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmark.base.errors import UserError
from benchmark.cli.app import app
from benchmark.inference.latency import why_unfiled
from benchmark.inference.subject import load_subject
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.runs.finished import find_records
from leaderboard.board.build import find_stale
from leaderboard.store.measurements import read_measurement
from leaderboard.store.schema import lay_out, seal_of


def name_of(folder: Path, method: str = "static") -> str:
    """Return the name of a method's run."""
    (record,) = (folder / "records").glob(f"*.{method}.*.json")
    return record.stem


def measure(board: Path, *words: str) -> tuple[int, str]:
    """Run the command in this process, with timings as short as they can be; return its status and what it printed."""
    places = ["--records", board / "records", "--runs", board / "runs", "--leaderboard", board / "LEADERBOARD.md"]
    result = CliRunner().invoke(app, ["latency", "--device", "cpu", *map(str, places), *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.usefixtures("quick")
def test_the_command_measures_writes_beside_the_records_and_the_page_shows_it(board):
    name, before = name_of(board), torch.get_num_threads()
    status, said = measure(board, name, "--batch", "1,2")
    assert status == 0, said
    assert torch.get_num_threads() == before
    (path,) = (board / "latency").glob("*.json")
    measurement, record = read_measurement(path), json.loads((board / "records" / f"{name}.json").read_text())
    assert (measurement["run"], measurement["masks_sha256"]) == (name, record["masks_sha256"])
    assert [entry["batch"] for entry in measurement["batches"]] == [1, 2] and measurement["threads"] == 1
    assert measurement["environment"]["torch"] and measurement["clock"] == "processor time"
    active = record["weights"]["active"]
    assert 4 * active < measurement["size_bytes"]["packed"] < measurement["size_bytes"]["dense"]
    page = (board / "LEADERBOARD.md").read_text()
    assert "Measured speed" in page and page.count("1 thread, torch ") == 2  # lines: one for each batch size
    assert [fault for fault in find_stale(board / "records", board / "LEADERBOARD.md") if "measurement" in fault] == []
    assert "on disk" in said and "dead filters" in said

    status, _ = measure(board, str(board / "records" / f"{name}.json"), "--batch", "2")
    assert status == 0 and len(list((board / "latency").glob("*.json"))) == 2


@pytest.mark.usefixtures("quick")
def test_speed_is_kept_only_beside_the_record_of_a_whole_run(board, tmp_path):
    name = name_of(board)
    path, sheet = board / "records" / f"{name}.json", (board / "LEADERBOARD.md").read_bytes()
    shutil.copytree(board / "runs" / name, tmp_path / "shared")
    shutil.move(path, tmp_path / "shared" / "record.json")  # somebody else's published run
    status, said = measure(board, str(tmp_path / "shared"), "--batch", "1")
    assert status == 0 and "on disk" in said and "has no record of this run" in " ".join(said.split())
    assert not (board / "latency").exists() and (board / "LEADERBOARD.md").read_bytes() == sheet
    assert "is a branch" in str(why_unfiled({"branch": {}}, board / "records"))


def test_an_exported_narrow_network_is_held_against_the_full_dense_one(done):
    subject = load_subject(name_of(done, "small_dense"), done / "records", done / "runs")
    sizes = [sum(weight.numel() for weight in network.parameters()) for network in (subject.network, subject.dense)]
    assert sizes[0] < sizes[1] / 5
    assert [w.shape for w in subject.slim.parameters()] == [w.shape for w in subject.network.parameters()]


def test_the_network_is_the_exported_one_and_the_dense_one_has_no_zeros(done):
    state = torch.random.get_rng_state()
    subject = load_subject(name_of(done), done / "records", done / "runs")
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, mask in subject.masks.items():
        assert not subject.network.get_parameter(name)[~mask].any()
        assert subject.dense.get_parameter(name).all()
    assert not subject.network.training and not subject.dense.training


def test_an_unknown_run_is_refused_with_the_nearest_name(done):
    name = name_of(done)
    with pytest.raises(UserError, match=rf"no record of a run '{name[:-1]}' in .*did you mean '{name}'"):
        load_subject(name[:-1], done / "records", done / "runs")
    with pytest.raises(UserError, match="which holds no record"):
        load_subject(name, done / "nothing", done / "runs")
    with pytest.raises(UserError, match=r"nosuch\.json: not a file"):
        load_subject("nosuch.json", done / "records", done / "runs")


def test_a_repeat_is_named_by_its_file(board):
    name = name_of(board)
    shutil.copy(board / "records" / f"{name}.json", board / "records" / f"{name}.2.json")
    assert [path.stem for path, _ in find_records(f"{name}.2", board / "records")] == [f"{name}.2"]
    assert [path.stem for path, _ in find_records(name, board / "records")] == [name, f"{name}.2"]


@pytest.mark.parametrize("missing", [[MASKS], [WEIGHTS, MASKS]])
def test_a_run_of_which_only_the_record_is_there_is_refused(board, missing):
    name = name_of(board)
    for file in missing:
        (board / "runs" / name / file).unlink()
    status, said = measure(board, name)
    text = " ".join(said.split())
    assert status == 2 and f"has a record but no {' and no '.join(missing)} in" in text and "--runs" in text


def test_files_that_are_not_those_of_the_record_are_refused(board):
    name = name_of(board)
    path = board / "records" / f"{name}.json"
    content = {**json.loads(path.read_text()), "masks_sha256": "ef" * 32}
    path.write_text(lay_out({**content, "seal": seal_of(content)}))
    with pytest.raises(UserError, match=r"its masks .* are not those of run .*'s record \(efefefef"):
        load_subject(name, board / "records", board / "runs")


def test_of_several_records_of_a_run_the_one_with_the_exported_masks_is_measured(board):
    name = name_of(board)
    path = board / "records" / f"{name}.json"
    content = {**json.loads(path.read_text()), "masks_sha256": "ef" * 32}
    (board / "records" / f"{name}.2.json").write_text(lay_out({**content, "seal": seal_of(content)}))
    subject = load_subject(name, board / "records", board / "runs")
    assert subject.record == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "BATCH must be whole numbers from 1"),
        (["--threads", "0"], "THREADS must be a whole number from 1"),
        (["--device", "cuda"], "no GPU here"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_read(board, words, message, monkeypatch):
    monkeypatch.setattr("benchmark.base.system.cuda_available", lambda: False)
    status, said = measure(board, "no such run", *words)
    assert status == 2 and message in " ".join(said.split())
    assert not (board / "latency").exists()


def test_a_network_whose_outputs_are_not_finite_is_refused(board, monkeypatch):
    import benchmark.inference.latency as report

    load = report.load_subject

    def spoil(*places):
        subject = load(*places)
        subject.network.classifier.bias.data[0] = float("inf")
        return subject

    monkeypatch.setattr(report, "load_subject", spoil)
    status, said = measure(board, name_of(board), "--batch", "1")
    assert status == 2 and "are not finite, so nothing" in " ".join(said.split())
    assert list((board / "latency").glob("*.json")) == []


@pytest.mark.usefixtures("quick")
def test_a_page_that_cannot_be_made_costs_a_warning_and_no_measurement(board, monkeypatch):
    monkeypatch.setattr("benchmark.inference.latency.rebuild", lambda *_: 1 / 0)
    status, said = measure(board, name_of(board), "--batch", "1")
    assert status == 0 and "was not rebuilt (division by zero)" in " ".join(said.split())
    assert len(list((board / "latency").glob("*.json"))) == 1
