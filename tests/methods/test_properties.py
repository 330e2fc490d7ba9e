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
    gradient_magnitude,
    grasp_scores,
    grow,
    keep_top_global,
    magnitude,
    prune_progress,
    prune_range,
    random_masks,
    snip_scores,
    update_range,
)
from methods.core.ranges import SHARES
from tests.harness import oracles

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


def numpy_of(tensors):
    """Return tensors as arrays, floats in float64, which holds every dtype exactly."""
    return {name: (t if t.dtype == torch.bool else t.double()).numpy() for name, t in tensors.items()}


def best(scores, k, among):
    """Return the oracle's choice of k candidates: the first of a stable descending sort."""
    return torch.from_numpy(oracles.best(scores.double().numpy(), k, among.numpy()))


def total_weights(shapes):
    """Return the number of weights of some layers."""
    return sum(math.prod(shape) for shape in shapes.values())


# --- keep_top, keep_top_global -------------------------------------------------------------------------------------


@for_all(case=layered(), share=SHARE)
def test_global_selection_is_a_stable_sort_of_all_layers_as_one_vector(case, share):
    scores, among, _ = case
    k = round(share * count_active(among))
    kept = keep_top_global(scores, k, among)
    expected = oracles.best_of_all(numpy_of(scores), k, numpy_of(among))
    assert list(kept) == list(scores)
    assert all(kept[name].shape == score.shape for name, score in scores.items())
    assert all(np.array_equal(mask, expected[name]) for name, mask in numpy_of(kept).items())


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
        assert torch.equal(kept[name], best(scores[name], active - gone, mask))


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
        assert torch.equal(new, best(scores[name], missing, ~mask))


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
    renamed = {f"{len(shapes) - i}.weight": shape for i, shape in enumerate(shapes.values())}
    assert list(DISTRIBUTIONS[kind](renamed, total).values()) == list(counts.values()), "names matter"
    real = bisected_counts(kind, shapes, total)
    cut = [real[name] - counts[name] for name in shapes]
    assert all(abs(part) < 1 + 1e-6 for part in cut)
    assert max(cut) - min(cut) < 1 + 1e-6  # no smaller remainder is rounded up before a larger one


# --- schedules -----------------------------------------------------------------------------------------------------

ENDS = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@for_all(start=ENDS, end=ENDS, progress=SHARE)
def test_cubic_and_cosine_are_their_formulas_and_exact_at_their_ends(start, end, progress):
    left = Fraction(1) - Fraction(progress)
    exact = Fraction(end) + (Fraction(start) - Fraction(end)) * left * left * left
    assert (cubic(start, end, 0.0), cubic(start, end, 1.0), cosine(start, end, 1.0)) == (start, end, end)
    assert cubic(start, end, progress) == pytest.approx(float(exact), rel=0, abs=1e-12)
    # half a cosine, by the half-angle identity
    share = math.cos(math.pi * progress / 2) ** 2
    assert cosine(start, end, progress) == pytest.approx(share * start + (1 - share) * end, rel=0, abs=1e-12)


@for_all(every=st.integers(1, 40), stop=st.one_of(st.integers(-5, 200), st.floats(-5, 200)))
def test_update_steps_are_the_multiples_below_the_stop(every, stop):
    steps = update_range(every, stop)
    assert isinstance(steps, range)
    assert list(steps) == [step for step in range(1, 202) if step % every == 0 and step < stop]


RUNS = st.tuples(st.integers(1, 30), st.integers(0, 100), st.integers(1, 300))


def test_gradual_pruning_is_at_every_multiple_up_to_its_end_and_never_at_the_last_step():
    for every, total, hundredths in itertools.product((1, 2, 7, 10), range(1, 121), range(101)):
        wanted = [step for step in range(every, total, every) if 100 * step <= hundredths * total]
        assert list(prune_range(every, hundredths / 100, total)) == wanted, (every, hundredths, total)


@for_all(case=RUNS)
def test_pruning_progress_counts_the_pruning_steps_done_and_ends_at_exactly_one(case):
    every, hundredths, total = case
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


def draw_numbers(key, shape=(2,)):
    """Return the random numbers of one seed, step, name and purpose."""
    seed, step, name, purpose = key
    return make_view({name: torch.zeros(shape)}, step=step, seed=seed).random(name, purpose)


@for_all(key=DRAWS, shape=SHAPES, noise=SEEDS, layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(DTYPES))
def test_random_numbers_depend_on_the_key_and_the_shape_alone(key, shape, noise, layout, dtype):
    torch.manual_seed(noise)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = draw_numbers(key, shape)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    torch.manual_seed(noise + 1)
    seed, step, name, purpose = key
    weights = {name: laid_out(torch.ones(shape), layout).to(dtype), f"{name}-": torch.zeros(3)}
    assert torch.equal(make_view(weights, step=step, seed=seed).random(name, purpose), first)
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


