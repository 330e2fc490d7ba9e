"""Exported files and records against each other: what `export` and `verify` promise."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

import benchmark.networks.costs
import benchmark.runs.run
from benchmark.base.console import print_result
from benchmark.base.errors import UserError
from benchmark.runs.export import (
    MASKS,
    WEIGHTS,
    export_network,
    hash_export,
    read_export,
    read_network,
    read_tensors,
)
from benchmark.runs.record import count_nonzero, describe_accuracy
from benchmark.runs.verify import NOT_RECORDED, verify_record
from benchmark.training.masks import hash_masks
from leaderboard import write_record
from leaderboard.store.schema import content_of
from leaderboard.tables.details import notes
from leaderboard.tables.table import make_rows
from methods.static import Static
from tests.harness.benches import Bench
from tests.harness.small import make_training

TINY = "epochs=2 update_every=5 batch_size=256 ema_decay=0.9 model_args.width=0.5"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Bench:
    """A grid that was run once, for tests that only read it."""
    bench = Bench(tmp_path_factory.mktemp("done"))
    assert bench("granet,small_dense,snip", arguments=TINY) == 0
    return bench


def places(bench: Bench, method: str) -> tuple[Path, Path, Path]:
    """Return a method's record, the folder of runs, and its run's folder."""
    record = next((bench.folder / "records").glob(f"*.{method}.*.json"))
    return record, bench.folder / "runs", bench.folder / "runs" / record.stem


@pytest.mark.parametrize("method", ["granet", "small_dense", "snip"])
def test_a_record_agrees_with_the_network_its_run_exported(done, method):
    record, runs, _ = places(done, method)
    findings = verify_record(record, runs, done.folder / "data")
    assert all(agrees for *_, agrees in findings), findings
    assert {"masks (sha256)", "active weights", "density", "inference macs", "test accuracy, last epoch (%)"} <= {
        what for what, *_ in findings
    }
    assert ("budget at sparsity 0.9" in [what for what, *_ in findings]) == (method != "small_dense")


def move_a_weight(layers: list[dict]) -> list[dict]:
    first, second = [layer for layer in layers if layer["prunable"]][:2]
    first["active"], second["active"] = first["active"] - 1, second["active"] + 1
    return layers


def cheapen_training(macs: dict) -> dict:
    return {**macs, "train": macs["train"] // 3, "train_share": macs["train"] // 3 / macs["train_dense"]}


EDITS = [  # what is put in the place of values of a record, by their keys, and the figures that tell
    ({"weights active": lambda n: n - 1}, ["active weights"]),
    (
        {"accuracy_pct last_epoch": lambda n: n + 1.5},
        ["test accuracy, last epoch (%)", "accuracy by its history, last_epoch"],
    ),
    ({"accuracy_pct best_on_test": lambda n: 99.9}, ["accuracy by its history, best_on_test"]),
    ({"macs inference": lambda n: n - 1}, ["inference macs"]),
    ({"weights nonzero": lambda n: n - 1}, ["active weights that are not zero"]),
    ({"selected test_epoch": lambda n: n - 1}, ["test_epoch by its history"]),
    (
        {"macs inference_dense": lambda n: 2 * n, "macs inference_share": lambda n: n / 2},
        ["inference macs, dense", "inference share"],
    ),
    (
        {"weights dense_prunable": lambda n: 2 * n, "density prunable": lambda n: n / 2},
        ["prunable weights, dense", "density"],
    ),
    (
        {"method budget": lambda _: "outcome", "sparsity": lambda _: 0.95},
        ["kind of budget", "budget at sparsity 0.95"],
    ),
    ({"macs": cheapen_training}, ["training share, last epoch"]),
    ({"page settings epochs": lambda _: 400}, ["table (variant of the page)", "training macs, dense"]),
    ({"page variant": lambda _: "833afb66"}, ["table (variant of the page)"]),
    ({"data test": lambda n: n + 1, "data classes": lambda n: n - 1}, ["data: classes", "data: test"]),
    ({"layers": move_a_weight}, ["layers with the recorded count"]),
]


@pytest.mark.parametrize(("changes", "differs"), EDITS, ids=[" ".join(edit[0]) for edit in EDITS])
def test_an_edited_record_is_found_out_by_the_very_figure(done, tmp_path, monkeypatch, changes, differs):
    record, runs, _ = places(done, "granet")
    content = json.loads(record.read_text())
    for path, change in changes.items():
        *outer, last = path.split()
        part = functools.reduce(dict.__getitem__, outer, content)
        part[last] = change(part[last])
    edited = tmp_path / record.name
    edited.write_text(json.dumps(content))
    # the schema would notice some of them by itself
    monkeypatch.setattr("leaderboard.store.records.find_faults", lambda record: [])
    wrong = [what for what, *_, agrees in verify_record(edited, runs, done.folder / "data") if not agrees]
    assert wrong == differs


def test_a_grown_weight_without_a_gradient_is_active_and_counted_as_zero():
    run = make_training(Static(sparsity=0.5))  # every weight is active yet
    with torch.no_grad():
        run.model.conv1.weight[0] = 0
        run.model.fc.weight[0, :3] = 0
        run.model.fc.bias.zero_()  # not prunable
    assert count_nonzero(run.evaluated().state_dict(), run.maskset.masks) == run.maskset.active() - 2 * 9 - 3


def test_the_panel_shows_weights_that_are_not_zero_only_where_they_are_fewer(done):
    def show(**weights: int) -> str:
        out, record = io.StringIO(), json.loads(places(done, "granet")[0].read_text())
        record["weights"].update(weights)
        print_result(Console(file=out, width=140), record, "record", "page")
        return " ".join(out.getvalue().split())

    active = json.loads(places(done, "granet")[0].read_text())["weights"]["active"]
    assert f"active weights not zero │ {active - 10:,} of {active:,}" in show(nonzero=active - 10)
    assert "not zero" not in show(nonzero=active)


@pytest.mark.parametrize(
    ("accuracies", "first", "last"),
    [((3, 5, 4, 5, 1), 2, 4), ((5, 5, 5), 1, 3), ((1, 2), 2, 2), ((None, 3, None), 2, 2)],
)
def test_of_epochs_of_equal_accuracy_the_last_is_selected_and_older_records_keep_the_first(accuracies, first, last):
    history = [
        {"epoch": epoch, "density": 0.1, "validation_acc_pct": value, "test_acc_pct": 50.0 + epoch}
        for epoch, value in enumerate(accuracies, 1)
    ]
    found = describe_accuracy(history)
    assert (found["selected"]["validation_epoch"], found["selected"]["ties"]) == (last, "last")
    assert found["accuracy_pct"]["validation_selected"] == 50.0 + last
    older = describe_accuracy(history, "first")
    assert older["selected"] == {"validation_epoch": first, "test_epoch": len(history)}  # as records have it
    # an epoch before the final density was reached is never selected, whichever of equals is taken
    assert describe_accuracy([{**history[-1], "epoch": 9, "density": 0.5}, *history])["selected"]["test_epoch"] != 9


def test_files_of_another_run_of_the_same_accuracy_and_masks_are_told(done, tmp_path):
    record, _, folder = places(done, "granet")
    shutil.copytree(folder, tmp_path / "runs" / folder.name)
    weights, path = load_file(folder / WEIGHTS), tmp_path / "runs" / folder.name / WEIGHTS
    (bias,) = (name for name, weight in weights.items() if name.endswith("bias") and weight.shape == (10,))
    weights[bias] = weights[bias] + 1  # every score alike: no accuracy, mask or count shows it
    save_file(weights, path, read_tensors(path)[1])
    differing = [what for what, *_, agrees in verify_record(record, tmp_path / "runs", done.folder) if not agrees]
    assert differing == [f"{WEIGHTS} (sha256)"]
    content = json.loads(record.read_text())
    store = tmp_path / "both"  # of the run and of a repeat, whose files these are
    again = {**content, "files_sha256": hash_export(path.parent)}
    alone, repeat = (write_record(content_of(what), store) for what in (content, again))
    with pytest.raises(UserError, match=rf"holds the files of {re.escape(repeat.name)}, a repeat of this run"):
        verify_record(alone, tmp_path / "runs", done.folder)
    assert all(agrees for *_, agrees in verify_record(repeat, tmp_path / "runs", done.folder))
    del content["files_sha256"], content["seal"]
    older = write_record(content, tmp_path / "records")
    found = {what: (said, agrees) for what, said, _, agrees in verify_record(older, tmp_path / "runs", done.folder)}
    assert found[f"{WEIGHTS} (sha256)"] == found[f"{MASKS} (sha256)"] == (NOT_RECORDED, True)


def revive(folder: Path) -> None:
    weights, masks = read_export(folder)
    weights["body.stage1.0.conv1.weight"][~masks["body.stage1.0.conv1.weight"]] = 1e-30
    save_file(weights, folder / WEIGHTS, metadata={"masks_sha256": hash_masks(masks)})


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (revive, r"inactive weights of 'body.stage1.0.conv1.weight' are not zero"),
        (
            lambda folder: shutil.copyfile(next(folder.parent.glob("*.snip.*")) / MASKS, folder / MASKS),
            r"are not those that weights\.safetensors was written with",
        ),
        (lambda folder: shutil.copyfile(folder / WEIGHTS, folder / MASKS), "is not a file of masks"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} cannot be read"),
        (lambda folder: os.truncate(folder / MASKS, 100), f"{MASKS} cannot be read"),
    ],
)
def test_files_that_are_damaged_or_do_not_belong_together_are_refused_by_name(done, tmp_path, harm, told):
    shutil.copytree(done.folder / "runs", tmp_path / "runs")
    folder = tmp_path / "runs" / places(done, "granet")[2].name
    harm(folder)
    with pytest.raises(UserError, match=told):
        read_export(folder)


def export(name: str, runs: Path, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Write a run's network to a folder as two files; return the masks and the metadata."""
    state, masks, about = read_network(name, runs)
    folder.mkdir()
    export_network(state, masks, folder, about)
    return masks, about


