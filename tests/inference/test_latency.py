"""Promises of `sparse-bench latency`: engines give the network's outputs or no figure, and dead filters go exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import benchmark.inference.kernels as engines
import benchmark.networks.cifar  # noqa: F401 (registers the CIFAR networks)
from benchmark.base.errors import UserError
from benchmark.base.system import cuda_available
from benchmark.inference import kernels, passes
from benchmark.inference.csr import CsrConv2d, CsrLinear, convert, find_winners
from benchmark.inference.latency import read_request
from benchmark.inference.passes import MODES, PLAIN, Clock, Mode, Pass
from benchmark.inference.subject import Images, Subject, dense_bytes, make_slim, packed_bytes
from benchmark.networks import filters
from benchmark.networks.filters import find_chains, remove_dead_filters
from tests.harness.small import make_page

CPU = torch.device("cpu")
CLOCK = Clock(CPU, 1)


def thin(weight: torch.Tensor, density: float, seed: int = 0) -> torch.Tensor:
    """Zero a weight in place but for a random share of it; return the mask."""
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < density
    weight.data.mul_(mask)
    return mask


def shake(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics of its own, as training would, and switch to evaluation."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.bias, -1.0, 0.5)):
                values.data = torch.rand(values.shape, generator=generator) * (high - low) + low
            module.running_mean = torch.randn(module.running_mean.shape, generator=generator) * 0.1
            module.running_var = torch.rand(module.running_var.shape, generator=generator) + 0.5
    return network.eval()


def make_subject(density: float = 0.3, slim: bool = True) -> Subject:
    """Return a subject on a narrow ResNet-20 for images of 8x8, with random masks.

    In each of the nine blocks two filters of the first convolution are empty: filter 0 becomes a constant of about 0.3
    before a padded convolution, filter 3 becomes zero.
    """
    torch.manual_seed(0)
    build = lambda width: timm.create_model("cifar_resnet20", num_classes=10, in_chans=1, width=width).eval()  # noqa: E731
    network, dense = shake(build(0.5)), build(0.5)
    weights = {name: weight for name, weight in network.named_parameters() if weight.dim() > 1}
    masks = {name: torch.rand(weight.shape) < density for name, weight in weights.items()}
    for name in [name for name in masks if name.endswith("conv1.weight")]:
        masks[name][[0, 3]] = False
        norm: Any = network.get_submodule(name.replace("conv1.weight", "bn1"))
        norm.bias.data[[0, 3]] = norm.running_mean[[0, 3]] / norm.running_var[[0, 3]].sqrt() * norm.weight[[0, 3]]
        norm.bias.data[[0, 3]] += torch.tensor([0.3, -0.3])
    for name, weight in weights.items():
        weight.data.mul_(masks[name])
    record: Any = {"run": "a run", "status": "ok"}
    note = "" if slim else "backbone cannot be narrowed"
    return Subject(record, Images(("0",) * 10, 1, 8), masks, network, dense, build(0.1) if slim else None, note)


# Compressed rows


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"padding": 1, "bias": False}),
        (3, {"padding": 0, "stride": 2}),
        ((1, 3), {"padding": (0, 1), "dilation": (1, 2)}),
        (1, {"bias": False}),
        (1, {"stride": 2}),
        (1, {"padding": 1}),
    ],
)
def test_a_convolution_with_compressed_rows_gives_the_same_in_every_form(kernel, options, channels_last):
    torch.manual_seed(1)
    layer = nn.Conv2d(6, 10, kernel, **options).requires_grad_(False)
    thin(layer.weight, 0.2)
    x = torch.randn(3, 6, 9, 7).contiguous(
        memory_format=torch.channels_last if channels_last else torch.preserve_format
    )
    out, expected = CsrConv2d(layer)(x), layer(x)
    assert out.shape == expected.shape and torch.allclose(out, expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize(("shape", "density"), [((5, 8), 0.3), ((2, 5, 8), 0.3), ((1, 8), 0.0)])
def test_a_linear_layer_with_compressed_rows_gives_the_same(shape, density):
    layer = nn.Linear(8, 4).requires_grad_(False)
    thin(layer.weight, density)
    x = torch.randn(shape)
    assert torch.allclose(CsrLinear(layer)(x), layer(x), atol=1e-6)


def test_compressed_rows_compute_in_fp32_under_autocast_and_between_bf16_layers():
    layer = nn.Linear(64, 4).requires_grad_(False)
    thin(layer.weight, 0.5)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(CsrLinear(layer)(x), functional.linear(x.double(), layer.weight.double(),
                              layer.bias.double()).float(), atol=1e-6)  # fmt: skip
    assert CsrLinear(layer)(x.bfloat16()).dtype == torch.bfloat16


def test_only_layers_that_have_the_form_are_converted():
    refused = [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same"), nn.Conv1d(4, 4, 3), nn.ReLU(),
               nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")]  # fmt: skip
    assert [convert(layer) for layer in refused] == [None] * 5
    assert isinstance(convert(nn.Conv2d(4, 4, 3)), CsrConv2d) and isinstance(convert(nn.Linear(4, 4)), CsrLinear)


class Sluggish(Clock):
    """A clock by which one kind of module takes twice as long as any other; it never waits."""

    def __init__(self, slow: type[nn.Module]) -> None:
        super().__init__(CPU, 1)
        self.slow = slow

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        module = action.args[0].func  # type: ignore[attr-defined]
        return 2.0 if isinstance(module, self.slow) else 1.0


@pytest.mark.parametrize(("slow", "count"), [(nn.Conv2d, 21), (CsrConv2d, 0)])
def test_layers_are_converted_where_the_timing_says_so(slow, count):
    subject = make_subject()
    run = Pass(subject.network, torch.randn(1, 1, 8, 8), PLAIN)
    names = [name.removesuffix(".weight") for name in subject.masks]
    winners = find_winners(run, names, Sluggish(slow))
    assert [type(run.network.get_submodule(name)) for name in winners].count(nn.Conv2d) == count
    assert "classifier" not in winners  # linear: as fast either way, which is no win


# Dead filters


class TwoLayers(nn.Module):
    """Four filters before a reader of three, with a norm whose effect on a zero is known: the bias."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, 1 + 2 * padding, padding=padding)
        self.norm.bias.data = torch.tensor([-0.5, 0.25, 0.5, -0.25])
        self.first.weight.data[0] = 0  # after the activation: zero
        self.first.weight.data[1] = 0  # 0.25 everywhere
        self.second.weight.data[:, 2] = 0  # nothing reads filter 2, which is alive

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.relu(self.norm(self.first(x))))


