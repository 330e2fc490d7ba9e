"""Promises of `sparse-bench slim`: a really smaller network with the same outputs, in files it is rebuilt from."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from benchmark.base.errors import UserError
from benchmark.cli.app import app
from benchmark.data.readers import load_digits
from benchmark.inference.slim import LAYOUT, WEIGHTS, load_slim, page_of, slim_down
from benchmark.inference.subject import Subject, load_subject
from benchmark.networks import filters
from benchmark.networks.filters import count_dead, remove_dead_filters
from benchmark.runs.export import MASKS
from benchmark.runs.record import price_slim
from benchmark.runs.verify import verify_record
from leaderboard.store.schema import lay_out, seal_of
from methods.core import keep_filters
from tests.harness.benches import TINY, Bench

pytestmark = pytest.mark.usefixtures("quick")


def name_of(folder: Path, method: str = "gmp_structured") -> str:
    (record,) = (folder / "records").glob(f"*.{method}.*.json")
    return record.stem


def slim(board: Path, *words: str) -> tuple[int, str]:
    places = ["--records", board / "records", "--runs", board / "runs", "--data", board / "data"]
    result = CliRunner().invoke(app, ["slim", "--device", "cpu", "--batch", "1,2", *map(str, places), *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_dead_filters_and_weights_are_those_counted_by_hand():
    """Filter 0 of the first layer is empty and read by 2 active weights; filter 2 has 2, and nothing reads it."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    masks = {
        "0.weight": torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.bool),
        "2.weight": torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool),
    }
    assert count_dead(network, masks) == {"filters": 1, "of": 5, "weights": 4}

    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    assert count_dead(Untraceable(*network), masks) == {"filters": 1, "of": 5}


def test_a_record_tells_dead_filters_and_verify_finds_them_again(done: Path, tmp_path: Path) -> None:
    path = done / "records" / f"{name_of(done)}.json"
    record = json.loads(path.read_text())
    assert 0 < record["dead"]["filters"] < record["dead"]["of"]
    findings = {what: agrees for what, _, _, agrees in verify_record(path, done / "runs", done / "data")}
    assert findings["dead filters"] and findings["dead weights"]
    record["dead"]["filters"] += 1
    record["seal"] = seal_of(record)
    edited = tmp_path / path.name
    edited.write_text(lay_out(record))
    findings = {what: agrees for what, _, _, agrees in verify_record(edited, done / "runs", done / "data")}
    assert not findings["dead filters"]


