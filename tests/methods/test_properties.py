"""Properties of the primitives, over random shapes, budgets, scores, memory layouts and thread counts.

Each promise is checked against something worked out here in another way: a stable sort by NumPy, bisection, exact
fractions, a loop over all steps. The examples are the same on every run and nothing is written to disk.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.extra.numpy import arrays
from torch import nn

from benchmark.training.masks import MaskSet, pack, unpack
from methods.core import (
    DISTRIBUTIONS,
    ContractError,
    Group,
    Method,
    Timeline,
    View,
    all_active,
    cosine,
    count_active,
    count_kept,
    cubic,
    drop,
    erdos_renyi,
    erk,
    gradient_magnitude,
    grasp_scores,
    grow,
    keep_top,
    keep_top_global,
    magnitude,
    prune_progress,
    prune_range,
    random_masks,
    random_scores,
    snip_scores,
    update_range,
)
from methods.core.ranges import SHARES

set_hypothesis_home_dir(os.devnull)  # its caches would otherwise go to a folder beside the code, database or not
settings.register_profile(
    "properties",
    deadline=None,
    derandomize=True,
    max_examples=25,
    print_blob=False,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # judges the machine, not the property
)
PROFILE = settings.get_profile("properties")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided")
LETTERS = "abwxyz019._"  # what parameter names are made of


def for_all(**strategies):
    """Return the decorator that runs a test over examples, without changing the profile of other files."""
    return lambda test: PROFILE(given(**strategies)(test))


# --- what is drawn -------------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.lists(st.integers(1, 3), min_size=3, max_size=5).map(tuple),
)
NAMES = st.text(LETTERS, min_size=1, max_size=6)
SHARE = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
SEEDS = st.integers(0, 2**31)


def values(dtype):
    """Return the finite numbers of a dtype; zeros, ties and the ends of its range come often."""
    info = torch.finfo(dtype)
    least = info.tiny * info.eps  # the smallest subnormal number
    special = [0.0, -0.0, 1.0, 1.0 + info.eps, least, -least, 2 * least, info.tiny, info.max, -info.max]
    return st.one_of(st.sampled_from(special), st.integers(-2, 2).map(float), st.floats(-info.max, info.max))


def numbers(shape, dtype):
    """Return tensors of finite numbers; most elements share one value, so ties are the rule."""
    return arrays(np.float64, shape, elements=values(dtype), fill=values(dtype)).map(
        lambda array: torch.from_numpy(array.copy()).to(dtype)
    )


def masks_of(shape):
    """Return bool tensors: empty, full and everything between."""
    whole = st.sampled_from([False, True]).map(lambda value: torch.full(shape, value))
    return st.one_of(whole, arrays(bool, shape, fill=st.nothing()).map(lambda array: torch.from_numpy(array.copy())))


def budgets(most):
    """Return whole numbers from 0 to `most`; the ends come often."""
    return st.one_of(st.sampled_from([0, most]), st.integers(0, most))


@st.composite
def selections(draw):
    """Draw scores, candidates and a budget that fits them."""
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    among = draw(masks_of(shape))
    return draw(numbers(shape, dtype)), among, draw(budgets(int(among.sum())))


@st.composite
def layered(draw, most=4):
    """Draw, for some layers by name, scores and two masks; every layer has a dtype of its own."""
    scores, masks, others = {}, {}, {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=most, unique=True)):
        shape = draw(SHAPES)
        scores[name] = draw(numbers(shape, draw(st.sampled_from(DTYPES))))
        masks[name], others[name] = draw(masks_of(shape)), draw(masks_of(shape))
    return scores, masks, others


@st.composite
def networks(draw):
    """Draw the shapes of some layers by name and a number of weights to keep; shapes repeat often."""
    wide, narrow = st.sampled_from([1, 2, 3, 7, 10, 64, 512]), st.integers(1, 7)
    shape = st.one_of(
        st.tuples(wide),
        st.tuples(wide, wide),
        st.tuples(wide, wide, narrow),
        st.tuples(wide, wide, narrow, narrow),
        st.tuples(wide, wide, narrow, narrow, narrow),
    )
    pool = draw(st.lists(shape, min_size=1, max_size=5, unique=True))
    repeated = draw(st.lists(st.sampled_from(pool), max_size=3))
    shapes = {f"layer{i}": s for i, s in enumerate(draw(st.permutations(pool + repeated)))}
    most = total_weights(shapes)
    # whole numbers are drawn small far more often than large; a share is not
    return shapes, draw(st.one_of(budgets(most), SHARE.map(lambda share: round(share * most))))


# --- what is compared ----------------------------------------------------------------------------------------------


def laid_out(tensor, layout):
    """Return the same numbers in another memory layout."""
    if layout == "channels_last" and tensor.ndim in (4, 5):
        return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)
    if layout == "transposed":
        backwards = tuple(reversed(range(tensor.ndim)))
        return tensor.permute(backwards).contiguous().permute(backwards)
    if layout == "strided":
        return torch.stack([tensor, torch.ones_like(tensor)], dim=-1)[..., 0]
    return tensor.contiguous()


def bits(tensor):
    """Return the bytes of a tensor in row-major order: tells -0.0 from 0.0, which == does not."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_bits(tensors):
    """Return the names and bytes of a dict of tensors, in order."""
    return [(name, bits(tensor)) for name, tensor in tensors.items()]


