"""Promises of snapshots and branches: they change no bit, go on where the parent stood, and refuse what cannot be."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from benchmark.base.errors import UserError
from benchmark.config.cells import plan_cells
from benchmark.data.standin import stand_in
from benchmark.grids.predict import Networks
from benchmark.runs.branch import Branch, make_branch
from benchmark.runs.branching import Stores, make_options, run_branch, take_snapshots
from benchmark.runs.checkpoints import Saver, list_snapshots, load_checkpoint, save_checkpoint, snapshot_path
from benchmark.runs.parents import find_parent
from benchmark.training.masks import unpack
from leaderboard import find_faults, read_records, write_record
from leaderboard.store.records import read_record
from tests.harness.benches import run_cells
from tests.harness.prunings import make_pruned

PRUNABLE, KEPT = 371_280, 37_128  # weights, and those active at sparsity 0.9
QUIET = Console(file=io.StringIO())
SETTINGS = "epochs=4 update_every=2 batch_size=400 lr_drops=[0.5] model=test_resnet"  # tiny, and quick
# Keeps the largest weights of those in force: a stand-in for whatever prunes once.
PRUNE = """
from dataclasses import dataclass
from typing import ClassVar
from methods.core import Group, Masks, Method, View, keep_top_global, magnitude


@dataclass(frozen=True, kw_only=True)
class Prune(Method):
    reference: ClassVar[str] = "a test"
    group: ClassVar[Group] = Group.CONTROL

    def setup(self, view: View) -> Masks:
        return keep_top_global(magnitude(view), view.count(self.sparsity), among=view.masks)
"""


@dataclass
class Place:
    """A folder with a run in it, and what makes runs and branches there."""

    folder: Path

    @property
    def stores(self) -> Stores:
        return Stores(self.folder / "records")

    @property
    def prune(self) -> str:
        return str(self.folder / "prune.py")

    def run(self, seed: int = 0, method: str = "granet", sparsity: str = "0.8", snapshots: str = "") -> dict[str, Any]:
        """Make an ordinary run and return its record."""
        asked = {"methods": method, "sparsities": sparsity, "seeds": str(seed), "arguments": SETTINGS}
        run_cells(self.folder, **asked, checkpoint_s=1e9, snapshots=snapshots, console=QUIET)
        return read_records(self.stores.records)[0][-1]

    def branch(self, name: str, checkpoint_s: float = 1e9, **asked: Any) -> dict[str, Any]:
        """Make a branch and return its record."""
        options = self.options(checkpoint_s)
        return run_branch(name, self.stores, options, self.folder, QUIET, **asked)[0]

    def options(self, checkpoint_s: float = 1e9) -> Any:
        page = self.folder / "LEADERBOARD.md"
        return make_options("cpu", self.stores, self.folder / "runs", page, checkpoint_s, "test")

    def snapshot(self, name: str, epochs: str) -> list[Path]:
        return take_snapshots(name, epochs, self.folder, self.stores.both, self.options(), QUIET)

    def change(self, run: str, **changes: Any) -> None:
        """Put a record with changes, sealed anew, in the place of a run's."""
        path = self.stores.records / f"{run}.json"
        record = {key: value for key, value in read_record(path).items() if key != "seal"}
        path.unlink()
        write_record({**record, **changes}, self.stores.records)

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "runs" / run / "weights.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any]]:
    """A run of GraNet with snapshots after its first and second epoch; tests that change its files copy it."""
    place = Place(tmp_path_factory.mktemp("parent"))
    Path(place.prune).write_text(PRUNE)
    return place, place.run(snapshots="1,2")


