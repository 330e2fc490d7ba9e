"""Top-KAST, SNFS, Deep-R and DSR: numbers worked out by hand, settings refused, penalties held to their oracles."""

from __future__ import annotations

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.config.plugins import find_method
from methods.core import Method, Timeline, Update, View
from methods.dsr import share_out as share_by_survivors
from methods.snfs import share_out as share_by_momentum
from tests.harness.disagreement import ask, hard_views, settings_of
from tests.harness.oracles_moving import ORACLES, VARIANTS
from tests.harness.small import finish, make_page, make_run

TIMELINE = Timeline(8, 2)


def make(name: str, sparsity: float = 0.5, **changes: object) -> Method:
    return find_method(name).build(make_page(), sparsity, {"distribution": "uniform", **changes})


def show(weight: list[float], mask: list[int], step: int, **shown: object) -> View:
    """Return a view of one layer; a list that is shown is a tensor of that layer."""
    rest = {key: {"w": torch.tensor(value)} if isinstance(value, list) else value for key, value in shown.items()}
    weights, masks = {"w": torch.tensor(weight)}, {"w": torch.tensor(mask).bool()}
    return View(weights=weights, masks=masks, step=step, timeline=TIMELINE, seed=0, **rest)


def masks_of(update: object) -> list[list[int]]:
    """Return the stages of an update of one layer, as 0 and 1."""
    assert isinstance(update, Update)
    stages = update.masks if isinstance(update.masks, tuple) else (update.masks,)
    return [] if update.masks is None else [stage["w"].int().tolist() for stage in stages if stage is not None]


# ------------------------------------------------------------------------------------------------------------- Top-KAST


def test_top_kast_computes_with_the_largest_stored_weights_and_trains_as_many_more():
    """Of eight 2 are active; 4, the largest of all, comes back from the store; with -3 and 2 the four of B."""
    method = make("top_kast", 0.75, update_every=2)
    stored = [1.0, -3.0, 0.5, 4.0, 2.0, -3.5, 0.0, 1.5]
    view = show([0.0, -3.0, 0.0, 0.0, 0.0, -3.5, 0.0, 0.0], [0, 1, 0, 0, 0, 1, 0, 0], 2, stored=stored)
    update = method.update(view)
    assert masks_of(update) == [[0, 0, 0, 1, 0, 1, 0, 0]]
    assert update.trained["w"].int().tolist() == [0, 1, 0, 1, 1, 1, 0, 0]
    assert make("top_kast", 0.75, extra=0.0).update(view).trained["w"].int().sum() == 2
    assert make("top_kast", 0.75, extra=9.0).update(view).trained["w"].all()


def test_top_kast_s_penalty_is_lambda_in_a_and_lambda_over_d_outside():
    """D = 0.25: 0.1 in A, 0.4 outside; the sign of zero is zero."""
    shown = [1.0, -3.0, 0.0, 4.0]
    found = make("top_kast", 0.75, explore=0.1).penalty(show([0.0, 0, 0, 4.0], [0, 0, 0, 1], 3, stored=shown))
    assert torch.allclose(found["w"], torch.tensor([0.4, -0.4, 0.0, 0.1]))


def test_top_kast_stops_exploring_with_a_last_update_that_trains_a_alone():
    method = make("top_kast", 0.75, update_every=2, explore_end=0.4)  # 3.2 of 8 steps
    assert list(method.update_steps(TIMELINE)) == [2, 4]
    view = show([0.0, 3.0, 0, 0], [0, 1, 0, 0], 4, stored=[1.0, 3.0, 2.0, 0.5])
    assert method.update(view).trained["w"].int().tolist() == masks_of(method.update(view))[0] == [0, 1, 0, 0]


def test_a_step_of_top_kast_is_charged_two_passes_of_a_and_one_of_b():
    run = make_run("top_kast", 0.8, epochs=1, changes={"update_every": 100})
    meter = run.meter
    assert meter.weight_gradients(False, run.maskset.trained_counts()) > meter.forward
    trained = {name: int(mask.sum()) for name, mask in run.maskset.trained().items()}
    assert sum(trained.values()) == 2 * run.maskset.active()


# ----------------------------------------------------------------------------------------------------------------- SNFS


def test_snfs_grows_by_an_average_of_gradients_that_moves_at_every_step():
    """0.9 (0, 1, 0, 0) + 0.1 (0, 0, -4, 8) = (0, 0.9, -0.4, 0.8); at an epoch's end 2 of 2 go, the largest two come."""
    method = make("snfs", prune_rate=1.0, final_prune_rate=1.0)
    shown = {"gradients": [0.0, 0.0, -4.0, 8.0], "state": [0.0, 1.0, 0.0, 0.0]}
    between = method.update(show([1.0, 2.0, 0.0, 0.0], [1, 1, 0, 0], 1, **shown))
    assert masks_of(between) == []
    assert torch.allclose(between.state["w"], torch.tensor([0.0, 0.9, -0.4, 0.8]))
    exchange = method.update(show([1.0, 2.0, 0.0, 0.0], [1, 1, 0, 0], 2, **shown))
    assert masks_of(exchange) == [[0, 1, 0, 1]] and exchange.state["exchanges"] == 1


