"""The methods in a loop of one's own: the runner's bits, any optimiser, mixed precision, checkpoints, clear errors."""

import copy
import importlib.util
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
import torchvision
from torch import Tensor, nn

from benchmark import Sparsifier
from benchmark.base import ROOT
from benchmark.base.errors import UserError
from benchmark.config.plugins import find_method
from benchmark.distributed.ranks import announce
from benchmark.training.given import waits_for
from benchmark.training.masks import inner_state
from benchmark.training.optim import learning_rate, make_optimizer, set_learning_rate
from methods.core import Masks, Method, Scoring, View, all_active
from methods.static import Static
from tests.harness import small
from tests.harness.small import SmallNet


def batches(count: int = 12, seed: int = 0, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Return batches for the small network."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 2, small.SIZE, small.SIZE, generator=generator), torch.arange(size) % 3)
        for _ in range(count)
    ]


def build(method: str | Method = "granet", net: nn.Module | None = None, **more: Any) -> tuple[nn.Module, Sparsifier]:
    """Return a small network and its Sparsifier; a Sparsifier's own optimiser is SGD with momentum."""
    torch.manual_seed(0)
    model = net or SmallNet()
    optimizer = more.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    usual: dict[str, Any] = {"sparsity": 0.8, "total_steps": 12}
    if isinstance(method, str) and "update_every" in find_method(method).settings():
        usual["update_every"] = 3
    return model, Sparsifier(model, optimizer, method, **{**usual, **more})


def train(model: nn.Module, sparse: Sparsifier, data: list[tuple[Tensor, Tensor]]) -> None:
    """Do one step per batch."""
    for images, labels in data:
        nn.functional.cross_entropy(model(images), labels).backward()
        sparse.step()


def bits(model: nn.Module, sparse: Sparsifier) -> list[Tensor]:
    """Return all that must be the same."""
    return [tensor.clone() for tensor in (*model.state_dict().values(), *sparse.masks.values())]


def zeros_hold(sparse: Sparsifier) -> bool:
    """Return whether every inactive weight is exactly zero."""
    weights = sparse.training.maskset.weights
    return all(bool((weights[name][~mask] == 0).all()) for name, mask in sparse.masks.items())


@pytest.mark.parametrize("name", ["granet", "rigl", "set", "gmp", "snfs", "top_kast", "str", "ac_dc"])
def test_a_loop_of_ones_own_has_the_runners_masks_and_weights_bit_for_bit(name: str) -> None:
    run = small.make_run(name, changes={"update_every": 4} if name == "top_kast" else None)
    page, method, timeline = run.page, run.method, run.timeline
    torch.manual_seed(0)
    model = SmallNet()
    optimizer = make_optimizer(page, model)
    sparse = Sparsifier(
        model, optimizer, method, total_steps=timeline.total_steps, steps_per_epoch=timeline.steps_per_epoch
    )
    small.finish(run)
    model.train()
    for epoch in range(page.epochs):
        set_learning_rate(optimizer, learning_rate(page, epoch))
        for images, labels in run.data.train.epoch(0, epoch, page.batch_size, page.drop_last, torch.device("cpu")):
            nn.functional.cross_entropy(model(images), labels).backward()
            sparse.step()
    theirs = [*run.model.state_dict().values(), *run.maskset.masks.values()]
    assert all(torch.equal(a, b) for a, b in zip(bits(model, sparse), theirs, strict=True))


TORCH = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop")
TIMM = ("adamp", "lamb", "lars", "lion", "madgrad", "muon", "sgdp")  # each unlike the others
REFUSED = ["adahessian", "bnb*", "fused*", "*rmsproptf*"]  # the first ones are of packages for CUDA
ALL = pytest.param(timm.optim.list_optimizers(exclude_filters=REFUSED), marks=pytest.mark.slow)