def count_by_hand(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of an image from the shapes that pass, without fvcore."""
    counted = [0]

    def watch(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        places = math.prod(output.shape[2:])
        counted[0] += places * module.weight.numel()

    handles = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        network(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return counted[0]


def test_the_command_writes_a_smaller_network_with_the_outputs_of_the_run(board):
    name = name_of(board)
    before = torch.get_num_threads()
    status, said = slim(board, name)
    assert status == 0, said
    assert torch.get_num_threads() == before
    folder = board / "runs" / name / "slim"
    network, layout = load_slim(folder), json.loads((folder / LAYOUT).read_text())
    subject = load_subject(name, board / "records", board / "runs")
    pixels = torch.as_tensor(load_digits()[0])[:50].float().reshape(50, 1, 8, 8)
    with torch.inference_mode():
        expected, found = subject.network(pixels), network(pixels)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    # the first layers of the nine blocks are all that can narrow; each keeps its active filters, and one constant
    masks = subject.masks
    active = {n: int(mask.flatten(1).any(1).sum()) for n, mask in masks.items() if n.endswith("conv1.weight")}
    left = {n: len(network.get_parameter(n)) for n in active}
    assert len(left) == 9 and sum(left.values()) < sum(len(masks[n]) for n in active)
    assert all(active[n] <= left[n] <= active[n] + 1 or left[n] == 1 for n in active)
    assert all(network.get_parameter(n).shape[0] == len(mask) for n, mask in masks.items() if n not in active)
    assert layout["parameters"]["slim"] == sum(p.numel() for p in network.parameters()) < layout["parameters"]["dense"]
    assert layout["macs"]["slim"] == count_by_hand(network, (1, 8, 8))
    assert layout["macs"]["dense"] == count_by_hand(subject.dense, (1, 8, 8))
    assert layout["macs"]["masks"] == subject.record["macs"]["inference"] <= layout["macs"]["slim"]
    assert layout["macs"]["slim"] == subject.record["macs"]["inference_slim"]
    assert layout["outputs"]["relative_error"] <= 1e-5 and layout["outputs"]["images"] == 256
    assert [row["batch"] for row in layout["times"]] == [1, 2] and all(row["speed_up"] > 0 for row in layout["times"])
    removed = sum(len(masks[n]) - left[n] for n in active)
    assert f"{removed} of " in said and "residual streams stay" in said and layout["filters"]["removed"] == removed
    assert sorted(path.name for path in folder.iterdir()) == [LAYOUT, WEIGHTS]
    # files that do not fit each other are refused by name
    for wrong in ({"format": 2}, {"widths": {}}, {"widths": {"nosuch": {"in": 1, "out": 1, "bias": False}}}):
        (folder / LAYOUT).write_text(json.dumps({**layout, **wrong}))
        with pytest.raises(UserError, match=r"slim\.json"):
            load_slim(folder)
    (folder / LAYOUT).write_text("{")
    with pytest.raises(UserError, match=r"slim\.json does not fit"):
        load_slim(folder)


def test_slim_of_an_unstructured_run_says_how_many_filters_were_dead_and_writes_where_it_is_told(board, tmp_path):
    name = name_of(board, "static")
    status, said = slim(board, name, "--to", str(tmp_path / "there"))
    assert status == 0, said
    network = load_subject(name, board / "records", board / "runs").network
    removed = remove_dead_filters(network)[1].removed
    assert f"{removed} of 84 filters removed" in said
    assert ("METHOD=gmp_structured" in said) == (removed == 0)
    assert load_slim(tmp_path / "there")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def find_slim(board: Path, name: str) -> list[tuple]:
    found = verify_record(board / "records" / f"{name}.json", board / "runs", board / "data")
    assert all(agrees for what, *_, agrees in found if what != "inference macs, slim")
    return [finding for finding in found if finding[0] == "inference macs, slim"]


def edit_macs(board: Path, name: str, **macs: int) -> None:
    path = board / "records" / f"{name}.json"
    content = json.loads(path.read_text())
    content["macs"].update(macs)
    path.write_text(lay_out({**content, "seal": seal_of(content)}))


def test_the_record_of_whole_filters_alone_has_the_cost_and_verify_counts_it_again(board):
    name, other = name_of(board), name_of(board, "static")
    macs = json.loads((board / "records" / f"{name}.json").read_text())["macs"]
    right = macs["inference_slim"]
    assert find_slim(board, name) == [("inference macs, slim", right, right, True)]
    edit_macs(board, name, inference_slim=macs["inference"])  # a count that leaves removed filters out and no inputs
    assert find_slim(board, name) == [("inference macs, slim", macs["inference"], right, False)]
    assert find_slim(board, other) == []
    assert "inference_slim" not in json.loads((board / "records" / f"{other}.json").read_text())["macs"]
    edit_macs(board, other, inference_slim=right)
    assert find_slim(board, other) == [("inference macs, slim", right, None, False)]


def price(subject: Subject, network: nn.Module) -> tuple[dict, list[str]]:
    """Return the costs of a run's record as it is priced at the run's end, without the figure before, and warnings."""
    macs = {key: value for key, value in subject.record["macs"].items() if key != "inference_slim"}
    record, said, state = {**subject.record, "macs": macs}, [], torch.get_rng_state()
    masks = SimpleNamespace(masks=subject.masks)
    run = SimpleNamespace(
        page=page_of(subject), data=subject.images, maskset=masks, evaluated=lambda: network, model=network
    )
    price_slim(record, run, said.append)
    assert torch.equal(torch.get_rng_state(), state)
    return record["macs"], said


def test_the_cost_is_that_of_the_plain_network_although_norms_are_synchronised(done):
    subject = load_subject(name_of(done), done / "records", done / "runs")
    assert price(subject, nn.SyncBatchNorm.convert_sync_batchnorm(subject.network)) == (subject.record["macs"], [])


def fail(*_: object) -> None:
    raise MemoryError("of all things")


@pytest.mark.parametrize(
    ("place", "fault", "reason"),
    [
        ("benchmark.networks.filters.merge", lambda *_: None, "outputs differ by"),
        ("benchmark.networks.filters.count_network", lambda *_: 10**12, "more than the dense network's"),
        ("benchmark.runs.record.create_network", fail, "MemoryError: of all things"),
    ],
)
def test_whatever_goes_wrong_is_a_warning_and_the_record_is_as_without(done, monkeypatch, place, fault, reason):
    subject = load_subject(name_of(done), done / "records", done / "runs")
    for norm in subject.network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.bias.data += 0.5  # constants that are not zero
    monkeypatch.setattr(place, fault)
    macs, said = price(subject, subject.network)
    assert macs == {key: value for key, value in subject.record["macs"].items() if key != "inference_slim"}
    assert len(said) == 1 and "removed filters: " in said[0] and reason in said[0]


def test_a_run_whose_network_cannot_be_cut_has_its_record_and_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmark.networks.filters.remove_dead_filters", lambda network: 1 / 0)
    bench = Bench(tmp_path)
    assert bench("gmp_structured", "0.7", arguments=TINY) == 0
    (record,) = bench.records()
    assert record["status"] == "ok" and "inference_slim" not in record["macs"]
    told = " ".join(bench.shown.getvalue().split())
    assert "warning: the record lacks the cost of the network without its removed filters: torch.fx cannot" in told


def test_what_has_no_files_or_other_data_is_refused(board):
    name = name_of(board)
    path = board / "records" / f"{name}.json"
    content = json.loads(path.read_text())
    content["data"]["fingerprint"] = "0" * 64
    path.write_text(lay_out({**content, "seal": seal_of(content)}))
    status, said = slim(board, name)
    assert status == 2 and "are not those of run" in said and "--data" in said
    (board / "runs" / name / MASKS).unlink()
    status, said = slim(board, name)
    assert status == 2 and "has a record but no masks.safetensors in" in said
    status, said = slim(board, "nosuch")
    assert status == 2 and "no record of a run 'nosuch'" in said
    status, said = slim(board, name, "--batch", "0")
    assert status == 2 and "BATCH must be whole numbers" in said


def test_a_smaller_network_with_other_outputs_is_never_written(board, monkeypatch):
    name = name_of(board)
    monkeypatch.setattr(filters, "merge", lambda consumer, constant, into: None)  # the constants that go are lost
    subject = load_subject(name, board / "records", board / "runs")
    for module in subject.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += 0.5  # constants that are not zero
    with pytest.raises(UserError, match=r"outputs differ by .* more than 1e-05; nothing was written"):
        slim_down(subject, torch.randn(4, 1, 8, 8))


def test_a_network_that_cannot_be_followed_is_refused(board, monkeypatch):
    monkeypatch.setattr("benchmark.networks.filters.remove_dead_filters", lambda network: 1 / 0)
    status, said = slim(board, name_of(board))
    assert status == 2 and "torch.fx cannot trace its network" in said and "ZeroDivisionError" in said


class Padded(nn.Module):
    """Five filters before a padded reader; after norm and activation two of the empty ones are 0.5 and 0.25."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 3, 3, padding=1)
        self.norm.bias.data = torch.tensor([0.25, -1.0, 0.5, 0.1, 0.2])
        self.first.weight.data[:3] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.relu(self.norm(self.first(x))))


