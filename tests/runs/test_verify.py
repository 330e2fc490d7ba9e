"""Exported files and records against each other: what `export` and `verify` promise."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmark.base.console import print_result
from benchmark.base.errors import UserError
from benchmark.runs.checkpoints import load_checkpoint
from benchmark.runs.export import MASKS, WEIGHTS, export_run, read_export, read_tensors
from benchmark.runs.record import count_nonzero, describe_accuracy
from benchmark.runs.verify import NOT_RECORDED, verify_record
from benchmark.training.masks import hash_masks
from leaderboard import write_record
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


def set_active(record: dict) -> None:
    record["weights"]["active"] -= 1


def set_accuracy(record: dict) -> None:
    record["accuracy_pct"]["last_epoch"] += 1.5


def set_best(record: dict) -> None:
    record["accuracy_pct"]["best_on_test"] = 99.9


def set_macs(record: dict) -> None:
    record["macs"]["inference"] -= 1


def count_zeros(record: dict) -> None:
    record["weights"]["nonzero"] -= 1


def set_epoch(record: dict) -> None:
    record["selected"]["test_epoch"] -= 1


def halve_share(record: dict) -> None:
    record["macs"]["inference_dense"] *= 2
    record["macs"]["inference_share"] /= 2


def halve_density(record: dict) -> None:
    record["weights"]["dense_prunable"] *= 2
    record["density"]["prunable"] /= 2


def loosen_budget(record: dict) -> None:
    record["method"]["budget"] = "outcome"
    record["sparsity"] = 0.95


def cheapen_training(record: dict) -> None:
    record["macs"]["train"] //= 3
    record["macs"]["train_share"] = record["macs"]["train"] / record["macs"]["train_dense"]


def lengthen(record: dict) -> None:
    record["page"]["settings"]["epochs"] = 400


def move_a_weight(record: dict) -> None:
    first, second = [layer for layer in record["layers"] if layer["prunable"]][:2]
    first["active"] -= 1
    second["active"] += 1


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (set_active, ["active weights"]),
        (set_accuracy, ["test accuracy, last epoch (%)", "accuracy by its history, last_epoch"]),
        (set_best, ["accuracy by its history, best_on_test"]),
        (set_macs, ["inference macs"]),
        (count_zeros, ["active weights that are not zero"]),
        (set_epoch, ["test_epoch by its history"]),
        (halve_share, ["inference macs, dense", "inference share"]),
        (halve_density, ["prunable weights, dense", "density"]),
        (loosen_budget, ["kind of budget", "budget at sparsity 0.95"]),
        (cheapen_training, ["training share, last epoch"]),
        (lengthen, ["training macs, dense"]),
        (move_a_weight, ["layers with the recorded count"]),
    ],
)
def test_an_edited_record_is_found_out_by_the_very_figure(done, tmp_path, monkeypatch, change, differs):
    import leaderboard.store.records as store

    record, runs, _ = places(done, "granet")
    content = json.loads(record.read_text())
    change(content)
    edited = tmp_path / record.name
    edited.write_text(json.dumps(content))
    monkeypatch.setattr(store, "find_faults", lambda record: [])  # the schema would notice some of them by itself
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


def copy_run(done: Bench, target: Path) -> Path:
    """Copy the files of the granet run to `target`."""
    _, _, folder = places(done, "granet")
    copied = target / folder.name
    copied.mkdir(parents=True)
    for name in (WEIGHTS, MASKS):
        (copied / name).write_bytes((folder / name).read_bytes())
    return copied


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
    del content["files_sha256"], content["seal"]
    older = write_record(content, tmp_path / "records")
    found = {what: (said, agrees) for what, said, _, agrees in verify_record(older, tmp_path / "runs", done.folder)}
    assert found[f"{WEIGHTS} (sha256)"] == found[f"{MASKS} (sha256)"] == (NOT_RECORDED, True)


def test_a_weight_that_came_alive_in_the_file_is_named(done, tmp_path):
    folder = copy_run(done, tmp_path)
    weights, masks = read_export(folder)
    name = "body.stage1.0.conv1.weight"
    weights[name][~masks[name]] = 1e-30
    save_file(weights, folder / WEIGHTS, metadata={"masks_sha256": hash_masks(masks)})
    with pytest.raises(UserError, match=rf"inactive weights of '{name}' are not zero"):
        read_export(folder)


def test_masks_of_another_run_are_refused(done, tmp_path):
    folder = copy_run(done, tmp_path)
    (folder / MASKS).write_bytes((places(done, "snip")[2] / MASKS).read_bytes())
    with pytest.raises(UserError, match=r"are not those that weights\.safetensors was written with"):
        read_export(folder)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:100])])
@pytest.mark.parametrize("name", [WEIGHTS, MASKS])
def test_a_missing_or_cut_file_is_named(done, tmp_path, name, harm):
    folder = copy_run(done, tmp_path)
    harm(folder / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read"):
        read_export(folder)


def test_an_exported_run_loads_strictly_into_plain_timm_and_holds_its_budget(done, tmp_path):
    record, runs, _ = places(done, "granet")
    folder = tmp_path / "out"
    masks, about = export_run(record.stem, runs, folder)
    assert about == {"model": "cifar_resnet20", "run": record.stem}
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1, width=0.5)
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    content = json.loads(record.read_text())
    assert sum(int(mask.sum()) for mask in masks.values()) == content["weights"]["active"]
    assert hash_masks(masks) == content["masks_sha256"]
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())


def test_an_interrupted_run_is_exported_as_it_stands(tmp_path, monkeypatch):
    import benchmark.runs.run as module

    bench = Bench(tmp_path)
    monkeypatch.setattr(module, "export_network", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench("static", arguments=TINY)
    monkeypatch.undo()
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / WEIGHTS).exists()
    masks, about = export_run(folder.name, tmp_path / "runs", tmp_path / "out")
    assert int(about["interrupted_at_step"]) > 0
    weights, again = read_export(tmp_path / "out")
    assert hash_masks(masks) == hash_masks(again)
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    assert any(bool(torch.is_nonzero(weights[name].abs().sum())) for name in masks)


def test_a_run_that_is_not_there_is_told_with_those_that_are(done):
    with pytest.raises(UserError, match=r"no run 'nosuch' in .*; there is: .*digits_resnet20.granet"):
        export_run("nosuch", done.folder / "runs", done.folder / "out")


def test_fresh_publishes_what_had_finished_before_it_starts_over(tmp_path, monkeypatch):
    import benchmark.runs.run as module

    bench = Bench(tmp_path)
    monkeypatch.setattr(module, "write_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench("static", arguments=TINY)
    monkeypatch.undo()
    monkeypatch.setattr(module, "export_network", lambda *_: 1 / 0)  # the fresh run is killed too, at its end
    with pytest.raises(ZeroDivisionError):
        bench("static", arguments=TINY, fresh=True)
    assert len(bench.records()) == 1
    assert "published the run that finished" in bench.shown.getvalue()
    monkeypatch.undo()
    assert bench("static", arguments=TINY) == 0
    assert len(bench.records()) == 2
    assert "continuing" in bench.shown.getvalue()


def test_a_fresh_run_killed_at_once_does_not_go_on_from_the_old_checkpoint(tmp_path, monkeypatch):
    import benchmark.runs.run as module

    bench = Bench(tmp_path)
    for name, fresh in (("export_network", False), ("train", True)):
        monkeypatch.setattr(module, name, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench("static", arguments=TINY, fresh=fresh)
        monkeypatch.undo()
    assert bench("static", arguments=TINY) == 0
    assert "continuing" not in bench.shown.getvalue()


def test_a_record_that_is_not_valid_is_told_with_the_way_out(tmp_path, monkeypatch):
    import benchmark.runs.run as module

    original = module.make_record
    monkeypatch.setattr(module, "make_record", lambda *rest: {**original(*rest), "sparsity": 7.0})
    with pytest.raises(UserError, match=r"its record is not valid and was not published: .*FRESH=1"):
        Bench(tmp_path)("static", arguments=TINY)
    assert not list((tmp_path / "records").glob("*.json"))


@pytest.mark.parametrize("version", [b"1", b"2"])
def test_a_checkpoint_of_a_version_before_is_told_from_a_damaged_one(tmp_path, version):
    path = tmp_path / "checkpoint"
    path.write_bytes(b"sparse-bench checkpoint " + version + b"\n" + bytes(100))
    with pytest.raises(UserError, match=r"was written by an earlier version .*FRESH=1"):
        load_checkpoint(path)


def test_a_file_of_weights_is_no_file_of_masks(done, tmp_path):
    folder = copy_run(done, tmp_path)
    (folder / MASKS).write_bytes((folder / WEIGHTS).read_bytes())
    with pytest.raises(UserError, match="is not a file of masks"):
        read_export(folder)


def test_a_finished_run_killed_before_it_was_published_is_published_once(tmp_path, monkeypatch):
    import benchmark.runs.run as module

    bench = Bench(tmp_path)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_record", die)
    with pytest.raises(KeyboardInterrupt):
        bench("static", arguments=TINY)
    monkeypatch.undo()
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    assert bench("static", arguments=TINY) == 0
    assert len(bench.records()) == 1
    assert "static" in (tmp_path / "LEADERBOARD.md").read_text()
    assert not [path for path in bench.written() if path.endswith(("checkpoint", "record.json"))]


def test_costs_are_counted_again_by_another_counter(done, monkeypatch):
    """A fault in the first counter is seen, for verify never asks it."""
    import benchmark.networks.costs

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