def test_snfs_makes_up_for_an_exchange_whose_step_was_skipped():
    method = make("snfs", prune_rate=1.0, final_prune_rate=1.0)
    view = show([1.0, 2.0, 0.0, 0.0], [1, 1, 0, 0], 3, gradients=[0.0] * 4, state=[0.0, 0, 1, 1])
    assert masks_of(method.update(view)) == [[0, 0, 1, 1]]
    done = View(weights=view.weights, masks=view.masks, step=3, timeline=TIMELINE, seed=0, gradients=view.gradients,
                state={**view.state, "exchanges": torch.tensor(1.0)})  # fmt: skip
    assert masks_of(method.update(done)) == []


def test_snfs_shares_by_momentum_within_99_per_cent_of_the_room():
    """10 by 3 : 1: 7.5 and 2.5, the first of equal remainders; 90 of 100 into 10 places: 9.9, the rest elsewhere."""
    assert share_by_momentum(10, {"a": 0.75, "b": 0.25}, {"a": 100, "b": 100}) == {"a": 8, "b": 2}
    assert share_by_momentum(100, {"a": 0.9, "b": 0.1}, {"a": 10, "b": 200}) == {"a": 10, "b": 90}
    assert share_by_momentum(4, {"a": 0.5, "b": 0.5}, {"a": 2, "b": 2}) == {
        "a": 2,
        "b": 2,
    }  # more than 0.99, all there is
    assert share_by_momentum(3, {"a": 0.0, "b": 0.0}, {"a": 2, "b": 2}) == {"a": 2, "b": 1}  # no momentum anywhere


def test_rigl_s_snfs_keeps_the_count_of_every_layer_and_redistribution_does_not():
    for redistribute in (False, True):
        run = make_run("snfs", 0.8, changes={"redistribute": redistribute, "update_every": 3})
        before = run.maskset.counts()
        assert (finish(run).maskset.counts() == before) != redistribute


# --------------------------------------------------------------------------------------------------------------- Deep-R


def test_deep_r_walks_cuts_below_zero_and_connects_as_many_at_1e_12():
    """Without noise theta falls by lr x l1 = 0.1: 0.5 and 0.2 stay as 0.4 and 0.1, 0.05 and -0.3 are cut."""
    method = make("deep_r", l1=1.0, noise=0.0)
    zero = show([0.0] * 8, [0] * 8, 1)
    signs = torch.where(zero.uniform("w", "sign", run=True) < 0.5, -1.0, 1.0)
    theta = torch.tensor([0.5, 0.05, 0.2, -0.3, 0, 0, 0, 0])
    update = method.update(show((theta * signs).tolist(), [1, 1, 1, 1, 0, 0, 0, 0], 5, lr=0.1))
    kept, after = masks_of(update)
    assert kept == [1, 0, 1, 0, 0, 0, 0, 0] and sum(after) == 4
    new = torch.tensor(after).bool() & ~torch.tensor(kept).bool()
    values = update.values["w"] * signs
    assert torch.allclose(values[[0, 2]], torch.tensor([0.4, 0.1]))
    assert torch.equal(values[new], torch.full((2,), 1e-12))


def test_deep_r_starts_with_the_page_s_weights_under_its_own_signs():
    run = make_run("deep_r", 0.5)
    view = run.view()
    for name, weight in view.weights.items():
        signs = torch.where(view.uniform(name, "sign", run=True) < 0.5, -1.0, 1.0)
        assert bool((weight * signs >= 0).all()) and bool((signs < 0).any()) and bool((signs > 0).any())


def test_the_cnn_form_cuts_what_changed_its_sign_and_connects_others_at_zero():
    """+1 became -1 and goes; -2 and 3, zero before, stay; of the dormant positions one that is not the just-cut."""
    method = make("deep_r", form="cnn")
    state = [1.0, -1.0, 0.0, 0, 0, 0, 0, 0]
    update = method.update(show([-1.0, -2.0, 3.0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], 4, state=state))
    kept, after = masks_of(update)
    assert kept == [0, 1, 1, 0, 0, 0, 0, 0] and sum(after) == 3 and after[0] == 0
    assert update.state["w"].tolist() == [0, -1, 1, 0, 0, 0, 0, 0] and update.values is None
    assert list(method.update_steps(Timeline(200, 1))) == list(range(1, 191))


def test_the_cnn_form_s_gradients_get_l1_and_noise_that_cools():
    """sqrt(2 x 0.01 x 1e-5) at first, x 10^-1.5 from 1/8 of the run on, none after 0.95; l1 throughout."""
    method, steps = make("deep_r", form="cnn", l1=0.5), Timeline(1000, 10)
    found = {}
    for step in (125, 126, 951):
        view = View(weights={"w": torch.ones(2000)}, masks={}, step=step, timeline=steps, seed=0)
        found[step] = method.penalty(view)["w"] - 0.5
    assert found[125].std().item() == pytest.approx((2e-7) ** 0.5, rel=0.1)
    assert found[126].std().item() == pytest.approx((2e-10) ** 0.5, rel=0.1)
    assert torch.equal(found[951], torch.zeros(2000))
    assert make("deep_r").penalty(view) == {}