def test_constants_before_a_padded_convolution_become_one():
    """By hand: 0.25 w0 + 0.5 w2 = 0.5 (w2 + w0 / 2); the filter of -1 is zero; the border is as it was."""
    network, x = Padded().eval(), torch.randn(2, 2, 5, 5)
    smaller, removal = remove_dead_filters(network)
    assert removal.reasons == Counter(zero=1, merged=1, unread=0, folded=0)
    assert smaller.first.weight.shape[0] == smaller.second.weight.shape[1] == smaller.norm.num_features == 3
    expected = network.second.weight[:, 2] + network.second.weight[:, 0] / 2
    assert torch.allclose(smaller.second.weight[:, 0], expected)
    assert torch.allclose(smaller(x), network(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cifar_vgg19_bn", {"width": 0.125}), ("cifar_resnet50", {"width": 0.125}), ("resnet18", {})],
)
def test_the_suites_networks_lose_the_filters_of_a_structured_mask_and_keep_their_outputs(name, arguments):
    """Gains and shifts of every norm are drawn, so that empty filters are constants of both signs after it."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, **arguments).eval()
    weights = {n: p.detach() for n, p in network.named_parameters() if p.ndim > 1}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    last = list(weights)[-1]
    scores = {n: torch.rand(w.shape) + torch.rand(len(w)).view(-1, *[1] * (w.ndim - 1)) for n, w in weights.items()}
    kept = keep_filters(scores, total // 2, masks, last, layerwise=True)
    with torch.no_grad():
        for n, mask in kept.items():
            network.get_parameter(n).mul_(mask)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.3)
                module.weight.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 32, 32)
    smaller, removal = remove_dead_filters(network)
    with torch.inference_mode():
        expected, found = network(images), smaller(images)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    chained = [n for n, p in smaller.named_parameters() if p.ndim > 1 and len(p) < len(weights[n])]
    counts = {n: int(mask.flatten(1).any(1).sum()) for n, mask in kept.items()}
    assert removal.removed and {"resnet18": 8, "cifar_vgg19_bn": 16, "cifar_resnet50": 32}[name] == len(chained)
    assert all(counts[n] <= len(smaller.get_parameter(n)) <= counts[n] + 1 for n in chained)
    assert sum(p.numel() for p in smaller.parameters()) < 0.75 * sum(p.numel() for p in network.parameters())
