"""Whole runs, from the command to the record and the leaderboard."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
from filelock import FileLock
from safetensors.torch import load_file

import benchmark.networks.cifar
import benchmark.runs.checkpoints
import benchmark.runs.run
import benchmark.training.train
from benchmark.base.errors import UserError
from benchmark.base.system import cuda_available
from benchmark.cli import shell
from benchmark.config.cells import plan_cells
from benchmark.config.pages import load_page
from benchmark.config.plugins import method_names
from benchmark.data.sets import load_data
from benchmark.runs.export import MASKS, WEIGHTS
from benchmark.runs.verify import verify_record
from leaderboard import write_record
from tests.harness.benches import TINY, Bench, ask
from tests.harness.images import write_folder
from tests.harness.record_factory import make_record

WANTS_GPU = pytest.mark.skipif(not cuda_available(), reason="no GPU here")


def test_a_run_leaves_a_record_an_export_and_a_leaderboard_row(bench):
    assert bench(arguments="epochs=2 update_every=8") == 0
    (record,) = bench.records()
    assert record["weights"]["active"] == round(0.1 * record["weights"]["prunable"]) == 27061
    assert record["density"]["prunable"] == 27061 / 270608
    assert (record["method"]["name"], record["sparsity"], record["seed"]) == ("granet", 0.9, 0)
    assert len(record["history"]) == 2
    assert 0 < record["macs"]["train_share"] < 1
    assert record["page"]["changed"]["epochs"] == 2
    assert "granet" in (bench.folder / "LEADERBOARD.md").read_text()
    assert not list((bench.folder / "runs").rglob("checkpoint"))

    # what was written is what was evaluated: the file loads strictly, holds the budget and gives the accuracy
    weights = load_file(next((bench.folder / "runs").rglob("weights.safetensors")))
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1)
    model.load_state_dict(weights, strict=True)
    layers = [layer for layer in record["layers"] if layer["prunable"]]
    alive = sum(int((weights[layer["name"]] != 0).sum()) for layer in layers)
    assert alive <= record["weights"]["active"]  # a grown weight may still be zero
    data = load_data(load_page("digits_resnet20"), bench.folder, torch.device("cpu"))
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test.batches(512, torch.device("cpu")))
    assert record["accuracy_pct"]["last_epoch"] == pytest.approx(100 * right / len(data.test), abs=0.3)


def test_methods_and_controls_of_every_kind_fill_the_leaderboard_each_at_its_own_cost(bench):
    whole, narrow = "dense,small_dense", "static,rigl_itop,gmp"
    assert bench(whole, arguments="epochs=1 batch_size=400") == 0
    short = "epochs=1 update_every=2 batch_size=200 model_args.width=0.25"
    assert bench(narrow, arguments=short) == 0
    records = bench.records()
    assert len(records) == 5
    for record in records:
        weights = record["weights"]
        if record["method"]["budget"] == "exact":
            assert weights["active"] == round((1 - record["sparsity"]) * weights["prunable"])
    dense = next(r for r in records if r["method"]["name"] == "dense")
    small = next(r for r in records if r["method"]["name"] == "small_dense")
    assert small["weights"]["dense_prunable"] == dense["weights"]["prunable"]
    assert abs(small["density"]["prunable"] - 0.1) < 0.005
    assert small["macs"]["inference"] < dense["macs"]["inference"]
    assert dense["macs"]["train_share"] == 1.0
    shares = {r["method"]["name"]: r["macs"]["train_share"] for r in records}
    assert shares["static"] < shares["rigl_itop"] < shares["gmp"]  # dense gradients and dense phases are charged
    page = (bench.folder / "LEADERBOARD.md").read_text()
    assert all(name in page for name in f"{whole},{narrow}".split(","))


def test_all_methods_start_from_the_same_weights_and_see_the_same_batches(bench, monkeypatch):

    seen = {}
    prepare, step = benchmark.runs.run.prepare, benchmark.training.train.train_step

    def note_weights(*rest):
        run = prepare(*rest)
        seen[run.name] = hashlib.sha256()
        for tensor in run.model.state_dict().values():
            seen[run.name].update(tensor.numpy().tobytes())
        return run

    def note_batch(run, images, labels, *rest):
        seen[run.name].update(images.contiguous().numpy().tobytes() + labels.numpy().tobytes())
        return step(run, images, labels, *rest)

    monkeypatch.setattr(benchmark.runs.run, "prepare", note_weights)
    monkeypatch.setattr(benchmark.training.train, "train_step", note_batch)
    methods = "dense,granet,snip"
    bench(methods, arguments=TINY)
    assert set(seen) == set(methods.split(","))
    assert len({digest.hexdigest() for digest in seen.values()}) == 1


@pytest.mark.gpu
@WANTS_GPU
def test_on_a_gpu_a_run_that_broke_off_goes_on_to_the_same_bits(bench, tmp_path_factory, monkeypatch):
    whole = Bench(tmp_path_factory.mktemp("whole"))
    whole("static", device="cuda")
    train_step, seen = benchmark.training.train.train_step, []

    def stop(run, *rest):
        seen.append(run.step)
        return 1 / 0 if run.step == 6 else train_step(run, *rest)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(benchmark.training.train, "train_step", stop)
        bench("static", device="cuda")
    assert bench("static", device="cuda") == 0 and "continuing" in bench.shown.getvalue()
    (one,), (two,) = whole.records(), bench.records()
    for key in ("masks_sha256", "accuracy_pct", "history", "updates", "layers", "macs"):
        assert one[key] == two[key], key
    a, b = (load_file(next(folder.rglob("weights.safetensors"))) for folder in (whole.folder, bench.folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"arguments": "model=cifar_resnet21"}, "did you mean 'cifar_resnet20'"),
        ({"arguments": "model=resnet18.typo"}, "'typo' is not a tag of resnet18; timm's tags of it are a1_in1k,"),
        ({"arguments": "model=resnet18.tv_in1"}, "did you mean 'tv_in1k'"),
        ({"arguments": "model=cifar_resnet20.tag"}, "'tag' is not a tag of cifar_resnet20; it has none"),
        ({"arguments": "model_args.depth=3"}, "cannot be built with"),
        ({"arguments": "update_every=100000"}, "makes no update"),
        ({"arguments": "batch_size=5000 drop_last=true"}, "batch_size must be at most"),
        ({"arguments": "keep_dense=[stem.*]"}, "'stem.*' matches no weight"),
        ({"arguments": "batch_size=4 model=cifar_vgg19_bn"}, "the last batch of an epoch has one image"),
        ({"arguments": "model=convnext_atto"}, "takes images of 224x224: try ARGS=image_size=224"),
        ({"arguments": "allow_dense=[blocks.*]"}, "allow_dense: 'blocks.*' matches no weight; the weights are"),
        ({"arguments": "methods.rigl=3"}, "methods must be a map of settings"),
        ({"arguments": "methods.rigll.update_every=3"}, "unknown method 'rigll': did you mean 'rigl'"),
        ({"arguments": "sparsity=0.5"}, "'sparsity'; it is no setting: give it as SPARSITY="),
        ({"arguments": "methods.rigl.update_evry=3"}, "has no setting 'update_evry': did you mean 'update_every'"),
        (
            {"methods": "set", "arguments": "epochs=1"},
            "update more often with ARGS=update_every=N, or train longer with ARGS=epochs=N",
        ),
        ({"arguments": "std=[.nan]"}, "std must be above 0"),
        ({"arguments": "lr=2e30"}, "'lr' must be within ±1e+30, as numbers of records are, got 2e+30"),
        ({"methods": "grasp", "arguments": "temperature=inf"}, "'grasp': temperature must be a finite number, got inf"),
        ({"arguments": "ema_decay=1"}, "ema_decay must be below 1"),
        ({"arguments": "model=resnetv2_50x1_bit image_size=32"}, "computes with another weight than it stores"),
        ({"device": "tpu"}, "DEVICE must be auto, cpu or cuda"),
        ({"methods": "static", "sparsities": "0.9999"}, "leaves no weight in layer"),
        ({"methods": "snip", "sparsities": "0.99999"}, "for 22 layers, so a layer must stay empty (body.conv.weight"),
        ({"methods": "small_dense", "arguments": "model=mobilenetv3_small_050 image_size=32"}, "narrow"),
    ],
)
def test_bad_input_is_refused_before_the_first_batch_and_writes_nothing(bench, asked, message, monkeypatch):

    monkeypatch.setattr(benchmark.runs.run, "train", lambda *_: pytest.fail("a batch was trained"))
    with pytest.raises(UserError) as caught:
        bench(**{"arguments": "epochs=2 update_every=8", **asked})
    assert message in str(caught.value)
    assert not [name for name in bench.written() if name.endswith((".json", ".md"))]


def test_an_error_is_one_message_and_status_2_without_a_traceback():
    said = ask("run", "--method", "grannet")
    assert said.exit_code == 2
    names = ", ".join(method_names())
    assert said.stderr.strip() == f"error: unknown method 'grannet': did you mean 'granet'? available: {names}"


def test_a_layer_collapse_decided_by_scores_is_a_result_told_and_recorded(bench):
    assert bench("snip", "0.98", "epochs=1") == 0
    (record,) = bench.records()
    assert record["empty_layers"]
    assert record["weights"]["active"] == round(0.02 * record["weights"]["prunable"])
    assert f"snip leaves no weight in layer {', '.join(record['empty_layers'])}" in bench.shown.getvalue()
    assert "empty layers" in (bench.folder / "LEADERBOARD.md").read_text()


@pytest.mark.skipif(cuda_available(), reason="there is a GPU here")
def test_a_gpu_asked_for_and_absent_is_refused(bench):
    with pytest.raises(UserError, match="DEVICE=cuda was asked for"):
        bench(device="cuda")
    assert bench.written() == []


def test_a_place_that_is_a_file_is_refused(bench, tmp_path):
    (tmp_path / "records").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write to .*records"):
        bench()


def test_records_that_are_a_file_are_refused_before_anything_is_run(tmp_path, monkeypatch):
    told, ran = [], []
    monkeypatch.setattr(shell, "tell", lambda message: told.append(str(message)))
    (tmp_path / "records").write_text("not a folder")
    with pytest.raises(typer.Exit) as ended:
        shell.train_then_rebuild(lambda: ran.append(1) or 0, tmp_path / "records", tmp_path / "LEADERBOARD.md")
    assert ended.value.exit_code == 2 and ran == []
    assert told == [f"cannot write to {tmp_path}/records: it is not a folder; name another one, nothing was run"]


def test_a_disk_without_room_is_refused_before_training(bench, monkeypatch):
    usage = shutil.disk_usage(bench.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="MiB free and this run's checkpoints need"):
        bench()


def test_a_grid_is_checked_whole_before_its_first_batch(bench):
    with pytest.raises(UserError, match="leaves no weight in layer"):
        bench("static", "0.9,0.9999", "epochs=1 batch_size=400")
    assert bench.written() == []
    assert bench("static", "0.9999", "epochs=1 batch_size=400 allow_empty_layers=true") == 0


@pytest.mark.parametrize("fault", [UserError("it broke"), RuntimeError("it broke")])
def test_one_failing_cell_leaves_the_others(bench, monkeypatch, fault):

    original = benchmark.training.train.train

    def fail_once(run, *rest):
        if run.method.sparsity == 0.5:
            raise fault
        original(run, *rest)

    monkeypatch.setattr(benchmark.runs.run, "train", fail_once)
    assert bench("static", "0.5,0.9") == 1
    assert [record["sparsity"] for record in bench.records()] == [0.9]
    assert any("it broke" in said for said in bench.said)


def test_a_damaged_record_is_skipped_told_and_costs_nothing(bench, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(shell, "tell", lambda message: told.append(str(message)))
    write_record(make_record(method={"name": "static"}), bench.folder / "records")
    (bench.folder / "records" / "broken.json").write_text('{"schema": 1')
    shell.rebuild_all(bench.folder / "records", bench.folder / "LEADERBOARD.md")
    assert len(told) == 1 and "broken.json was skipped" in told[0]
    assert "static" in (bench.folder / "LEADERBOARD.md").read_text()


def test_the_same_cell_twice_at_once_is_refused(bench, monkeypatch):
    identity = plan_cells("static", "0.9", "digits_resnet20", "0", TINY)[0].identity
    folder = bench.folder / "runs" / identity
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), pytest.raises(UserError, match="already running in another process"):
        bench("static")


def on_folder(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Return what a bench is asked for to train on a folder of its own."""
    if not folder.exists():
        write_folder(folder, {"train": list("abc"), "test": list("abc")}, count=4, seed=seed)
    return {
        "methods": "static",
        "tasks": "folder_resnet20",
        "arguments": f"epochs=1 batch_size=8 image_size=8 split=full data_dir={folder}",
    }