@pytest.mark.parametrize("names", [TORCH, TIMM, ALL], ids=["torch", "timm", "all of timm"])
@pytest.mark.filterwarnings("ignore")
def test_inactive_weights_are_zero_under_every_optimiser(names: Sequence[str]) -> None:
    data = batches()
    for name in names:
        model = SmallNet()
        if names is TORCH:
            optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
        else:
            optimizer = timm.optim.create_optimizer_v2(model, name, lr=0.01, weight_decay=0.01)
        model, sparse = build(net=model, optimizer=optimizer)
        train(model, sparse, data)
        assert zeros_hold(sparse), name
        assert sum(int(mask.sum()) for mask in sparse.masks.values()) == round(0.2 * small.PRUNABLE), name


@pytest.mark.parametrize("name", ["Rprop", "RMSpropTF"])
def test_an_optimiser_whose_new_state_is_not_zero_is_refused_where_masks_change(name: str) -> None:
    """Grown weights would begin with a step size of zero, or divided by a mean square of zero."""
    model = SmallNet()
    optimizer = {"Rprop": torch.optim.Rprop, "RMSpropTF": timm.optim.RMSpropTF}[name](model.parameters(), lr=0.01)
    with pytest.raises(UserError, match=f"{name} begins with a state of each weight that is not zero"):
        build("rigl", model, optimizer=optimizer)
    build("static", model, optimizer=optimizer)


def test_a_step_of_lookahead_itself_is_refused_too() -> None:
    model = SmallNet()
    optimizer = timm.optim.create_optimizer_v2(model, "lookahead_momentum", lr=0.1, momentum=0.9)
    model, sparse = build("rigl", model, optimizer=optimizer)
    with pytest.raises(UserError, match="about to step without the masks"):
        optimizer.step()
    train(model, sparse, batches())
    assert zeros_hold(sparse)
    sparse.release()
    optimizer.step()


def test_a_fresh_start_leaves_no_state_where_zeros_are_not_known_to_be_one() -> None:
    model = SmallNet()
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)
    model, sparse = build("static", model, optimizer=optimizer)
    train(model, sparse, batches(2))
    first, second = list(model.parameters())[:2]
    sparse.training.forget([first])
    assert not optimizer.state.get(first) and optimizer.state[second]
    sparse.training.forget()
    assert not optimizer.state


@pytest.mark.parametrize("name", ["top_kast", "str"])
def test_a_state_taken_earlier_does_not_change_with_the_training(name: str) -> None:
    model, sparse = build(name)
    train(model, sparse, batches(3))
    stored = sparse.state_dict()["stored"]
    kept = copy.deepcopy(stored)
    train(model, sparse, batches(3))
    assert kept["values"] and all(torch.equal(value, kept["values"][name]) for name, value in stored["values"].items())


