"""The CIFAR networks are the paper's to the weight, and small-dense gets the narrow network that it asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import benchmark.networks.cifar
from benchmark.base.console import describe_missed
from benchmark.base.errors import UserError, reason
from benchmark.config.pages import load_page
from benchmark.config.plugins import find_method
from benchmark.data.sets import Data
from benchmark.networks.build import (
    check_network,
    create_network,
    draw_network,
    is_unsafe,
    make_network,
    model_arguments,
)
from benchmark.networks.cifar import scale
from benchmark.networks.narrow import build_shapes, find_width, narrow_arguments
from benchmark.training.optim import make_optimizer
from tests.harness.small import SmallImages, make_page

NAMES = ("cifar_resnet20", "cifar_vgg19_bn", "cifar_resnet50", "cifar_wrn22_2")

# ResNet-20 by hand, 3x3 = 9: stem 3*16*9; 6 of 16*16*9 on 32x32; 16*32*9 + 5 of 32*32*9 + 16*32 on 16x16;
# 32*64*9 + 5 of 64*64*9 + 32*64 on 8x8; classifier 64*10
STEM, STAGE1, STAGE2, STAGE3 = 432, 13_824, 51_200, 204_800
RESNET20_WEIGHTS = STEM + STAGE1 + STAGE2 + STAGE3 + 640
RESNET20_MACS = (STEM + STAGE1) * 1024 + STAGE2 * 256 + STAGE3 * 64 + 640

GOLDEN = [  # name, classes, prunable weights, multiply-adds of one 32x32 image
    ("cifar_resnet20", 10, 270_896, 40_813_184),
    ("cifar_vgg19_bn", 10, 20_024_000, 398_136_320),
    ("cifar_vgg19_bn", 100, 20_070_080, 398_182_400),
    ("cifar_resnet50", 10, 23_467_712, 1_297_829_888),
    ("cifar_resnet50", 100, 23_652_032, 1_298_014_208),
    # 9 * 48 + 51,200 + 204,800 + 819,200 + 1,280; each stage 51,200 * 1,024: the 3.15e8 FLOPs of RigL's reports
    ("cifar_wrn22_2", 10, 1_076_912, 432 * 1024 + 3 * 51_200 * 1024 + 1280),
]


def count_weights(network: nn.Module) -> int:
    return sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))


def shapes_of(name: str, **model_args: Any) -> nn.Module:
    return build_shapes(lambda: timm.create_model(name, **model_args))


def builder(name: str, **model_args: Any) -> Callable[[float], nn.Module]:
    return lambda width: timm.create_model(name, **narrow_arguments(name, model_args, width))


@pytest.mark.parametrize(("name", "classes", "weights", "macs"), GOLDEN)
def test_weights_and_macs_are_the_papers_to_the_unit(name, classes, weights, macs):
    """And of the parameters beside them: no bias but the classifier's, no gain of a batch norm that starts at zero."""
    network = timm.create_model(name, num_classes=classes).eval()
    flops = FlopCountAnalysis(network, torch.zeros(1, 3, 32, 32)).unsupported_ops_warnings(False).by_operator()
    assert count_weights(network) == weights
    assert flops["conv"] + flops["linear"] == macs
    assert GOLDEN[0][2:] == (RESNET20_WEIGHTS, RESNET20_MACS)
    assert all(module.bias is None for module in network.modules() if isinstance(module, nn.Conv2d))
    assert (network.get_classifier().bias is None) == (name == "cifar_resnet50")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize("name", NAMES)
def test_timm_lists_and_describes_the_networks_and_logits_are_the_classifier_of_the_mean_feature(name):
    torch.manual_seed(0)
    network = timm.create_model(name, width=0.1).eval()
    images = torch.randn(2, 3, 32, 32)
    features = network.forward_features(images)
    pooled = network.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.flatten(2).mean(2))
    torch.testing.assert_close(network(images), network.get_classifier()(pooled))
    assert name in timm.list_models("cifar_*")
    assert network.default_cfg["input_size"] == (3, 32, 32)
    first = network.get_submodule(network.default_cfg["first_conv"])
    assert any(module.weight.shape[1] == 3 for module in first.modules() if isinstance(module, nn.Conv2d))
    assert network.get_submodule(network.default_cfg["classifier"]) is network.get_classifier()