@pytest.mark.parametrize(
    ("padding", "reasons", "left"), [(1, {"unread": 1, "zero": 1, "folded": 0}, 2),
                                     (0, {"unread": 1, "zero": 1, "folded": 1}, 1)]
)  # fmt: skip
def test_filters_go_where_they_have_no_effect_and_a_constant_only_where_no_border_is_padded(padding, reasons, left):
    network, x = TwoLayers(padding).eval(), torch.randn(2, 2, 5, 5)
    smaller, removal = remove_dead_filters(network)
    assert removal.filters == 4 and removal.reasons == Counter(reasons)
    assert smaller.first.weight.shape == (left, 2, 3, 3) and smaller.second.weight.shape[1] == left
    assert smaller.norm.num_features == left == len(smaller.norm.running_mean)
    assert torch.allclose(smaller(x), network(x), atol=1e-6)
    assert network.first.weight.shape[0] == 4  # the network itself is as it was


class Cascade(nn.Module):
    """Three layers in a row; the middle one is the only reader of the first one's filter 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)
        self.b.weight.data[0, 1] = 0
        self.c.weight.data[0, 1] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def test_a_filter_that_is_gone_reads_no_longer():
    network, x = Cascade().eval(), torch.randn(1, 1, 3, 3)
    smaller, removal = remove_dead_filters(network)
    assert removal.reasons["unread"] == 2 and len(smaller.a.weight) == len(smaller.b.weight) == 1
    assert torch.allclose(smaller(x), network(x), atol=1e-6)


class Mlp(nn.Module):
    """A convolution, the mean over the image, and two linear layers with GELU, whose constants are never zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2)
        self.one, self.act, self.two = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)
        self.conv.weight.data[:2] = 0
        self.one.weight.data[3] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv(x)).mean(dim=(2, 3))
        return self.two(self.act(self.one(x)))