def test_flops_of_a_network_of_tokens_are_counted_on_whole_numbers() -> None:
    """Seven tokens through a layer of 4 x 6, dense: 168 multiply-adds, and 12 of the classifier."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(self.embed(tokens)).mean(1))

    _, sparse = build("static", net=Tokens(), example=torch.zeros(3, 7, dtype=torch.int64))
    assert sparse.training.meter.costs.dense == 7 * 24 + 12
    assert 0 < sparse.report().inference_share < 1


@pytest.mark.parametrize("name", ["granet", "str", "top_kast", "snfs"])
def test_a_state_goes_on_to_the_same_bits(name: str) -> None:
    data = batches()
    model, sparse = build(name)
    train(model, sparse, data[:5])
    saved = copy.deepcopy([model.state_dict(), sparse.training.optimizer.state_dict(), sparse.state_dict()])
    train(model, sparse, data[5:])
    again, resumed = build(name)
    again.load_state_dict(saved[0])
    resumed.training.optimizer.load_state_dict(copy.deepcopy(saved[1]))  # torch would go on in these tensors
    resumed.load_state_dict(saved[2])
    train(again, resumed, data[5:])
    ended = bits(model, sparse)
    assert all(torch.equal(a, b) for a, b in zip(ended, bits(again, resumed), strict=True))
    for part, state in zip([model, sparse.training.optimizer, sparse], saved, strict=True):  # back from the end
        part.load_state_dict(state)
    train(model, sparse, data[5:])
    assert all(torch.equal(a, b) for a, b in zip(ended, bits(model, sparse), strict=True))


@pytest.mark.parametrize("what", ["weights", "state", "both"])
def test_dense_weights_and_state_that_are_loaded_later_are_masked(what: str) -> None:
    data = batches()
    model, sparse = build("set", total_steps=100, update_every=50)
    dense, optimizer = SmallNet(), sparse.training.optimizer
    other = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
    nn.functional.cross_entropy(dense(data[0][0]), data[0][1]).backward()
    other.step()
    if what != "state":
        model.load_state_dict(dense.state_dict())
    if what != "weights":
        optimizer.load_state_dict(other.state_dict())
    sparse.report()
    assert zeros_hold(sparse)
    train(model, sparse, data[:3])
    assert zeros_hold(sparse)
    momentum = {name: optimizer.state[weight]["momentum_buffer"] for name, weight in model.named_parameters()}
    assert not any(momentum[name][~mask].any() for name, mask in sparse.masks.items())


@pytest.mark.filterwarnings("default:the last of total_steps:UserWarning")
def test_a_schedule_that_ends_above_its_target_for_skipped_steps_is_told() -> None:
    model, sparse = build("granet")
    assert sparse.report().skipped_steps == 0
    train(model, sparse, batches()[:5])
    lost = [(images * float("nan"), labels) for images, labels in batches()[5:]]
    with pytest.warns(
        UserWarning, match=r"active instead of .*: 7 steps were skipped because gradients were not finite"
    ):
        train(model, sparse, lost)
    assert sparse.report().skipped_steps == 7 and "7 steps were skipped" in str(sparse.report())


def test_frozen_layers_and_matrices_outside_layers_are_told(recwarn: pytest.WarningsRecorder) -> None:
    class Mixed(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 16)

    build("set", SmallNet(), steps_per_epoch=2)
    assert not recwarn.list
    build("set", Mixed(), steps_per_epoch=2)
    assert "not lstm.weight_hh_l0, lstm.weight_ih_l0 (1,280 weights" in str(recwarn.pop(UserWarning).message)
    frozen = SmallNet()
    name, weight = next((n, w) for n, w in frozen.named_parameters() if w.dim() > 1)
    weight.requires_grad_(False)
    build("set", frozen, steps_per_epoch=2)
    assert f"frozen layers are not pruned: {name}" in str(recwarn.pop(UserWarning).message)


@pytest.mark.parametrize("name", ["top_kast", "str"])
def test_weights_that_are_loaded_later_are_refused_where_a_method_keeps_the_inactive(name: str) -> None:
    data = batches()
    model, sparse = build(name)
    kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)  # the same bits, as after an evaluation with other weights
    train(model, sparse, data[:1])
    kept = copy.deepcopy(model.state_dict())
    model.load_state_dict({name: value + 1 for name, value in kept.items()})
    with pytest.raises(UserError, match=r"written beside step\(\).*before the Sparsifier is built"):
        train(model, sparse, data[1:2])
    assert all(torch.equal(model.get_parameter(name), kept[name]) for name in sparse.masks)


def test_accumulated_gradients_and_clipping_are_those_of_the_whole_batch() -> None:
    def run(parts: int) -> list[Tensor]:
        model, sparse = build(clip := "gmp")
        model.eval()  # batch statistics would be those of the parts
        for images, labels in batches():
            for some, few in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(some), few) / parts).backward()
            sparse.step(clip_norm=0.1)
        assert clip == "gmp" and zeros_hold(sparse)
        return [weight.detach() for weight in model.parameters()]

    for one, other in zip(run(1), run(4), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_scaler_skips_a_step_that_overflows_and_the_update_comes_at_the_next() -> None:
    model, sparse = build("granet")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step, (images, labels) in enumerate(batches(), start=1):
        before = model.fc.weight.detach().clone()
        loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss * (float("inf") if step == 3 else 1.0)).backward()
        sparse.step(scaler)
        scaler.update()
        assert torch.equal(before, model.fc.weight) == (step == 3)
        assert sparse.training.updates == {1: 0, 2: 0, 3: 0}.get(step, sparse.training.updates)
        if step == 4:
            assert sparse.training.updates == 1
    assert scaler.get_scale() == 4.0 and zeros_hold(sparse)


def test_mixed_precision_is_the_same_whoever_divides_by_the_scale() -> None:
    found = []
    for way in ("step", "unscaled before", "taken over"):
        net = SmallNet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
        net.load_state_dict(build("dense")[0].state_dict())
        model, sparse = build("top_kast", net, optimizer=optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        if way == "taken over":
            sparse.take_over(clip_norm=0.1)
        for images, labels in batches():
            scaler.scale(nn.functional.cross_entropy(model(images), labels)).backward()
            if way == "unscaled before":
                scaler.unscale_(optimizer)
            if way == "taken over":
                scaler.step(optimizer)
            else:
                sparse.step(scaler, clip_norm=0.1)
            scaler.update()
        found.append(bits(model, sparse))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    model.get_parameter("fc.weight").grad = torch.zeros_like(model.get_parameter("fc.weight"))
    with pytest.raises(UserError, match=r"call scaler\.step\(optimizer\)"):
        sparse.step(scaler)


def test_a_step_that_does_not_wait_for_the_device_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for waits in (True, False):
        net = SmallNet()
        extra = nn.Parameter(torch.zeros(3, 8))  # as of a loss with parameters
        optimizer = torch.optim.SGD([*net.parameters(), extra], lr=0.1, momentum=0.9, fused=True)
        net.load_state_dict(build("dense")[0].state_dict())
        model, sparse = build("rigl", net, optimizer=optimizer)
        monkeypatch.setattr("benchmark.training.sparsifier.waits_for", lambda *_, waits=waits: waits)
        data = batches()
        train(model, sparse, data[:4])
        nn.functional.cross_entropy(model(data[4][0]), data[4][1]).backward()
        (extra if waits else model.get_parameter("fc.weight")).grad = torch.full((3, 8), float("inf"))
        sparse.step()
        train(model, sparse, data[5:])
        assert sparse.state_dict()["counters"][:2] == [12, 1]
        found.append(bits(model, sparse))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_learned_parameters_want_the_scheduler_built_after_them() -> None:
    net = SmallNet()
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    assert zeros_hold(build("str", net, optimizer=optimizer)[1])  # torch wants their names as well
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)
    with pytest.raises(UserError, match="build it after the Sparsifier"):
        build("str", net, optimizer=optimizer)


def test_wrapped_and_compiled_networks_have_plain_names(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        plain, alone = build("rigl", total_steps=6)
        net = SmallNet()
        net.load_state_dict(build("dense")[0].state_dict())
        wrapped = nn.parallel.DistributedDataParallel(torch.compile(net, backend="eager"))
        _, sparse = build("rigl", wrapped, total_steps=6)
        train(plain, alone, batches(6))
        train(wrapped, sparse, batches(6))
    finally:
        torch.distributed.destroy_process_group()
    assert list(sparse.masks) == list(alone.masks)
    assert all(torch.equal(sparse.masks[name], alone.masks[name]) for name in alone.masks)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "force"])
def test_methods_that_look_at_data_take_a_loader(name: str) -> None:
    data = batches(30)
    more = {"samples_per_class": 3} if name == "grasp" else {}
    model, sparse = build(name, data=data, **more)
    train(model, sparse, data[:12])
    assert sparse.report().density == pytest.approx(0.2, abs=0.005) and zeros_hold(sparse)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_method_that_scores_in_rounds_sees_the_same_images_of_a_loader_or_others(fresh: bool) -> None:
    seen: dict[int, Tensor] = {}

    class InRounds(Static):
        def scoring(self) -> Scoring:
            return Scoring(batches=2, rounds=3, fresh=fresh)

        def setup(self, view: View) -> Masks:
            assert view.gradients is not None
            seen[view.round] = torch.cat([gradient.flatten() for gradient in view.gradients.values()])
            return all_active(view) if view.round < 2 else super().setup(view)

    build(InRounds(sparsity=0.8), data=batches(30))
    assert [torch.equal(seen[0], seen[round]) for round in (1, 2)] == [not fresh, not fresh]


def test_the_report_counts_layers_and_flops() -> None:
    data = batches()
    model, sparse = build("static", example=data[0][0], keep_dense=["last"])
    train(model, sparse, data)
    report = sparse.report()
    assert [layer.weights for layer in report.layers] == [144, 144]
    assert report.density == pytest.approx(58 / 288) and sum(layer.active for layer in report.layers) == 58
    positions = small.SIZE**2
    assert report.inference_share == report.train_share == pytest.approx((positions * 58 + 24) / (positions * 288 + 24))
    assert "58 of" in str(report)
    average = copy.deepcopy(model)
    nn.init.ones_(average.conv1.weight)
    sparse.apply_masks(torch.optim.swa_utils.AveragedModel(average))
    sparse.apply_masks(average)
    assert torch.equal(average.conv1.weight != 0, sparse.masks["conv1.weight"])


def test_a_network_of_another_precision_is_counted_too() -> None:
    images = batches()[0][0]
    sparse = build("static", net=SmallNet().bfloat16(), example=images.bfloat16())[1]
    assert sparse.report().inference_share == build("static", example=images)[1].report().inference_share


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"method": "grannet"}, "unknown method 'grannet': did you mean 'granet'"),
    ({"sparsity": 90}, "sparsity must be in"),
    ({"sparsity": "0.9"}, "sparsity must be in"),
    ({"start_sparsity": 0.9}, "lower it (start_sparsity=0) or raise sparsity"),
    ({"total_steps": 12.5}, "must be a whole number"),
    ({"prune_rat": 0.3}, "has no setting 'prune_rat': did you mean 'prune_rate'"),
    ({"method": "deep_r", "noise": float("nan")}, "method 'deep_r': noise must be a finite number, got nan"),
    (
        {"method": "sr_ste", "sparsity": 0.5, "sparse_decay": float("inf")},
        "sparse_decay must be a finite number, got inf",
    ),
    ({"method": "top_kast", "extra": float("inf")}, "method 'top_kast': extra must be a finite number, got inf"),
    ({"method": "grasp", "temperature": float("nan")}, "method 'grasp': temperature must be a finite number, got nan"),
    ({"net": nn.Sequential(nn.ReLU())}, "has no convolution and no linear layer"),
    ({"keep_dense": ["stem.*"]}, "'stem.*' matches no weight"),
    ({"optimizer": torch.optim.SGD(SmallNet().parameters(), lr=0.1)}, "the optimiser does not hold conv1.weight"),
    ({"example": [1, 2]}, "example must be a tensor, a batch of inputs, got list"),
    ({"method": "snip", "data": 3}, "data must be a loader of batches (inputs, labels), got int"),
    ({"total_steps": 2}, "lower it with update_every=N, or train longer with a larger total_steps"),
    ({"method": "set", "update_every": 0}, "steps_per_epoch=len"),
    ({"method": "snfs", "update_every": 0}, "steps_per_epoch=len"),
    (
        {
            "method": "one_shot",
            "pattern": "filters",
            "net": nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.Conv2d(4, 3, 1)),
        },
        "treats the rows of a weight as filters",
    ),
    ({"method": "snip"}, "give data=loader"),
    ({"method": "synflow"}, "give example=inputs"),
    ({"method": "snip", "data": []}, "data yields no batch"),
    ({"method": "snip", "data": [{"pixels": 1}]}, "must yield pairs of tensors"),
    ({"method": "snip", "data": [(torch.zeros(4), torch.tensor(1))]}, "put a DataLoader around it"),
    ({"method": "grasp", "data": [(torch.zeros(4, 2), torch.zeros(4, 3))]}, "a class number for each"),
    ({"method": "imp", "steps_per_epoch": 3}, "repeats the training"),
    ({"method": "small_dense"}, "builds a narrower network"),
]


@pytest.mark.parametrize(("asked", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_what_cannot_be_done_is_refused_before_anything_changes(asked: dict[str, Any], message: str) -> None:
    model = asked.get("net") or SmallNet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=re.escape(message)):
        build(
            **{"net": model, "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1)), *model.parameters()]), **asked}
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Twice(SmallNet):
    """A network that uses a layer's weight outside the layer as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + nn.functional.conv2d(x, self.conv1.weight, padding=1)[:, :2])