def test_every_tenth_of_the_unit_interval_gets_its_share_of_random_numbers():
    drawn = draw_numbers((0, 3, "a", ""), (10_000,))
    assert all(850 < int(part) < 1150 for part in torch.histc(drawn, 10, 0, 1))  # five standard deviations


@pytest.mark.parametrize(("kind", "says"), [("gradients", "did not declare"), ("hessian_gradients", "order=2")])
def test_gradients_are_shown_exactly_where_they_were_declared(kind, says):
    weights, shown = {"a": torch.ones(2)}, {"a": torch.tensor([3.0, 4.0])}
    assert torch.equal(getattr(make_view(weights, **{kind: shown}), kind)["a"], shown["a"])
    with pytest.raises(ContractError, match=says):
        getattr(make_view(weights), kind)


@pytest.mark.parametrize("facet", ["weights", "masks", "gradients", "hessian_gradients"])
def test_no_entry_of_a_view_can_be_replaced_removed_or_added(facet):
    weights = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(3)}
    view = make_view(weights, gradients=dict(weights), hessian_gradients=dict(weights))
    weights.clear()  # whatever it was made of
    shown = getattr(view, facet)
    for change in (
        lambda: shown.__setitem__("a", torch.zeros(1)),
        lambda: shown.__setitem__("c", torch.zeros(1)),
        lambda: shown.__delitem__("a"),
        lambda: shown.clear(),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert list(getattr(view, facet)) == ["a", "b"]
    assert not view.weights["a"].requires_grad


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


# --- budgets and ranges --------------------------------------------------------------------------------------------


@for_all(sparsity=SHARE, weights=st.integers(0, 10**9))
def test_the_budget_is_within_half_a_weight_of_the_exact_product(sparsity, weights):
    kept = count_kept(sparsity, weights)
    slack = Fraction(weights, 2**52)  # 1 - sparsity and the product are rounded once each
    assert type(kept) is int and 0 <= kept <= weights
    assert abs(kept - (1 - Fraction(sparsity)) * weights) <= Fraction(1, 2) + slack
    eighths = round(8 * sparsity)  # exact in binary: half a weight is rounded to the even count
    assert count_kept(eighths / 8, weights) == round(Fraction((8 - eighths) * weights, 8))


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


# --- the masks in force: with optimisers and averages they are held by the kit -------------------------------------


@for_all(case=layered(), layout=st.sampled_from(LAYOUTS[:2]))
def test_masking_zeroes_exactly_what_is_off_the_masks_and_no_bit_elsewhere(case, layout):
    scores, masks, _ = case
    before = {name: laid_out(score.float().clamp(-1e30, 1e30) + 1, layout) for name, score in scores.items()}
    weights = {name: nn.Parameter(value.clone()) for name, value in before.items()}
    for name, weight in weights.items():
        weight.grad = before[name].clone()
    maskset, told = MaskSet(weights), []
    maskset.listeners.append(told.append)
    maskset.commit(masks, count_active(masks))
    maskset.mask_gradients()
    assert same(maskset.masks, masks) and maskset.active() == count_active(masks)
    assert told == [sizes_of(masks)] == [maskset.counts()]
    for name, mask in masks.items():
        weight, gradient = weights[name].detach(), weights[name].grad
        assert bits(weight[mask]) == bits(gradient[mask]) == bits(before[name][mask])
        assert bits(weight[~mask]) == bits(torch.zeros(int((~mask).sum()))) and not gradient[~mask].any()


@for_all(case=layered(), flips=st.lists(st.integers(0, 10**6), max_size=2), layout=st.sampled_from(LAYOUTS))
def test_hashes_are_equal_exactly_where_masks_names_and_shapes_are(case, flips, layout):
    scores, masks, _ = case
    others = {name: mask.clone() for name, mask in masks.items()}
    for flip in flips:
        spots = others[list(others)[flip % len(others)]].view(-1)
        spots[flip % len(spots)] ^= True
    sets = [MaskSet({n: nn.Parameter(laid_out(s.float(), form)) for n, s in scores.items()}) for form in ("", layout)]
    sets[0].commit(masks, None)
    sets[1].commit(others, None)
    assert (sets[0].sha256() == sets[1].sha256()) == same(masks, others)
    for changed in ({f"{n}x": s for n, s in scores.items()}, {n: s.unsqueeze(0) for n, s in scores.items()}):
        other = MaskSet({n: nn.Parameter(s.float()) for n, s in changed.items()})
        other.commit({n: mask.reshape(changed[n].shape) for n, mask in zip(changed, masks.values(), strict=True)}, None)
        assert other.sha256() != sets[0].sha256()
