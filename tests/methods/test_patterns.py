"""Promises of whole filters and of N:M masks, on random layers, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.config.cells import plan_cells
from benchmark.config.pages import load_page
from benchmark.config.plugins import find_method
from benchmark.training.contract import list_stages, propose
from benchmark.training.rehearsal import rehearse
from methods.core import (
    ContractError,
    Timeline,
    View,
    count_active,
    grow_filters,
    keep_filters,
    keep_n_of_m,
    uniform_but_last,
)
from methods.core.groups import fold, unfold
from tests.harness import oracles

LINE = Timeline(100, 10)


def draw(case: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return scores, full of ties in every third case, and masks of some layers of random shapes."""
    generator = torch.Generator().manual_seed(case)
    sizes = torch.randint(1, 9, (4, 2), generator=generator).tolist()
    kernels = [(), (3, 3), (1, 1), (3,)]
    shapes = {f"layer{i}": (out, 4 * inner, *kernels[i]) for i, (out, inner) in enumerate(sizes)}
    shapes["odd"], shapes["classes"] = (5, 3, 2, 2), (3, 7)
    scores = {}
    for name, shape in shapes.items():
        numbers = torch.rand(shape, generator=generator)
        scores[name] = (3 * numbers).floor() if case % 3 == 0 else numbers
    masks = {name: torch.rand(shape, generator=generator) < (0.3, 0.8, 2)[case % 3] for name, shape in shapes.items()}
    return scores, masks


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("layerwise", [False, True])
def test_filters_are_kept_and_regrown_as_by_the_oracle_whatever_their_memory_format(layerwise):
    scope = "layer" if layerwise else "global"
    for case, share in itertools.product(range(40), (0.0, 0.2, 0.5, 1.0)):
        scores, among = draw(case)
        count = round(share * count_active(among))
        turned = {
            n: s.contiguous(memory_format=torch.channels_last) if s.ndim == 4 else s.clone() for n, s in scores.items()
        }
        kept = keep_filters(turned, count, among, "classes", layerwise)
        expected = oracles.largest_filters(arrays(scores), count, arrays(among), "classes", scope)
        assert all(np.array_equal(mask, expected[name]) for name, mask in arrays(kept).items()), (case, share)
        flipped = {name: score.flip(0) for name, score in scores.items()}
        grown = grow_filters(kept, flipped, among, layerwise)
        expected = oracles.regrown_filters(arrays(flipped), arrays(kept), arrays(among), scope)
        assert all(np.array_equal(mask, expected[name]) for name, mask in arrays(grown).items()), (case, share)


@pytest.mark.parametrize("n", [1, 2])
def test_n_of_m_masks_are_the_oracles(n):
    for case, share in itertools.product(range(40), (0.0, 0.3, 1.0)):
        scores, among = draw(case)
        kept = keep_n_of_m(scores, n, share, among)
        expected = oracles.largest_of_four(arrays(scores), n, share, arrays(among), oracles.best)
        assert all(np.array_equal(mask, expected[name]) for name, mask in arrays(kept).items()), (case, share)


def test_folding_puts_four_consecutive_inputs_of_one_place_into_a_group():
    weight = torch.arange(2 * 8 * 3 * 3).reshape(2, 8, 3, 3)
    groups = fold(weight)
    assert groups[0].tolist() == weight[0, :4, 0, 0].tolist()
    assert groups[1].tolist() == weight[0, 4:, 0, 0].tolist()
    assert groups[2].tolist() == weight[0, :4, 0, 1].tolist()
    assert torch.equal(unfold(groups, weight), weight)


def test_uniform_counts_are_exact_even_and_leave_the_last_layer_a_fifth_above_80_per_cent():
    shapes = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (10, 32)}
    total = 432 + 4608 + 320
    for sparsity in (0.0, 0.5, 0.79, 0.8, 0.81, 0.9, 0.98, 0.999):
        kept = round((1 - sparsity) * total)
        counts = uniform_but_last(shapes, kept, "c")
        assert sum(counts.values()) == kept
        if 0.8 < sparsity < 0.98:
            assert counts["c"] == 64
            assert abs(counts["a"] / 432 - counts["b"] / 4608) < 1 / 432
        if sparsity <= 0.8:
            assert all(abs(counts[n] - (1 - sparsity) * size) < 1 for n, size in (("a", 432), ("b", 4608), ("c", 320)))
    assert uniform_but_last(shapes, 5, "c") == {"a": 0, "b": 0, "c": 5}
    # no layer gets more than it has, whatever the total
    most = {"a": 10, "b": 4608, "c": 30}
    for count in range(0, sum(most.values()), 97):
        assert uniform_but_last(shapes, count, "c", most) == oracles.even_but_last(shapes, count, "c", most)
    assert uniform_but_last(shapes, 600, "c", {"a": 10, "b": 4608, "c": 30}) == {"a": 10, "b": 560, "c": 30}