def test_a_network_that_two_counts_price_differently_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"the cost of this backbone cannot be counted: .* in conv1\.weight; a weight that is also used",
    ):
        build("static", net=Twice(), example=batches()[0][0])


def test_modes_of_modules_and_the_random_state_are_left_as_they_were() -> None:
    """Also where the scoring is refused."""
    images, model = batches()[0][0], SmallNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.bn2.eval()
    torch.manual_seed(7)
    expected = torch.rand(1)
    for asked in ({"method": "static"}, {"method": "snip", "data": batches()}):
        if "data" in asked:  # a loader that draws an order
            images_and_labels = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches(), strict=True)))
            asked = {**asked, "data": torch.utils.data.DataLoader(images_and_labels, batch_size=8, shuffle=True)}
        torch.manual_seed(7)
        Sparsifier(model, optimizer, sparsity=0.5, total_steps=12, example=images, **asked)
        assert torch.equal(torch.rand(1), expected)
        assert [module.training for module in (model, model.bn1, model.bn2)] == [True, True, False]
    pair = Pair()
    pair.bn1.eval()
    before = copy.deepcopy(pair.state_dict())
    with pytest.raises(UserError, match="returns a tuple"):
        build("snip", pair, data=batches())
    assert not pair.bn1.training and pair.bn2.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.state_dict().items())


