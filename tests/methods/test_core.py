"""Promises of the primitives methods are written in."""

from __future__ import annotations

import math

import pytest
import torch

from methods.core import (
    ContractError,
    Timeline,
    View,
    cosine,
    count_active,
    cubic,
    drop,
    erdos_renyi,
    erk,
    grow,
    keep_top,
    keep_top_global,
    prune_progress,
    random_masks,
    uniform,
    update_range,
)


def stable_sort_mask(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The oracle: the first k of a stable descending sort."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[:k]] = True
    return mask


def test_keep_top_equals_a_stable_sort_on_300_cases_with_ties():
    generator = torch.Generator().manual_seed(1)
    for case in range(300):
        n = int(torch.randint(1, 40, (1,), generator=generator))
        scores = torch.randint(0, 1 + case % 7, (n,), generator=generator).float()  # few values: many ties
        k = int(torch.randint(0, n + 1, (1,), generator=generator))
        assert torch.equal(keep_top(scores, k), stable_sort_mask(scores, k)), (case, n, k)


def test_all_zero_scores_still_keep_exactly_k():
    assert keep_top(torch.zeros(4, 5), 7).sum() == 7


def test_ties_are_the_same_in_channels_last_memory():
    scores = torch.randint(0, 3, (4, 6, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(keep_top(scores, 50), keep_top(scores.contiguous(memory_format=torch.channels_last), 50))


def test_keep_top_never_leaves_the_candidates():
    scores = torch.tensor([5.0, 4.0, 0.0, 0.0])
    among = torch.tensor([False, False, True, True])
    assert keep_top(scores, 1, among=among).tolist() == [False, False, True, False]


def test_a_nan_score_is_refused():
    with pytest.raises(ContractError, match="not finite"):
        keep_top(torch.tensor([1.0, math.nan]), 1)


def test_more_than_there_are_is_refused():
    with pytest.raises(ContractError, match="cannot keep 3 of 2"):
        keep_top(torch.tensor([1.0, 2.0]), 3)


def test_global_selection_ranks_all_tensors_together_and_breaks_ties_by_tensor_order():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([2.0, 3.0])}
    kept = keep_top_global(scores, 2)
    assert kept["a"].tolist() == [False, True]
    assert kept["b"].tolist() == [False, True]


def test_drop_then_grow_conserves_each_layer_and_never_grows_on_active_positions():
    mask = {"a": torch.tensor([True, True, True, True, False, False])}
    weights = {"a": torch.tensor([0.1, 4.0, 3.0, 2.0, 0.0, 0.0])}
    kept = drop(mask, weights, 0.5)
    assert kept["a"].tolist() == [False, True, True, False, False, False]
    # all gradients zero: a grower that multiplies by the inactive mask would land on active weights
    grown = grow(kept, {"a": torch.zeros(6)}, like=mask)
    assert grown["a"].tolist() == [True, True, True, True, False, False]
    grown = grow(kept, {"a": torch.tensor([0.0, 9.0, 9.0, 0.0, 1.0, 2.0])}, like=mask)
    assert grown["a"].tolist() == [False, True, True, False, True, True]


def test_drop_rounds_as_asked():
    mask = {"a": torch.ones(5, dtype=torch.bool)}
    scores = {"a": torch.arange(5.0)}
    assert drop(mask, scores, 0.5)["a"].sum() == 3
    assert drop(mask, scores, 0.5, math.ceil)["a"].sum() == 2


RESNET_LIKE = {
    "stem": (16, 3, 3, 3),
    "one": (16, 16, 3, 3),
    "two": (64, 32, 3, 3),
    "short": (64, 32, 1, 1),
    "fc": (10, 64),
}


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("distribution", [erk, erdos_renyi, uniform])
def test_distributions_sum_exactly_and_never_exceed_a_layer(distribution, density):
    total = round(density * sum(math.prod(s) for s in RESNET_LIKE.values()))
    counts = distribution(RESNET_LIKE, total)
    assert sum(counts.values()) == total
    assert all(0 <= counts[n] <= math.prod(s) for n, s in RESNET_LIKE.items())


def test_erk_densities_follow_the_formula_where_no_layer_is_full():
    counts = erk(RESNET_LIKE, 500)
    raw = {n: sum(s) for n, s in RESNET_LIKE.items()}  # density x size = epsilon (n_in + n_out + k_w + k_h)
    epsilon = 500 / sum(raw.values())
    assert all(abs(counts[n] - epsilon * raw[n]) < 1 for n in counts)


def test_erk_solves_again_after_a_layer_is_full():
    shapes = {"tiny": (2, 2), "large": (100, 100)}
    counts = erk(shapes, 2000)  # tiny's share 2000 x 4 / 204 = 39 > 4: it becomes dense, the rest goes to large
    assert counts == {"tiny": 4, "large": 1996}


def test_uniform_gives_every_layer_the_same_density():
    assert uniform({"a": (10, 10), "b": (20, 10)}, 30) == {"a": 10, "b": 20}


def test_largest_remainder_rounding_by_hand():
    # shares 1.5, 0.75, 0.75 of total 3: floors 1, 0, 0; remainders .5, .75, .75 -> the second and third get one
    assert uniform({"a": (1, 6), "b": (1, 3), "c": (1, 3)}, 3) == {"a": 1, "b": 1, "c": 1}


def test_cubic_by_hand_and_exact_at_its_ends():
    assert cubic(0.5, 0.9, 0.0) == 0.5
    assert cubic(0.06, 0.561, 0.0) == 0.06  # 0.561 + (0.06 - 0.561) is not 0.06 in binary
    assert cubic(0.5, 0.9, 1.0) == 0.9
    assert cubic(0.0, 0.8, 0.5) == pytest.approx(0.8 - 0.8 * 0.125)


def test_cosine_by_hand():
    assert cosine(0.5, 0.005, 0.0) == pytest.approx(0.5)
    assert cosine(0.5, 0.005, 1.0) == pytest.approx(0.005)
    assert cosine(0.3, 0.0, 0.5) == pytest.approx(0.15)


def test_no_update_falls_on_the_last_step():
    assert list(update_range(5, 20)) == [5, 10, 15]
    assert list(update_range(5, 21)) == [5, 10, 15, 20]


def test_the_last_pruning_step_has_progress_one():
    steps = update_range(10, 35)
    assert [prune_progress(s, 10, steps) for s in (0, 10, 20, 30, 40)] == [
        0,
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        1,
        1,
    ]


def make_view(step: int = 3, seed: int = 0) -> View:
    weights = {"a": torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(4, 4, 3, 3)}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    return View(weights=weights, masks=masks, step=step, timeline=Timeline(100, 10), seed=seed)


def test_random_numbers_are_a_function_of_seed_step_and_name_alone():
    first = make_view().random("b")
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert torch.equal(make_view().random("b"), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(make_view(step=4).random("b"), first)
    assert not torch.equal(make_view(seed=1).random("b"), first)
    assert not torch.equal(make_view().random("b", "grow"), first)


def test_random_numbers_are_pinned_across_processes_and_versions():
    # sha256("0/3/a/") seeds the generator: a salted hash() would change this from run to run
    assert make_view().random("a").flatten()[:2].tolist() == pytest.approx(PINNED)


PINNED = [0.00010267221249160574, 0.40257607901899917]


def test_random_masks_hold_exact_counts():
    masks = random_masks(make_view(step=0), {"a": 7, "b": 100})
    assert [int(m.sum()) for m in masks.values()] == [7, 100]
    assert count_active(masks) == 107


def test_reading_an_undeclared_gradient_is_refused():
    with pytest.raises(ContractError, match="did not declare"):
        _ = make_view().gradients
    with pytest.raises(ContractError, match="order=2"):
        _ = make_view().hessian_gradients


def test_the_count_is_the_rounded_product():
    assert make_view().count(0.9) == round(0.1 * (30 + 144))
