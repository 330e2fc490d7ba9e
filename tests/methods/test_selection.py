"""Promises of exact selection: on every path the choice is that of a stable descending sort."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from methods.core import ContractError, selection
from methods.core.selection import choose, choose_by_sorting, choose_each
from tests.harness import oracles

PATHS = ("ranking", "sampling", "sorting")
LEAST = {torch.float32: 1e-45, torch.float64: 5e-324}  # the smallest subnormal numbers


def take(path, scores, k, among):
    """Choose on one path, whatever the size."""
    if path == "sorting":
        masks, facts = choose_by_sorting(scores, k, among)
        selection.check(k, *facts.tolist())
        return masks
    return choose(scores, k, among)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """The path to choose on; bounds serve small tensors too, and positions are looked for in small pieces."""
    monkeypatch.setattr(selection, "FEW", 0 if request.param == "sampling" else math.inf)
    monkeypatch.setattr(selection, "STRIDE", 3)
    monkeypatch.setattr(selection, "CHUNK", 4)
    return request.param


def stable_sort(scores, k, among):
    """Return the oracle's choice: the first k candidates of all tensors as one vector, tensor after tensor."""
    flat = {n: score.double().contiguous().numpy() for n, score in enumerate(scores)}
    masks = [
        np.ones(s.shape, bool) if m is None else m.contiguous().numpy() for s, m in zip(scores, among, strict=True)
    ]
    return [torch.from_numpy(mask) for mask in oracles.best_of_all(flat, k, dict(enumerate(masks))).values()]


def draw_case(generator, case):
    """Draw some layers of scores with candidates, and a budget; which kind of numbers depends on the case."""
    dtype = (torch.float32, torch.float64)[case % 2]
    kind = case // 2 % 5
    scores, among = [], []
    for _ in range(int(generator.integers(1, 5))):
        shape = tuple(generator.integers(1, 5, 4)) if generator.random() < 0.6 else (int(generator.integers(1, 60)),)
        if kind == 0:  # many ties, zeros of both signs
            values = generator.choice([0.0, -0.0, 0.5, 1.0, 1.0], shape)
        elif kind == 1:  # subnormal numbers, one counter's worth
            values = generator.integers(-3, 4, shape) * LEAST[dtype]
        elif kind == 2:  # equal upper bits, other lower ones
            values = 1 + generator.integers(0, 4, shape) * float(torch.finfo(dtype).eps)
        elif kind == 3:
            values = generator.standard_normal(shape) * 10.0 ** generator.integers(-30, 30)
        else:
            values = np.abs(generator.standard_normal(shape)) * (generator.random(shape) < 0.3)
        layer = torch.from_numpy(np.asarray(values, dtype=np.float64)).to(dtype)
        mask = torch.from_numpy(generator.random(shape) < generator.choice([0.0, 0.1, 0.5, 1.0]))
        if layer.dim() == 4 and generator.random() < 0.5:
            layer = layer.contiguous(memory_format=torch.channels_last)
        if mask.dim() == 4 and generator.random() < 0.5:
            mask = mask.contiguous(memory_format=torch.channels_last)
        scores.append(layer)
        among.append(None if generator.random() < 0.3 else mask)
    available = sum(s.numel() if m is None else int(m.sum()) for s, m in zip(scores, among, strict=True))
    return scores, int(generator.choice([0, available, generator.integers(0, available + 1)])), among


def test_the_choice_is_that_of_a_stable_sort_on_500_cases(path):
    generator = np.random.default_rng(0)
    for case in range(500):
        scores, k, among = draw_case(generator, case)
        expected = stable_sort(scores, k, among)
        for found, right in zip(take(path, scores, k, among), expected, strict=True):
            assert torch.equal(found, right), (case, k)


@pytest.mark.parametrize("few", [0, math.inf])
def test_absolute_values_that_are_never_there_as_a_whole_are_chosen_like_those_that_are(few, monkeypatch):
    monkeypatch.setattr(selection, "FEW", few)
    monkeypatch.setattr(selection, "STRIDE", 3)
    monkeypatch.setattr(selection, "CHUNK", 4)  # pieces share their room
    generator = np.random.default_rng(2)
    for case in range(200):
        scores, k, among = draw_case(generator, case)
        right = stable_sort([score.abs() for score in scores], k, among)
        found = choose(scores, k, among, sized=True)
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True)), case


def test_bounds_that_prove_wrong_cost_time_alone(monkeypatch):
    monkeypatch.setattr(selection, "FEW", 0)
    generator = np.random.default_rng(3)
    for case in range(100):
        scores, k, among = draw_case(generator, case)
        low, high = sorted(generator.standard_normal(2))
        bounds = torch.tensor(low, dtype=scores[0].dtype), torch.tensor(high, dtype=scores[0].dtype)
        monkeypatch.setattr(selection, "find_bounds", lambda found, k, bounds=bounds: bounds)
        for found, right in zip(choose(scores, k, among), stable_sort(scores, k, among), strict=True):
            assert torch.equal(found, right), case


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_is_refused_among_the_candidates_and_ignored_elsewhere(path, bad, dtype):
    scores = torch.tensor([3.0, bad, 1.0, 2.0], dtype=dtype)
    for k in (0, 2, 4):
        with pytest.raises(ContractError, match="not finite"):
            take(path, [scores], k, [None])
    among = torch.tensor([True, False, True, True])
    assert take(path, [scores], 2, [among])[0].tolist() == [True, False, False, True]


@pytest.mark.parametrize(("k", "message"), [(3, "cannot keep 3 of 2"), (-1, "cannot keep -1 of 2")])
def test_a_budget_that_does_not_fit_the_candidates_is_refused(path, k, message):
    with pytest.raises(ContractError, match=message):
        take(path, [torch.ones(4)], k, [torch.tensor([True, False, True, False])])


@pytest.mark.parametrize(("layout", "count"), list(product([torch.contiguous_format, torch.channels_last], [1, 2])))
def test_a_large_choice_is_the_same_in_every_memory_format_with_one_thread_and_with_two(layout, count):
    """At full size, so that sample and pieces are the real ones: 147,456 scores of which most tie."""
    generator = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        for grain in (3, 1000, 2**23):
            scores = torch.randint(0, grain, (128, 128, 3, 3), generator=generator).float() / grain
            among = torch.rand(scores.shape, generator=generator) < 0.7
            k = int(among.sum()) // 3
            assert scores.numel() >= selection.FEW
            expected = stable_sort([scores], k, [among])[0]
            found = choose([scores.contiguous(memory_format=layout)], k, [among.contiguous(memory_format=layout)])[0]
            assert torch.equal(found, expected), grain
    finally:
        torch.set_num_threads(before)


def test_layers_by_themselves_are_chosen_as_each_alone():
    generator = np.random.default_rng(1)
    scores = [torch.from_numpy(generator.standard_normal(n)) for n in (5, 70000, 9)]
    among = [None, torch.from_numpy(generator.random(70000) < 0.5), None]
    counts = [2, 1234, 9]
    for found, s, k, m in zip(choose_each(scores, counts, among), scores, counts, among, strict=True):
        assert torch.equal(found, stable_sort([s], k, [m])[0])


def test_selection_changes_none_of_its_inputs(path):
    scores, among = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([True, True, True, False])
    before = scores.clone(), among.clone()
    take(path, [scores], 1, [among])
    assert torch.equal(scores, before[0]) and torch.equal(among, before[1])
