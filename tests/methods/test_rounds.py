"""Methods that work in rounds: SynFlow and FORCE score in rounds, IMP trains in rounds."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch
from torch import Tensor

import benchmark.training.train as loop
from benchmark import Sparsifier
from benchmark.base.errors import UserError
from benchmark.config.cells import Cell
from benchmark.config.plugins import find_method
from benchmark.grids.times import epochs_of
from benchmark.runs.record import describe_accuracy, describe_rounds, last_round
from benchmark.runs.run import ask_rounds, refuse_rounds
from benchmark.training.setup import begin_masks
from benchmark.training.state import Training
from benchmark.training.train import go_back
from leaderboard import find_faults
from leaderboard.drawing.pictures import list_pictures, mean_curve
from leaderboard.web.rows import run_values
from methods.core import Budget, Method, Rounds, Timeline, Update, View, geometric, keep_top_global, magnitude
from methods.gmp import GMP
from tests.harness import oracles_rounds, small
from tests.harness.mutants_rounds import StoredTwoRounds
from tests.harness.record_factory import make_epoch, make_record, named, show

OLD = torch.tensor([4.0, -3.0, 2.0, -1.0])


def make(name: str, sparsity: float, **settings) -> Method:
    return find_method(name).cls(sparsity=sparsity, **settings)


def look(masks: list[int], gradients: list[float] | None = None, **more) -> View:
    """Return a view of one layer of four weights."""
    shown = {"weights": {"w": OLD}, "masks": {"w": torch.tensor(masks, dtype=torch.bool)}, "seed": 0, "step": 0}
    slopes = None if gradients is None else {"w": torch.tensor(gradients, dtype=torch.float64)}
    return View(**{**shown, "timeline": Timeline(8, 4), "gradients": slopes, **more})


def bits(masks: dict[str, Tensor]) -> list[int]:
    return masks["w"].int().tolist()


def test_oracles_are_numpy_and_nothing_of_the_suite():
    tree = ast.parse(Path(oracles_rounds.__file__).read_text())
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert froms | names == {"__future__", "numpy", "tests.harness.oracles"}


def test_a_geometric_schedule_removes_the_same_share_in_each_step_and_ends_exactly():
    """Of rho = 0.04 a half of the way leaves 0.2."""
    assert [geometric(0.96, progress) for progress in (0.0, 0.5, 1.0)] == [0.0, pytest.approx(0.8, abs=1e-15), 0.96]
    assert geometric(0.1, 1.0) == 0.1 != 1 - (1 - 0.1)


def test_the_rounds_of_synflow_are_those_worked_out_by_hand():
    """|R' w| = 4, 6, 2, 3: sparsity 0.75 in two rounds leaves 2, then 1 of those, by the flow under the masks."""
    method = make("synflow", 0.75, score_rounds=2)
    assert bits(method.setup(look([1, 1, 1, 1], [1, 2, 1, 3]))) == [1, 1, 0, 0]
    assert bits(method.setup(look([1, 1, 0, 0], [2, 1, 9, 9], round=1))) == [1, 0, 0, 0]
    assert bits(method.setup(look([1, 1, 0, 0], [0, 0, 9, 9], round=1))) == [1, 0, 0, 0]  # of ties the lower index
    assert bits(method.setup(look([1, 1, 1, 1], [1 + 1e-12, 4 / 3, -2, 4], round=1))) == [1, 0, 0, 0]  # in float64


def test_the_rounds_of_force_are_those_worked_out_by_hand():
    """|g w| = 4, 6, 2, 3; in the second round g is another and the third weight, though masked, is worth 2 x 9 = 18."""
    force, iter_snip = (make("force", 0.75, score_rounds=2, resurrect=back) for back in (True, False))
    for method in (force, iter_snip):
        assert bits(method.setup(look([1, 1, 1, 1], [1, -2, 1, 3]))) == [1, 1, 0, 0]
    second = look([1, 1, 0, 0], [2, 1, -9, 9], round=1)
    assert bits(force.setup(second)) == [0, 0, 1, 0]
    assert bits(iter_snip.setup(second)) == [1, 0, 0, 0]


