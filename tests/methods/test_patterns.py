"""Promises of whole filters and of N:M masks, on random layers, and what is refused."""

from __future__ import annotations

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
    count_layers,
    drop_filters,
    grow_filters,
    grow_in_groups,
    keep_filters,
    keep_n_of_m,
    uniform_but_last,
)
from methods.core.groups import fold, unfold

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


def count_filters(mask: Tensor) -> int:
    return int(mask.flatten(1).any(1).sum())


@pytest.mark.parametrize("layerwise", [False, True])
def test_kept_filters_are_whole_and_fit_and_leave_no_layer_empty_while_there_is_room(layerwise):
    for case in range(60):
        scores, among = draw(case)
        total = count_active(among)
        for share in (0.0, 0.2, 0.5, 0.9, 1.0):
            count = round(share * total)
            kept = keep_filters(scores, count, among, "classes", layerwise)
            assert torch.equal(kept["classes"], among["classes"])
            assert count_active(kept) <= max(count, int(among["classes"].sum()))
            for name, mask in kept.items():
                rows = mask.flatten(1).any(1)
                assert torch.equal(mask.flatten(1), among[name].flatten(1) & rows[:, None]), "a part of a filter"
            best = {
                n: int(m.flatten(1).sum(1)[(scores[n] * m).flatten(1).double().sum(1).argmax()])
                for n, m in among.items()
                if n != "classes" and bool(m.any())
            }
            if sum(best.values()) + int(among["classes"].sum()) <= count:
                assert all(mask.any() for name, mask in kept.items() if bool(among[name].any()))
        if not layerwise:
            assert all(torch.equal(keep_filters(scores, total, among)[n], among[n]) for n in among)


def test_of_filters_left_out_none_would_have_fitted_and_none_of_the_same_size_scores_higher():
    for case in range(60):
        scores, among = draw(case)
        count = count_active(among) // 2
        kept = keep_filters(scores, count, among, "classes")
        room = count - count_active(kept)
        best = {n: (scores[n] * m).flatten(1).double().sum(1).argmax() for n, m in among.items()}
        inside: dict[int, float] = {}
        for name, mask in kept.items():
            sums, sizes = (scores[name] * among[name]).flatten(1).double().sum(1), among[name].flatten(1).sum(1)
            for row in range(len(mask)):
                if name != "classes" and bool(mask[row].any()) and row != best[name]:
                    size = int(sizes[row])
                    inside[size] = min(inside.get(size, float("inf")), float(sums[row]))
        for name, mask in kept.items():
            sums, sizes = (scores[name] * among[name]).flatten(1).double().sum(1), among[name].flatten(1).sum(1)
            for row in range(len(mask)):
                if name != "classes" and bool(among[name][row].any()) and not bool(mask[row].any()):
                    assert sizes[row] > room
                    assert sums[row] <= inside.get(int(sizes[row]), float("inf"))


def test_filters_dropped_and_regrown_leave_each_layer_as_many_weights_where_filters_are_whole():
    for case in range(40):
        scores, among = draw(case)
        whole = {name: torch.ones_like(mask) for name, mask in among.items()}
        pruned = keep_filters(scores, count_active(whole) // 2, whole, "classes")
        kept = drop_filters(pruned, scores, 0.4)
        grown = grow_filters(kept, {n: s.flip(0) for n, s in scores.items()}, like=pruned)
        assert count_layers(grown) == count_layers(pruned)
        for name, mask in kept.items():
            count = count_filters(pruned[name])
            assert count_filters(mask) == count - -(-count * 4 // 10)
            assert not bool((mask & ~grown[name]).any())


def test_filters_do_not_depend_on_memory_format_or_on_the_order_of_layers():
    for case in range(1, 20):
        if case % 3 == 0:
            continue  # ties go by position
        scores, among = draw(case)
        turned = {
            n: scores[n].contiguous(memory_format=torch.channels_last) if among[n].ndim == 4 else scores[n]
            for n in scores
        }
        count = count_active(among) // 3
        first = keep_filters(scores, count, among, "classes")
        second = keep_filters(turned, count, {n: among[n] for n in reversed(among)}, "classes")
        assert all(torch.equal(first[n], second[n]) for n in first)


def test_folding_puts_four_consecutive_inputs_of_one_place_into_a_group():
    weight = torch.arange(2 * 8 * 3 * 3).reshape(2, 8, 3, 3)
    groups = fold(weight)
    assert groups[0].tolist() == weight[0, :4, 0, 0].tolist()
    assert groups[1].tolist() == weight[0, 4:, 0, 0].tolist()
    assert groups[2].tolist() == weight[0, :4, 0, 1].tolist()
    assert torch.equal(unfold(groups, weight), weight)


@pytest.mark.parametrize("n", [1, 2])
def test_n_of_m_masks_keep_the_largest_of_every_group_and_leave_other_layers(n):
    for case in range(40):
        scores, among = draw(case)
        for share in (0.0, 0.3, 1.0):
            kept = keep_n_of_m(scores, n, share, among)
            assert torch.equal(kept["odd"], among["odd"]) and torch.equal(kept["classes"], among["classes"])
            held, groups = 0, 0
            for name, mask in kept.items():
                assert not bool((mask & ~among[name]).any())
                if name in ("odd", "classes"):
                    continue
                left, had, values = fold(mask), fold(among[name]), fold(scores[name])
                changed = left.sum(1) != had.sum(1)
                assert bool((left.sum(1)[changed] == n).all())
                held += int((left.sum(1) <= n).sum())
                groups += len(left)
                smallest = values.masked_fill(~left, float("inf")).amin(1)
                largest = values.masked_fill(left | ~had, -float("inf")).amax(1)
                assert bool((smallest >= largest)[changed].all())
            already = sum(int((fold(m).sum(1) <= n).sum()) for name, m in among.items() if name.startswith("layer"))
            assert held == max(already, round(share * groups))


def test_regrowth_in_groups_restores_the_count_of_every_group():
    for case in range(40):
        scores, among = draw(case)
        like = keep_n_of_m(scores, 2, 0.7, among)
        kept = {
            name: mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(case)) < 0.6)
            for name, mask in like.items()
        }
        grown = grow_in_groups(kept, {n: s.flip(0) for n, s in scores.items()}, like)
        for name, mask in grown.items():
            assert not bool((kept[name] & ~mask).any())
            if name.startswith("layer"):
                assert torch.equal(fold(mask).sum(1), fold(like[name]).sum(1))
            else:
                assert torch.equal(mask, like[name])


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
    # no layer gets more than it has
    assert uniform_but_last(shapes, 600, "c", {"a": 10, "b": 4608, "c": 30}) == {"a": 10, "b": 560, "c": 30}


def test_uniform_pruning_never_gives_a_layer_weights_back():
    shapes = {"a": (7, 3), "b": (5, 11), "c": (3, 2), "d": (1, 1), "e": (3, 13)}
    most = {name: a * b for name, (a, b) in shapes.items()}
    for total in range(sum(most.values()), -1, -1):
        counts = uniform_but_last(shapes, total, "e", most)
        assert sum(counts.values()) == total
        assert all(counts[name] <= most[name] for name in shapes)
        most = counts


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