def same(first, second):
    """Return whether two dicts of masks hold the same names and the same values."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sizes_of(masks):
    """Return the number of True of each mask."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def total_weights(shapes):
    """Return the number of weights of some layers."""
    return sum(math.prod(shape) for shape in shapes.values())


def sorted_choice(scores, k, among):
    """The oracle: the first k candidates of a stable descending sort, in float64, which holds every dtype exactly."""
    flat = scores.double().numpy().ravel()
    candidates = np.flatnonzero(among.numpy().ravel())
    chosen = np.zeros(flat.size, dtype=bool)
    chosen[candidates[np.argsort(-flat[candidates], kind="stable")[:k]]] = True
    return torch.from_numpy(chosen).reshape(scores.shape)


# --- top_k, keep_top, keep_top_global ------------------------------------------------------------------------------


@for_all(case=selections())
def test_keep_top_is_a_stable_descending_sort_of_the_candidates(case):
    scores, among, k = case
    kept = keep_top(scores, k, among)
    assert kept.dtype == torch.bool and kept.shape == scores.shape
    assert int(kept.sum()) == k
    assert not bool((kept & ~among).any())
    assert torch.equal(kept, sorted_choice(scores, k, among))


@for_all(case=selections(), layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)))
def test_the_choice_depends_on_no_memory_layout_and_no_wider_dtype(case, layouts):
    scores, among, k = case
    expected = keep_top(scores, k, among)
    assert torch.equal(keep_top(laid_out(scores, layouts[0]), k, laid_out(among, layouts[1])), expected)
    assert torch.equal(keep_top(scores.double(), k, among), expected)
    plain = keep_top(laid_out(scores, layouts[0]), k)
    assert torch.equal(plain, keep_top(scores.contiguous(), k))


@for_all(case=layered(), share=SHARE)
def test_global_selection_is_a_stable_sort_of_all_layers_as_one_vector(case, share):
    scores, among, _ = case
    k = round(share * count_active(among))
    kept = keep_top_global(scores, k, among)
    joined = torch.cat([score.double().reshape(-1) for score in scores.values()])
    expected = sorted_choice(joined, k, torch.cat([mask.reshape(-1) for mask in among.values()]))
    assert list(kept) == list(scores)
    assert torch.equal(torch.cat([mask.reshape(-1) for mask in kept.values()]), expected)
    assert all(kept[name].shape == score.shape for name, score in scores.items())
    everywhere = keep_top_global(scores, k)
    assert torch.equal(torch.cat([mask.reshape(-1) for mask in everywhere.values()]), keep_top(joined, k))


@for_all(case=layered(), share=SHARE)
def test_choosing_dropping_and_growing_change_none_of_their_inputs(case, share):
    scores, masks, likes = case
    before = all_bits(scores), all_bits(masks), all_bits(likes)
    keep_top_global(scores, round(share * count_active(masks)), masks)
    kept = drop(masks, scores, share)
    held = all_bits(kept)
    grow(kept, scores, like=masks)
    for name, score in scores.items():
        keep_top(score, round(share * sizes_of(masks)[name]), masks[name])
    assert (all_bits(scores), all_bits(masks), all_bits(likes)) == before
    assert all_bits(kept) == held


@for_all(case=layered(), seed=SEEDS)
def test_random_masks_keep_exact_counts_and_depend_on_no_other_layer(case, seed):
    scores, masks, _ = case
    counts = sizes_of(masks)
    drawn = random_masks(make_view(scores, seed=seed), counts)
    assert list(drawn) == list(scores) and sizes_of(drawn) == counts
    assert all(mask.dtype == torch.bool and mask.shape == scores[name].shape for name, mask in drawn.items())
    last = list(scores)[-1]
    assert torch.equal(random_masks(make_view({last: scores[last]}, seed=seed), counts)[last], drawn[last])


# --- drop and grow -------------------------------------------------------------------------------------------------


@for_all(case=layered(), sixteenths=st.integers(0, 16), rounding=st.sampled_from([math.floor, math.ceil]))
def test_drop_takes_exactly_the_rounded_number_of_lowest_scores_from_each_layer(case, sixteenths, rounding):
    # sixteenths of whole numbers are exact in binary, so the expected count is too
    scores, masks, _ = case
    kept = drop(masks, scores, sixteenths / 16, rounding)
    assert list(kept) == list(masks)
    for name, mask in masks.items():
        active = int(mask.sum())
        gone = rounding(Fraction(sixteenths * active, 16))
        assert not bool((kept[name] & ~mask).any())
        assert torch.equal(kept[name], sorted_choice(scores[name], active - gone, mask))


