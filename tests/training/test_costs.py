"""What a network costs: golden numbers, hand-worked networks and the published shares of the papers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmark.base.errors import UserError
from benchmark.config.cells import plan_cells
from benchmark.config.pages import load_page
from benchmark.data.sets import Data
from benchmark.networks.build import build, confirm, make_network, takes_size
from benchmark.networks.costs import FREE, count_costs, scoring_cost, sum_of_products
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.networks.witness import recount
from benchmark.recount.counting import (
    Backbone,
    Layout,
    Question,
    count_macs,
    count_operations,
    describe_network,
    grow_always,
    grow_at_times,
    lay_first_dense,
    lay_uniform,
    prune_by_points,
    prune_by_steps,
    train_share,
)
from methods.core import Scoring, erk
from tests.harness.small import SmallImages, SmallNet, make_page


@pytest.fixture(scope="module")
def resnet50() -> Backbone:
    """ResNet-50 for ImageNet: its costs, and the shapes of its weights."""
    model = timm.create_model("resnet50")
    layers = find_layers(model, make_page())
    return describe_network(model, layers, count_costs(model, layers, (3, 224, 224)))


def shares(backbone: Backbone, counts: Mapping[str, int]) -> tuple[float, float]:
    """What a forward pass costs by RigL's own counter and in multiply-adds alone, of the dense network's."""
    rigls, macs = count_operations(backbone), count_macs(backbone)
    return rigls.forward(counts) / rigls.dense, macs.forward(counts) / macs.dense


def erk_counts(backbone: Backbone, sparsity: float) -> dict[str, int]:
    return erk(backbone.shapes, round((1 - sparsity) * backbone.weights))


def test_small_network_by_hand():
    model = SmallNet()
    costs = count_costs(model, find_layers(model, make_page()), (2, 6, 6))
    assert costs.layers == {"conv1.weight": 36 * 144, "conv2.weight": 36 * 144, "fc.weight": 24}
    assert costs.dense == 36 * 288 + 24
    assert costs.fixed == 0
    assert costs.forward({"conv1.weight": 10, "conv2.weight": 0, "fc.weight": 3}) == 363
    assert costs.omitted["batch_norm"] > 0


def test_attention_and_mlp_of_the_vision_transformer_page_by_hand():
    """64 patches of 48 numbers and a token; 12 blocks of qkv, proj, fc1, fc2, three heads of 64; 10 classes."""
    page = load_page("cifar10_vit_tiny")
    images = SmallImages()
    model, seen = make_network(page, Data("cifar10", tuple("0123456789"), 3, 32, images, None, images, "0"))
    layers = find_layers(model, page)
    costs = count_costs(model, layers, (3, 32, 32))
    confirm(costs, seen)
    block = 192 * 576 + 192 * 192 + 2 * 192 * 768
    assert sum(weight.numel() for weight in prunable_weights(model, layers).values()) == 48 * 192 + 12 * block + 1920
    assert costs.fixed == 12 * 2 * 3 * 65 * 65 * 64
    assert costs.dense == costs.fixed + 64 * 48 * 192 + 12 * 65 * block + 1920
    assert {*costs.per_weight.values()} == {64, 65, 1}


def test_dense_resnet50_has_the_published_cost(resnet50):
    dense = resnet50.costs.dense
    assert dense == 4_089_184_256
    assert 2 * dense == pytest.approx(8.2e9, rel=0.01)
    assert 3 * 2 * dense * 32_000 * 4096 == pytest.approx(3.2e18, rel=0.01)
    assert resnet50.weights == 25_502_912


@pytest.mark.parametrize(("sparsity", "expected"), [(0.8, 0.4146), (0.9, 0.2429), (0.98, 0.0500)])
def test_erk_shares_of_resnet50(resnet50, sparsity, expected):
    rigls, macs = shares(resnet50, erk_counts(resnet50, sparsity))
    assert rigls == pytest.approx(expected, abs=1e-4)
    assert macs == pytest.approx(expected, abs=1.5e-3)


@pytest.mark.parametrize(
    ("sparsity", "first_dense", "expected"), [(0.8, True, 0.2241), (0.8, False, 0.2011), (0.965, True, 0.0641)]
)
def test_uniform_shares_of_resnet50(resnet50, sparsity, first_dense, expected):
    layout = (lay_first_dense if first_dense else lay_uniform)(Question(resnet50, None, 0, {}))
    rigls, macs = shares(resnet50, layout.counts_at(sparsity))
    assert rigls == pytest.approx(expected, abs=1e-4)
    assert macs == pytest.approx(expected, abs=1.5e-3)


@pytest.mark.parametrize(("sparsity", "expected"), [(0.8, 0.4165)])
def test_rigl_training_cost_matches_its_formula(resnet50, sparsity, expected):
    """(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1) of RigL's Appendix H: ΔT sparse steps and one with dense gradients."""
    layout = Layout(resnet50, lambda sparsity: erk_counts(resnet50, sparsity))
    charges = grow_at_times(sparsity, {"every": 100})
    sparse, dense = resnet50.costs.forward(erk_counts(resnet50, sparsity)), resnet50.costs.dense
    by_hand = (3 * sparse * 100 + 2 * sparse + dense) / (3 * dense * 101)
    assert train_share(charges, layout, resnet50, count_macs) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(expected, abs=1.5e-3)
    assert train_share(charges, layout, resnet50, count_operations) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("sparsity", "published", "integrated"), [(0.8, 0.5596, 0.5695)])