def test_runs_on_two_folders_share_neither_name_nor_files(bench):
    one, two = on_folder(bench.folder / "one", 1), on_folder(bench.folder / "two", 2)
    bench(**one)
    (first,) = bench.records()
    folder = bench.folder / "runs" / first["run"]
    with FileLock(folder / "lock"):  # as while the first is running
        bench(**two)
    runs = {record["data"]["name"]: record["run"] for record in bench.records()}
    assert len(set(runs.values())) == 2
    path = next((bench.folder / "records").glob(f"{first['run']}.*json"))
    assert all(agrees for *_, agrees in verify_record(path, bench.folder / "runs", bench.folder))
    shutil.copyfile(bench.folder / "runs" / runs["two"] / WEIGHTS, folder / WEIGHTS)
    assert first["files_sha256"][MASKS] == hashlib.sha256((folder / MASKS).read_bytes()).hexdigest()
    assert first["files_sha256"][WEIGHTS] != hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def name_without_data(bench, record: dict) -> Path:
    """Give a finished run the name that an earlier version gave it, and return the folder of its files."""
    asked = on_folder(bench.folder / record["data"]["name"])
    (cell,) = plan_cells(asked["methods"], "0.9", asked["tasks"], "0", asked["arguments"])
    assert cell.identity != record["run"] in cell.names(record["data"]["fingerprint"])
    for path in (bench.folder / "records").glob(f"{record['run']}.*json"):
        path.unlink()
    old = {key: value for key, value in record.items() if key not in ("file", "seal")}
    write_record({**old, "run": cell.identity}, bench.folder / "records")
    return (bench.folder / "runs" / record["run"]).rename(bench.folder / "runs" / cell.identity)