@for_all(case=layered(), share=SHARE)
def test_grow_adds_the_best_inactive_weights_up_to_the_count_asked(case, share):
    scores, likes, _ = case
    masks = drop(likes, {name: torch.arange(float(s.numel())).reshape(s.shape) for name, s in scores.items()}, share)
    grown = grow(masks, scores, like=likes)
    assert list(grown) == list(masks) and sizes_of(grown) == sizes_of(likes)
    for name, mask in masks.items():
        new = grown[name] & ~mask
        missing = int(likes[name].sum()) - int(mask.sum())
        assert not bool((mask & ~grown[name]).any())
        assert torch.equal(new, sorted_choice(scores[name], missing, ~mask))


@for_all(
    case=layered(), share=SHARE, rounding=st.sampled_from([math.floor, math.ceil]), layout=st.sampled_from(LAYOUTS)
)
def test_drop_then_grow_conserves_each_layer_in_every_memory_layout(case, share, rounding, layout):
    scores, masks, _ = case
    kept = drop(masks, scores, share, rounding)
    grown = grow(kept, {name: -score for name, score in scores.items()}, like=masks)
    assert sizes_of(grown) == sizes_of(masks)
    turned = {name: laid_out(mask, layout) for name, mask in masks.items()}
    lowered = {name: laid_out(-score, layout) for name, score in scores.items()}
    again = drop(turned, {name: laid_out(score, layout) for name, score in scores.items()}, share, rounding)
    assert same(again, kept)
    assert same(grow(again, lowered, like=turned), grown)


@for_all(case=layered())
def test_growing_to_fewer_than_there_are_is_refused(case):
    scores, masks, _ = case
    assume(count_active(masks) > 0)
    with pytest.raises(ContractError, match="cannot keep -"):
        grow(masks, scores, like={name: torch.zeros_like(mask) for name, mask in masks.items()})


# --- distributions -------------------------------------------------------------------------------------------------


def raw_density(kind, shape):
    """Return the density a distribution gives a layer before scaling, from the papers' formulas."""
    if kind == "uniform":
        return 1.0
    sides = shape if kind == "erk" else shape[:2]
    return sum(sides) / math.prod(sides)


def bisected_counts(kind, shapes, total):
    """Return the real-valued counts that sum to `total`: min(1, eps x raw) x size, with eps found by bisection."""
    raws = {name: raw_density(kind, shape) for name, shape in shapes.items()}
    low, high = 0.0, 1.0 / min(raws.values())
    for _ in range(100):
        middle = (low + high) / 2
        reached = sum(min(1.0, middle * raws[name]) * math.prod(shape) for name, shape in shapes.items())
        low, high = (middle, high) if reached < total else (low, middle)
    return {name: min(1.0, high * raws[name]) * math.prod(shape) for name, shape in shapes.items()}


each_kind = pytest.mark.parametrize("kind", sorted(DISTRIBUTIONS))


@each_kind
@for_all(case=networks())
def test_every_layer_is_within_one_weight_of_the_solution_by_bisection(kind, case):
    shapes, total = case
    counts = DISTRIBUTIONS[kind](shapes, total)
    assert list(counts) == list(shapes) and all(type(count) is int for count in counts.values())
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] <= math.prod(shape) for name, shape in shapes.items())
    real = bisected_counts(kind, shapes, total)
    cut = [real[name] - counts[name] for name in shapes]
    assert all(abs(part) < 1 + 1e-6 for part in cut)
    assert max(cut) - min(cut) < 1 + 1e-6  # no smaller remainder is rounded up before a larger one


@each_kind
@for_all(shapes=st.dictionaries(NAMES, st.one_of(SHAPES, st.just((1,))), min_size=1, max_size=4))
def test_counts_sum_exactly_for_every_total_and_a_layer_never_loses_more_than_rounding(kind, shapes):
    most, before = total_weights(shapes), dict.fromkeys(shapes, 0)
    for total in range(most + 1):
        counts = DISTRIBUTIONS[kind](shapes, total)
        assert sum(counts.values()) == total
        assert all(0 <= counts[name] <= math.prod(shape) for name, shape in shapes.items())
        assert all(counts[name] >= before[name] - 1 for name in shapes)
        before = counts
    assert before == {name: math.prod(shape) for name, shape in shapes.items()}