def test_depthwise_convolutions_are_pruned_if_asked() -> None:
    def names(**more: Any) -> list[str]:
        net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1))
        return list(build("static", net=net, **more)[1].masks)

    assert names() == ["0.weight", "2.weight"]
    assert names(prune_depthwise=True) == ["0.weight", "1.weight", "2.weight"]


# Somebody's optimiser


def test_gradients_that_the_optimiser_does_not_hold_count_for_nothing() -> None:
    """Nobody clears them, so one infinity among them would end the training."""
    model = SmallNet()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    _, sparse = build("static", model, optimizer=optimizer, keep_dense=["conv*"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for number, (images, labels) in enumerate(batches()):
        loss = nn.functional.cross_entropy(model(images), labels)
        scaler.scale(loss * (float("inf") if number == 3 else 1)).backward()
        sparse.step(scaler, clip_norm=1.0)
        scaler.update()
    assert sparse.training.skipped_steps == 1
    added = nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [added]})
    assert any(parameter is added for parameter in sparse.training.parameters), "is clipped with the others"


def test_learned_parameters_and_the_rate_are_those_of_the_weights_group() -> None:
    """Many recipes put norms and biases first, without decay."""
    model = SmallNet()
    groups = [[p for p in model.parameters() if (p.dim() > 1) is large] for large in (False, True)]
    rates = ({"lr": 0.01, "weight_decay": 0.0}, {"lr": 0.1, "weight_decay": 0.05})
    optimizer = torch.optim.SGD([{"params": group, **rate} for group, rate in zip(groups, rates, strict=True)])
    _, sparse = build("str", model, optimizer=optimizer)
    assert [optimizer.param_groups[-1][key] for key in ("lr", "weight_decay")] == [0.1, 0.05]
    assert sparse.training.view().lr == 0.1


