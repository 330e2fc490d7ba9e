"""What a method keeps or adds beyond masks: stored weights, values, state, learned parameters, penalties, rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from torch import nn

from benchmark.base.errors import UserError
from benchmark.networks.costs import Costs, Meter, scoring_cost
from benchmark.training.masks import MaskSet
from benchmark.training.rehearsal import rehearse
from benchmark.training.step import apply
from methods.core import (
    ContractError,
    DenseGrads,
    Group,
    Inactive,
    Method,
    Rounds,
    Scoring,
    Timeline,
    Trains,
    Update,
    View,
    all_active,
    drop,
    keep_top_global,
    magnitude,
)
from tests.harness import small
from tests.harness.disagreement import start

LINE = Timeline(24, 6)


def make_stored(trains: Trains) -> tuple[MaskSet, nn.Parameter, torch.optim.SGD]:
    weight = nn.Parameter(torch.tensor([4.0, -3.0, 2.0, -1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5, weight_decay=0.1)
    maskset = MaskSet({"w": weight})
    maskset.store(trains, averaged=False)
    return maskset, weight, optimizer


def bits(*values: int) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values).bool()}


def step(maskset: MaskSet, weight: nn.Parameter, optimizer: torch.optim.SGD, *gradient: float) -> None:
    weight.grad = torch.tensor(gradient, dtype=torch.float32)
    maskset.mask_gradients()
    assert maskset.stored is not None
    maskset.stored.load_stored()
    optimizer.step()
    maskset.stored.save_stored()
    maskset.load_effective()


def test_stored_weights_are_stepped_where_they_are_trained_and_come_back_with_their_values():
    maskset, weight, optimizer = make_stored(Trains.ACTIVE)
    maskset.commit(bits(1, 1, 0, 0), 2, optimizer, trained=bits(1, 1, 1, 0))
    assert weight.tolist() == [4, -3, 0, 0] and maskset.stored is not None
    step(maskset, weight, optimizer, 1, 0, 1, 9)
    # w - lr (g + 0.1 w), of the third as well; the fourth neither moves nor decays, and has no momentum
    assert maskset.stored.values["w"].tolist() == pytest.approx([3.3, -2.85, 1.4, -1])
    assert weight.tolist() == pytest.approx([3.3, -2.85, 0, 0])
    assert optimizer.state[weight]["momentum_buffer"].tolist() == pytest.approx([1.4, -0.3, 1.2, 0])
    maskset.commit(bits(1, 0, 1, 1), 3, optimizer)
    assert weight.tolist() == pytest.approx([3.3, 0, 1.4, -1])
    assert optimizer.state[weight]["momentum_buffer"].tolist() == pytest.approx([1.4, 0, 1.2, 0])


def test_straight_through_gradients_reach_every_stored_weight():
    maskset, weight, optimizer = make_stored(Trains.ALL)
    maskset.commit(bits(1, 0, 0, 0), 1, optimizer)
    step(maskset, weight, optimizer, 1, 1, 0, 0)
    assert maskset.stored is not None
    assert maskset.stored.values["w"].tolist() == pytest.approx([3.3, -3.35, 1.9, -0.95])
    assert weight.tolist() == pytest.approx([3.3, 0, 0, 0])


def test_an_average_of_stored_weights_is_of_their_values_and_masked_where_it_is_shown():
    weight = nn.Parameter(torch.tensor([4.0, 2.0]))
    holder = nn.Module()
    holder.w = nn.Parameter(weight.detach().clone())
    maskset = MaskSet({"w": weight})
    stored = maskset.store(Trains.ALL, averaged=True)
    maskset.commit(bits(1, 0), 1, None, holder)
    assert holder.w.tolist() == [4, 0]
    stored.values["w"].copy_(torch.tensor([0.0, 6.0]))
    stored.follow(0.75)
    maskset.load_effective(holder)
    assert stored.average["w"].tolist() == [3, 3] and holder.w.tolist() == [3, 0]


def test_steps_are_charged_by_what_is_trained_and_rounds_by_their_masks():
    costs = Costs({"w": 10}, {"w": 40}, 5, 45, {}, {})
    meter = Meter(costs, costs)
    meter.on_commit({"w": 1})
    assert [meter.weight_gradients(True), meter.weight_gradients(False), meter.weight_gradients(False, {"w": 3})] == [
        45,
        15,
        35,
    ]
    meter.step(2, 15, 35)  # Top-KAST: 2 f(A) + f(B)
    meter.step(2, 15, 15, 30, repeat_round=True)  # read dense, in a further round: dense training has none of it
    assert (meter.train, meter.train_dense, meter.reading) == (2 * 65 + 2 * 75, 2 * 3 * 45, 2 * 30)
    scoring = Scoring(rounds=2)
    assert scoring_cost(scoring, 45, 8) == 8 * 3 * 45
    assert scoring_cost(scoring, 45, 8, forward=15) == 8 * (2 * 15 + 45)


def view(step: int) -> View:
    weights = {"a": torch.zeros(40, 50), "b": torch.zeros(7)}
    masks = {name: torch.ones_like(weight).bool() for name, weight in weights.items()}
    return View(weights=weights, masks=masks, step=step, timeline=LINE, seed=3)


def splitmix(key: int, place: int) -> int:
    """Return the 64 bits of SplitMix64 at a place, in Python's whole numbers."""
    z = (key + place * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_numbers_drawn_on_the_device_are_a_hash_of_their_key_and_place():
    one = view(3)
    drawn, key = one.uniform("a", "grow").flatten(), one.key("a", "grow", False)
    assert drawn.tolist() == [(splitmix(key, place) >> 11) / 2**53 for place in range(1, 2001)]
    assert abs(float(drawn.mean()) - 0.5) < 0.02 and abs(float(one.normal("a").std()) - 1) < 0.05
    others = (one.uniform("a"), view(4).uniform("a", "grow"), one.random("a", "grow"))
    assert all(not torch.equal(drawn.view(40, 50), other) for other in others)
    for draw in ("uniform", "random", "normal"):
        first, later = (getattr(view(step), draw)("a", "sign", run=True) for step in (1, 9))
        assert torch.equal(first, later)
        assert not torch.equal(first, getattr(view(1), draw)("a", "sign"))


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    """A method that prunes to its budget at every sixth step; each fault is one change to it."""

    reference: ClassVar[str] = "test"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE
    update_every: int = 6

    def update_steps(self, timeline: Timeline) -> range:
        return range(6, timeline.total_steps + 1, 6)

    def setup(self, view: View) -> Any:
        return keep_top_global(magnitude(view), view.count(self.sparsity))

    update = setup


def update_with(**parts: Any) -> dict[str, Any]:
    """Return an `update` that returns masks and some parts besides."""
    return {"update": lambda self, view: Update(Plain.setup(self, view), **{k: p(view) for k, p in parts.items()})}


STORED = {"inactive": Inactive.STORED}
WEIGHS = {**STORED, "trains": Trains.ALL, "setup": lambda self, view: Update(), "update": lambda self, view: Update()}
NAME = "conv.weight"
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no mask": ({"update": lambda self, view: 3}, "must return a dict of masks by weight name, returned int"),
    "values without writes": (update_with(values=lambda v: dict(v.weights)), "must set writes = True to return values"),
    "values of nothing": (
        {"writes": True, **update_with(values=lambda v: {"x": torch.zeros(1)})},
        "values of weights or learned parameters, 'x' is neither",
    ),
    "values not finite": (
        {"writes": True, **update_with(values=lambda v: {NAME: v.weights[NAME] * float("nan")})},
        f"must return values that are finite, that of '{NAME}' is not",
    ),
    "values of another shape": (
        {"writes": True, **update_with(values=lambda v: {NAME: torch.zeros(2)})},
        f"that of '{NAME}' must have shape (8, 4, 3, 3)",
    ),
    "state of no tensor": (
        update_with(state=lambda v: {"x": 1.5}),
        "must return state as tensors, that of 'x' is float",
    ),
    "forgets nothing known": (
        update_with(forget=lambda v: ("x",)),
        "must forget weights or learned parameters, 'x' is",
    ),
    "forgets a name alone": (update_with(forget=lambda v: NAME), "must return forget as True, False or a tuple"),
    "trained, not stored": (update_with(trained=lambda v: all_active(v)), "must be STORED"),
    "trained too small": (
        {**STORED, **update_with(trained=lambda v: {n: ~m for n, m in all_active(v).items()})},
        f"must train every active weight: in '{NAME}' some are in the masks and not in trained",
    ),
    "trains all, not stored": ({"trains": Trains.ALL}, "so it must keep them: inactive = Inactive.STORED"),
    "weighs, not stored": ({"weigh": lambda self, name, stored, learned: stored}, "so it must be STORED and train ALL"),
    "weighs without gradient": (
        {**WEIGHS, "weigh": lambda self, name, stored, learned: stored.detach()},
        f"weigh('{NAME}') has no gradient",
    ),
    "weighs another shape": (
        {**WEIGHS, "weigh": lambda self, name, stored, learned: stored.sum()},
        f"weigh('{NAME}') must have shape (8, 4, 3, 3), got ()",
    ),
    "learned under a weight's name": (
        {
            **WEIGHS,
            "weigh": lambda self, name, stored, learned: stored * learned[name],
            "learned": lambda self, view: {name: torch.ones(1) for name in view.weights},
        },
        f"names a parameter '{NAME}', as the network does",
    ),
    "learned for nothing": ({"learned": lambda self, view: {"x": torch.ones(1)}}, "no weigh() that uses them"),
    "penalty of another shape": (
        {"penalty": lambda self, view: {NAME: torch.ones(1)}},
        f"penalty() of '{NAME}' must have shape (8, 4, 3, 3), got (1,)",
    ),
    "penalty on nothing": ({"penalty": lambda self, view: {"x": torch.ones(1)}}, "names 'x', which is no prunable"),
    "gradients between updates": (
        {"dense_grads": DenseGrads.EVERY_STEP},
        "reads dense gradients at every step and plans 4 updates in 24 steps",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_a_method_declares_or_returns_is_named_in_rehearsal(fault):
    changes, says = FAULTS[fault]
    method = type("Faulty", (Plain,), changes)(sparsity=0.9)
    with pytest.raises(UserError, match="method 'faulty'") as caught:
        rehearse(method, "faulty", LINE)
    assert says in str(caught.value)


def test_the_method_that_the_faults_are_planted_in_has_none():
    rehearse(Plain(sparsity=0.9), "plain", LINE)


class Remembers(Plain):
    """Keeps what it is shown, live, and lets memory be shared."""

    def update(self, view: View) -> Update:
        masks = Plain.setup(self, view)
        was = {f"was {name}": mask for name, mask in view.masks.items()}
        rows = {f"rows {name}": w.flatten(1).sum(1, keepdim=True).expand(-1, 5) for name, w in view.weights.items()}
        return Update(masks, state={**was, **rows})


def test_state_keeps_what_was_shown_though_masks_change_while_it_is_applied():
    """Masks at steps 6 and 12 differ, so those kept at 12 are those of 6."""
    seen = {}

    def watch(run, update, view):
        seen[view.step] = {name: mask.clone() for name, mask in run.maskset.masks.items()}
        apply(run, update, view)
        if view.step:
            kept = run.method_state.state
            assert all(torch.equal(kept[f"was {name}"], mask) for name, mask in seen[view.step].items())
            assert all(kept[f"rows {name}"].is_contiguous() for name in run.maskset.masks)

    with mock.patch("benchmark.training.step.apply", watch):
        run = small.finish(start(Remembers(sparsity=0.8), "remembers", small.SmallNet, 0, epochs=4))
    assert len(seen) > 1 and run.method_state.state


def test_masks_are_those_returned_where_an_earlier_stage_writes_over_what_was_shown():
    """Restart the smallest at zero under masks that stay: the second stage is what the view showed."""

    def update(self: Method, view: View) -> Any:
        return drop(dict(view.masks), magnitude(view), 0.3), dict(view.masks)

    method = type("Restarts", (Plain,), {"update": update})(sparsity=0.8)
    run = start(method, "restarts", small.SmallNet, 0, epochs=4)
    before = {name: mask.clone() for name, mask in run.maskset.masks.items()}
    small.finish(run)
    assert all(torch.equal(mask, before[name]) for name, mask in run.maskset.masks.items())


def fails_late(self: Method, view: View) -> Any:
    return {} if view.step < 8 or view.weights[NAME].shape[0] != 8 else {}["x"]


def writes(self: Method, view: View) -> Any:
    view.weights[NAME].mul_(0.9)
    return {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"penalty": fails_late}, r"method 'faulty' fails in penalty\(\) at step \d+: KeyError"),
        ({"penalty": writes}, r"method 'faulty' breaks its contract: penalty\(\) at step \d+ must not write"),
    ],
)
def test_a_penalty_that_fails_or_writes_is_named_before_training(changes, says):
    with pytest.raises(UserError, match=says):
        rehearse(type("Faulty", (Plain,), changes)(sparsity=0.9), "faulty", LINE)


