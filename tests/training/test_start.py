"""A start from given weights: those of the file and no others, in a table of their own, refused by name."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder

from benchmark.base.errors import UserError
from benchmark.config.cells import Cell, plan_cells
from benchmark.data.sets import Data
from benchmark.networks.build import Built, build
from leaderboard import read_records
from tests.harness.benches import NARROW, Bench
from tests.harness.small import SmallImages

PAGE = "digits_resnet20"
WIDTH = "model_args.width=0.1"


def plan(arguments: str, method: str = "granet") -> Cell:
    (cell,) = plan_cells(method, "0.9", PAGE, "0", f"{WIDTH} {arguments}")
    return cell


def make(cell: Cell, channels: int = 1, size: int = 8) -> Built:
    images = SmallImages()
    return build(cell, Data("small", tuple("0123456789"), channels, size, images, None, images, "0"))


def weights_of(classes: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return timm.create_model("cifar_resnet20", num_classes=classes, in_chans=1, width=0.1).state_dict()


def test_a_run_starts_from_the_weights_of_the_file_whatever_its_form(tmp_path):
    given = weights_of()
    save_file(given, tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"module.{name}": weight for name, weight in given.items()}}, tmp_path / "of_ddp.pt")
    drawn = make(plan("")).model.state_dict()
    after = torch.get_rng_state()
    assert not torch.equal(drawn["classifier.weight"], given["classifier.weight"])
    for name in (".", "weights.safetensors", "of_ddp.pt"):  # a run's folder, its file, a training script's checkpoint
        cell = plan(f"init={tmp_path / name}")
        built = make(cell)
        assert all(torch.equal(given[name], weight) for name, weight in built.model.state_dict().items())
        assert built.start_sha256 == cell.page.init_sha256 != ""
        assert torch.equal(torch.get_rng_state(), after)


def test_other_weights_make_another_table_and_the_same_at_another_place_the_same(tmp_path):
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        torch.manual_seed(seed)
        save_file({"w": torch.randn(2)}, tmp_path / f"{name}.safetensors")
    names = [plan(f"init={tmp_path / name}.safetensors").variant for name in ("a", "copy", "b")]
    assert names[0] == names[1] and len({*names, plan("").variant}) == 3
    tags = [plan(f"pretrained=true model={name}").variant for name in ("resnet18.a1_in1k", "resnet18.tv_in1k")]
    assert len(set(tags)) == 2


def test_fine_tuning_from_a_dense_run_is_one_command_and_its_record_says_from_what(tmp_path):
    bench = Bench(tmp_path)
    assert bench("dense", "0", f"epochs=1 {NARROW}") == 0
    (run,) = (tmp_path / "runs").glob("*.dense.*")
    assert bench("granet", "0.9", f"epochs=1 update_every=2 init={run} {NARROW}") == 0
    (record,) = [r for r in read_records(tmp_path / "records")[0] if r["method"]["name"] == "granet"]
    told = f"{run}/weights.safetensors, sha256 {record['weights']['start_sha256'][:8]}"
    assert told in " ".join(bench.shown.getvalue().split())
    assert record["weights"]["start_sha256"] == record["page"]["settings"]["init_sha256"]
    assert record["weights"]["active"] == round(0.1 * record["weights"]["prunable"])


def change(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights with a fault."""
    if name == "renamed":
        return {key.replace("stage", "layer"): weight for key, weight in weights.items()}
    if name == "nan":
        weights["body.conv.weight"][0] = float("nan")
    return {
        key: weight[..., :1] if name == "shape" and key == "body.conv.weight" else weight
        for key, weight in weights.items()
    }


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            "renamed",
            r"not those of cifar_resnet20: \d+ missing \(body.stage1.0.conv1.weight, .* and \d+ more\); \d+ not",
        ),
        ("shape", r"1 of another shape \(body.conv.weight \(2, 1, 3, 1\) instead of \(2, 1, 3, 3\)\)"),
        ("nan", "not finite in body.conv.weight"),
        ("head", r"classifier.weight \(7, 6\) instead of \(10, 6\).*drawn anew with ARGS=reset_head=true"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(tmp_path, fault, told):
    torch.save(change(fault, weights_of(7 if fault == "head" else 10)), tmp_path / "w.pt")
    with pytest.raises(UserError, match=told):
        make(plan(f"init={tmp_path / 'w.pt'}"))


def test_a_head_is_reset_by_the_seed_where_the_page_says_so(tmp_path):
    torch.save(weights_of(7), tmp_path / "w.pt")
    found = make(plan(f"init={tmp_path / 'w.pt'} reset_head=true")).model.state_dict()
    drawn = make(plan("")).model.state_dict()
    assert torch.equal(found["classifier.weight"], drawn["classifier.weight"])
    assert torch.equal(found["body.conv.weight"], weights_of()["body.conv.weight"])


def test_a_file_that_is_none_is_changed_or_holds_code_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(UserError, match="there is no file"):
        plan(f"init={path}")
    torch.save({"model": Bench}, path)
    with pytest.raises(UserError, match="cannot be read as weights"):
        make(plan(f"init={path}"))
    torch.save(weights_of(), path)
    cell = plan(f"init={path}")
    torch.save({**weights_of(), "classifier.bias": torch.ones(10)}, path)
    with pytest.raises(UserError, match=f"has the sha256 .*, not {cell.page.init_sha256}"):
        make(cell)
    with pytest.raises(UserError, match="method 'small_dense' trains a narrower network"):
        make(plan(f"init={path}", "small_dense"))
    with pytest.raises(UserError, match="pretrained must be false where init"):
        plan(f"init={path} pretrained=true")


def test_timms_weights_are_loaded_by_timm_or_refused_before_the_first_batch(monkeypatch):
    """The hub is a fake: first out of reach, then with weights of 1,000 classes."""
    page = "model=test_resnet.r160_in1k pretrained=true conv_init=fan_in"
    (cell,) = plan_cells("static", "0.5", PAGE, "0", page)
    with pytest.raises(UserError, match=r"for 1000 classes and this data has 10: .*reset_head=true"):
        make(cell, 3, 32)
    (cell,) = plan_cells("static", "0.5", PAGE, "0", f"{page} reset_head=true")

    def fail(*asked: object, **more: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", fail)
    with pytest.raises(UserError, match=r"cannot be had \(no network\): .*ARGS='pretrained=false init=FILE'"):
        make(cell, 3, 32)
    torch.manual_seed(3)
    theirs = timm.create_model("test_resnet", num_classes=1000).state_dict()
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *asked, **more: dict(theirs))
    built = make(cell, 3, 32)
    found = built.model.state_dict()
    assert all(torch.equal(found[name], theirs[name]) for name in theirs if not name.startswith("fc."))
    assert len(found["fc.weight"]) == 10 and len(built.start_sha256) == 64