def test_gmp_training_cost_is_integrated_over_its_schedule(resnet50, sparsity, published, integrated):
    """Dense to step 10k, cubic every 1,000 to 25k of 32k; uniform layers, first convolution dense.

    RigL's published figure is the mean over the 33 grid points 0, 1k .. 32k, so the end counts once too often; the
    sum over the 32,000 steps really taken is 0.01 higher. Both are reproduced.
    """
    layout = lay_first_dense(Question(resnet50, None, 0, {}))
    schedule = {"start": 10_000, "end": 25_000, "every": 1_000, "steps": 32_000}
    points, steps = prune_by_points(sparsity, schedule), prune_by_steps(sparsity, schedule)
    assert len(points) == 33 and sum(charge.steps for charge in steps) == 32_000
    assert points[10].sparsity == 0 and points[25].sparsity == points[-1].sparsity == sparsity
    assert train_share(points, layout, resnet50, count_operations) == pytest.approx(published, abs=1e-4)
    assert train_share(steps, layout, resnet50, count_macs) == pytest.approx(integrated, abs=1e-4)


@pytest.mark.parametrize(("sparsity", "expected"), [(0.8, 0.6097)])
def test_dense_gradients_at_every_step_cost_what_snfs_costs(resnet50, sparsity, expected):
    layout = Layout(resnet50, lambda sparsity: erk_counts(resnet50, sparsity))
    charges = grow_always(sparsity, {})
    sparse, _ = shares(resnet50, erk_counts(resnet50, sparsity))
    assert (2 * sparse + 1) / 3 == pytest.approx(expected, abs=1e-4)
    assert train_share(charges, layout, resnet50, count_operations) == pytest.approx(expected, abs=1e-4)
    assert train_share(charges, layout, resnet50, count_macs) == pytest.approx(expected, abs=1.5e-3)


def test_attention_products_are_counted_and_never_pruned():
    """14.6 % of ViT-Tiny's cost is in attention's products; fused attention would hide it."""
    model = timm.create_model("vit_tiny_patch16_224")
    layers = find_layers(model, make_page())
    costs = count_costs(model, layers, (3, 224, 224))
    tokens, heads, dim, depth = 197, 3, 64, 12
    assert costs.fixed == depth * 2 * heads * tokens * tokens * dim
    assert costs.fixed / costs.dense == pytest.approx(0.143, abs=0.003)
    assert all(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))  # as it was
    assert costs.forward({layer.name: 0 for layer in layers}) == costs.fixed


class Odd(nn.Module):
    """A function of (module, image) with the parts that it needs, and a classifier of four features: 12 macs."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], part: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.part = function, part
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.function(self, x))


class Product(torch.autograd.Function):
    """A product that a trace shows as a call of Python alone."""

    @staticmethod
    def forward(ctx, first, second):
        return first @ second


def mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def count_both(model: nn.Module) -> tuple[int, int]:
    """Return both counts of a network on a 6x6 image of four channels, the classifier's 12 left out."""
    costs = count_costs(model, find_layers(model, make_page()), (4, 6, 6))
    seen = recount(model, (4, 6, 6))
    confirm(costs, seen)
    return costs.dense - 12, seen.total - 12


def through(part: nn.Module) -> Odd:
    return Odd(lambda m, x: mean(m.part(x)), part)