def test_vgg_starts_kaiming_normal_over_outputs_and_small_in_the_classifier():
    torch.manual_seed(0)
    network = timm.create_model("cifar_vgg19_bn", num_classes=100)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for conv in convolutions[1:]:  # the first has 1,728 weights, too few for a tight bound
        expected = math.sqrt(2 / (conv.out_channels * 9))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(conv.weight.mean().item()) < 0.02 * expected
    # the one layer among the wide ones whose fan_in differs: 64 inputs, 128 outputs
    assert (convolutions[2].in_channels, convolutions[2].out_channels) == (64, 128)
    assert network.get_classifier().weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.get_classifier().bias.any()


def test_resnet20_starts_kaiming_normal_over_inputs_and_resnet50_uniform_as_pytorch_has_it():
    torch.manual_seed(0)
    for module in timm.create_model("cifar_resnet50").modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 10_000:
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.99 * bound < module.weight.abs().max().item() <= bound
    network = timm.create_model("cifar_resnet20")
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
    assert network.get_classifier().weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.1)


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(64, 1.0, 64), (64, 0.5, 32), (64, 0.465, 30), (64, 0.001, 1), (3, 0.5, 2), (5, 0.5, 3), (64, 2.1, 134)],
)
def test_widths_round_to_the_nearest_channel(channels, width, expected):
    assert scale(channels, width) == expected


def test_width_multiplies_every_hidden_channel_count_and_keeps_the_expansion_of_a_bottleneck():
    vgg = shapes_of("cifar_vgg19_bn", width=0.5)
    channels = [module.out_channels for module in vgg.modules() if isinstance(module, nn.Conv2d)]
    assert channels == [32] * 2 + [64] * 2 + [128] * 4 + [256] * 8
    network = shapes_of("cifar_resnet50", width=0.465)  # 64, 128, 256, 512 -> 30, 60, 119, 238
    widest = [
        max(module.out_channels for module in block.modules() if isinstance(module, nn.Conv2d))
        for block in network.body.modules()
        if isinstance(block, benchmark.networks.cifar.Bottleneck)
    ]
    assert widest == [120] * 3 + [240] * 4 + [476] * 6 + [952] * 3


@pytest.mark.parametrize("width", [0, -0.5, float("nan")])
def test_a_width_that_is_not_positive_or_another_pooling_is_refused(width):
    with pytest.raises(UserError, match="width must be positive"):
        timm.create_model("cifar_resnet20", width=width)
    with pytest.raises(UserError, match="width must be positive"):
        narrow_arguments("resnet18", {}, width)
    with pytest.raises(UserError, match="global_pool='max'"):
        timm.create_model("cifar_resnet20", global_pool="max")


def test_channels_last_is_left_off_where_it_would_corrupt_memory():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not is_unsafe(timm.create_model("cifar_resnet20"), cpu)  # its narrowest projection has 16 inputs
    narrow = timm.create_model("cifar_resnet20", width=0.3)
    assert is_unsafe(narrow, cpu)
    assert not is_unsafe(narrow, gpu)
    assert not is_unsafe(timm.create_model("cifar_vgg19_bn", width=0.1), cpu)


# -- what a page says of the initial weights and of the decay ----------------------------------------------------------


def test_the_imagenet_page_draws_and_decays_as_the_authors_code():
    """There: kaiming_normal_ with fan_in for every convolution; no decay where "bn" is in the name."""
    page = load_page("imagenet_resnet50")
    arguments = {"num_classes": 1000, **page.model_args}
    network = draw_network(page, arguments, seed=0)
    usual = draw_network(dataclasses.replace(page, conv_init="network"), arguments, seed=0)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in, fan_out = module.weight[0].numel(), module.weight.numel() // module.in_channels
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.02), name
            assert float(usual.get_parameter(f"{name}.weight").detach().std()) == pytest.approx(
                (2 / fan_out) ** 0.5, rel=0.02
            )
    assert torch.equal(network.fc.weight, usual.fc.weight)
    groups = make_optimizer(page, network).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.0 if "bn" in name else 1e-4), name
    assert decay[id(network.layer1[0].downsample[1].weight)] == decay[id(network.fc.bias)] == 1e-4
    off = dataclasses.replace(page, no_decay=[], decay_norm_and_bias=False)
    groups = make_optimizer(off, network).param_groups
    assert {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]} == {True: 1e-4, False: 0.0}


def test_a_part_of_no_name_is_refused_with_both_ways_out():
    network = timm.create_model("cifar_resnet20")
    page = load_page("cifar10_resnet20", {"no_decay": ["norm"]})
    with pytest.raises(
        UserError, match=r"no parameter of cifar_resnet20 has 'norm' in its name: .*no_decay=\[\] decay_"
    ):
        make_optimizer(page, network)


# -- find_width --------------------------------------------------------------------------------------------------------