@each_kind
@for_all(case=networks())
def test_names_do_not_matter_and_equal_layers_differ_by_one_weight_the_earlier_having_more(kind, case):
    shapes, total = case
    counts = DISTRIBUTIONS[kind](shapes, total)
    renamed = {f"{len(shapes) - i}.weight": shape for i, shape in enumerate(shapes.values())}
    assert list(DISTRIBUTIONS[kind](renamed, total).values()) == list(counts.values())
    for first, second in zip(shapes, list(shapes)[1:], strict=False):
        if shapes[first] == shapes[second]:
            assert 0 <= counts[first] - counts[second] <= 1


@each_kind
@for_all(case=networks())
def test_the_order_of_layers_moves_no_more_than_rounding(kind, case):
    shapes, total = case
    counts, turned = DISTRIBUTIONS[kind](shapes, total), DISTRIBUTIONS[kind](dict(reversed(shapes.items())), total)
    assert all(abs(counts[name] - turned[name]) <= 1 for name in shapes)


@for_all(sides=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=4), share=SHARE)
def test_erk_and_erdos_renyi_agree_on_layers_of_two_dimensions(sides, share):
    shapes = {f"layer{i}": pair for i, pair in enumerate(sides)}
    total = round(share * total_weights(shapes))
    assert erk(shapes, total) == erdos_renyi(shapes, total)


@each_kind
@for_all(case=networks(), beyond=st.integers(1, 10**9), below=st.booleans())
def test_a_total_outside_the_network_is_refused(kind, case, beyond, below):
    shapes, _ = case
    with pytest.raises(ValueError, match="cannot keep"):
        DISTRIBUTIONS[kind](shapes, -beyond if below else total_weights(shapes) + beyond)


# --- schedules -----------------------------------------------------------------------------------------------------

ENDS = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@for_all(start=ENDS, end=ENDS, updates=st.integers(1, 300))
def test_cubic_and_cosine_go_from_start_to_end_and_never_back(start, end, updates):
    sign = 1 if end >= start else -1
    for schedule in (cubic, cosine):
        path = [schedule(start, end, k / updates) for k in range(updates + 1)]
        assert path[-1] == end
        assert path[0] == pytest.approx(start, rel=0, abs=1e-15)
        assert all(sign * (after - before) >= 0 for before, after in itertools.pairwise(path))
        assert all(min(start, end) <= value <= max(start, end) for value in path[1:])
        assert len(set(path)) == (updates + 1 if start != end else 1)  # moves at every update
    assert cubic(start, end, 0.0) == start


@for_all(start=ENDS, end=ENDS, progress=SHARE)
def test_cubic_and_cosine_are_their_formulas(start, end, progress):
    left = Fraction(1) - Fraction(progress)
    exact = Fraction(end) + (Fraction(start) - Fraction(end)) * left * left * left
    assert cubic(start, end, progress) == pytest.approx(float(exact), rel=0, abs=1e-12)
    # half a cosine, by the half-angle identity
    share = math.cos(math.pi * progress / 2) ** 2
    assert cosine(start, end, progress) == pytest.approx(share * start + (1 - share) * end, rel=0, abs=1e-12)


@for_all(every=st.integers(1, 40), stop=st.one_of(st.integers(-5, 200), st.floats(-5, 200)))
def test_update_steps_are_the_multiples_below_the_stop(every, stop):
    steps = update_range(every, stop)
    assert isinstance(steps, range)
    assert list(steps) == [step for step in range(1, 202) if step % every == 0 and step < stop]


RUNS = st.tuples(st.integers(1, 30), st.integers(0, 100), st.integers(1, 100), st.integers(1, 300))


@pytest.mark.parametrize("every", [1, 2, 7, 10])
def test_gradual_pruning_leaves_out_no_multiple_up_to_its_end_and_never_uses_the_last_step(every):
    for total, hundredths in itertools.product(range(1, 121), range(101)):
        steps = prune_range(every, hundredths / 100, total)
        wanted = [s for s in range(every, total, every) if 100 * s <= hundredths * total]
        assert list(steps)[: len(wanted)] == wanted, (hundredths, total)
        assert all(0 < step < total and step % every == 0 for step in steps), (hundredths, total)


@for_all(case=RUNS)
def test_gradual_pruning_never_passes_the_share_of_the_run_it_is_given(case):
    every, part, parts, total = case
    part = min(part, parts)
    steps = prune_range(every, part / parts, total)
    assert all(step * parts <= part * total for step in steps), f"{list(steps)} passes {part}/{parts} of {total}"


def test_an_end_on_a_whole_step_is_the_last_pruning_step():
    for total, hundredths in itertools.product(range(1, 301), range(101)):
        end, rest = divmod(hundredths * total, 100)
        if not rest:
            wanted = range(1, min(end + 1, total))
            assert prune_range(1, hundredths / 100, total) == wanted, (hundredths, total)