COUNTED = {  # by hand: positions x weights of a convolution, sums x their length of a product
    "padded by name": (through(nn.Conv2d(4, 4, 3, padding="same")), 36 * 144),
    "even kernel, groups": (through(nn.Conv2d(4, 4, 4, padding="same", groups=2)), 36 * 128),
    "padding reflect": (through(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), 36 * 144),
    "transposed": (through(nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2)), 36 * 72),
    "fused attention": (Odd(lambda m, x: attend(*[tokens(x)] * 3).mean(1)), 2 * 36 * 36 * 4),
    "a vector": (Odd(lambda m, x: (mean(x) @ m.weight[0])[:, None].expand(1, 4)), 4),
    "the first side broadcast": (Odd(lambda m, x: (mean(x) @ m.weight.expand(5, 4, 4)).mean(0)), 5 * 16),
    "einsum": (Odd(lambda m, x: mean(torch.einsum("bchw,cd->bdhw", x, m.weight))), 36 * 16),
    "outer product and sum": (Odd(lambda m, x: mean((x[:, None] * m.weight[..., None, None]).sum(2))), 36 * 16),
}


@pytest.mark.parametrize("name", COUNTED)
def test_whatever_multiplies_and_adds_is_counted_and_both_counters_agree(name):
    model, by_hand = COUNTED[name]
    assert count_both(model) == (by_hand, by_hand)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Odd(lambda m, x: m.part(tokens(x))[0].mean(1), nn.LSTM(4, 4)), "aten::lstm"),
        (Odd(lambda m, x: m.part(mean(x), mean(x)), nn.Bilinear(4, 4, 4)), "aten::bilinear"),
        (Odd(lambda m, x: torch.fft.fft2(x).abs().mean((2, 3))), "aten::fft_fft2"),
        (Odd(lambda m, x: Product.apply(mean(x), m.weight)), "prim::PythonOp.Product"),
        (Odd(lambda m, x: torch.einsum("bi,ij,jk->bk", mean(x), m.weight, m.weight)), "an einsum of 3 tensors"),
    ],
)
def test_an_operator_that_is_neither_counted_nor_known_to_be_free_is_refused_by_name(model, named):
    with pytest.raises(UserError, match=f"cannot be counted: .*{named}"):
        count_both(model)


def test_the_names_of_free_operators_are_torchs_and_none_is_one_that_torch_counts():
    spelt = ("{}", "{}_", "_{}", "__{}__")
    assert [name for name in FREE if not any(hasattr(torch.ops.aten, form.format(name)) for form in spelt)] == []
    assert FREE.isdisjoint(operator.__name__.strip("_") for operator in flop_registry)


@pytest.mark.parametrize(
    ("terms", "result", "shapes", "macs"),
    [
        (["...ij", "...jk"], "...ik", [[2, 6, 3, 4], [6, 4, 5]], 2 * 6 * 3 * 4 * 5),
        (["bhwc", "hkc"], "bhwk", [[2, 3, 4, 7], [3, 6, 7]], 2 * 3 * 4 * 7 * 6),
        (["ik", "jk"], "j", [[2, 3], [4, 3]], 12),  # i is summed before
        (["nchw", "c"], "nchw", [[1, 3, 4, 4], [3]], 0),  # element by element
        (["i", "j"], "ij", [[3], [4]], 12),  # an outer product
        (["abc", "abd"], "acd", [[99, 101, 7], [99, 101, 13]], 99 * 101 * 7 * 13),  # more digits than fvcore's four
    ],
)
def test_an_einsum_costs_what_torch_does_to_the_last_digit(terms, result, shapes, macs):
    assert sum_of_products(terms, result, shapes) == macs


def test_a_weight_that_is_also_used_from_outside_its_layer_is_refused():
    conv = nn.Conv2d(4, 4, 3)
    used_twice = Odd(lambda m, x: mean(m.part(x) + nn.functional.conv2d(x, m.part.weight)), conv)
    with pytest.raises(UserError, match=r"take 4,620 multiply-adds .* a second count .*, in part\.weight"):
        count_both(used_twice)
    assert count_both(Odd(lambda m, x: mean(m.part(m.part(x))), conv)) == ((16 + 4) * 144,) * 2  # called twice


def test_a_narrowed_network_is_counted_twice_as_well(monkeypatch):
    off = iter([0, 1])  # by how much the first count of the full and of the narrowed network is wrong

    def count(*asked):
        costs = count_costs(*asked)
        return dataclasses.replace(costs, dense=costs.dense + next(off))

    monkeypatch.setattr("benchmark.networks.build.count_costs", count)
    (cell,) = plan_cells("small_dense", "0.9", "digits_resnet20", "0", "")
    data = Data("digits", tuple("0123456789"), 1, 8, SmallImages(), None, SmallImages(), "0")
    with pytest.raises(UserError, match="a second count finds"):
        build(cell, data)
    assert list(off) == []


