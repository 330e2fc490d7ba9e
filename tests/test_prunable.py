"""Which weights are prunable: by layer type, never by shape."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from benchmark.errors import UserError
from benchmark.networks.prunable import find_layers
from tests.small import SmallNet, make_page


def prunable(model: nn.Module, **changes) -> list[str]:
    return [layer.name for layer in find_layers(model, make_page(**changes)) if layer.prunable]


def test_convolutions_and_linear_layers_are_prunable_and_nothing_else():
    assert prunable(SmallNet()) == ["conv1.weight", "conv2.weight", "fc.weight"]


def test_position_embeddings_and_tokens_are_not():
    model = timm.create_model("vit_tiny_patch16_224")
    names = prunable(model)
    assert {"pos_embed", "cls_token"} <= {n for n, _ in model.named_parameters()}
    assert len(names) == 1 + 12 * 4 + 1  # patches; qkv, proj, fc1, fc2 of each block; head
    assert all(name.endswith(".weight") and "norm" not in name for name in names)


def test_swin_bias_tables_are_not():
    model = timm.create_model("swin_tiny_patch4_window7_224")
    assert not any("relative_position" in name for name in prunable(model))


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["first"], ["conv2.weight", "fc.weight"]),
        (["last"], ["conv1.weight", "conv2.weight"]),
        (["first", "last"], ["conv2.weight"]),
        (["conv*"], ["fc.weight"]),
    ],
)
def test_a_page_keeps_layers_dense(patterns, left):
    assert prunable(SmallNet(), keep_dense=patterns) == left


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"'stem' matches no weight; the weights are conv1.weight, conv2.weight"):
        prunable(SmallNet(), keep_dense=["stem"])


def test_a_page_that_leaves_nothing_to_prune_is_refused():
    with pytest.raises(UserError, match="leaves nothing to prune"):
        prunable(SmallNet(), keep_dense=["*"])


def test_frozen_weights_are_not_pruned():
    model = SmallNet()
    model.conv1.weight.requires_grad_(False)
    assert prunable(model) == ["conv2.weight", "fc.weight"]


def test_packed_attention_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    with pytest.raises(UserError, match=r"module '1' is torch.nn.MultiheadAttention"):
        prunable(model)


def test_a_layer_that_computes_with_other_weights_than_it_stores_is_refused():
    standardised = nn.Sequential(timm.layers.StdConv2d(3, 4, 3))
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    for model, name in ((standardised, "StdConv2d"), (normed, "ParametrizedLinear")):
        with pytest.raises(UserError, match=f"layer '0' is a {name}: it computes with another weight than it stores"):
            prunable(model)


def test_grouped_convolutions_are_pruned_and_depthwise_ones_stay_dense():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8))
    assert prunable(model) == ["0.weight"]
    assert prunable(model, prune_depthwise=True) == ["0.weight", "1.weight"]