@for_all(case=RUNS)
def test_pruning_progress_counts_the_pruning_steps_done_and_ends_at_exactly_one(case):
    every, hundredths, _, total = case
    steps = prune_range(every, hundredths / 100, total)
    path = [prune_progress(step, every, steps) for step in range(total + 1)]
    done = [sum(s <= step for s in steps) / len(steps) if len(steps) else 0.0 for step in range(total + 1)]
    assert path == done
    assert path == sorted(path) and path[0] == 0.0
    if len(steps):
        assert path[steps[-1]] == path[-1] == 1.0
        assert all(path[step] < 1.0 for step in range(steps[-1]))
        assert cubic(0.3, 0.95, path[steps[-1]]) == 0.95


# --- the view ------------------------------------------------------------------------------------------------------


def make_view(weights, masks=None, step=3, seed=0, gradients=None, hessian_gradients=None):
    """Return a view of some weights; all of them active unless masks are given."""
    masks = masks or {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    return View(
        weights=weights,
        masks=masks,
        step=step,
        timeline=Timeline(total_steps=10, steps_per_epoch=5),
        seed=seed,
        gradients=gradients,
        hessian_gradients=hessian_gradients,
    )


PURPOSES = st.text(LETTERS + "/ ", max_size=4)
DRAWS = st.tuples(st.integers(0, 2**40), st.integers(0, 10**6), NAMES, PURPOSES)  # seed, step, name, purpose


def draw_numbers(key, shape=(2,), **others):
    """Return the random numbers of one seed, step, name and purpose."""
    seed, step, name, purpose = key
    return make_view({name: torch.zeros(shape), **others}, step=step, seed=seed).random(name, purpose)


@for_all(key=DRAWS, shape=SHAPES, noise=SEEDS)
def test_random_numbers_are_pure_and_leave_every_global_generator_alone(key, shape, noise):
    torch.manual_seed(noise)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = draw_numbers(key, shape)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    torch.manual_seed(noise + 1)
    assert torch.equal(draw_numbers(key, shape, another=torch.zeros(3)), first)
    assert first.dtype == torch.float64 and first.shape == shape
    assert bool(((first >= 0) & (first < 1)).all())


@for_all(first=DRAWS, second=DRAWS, swapped=st.integers(0, 3))
def test_random_numbers_differ_where_seed_step_name_or_purpose_differ(first, second, swapped):
    changed = tuple(second[i] if i == swapped else first[i] for i in range(4))
    for other in {changed, second} - {first}:
        assert not torch.equal(draw_numbers(first), draw_numbers(other)), (first, other)


@for_all(
    digits=st.text("123456789", min_size=5, max_size=9),
    cuts=st.tuples(*[st.lists(st.integers(1, 4), min_size=3, max_size=3, unique=True).map(sorted)] * 2),
)
def test_random_numbers_tell_where_seed_step_name_and_purpose_begin(digits, cuts):
    assume(cuts[0] != cuts[1])
    one, other = ((int(digits[:a]), int(digits[a:b]), digits[b:c], digits[c:]) for a, b, c in cuts)
    assert not torch.equal(draw_numbers(one), draw_numbers(other)), (one, other)


@for_all(key=DRAWS, layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(DTYPES))
def test_random_numbers_depend_on_no_layout_dtype_or_value_of_the_weights(key, layout, dtype):
    seed, step, name, purpose = key
    weight = laid_out(torch.arange(24.0).reshape(2, 3, 2, 2), layout).to(dtype)
    drawn = make_view({name: weight}, step=step, seed=seed).random(name, purpose)
    assert torch.equal(drawn, draw_numbers(key, (2, 3, 2, 2)))


@pytest.mark.parametrize("step", range(4))
def test_every_tenth_of_the_unit_interval_gets_its_share_of_random_numbers(step):
    drawn = draw_numbers((0, step, "a", ""), (10_000,))
    assert all(850 < int(part) < 1150 for part in torch.histc(drawn, 10, 0, 1))  # five standard deviations


@for_all(case=layered(), step=st.integers(0, 10), sparsity=SHARE)
def test_a_view_shows_shapes_progress_and_the_count_of_its_weights(case, step, sparsity):
    scores, masks, _ = case
    view = make_view(scores, masks, step=step)
    assert list(view.weights) == list(view.masks) == list(view.shapes) == list(scores)
    assert view.shapes == {name: tuple(score.shape) for name, score in scores.items()}
    assert view.progress == step / 10
    assert view.count(sparsity) == count_kept(sparsity, sum(score.numel() for score in scores.values()))
    assert all_bits(view.weights) == all_bits(scores)


@for_all(case=layered(), declared=st.tuples(st.booleans(), st.booleans()))
def test_gradients_are_shown_exactly_where_they_were_declared(case, declared):
    scores, _, _ = case
    first, second = (scores if yes else None for yes in declared)
    view = make_view(scores, gradients=first, hessian_gradients=second)
    for yes, read in zip(declared, (lambda: view.gradients, lambda: view.hessian_gradients), strict=True):
        if yes:
            assert all_bits(read()) == all_bits(scores)
        else:
            with pytest.raises(ContractError, match="did not declare"):
                read()


@pytest.mark.parametrize("facet", ["weights", "masks", "gradients", "hessian_gradients"])
@for_all(case=layered())
def test_no_entry_of_a_view_can_be_replaced_removed_or_added(case, facet):
    scores, masks, _ = case
    view = make_view(scores, masks, gradients=dict(scores), hessian_gradients=dict(scores))
    shown, name = getattr(view, facet), next(iter(scores))
    for change in (
        lambda: shown.__setitem__(name, torch.zeros(1)),
        lambda: shown.__setitem__(name + "-", torch.zeros(1)),
        lambda: shown.__delitem__(name),
        lambda: shown.clear(),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert list(getattr(view, facet)) == list(scores)


@for_all(case=layered())
def test_a_view_keeps_the_names_it_was_made_with_and_no_gradient_history(case):
    scores, masks, _ = case
    source = {name: score.clone().requires_grad_() for name, score in scores.items()}
    view = make_view(source, masks)
    names = list(source)
    source.clear()
    masks.clear()
    assert list(view.weights) == list(view.masks) == names
    assert not any(weight.requires_grad for weight in view.weights.values())


# --- scores --------------------------------------------------------------------------------------------------------


@st.composite
def scored(draw):
    """Draw a dtype, and weights, gradients and Hessian-gradient products of that dtype for two layers."""
    dtype = draw(st.sampled_from(DTYPES))
    shapes = {name: draw(SHAPES) for name in ("b", "a")}
    return dtype, *({name: draw(numbers(shape, dtype)) for name, shape in shapes.items()} for _ in range(3))


@for_all(case=scored())
def test_scores_are_their_formulas_in_single_precision_or_better(case):
    dtype, weights, gradients, products = case
    view = make_view(weights, gradients=gradients, hessian_gradients=products)
    wide = np.float64 if dtype == torch.float64 else np.float32
    before = all_bits(weights), all_bits(gradients), all_bits(products)
    found = [score(view) for score in (magnitude, gradient_magnitude, snip_scores, grasp_scores)]
    for name in weights:
        w, g, h = (tensors[name].double().numpy().astype(wide) for tensors in (weights, gradients, products))
        with np.errstate(over="ignore"):
            expected = [np.abs(w), np.abs(g), np.abs(w * g), w * h]
        for score, array in zip(found, expected, strict=True):
            assert list(score) == list(weights)
            assert score[name].dtype == torch.from_numpy(array).dtype
            assert np.array_equal(score[name].numpy(), array)
    assert (all_bits(weights), all_bits(gradients), all_bits(products)) == before


@for_all(case=layered(), seed=SEEDS)
def test_random_scores_are_the_view_s_own_draws_and_differ_from_those_of_the_masks(case, seed):
    scores, _, _ = case
    view = make_view(scores, seed=seed)
    drawn = random_scores(view)
    assert list(drawn) == list(scores)
    for name in scores:
        assert torch.equal(drawn[name], view.random(name, "grow"))
        assert not torch.equal(drawn[name], view.random(name, "mask"))


# --- budgets and ranges --------------------------------------------------------------------------------------------


@for_all(sparsity=SHARE, weights=st.integers(0, 10**9))
def test_the_budget_is_within_half_a_weight_of_the_exact_product(sparsity, weights):
    kept = count_kept(sparsity, weights)
    slack = Fraction(weights, 2**52)  # 1 - sparsity and the product are rounded once each
    assert type(kept) is int and 0 <= kept <= weights
    assert abs(kept - (1 - Fraction(sparsity)) * weights) <= Fraction(1, 2) + slack
    assert count_kept(0.0, weights) == weights and count_kept(1.0, weights) == 0


def test_half_a_weight_is_rounded_to_the_even_count():
    for eighths, weights in itertools.product(range(9), range(200)):  # exact in binary
        assert count_kept(eighths / 8, weights) == round(Fraction((8 - eighths) * weights, 8)), (eighths, weights)


@dataclass(frozen=True, kw_only=True)
class Probe(Method):
    """A method with every hyper-parameter whose range is checked."""

    group: ClassVar[Group] = Group.CONTROL
    prune_rate: float = 0.5
    final_prune_rate: float = 0.5
    prune_end: float = 0.5
    update_end: float = 0.5
    start_sparsity: float = 0.5
    rate: float = 0.5
    update_every: int = 10
    distribution: str = "erk"

    def setup(self, view):
        return all_active(view)


OUTSIDE = st.sampled_from([-1e-9, 1 + 1e-9, math.nan, math.inf, -math.inf])


@pytest.mark.parametrize("name", sorted(SHARES))
@for_all(value=st.one_of(SHARE, st.floats(), OUTSIDE))
def test_a_share_is_accepted_exactly_from_zero_to_one(name, value):
    setting = {"sparsity": 0.5, name: value}
    if value >= 0 and value <= 1:
        assert getattr(Probe(**setting), name) == value
    else:
        with pytest.raises(ValueError, match=f"{name} must be in"):
            Probe(**setting)


@for_all(
    every=st.integers(-100, 100),
    distribution=st.one_of(st.sampled_from(sorted(DISTRIBUTIONS)), st.text(LETTERS, max_size=8)),
)
def test_update_intervals_below_a_step_and_unknown_distributions_are_refused(every, distribution):
    if every >= 1 and distribution in DISTRIBUTIONS:
        assert Probe(sparsity=0.5, update_every=every, distribution=distribution).update_every == every
    else:
        with pytest.raises(ValueError, match=r"update_every must be|distribution must be one of"):
            Probe(sparsity=0.5, update_every=every, distribution=distribution)


# --- packed masks --------------------------------------------------------------------------------------------------

ANY_SHAPES = st.one_of(SHAPES, st.sampled_from([(), (0,), (2, 0, 3), (8,), (16, 1)]))


@for_all(mask=ANY_SHAPES.flatmap(masks_of), layout=st.sampled_from(LAYOUTS))
def test_packing_is_numpy_s_row_major_packbits_and_comes_back(mask, layout):
    packed = pack(laid_out(mask, layout))
    assert packed.dtype == torch.uint8 and packed.shape == (math.ceil(mask.numel() / 8),)
    assert packed.tolist() == np.packbits(mask.numpy().ravel()).tolist()
    back = unpack(packed, mask.shape)
    assert back.dtype == torch.bool and back.shape == mask.shape and torch.equal(back, mask)


# --- the masks in force --------------------------------------------------------------------------------------------


@st.composite
def recipes(draw):
    """Draw an optimiser and its settings."""
    decay, lr, foreach = (
        draw(st.sampled_from([0.0, 5e-4, 0.3])),
        draw(st.sampled_from([1e-3, 0.1, 1.0])),
        draw(st.booleans()),
    )
    if draw(st.booleans()):
        momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
        nesterov = momentum > 0 and draw(st.booleans())
        return torch.optim.SGD, dict(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, foreach=foreach)
    kind = draw(st.sampled_from([torch.optim.Adam, torch.optim.AdamW]))
    return kind, dict(lr=lr, weight_decay=decay, amsgrad=draw(st.booleans()), foreach=foreach)


@st.composite
def networks_in_training(draw):
    """Draw some layers, two sets of masks for them, an optimiser, a number of steps and a seed for the numbers."""
    names = draw(st.lists(NAMES.filter(lambda name: "." not in name), min_size=1, max_size=3, unique=True))
    shapes = {name: draw(SHAPES) for name in names}
    layout = draw(st.sampled_from(LAYOUTS[:2]))
    masks = [{name: draw(masks_of(shape)) for name, shape in shapes.items()} for _ in range(2)]
    return Trained(shapes, layout, draw(SEEDS), draw(recipes())), *masks, draw(st.integers(0, 6))


class Trained:
    """Some weights under masks, with their optimiser and a moving average, trained on random gradients."""

    def __init__(self, shapes, layout, seed, recipe):
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = layout
        self.weights = {name: nn.Parameter(self.numbers(shape)) for name, shape in shapes.items()}
        self.average = nn.Module()
        for name, shape in shapes.items():
            self.average.register_parameter(name, nn.Parameter(self.numbers(shape)))
        kind, options = recipe
        self.optimizer = kind(list(self.weights.values()), **options)
        self.maskset = MaskSet(self.weights)

    def numbers(self, shape):
        """Return random numbers other than zero, both signs."""
        size = torch.rand(shape, generator=self.generator) + 0.1
        return laid_out(size * (torch.randint(0, 2, shape, generator=self.generator) * 2 - 1), self.layout)

    def step(self, masked=True):
        """Take a step on random gradients."""
        for weight in self.weights.values():
            weight.grad = self.numbers(weight.shape)
        if masked:
            self.maskset.mask_gradients()
        self.optimizer.step()

    def tensors(self, name):
        """Return all that a mask governs: a weight, its average, its optimiser state."""
        states = self.optimizer.state.get(self.weights[name], {}).items()
        held = {key: value for key, value in states if key != "step" and value is not None}
        return {"weight": self.weights[name].detach(), "average": self.average.get_parameter(name).detach(), **held}

    def snapshot(self):
        """Return the bits of all there is, the masks in force included."""
        tensors = [all_bits(self.tensors(name)) for name in self.weights]
        factors = [bits(factor) for factor in self.maskset.factors]
        return tensors, factors, all_bits(self.maskset.masks), self.maskset.sha256()

    def copies(self):
        """Return copies of what each mask governs."""
        return {name: {key: value.clone() for key, value in self.tensors(name).items()} for name in self.weights}


@for_all(case=networks_in_training())
def test_a_commit_zeroes_exactly_what_is_off_the_masks_and_no_bit_elsewhere(case):
    run, first, second, steps = case
    run.maskset.commit(first, count_active(first), run.optimizer, run.average)
    for _ in range(steps):
        run.step()
    before, told = run.copies(), []
    run.maskset.listeners.append(told.append)
    run.maskset.commit(second, None, run.optimizer, run.average)
    assert same(run.maskset.masks, second)
    assert told == [sizes_of(second)] == [run.maskset.counts()]
    assert run.maskset.active() == count_active(second)
    for name, mask in second.items():
        assert list(run.tensors(name)) == list(before[name])
        for key, value in run.tensors(name).items():
            assert bits(value[mask]) == bits(before[name][key][mask]), key
            assert bits(value[~mask]) == bits(torch.zeros_like(value[~mask])), key
            if steps and key != "average":
                assert not bool(value[mask & ~first[name]].any()), key  # newly active: starts at zero


@for_all(
    shapes=st.dictionaries(NAMES, SHAPES, min_size=1, max_size=2),
    recipe=recipes(),
    seed=SEEDS,
    masks_seed=SEEDS,
    steps=st.integers(1, 5),
)
def test_active_weights_take_the_very_steps_they_take_in_a_dense_network(shapes, recipe, seed, masks_seed, steps):
    runs = [Trained({f"n{i}": s for i, s in enumerate(shapes.values())}, "contiguous", seed, recipe) for _ in range(2)]
    generator = torch.Generator().manual_seed(masks_seed)
    masks = {name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in runs[0].weights.items()}
    runs[0].maskset.commit(masks, None, runs[0].optimizer)
    for _ in range(steps):
        runs[0].step()
        runs[1].step(masked=False)
    for name, mask in masks.items():
        for key, value in runs[0].tensors(name).items():
            assert bits(value[mask]) == bits(runs[1].tensors(name)[key][mask]), (name, key)


@for_all(case=layered(), flips=st.lists(st.integers(0, 10**6), max_size=2), layout=st.sampled_from(LAYOUTS))
def test_hashes_are_equal_exactly_where_masks_are(case, flips, layout):
    scores, masks, _ = case
    others = {name: mask.clone() for name, mask in masks.items()}
    for flip in flips:
        spots = others[list(others)[flip % len(others)]].view(-1)
        spots[flip % len(spots)] ^= True
    sets = [MaskSet({n: nn.Parameter(laid_out(s.float(), form)) for n, s in scores.items()}) for form in ("", layout)]
    sets[0].commit(masks, None)
    sets[1].commit(others, None)
    assert (sets[0].sha256() == sets[1].sha256()) == same(masks, others)


@for_all(case=layered())
def test_hashes_tell_names_and_shapes_apart(case):
    scores, _, _ = case
    sets = [{}, {f"{name}x": score for name, score in scores.items()}, scores]
    sets[0] = {name: score.unsqueeze(0) for name, score in scores.items()}
    assert len({MaskSet({n: nn.Parameter(s.float()) for n, s in weights.items()}).sha256() for weights in sets}) == 3


@for_all(case=networks_in_training())
def test_packed_masks_restore_a_set_without_touching_weights_or_state(case):
    run, first, second, steps = case
    run.maskset.commit(first, None, run.optimizer, run.average)
    for _ in range(steps):
        run.step()
    tensors, factors, masks, digest = run.snapshot()
    other = MaskSet({name: nn.Parameter(torch.ones(weight.shape)) for name, weight in run.weights.items()})
    other.commit(second, None)
    other_weights = all_bits(other.weights)
    other.load_packed(run.maskset.packed())
    assert all_bits(other.masks) == masks and other.sha256() == digest
    assert [bits(factor) for factor in other.factors] == factors
    assert all_bits(other.weights) == other_weights
    assert run.snapshot() == (tensors, factors, masks, digest)


@for_all(case=networks_in_training(), absent=st.booleans())
def test_dense_gradients_are_copies_that_masking_does_not_reach(case, absent):
    run, first, _, _ = case
    run.maskset.commit(first, None, run.optimizer)
    given_out = {name: run.numbers(weight.shape) for name, weight in run.weights.items()}
    for name, weight in run.weights.items():
        weight.grad = None if absent else given_out[name].clone()
    dense = run.maskset.dense_gradients()
    run.maskset.mask_gradients()
    for name, weight in run.weights.items():
        expected = torch.zeros(weight.shape) if absent else given_out[name]
        assert dense[name].dtype == torch.float32 and bits(dense[name]) == bits(expected)
        if not absent:
            assert torch.equal(weight.grad, torch.where(first[name], given_out[name], torch.zeros(())))