def test_gradients_shown_are_those_before_the_optimiser_changes_them() -> None:
    ends = []
    for foreach in (True, False):
        model = SmallNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=foreach)
        model, sparse = build("mest", model, optimizer=optimizer, gradient_weight=1.0)
        train(model, sparse, batches())
        ends.append(bits(model, sparse))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_state_that_lies_inside_a_wrapper_or_holds_weights_is_minded() -> None:
    model = SmallNet()
    optimizer = timm.optim.create_optimizer_v2(model, "lookahead_momentum", lr=0.1, momentum=0.9)
    model, sparse = build("rigl", model, optimizer=optimizer)
    train(model, sparse, batches())
    for name, weight in sparse.training.maskset.weights.items():
        state = [value for value in inner_state(optimizer)[weight].values() if value.shape == weight.shape]
        assert state and all(not bool(value[~sparse.masks[name]].any()) for value in state)
    other = SmallNet()
    madgrad = timm.optim.create_optimizer_v2(other, "madgrad", lr=0.01)
    with pytest.raises(UserError, match="MADGRAD keeps weights in its state"):
        build("top_kast", other, optimizer=madgrad)
    other, sparse = build("static", other, optimizer=madgrad)
    train(other, sparse, batches(1))
    before = [parameter.clone() for parameter in other.parameters()]
    sparse.training.forget()  # as zeros, the weights it began from would pull all weights there
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sparse.step()
    after = list(other.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(after, before, strict=True))