def linear(width: float) -> nn.Module:
    return nn.Linear(8, scale(10, width), bias=False)  # 8 weights for each of 1 to 10 outputs


@pytest.mark.parametrize("budget", [3_000, 5_418, 54_179, 270_895, 10**9])
def test_no_other_width_has_more_weights_within_the_budget(budget):
    plans = [(16, 16, 6), (16, 32, 1), (32, 32, 5), (32, 64, 1), (64, 64, 5)]

    def by_hand(width: float) -> int:
        stages = sum(9 * n * scale(a, width) * scale(b, width) for a, b, n in plans)
        shortcuts = scale(16, width) * scale(32, width) + scale(32, width) * scale(64, width)
        return stages + shortcuts + 27 * scale(16, width) + 10 * scale(64, width)

    within = [step for step in range(1, 1001) if by_hand(step / 1000) <= budget]
    best = max(within, key=lambda step: (by_hand(step / 1000), -step)) / 1000
    assert find_width(builder("cifar_resnet20"), count_weights, budget) == best


def test_a_dip_beside_the_crossing_is_seen():
    """ViT's width can fall by a step where the head count rises: the exact hit lies behind the crossing."""

    def dipping(width: float) -> nn.Module:
        step = round(1000 * width)
        return nn.Linear(1, 601 if step == 304 else 2 * step)

    assert find_width(dipping, count_weights, 601) == 0.304  # 300 and 301 have 600 and 602


def test_search_leaves_the_random_state_alone_and_repeats_itself():
    def stubborn(width: float) -> nn.Module:
        network = linear(width)
        float(network.weight.sum())  # fails on the meta device
        return network

    torch.manual_seed(3)
    before = torch.get_rng_state()
    widths = {find_width(build, count_weights, 41) for build in (linear, stubborn, linear)}
    assert widths == {0.45}
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_budget_is_refused():
    with pytest.raises(UserError, match="at least 1 weight, got 0"):
        find_width(linear, count_weights, 0)
    with pytest.raises(UserError, match="within the budget of 7 weights, the narrowest has 8: lower the sparsity"):
        find_width(linear, count_weights, 7)


def test_a_result_says_by_how_much_its_count_is_off():
    """ResNet-20 at 98 %: 5,165 of the 5,418 asked for."""
    weights = {"active": 5_165, "dense_prunable": 270_896}
    record = {"sparsity": 0.98, "weights": weights, "method": {"budget": "outcome"}}
    assert describe_missed(record) == "; 4.67 % below the 5,418 asked for"
    assert describe_missed({**record, "weights": {**weights, "active": 5_418}}) == ""
    assert describe_missed({**record, "sparsity": 0.999999}) == "; none were asked for"
    assert describe_missed({**record, "method": {"budget": "exact"}}) == ""
    shapes = {"conv1.weight": (2, 3, 3, 3), "fc.weight": (10, 8)}
    (remark,) = find_method("small_dense").cls(sparsity=0.98).remarks(shapes)
    assert remark.startswith("a narrower network of 134 prunable weights")


RESNET50 = 25_502_912


@pytest.mark.parametrize(("sparsity", "published"), [(0.8, 0.465), (0.965, 0.231)])
def test_rigls_published_widths_follow_from_rigls_budget(sparsity, published):
    """RigL matched bytes: 32 bits for an active weight and one bit of mask for every weight (its notebook)."""
    budget = round(RESNET50 * (1 - sparsity + 1 / 32))
    width = find_width(builder("resnet50"), count_weights, budget)
    assert width == pytest.approx(published, abs=0.02)
    assert count_weights(shapes_of("resnet50", **narrow_arguments("resnet50", {}, width))) == pytest.approx(
        budget, rel=0.02
    )


# -- narrow_arguments --------------------------------------------------------------------------------------------------

TRAINED = [  # backbone, arguments, image size, tolerance on a tenth of the weights
    ("cifar_resnet20", {}, 16, 0.02),
    ("cifar_vgg19_bn", {}, 16, 0.01),
    ("resnet18", {}, 32, 0.01),
    ("resnet50", {}, 32, 0.01),
    ("tf_efficientnetv2_b0", {}, 32, 0.1),  # channels go by eight: 529,896 or 638,456 weights, and 579,737 asked
    ("deit_tiny_patch16_224", {"img_size": 32}, 32, 0.04),
    ("convnext_atto", {}, 32, 0.04),
]