@pytest.mark.parametrize("outside", [0.0, float("nan"), float("inf")])
def test_what_a_penalty_says_of_weights_that_are_not_trained_counts_for_nothing(outside):
    def penalty(self: Method, view: View) -> Any:
        return {name: torch.where(view.masks[name], 0.1 * w, outside) for name, w in view.weights.items()}

    ends = []
    for extra in (penalty, lambda self, view: {name: 0.1 * w for name, w in view.weights.items()}):
        run = start(type("Decays", (Plain,), {"penalty": extra})(sparsity=0.8), "decays", small.SmallNet, 0, epochs=2)
        ends.append([*small.finish(run).model.state_dict().values()])
        assert run.skipped_steps == 0
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("hook", ["update", "learned", "planned_sparsity"])
def test_a_method_that_draws_from_torchs_generator_changes_nothing_that_follows(hook):
    """Dropout must be that of every other method, whatever a method of one's own does in updates not rehearsed."""

    def draw(self: Method, *shown: Any) -> Any:
        torch.rand(3)
        return getattr(Plain, hook)(self, *shown)

    run = start(type("Draws", (Plain,), {hook: draw})(sparsity=0.8), "draws", small.SmallNet, 0, epochs=2)
    other = start(Plain(sparsity=0.8), "plain", small.SmallNet, 0, epochs=2)
    states = []
    for one in (run, other):
        torch.manual_seed(5)
        small.finish(one)
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


