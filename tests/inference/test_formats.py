"""Promises of `sparse-bench export`: every form gives the network again, is as small as told, or is not written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmark.base.errors import UserError
from benchmark.inference import formats, kernels
from benchmark.inference.onnx_graph import has_packages, import_package, read_weights, to_onnx
from benchmark.inference.passes import Clock
from benchmark.inference.subject import Subject, load_subject
from benchmark.runs.compact import compress, expand
from benchmark.runs.export import read_export
from tests.harness.benches import ask, import_file

ROOT = Path(__file__).resolve().parents[2]
needs_onnx = pytest.mark.skipif(not has_packages(), reason="the extra onnx is not installed")


def run_of(board: Path) -> str:
    return next((board / "runs").glob("*.static.*")).name


def export(board: Path, *words: str, run: str = "", to: str = "out") -> tuple[int, str]:
    """Export the static run of a board to a folder in it; return the status and what was printed."""
    places = ["--to", board / to, "--records", board / "records", "--runs", board / "runs"]
    result = ask("export", run or run_of(board), *map(str, places), *words)
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def load_compressed(tmp_path_factory: pytest.TempPathFactory):
    """The reader that the documents show."""
    text = (ROOT / "docs" / "export.md").read_text()
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "def load_compressed" in code)
    assert len(block[block.index("def ") :].splitlines()) <= 30
    path = tmp_path_factory.mktemp("docs") / "reader.py"
    path.write_text(block)
    return import_file(path).load_compressed


def test_a_tensor_without_a_mask_is_compared_too():
    state = {"a.weight": torch.tensor([0.0, 2]), "a.bias": torch.ones(2)}
    network = formats.Network("r", state, {"a.weight": torch.tensor([False, True])}, {})
    for again in (state, {"a.weight": state["a.weight"]}):  # ONNX keeps no counter of batches, for one
        formats.refuse_other_weights("x", formats.Form(b"", again, ""), network)
    with pytest.raises(UserError, match=r"x, read back, does not hold the network: a\.bias is another"):
        formats.refuse_other_weights("x", formats.Form(b"", {**state, "a.bias": torch.zeros(2)}, ""), network)


@pytest.mark.parametrize(("density", "share"), [(0.5, 0.532), (0.1, 0.126), (0.02, 0.0255), (0.002, 0.004), (0, 1e-3)])
def test_the_compressed_form_is_small_and_the_documents_reader_gives_it_again(
    tmp_path, load_compressed, density, share
):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(1000, 603, generator=draw) < density
    masks = {"b.weight": mask, "a.weight": torch.tensor([True, False, True])}
    state = {"b.weight": torch.randn(mask.shape, generator=draw) * mask, "a.weight": torch.tensor([0.0, 0, 2])}
    state |= {"steps": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16)}
    path = tmp_path / "compressed.safetensors"
    path.write_bytes(compress(state, masks, {"run": "r"}))
    assert path.stat().st_size <= share * 4 * mask.numel() + 1000
    for again, bits in (load_compressed(path), expand(path.read_bytes())):
        assert again.keys() == state.keys() and list(bits) == list(masks)
        assert all(torch.equal(again[name], state[name]) and again[name].dtype == state[name].dtype for name in state)
        assert all(torch.equal(bits[name], masks[name]) for name in masks)  # also an active weight that is zero


def test_every_form_is_counted_layer_by_layer_and_its_size_is_reported(board, load_compressed):
    status, said = export(board)
    assert status == 0 and "weights.safetensors" in said
    status, said = export(board, "--torch-sparse", "--compressed")
    assert status == 0 and "1 linear layer as CSR" in said
    report = json.loads((board / "out" / formats.REPORT).read_text())
    weights, masks = read_export(board / "out")
    for file, told in report["files"].items():
        assert told["bytes"] == (board / "out" / file).stat().st_size
        assert told.get("zeros", {}) in ({}, {name: int((weights[name] == 0).sum()) for name in masks})
    assert [file for file, told in report["files"].items() if "zeros" not in told] == ["masks.safetensors"]
    state, bits = load_compressed(board / "out" / formats.COMPRESSED)
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert all(torch.equal(bits[name], mask) for name, mask in masks.items())
    network = load_subject(run_of(board), board / "records", board / "runs").network
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = network(images)
        rows = torch.load(board / "out" / formats.CSR, weights_only=True)
        assert rows["classifier.weight"].values().numel() == int(masks["classifier.weight"].sum())
        network.load_state_dict(rows, strict=True, assign=True)
        assert torch.allclose(network(images), expected, atol=1e-5)


@pytest.fixture(scope="module")
def graph(done, tmp_path_factory) -> tuple[Subject, bytes]:
    """A run and its network as the command exports it to ONNX."""
    folder = tmp_path_factory.mktemp("onnx")
    places = ["--to", folder, "--records", done / "records", "--runs", done / "runs"]
    result = ask("export", run_of(done), "--onnx", *map(str, places))
    assert result.exit_code == 0 and "opset 18; images: any batch x 1 x 8 x 8" in " ".join(result.output.split())
    subject = load_subject(run_of(done), done / "records", done / "runs")
    vars(subject)["onnx"] = (folder / formats.ONNX).read_bytes()
    return subject, subject.onnx


@needs_onnx
def test_an_onnx_file_takes_any_batch_gives_the_outputs_and_has_the_weights_by_name(graph):
    subject, content = graph
    stored = read_weights(content)
    assert all(torch.equal(stored[name], weight) for name, weight in subject.network.named_parameters())
    images = torch.randn(5, 1, 8, 8)
    (found,) = import_package("onnxruntime").InferenceSession(content).run(None, {"images": images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), subject.network(images), atol=1e-4)
    assert b"site-packages" not in content and b".py" not in content  # nothing of the machine it was written on


@needs_onnx
def test_onnxruntime_is_timed_and_held_to_the_outputs(graph, monkeypatch):
    monkeypatch.setattr(kernels, "BUDGET_S", 0.0)
    (subject, _), clock, images = graph, Clock(torch.device("cpu"), 1), torch.randn(3, 1, 8, 8)
    (kernel,) = kernels.make_onnx(subject, clock)
    fault, error = kernels.check(kernel, subject.network, images)
    assert fault == "" and error is not None and error < 1e-5
    assert list(kernels.time_kernels([kernel], images, clock)[1]) == ["onnxruntime"]
    assert "differ" in kernels.check(kernel, subject.dense, images)[0]


class Decomposed(nn.Module):
    """A network with an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x.flatten(1))[None]