def test_whether_a_step_waits_follows_what_the_optimiser_is_now() -> None:
    away = torch.empty(1, device="meta")
    optimizer = torch.optim.SGD(SmallNet().parameters(), lr=0.1, fused=True)
    assert not waits_for(optimizer, away)
    optimizer.load_state_dict(torch.optim.SGD(SmallNet().parameters(), lr=0.1).state_dict())
    assert waits_for(optimizer, away)
    assert waits_for(torch.optim.SGD(SmallNet().parameters(), lr=0.1, momentum=0.9, dampening=0.5, fused=True), away)


def test_no_dense_gradient_is_charged_once_the_schedule_has_ended() -> None:
    model, sparse = build("snfs", example=batches()[0][0])
    train(model, sparse, batches(12))
    assert sparse.training.price_step(due=False)[2] > 0
    train(model, sparse, batches(1))
    assert sparse.training.price_step(due=False)[2] == 0


def test_an_update_left_undone_by_the_last_planned_step_comes_with_the_next() -> None:
    model, sparse = build("snfs")
    train(model, sparse, batches(11))
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    model.get_parameter("fc.weight").grad = torch.full((3, 8), float("inf"))
    sparse.step()
    assert sparse.training.update_pending
    train(model, sparse, batches(2))
    assert not sparse.training.update_pending and sparse.training.skipped_steps == 1


def test_as_many_batches_are_looked_at_as_a_method_of_moments_asks_for() -> None:
    _, sparse = build("sis", fine_tune=False, score_batches=4, data=batches(4))
    assert sparse.training.samples is not None and len(sparse.training.samples) == 4 * 8


def test_ranks_agree_in_a_group_without_a_cpu() -> None:
    """As `init_process_group("nccl")` makes it."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("cuda:fake", rank=0, world_size=2, store=FakeStore())
    try:
        with (
            pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA")
            if not torch.cuda.is_available()
            else nullcontext()
        ):
            announce({"a": 1})
    finally:
        torch.distributed.destroy_process_group()


# Taking over, letting go


def test_a_step_without_gradients_and_a_state_of_another_method_are_refused() -> None:
    _, sparse = build("granet")
    with pytest.raises(UserError, match=r"call loss\.backward"):
        sparse.step()
    with pytest.raises(UserError, match="the state is of another method: 'rigl', and here it is 'granet'"):
        sparse.load_state_dict(build("rigl")[1].state_dict())
    with pytest.raises(UserError, match="is not copied"):
        copy.deepcopy(sparse)
    with pytest.raises(UserError, match="another sparsity"):
        sparse.load_state_dict(build("granet", sparsity=0.7)[1].state_dict())
    with pytest.raises(UserError, match=r"settings: {'update_every': 4}, and here it is {'update_every': 3};"):
        sparse.load_state_dict(build("granet", update_every=4)[1].state_dict())


def test_an_optimiser_that_was_taken_over_does_the_same_under_a_scheduler() -> None:
    model, sparse = build("rigl")
    other, taken = build("rigl")
    taken.take_over()
    optimizer = taken.training.optimizer
    schedules = [torch.optim.lr_scheduler.StepLR(of.training.optimizer, 4) for of in (sparse, taken)]
    for images, labels in batches():
        nn.functional.cross_entropy(model(images), labels).backward()
        sparse.step()

        def closure(images: Tensor = images, labels: Tensor = labels) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(other(images), labels)
            loss.backward()
            return loss

        assert optimizer.step(closure) is not None
        for schedule in schedules:
            schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(bits(model, sparse), bits(other, taken), strict=True))


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.S)


def make_names(**more: Any) -> dict[str, Any]:
    """Return what the examples of the documents take for granted: a network of torchvision's and a loader."""
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=3)
    images = torch.randn(4, 3, 32, 32)
    return {
        "torch": torch,
        "Sparsifier": Sparsifier,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        "criterion": nn.CrossEntropyLoss(),
        "loader": [(images, torch.arange(4) % 3)] * 10,
        "epochs": 2,
        **more,
    }