@pytest.fixture
def copied(made: tuple[Place, dict[str, Any]], tmp_path: Path) -> tuple[Place, str]:
    shutil.copytree(made[0].folder, tmp_path / "copy")
    return Place(tmp_path / "copy"), made[1]["run"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without(rows: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def test_keeping_snapshots_changes_no_bit(made, tmp_path):
    place, record = made
    plain = Place(tmp_path)
    other = plain.run()
    assert list_snapshots(place.folder / "runs" / record["run"]) == [1, 2]
    assert list_snapshots(tmp_path / "runs" / other["run"]) == []
    assert other["history"] == record["history"] and other["masks_sha256"] == record["masks_sha256"]
    assert same(plain.weights(other["run"]), place.weights(record["run"]))


def test_a_branch_without_any_change_goes_on_to_the_bits_of_its_parent(made):
    place, parent = made
    record = place.branch(parent["run"], epoch=1)
    assert without(record["history"], "train_share") == without(parent["history"][1:], "train_share")
    assert record["masks_sha256"] == parent["masks_sha256"] and same(
        *map(place.weights, (parent["run"], record["run"]))
    )
    assert record["branch"]["before"] == record["branch"]["after"]
    assert record["branch"]["before"]["test_acc_pct"] == parent["history"][0]["test_acc_pct"]
    assert record["branch"]["unpruned_acc_pct"] == parent["accuracy_pct"]["last_epoch"]
    # it is charged its own three of four epochs: parent's cost to the end less that up to the branch
    dense = parent["macs"]["train_dense"]
    assert record["macs"]["train_dense"] * 4 == dense * 3
    before = parent["history"][0]["train_share"] * dense / 4
    assert record["macs"]["train"] == pytest.approx(parent["macs"]["train"] - before)


def test_another_method_sees_the_trained_weights_and_the_masks_then_in_force(made):
    place, parent = made
    asked = {"epoch": 2, "method": place.prune, "sparsity": "0.9", "hold_lr": True, "more": 1}
    record = place.branch(parent["run"], **asked)
    state = load_checkpoint(snapshot_path(place.folder / "runs" / parent["run"], 2))
    masks = {name: unpack(bits, state["model"][name].shape) for name, bits in state["masks"].items()}
    scores = torch.cat([torch.where(mask, state["model"][n].abs(), -1.0).flatten() for n, mask in masks.items()])
    kept = scores.topk(KEPT).values.min()
    counts = {n: int((torch.where(mask, state["model"][n].abs(), -1.0) >= kept).sum()) for n, mask in masks.items()}
    assert sum(counts.values()) == record["weights"]["active"] == round(0.1 * PRUNABLE)
    assert {row["name"]: row["active"] for row in record["layers"] if row["prunable"]} == counts
    branch = record["branch"]
    assert branch["before"]["active"] == sum(int(mask.sum()) for mask in masks.values())
    assert branch["after"]["active"] == KEPT
    assert (branch["parent"], branch["epoch"], branch["step"]) == (parent["run"], 2, parent["history"][1]["step"])
    assert branch["changed"] == {"page": {}, "method": {"name": "prune"}, "sparsity": 0.9}


def test_scores_in_a_branch_are_charged_at_the_masks_that_it_comes_with(made):
    """SNIP's one batch, 2 f_S + f_D an image: the network is sparse already."""
    place, parent = made
    record = place.branch(parent["run"], epoch=2, method="snip", sparsity="0.85", more=1)
    state = load_checkpoint(snapshot_path(place.folder / "runs" / parent["run"], 2))
    counts = {name: int(unpack(bits, state["model"][name].shape).sum()) for name, bits in state["masks"].items()}
    (cell,) = plan_cells("snip", "0.85", "digits_resnet20", "0", SETTINGS)
    costs = Networks().get(cell, stand_in(cell.page, place.folder)).built.costs
    assert costs.forward(counts) < costs.dense
    assert record["macs"]["scoring"] == cell.page.batch_size * (2 * costs.forward(counts) + costs.dense)


def test_the_learning_rate_of_the_next_epoch_is_held_and_epochs_go_beyond_the_end(made):
    place, parent = made
    asked = {"epoch": 2, "hold_lr": True, "more": 3, "method": "dense"}
    held = place.branch(parent["run"], **asked, arguments="eval_every=2")
    assert [row["lr"] for row in held["history"]] == [pytest.approx(0.01)] * 3
    assert [row["epoch"] for row in held["history"]] == [3, 4, 5]
    before, *after = (row["test_acc_pct"] for row in held["history"])
    assert before is None and None not in after  # evaluated at every second epoch, and at the branch's last
    found = find_parent(parent["run"], place.stores.both, place.folder / "runs")
    # the drop comes with epoch 2, so what is pruned there is after it, and what is pruned at the end too
    rates = [make_branch(found, epoch=epoch, hold_lr=True, more=1).first_lr for epoch in (1, 2, 4)]
    assert rates == [0.1, pytest.approx(0.01), pytest.approx(0.01)]


def test_the_same_method_goes_on_with_other_settings(made):
    place, parent = made
    record = place.branch(parent["run"], epoch=2, arguments="epochs=3 lr=0.05 weight_decay=0 prune_rate=0.2")
    assert [row["lr"] for row in record["history"]] == [pytest.approx(0.005)]  # the drop at half of three epochs
    assert record["branch"]["changed"]["page"] == {"epochs": 3, "lr": 0.05, "weight_decay": 0.0}
    assert record["branch"]["changed"]["method"] == {"prune_rate": 0.2}
    assert record["run"] != parent["run"] and record["method"]["settings"]["prune_rate"] == 0.2


def test_a_setting_of_a_method_leaves_the_pages_others_as_they_are(made):
    place, parent = made
    known = find_parent(parent["run"], place.stores.both, place.folder / "runs")
    branch = make_branch(known, epoch=2, method="rigl", arguments="methods.rigl.prune_rate=0.4")
    assert branch.method.prune_rate == 0.4 and branch.page.methods["all"] == known.cell.page.methods["all"]


def test_missing_snapshots_are_made_again_with_the_same_bits(copied):
    place, run = copied
    folder = place.folder / "runs" / run
    kept = load_checkpoint(snapshot_path(folder, 2))
    snapshot_path(folder, 2).unlink()
    assert place.snapshot(run, "1,2") == [snapshot_path(folder, 1), snapshot_path(folder, 2)]
    again = load_checkpoint(snapshot_path(folder, 2))
    assert same(again["model"], kept["model"]) and same(again["masks"], kept["masks"])
    assert again["history"] == kept["history"] and again["counters"] == kept["counters"]
    pairs = zip(again["optimizer"]["state"].values(), kept["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(one["momentum_buffer"], other["momentum_buffer"]) for one, other in pairs)
    assert not (folder / "snapshots" / "checkpoint").exists()


def test_a_course_other_than_the_records_is_refused_and_leaves_no_snapshot(copied):
    place, run = copied
    history = read_record(place.stores.records / f"{run}.json")["history"]
    history[2]["loss"] += 1e-9
    place.change(run, history=history)
    with pytest.raises(UserError, match="epoch 3 ends with another loss"):
        place.snapshot(run, "3")
    assert list_snapshots(place.folder / "runs" / run) == [1, 2]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"epoch": 5}, "--epoch must be from 1 to 4, the end of digits_resnet20.granet.0.8"),
        ({"epoch": 2, "more": 0}, "--more must be at least 1 epoch, got 0"),
        ({"epoch": 4}, "no epoch is left to train after 4"),
        ({"epoch": 2, "more": 3}, "add --hold-lr, or --args epochs=5"),
        ({"epoch": 3}, "no snapshot of epoch 3 .there: 1, 2.; make it again: sparse-bench snapshot"),
        ({"epoch": 2, "arguments": "model=cifar_vgg19_bn"}, "model cannot change in a branch"),
        ({"epoch": 2, "arguments": "epoch=8"}, "has a setting 'epoch': did you mean 'epochs'"),
        ({"epoch": 2, "method": "dense", "sparsity": "0.5"}, "method 'dense' prunes nothing"),
        ({"epoch": 2, "method": "static", "arguments": "masks=granet"}, "starts from a donor"),
        ({"epoch": 2, "method": "small_dense"}, "narrower"),
        (
            {"epoch": 2, "method": "imp"},
            "'imp' trains in 9 rounds, but a branch trains its epochs once: choose another",
        ),
        ({"epoch": 2, "method": "sis", "hold_lr": True, "more": 1}, "'sis' trains in [0-9]+ rounds"),
        ({"epoch": 2, "more": 1, "arguments": "prune_end=1.0"}, "asks for [0-9,]+: train longer"),
        ({"epoch": 2, "method": "rigl", "arguments": "methods.garnet.prune_rate=0.4"}, "unknown method 'garnet'"),
        ({"epoch": 2, "method": "rigl", "arguments": "weight_decay=1e300"}, "must be within"),
        ({"epoch": 2, "arguments": "methods.granet.prune_rate=0.4"}, "methods cannot change where the parent's method"),
    ],
)
def test_bad_branches_are_refused_with_the_reason(made, asked, reason):
    place, parent = made
    before = sorted(place.stores.branches.glob("*.json"))
    with pytest.raises(UserError, match=reason):
        place.branch(parent["run"], **asked)
    assert sorted(place.stores.branches.glob("*.json")) == before