def test_a_plan_that_fails_in_training_is_named():
    plan = {"planned_sparsity": lambda self, step, timeline: {0: 0.8, 6: 0.8}[step]}
    run = start(type("Faulty", (Plain,), plan)(sparsity=0.8), "faulty", small.SmallNet, 0, epochs=4)
    with pytest.raises(UserError, match=r"Faulty fails in planned_sparsity\(12\): KeyError"):
        small.finish(run)


HIDDEN: dict[str, torch.Tensor] = {}


def remember(self: Method, view: View) -> Any:
    before = HIDDEN.get("w", torch.zeros(()))
    HIDDEN["w"] = view.weights[NAME].abs().max().clone()
    return keep_top_global({n: (w.abs() - before).abs() for n, w in view.weights.items()}, view.count(self.sparsity))


def test_a_method_that_remembers_outside_the_run_is_refused_in_rehearsal():
    method = type("Hidden", (Plain,), {"update": remember})(sparsity=0.9)
    with pytest.raises(UserError, match="returned different masks"):
        rehearse(method, "hidden", LINE)


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: Rounds(count=0), "at least 1 round"),
        (lambda: Rounds(count=2, back_to=-1), "epoch 0 or a later one"),
        (lambda: Scoring(rounds=0), "at least 1 round"),
        (lambda: Scoring(flow=True, order=2), "order 1"),
    ],
)
def test_rounds_that_make_no_sense_are_refused(declare, says):
    with pytest.raises(ContractError, match=says):
        declare()