def run_block(block: str, names: dict[str, Any], folder: Path) -> None:
    """Import an example as it stands, but for a setting that makes it short, and add what it defines to `names`."""
    file = folder / f"example_{len(names)}.py"
    file.write_text(block.replace('method="granet"', 'method="granet", update_every=4'))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update(names)
    spec.loader.exec_module(module)
    names.update({name: value for name, value in vars(module).items() if not name.startswith("__")})


def test_the_examples_of_the_documents_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = make_names()
    for block in BLOCKS[:3]:
        run_block(block, names, tmp_path)
    assert names["sparse"].report().density == pytest.approx(0.1, abs=1e-5) and names["sparse"].training.updates == 4
    readme = [b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)]
    names = make_names()
    run_block(readme[0], names, tmp_path)
    assert names["sparse"].training.step == 20


def test_lightning_trains_the_example(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="the example of Lightning needs its package")
    names = make_names(lightning=lightning)
    run_block(BLOCKS[3], names, tmp_path)
    module = names["Classifier"](names["model"])
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(names["loader"], batch_size=None))
    assert module.sparse.training.step == 20 and zeros_hold(module.sparse)
    assert module.sparse.report().density == pytest.approx(0.1, abs=1e-5)


def test_the_trainer_of_hugging_face_trains_the_example(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the example of the Trainer needs transformers")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    names = make_names(transformers=transformers)
    run_block(BLOCKS[4], names, tmp_path)
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": n % 3} for n in range(16)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=4, max_grad_norm=0.0, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = names["SparseTrainer"](transformers.ViTForImageClassification(config), arguments, train_dataset=rows)
    trainer.train()
    assert trainer.sparse.training.step == 20 and zeros_hold(trainer.sparse)
    assert trainer.sparse.report().density == pytest.approx(0.1, abs=0.001)


def test_a_step_of_the_optimiser_by_itself_is_refused_until_it_is_released() -> None:
    model, sparse = build("granet")
    optimizer, (images, labels) = sparse.training.optimizer, batches(1)[0]
    before = bits(model, sparse)
    nn.functional.cross_entropy(model.eval()(images), labels).backward()
    with pytest.raises(UserError, match=r"call sparse.step\(\) in place of optimizer.step\(\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model, sparse), strict=True))
    _, again = build("rigl", model, optimizer=optimizer)
    again.step()
    again.take_over()
    again.release()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert again.training.step == 1 and not zeros_hold(again)
    again.release()  # once more is no harm
    with pytest.raises(UserError, match="let go of its optimiser"):
        again.take_over()
    model, first = build("granet")
    optimizer = first.training.optimizer
    first.take_over()
    _, second = build("rigl", model, optimizer=optimizer)  # it replaces the first, which cannot step through it
    train(model, second, [(images, labels)])
    assert (first.training.step, second.training.step) == (0, 1) and zeros_hold(second)
    first.release()  # of what it no longer holds
    nn.functional.cross_entropy(model(images), labels).backward()
    with pytest.raises(UserError, match=r"in place of optimizer.step\(\)"):
        optimizer.step()
    second.take_over()
    optimizer.zero_grad()
    assert optimizer.step(lambda: None) is None and second.training.step == 1  # a loop that skips a batch


class Pair(SmallNet):
    """A network that returns more than its logits."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def test_a_network_that_returns_more_than_logits_is_told_so_where_these_are_scored() -> None:
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="returns a tuple, and scores are taken of a tensor of logits"):
        build("snip", model, optimizer=optimizer, data=batches())
    optimizer.step()  # it stays its owner's
