"""Which weights are prunable: by layer type, never by shape."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmark import Sparsifier
from benchmark.base.errors import UserError
from benchmark.config.cells import plan_cells
from benchmark.data.sets import Data
from benchmark.networks.build import build, confirm, refuse_transposed
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers, prunable_weights, suggest, tell_unmasked
from benchmark.networks.witness import find_last, recount
from benchmark.runs.run import prepare
from methods.core import erk
from tests.harness import small
from tests.harness.small import SmallNet, make_page


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


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["first", "last"], ["conv2.weight"]),
        (["conv*"], ["fc.weight"]),
    ],
)
def test_a_page_keeps_layers_dense(patterns, left):
    assert prunable(SmallNet(), keep_dense=patterns) == left


def test_a_pattern_that_matches_nothing_or_leaves_nothing_is_refused():
    with pytest.raises(UserError, match=r"'stem' matches no weight; the weights are conv1.weight, conv2.weight"):
        prunable(SmallNet(), keep_dense=["stem"])
    with pytest.raises(UserError, match="leaves nothing to prune"):
        prunable(SmallNet(), keep_dense=["*"])


def test_frozen_weights_are_not_pruned():
    model = SmallNet()
    model.conv1.weight.requires_grad_(False)
    assert prunable(model) == ["conv2.weight", "fc.weight"]


class Attentive(nn.Module):
    """Nine patches of eight features, torch's own attention over them, or of the first to all, and a classifier."""

    def __init__(self, kdim: int | None = None, pooled: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 2, 2)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, kdim=kdim, vdim=kdim)
        self.head = nn.Linear(8, 3)
        self.kdim, self.pooled = kdim, pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        keys = x[..., : self.kdim]
        return self.head(self.attn(x[:, :1] if self.pooled else x, keys, keys)[0].mean(1))


def test_packed_attention_is_pruned_and_priced_to_the_unit():
    # 9 positions: patches 64, in_proj 3 * 8 * 8, out_proj 8 * 8 weights; scores and means 2 * 9 * 9 * 8; classifier 24
    model = Attentive()
    layers = find_layers(model, make_page())
    costs = count_costs(model, layers, (2, 6, 6))
    confirm(costs, recount(model, (2, 6, 6)))
    assert costs.per_weight == {
        "patch.weight": 9,
        "attn.in_proj_weight": 9,
        "attn.out_proj.weight": 9,
        "head.weight": 1,
    }
    assert (costs.dense, costs.fixed) == (9 * (64 + 192 + 64) + 1296 + 24, 1296)
    apart = Attentive(kdim=4)
    of_parts = count_costs(apart, find_layers(apart, make_page()), (2, 6, 6)).layers
    assert [of_parts[f"attn.{part}_proj_weight"] for part in "qkv"] == [9 * 64, 9 * 32, 9 * 32]
    assert torch.backends.mha.get_fastpath_enabled()


def test_packed_attention_trains_under_exact_masks(monkeypatch):
    monkeypatch.setattr(small, "SmallNet", Attentive)
    run = small.finish(small.make_run("granet", 0.9, changes={"update_every": 3}))
    masks, weight = run.maskset.masks, run.model.get_parameter("attn.in_proj_weight")
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * run.maskset.total)
    assert 0 < int(masks["attn.in_proj_weight"].sum()) < weight.numel()
    assert not weight[~masks["attn.in_proj_weight"]].any() and weight.any()


def test_packed_attention_whose_weights_do_not_cost_the_same_is_refused_unless_dense():
    model = Attentive(pooled=True)
    with pytest.raises(UserError, match=r"attn.in_proj_weight uses its weights unequally often"):
        count_costs(model, find_layers(model, make_page()), (2, 6, 6))
    costs = count_costs(model, find_layers(model, make_page(keep_dense=["attn.in*"])), (2, 6, 6))
    assert costs.layers["attn.in_proj_weight"] == 64 + 9 * 128


def test_the_zeros_of_a_weight_standardised_convolution_do_not_stay_zero():
    """So it is refused: what it multiplies by, shown by an impulse, has no zero where the stored weight has one."""
    layer = timm.layers.StdConv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight[0, 0, 0] = 0
    impulse = torch.zeros(1, 1, 3, 3)
    impulse[..., 1, 1] = 1
    assert (layer(impulse) != 0).all()
    with pytest.raises(UserError, match="it subtracts the mean of each filter first"):
        prunable(nn.Sequential(layer))


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