def build(name: str, sparsity: float, **changes):
    return find_method(name).build(load_page("digits_resnet20"), sparsity, changes)


@pytest.mark.parametrize(
    ("name", "sparsity", "changes", "says"),
    [
        (
            "gmp_structured",
            0.9,
            {"pattern": "2:4"},
            "pattern=2:4 keeps 2 of every 4 .*is 0.5, got 0.9: ask SPARSITY=0.5",
        ),
        ("one_shot", 0.5, {"pattern": "1:4"}, "ask SPARSITY=0.75"),
        ("granet_structured", 0.5, {"pattern": "4:8"}, "pattern must be one of filters, 2:4, 1:4, got '4:8'"),
        ("gmp_structured", 0.5, {"pattern": "none"}, "pattern must be one of filters"),
        ("gmp_structured", 0.5, {"scope": "layers"}, "scope must be global or layer, got 'layers'"),
        ("one_shot", 0.5, {"rate": 1.0}, "rate must be below 1, which would empty every layer"),
        ("one_shot", 0.5, {"rate": -0.1}, r"rate must be in \[0, 1\], got -0.1"),
        ("one_shot", 0.5, {"regrow": True}, "give rate"),
        ("one_shot", 0.5, {"pattern": "2:4", "rate": 0.5}, "leave rate and regrow out"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_before_anything_is_run(name, sparsity, changes, says):
    with pytest.raises(UserError, match=f"method '{name}': .*{says}"):
        build(name, sparsity, **changes)


def test_two_of_four_is_read_as_it_is_written_although_yaml_knows_base_60():
    cells = plan_cells("gmp_structured", "0.5", "digits_resnet20", "0", "pattern=2:4 epochs=3")
    assert cells[0].method.pattern == "2:4" and cells[0].page.epochs == 3
    with pytest.raises(UserError, match="got '124'; in a YAML file write '2:4' in quotes"):
        build("gmp_structured", 0.5, pattern=124)


def small_view(step: int = 0) -> View:
    weights = {"a": torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), "classes": torch.ones(3, 4)}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return View(weights=weights, masks=masks, step=step, timeline=LINE, seed=0, last="classes")


@pytest.mark.parametrize("name", ["one_shot", "gmp_structured", "granet_structured"])
def test_more_than_the_classes_leave_is_refused_with_the_sparsity_that_is_possible(name):
    """12 of 28 weights are the classes': 1 - 12 / 28 = 0.5714."""
    method = build(name, 0.6, pattern="filters")
    with pytest.raises(UserError, match=r"the last layer 'classes' keeps .* ask SPARSITY=0.5714 or less, .*keep_dense"):
        propose(method, name, small_view())
    possible = build(name, 0.5714, pattern="filters")
    assert propose(possible, name, small_view())


def test_in_a_branch_only_the_active_weights_of_the_classes_have_to_stay():
    """6 of 28 stay: the 3 active ones of the classes, and the best filter, of 3."""
    full = small_view()
    masks = {"a": torch.ones(4, 4).bool(), "classes": torch.eye(4)[:3].bool()}
    masks["a"][:, 0] = False
    weights = {name: weight * masks[name] for name, weight in full.weights.items()}
    branch = View(weights=weights, masks=masks, step=0, timeline=LINE, seed=0, last="classes")
    (kept,) = list_stages(propose(build("one_shot", 1 - 6 / 28, pattern="filters"), "one_shot", branch))
    assert torch.equal(kept["classes"], masks["classes"]) and int(kept["a"].sum()) == 3


def test_a_rate_that_contradicts_the_sparsity_is_refused_with_the_sparsity_it_gives():
    with pytest.raises(UserError, match=r"rate=0.5, .* leaves 14 of 28, sparsity 0.75 7: ask SPARSITY=0.5"):
        propose(build("one_shot", 0.75, rate=0.5), "one_shot", small_view())


@pytest.mark.parametrize(
    "changes", [{}, {"regrow": True}, {"pattern": "filters"}, {"pattern": "filters", "regrow": True}]
)
def test_a_one_shot_branch_is_rehearsed_from_the_sparsity_it_starts_from(changes):
    sparsity = 0.9 if changes.get("regrow") else 0.95
    rehearse(build("one_shot", sparsity, rate=0.5, **changes), "one_shot", LINE)


def test_layers_without_groups_of_four_are_named():
    method = build("gmp_structured", 0.5, pattern="2:4")
    assert method.remarks({"a": (4, 8), "b": (4, 3, 3, 3)}) == [
        "pattern=2:4 leaves b dense: inputs that are no multiple of 4"
    ]
    assert build("gmp_structured", 0.5).remarks({"b": (4, 3, 3, 3)}) == []


def test_scores_that_are_no_numbers_are_refused():
    masks = {"w": torch.ones(2, 2, dtype=torch.bool)}
    with pytest.raises(ContractError, match="not finite"):
        keep_filters({"w": torch.tensor([[1.0, float("nan")], [1, 1]])}, 2, masks)
