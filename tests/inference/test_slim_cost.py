"""Promises of the cost without removed filters: by hand, for whole filters alone, and shown only where it is known."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import benchmark.networks.cifar  # noqa: F401 (registers the networks)
import benchmark.networks.filters as module
from benchmark.base.console import print_result
from benchmark.base.errors import UserError
from benchmark.config.pages import load_page
from benchmark.networks.costs import count_costs
from benchmark.networks.filters import count_slim, holds_whole_filters
from benchmark.networks.prunable import find_layers
from leaderboard import find_faults, render
from leaderboard.web.rows import LABELS, run_values
from tests.harness.record_factory import make_record

PAGE = load_page("digits_resnet20")


class Plain(nn.Module):
    """Two convolutions of 1 to 4 to 6 channels and a linear layer to 3 classes, on images of 4x4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.first(x)))
        return self.last(functional.relu(self.norm2(self.second(x))).mean(dim=(2, 3)))


def remove(network: nn.Module, off: Callable[[str, int], bool]) -> dict[str, Tensor]:
    """Set filters of convolutions to zero and return the masks: `off` is asked for each by layer and number."""
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in network.named_parameters() if w.ndim > 1}
    for name, mask in masks.items():
        if mask.ndim > 2:
            mask[[off(name, number) for number in range(len(mask))]] = False
        network.get_parameter(name).data.mul_(mask)
    return masks


def charge(network: nn.Module, masks: dict[str, Tensor], shape: tuple[int, int, int]) -> int:
    """Return what masks are charged."""
    costs = count_costs(network, find_layers(network, PAGE), shape)
    return costs.forward({name: int(mask.sum()) for name, mask in masks.items()})


def cut_plain() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the plain network without one of four and four of six filters, one weight of its last layer off too."""
    network = Plain()
    masks = remove(network, lambda name, number: number < (1 if name == "first.weight" else 4))
    masks["last.weight"][0, 0] = False
    network.last.weight.data[0, 0] = 0
    return network, masks


def test_freed_inputs_are_left_out_by_hand():
    """At 16 places: 3 x 1 x 9, then 2 filters of 3 inputs in place of 4, then 3 classes of 2 features in place of 6."""
    network, masks = cut_plain()
    assert charge(network, masks, (1, 4, 4)) == 16 * 3 * 9 + 16 * 2 * 4 * 9 + 17 == 1601
    assert count_slim(network, masks, PAGE, (1, 4, 4)) == 16 * 3 * 9 + 16 * 2 * 3 * 9 + 6 == 1302


def test_a_cut_that_leaves_the_wrong_inputs_is_caught_by_its_outputs(monkeypatch):
    """The first filters' inputs are kept in place of those of the filters that stay: shapes and counts are right."""
    right = module.remove_dead_filters

    def cut(network: nn.Module) -> tuple[nn.Module, Any]:
        smaller, removal = right(network)
        smaller.second.weight.data = network.second.weight[4:, :3].clone()
        return smaller, removal

    monkeypatch.setattr(module, "remove_dead_filters", cut)
    with pytest.raises(UserError, match="outputs differ by"):
        count_slim(*cut_plain(), PAGE, (1, 4, 4))