def test_a_rate_that_empties_a_layer_is_refused_unless_the_page_allows_it(made):
    place, parent = made
    asked = {"epoch": 2, "method": place.prune, "sparsity": "0.9998", "hold_lr": True, "more": 1}
    with pytest.raises(UserError, match=r"leaves no weight in layer .*allow_empty_layers=true"):
        place.branch(parent["run"], **asked)
    record = place.branch(parent["run"], **asked, arguments="allow_empty_layers=true")
    assert record["weights"]["active"] == 74 and record["empty_layers"]


def test_damaged_and_foreign_snapshots_and_unknown_runs_are_refused(copied):
    place, run = copied
    folder = place.folder / "runs" / run
    path = snapshot_path(folder, 1)

    def refused(match: str, name: str = run) -> None:
        with pytest.raises(UserError, match=match):
            place.branch(name, epoch=1)

    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    refused(r"damaged: .*snapshot .* --epochs 1")
    assert snapshot_path(folder, 1) in place.snapshot(run, "1")  # which makes it again
    assert place.branch(run, epoch=1)["run"]
    shutil.copy(snapshot_path(folder, 2), path)
    refused("was taken after epoch 2")
    state = load_checkpoint(path)
    state["cell"]["run"], state["cell"]["page"]["name"] = "cifar10_vgg19.x", "cifar10_vgg19"
    save_checkpoint(path, state)
    refused(r"is of run cifar10_vgg19\.x on page cifar10_vgg19")
    save_checkpoint(path, {"cell": {"run": run}, "counters": []})
    refused(r"epoch-1 is no snapshot")
    refused("no run 'nobody'", "nobody")
    refused("must be the name of a folder", "..")
    place.change(run, protocol=1)
    refused("of protocol 1")
    place.change(run, protocol=2, status="diverged")
    refused("diverged and cannot be continued")