@pytest.mark.parametrize(("name", "model_args", "side", "tolerance"), TRAINED)
def test_every_family_builds_within_its_budget_and_computes(name, model_args, side, tolerance):
    model_args = {**model_args, "num_classes": 10}
    budget = count_weights(shapes_of(name, **model_args)) // 10
    width = find_width(builder(name, **model_args), count_weights, budget)
    network = timm.create_model(name, **narrow_arguments(name, model_args, width)).eval()
    assert (1 - tolerance) * budget < count_weights(network) <= budget
    assert torch.isfinite(network(torch.randn(2, 3, side, side))).all()


@pytest.mark.parametrize(
    ("name", "model_args"),
    [*(case[:2] for case in TRAINED), ("cifar_resnet50", {}), ("resnet26t", {}), ("wide_resnet50_2", {})],
)
def test_width_one_is_the_full_network(name, model_args):
    full = shapes_of(name, **model_args)
    same = shapes_of(name, **narrow_arguments(name, model_args, 1.0))
    assert [(k, v.shape) for k, v in full.named_parameters()] == [(k, v.shape) for k, v in same.named_parameters()]


@pytest.mark.parametrize(
    ("name", "model_args", "width", "expected"),
    [
        ("cifar_resnet20", {"num_classes": 100}, 0.5, {"num_classes": 100, "width": 0.5}),
        ("resnet50", {}, 0.465, {"channels": (30, 60, 119, 238)}),
        ("resnet50", {"channels": (32, 64, 128, 256)}, 0.5, {"channels": (16, 32, 64, 128)}),
        ("resnet18d", {}, 0.3, {"channels": (20, 38, 77, 154), "stem_width": 10}),  # 2 * 10 = 20: no projection
        ("tf_efficientnetv2_b0", {"channel_multiplier": 0.5}, 0.5, {"channel_multiplier": 0.25}),
        ("deit_tiny_patch16_224", {}, 1 / 3, {"num_heads": 1, "embed_dim": 64}),
        ("vit_base_patch16_224", {}, 0.5, {"num_heads": 6, "embed_dim": 384}),
        ("convnext_atto", {}, 0.3, {"dims": (12, 24, 48, 96)}),
    ],
)
def test_arguments_are_those_worked_by_hand(name, model_args, width, expected):
    given = dict(model_args)
    assert narrow_arguments(name, model_args, width) == expected
    assert model_args == given


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vgg11_bn", "family .VGG. has no rule"),
        ("densenet121", "family .DenseNet. has no rule"),
        ("resnext50_32x4d", "grouped layers"),
        ("test_resnet", "do not all follow channels"),
        ("mobilenetv2_100", "timm fixes its channel_multiplier"),
        ("mobilenet_edgetpu_100", "its last 1280 features ignore channel_multiplier"),
        ("mobilenet_edgetpu_v2_xs", "cannot build it with channel_multiplier halved"),
        ("vit_small_patch16_18x2_224", "not the standard one"),
    ],
)
def test_what_does_not_scale_is_refused_with_its_reason(name, reason):
    with pytest.raises(UserError, match=reason) as refused:
        narrow_arguments(name, {}, 0.5)
    assert f"'{name}'" in str(refused.value)
    for family in ("cifar_*", "ResNet", "EfficientNet", "MobileNet", "ViT", "DeiT", "ConvNeXt"):
        assert family in str(refused.value)


def picture(size: int) -> Data:
    return Data("pictures", ("a", "b", "c"), 3, size, SmallImages(), None, SmallImages(), "0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told", "taken"),
    [
        ("efficientformer_l1", "Expected size for first two dimensions", 224),  # takes img_size and still no other
        ("halonet26t", "AssertionError", 256),  # an assertion without a text
    ],
)
def test_a_refused_image_size_comes_with_one_that_the_network_takes(name, told, taken):
    page = make_page(model=name)
    with pytest.raises(UserError, match=rf"{told}.*; it takes images of {taken}x{taken}: try ARGS=image_size={taken}"):
        make_network(page, picture(32))
    create_network(page, model_arguments(page, picture(taken))).eval()(torch.zeros(1, 3, taken, taken))


def test_the_size_that_was_refused_is_never_the_advice(monkeypatch):
    """Where no size passes, none is named."""
    import benchmark.networks.build as building

    monkeypatch.setattr(building, "takes_size", lambda *_: False)
    page = make_page(model="test_vit")
    model = create_network(page, model_arguments(page, picture(32)))
    with pytest.raises(UserError, match=r"cannot take images of \(3, 33, 33\): .*; choose another model"):
        check_network(model, page, picture(33))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AssertionError(), "AssertionError"),
        (ValueError("a\n  b."), "a b"),
        (KeyError("x"), "'x'"),
        (OSError(" "), "OSError"),
    ],
)
def test_a_reason_is_one_line_and_never_empty(error, told):
    assert reason(error) == told