def test_the_flow_is_that_worked_out_by_hand():
    """|a|, |b| = (1, 2), (3, 4) in a row: R = 1 x 3 + 2 x 4 with ones in, so scores are 3 and 8, for b as for a."""
    from benchmark.training.scoring import score_flow

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[1].weight.zero_()[:, 0] = torch.tensor([-1.0, 2.0])
        net[2].weight.copy_(torch.tensor([[3.0, -4.0]]))
    weights = {f"{n}.weight": net[n].weight for n in (1, 2)}
    found = score_flow(net, weights, small.SmallImages()).gradients
    scores = {name: (found[name] * weights[name]).abs() for name in weights}
    assert scores["1.weight"].sum(1).tolist() == [3.0, 8.0] and scores["2.weight"].tolist() == [[3.0, 8.0]]
    assert found["1.weight"].dtype == torch.float64


@pytest.mark.parametrize(
    ("sparsity", "rate", "rounds"),
    [(0.9, 0.2, 12), (0.95, 0.2, 15), (0.98, 0.2, 19), (0.36, 0.2, 3), (0.2, 0.2, 2), (0.1, 0.2, 2), (0.0, 0.2, 2)],
)
def test_imp_trains_as_often_as_the_rate_needs(sparsity, rate, rounds):
    """0.8^10 = 0.107 and 0.8^11 = 0.086: eleven prunings reach 0.9, twelve trainings with the first."""
    assert make("imp", sparsity, prune_rate=rate).rounds(30) == Rounds(rounds)
    assert make("imp", sparsity, rewind_epoch=2, keep_weights=True).rounds(30) == Rounds(rounds, 2, True)


def test_the_prunings_of_imp_are_those_worked_out_by_hand():
    """To 0.75 by 0.4: 0.6 and 0.36 of four weights are 2 and 1; the third pruning goes to 0.75, not to 1 - 0.6^3."""
    method = make("imp", 0.75, prune_rate=0.4)
    timeline = Timeline(32, 4, (8, 16, 24, 32))
    assert list(method.update_steps(timeline)) == [8, 16, 24]
    assert [method.planned_sparsity(step, timeline) for step in (0, 7, 8, 24, 32)] == [0, 0, 0.4, 0.75, 0.75]
    after = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    for step, before, expected in zip((8, 16, 24), ([1, 1, 1, 1], *after), after, strict=False):
        assert bits(method.update(look(before, step=step, timeline=timeline))) == expected


def begun(run: Training) -> list[dict[str, Tensor]]:
    """Train, and return the network that each epoch began with."""
    seen: list[dict[str, Tensor]] = []

    def watch(run: Training, epoch: int) -> None:
        go_back(run, epoch)
        seen.append({name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()})
        seen[-1] |= {f"{name} (mask)": mask.clone() for name, mask in run.maskset.masks.items()}

    with mock.patch.object(loop, "go_back", watch):
        small.finish(run)
    return seen


@pytest.mark.parametrize(("epoch", "keep"), [(0, False), (1, False), (0, True), (1, True)])
def test_a_round_begins_as_it_is_asked_to(epoch, keep):
    """Each round is of 3 epochs, or the last 2: weights are those after `epoch`, or stay; the rate is that of then."""
    changes = {"prune_rate": 0.7, "rewind_epoch": epoch, "keep_weights": keep}
    run = small.make_run("imp", 0.7, changes=changes, epochs=3, lr_drops=[0.4])
    seen = begun(run)
    assert len(seen) == run.last_epoch() == len(run.history) == 6 - epoch
    start, origin = seen[3], seen[epoch]
    for name, weight in run.maskset.weights.items():
        mask = start[f"{name} (mask)"]
        assert bool((start[name][~mask] == 0).all())
        assert keep != torch.equal(start[name][mask], origin[name][mask]) and not torch.equal(weight, start[name])
    assert keep != torch.equal(start["bn1.running_mean"], origin["bn1.running_mean"])
    rates = [row["lr"] for row in run.history]
    assert rates == [0.1, *[pytest.approx(0.01)] * 2, *rates[epoch:3]]
    assert run.maskset.active() == round(0.3 * small.PRUNABLE)
    assert last_round(run) == 3 and describe_rounds(run)["rounds"]["count"] == 2