class Upsampler(nn.Module):
    """A convolution, a transposed one in two groups, and a classifier: 216 + 144 + 24 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.head = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(torch.relu(self.down(x))).mean((2, 3)))


def test_transposed_convolutions_are_pruned_and_cost_their_input_positions():
    model = Upsampler()
    layers = find_layers(model, make_page())
    assert [(layer.name, layer.prunable, layer.transposed) for layer in layers] == [
        ("down.weight", True, False),
        ("up.weight", True, True),
        ("head.weight", True, False),
    ]
    costs = count_costs(model, layers, (3, 6, 6))
    assert costs.per_weight == {"down.weight": 9, "up.weight": 9, "head.weight": 1}
    assert recount(model, (3, 6, 6)).forward({"up.weight": 10}) == 9 * 216 + 9 * 10 + 24
    shapes = {name: tuple(weight.shape) for name, weight in prunable_weights(model, layers).items()}
    assert sum(erk(shapes, 100).values()) == 100


def test_depthwise_transposed_convolutions_stay_dense_like_others():
    model = nn.Sequential(nn.ConvTranspose1d(4, 8, 3, groups=4), nn.ConvTranspose3d(8, 8, 3))
    assert prunable(model) == ["1.weight"]
    assert prunable(model, prune_depthwise=True) == ["0.weight", "1.weight"]


@pytest.mark.parametrize(
    ("method", "arguments", "refused"),
    [
        ("gmp_structured", "", True),
        ("granet_structured", "pattern=2:4", True),
        ("one_shot", "pattern=filters", True),
        ("one_shot", "", False),
        ("granet", "", False),
        ("static", "", False),
    ],
)
def test_patterns_over_the_rows_of_a_weight_are_refused_where_rows_are_inputs(method, arguments, refused):
    (cell,) = plan_cells(method, "0.5", "digits_resnet20", "0", arguments)
    layers = find_layers(Upsampler(), make_page())
    if refused:
        with pytest.raises(UserError, match=r"pattern=.* its inputs \(up\.weight\): .* ARGS=keep_dense=\[up\.weight\]"):
            refuse_transposed(method, cell.method_settings(), layers)
    else:
        refuse_transposed(method, cell.method_settings(), layers)
    refuse_transposed(method, cell.method_settings(), find_layers(Upsampler(), make_page(keep_dense=["up.weight"])))


class Mixed(nn.Module):
    """Weights of many kinds: a free matrix that computes, and embeddings, tokens, tables and scales that do not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width, width))
        self.position = nn.Parameter(torch.randn(1, 4, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.table = nn.Parameter(torch.randn(9, 5))
        self.scale = nn.Parameter(torch.ones(width, 1))
        self.stem = nn.Linear(9, width)
        self.depth = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.flatten(2))
        x = torch.cat([self.token, x], 1) + self.position
        x = x + self.table[0].sum()
        x = x @ self.matrix
        return self.head(self.depth(x.transpose(1, 2) * self.scale).mean(2))


def tell(model: nn.Module, **changes) -> list[str]:
    page = make_page(**changes)
    return tell_unmasked(model, find_layers(model, page), recount(model, (3, 3, 3)).factors, page)


def test_weights_that_compute_under_no_mask_are_told_with_their_share():
    model = Mixed(16)
    total = sum(p.numel() for p in model.parameters())
    kept, free = tell(model, allow_dense=["matrix"])
    assert kept.startswith(f"depth.weight (48 weights, {48 / total:.1%} of all parameters) stay dense because the page")
    assert free == f"matrix (256 weights, {256 / total:.1%} of all parameters) are covered by no mask"


def test_many_weights_under_no_mask_are_refused_unless_the_page_allows_them():
    with pytest.raises(UserError, match=r"no mask reaches: matrix \(256 weights, .*ARGS=allow_dense=\[matrix\]"):
        tell(Mixed(16))
    assert tell(Mixed(16), allow_dense=["mat*"])
    with pytest.raises(UserError, match=r"'matrx' matches no weight: did you mean 'matrix'"):
        tell(Mixed(16), allow_dense=["matrx"])


def test_the_permission_that_is_offered_can_be_given_and_makes_no_other_page():
    page = make_page(allow_dense=suggest({"blocks.0.a.weight": 3, "blocks.1.b": 2, "matrix": 1}))
    assert page.allow_dense == ["blocks.*", "matrix"]
    (cell,) = plan_cells("static", "0.5", "digits_resnet20", "0", f"allow_dense=[{','.join(page.allow_dense)}]")
    assert cell.page.allow_dense == page.allow_dense
    (plain,) = plan_cells("static", "0.5", "digits_resnet20", "0", "")
    assert (plain.variant, plain.identity) == (cell.variant, cell.identity)


def test_what_the_page_keeps_dense_is_told_and_never_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, 30), nn.Linear(30, 3))
    assert tell(model) == []
    (told,) = tell(model, keep_dense=["1.weight"])
    assert told.startswith("1.weight (810 weights, 86.8% of all parameters) stay dense because the page")


class HeadFirst(nn.Module):
    """Its classifier is registered first; the layer registered last feeds it, or is computed after it for nobody."""

    def __init__(self, unread: bool = False) -> None:
        super().__init__()
        self.unread = unread
        self.head = nn.Linear(8, 3)
        self.conv1, self.conv2 = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv2(self.conv1(x).relu()).relu().mean((2, 3))
        scores = self.head(features if self.unread else self.project(features))
        self.projected = self.project(features) if self.unread else None
        return scores - scores.logsumexp(1, keepdim=True)


def test_the_last_layer_is_the_one_that_gives_the_classes_wherever_it_is_registered(monkeypatch):
    monkeypatch.setattr("benchmark.networks.build.create_network", lambda page, arguments: HeadFirst())
    (cell,) = plan_cells("gmp_structured", "0.5", "digits_resnet20", "0", "update_every=1 epochs=1")
    images = small.SmallImages()
    data = Data("small", ("a", "b", "c"), 2, small.SIZE, images, None, images, "0")
    run = prepare(cell, build(cell, data), data, torch.device("cpu"))
    assert run.maskset.last == "head.weight"


@pytest.mark.parametrize("unread", [False, True])
def test_whole_filters_are_pruned_and_the_classes_stay_where_an_example_shows_which_these_are(unread):
    model = HeadFirst(unread)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    example = torch.zeros(1, 2, 6, 6)
    sparse = Sparsifier(model, optimizer, "one_shot", 0.7, total_steps=1, pattern="filters", example=example)
    assert bool(sparse.masks["head.weight"].all()) and not bool(sparse.masks["project.weight"].all())


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_vgg19_bn", "cifar_resnet50", "cifar_wrn22_2"])
def test_it_is_the_one_registered_last_in_the_suites_networks(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    names = [layer.name for layer in find_layers(model, make_page())]
    assert find_last(recount(model, (3, 32, 32)), names) == names[-1] == "classifier.weight"