def test_constants_go_into_the_next_bias_through_pooling_and_the_mean():
    network, x = Mlp().eval(), torch.randn(3, 1, 6, 6)
    smaller, removal = remove_dead_filters(network)
    assert removal.reasons == Counter(folded=3) and removal.filters == 10
    assert (len(smaller.conv.weight), len(smaller.one.weight)) == (2, 5)
    assert torch.allclose(smaller(x), network(x), atol=1e-6)


class Branching(nn.Module):
    """What must be left alone: channels read twice, a layer called twice, a flattened map, and a mean that keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.out = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.flat, self.last = nn.Conv2d(2, 2, 1), nn.Linear(8, 3)
        for layer in (self.stem, self.twice, self.out, self.flat):
            layer.weight.data[0] = 0
            layer.bias.data[0] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.twice(self.twice(x))
        x = self.out(x)
        return self.last(self.flat(x.mean((2, 3), keepdim=True) + x).flatten(1))


def test_channels_with_another_reader_stay():
    network = Branching().eval()
    assert find_chains(network) == []
    assert remove_dead_filters(network)[1].removed == 0


def test_a_layer_without_any_effect_keeps_one_filter():
    network = TwoLayers(1).eval()
    network.first.weight.data.zero_()
    network.norm.bias.data.fill_(-1)
    smaller, removal = remove_dead_filters(network)
    assert len(smaller.first.weight) == 1 and removal.removed == 3
    x = torch.randn(1, 2, 4, 4)
    assert torch.allclose(smaller(x), network(x), atol=1e-6)


@pytest.mark.parametrize("name", ["cifar_resnet20", "vit_tiny_patch16_224"])  # for others see test_slim.py
def test_removal_keeps_the_outputs_of_whole_networks(name):
    torch.manual_seed(0)
    narrow = {"width": 0.25} if name.startswith("cifar") else {}
    size = 32 if name.startswith("cifar") else 64
    if name.startswith("vit"):
        narrow = {"depth": 2, "img_size": size}
    network = shake(timm.create_model(name, num_classes=10, **narrow))
    for seed, (weight_name, weight) in enumerate(network.named_parameters()):
        if weight.dim() > 1 and "embed" not in weight_name and "token" not in weight_name:
            thin(weight, 0.004 if weight.numel() > 5000 else 0.05, seed)
    smaller, removal = remove_dead_filters(network)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected, found = network(x), smaller(x)
    assert removal.removed > 5
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.std() > 0


# Engines are held to the network's outputs


@pytest.mark.usefixtures("quick")
def test_every_engine_has_figures_and_those_that_keep_the_function_are_compared():
    said: list[str] = []
    entry = engines.measure_batch(make_subject(), 3, CLOCK, said.append)
    rows = {row["engine"]: row for row in entry["engines"]}
    assert list(rows) == ["dense", "dense fp32", "zeros", "csr", "dead filters", "slim", "2:4"]
    assert rows.pop("2:4") == {"engine": "2:4", "status": "skipped", "note": "2:4 kernels need a GPU"}
    assert all(row["status"] == "ok" and row["low_ms"] <= row["ms"] <= row["high_ms"] for row in rows.values())
    assert {name for name, row in rows.items() if "error" in row} == {"zeros", "csr", "dead filters"}
    assert rows["dense"]["speed_up"] == 1 and rows["dense"]["ms"] <= rows["dense fp32"]["ms"]
    assert all(abs(row["speed_up"] - rows["dense"]["ms"] / row["ms"]) < 1e-12 for row in rows.values())
    assert rows["dead filters"]["note"].startswith("9 of 168 filters removed (9 constant zero)")
    assert entry["rounds"] == engines.LEAST_ROUNDS
    assert said[-1] == "timing"


def plant_csr(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CsrConv2d.forward
    monkeypatch.setattr(CsrConv2d, "forward", lambda self, x: forward(self, x) * 1.01)


def plant_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every filter without active weights for one without effect, whatever its constant."""
    monkeypatch.setattr(filters, "constants", lambda chain: torch.zeros(len(chain.producer.weight)))