@dataclass(frozen=True, kw_only=True)
class Thresholds(StoredTwoRounds):
    """A learned threshold beside what it stores; two rounds."""

    budget: ClassVar[Budget] = Budget.OUTCOME

    def update_steps(self, timeline: Timeline) -> range:
        return range(0)

    def learned(self, view: View) -> dict[str, Tensor]:
        return {"threshold": torch.tensor(0.1)}

    def weigh(self, name: str, stored: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return stored.sign() * (stored.abs() - learned["threshold"]).relu()

    def setup(self, view: View) -> Update:
        return Update()


@pytest.mark.parametrize(("epoch", "keep"), [(0, False), (1, False), (1, True)])
@pytest.mark.parametrize("kind", [StoredTwoRounds, Thresholds])
def test_what_is_stored_or_learned_goes_back_with_the_network(kind, epoch, keep):
    """Every stored value, those outside the masks as well; the average begins anew from them."""
    run = small.make_training(kind(sparsity=0.9, rewind_epoch=epoch, keep_weights=keep), epochs=2, ema_decay=0.9)
    begin_masks(run, None, str)
    seen: list[dict[str, Tensor]] = []

    def watch(run: Training, number: int) -> None:
        trained = {name: tensor.detach().clone() for name, tensor in run.trained_beside().items()}
        go_back(run, number)
        seen.append({name: tensor.detach().clone() for name, tensor in run.trained_beside().items()})
        if number == 2:
            stored, expected = run.maskset.stored, trained if keep else seen[epoch]
            assert all(torch.equal(value, expected[name]) for name, value in seen[2].items())
            assert not any(torch.equal(trained[name], value) for name, value in seen[epoch].items())
            assert all(torch.equal(stored.average[name], value) for name, value in stored.values.items())

    with mock.patch.object(loop, "go_back", watch):
        small.finish(run)
    assert len(seen) == 4 - epoch and len(seen[0]) == 3 + (kind is Thresholds)


def test_a_pruning_whose_step_is_not_finite_is_made_before_the_weights_are_rewound():
    run = small.make_run("imp", 0.7, changes={"prune_rate": 0.7}, epochs=2)
    left: dict[int, int] = {}  # active weights when an epoch's network is arranged for

    def watch(run: Training, epoch: int) -> None:
        left[epoch] = run.maskset.active()
        go_back(run, epoch)

    with mock.patch.object(loop, "go_back", watch):
        small.finish(small.poison(run, {run.timeline.round_ends[0]}))
    kept = round(0.3 * small.PRUNABLE)
    assert left == {0: small.PRUNABLE, 1: small.PRUNABLE, 2: kept, 3: kept}
    assert (run.skipped_steps, run.updates, run.update_pending) == (1, 1, False)


class EndsLate(GMP):
    """Prunes once, at the run's last step."""

    def update_steps(self, timeline: Timeline) -> tuple[int]:
        return (timeline.total_steps,)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        return self.sparsity if step == timeline.total_steps else 0.0

    def update(self, view: View) -> dict[str, Tensor]:
        gradients = view.active_gradients  # zeros, where the step was skipped
        scores = {name: size + gradients[name].abs() for name, size in magnitude(view).items()}
        return keep_top_global(scores, view.count(self.sparsity))


@pytest.mark.parametrize("loop", ["the runner's", "one's own"])
def test_an_update_due_at_the_last_step_of_all_is_made_although_that_is_not_finite(loop):
    method = EndsLate(sparsity=0.75)
    run = small.make_training(method, epochs=1)
    if loop == "the runner's":
        begin_masks(run, None, str)
        small.finish(small.poison(run, {run.timeline.total_steps}))
        assert run.history[-1]["density"] == 0.25
    else:
        sparse = Sparsifier(run.model, torch.optim.SGD(run.model.parameters(), lr=0.1), method, total_steps=2)
        for factor in (1.0, math.inf):
            (run.model(run.data.train.images).square().mean() * factor).backward()
            sparse.step()
        run = sparse.training
    assert run.maskset.active() == round(0.25 * small.PRUNABLE)
    assert (run.skipped_steps, run.updates, run.update_pending) == (1, 1, False)


def test_a_run_that_ends_with_weights_that_are_not_finite_keeps_its_masks():
    run = small.make_training(EndsLate(sparsity=0.75), epochs=1)
    begin_masks(run, None, str)
    with torch.no_grad():
        run.model.fc.weight.fill_(math.inf)
    small.finish(run)
    assert run.maskset.active() == small.PRUNABLE and run.history[-1]["loss"] is None


def test_accuracies_are_of_the_last_round():
    rows = [(1, 1.0, 90.0), (2, 0.1, 99.0), (3, 0.1, 50.0), (4, 0.1, 80.0)]
    history = [{"epoch": e, "density": d, "test_acc_pct": a, "validation_acc_pct": a} for e, d, a in rows]
    found = describe_accuracy(history, begun=2)
    assert found["selected"] == {"validation_epoch": 4, "test_epoch": 4, "ties": "last"}
    assert found["accuracy_pct"]["best_on_test"] == 80.0
    assert describe_accuracy(history)["selected"]["test_epoch"] == 2  # where one round is all


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("synflow", {"score_rounds": 0}, "score_rounds must be at least 1, got 0"),
        ("force", {"score_rounds": 0}, "score_rounds must be at least 1, got 0"),
        ("force", {"score_batches": 0}, "score_batches must be at least 1, got 0"),
        ("imp", {"prune_rate": 0.0}, r"prune_rate must be in \(0, 1\), got 0.0"),
        ("imp", {"prune_rate": 1.0}, r"prune_rate must be in \(0, 1\), got 1.0"),
        ("imp", {"rewind_epoch": -1}, "rewind_epoch must be 0 or a later epoch, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_named(name, settings, says):
    with pytest.raises(ValueError, match=says):
        make(name, 0.9, **settings)


def test_rewinding_after_the_last_epoch_and_branching_are_refused():
    page, plugin = small.make_page(epochs=3), find_method("imp")
    cell = Cell("small", page, {}, plugin, make("imp", 0.9, rewind_epoch=3), {}, 0.9, 0)
    with pytest.raises(UserError, match="'imp' rewinds to epoch 3 of 3: rewind to an earlier one"):
        ask_rounds(cell)
    cell = Cell("small", page, {}, plugin, make("imp", 0.9), {}, 0.9, 0)
    with pytest.raises(UserError, match="--snapshots: nothing can branch from imp, which trains in rounds"):
        refuse_rounds(cell, "--snapshots")


# A run of 2 rounds of 3 epochs, the second from epoch 1 on: epochs 4 and 5 are its last round.
TWICE = {"count": 2, "back_to": 1, "keep_weights": False, "last_begins": 3}


def record_in_rounds(**changes) -> dict:
    history = [{**make_epoch(epoch, 92.5), "train_share": 1.0 + epoch} for epoch in range(1, 6)]
    chosen = {"validation_epoch": 4, "test_epoch": 5}
    return make_record(history=history, rounds=TWICE, selected=chosen, **changes)


def test_a_record_says_how_often_a_run_trained_and_selects_within_the_last_round():
    assert find_faults(record_in_rounds()) == []
    (fault,) = find_faults(record_in_rounds() | {"selected": {"validation_epoch": 3, "test_epoch": 5}})
    assert fault == "selected.validation_epoch is 3, the last round begins after epoch 3"
    assert "trained 2 times (seed 0)" in show(record_in_rounds())
    assert "trained 2 times" in " ".join(run_values(*named(record_in_rounds())))


def test_pictures_over_time_show_the_last_round_at_the_page_s_epochs_after_the_cost_of_all():
    assert mean_curve([record_in_rounds()], "train_share") == ([2, 3], [5.0, 6.0])
    captions = {picture.kind: picture.caption for picture in list_pictures(named(record_in_rounds()))}
    assert "the last round is drawn" in captions["time"] and "last round" not in captions["accuracy"]


def test_a_page_s_pace_counts_the_epochs_of_all_rounds():
    assert epochs_of(record_in_rounds()) == 5 and epochs_of(make_record()) == 3