def test_a_run_named_without_its_data_is_found_by_its_data_alone(bench):
    one, two = on_folder(bench.folder / "one", 1), on_folder(bench.folder / "two", 2)
    bench(**one)
    folder = name_without_data(bench, bench.records()[0])
    bench(**one)
    assert [record["run"] for record in bench.records()] == [folder.name] * 2  # a repeat
    bench(**two)
    assert sorted(record["run"] == folder.name for record in bench.records()) == [False, True, True]


def test_an_interrupted_run_named_without_its_data_goes_on_and_blocks_no_other(bench):
    one, two = on_folder(bench.folder / "one", 1), on_folder(bench.folder / "two", 2)
    bench.break_off("export_network", **one)
    (begun,) = (bench.folder / "runs").glob("*/checkpoint")
    (cell,) = plan_cells("static", "0.9", one["tasks"], "0", one["arguments"])
    folder = begun.parent.rename(begun.parent.with_name(cell.identity))
    kept = (folder / "checkpoint").read_bytes()
    bench(**two, fresh=True)
    assert (folder / "checkpoint").read_bytes() == kept
    bench(**one)
    assert bench.shown.getvalue().count("continuing") == 1
    assert {record["data"]["name"]: record["run"] == folder.name for record in bench.records()} == {
        "one": True,
        "two": False,
    }


