"""Several processes that train one network: the same masks, weights, costs and accuracies, and one account of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.config.plugins import method_names
from benchmark.conformance.nets import CLASSES, IMAGES, make_data, make_kit_page, make_network
from benchmark.data import images as folders
from benchmark.data.files import scan_folder
from benchmark.data.images import StreamedImages
from benchmark.data.sets import MemoryImages
from benchmark.distributed import ranks as group
from benchmark.distributed.ranks import check_shares, count_norm_shares, smallest_share
from benchmark.grids.grid import check_sharing
from benchmark.networks.build import check_network
from benchmark.runs.checkpoints import check_same, load_checkpoint
from methods.rigl import RigL
from tests.harness.crews import Crew
from tests.harness.images import write_folder
from tests.harness.small import make_page, make_training
from tests.harness.verdicts import judge

CPU = torch.device("cpu")
SHORT = "epochs=2 update_every=2 batch_size=400 ema_decay=0.9 model_args.width=0.1"  # 2 x 4 steps


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


@pytest.mark.parametrize("names", [["granet", "snip"], pytest.param(method_names(), marks=pytest.mark.slow)], ids=len)
def test_methods_have_the_masks_costs_and_accuracies_of_one_process_in_four(crew, names):
    (alone,), four = crew(1, "train_methods", names=names), crew(4, "train_methods", names=names)
    for name in names:
        assert len({seen[name]["weights"] for seen in four}) == 1, name
        for seen in four:
            for key in ("error", "masks", "macs", "accuracy", "names"):
                assert seen[name][key] == alone[name][key], (name, key)
            assert seen[name]["loss"] == pytest.approx(alone[name]["loss"], rel=1e-9), name
        assert alone[name]["masks"] and not alone[name]["error"], name


@pytest.mark.parametrize(("network", "unused"), [pytest.param("odd", False, marks=pytest.mark.slow), ("unused", True)])
def test_odd_networks_stay_the_same_in_both_processes(crew, network, unused):
    """Frozen, tied and idle parameters, batch norm and dropout; unused ones are looked for only where there are any."""
    one, other = crew(2, "train_network", network=network)
    assert one == other
    assert one["unused"] is unused and not one["error"]
    assert not [name for name in one["names"] if name.startswith("module.")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("a weight drifts", "rank 1 no longer has rank 0's weights of layer 'conv2.weight' after epoch 2"),
        pytest.param(
            *("a mask drifts", "rank 1 no longer has rank 0's mask of layer 'fc.weight' after epoch 2"),
            marks=pytest.mark.slow,
        ),
        ("an update fails", "rank 1: method 'rigl_itop' fails in the update at step 6: ArithmeticError: here alone"),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all_at_once_and_is_named(crew, fault, message):
    for seen in crew(2, "train_with", fault=fault):
        assert message in seen["error"]
        assert seen["took_s"] < 20  # and does not leave the other to wait for the end of its patience, a minute


def test_a_run_of_four_of_which_one_is_killed_goes_on_to_the_same_bits(crew, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    answers = crew(4, "run_bench", folder=str(whole), arguments=SHORT)
    assert [answer.get("failed") for answer in answers] == [0] * 4, answers
    assert crew(4, "run_bench", folder=str(killed), arguments=SHORT, die=[2, 5])[2] == {}
    (checkpoint,) = killed.glob("runs/*/checkpoint")
    state = load_checkpoint(checkpoint)
    assert state["ranks"] == "4" and not [name for name in state["model"] if name.startswith("module.")]
    for answer in crew(2, "run_bench", folder=str(killed), arguments=SHORT):  # other sums, other last bits
        assert "was made with ranks 4, now it is 2" in answer["raised"] and "FRESH=1" in answer["raised"]
    answers = crew(4, "run_bench", folder=str(killed), arguments=SHORT)
    assert "continuing" in answers[0]["said"]
    assert judge(killed, whole) == []

    record = json.loads(next(whole.glob("records/*.json")).read_text())
    assert (record["environment"]["ranks"], record["environment"]["batch_norm_shares"]) == (4, 4)
    assert record["weights"]["active"] == round(0.2 * record["weights"]["prunable"])


# --- shares -----------------------------------------------------------------------------------------------------------


def small_images() -> MemoryImages:
    images = make_data(make_kit_page()).train
    assert isinstance(images, MemoryImages)
    return images


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("at_once", [0, 10**6])
def test_shares_of_a_batch_are_its_images_in_turn(ranks, at_once):
    images = small_images()
    images.pixels_at_once = at_once
    whole = list(images.epoch(3, 1, 8, False, CPU, 1))
    shares = [list(images.epoch(3, 1, 8, False, CPU, 1, (rank, ranks))) for rank in range(ranks)]
    assert [len(labels) for _, labels in whole] == [8, 8, 8, 8, 5]
    for number, (pixels, labels) in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(share[number][0], pixels[rank::ranks])
            assert torch.equal(share[number][1], labels[rank::ranks])


def test_a_process_cuts_its_own_images_and_no_others(monkeypatch):
    images, cut = small_images(), []
    original = images._cut
    monkeypatch.setattr(images, "_cut", lambda drawn: cut.append(drawn.shape[1]) or original(drawn))
    list(images.epoch(0, 0, 8, False, CPU, 0, (1, 2)))
    assert cut == [4, 4, 4, 4, 4, 2] and sum(cut) < IMAGES


def test_a_process_decodes_its_own_files_and_no_others(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, {"train": ["a", "b"], "test": ["a", "b"]}, count=5, size=40)
    part = StreamedImages(scan_folder(folder).train, 16, [0.5] * 3, [0.5] * 3, flip=True, workers=0)
    whole = list(part.epoch(1, 0, 4, False, CPU))
    read, original = [], folders.read_image
    monkeypatch.setattr(folders, "read_image", lambda path: read.append(path) or original(path))
    for rank in range(2):
        for (images, labels), (own, theirs) in zip(whole, part.epoch(1, 0, 4, False, CPU, 0, (rank, 2)), strict=True):
            assert torch.equal(images[rank::2], own) and torch.equal(labels[rank::2], theirs)
        assert len(read) == 5 * (rank + 1)
    assert len(set(read)) == 10
    for rank in range(3):
        assert [len(labels) for _, labels in part.batches(4, CPU, (rank, 3))] == [4, 4, 2][rank : rank + 1]


def test_shares_of_an_evaluation_are_whole_batches():
    images = small_images()
    whole = [labels.tolist() for _, labels in images.batches(8, CPU)]
    shares = [[labels.tolist() for _, labels in images.batches(8, CPU, (rank, 3))] for rank in range(3)]
    assert shares == [whole[rank::3] for rank in range(3)] and len(whole) == 6


@pytest.mark.parametrize(
    ("images", "batch", "drop_last", "ranks", "share", "length"),
    [
        *((48, 8, False, 4, 2, 8), (49, 8, False, 1, 1, 1), (49, 8, False, 2, 0, 1), (49, 8, True, 2, 4, 8)),
        *((51, 8, False, 2, 1, 3), (5, 8, False, 2, 2, 5), (48, 2, True, 4, 0, 2)),
    ],
)
def test_the_smallest_share_is_that_of_the_shortest_batch(monkeypatch, images, batch, drop_last, ranks, share, length):
    monkeypatch.setattr(group, "count_ranks", lambda: ranks)
    assert smallest_share(images, batch, drop_last) == (share, length)
    if share:
        check_shares(images, batch, drop_last)
        return
    with pytest.raises(UserError, match=f"a batch of {length} images cannot be shared by {ranks} processes: "):
        check_shares(images, batch, drop_last)


def test_a_batch_that_leaves_a_process_one_image_is_refused_where_a_network_cannot_train_on_one(monkeypatch):
    page, data = make_kit_page(batch_size=43), make_data(make_kit_page())  # 45 images: the last batch has two
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, CLASSES), torch.nn.BatchNorm1d(CLASSES))
    check_network(model, page, data)
    monkeypatch.setattr("benchmark.distributed.ranks.count_ranks", lambda: 2)
    monkeypatch.setattr("benchmark.networks.build.count_ranks", lambda: 2)
    with pytest.raises(UserError, match="the last batch of an epoch has one image per process"):
        check_network(model, page, data)


# --- what cannot be had -----------------------------------------------------------------------------------------------


def test_synchronised_batch_norm_is_refused_on_a_cpu_with_the_reason():
    with pytest.raises(UserError, match=r"sync_batchnorm=true needs an accelerator: .* does not run on a CPU: set"):
        check_sharing(make_page(sync_batchnorm=True), CPU)
    check_sharing(make_page(sync_batchnorm=True), torch.device("cuda"))


def test_a_compiled_step_is_refused_for_several_processes(monkeypatch):
    check_sharing(make_page(compile=True), CPU)
    monkeypatch.setattr("benchmark.grids.grid.count_ranks", lambda: 2)
    with pytest.raises(UserError, match="compile=true is for one process, and 2 were asked for"):
        check_sharing(make_page(compile=True), CPU)


def test_a_checkpoint_of_other_data_or_ranks_is_refused_and_one_without_ranks_is_of_one_process(monkeypatch):
    run = make_training(RigL(sparsity=0.5))
    state = {"data": "0", "precision": "fp32", "device": "cpu"}
    check_same(state, run, Path("checkpoint"))
    with pytest.raises(UserError, match=r"was made with data other, now it is 0: .*FRESH=1"):
        check_same({**state, "data": "other"}, run, Path("checkpoint"))
    monkeypatch.setattr("benchmark.runs.checkpoints.count_ranks", lambda: 2)
    with pytest.raises(UserError, match="was made with ranks 1, now it is 2"):
        check_same(state, run, Path("checkpoint"))


# --- records and tables -----------------------------------------------------------------------------------------------


def test_only_an_unsynchronised_batch_norm_divides_a_batch(monkeypatch):
    monkeypatch.setattr("benchmark.distributed.ranks.count_ranks", lambda: 4)
    batch_norm, layer_norm = make_network("conv", 0), make_network("vit", 0)
    assert (count_norm_shares(batch_norm), count_norm_shares(layer_norm)) == (4, 1)
    assert count_norm_shares(torch.nn.SyncBatchNorm.convert_sync_batchnorm(batch_norm)) == 1