def test_an_exported_run_loads_strictly_into_plain_timm_and_holds_its_budget(done, tmp_path):
    record, runs, _ = places(done, "granet")
    folder = tmp_path / "out"
    masks, about = export(record.stem, runs, folder)
    assert about == {"model": "cifar_resnet20", "run": record.stem}
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1, width=0.5)
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    content = json.loads(record.read_text())
    assert sum(int(mask.sum()) for mask in masks.values()) == content["weights"]["active"]
    assert hash_masks(masks) == content["masks_sha256"]
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())


def test_an_interrupted_run_is_exported_as_it_stands(tmp_path):
    Bench(tmp_path).break_off("export_network", "static", arguments=TINY)
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / WEIGHTS).exists()
    masks, about = export(folder.name, tmp_path / "runs", tmp_path / "out")
    assert int(about["interrupted_at_step"]) > 0
    weights, again = read_export(tmp_path / "out")
    assert hash_masks(masks) == hash_masks(again)
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    assert any(bool(torch.is_nonzero(weights[name].abs().sum())) for name in masks)


def test_a_run_that_is_not_there_is_told_with_those_that_are(done):
    with pytest.raises(UserError, match=r"no run 'nosuch' in .*; there is: .*digits_resnet20.granet"):
        read_network("nosuch", done.folder / "runs")