# ------------------------------------------------------------------------------------------------------------------ DSR


def test_dsr_removes_below_h_grows_elsewhere_and_moves_h():
    """H = 1: 0.5 and -0.2 of four go, 10 % of four is 0.4, so H halves; growth takes two of the four others."""
    update = make("dsr").update(show([2.0, 0.5, -1.0, -0.2, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], 4, **h(1.0)))
    kept, after = masks_of(update)
    assert kept == [1, 0, 1, 0, 0, 0, 0, 0] and sum(after) == 4 and after[:4] == kept[:4]
    assert update.state["threshold"] == 0.5
    assert make("dsr").update(show([2.0, 3.0, 0, 0], [1, 1, 0, 0], 4, **h(1.0))).state["threshold"] == 2.0
    all_small = make("dsr").update(show([0.1, 0.2, 0.0], [1, 1, 0], 4, **h(1.0)))
    assert masks_of(all_small)[0] == [1, 0, 0], "one weight stays"


def h(value: float) -> dict[str, object]:
    return {"state": {"threshold": torch.tensor(value, dtype=torch.float64)}}


def test_dsr_shares_by_survivors_and_again_what_does_not_fit():
    """10 by 3 : 1 is 7 and 2, the rest to the first of the order; where 4 fit, the others get 6."""
    assert share_by_survivors(10, {"a": 3, "b": 1}, {"a": 50, "b": 50}, ["b", "a"]) == {"a": 7, "b": 3}
    assert share_by_survivors(10, {"a": 3, "b": 1}, {"a": 4, "b": 50}, ["a", "b"]) == {"a": 4, "b": 6}
    assert share_by_survivors(3, {"a": 3, "b": 0}, {"a": 1, "b": 5}, ["a", "b"]) == {"a": 1, "b": 2}


def test_dsr_updates_ever_more_rarely():
    """Of 1,000 steps: every 20 to 125, every 40 to 400, every 80 to 700, every 160 to 950."""
    steps = list(make("dsr", update_every=20).update_steps(Timeline(1000, 5)))
    assert steps == [*range(20, 125, 20), *range(160, 401, 40), *range(480, 701, 80), 800]


def test_dsr_tells_what_its_paper_counts():
    """256 of 1,280 weights are the first convolution's and the shortcut's."""
    shapes = {"conv.weight": (8, 3, 4, 2), "body.weight": (8, 8, 4, 4), "a.shortcut.conv.weight": (8, 8, 1, 1)}
    assert "dense (256 of 1,280 weights), so that its sparsity 0.5 is 0.4 here" in make("dsr").remarks(shapes)[0]


# ------------------------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize(("name", "changes"), [(n, c) for n in ("top_kast", "deep_r") for c in VARIANTS[n]])
def test_penalties_are_the_oracles(name, changes):
    method, seen = find_method(name).build(make_page(), 0.8, changes), 0
    for what, view in hard_views(method, name, Timeline(24, 6), 1):
        oracle = ORACLES[name](settings_of(method, name), view.timeline)
        ask(oracle, view)
        weights = {n: w.numpy() for n, w in (view.stored if name == "top_kast" else view.weights).items()}
        masks = {n: mask.numpy() for n, mask in view.masks.items()}
        shown = (weights, masks) if name == "top_kast" else (view.step, weights)
        expected, found = oracle.penalty(*shown), method.penalty(view)
        assert list(found) == list(expected), what
        for layer, value in found.items():
            assert torch.allclose(value, torch.from_numpy(expected[layer]).float()), what
        seen += 1
    assert seen >= 24


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("top_kast", {"extra": -1.0}, "extra must be at least 0, got -1.0"),
        ("top_kast", {"explore": -0.1}, "explore must be at least 0, got -0.1"),
        ("top_kast", {"explore_end": 1.5}, r"explore_end must be in \[0, 1\], got 1.5"),
        ("deep_r", {"form": "soft"}, "form must be one of original, cnn, got 'soft'"),
        ("deep_r", {"schedule": "vgg"}, "schedule must be one of wrn, resnet50, got 'vgg'"),
        ("deep_r", {"l1": -1.0}, "l1 and noise must be at least 0, got -1.0 and 1e-05"),
        ("dsr", {"exchange": 0.0}, r"exchange must be in \(0, 1\), threshold above 0, got 0.0, 0.001"),
        ("dsr", {"threshold": 0.0}, r"threshold above 0, got 0.1, 0.0"),
        ("dsr", {"schedule": "vgg"}, "schedule must be one of wrn, resnet50, got 'vgg'"),
    ],
)
def test_settings_that_make_no_sense_are_named(name, changes, says):
    with pytest.raises((ValueError, UserError), match=says):
        make(name, **changes)