@needs_onnx
def test_an_operator_that_onnx_lacks_is_named():
    with pytest.raises(UserError, match=r"there is no ONNX operator for aten\._linalg_svd"):
        to_onnx(Decomposed(), (1, 2, 2))


def test_a_form_that_revives_a_weight_or_drops_one_is_not_written(board, monkeypatch):
    def revive(content):
        state, masks = expand(content)
        state["classifier.weight"][~masks["classifier.weight"]] = 1.0
        return state, masks

    def drop(content):
        state, masks = expand(content)
        return state, {name: mask & (mask.cumsum(0) > 1) for name, mask in masks.items()}

    for fault, told in ((revive, "classifier.weight is another"), (drop, "gives other masks")):
        monkeypatch.setattr(formats, "expand", fault)
        status, said = export(board, "--compressed")
        assert status == 2 and told in said and "nothing was written" in said
    monkeypatch.setattr(formats, "take_rows", lambda weight, mask: (weight * 1.5).to_sparse_csr())
    status, said = export(board, "--torch-sparse")
    assert status == 2 and "its outputs differ from the network's" in said
    assert not (board / "out").exists()


def test_nothing_is_replaced_that_is_not_an_export_of_this_network(board, monkeypatch):
    other = next((board / "runs").glob("*.small_dense.*"))
    assert export(board, run=other.name)[0] == 0
    before = sorted((path.name, path.read_bytes()) for path in (board / "out").iterdir())
    for to in ("out", f"runs/{other.name}"):
        status, said = export(board, "--compressed", to=to)
        assert status == 2 and "is not empty, and what it holds was not exported from this network" in said
    assert sorted((path.name, path.read_bytes()) for path in (board / "out").iterdir()) == before
    assert export(board, "--compressed", run=other.name)[0] == 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for words, told in ((["--onnx"], r"ONNX needs the package \w+, .*'\.\[onnx\]'"), ([], "no run 'nosuch'")):
        status, said = export(board, *words, run="" if words else "nosuch", to="new")
        assert status == 2 and re.search(told, said), said
    assert not (board / "new").exists()
