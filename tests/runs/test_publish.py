"""Promises of `sparse-bench publish`: who has the folder can check the run and start from it, and nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.base.files import Places
from benchmark.config.cells import plan_cells
from benchmark.data.sets import load_data
from benchmark.runs.donors import resolve_donors
from benchmark.runs.export import MASKS, WEIGHTS, export_network, read_export
from benchmark.runs.publish import FILES, write_card
from benchmark.runs.verify import verify_record
from tests.harness.benches import Bench, ask, import_file

TASK, PAGE = "digits_resnet20", "epochs=2 batch_size=400 model_args.width=0.25"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("done"))
    assert bench("set", arguments=f"{PAGE} update_every=2") == 0
    return bench


@pytest.fixture
def bench(done, tmp_path) -> Bench:
    """A copy of the finished run."""
    shutil.copytree(done.folder, tmp_path / "bench")
    return Bench(tmp_path / "bench")


def publish(bench: Bench, to: str, run: str = "") -> tuple[int, str]:
    """Publish the run of a bench; return the status and what was printed."""
    places = ["--records", bench.folder / "records", "--runs", bench.folder / "runs"]
    result = ask("publish", run or bench.records()[0]["run"], "--to", to, *map(str, places))
    return result.exit_code, " ".join(result.output.split())


def resolve(bench: Bench, donor: str, places: Places, page: str = PAGE):
    """Return the control of a donor."""
    cells = plan_cells("static", "0.9", TASK, "0", f"{page} masks={donor}")
    data = load_data(cells[0].page, bench.folder / "data", torch.device("cpu"))
    return resolve_donors(cells, {TASK: data}, places, torch.device("cpu"))[0]


def test_a_published_run_verifies_loads_as_its_card_says_and_starts_the_same_control(bench, tmp_path, monkeypatch):
    folder = tmp_path / "shared" / "run"
    assert publish(bench, str(folder))[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in folder.parent.iterdir()] == ["run"], "nothing is left beside it"
    elsewhere = Places(tmp_path / "none" / "records", tmp_path / "none" / "L.md", tmp_path / "none" / "runs")
    assert all(agrees for *_, agrees in verify_record(folder, elsewhere.runs, bench.folder / "data"))

    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    (tmp_path / "card.py").write_text(code)
    monkeypatch.chdir(folder)
    model, masks = import_file(tmp_path / "card.py").model, read_export(folder)[1]
    assert not any(model.get_parameter(name)[~mask].any() for name, mask in masks.items())

    ours = Places(bench.folder / "records", bench.folder / "L.md", bench.folder / "runs")
    run = bench.records()[0]["run"]
    control, same = resolve(bench, str(folder), elsewhere), resolve(bench, run, ours)
    assert (control.identity, control.label) == (same.identity, same.label) and run in control.label
    assert all(torch.equal(bits, same.donor.bits[name]) for name, bits in control.donor.bits.items())
    assert "In a checkout of sparse-bench, installed there by `python -m pip install" in card and "MIT licence" in card
    assert "masks=FOLDER" in card and "sparse-bench verify FOLDER" in card
    record = json.loads((folder / "record.json").read_text())
    branch = write_card({**record, "branch": {"parent": "p", "epoch": 3}})
    assert "p after epoch 3" in branch and "of dense, since then" in branch  # and no command that begins at epoch 0
    assert "# repeat the run" in card and "# repeat the run" not in branch


def test_a_published_run_is_found_under_the_home_folder_by_every_command(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder, elsewhere = "~/shared", Places(tmp_path / "records", tmp_path / "L.md", tmp_path / "runs")
    assert publish(bench, folder)[0] == 0 and not Path("~").exists()
    assert all(agrees for *_, agrees in verify_record(Path(folder), elsewhere.runs, bench.folder / "data"))
    assert resolve(bench, folder, elsewhere).donor.folder == tmp_path / "shared"
    assert publish(bench, "~/again", run=folder)[0] == 0
    assert ask("export", folder, "--to=~/out").exit_code == 0
    assert not Path("~").exists() and (tmp_path / "out" / WEIGHTS).is_file()
    again = ask("verify", "~/again", "--runs=~/shared", f"--data={bench.folder / 'data'}")
    assert again.exit_code == 0, again.output
    assert "home of user 'nosuchuser'" in ask("publish", folder, "--to=~nosuchuser/x").output
    with pytest.raises(UserError, match=r"~nosuchuser/shared: there is no home of user 'nosuchuser' here"):
        resolve(bench, "~nosuchuser/shared", elsewhere)


def test_a_run_is_verified_by_its_name_alone_and_one_that_is_unknown_is_named(bench):
    places = [f"--{name}={bench.folder / name}" for name in ("records", "runs", "data")]
    found = ask("verify", bench.records()[0]["run"], *places)
    assert found.exit_code == 0, found.output
    of_folder = ask("verify", str(bench.folder / "runs" / bench.records()[0]["run"]), *places)
    assert of_folder.exit_code == 0, of_folder.output
    unknown = ask("verify", "nosuch.run", *places)
    assert unknown.exit_code == 2 and "no record of a run 'nosuch.run'" in " ".join(unknown.output.split())


def swap(folder: Path) -> None:
    """Give the files other masks of the same counts, with weights that fit."""
    weights, masks = read_export(folder)
    turned = {name: mask.flip(0) for name, mask in masks.items()}
    moved = {name: weights[name].flip(0) for name in masks}
    export_network({**weights, **moved}, turned, folder, {"run": folder.name})


def test_a_folder_that_was_tampered_with_or_is_of_another_network_is_no_donor(bench, tmp_path):
    folder = tmp_path / "shared"
    assert publish(bench, str(folder))[0] == 0
    nowhere = Places(tmp_path / "records", tmp_path / "L.md", tmp_path / "runs")
    with pytest.raises(UserError, match=r"body\.conv\.weight is \(4, 1, 3, 3\) in digits.* and \(8, 1, 3, 3\) here"):
        resolve(bench, str(folder), nowhere, PAGE.replace("0.25", "0.5"))
    with pytest.raises(UserError, match=r"nor record\.json in a folder of this name"):
        resolve(bench, str(tmp_path / "empty"), nowhere)
    swap(folder)
    with pytest.raises(UserError, match="must be those of its record, their sha256 is"):
        resolve(bench, str(folder), nowhere)


def test_what_cannot_be_published_is_told_and_nothing_is_written(bench, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    status, said = publish(bench, str(full))
    assert status == 2 and "is not an empty folder" in said and (full / "mine.txt").read_text() == "mine"
    assert publish(bench, str(tmp_path / "new"), run="nosuch")[0] == 2
    run = bench.folder / "runs" / bench.records()[0]["run"]
    weights, masks = read_export(run)
    weights["classifier.bias"] += 1
    export_network(weights, masks, run, {"run": run.name})
    status, said = publish(bench, str(tmp_path / "new"))
    assert status == 2 and "weights.safetensors (sha256) is" in said
    swap(run)
    assert "are not those of run" in publish(bench, str(tmp_path / "new"))[1]
    (run / MASKS).unlink()
    assert "has a record but no masks.safetensors" in publish(bench, str(tmp_path / "new"))[1]
    assert not (tmp_path / "new").exists() and (run / WEIGHTS).exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


class Hub:
    """Stands in for the Hub's client: repositories in memory."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {"me/full": [".gitattributes", "model.bin"]}

    def __call__(self) -> Hub:
        return self

    def create_repo(self, repository: str, exist_ok: bool) -> None:
        if repository.startswith("other/"):
            raise OSError("403 Forbidden")
        self.files.setdefault(repository, [".gitattributes"])

    def list_repo_files(self, repository: str) -> list[str]:
        return self.files[repository]

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert json.loads((folder_path / "record.json").read_text())["run"] in commit_message
        self.files[repo_id] += sorted(path.name for path in folder_path.iterdir())


def test_a_repository_of_the_hub_gets_the_same_files_or_is_left_alone(bench, monkeypatch):
    hub = Hub()
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    assert publish(bench, "hf://me/run")[0] == 0
    assert hub.files["me/run"] == [".gitattributes", *sorted(FILES)]
    refused = {
        "hf://me/full": "is not empty, it holds model.bin",
        "hf://other/run": "could not be written: 403 Forbidden; log in",
        "hf://me": "is written hf://USER/NAME",
    }
    for target, told in refused.items():
        status, said = publish(bench, target)
        assert status == 2 and told in said
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "'.[hub]'" in publish(bench, "hf://me/new")[1]
    assert hub.files.keys() == {"me/full", "me/run"} and hub.files["me/full"] == [".gitattributes", "model.bin"]