def plant_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CsrConv2d, "forward", lambda self, x: torch.full((len(x), len(self.matrix), *self.sizes(x)),
                                                                         float("nan")).to(x.dtype))  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("plant", "engine"),
    [(plant_csr, "csr"), (plant_constants, "dead filters"), (plant_nan, "csr")],
)
def test_an_engine_with_other_outputs_is_invalid_and_has_no_figure(monkeypatch, plant, engine):
    plant(monkeypatch)
    monkeypatch.setattr(engines, "find_winners", lambda run, names, clock: names)  # every layer, fast or not
    entry = engines.measure_batch(make_subject(), 1, CLOCK, lambda text: None)
    rows = {row["engine"]: row for row in entry["engines"]}
    assert rows[engine]["status"] == "invalid" and set(rows[engine]) == {"engine", "status", "note"}
    assert "differ" in rows[engine]["note"]
    assert {name for name, row in rows.items() if row["status"] == "invalid"} == {engine}


def test_an_engine_that_is_wrong_only_in_the_mode_it_is_timed_in_is_invalid():
    subject, images = make_subject(), torch.randn(4, 1, 8, 8)
    half = Mode("bf16", False)

    def build(images: torch.Tensor, mode: Mode) -> Pass:
        run = Pass(subject.network, images, mode)
        if mode == half:
            run.network.classifier.weight.data.mul_(1.2)
        return run

    fault, error = engines.check(engines.Kernel("zeros", build, half), subject.network, images)
    assert "in bf16 differ" in fault and error is None
    right = engines.Kernel("zeros", partial(Pass, subject.network), half)
    assert engines.check(right, subject.network, images) == ("", 0.0)


def test_slim_and_semi_structured_are_not_held_to_the_outputs_of_the_run():
    subject, images = make_subject(), torch.randn(1, 1, 8, 8)
    other = engines.Kernel("slim", partial(Pass, subject.dense))
    assert engines.check(other, subject.network, images) == ("", None)
    same = engines.Kernel("zeros", partial(Pass, subject.dense))
    assert "differ" in engines.check(same, subject.network, images)[0]


@pytest.mark.usefixtures("quick")
def test_a_backbone_that_cannot_be_narrowed_says_so_and_costs_nothing_else():
    entry = engines.measure_batch(make_subject(slim=False), 1, CLOCK, lambda text: None)
    rows = {row["engine"]: row for row in entry["engines"]}
    assert rows["slim"] == {"engine": "slim", "status": "skipped", "note": "backbone cannot be narrowed"}
    assert rows["csr"]["status"] == "ok"


def test_narrowing_is_refused_by_name_or_comes_nearest_to_the_count():
    page, images = make_page(model="repvgg_a0", image_size=32), Images(("a", "b"), 3, 32)
    slim, note = make_slim(page, images, 10_000)
    assert slim is None and "cannot be narrowed" in note
    page = make_page(model="cifar_resnet20", image_size=8)
    slim, note = make_slim(page, Images(("a", "b"), 1, 8), 5_412)
    count = sum(weight.numel() for weight in slim.parameters() if weight.dim() > 1)
    assert abs(count / 5_412 - 1) < 0.1 and f"{count:,} prunable weights to the run's 5,412" in note


def test_a_network_that_cannot_be_traced_keeps_its_filters_and_says_why(monkeypatch):
    subject = make_subject()
    monkeypatch.setattr(engines, "remove_dead_filters", lambda network: 1 / 0)
    zeros = engines.Kernel("zeros", partial(Pass, subject.network))
    dead = engines.make_dead(subject, zeros, torch.zeros(1, 1, 8, 8), CLOCK)
    assert dead.build is None and "cannot be traced: ZeroDivisionError" in dead.note


def test_the_best_dense_mode_is_the_fastest_one_even_if_it_is_the_plain_one():
    times = {"low_ms": 1.0, "high_ms": 9.0}
    rows = [{"engine": "dense", "ms": 3.0, "mode": "bf16", **times},
            {"engine": "dense fp32", "ms": 2.0, "mode": "fp32", **times},
            {"engine": "csr", "ms": 1.0, **times}, {"engine": "slim"}]  # fmt: skip
    dense, plain, csr, slim = engines.compare_with_dense(rows)
    assert (dense["ms"], dense["mode"], dense["speed_up"]) == (2.0, "fp32", 1.0)
    assert (plain["speed_up"], csr["speed_up"], "speed_up" in slim) == (1.0, 2.0, False)