def test_fresh_publishes_what_had_finished_before_it_starts_over(tmp_path):
    bench = Bench(tmp_path)
    bench.break_off("write_record", "static", arguments=TINY)
    bench.break_off("export_network", "static", arguments=TINY, fresh=True)  # killed too, at its end
    assert len(bench.records()) == 1
    assert "published the run that finished" in bench.shown.getvalue()
    assert bench("static", arguments=TINY) == 0
    assert len(bench.records()) == 2
    assert "continuing" in bench.shown.getvalue()


def test_a_run_that_goes_on_under_another_processor_or_version_says_so_and_so_does_its_record(bench, monkeypatch):
    bench.break_off("export_network", "static", arguments=TINY)
    known = {run["run"] for run in bench.records()}
    monkeypatch.setattr(benchmark.runs.run, "name_surroundings", lambda device: "another, torch 9.9.9, timm 1")
    assert bench("static", arguments=TINY) == 0
    told = " ".join(bench.shown.getvalue().split())
    assert re.search(r"warning: it ran under .+, torch \S+, timm \S+ and goes on under another, torch 9", told)
    (record,) = [run for run in bench.records() if run["run"] not in known]
    assert f"torch {record['environment']['torch']}, timm" in record["environment"]["earlier"]
    (row,) = [row for row in make_rows(bench.records()) if row.label.startswith("static")]
    assert any("begun under" in note for entry in row.cells.values() for note in notes(entry))


def test_a_fresh_run_killed_at_once_does_not_go_on_from_the_old_checkpoint(tmp_path):
    bench = Bench(tmp_path)
    bench.break_off("export_network", "static", arguments=TINY)
    bench.break_off("train", "static", arguments=TINY, fresh=True)
    assert bench("static", arguments=TINY) == 0
    assert "continuing" not in bench.shown.getvalue()


def test_a_record_that_is_not_valid_is_told_with_the_way_out(tmp_path, monkeypatch):
    original = benchmark.runs.run.make_record
    monkeypatch.setattr(benchmark.runs.run, "make_record", lambda *rest: {**original(*rest), "sparsity": 7.0})
    with pytest.raises(UserError, match=r"its record is not valid and was not published: .*FRESH=1"):
        Bench(tmp_path)("static", arguments=TINY)
    assert not list((tmp_path / "records").glob("*.json"))


def test_costs_are_counted_again_by_another_counter(done, monkeypatch):
    """A fault in the first counter is seen, for verify never asks it."""
    monkeypatch.setattr(
        benchmark.networks.costs, "FlopCountAnalysis", lambda *_: pytest.fail("asked the first counter")
    )
    record, runs, _ = places(done, "granet")
    assert all(agrees for *_, agrees in verify_record(record, runs, done.folder / "data"))
    content = json.loads(record.read_text())
    content["layers"][3]["macs"] -= 1  # and the total with it, as a faulty counter would
    content["macs"]["inference_dense"] -= 1
    edited = done.folder / "edited" / record.name
    edited.parent.mkdir()
    edited.write_text(json.dumps(content))
    monkeypatch.setattr("leaderboard.store.records.find_faults", lambda record: [])
    wrong = [what for what, *_, agrees in verify_record(edited, runs, done.folder / "data") if not agrees]
    assert {"layers with the recorded macs", "inference macs, dense"} <= set(wrong)