def test_a_weight_used_from_outside_alone_is_priced_and_one_not_used_is_refused():
    model = Odd(lambda m, x: mean(nn.functional.conv2d(x, m.part.weight)), nn.Conv2d(4, 4, 3))
    assert count_both(model) == (16 * 144,) * 2
    costs = count_costs(model, find_layers(model, make_page()), (4, 6, 6))
    assert costs.per_weight == {"part.weight": 16, "fc.weight": 1} and costs.fixed == 0
    with pytest.raises(UserError, match=r"layer part\.weight computes nothing"):
        count_both(Odd(lambda m, x: mean(x), nn.Conv2d(4, 4, 3)))


def test_the_second_count_knows_what_a_factor_is_made_of():
    model = Odd(lambda m, x: mean(x) @ (m.weight - m.weight.mean()).softmax(0) + m.fc.bias.sum())
    seen = recount(model, (4, 6, 6))
    assert seen.factors == {"weight", "fc.weight"}
    assert seen.weights == {"fc.weight": 12}
    assert seen.forward({"fc.weight": 5}) == 16 + 5
    assert model.training


def hold(name: str, size: int) -> int:
    """Assert that both counters agree on a backbone of ten classes, in all and layer by layer; return its cost."""
    arguments = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    model, shape = timm.create_model(name, num_classes=10, **arguments), (3, size, size)
    try:
        layers = find_layers(model, make_page())
    except UserError:  # weights that cannot be masked: the totals agree all the same
        layers = []
    costs = count_costs(model, layers, shape)
    confirm(costs, recount(model, shape))
    return costs.dense


SMALL = "test_ _atto femto pico _nano _xxs xxt _xs tiny _t0 _m0 mini small _s _b0"  # the smallest first
REFUSED = {("sequencer", "aten::lstm")}  # what is neither counted nor free
SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 384)
HUGE = {"deepseek_vit", "gemma4_vit", "mobilenetv5"}  # minutes or gigabytes each


def pick_member(family: str) -> str:
    """Return a small member of one of timm's families, by its name."""
    sizes = list(enumerate(SMALL.split()))
    names = timm.list_models(module=family)
    return min(names, key=lambda name: (min([i for i, size in sizes if size in name], default=99), len(name), name))


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in timm.list_modules() if family not in HUGE])
def test_both_counters_agree_on_every_family(family):
    name = pick_member(family)
    page = make_page(model=name)
    pictures = Data("pictures", ("a", "b", "c"), 3, 0, SmallImages(), None, SmallImages(), "0")
    size = next(size for size in SIZES if takes_size(page, pictures, size))
    try:
        hold(name, size)
    except UserError as error:
        assert (family, re.search(r"aten::\w+|$", str(error))[0]) in REFUSED


def test_both_counters_agree_on_convolutions_padded_by_name_and_on_attention():
    assert hold("convmixer_768_32", 32) == 323_071_488  # by hooks
    hold("test_vit", 160)


def test_a_backbone_that_cannot_take_the_image_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 7))
    with pytest.raises(UserError, match=r"cost on inputs of \(3, 2, 2\) cannot be counted: Calculated padded input"):
        count_costs(model, find_layers(model, make_page()), (3, 2, 2))


class Count(TorchDispatchMode):
    """Counts multiply-adds as they happen, double backward included: an oracle beside fvcore's trace."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.macs += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        return out


def test_scoring_is_charged_what_it_really_computes():
    """One gradient is 3 f_D, and a Hessian-gradient product brings it to 12 f_D: an upper bound that a deep network
    nears, since the first layer needs no input gradient and the last no second derivative."""
    model = nn.Sequential(*[part for _ in range(16) for part in (nn.Linear(32, 32), nn.Tanh())])
    images, labels = torch.randn(4, 32), torch.zeros(4, dtype=torch.long)
    weights = [p for p in model.parameters() if p.ndim > 1]

    def counted(action) -> int:
        counter = Count()
        with counter:
            action()
        return counter.macs

    def loss():
        return nn.functional.cross_entropy(model(images), labels)

    dense = counted(lambda: model(images)) // 4
    first = counted(lambda: torch.autograd.grad(loss(), weights))

    def product():
        grads = torch.autograd.grad(loss(), weights, create_graph=True)
        torch.autograd.grad(sum((g * g.detach()).sum() for g in grads), weights)

    second = counted(product)
    assert scoring_cost(None, dense, 4) == 0
    charged = scoring_cost(Scoring(order=1), dense, 4)
    assert 0.95 * charged < first <= charged
    charged = scoring_cost(Scoring(order=2), dense, 4)
    assert 0.95 * charged < first + second <= charged