# Modes and clocks


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_pass_in_every_mode_leaves_the_network_as_it_was_and_gives_nearly_its_outputs(mode):
    network, images = make_subject().network, torch.randn(4, 1, 8, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images)
    outputs = Pass(network, images, mode)()
    bound = 1e-5 if mode.precision == "fp32" else 0.1
    assert (outputs.float() - expected).abs().max() <= bound * expected.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Scripted(Clock):
    """A clock that tells the seconds an action is scripted to take, and counts the calls."""

    def __init__(self) -> None:
        super().__init__(CPU, 1)
        self.calls: Counter[float] = Counter()

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        value = float(action())  # type: ignore[arg-type]
        self.calls[value] += 1
        return value


def test_the_fastest_is_found_and_a_hopeless_one_is_not_timed_again():
    clock = Scripted()
    best, seconds = clock.find_fastest([lambda: 0.05, lambda: 0.03, lambda: 1.0])
    assert best == 1 and seconds == [0.05, 0.03, float("inf")]
    assert clock.calls[1.0] == 1 and clock.calls[0.03] == clock.calls[0.05] > passes.TRIALS


def test_short_actions_are_repeated_within_a_timing():
    clock = Scripted()
    assert clock.choose_repeats(lambda: 0.007) == 3
    assert clock.choose_repeats(lambda: 5.0) == 1
    assert clock.choose_repeats(lambda: 1e-9) == passes.MOST_REPEATS
    calls: list[int] = []
    Clock(CPU, 1).seconds(lambda: calls.append(1), repeats=7)
    assert len(calls) == 7


# 2:4 and sizes


def test_two_of_every_four_neighbours_stay_the_larger_ones():
    kept = kernels.keep_two_of_four(torch.tensor([[1.0, -4.0, 3.0, 2.0], [0.0, 0.0, 0.0, 5.0]]))
    assert torch.equal(kept, torch.tensor([[0.0, -4.0, 3.0, 0.0], [0.0, 0.0, 0.0, 5.0]]))
    assert kernels.reason_against(CPU) == "2:4 kernels need a GPU"


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_available(), reason="no GPU here")
@pytest.mark.usefixtures("quick")
def test_every_engine_runs_on_a_gpu():
    device = torch.device("cuda")
    entry = engines.measure_batch(make_subject(), 2, Clock(device, 1), lambda text: None)
    rows = {row["engine"]: row for row in entry["engines"]}
    assert all(rows[name]["status"] == "ok" for name in ("dense", "zeros", "csr", "dead filters", "slim"))


def test_the_size_on_disk_is_masks_as_bits_active_weights_and_the_rest():
    network = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3))
    mask = torch.zeros(3, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, :2] = True
    subject = Subject({}, Images((), 1, 8), {"0.weight": mask}, network, network, None, "")
    norm = 4 * 3 * 4 + 8  # weight, bias, mean, variance; the whole number that counts batches
    assert packed_bytes(subject) == 4 + 2 * 4 + norm  # 27 bits are 4 bytes
    assert dense_bytes(subject) == 27 * 4 + norm


# What is asked


@pytest.mark.parametrize("batches", ["1,0", "1.5", "", "99999"])
def test_a_batch_that_cannot_be_is_refused(batches):
    with pytest.raises(UserError, match="BATCH"):
        read_request(batches, 1, "cpu")


@pytest.mark.parametrize("threads", [0, 10_000])
def test_threads_that_cannot_be_are_refused(threads):
    with pytest.raises(UserError, match=r"THREADS must be a whole number from 1 to \d+"):
        read_request("1", threads, "cpu")


def test_one_thread_is_the_default_on_a_cpu_and_repeats_are_dropped():
    request = read_request(" 64,1,64 ", None, "cpu")
    assert (request.batches, request.threads, request.device.type) == ([64, 1], 1, "cpu")
