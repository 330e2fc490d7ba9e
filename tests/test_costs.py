"""What a network costs: golden numbers, hand-worked networks and the published shares of the papers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmark.costs import count_costs, scoring_cost
from benchmark.errors import UserError
from benchmark.flops.charges import grow_always, grow_at_times, prune_by_points, prune_by_steps, train_share
from benchmark.flops.counting import Backbone, count_macs, count_operations, describe_network
from benchmark.flops.layouts import Layout, Question, lay_first_dense, lay_uniform
from benchmark.networks.prunable import find_layers
from methods.core import Scoring, erk
from tests.small import SmallNet, make_page


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


def test_dense_resnet50_has_the_published_cost(resnet50):
    dense = resnet50.costs.dense
    assert dense == 4_089_184_256
    assert 2 * dense == pytest.approx(8.2e9, rel=0.01)
    assert 3 * 2 * dense * 32_000 * 4096 == pytest.approx(3.2e18, rel=0.01)
    assert resnet50.weights == 25_502_912


def test_rigls_counter_is_that_of_products_sums_biases_and_activations(resnet50):
    """Written from RigL's counter: v products and v - 1 sums per output, a sum for the bias, a product for the ReLU."""
    counts = erk_counts(resnet50, 0.9)
    by_hand = 0.0
    for name, shape in resnet50.shapes.items():
        positions = resnet50.costs.per_weight[name]  # of the output, each a product with every active weight
        vector = counts[name] / shape[0]
        by_hand += positions * shape[0] * (vector + (vector - 1) + 1 + 1)
    assert count_operations(resnet50).forward(counts) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("sparsity", "expected"), [(0.8, 0.4146), (0.9, 0.2429), (0.95, 0.1229), (0.965, 0.0864), (0.98, 0.0500)]
)
def test_erk_shares_of_resnet50(resnet50, sparsity, expected):
    rigls, macs = shares(resnet50, erk_counts(resnet50, sparsity))
    assert rigls == pytest.approx(expected, abs=1e-4)
    assert macs == pytest.approx(expected, abs=1.5e-3)


@pytest.mark.parametrize(
    ("sparsity", "first_dense", "expected"),
    [
        (0.8, True, 0.2241),
        (0.8, False, 0.2011),
        (0.9, True, 0.1272),
        (0.9, False, 0.1012),
        (0.95, True, 0.0787),
        (0.965, True, 0.0641),
    ],
)
def test_uniform_shares_of_resnet50(resnet50, sparsity, first_dense, expected):
    layout = (lay_first_dense if first_dense else lay_uniform)(Question(resnet50, None, 0, {}))
    rigls, macs = shares(resnet50, layout.counts_at(sparsity))
    assert rigls == pytest.approx(expected, abs=1e-4)
    assert macs == pytest.approx(expected, abs=1.5e-3)


@pytest.mark.parametrize(("sparsity", "expected"), [(0.8, 0.4165), (0.9, 0.2454), (0.95, 0.1258)])
def test_rigl_training_cost_matches_its_formula(resnet50, sparsity, expected):
    """(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1) of RigL's Appendix H: ΔT sparse steps and one with dense gradients."""
    layout = Layout(resnet50, lambda sparsity: erk_counts(resnet50, sparsity))
    charges = grow_at_times(sparsity, {"every": 100})
    sparse, dense = resnet50.costs.forward(erk_counts(resnet50, sparsity)), resnet50.costs.dense
    by_hand = (3 * sparse * 100 + 2 * sparse + dense) / (3 * dense * 101)
    assert train_share(charges, layout, resnet50, count_macs) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(expected, abs=1.5e-3)
    assert train_share(charges, layout, resnet50, count_operations) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("sparsity", "published", "integrated"), [(0.8, 0.5596, 0.5695), (0.9, 0.5045, 0.5156)])
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


@pytest.mark.parametrize(("sparsity", "expected"), [(0.8, 0.6097), (0.9, 0.4952)])
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


def test_depthwise_convolutions_cost_what_their_weights_do_and_stay_dense():
    model = timm.create_model("mobilenetv3_small_050")
    layers = find_layers(model, make_page())
    costs = count_costs(model, layers, (3, 32, 32))
    depthwise = [layer for layer in layers if ".conv_dw." in layer.name]
    assert len(depthwise) == 11
    assert not any(layer.prunable for layer in depthwise)
    for layer in depthwise:
        numel = model.get_parameter(layer.name).numel()  # out x 1 x k x k: groups counted once
        assert costs.layers[layer.name] % numel == 0
        assert costs.layers[layer.name] // numel <= 16 * 16
    assert all(layer.prunable for layer in find_layers(model, make_page(prune_depthwise=True)))


def test_tied_weights_are_counted_once_and_charged_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.relu(self.first(x.flatten(1))))

    model = Tied()
    layers = find_layers(model, make_page())
    assert [layer.name for layer in layers] == ["first.weight"]
    costs = count_costs(model, layers, (1, 2, 2))
    assert costs.dense == 32
    assert costs.forward({"first.weight": 3}) == 6


def test_a_heavy_operator_that_cannot_be_counted_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v).mean(1)

    model = Attention()
    with pytest.raises(UserError, match="scaled_dot_product"):
        count_costs(model, find_layers(model, make_page()), (4, 3, 3))


def test_a_backbone_that_cannot_take_the_image_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 7))
    with pytest.raises(UserError, match="cannot take images"):
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