def test_in_vgg19_every_layer_loses_the_inputs_that_the_one_before_frees():
    network = timm.create_model("cifar_vgg19_bn", num_classes=10, in_chans=1, width=0.0625)
    masks = remove(network, lambda name, number: number % 3 == 0)
    expected, charged, before, whole = 0, 0, 1, 1
    for channels, depth, places in ((4, 2, 64), (8, 2, 16), (16, 4, 4), (32, 4, 1), (32, 4, 1)):
        for _ in range(depth):
            left = channels - -(-channels // 3)
            expected, charged = expected + 9 * before * left * places, charged + 9 * whole * left * places
            before, whole = left, channels
    assert charge(network, masks, (1, 8, 8)) == charged + 10 * 32
    assert count_slim(network, masks, PAGE, (1, 8, 8)) == expected + 10 * before < charged


def test_in_resnet20_residual_streams_keep_their_width():
    """Only the first layers of blocks narrow; stem, second layers and shortcuts give as many channels as before."""
    network = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1, width=0.25)
    whole = copy.deepcopy(network)
    masks = remove(network, lambda name, number: number % 3 == 0)
    expected, before = 9 * 1 * 4 * 64 + 16 * 10, 4
    for channels, places in ((4, 64), (8, 16), (16, 4)):
        for _ in range(3):
            left = channels - -(-channels // 3)
            expected += places * (9 * before * left + 9 * left * channels + before * channels * (before != channels))
            before = channels
    dense = charge(whole, {n: torch.ones_like(mask) for n, mask in masks.items()}, (1, 8, 8))
    assert count_slim(network, masks, PAGE, (1, 8, 8)) == expected < dense
    masks = remove(whole, lambda name, number: name.endswith("conv2.weight") and number % 3 == 0)
    assert count_slim(whole, masks, PAGE, (1, 8, 8)) == dense > charge(whole, masks, (1, 8, 8))


def test_masks_hold_whole_filters_or_they_do_not():
    on, off = torch.ones(4, 2, 3, 3, dtype=torch.bool), torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    part, some, line = on.clone(), on.clone(), torch.rand(3, 4) < 0.5
    part[1, 0, 2, 2], some[1] = False, False
    assert holds_whole_filters({"a": some, "b": on, "c": line}) and holds_whole_filters({"a": off, "b": on})
    assert not holds_whole_filters({"a": on, "b": on, "c": line})
    assert not holds_whole_filters({"a": part, "b": some})
    assert not holds_whole_filters({"c": line}) and not holds_whole_filters({})
    network, masks = cut_plain()
    masks["first.weight"][2, 0, 1, 1] = False
    assert count_slim(network, masks, PAGE, (1, 4, 4)) is None


@pytest.mark.parametrize("macs", [1, 10_000])
def test_a_record_may_hold_any_cost_up_to_the_dense_networks(macs):
    assert find_faults(make_record(macs={"inference_slim": macs})) == []


@pytest.mark.parametrize(
    ("macs", "reason"),
    [
        (10_001, "macs.inference_slim is 10001, the dense network has 10000"),
        (0.25, "macs.inference_slim must be a whole number of at least 1, got 0.25"),
    ],
)
def test_a_record_with_another_cost_is_refused(macs, reason):
    assert find_faults(make_record(macs={"inference_slim": macs})) == [reason]


def put(seed: int, **macs: int) -> dict[str, Any]:
    """Return a record as the store gives it."""
    return {**make_record(seed=seed, macs=macs), "file": f"{seed}.json"}


def test_pages_show_dead_filters_and_weights_only_where_a_record_tells_them():
    """3 of 12 filters, 25 of 100 active weights; where the network could not be followed, the filters alone."""
    assert "dead" not in render([put(0)], []).lower()
    told = {**put(0), "dead": {"filters": 3, "of": 12, "weights": 25}}
    both = render([told, put(1)], [])
    assert "| dead filters, dead weights |" in both and "| 25.0 %, 25.0 % (n=1) |" in both
    assert "- **Dead filters** in the details" in both
    assert "| 25.0 % |" in render([{**told, "dead": {"filters": 3, "of": 12}}], [])
    assert find_faults(make_record(dead={"filters": 13, "of": 12})) == ["dead.filters is 13, more than there are (12)"]


def test_pages_show_the_share_only_where_it_is():
    """0.25 and 0.35 of dense are 0.30 in the mean; the 2,800 multiply-adds of the masks stay what they are."""
    both = render([put(0, inference_slim=2_500), put(1, inference_slim=3_500)], [])
    assert "| 5.6e3, slim 0.30× |" in both and "- **Slim** in the details" in both
    one = render([put(0, inference_slim=2_500), put(1)], [])
    assert "| 5.6e3, slim 0.25× (n=1) |" in one
    none = render([put(0), put(1)], [])
    assert "| 5.6e3 |" in none and "slim" not in none.lower()
    place = LABELS.index("inference FLOPs")
    assert run_values(put(0, inference_slim=2_500))[place] == "0.28× dense (5.6e3 of 2.0e4), slim 0.25×"
    assert run_values(put(0))[place] == "0.28× dense (5.6e3 of 2.0e4)"


def test_the_table_at_the_end_of_a_run_has_a_line_for_it():
    def show(record: dict[str, Any]) -> str:
        out = io.StringIO()
        print_result(Console(file=out, width=120), record, "record", "page")
        return " ".join(out.getvalue().split())

    assert "inference FLOPs, slim │ 0.2500 x dense (5e+03 of 2e+04)" in show(put(0, inference_slim=2_500))
    assert "slim" not in show(put(0))