def test_a_methods_file_that_has_changed_is_not_run_because_a_record_names_it(tmp_path):
    place = Place(tmp_path)
    Path(place.prune).write_text(PRUNE)
    run = place.run(method=place.prune, snapshots="1")["run"]
    with pytest.raises(
        UserError, match=r"its method is a file, .*prune\.py, and none is run because a record names it"
    ):
        place.branch(run, epoch=1)
    file = Path(place.prune)
    assert place.branch(run, file=file, epoch=1)["run"].startswith("digits_resnet20.prune.0.8.s0.e1.")
    Path(place.prune).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{PRUNE}")
    with pytest.raises(
        UserError, match=r"prune\.py is not the file of its method as it ran, which is gone or has changed"
    ):
        place.branch(run, file=file, epoch=1)
    assert not (tmp_path / "ran").exists()


def test_a_run_that_goes_on_behind_a_snapshot_says_which_is_missing(tmp_path, monkeypatch):
    place = Place(tmp_path)

    def save_then_stop(saver: Saver, run: Any) -> None:
        if run.step == 6:
            saver.save(run)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Saver, "__call__", save_then_stop)
        place.run()
    out = io.StringIO()
    monkeypatch.setattr(f"{__name__}.QUIET", Console(file=out, width=200))
    run = place.run(snapshots="1,2")["run"]
    assert f"no snapshot of epoch 1 was kept: sparse-bench snapshot {run} --epochs 1" in out.getvalue()
    assert list_snapshots(tmp_path / "runs" / run) == [2]


def test_an_interrupted_run_is_branched_by_its_snapshots_alone(copied):
    place, run = copied
    (place.stores.records / f"{run}.json").unlink()
    record = place.branch(run, epoch=1, hold_lr=True, more=1, method=place.prune)
    assert record["branch"]["unpruned_acc_pct"] is None
    (place.folder / "runs" / run / "snapshots" / "epoch-1").unlink()
    assert place.snapshot(run, "1")[0].exists()


def test_a_damaged_checkpoint_of_retracing_costs_nothing_but_its_time(copied):
    place, run = copied
    folder = place.folder / "runs" / run / "snapshots"
    (folder / "epoch-1").unlink()
    (folder / "checkpoint").write_bytes(b"cut short")
    assert place.snapshot(run, "1")[0].exists() and (folder / "checkpoint.damaged").exists()


def test_a_branch_is_no_parent_and_on_no_table(made):
    place, parent = made
    record = place.branch(parent["run"], epoch=2, hold_lr=True, more=1, method=place.prune)
    with pytest.raises(UserError, match=f"is a branch of {parent['run']} and cannot be branched itself"):
        place.branch(record["run"], epoch=2)
    assert read_records(place.stores.records)[1] == []
    records, problems = read_records(place.stores.branches)  # as if it lay among ordinary records
    assert records == [] and all("store of branches" in problem.reason for problem in problems) and problems
    assert len(read_records(place.stores.branches, branches=True)[0]) == len(problems)


def test_the_epochs_of_a_branch_must_be_those_it_says():
    record = make_pruned(1.0, epoch=4)
    del record["file"]
    assert find_faults(record) == []
    record["branch"]["last_epoch"] = 9
    assert "history has epochs [5, 6, 7], the branch those after 4 to 9" in find_faults(record)[0]
    record["branch"]["last_epoch"] = 4
    assert "not after epoch 4" in find_faults(record)[0]


def test_the_name_of_a_branch_follows_from_what_is_asked(made):
    place, parent = made
    found = find_parent(parent["run"], place.stores.both, place.folder / "runs")

    def name(**asked: Any) -> str:
        cell = make_branch(found, **{"epoch": 2, "method": place.prune, "sparsity": "0.9", **asked})
        assert isinstance(cell, Branch)
        return cell.identity

    others = [{"epoch": 1}, {"sparsity": "0.95"}, {"hold_lr": True}, {"arguments": "lr=0.2"}, {"method": ""}]
    names = [name(), *(name(**asked) for asked in others), name(hold_lr=True, more=1)]
    assert len(set(names)) == len(names) and name() == names[0]
    assert names[0].startswith("digits_resnet20.prune.0.9.s0.e2.")
    assert name(arguments="workers=3") == names[0]  # how fast images are read changes no number
