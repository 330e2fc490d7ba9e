"""The primitives that methods are written in, by hand; test_properties.py holds them on random inputs."""

from __future__ import annotations

import pytest
import torch

from methods.core import (
    Timeline,
    View,
    cosine,
    cubic,
    drop,
    erk,
    grow,
    keep_top_global,
    uniform,
)
from methods.core.distributions import fill


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


RESNET_LIKE = {
    "stem": (16, 3, 3, 3),
    "one": (16, 16, 3, 3),
    "two": (64, 32, 3, 3),
    "short": (64, 32, 1, 1),
    "fc": (10, 64),
}


def test_erk_densities_follow_the_formula_where_no_layer_is_full():
    counts = erk(RESNET_LIKE, 500)
    raw = {n: sum(s) for n, s in RESNET_LIKE.items()}  # density x size = epsilon (n_in + n_out + k_w + k_h)
    epsilon = 500 / sum(raw.values())
    assert all(abs(counts[n] - epsilon * raw[n]) < 1 for n in counts)


def test_erk_solves_again_after_a_layer_is_full():
    shapes = {"tiny": (2, 2), "large": (100, 100)}
    counts = erk(shapes, 2000)  # tiny's share 2000 x 4 / 204 = 39 > 4: it becomes dense, the rest goes to large
    assert counts == {"tiny": 4, "large": 1996}
    for total in (-1, 10_005):
        with pytest.raises(ValueError, match=f"cannot keep {total} of 10004 weights"):
            erk(shapes, total)


def test_largest_remainder_rounding_by_hand():
    # shares 1.5, 0.75, 0.75 of total 3: floors 1, 0, 0; remainders .5, .75, .75 -> the second and third get one
    assert uniform({"a": (1, 6), "b": (1, 3), "c": (1, 3)}, 3) == {"a": 1, "b": 1, "c": 1}


def test_nothing_is_divided_and_what_nobody_asks_for_is_divided_all_the_same():
    assert fill({"a": (3,), "b": (2,)}, 0, {"a": 0, "b": 0}) == {"a": 0, "b": 0}
    assert fill({"a": (3,), "b": (2,)}, 0, {"a": 1, "b": 0}) == {"a": 0, "b": 0}
    assert fill({"a": (6,), "b": (2,), "c": (4,)}, 8, {"a": 0, "b": 0, "c": 1}) == {"a": 3, "b": 1, "c": 4}


def test_cubic_by_hand_and_exact_at_its_ends():
    assert cubic(0.5, 0.9, 0.0) == 0.5
    assert cubic(0.06, 0.561, 0.0) == 0.06  # 0.561 + (0.06 - 0.561) is not 0.06 in binary
    assert cubic(0.5, 0.9, 1.0) == 0.9
    assert cubic(0.0, 0.8, 0.5) == pytest.approx(0.8 - 0.8 * 0.125)


def test_cosine_by_hand():
    assert cosine(0.5, 0.005, 0.0) == pytest.approx(0.5)
    assert cosine(0.5, 0.005, 1.0) == pytest.approx(0.005)
    assert cosine(0.3, 0.0, 0.5) == pytest.approx(0.15)
    assert cosine(0.3, 0.0, 1.5) == 0.0  # of an update that comes late, after the end


def test_random_numbers_are_pinned_across_processes_and_versions():
    # sha256("0/3/a/") seeds the generator: a salted hash() would change this from run to run
    view = View(weights={"a": torch.zeros(30)}, masks={}, step=3, timeline=Timeline(100, 10), seed=0)
    assert view.random("a")[:2].tolist() == pytest.approx([0.00010267221249160574, 0.40257607901899917])