def test_a_run_that_diverges_is_recorded_as_such(bench):
    bench("static", arguments=f"{TINY} lr=1e20 eval_every=1")
    records = bench.records()
    assert [record["status"] for record in records] == ["diverged"]
    assert "diverged" in (bench.folder / "LEADERBOARD.md").read_text()


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("vit_tiny_patch16_224", "model_args={patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3} optimizer=adamw"),
        ("mobilenetv3_small_050", ""),
        pytest.param(
            *("convnext_atto", "model_args={depths: [1, 1, 1, 1], dims: [8, 16, 32, 64], ls_init_value: 1.0}"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_any_timm_backbone_trains_sparse(bench, model, more):
    more = more.replace("model_args={", "'model_args={").replace("}", "}'")
    arguments = f"epochs=1 image_size=32 batch_size=256 update_every=2 model={model} {more}"
    assert bench("granet,snip,grasp" if model.startswith("vit") else "granet", "0.8", arguments) == 0
    for record in bench.records():
        assert record["weights"]["active"] == round((1 - 0.8) * record["weights"]["prunable"])
        assert 0.15 < record["macs"]["inference_share"] < 1


def test_a_backbone_without_second_derivatives_is_refused_by_name(bench):
    with pytest.raises(UserError, match=r"cannot be scored by second derivatives: .*hardsigmoid"):
        bench("grasp", "0.8", "epochs=1 image_size=32 batch_size=256 model=mobilenetv3_small_050")
