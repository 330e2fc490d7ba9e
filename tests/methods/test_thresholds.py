"""DNW, SR-STE and STR by numbers worked out by hand, and what a run keeps of thresholds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.training.rehearsal import rehearse
from benchmark.training.step import apply
from methods.core import Budget, Masks, Timeline, View, find_shift, shift
from methods.dnw import DNW
from methods.sr_ste import SRSTE
from methods.str import STR
from tests.harness import small
from tests.harness.disagreement import start
from tests.harness.mutants_thresholds import STRNeverFixes

LINE = Timeline(16, 4)


def show(stored: dict[str, list], step: int, learned: dict[str, float] | None = None) -> View:
    """Return a view of stored weights, every second of which was left out."""
    values = {name: torch.tensor(rows, dtype=torch.float32) for name, rows in stored.items()}
    masks = {name: torch.arange(value.numel()).view(value.shape) % 2 == 0 for name, value in values.items()}
    return View(
        weights={name: value * masks[name] for name, value in values.items()},
        masks=masks,
        step=step,
        timeline=LINE,
        seed=0,
        stored=values,
        learned={name: torch.tensor(s) for name, s in (learned or {}).items()},
    )


def digits(masks: Masks | Tensor) -> str:
    """Return masks as 0 and 1, layer after layer."""
    parts = masks.values() if isinstance(masks, dict) else [masks]
    return " ".join("".join(str(int(bit)) for bit in mask.flatten()) for mask in parts)


def test_dnw_computes_with_the_largest_of_each_layer_those_left_out_included():
    view = show({"a": [[1, -5], [3, 4]], "b": [[9, 8], [7, 6]]}, step=3)
    assert digits(DNW(sparsity=0.5).update(view)) == "0101 1100"
    assert digits(DNW(sparsity=0.75).setup(view)) == "0100 1000"


def test_dnw_names_layers_that_keep_fewer_weights_than_outputs():
    shapes = {"first": (16, 1, 3, 3), "other": (16, 16, 3, 3)}  # 2 % of 144 and of 2304
    assert DNW(sparsity=0.98).remarks(shapes)[0].startswith("fewer weights than outputs stay in first (3 of 144):")
    assert DNW(sparsity=0.9, distribution="erk").remarks(shapes) == DNW(sparsity=0.5).remarks(shapes) == []


def test_dnw_trains_what_it_leaves_out_straight_through():
    """One step of plain SGD: every stored weight moves by lr x the gradient of the weight computed with, and decay."""
    run = start(DNW(sparsity=0.5), "dnw", small.SmallNet, 0, momentum=0.0, nesterov=False, weight_decay=0.0, epochs=1)
    before = {name: value.clone() for name, value in run.maskset.stored.values.items()}
    left_out = {name: ~mask.clone() for name, mask in run.maskset.masks.items()}
    small.finish(run)
    moved = {name: (value != before[name]) & left_out[name] for name, value in run.maskset.stored.values.items()}
    assert sum(int(m.sum()) for m in moved.values()) > sum(int(out.sum()) for out in left_out.values()) / 2
    assert all(bool((run.maskset.weights[n][~mask] == 0).all()) for n, mask in run.maskset.masks.items())


def test_sr_ste_keeps_n_of_four_and_lets_the_others_decay():
    view = show({"a": [[1, -5, 3, 4, 8, 7, 6, 5]], "three": [[1, 2, 3]]}, step=3)
    two, one = SRSTE(sparsity=0.5), SRSTE(sparsity=0.75, pattern="1:4", sparse_decay=0.5)
    assert digits(two.update(view)) == "01011100 111"
    assert digits(one.update(view)) == "01001000 111"
    extra = one.penalty(view)  # the second, fourth ... of every layer was left out
    assert extra["a"].tolist() == [[0, -2.5, 0, 2, 0, 3.5, 0, 2.5]]
    assert extra["three"].tolist() == [[0, 1, 0]]
    assert "three dense" in two.remarks({"a": (1, 8), "three": (1, 3)})[0]


def test_sr_ste_refuses_other_sparsities_than_its_patterns():
    with pytest.raises(ValueError, match=r"2:4 keeps 2 of every 4 weights, so its sparsity is 0.5, got 0.9"):
        SRSTE(sparsity=0.9)
    with pytest.raises(ValueError, match="sparse_decay must be at least 0, got -1"):
        SRSTE(sparsity=0.5, sparse_decay=-1.0)


def test_str_subtracts_its_threshold_and_learns_it():
    """s = 0 is a threshold of 1/2: 3, -2, 0.5 become 2.5, -1.5, 0; ds = -1/4 (1 x 1 - 1 x 2), the third has no part."""
    weight = torch.tensor([3.0, -2.0, 0.5], requires_grad=True)
    learned = {"a.s": torch.zeros((), requires_grad=True)}
    used = STR(sparsity=0.5).weigh("a", weight, learned)
    assert used.tolist() == [2.5, -1.5, 0]
    used.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert weight.grad.tolist() == [1, 2, 0] and learned["a.s"].grad.item() == 0.25


def test_a_shift_leaves_the_weights_that_exceed_their_thresholds_most():
    """Distances logit |w| - s: 2.197 and 1.386 (s = 0), 1 and -0.386 (s = -1): three stay from -0.386 on."""
    sizes = {"a": torch.tensor([0.9, 0.8]), "b": torch.tensor([0.5, 0.2])}
    s = {"a": torch.tensor(0.0), "b": torch.tensor(-1.0)}
    assert find_shift(sizes, s, 3) == pytest.approx(math.log(0.2 / 0.8) + 1, abs=1e-5)
    assert find_shift(sizes, s, 1) == pytest.approx(math.log(0.8 / 0.2), abs=1e-5)
    assert find_shift(sizes, s, 4) == -110  # a threshold of zero
    assert find_shift({"a": torch.tensor([2.0, 3.0])}, {"a": s["a"]}, 1) == 20  # of one, and both stay
    assert shift(torch.tensor(-3200.0), 3199.9).item() == pytest.approx(-0.1, abs=1e-7)


def test_the_controller_shifts_to_the_schedule_and_fixes_by_distance():
    """Updates at 2 .. 12 of 16, pruning at 2 .. 8: k = 2 of 4 gives 0.5 (1 - 0.5^3) = 0.4375, 2.25 of 4 weights."""
    method = STR(sparsity=0.5, update_every=2)
    assert list(method.update_steps(LINE)) == [2, 4, 6, 8, 10, 12]
    assert [method.planned_sparsity(step, LINE) for step in (0, 4, 8, 16)] == [0, 0.4375, 0.5, 0.5]
    stored = {"a": [[0.9, -0.8]], "b": [[0.5, 0.2]]}
    values = method.update(show(stored, 4, {"a.s": 0.0, "b.s": -1.0})).values
    assert values["a.s"].item() == pytest.approx(1, abs=1e-5) and values["b.s"].item() == pytest.approx(0, abs=1e-5)
    # fixed at 12, or one later where that step was skipped: 0.9 - 0.9 and 0.8 - 0.9 against 0.5 - 0.1 and 0.2 - 0.1
    logit = math.log(9)
    for step in (12, 13):
        fixed = method.update(show(stored, step, {"a.s": logit, "b.s": -logit}))
        assert digits(fixed.masks) == "00 11" and fixed.values is None


def test_a_shift_starts_the_momentum_of_thresholds_anew_and_of_nothing_else(monkeypatch):
    """Momentum from s_init = -3200 would carry a threshold that is shifted to about -5 past every weight."""
    seen = []

    def watch(run, update, view):
        apply(run, update, view)
        if update.values:
            state, own = run.optimizer.state, run.method_state.learned
            sizes = [float(state[p]["momentum_buffer"].abs().sum()) for p in (*own.values(), *run.model.parameters())]
            seen.append((sizes[: len(own)], sizes[len(own) :]))

    monkeypatch.setattr("benchmark.training.step.apply", watch)
    small.finish(start(STR(sparsity=0.8, update_every=2), "str", small.SmallNet, 0, epochs=4))
    assert len(seen) > 3
    assert all(not any(thresholds) and all(weights) for thresholds, weights in seen)


def test_str_refuses_to_fix_masks_before_the_schedule_ends():
    with pytest.raises(ValueError, match=r"fix_at must be in \[prune_end, 1\], here \[0.8, 1\], got 0.75"):
        STR(sparsity=0.5, prune_end=0.8)


@pytest.mark.parametrize("controller", [True, False])
def test_a_run_keeps_the_density_that_thresholds_reached(controller):
    method = STR(sparsity=0.8, update_every=2, controller=controller, s_init=-3200.0 if controller else -2.0)
    assert method.promised_budget() is (Budget.EXACT if controller else Budget.OUTCOME)
    run = start(method, "str", small.SmallNet, 0, epochs=4)
    assert run.method_state.reached is None
    small.finish(run)
    density = run.maskset.active() / run.maskset.total
    assert run.maskset.stored is None and 0 < run.method_state.reached < 1
    assert run.method_state.reached == density if not controller else abs(density - 0.2) * run.maskset.total < 0.5
    again = small.make_training(method, "str", 0, epochs=4)
    again.load_state(run.state())
    assert again.method_state.reached == run.method_state.reached


def test_an_exact_promise_needs_masks_at_the_last_update():
    with pytest.raises(UserError, match="'x' promises an exact count and no update returns masks"):
        rehearse(STRNeverFixes(sparsity=0.5, update_every=2), "x", LINE)
