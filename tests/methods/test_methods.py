"""Each method against numbers worked by hand from its paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmark.base.errors import UserError
from benchmark.base.system import exact_fp32
from benchmark.config.pages import load_page
from benchmark.config.plugins import find_method
from benchmark.training.contract import commit, propose
from benchmark.training.masks import MaskSet
from benchmark.training.moments import take_moments
from benchmark.training.scoring import score, scoring_chunks
from methods.core import ContractError, Moments, Scoring, Timeline, Update, View, cubic
from tests.harness.small import SmallImages, SmallNet, finish, make_run

LINE = Timeline(100, 10)


def view_of(weights: list[float], masks: list[int] | None = None, step: int = 10, **more) -> View:
    w = torch.tensor([weights])
    m = torch.tensor([masks]).bool() if masks else torch.ones_like(w, dtype=torch.bool)
    named = {key: {"w": torch.tensor([value])} for key, value in more.items()}
    return View(weights={"w": w * m}, masks={"w": m}, step=step, timeline=LINE, seed=0, **named)


def make(name: str, sparsity: float, **changes):
    return find_method(name).build(load_page("cifar10_vgg19"), sparsity, changes)


def test_granet_update_by_hand():
    """Ten weights, s_i = 0, s_f = 0.5, two pruning steps at 10 and 20, r = 0.5 at the start of a long run."""
    method = make("granet", 0.5, start_sparsity=0.0, update_every=10, prune_end=0.2, prune_rate=0.5)
    # Eq. 1 at k = 1 of n = 2: s = 0.5 - 0.5 (1 - 0.5)^3 = 0.4375 -> keep round(5.625) = 6
    assert method.planned_sparsity(10, LINE) == 0.4375
    weights = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.05]
    gradients = [5.0, 0.0, 0.0, 0.0, 0.0, 9.0, 4.0, 0.0, 3.0, 2.0]
    pruned, final = method.update(view_of(weights, gradients=gradients))
    assert pruned["w"][0].nonzero().flatten().tolist() == [1, 3, 5, 6, 7, 8]
    masks = final["w"][0]
    # pruned globally: the six largest are 1 3 5 7 8 6. Eq. 2: rate 0.488 at progress 0.1 -> drop ceil(2.93) = 3: 6 8 7.
    # Eq. 3: among all but {1 3 5} the three largest gradients are at 0 (5), 6 (4), 8 (3): 6 and 8 were just dropped.
    assert masks.nonzero().flatten().tolist() == [0, 1, 3, 5, 6, 8]


def test_of_masks_in_turn_none_is_applied_where_the_last_is_refused():
    method = make("granet", 0.5, start_sparsity=0.0, update_every=10, prune_end=0.2)
    maskset = MaskSet({"w": nn.Parameter(torch.arange(1.0, 11.0).view(1, 10))})
    view = View(weights=maskset.weights, masks=maskset.masks, step=10, timeline=LINE, seed=0)
    one, all_of_them = torch.arange(10).view(1, 10) == 0, torch.ones(1, 10, dtype=torch.bool)
    with pytest.raises(UserError, match="must keep exactly"):
        commit(method, "granet", maskset, Update(({"w": one}, {"w": one})), view)
    assert torch.equal(maskset.masks["w"], all_of_them) and bool((maskset.weights["w"] != 0).all())


def test_granet_restarts_what_it_pruned_globally_and_keeps_what_it_only_dropped():
    """The update above: 0 was pruned by Eq. 1 and grown, 6 and 8 dropped by Eq. 2 and grown; 1, 3 and 5 stayed."""
    method = make("granet", 0.5, start_sparsity=0.0, update_every=10, prune_end=0.2, prune_rate=0.5)
    weight = nn.Parameter(torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.05]]))
    before = weight.detach().clone()
    maskset, optimizer = MaskSet({"w": weight}), torch.optim.SGD([weight], lr=0.0, momentum=0.9)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    gradients = {"w": torch.tensor([[5.0, 0.0, 0.0, 0.0, 0.0, 9.0, 4.0, 0.0, 3.0, 2.0]])}
    view = View(weights=maskset.weights, masks=maskset.masks, step=10, timeline=LINE, seed=0, gradients=gradients)
    commit(method, "granet", maskset, propose(method, "granet", view), view, optimizer)
    kept = torch.tensor([[0, 1, 0, 1, 0, 1, 1, 0, 1, 0]])
    assert maskset.masks["w"][0].nonzero().flatten().tolist() == [0, 1, 3, 5, 6, 8]
    assert torch.equal(weight.detach(), before * kept)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], kept.float())


def test_granet_goes_on_regenerating_after_its_target_is_reached():
    method = make("granet", 0.5, start_sparsity=0.5, update_every=10, prune_end=0.2)
    view = view_of([1.0, 2.0, 3.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0], step=50, gradients=[0.0] * 5 + [1.0])
    masks = method.update(view)[-1]["w"][0]
    # rate at progress 0.5 = 0.2525 -> ceil(0.76) = 1: the smallest, 0, goes; position 5 grows
    assert masks.tolist() == [False, True, True, False, False, True]


def test_granet_schedule_is_the_papers_on_its_own_page():
    """CIFAR-10, batch 128: 352 steps an epoch, 28 pruning steps, the last at 28,000 (the authors' code: 27,000)."""
    method = make("granet", 0.95)
    line = Timeline(160 * 352, 352)
    steps = list(method.update_steps(line))
    assert (steps[0], steps[-1], len(steps)) == (1000, 56_000, 56)
    assert method.planned_sparsity(0, line) == 0.5
    assert method.planned_sparsity(27_000, line) < 0.95
    assert method.planned_sparsity(28_000, line) == 0.95 == method.planned_sparsity(56_000, line)
    assert method.planned_sparsity(14_000, line) == pytest.approx(cubic(0.5, 0.95, 0.5))


@pytest.mark.parametrize("epoch, n", [(80, 28), (110, 38)])
def test_pruning_steps_until_the_authors_two_values_of_t_f(epoch, n):
    method = make("gmp", 0.9, prune_end=epoch / 160)
    assert len(method.update_steps(Timeline(160 * 352, 352))) == n


def test_granet_with_a_dense_start_belongs_to_dense_to_sparse():
    assert make("granet", 0.9).leaderboard_group().value == "sparse-to-sparse"
    assert make("granet", 0.9, start_sparsity=0.0).leaderboard_group().value == "dense-to-sparse"


def test_gmp_never_revives_a_pruned_weight():
    method = make("gmp", 0.5, update_every=10, prune_end=0.2)
    view = view_of([0.0, 0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [0] + [1] * 9)
    # keep 6 of the nine active, ties and zeros among the inactive notwithstanding
    assert method.update(view)["w"][0].nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7]


def layers_of(step: int = 10, gradients=None, last: str = "", masks=None, **weights) -> View:
    w = {name: torch.tensor(values, dtype=torch.float32) for name, values in weights.items()}
    m = masks or {name: torch.ones_like(values, dtype=torch.bool) for name, values in w.items()}
    g = {name: torch.tensor(values, dtype=torch.float32) for name, values in gradients.items()} if gradients else None
    return View(weights=w, masks=m, step=step, timeline=LINE, seed=0, gradients=g, last=last)


def test_uniform_gmp_by_hand():
    """20 weights at sparsity 0.85, k = n = 1: 3 stay; the last layer of 5 keeps a fifth, 1, so that 2 of 15 stay."""
    method = make("gmp_uniform", 0.85, update_every=10, prune_end=0.1)
    view = layers_of(a=[[1.0, 2, 9, 4, 5]], b=[[0.1, 0.2, 0.3, 0.9, 0.4], [0.8, 0, 0, 0, 0]], c=[[7.0, 8, 6, 9, 9]])
    assert method.planned_sparsity(10, LINE) == 0.85
    # nothing is told of a last layer: 0.75, 1.5 and 0.75 of 3; 1 goes to b, the two others by the largest remainders
    plain = method.update(view)
    assert [mask.sum().item() for mask in plain.values()] == [1, 1, 1]
    view = layers_of(
        last="c", a=[[1.0, 2, 9, 4, 5]], b=[[0.1, 0.2, 0.3, 0.9, 0.4], [0.8, 0, 0, 0, 0]], c=[[7.0, 8, 6, 9, 9]]
    )
    # 2 of 15: 0.67 in a, 1.33 in b: 1 to b, the one left over to a
    masks = method.update(view)
    assert [mask.nonzero().tolist() for mask in masks.values()] == [[[0, 2]], [[0, 3]], [[0, 3]]]


def test_uniform_granet_exchanges_within_its_uniform_counts():
    """Two layers of 4 at sparsity 0.5: 2 stay of each, ceil(0.488 x 2) = 1 of them goes, the largest |g| comes."""
    method = make("granet_uniform", 0.5, start_sparsity=0.0, update_every=10, prune_end=0.1)
    view = layers_of(a=[[9.0, 8, 7, 6]], b=[[1.0, 2, 3, 4]], gradients={"a": [[0.0, 0, 0, 5]], "b": [[0.0, 5, 0, 0]]})
    pruned, final = method.update(view)
    assert [mask.int().tolist() for mask in pruned.values()] == [[[1, 1, 0, 0]], [[0, 0, 1, 1]]]
    assert [mask.int().tolist() for mask in final.values()] == [[[1, 0, 0, 1]], [[0, 1, 0, 1]]]


FILTERS = {"a": [[1.0, -1], [2, 2], [0.5, 0]], "b": [[3.0, 0, 0], [1, 1, 1.5], [0.1, 0.1, 0.1]], "c": [[0.1, 0.1]]}


def test_structured_gmp_removes_the_filters_of_the_smallest_norm_that_the_plan_has_no_room_for():
    """17 weights, 9 to stay: 2 of the last layer; best of a (4, 2 weights) and of b (3.5, 3 weights); then 3, 2, 0.5.

    Of the 2 weights that are left 3.0 takes three and does not fit, 2.0 takes two and does.
    """
    method = make("gmp_structured", 8 / 17, update_every=10, prune_end=0.1)
    masks = method.update(layers_of(last="c", **FILTERS))
    assert {n: mask.int().tolist() for n, mask in masks.items()} == {
        "a": [[1, 1], [1, 1], [0, 0]],
        "b": [[0, 0, 0], [1, 1, 1], [0, 0, 0]],
        "c": [[1, 1]],
    }
    # layer by layer: 7 of 15 are 2.8 in a and 4.2 in b; after the best of each 0.8 and 1.2 are left, room for none
    layered = make("gmp_structured", 8 / 17, update_every=10, prune_end=0.1, scope="layer")
    kept = layered.update(layers_of(last="c", **FILTERS))
    assert {n: mask.sum().item() for n, mask in kept.items()} == {"a": 2, "b": 3, "c": 2}


def test_structured_granet_regrows_the_filters_of_the_largest_summed_gradient():
    """The pruning above keeps 2, 1 and 1 filters; ceil(0.488 n) = 1 of each goes; of a's three 2 has the most |g|."""
    method = make("granet_structured", 8 / 17, update_every=10, prune_end=0.1)
    gradients = {"a": [[1.0, -1], [9, 9], [2, -2]], "b": [[0.0, 0, 1], [0, 0, 0], [2, -2, 0]], "c": [[0.0, 0]]}
    final = method.update(layers_of(last="c", gradients=gradients, **FILTERS))
    assert [mask[:, 0].int().tolist() for mask in final.values()] == [[0, 1, 1], [0, 0, 1], [1]]
    # a filter that was empty before is no candidate, whatever its gradient
    masks = {name: torch.ones_like(torch.tensor(rows), dtype=torch.bool) for name, rows in FILTERS.items()}
    masks["a"][2] = False
    again = method.update(layers_of(last="c", gradients=gradients, masks=masks, **FILTERS))
    assert [mask[:, 0].int().tolist() for mask in again.values()] == [[1, 1, 0], [0, 0, 1], [1]]


def test_two_of_four_keeps_the_two_largest_of_consecutive_inputs():
    """k = 1 of n = 2: a share 1 - 0.5^3 = 0.875 of 4 groups is round(3.5) = 4; at the cheapest loss first."""
    method = make("gmp_structured", 0.5, pattern="2:4", update_every=10, prune_end=0.1)
    masks = method.update(layers_of(a=[[1.0, -2, 3, -4, 4, 4, 0, 1]], odd=[[1.0, 2, 3]]))
    assert masks["a"].int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    assert masks["odd"].all()
    half = make("gmp_structured", 0.5, pattern="2:4", update_every=10, prune_end=0.4)
    # k = 1 of n = 4: a share 1 - 0.75^3 = 0.578 of the two groups is round(1.16) = 1, the second, which loses 1, not 3
    assert half.update(layers_of(a=[[1.0, -2, 3, -4, 4, 4, 0, 1]]))["a"].int().tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]


def test_one_shot_by_hand():
    """Eight weights, three pruned of the six active: at a rate of a half; regrown where the gradient is largest."""
    masks = {"w": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).bool()}
    weights, gradients = [[6.0, 5, 4, 3, 2, 1, 0, 0]], {"w": [[0.0, 0, 0, 3, 0, 1, 0, 9]]}
    plain = make("one_shot", 0.625, rate=0.5)
    assert plain.setup(layers_of(0, masks=masks, w=weights))["w"].int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert plain.start_of_branch() == 0.25
    again = make("one_shot", 0.25, rate=0.5, regrow=True)
    assert again.start_of_branch() == 0.25
    pruned, final = again.setup(layers_of(0, gradients=gradients, masks=masks, w=weights))
    assert pruned["w"].int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert final["w"].int().tolist() == [[1, 1, 1, 1, 0, 1, 0, 1]]


def test_rigl_update_by_hand():
    method = make("rigl", 0.5, update_every=10, update_end=0.75, prune_rate=0.3)
    view = view_of(
        [0.5, -0.1, 0.9, -0.7, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], gradients=[0, 0, 0, 0, 1.0, -3.0, 2.0, 0]
    )
    # f(10) = 0.15 (1 + cos(10 pi / 75)) = 0.287 -> floor(1.15) = 1: -0.1 goes; the largest |g| is at 5
    assert method.update(view)["w"][0].nonzero().flatten().tolist() == [0, 2, 3, 5]


def test_rigl_defaults_are_its_papers():
    method = make("rigl", 0.9)
    assert (method.prune_rate, method.update_every, method.update_end) == (0.3, 100, 0.75)
    steps = method.update_steps(Timeline(97_656, 391))
    assert (steps[0], steps[-1]) == (100, 73_200)  # t < T_end = 73,242


def test_rigl_itop_updates_to_the_end():
    method = make("rigl_itop", 0.9)
    assert method.prune_rate == 0.5
    assert method.update_steps(Timeline(56_320, 352))[-1] == 56_000
    view = view_of([0.5, -0.1, 0.9, -0.7, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], gradients=[0, 0, 0, 0, 1.0, -3, 2, 0])
    # rate at progress 0.1 = 0.488 -> ceil(1.95) = 2 of 4
    assert make("rigl_itop", 0.5, update_every=10).update(view)["w"][0].nonzero().flatten().tolist() == [2, 3, 5, 6]


def test_rigl_itop_filter_grows_by_each_weights_share_of_its_filter():
    """Filter 0 has gradients (30, 40) / 50 = 0.6, 0.8 left over, filter 1 (0, 1): by size 40 comes first, here 1."""
    view = View(
        weights={"w": torch.tensor([[0.5, 0.0, 0.0], [-0.1, 0.0, 0.0]])},
        masks={"w": torch.tensor([[True, False, False], [True, False, False]])},
        step=10,
        timeline=LINE,
        seed=0,
        gradients={"w": torch.tensor([[0.0, 30.0, 40.0], [0.0, 0.0, 1.0]])},
    )
    settings = {"sparsity": 0.6, "prune_rate": 0.5, "update_every": 10}
    assert make("rigl_itop", **settings).update(view)["w"].int().tolist() == [[1, 0, 1], [0, 0, 0]]
    assert make("rigl_itop_filter", **settings).update(view)["w"].int().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_srigl_gives_every_neuron_that_stays_the_same_fan_in():
    """3 neurons of 4 inputs, fan-in 2. rate 0.287 of 6: one goes, 0.1, and one is grown, |g| = 9 in neuron 0.

    Salient are 3, 2 and 1 weights: gamma = 0.8 ablates the last one, and 6 / 2 = 3 inputs are for each of the others.
    """
    weights = [[0.9, 0.8, 0, 0], [0.7, 0.6, 0, 0], [0.5, 0.1, 0, 0]]
    gradients = [[0, 0, 9.0, 8.0], [0, 0, 1.0, 2.0], [0, 0, 7.0, 7.0]]
    view = layers_of(w=weights, gradients={"w": gradients}, masks={"w": torch.tensor(weights) != 0})
    settings = {"sparsity": 0.5, "update_every": 10, "distribution": "uniform"}
    ablated = make("srigl", gamma=0.8, **settings).update(view)["w"].int().tolist()
    assert ablated == [[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    assert make("srigl", gamma=0.3, **settings).update(view)["w"].int().tolist()[2] == [1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\], got 2"):
        find_method("srigl").cls(sparsity=0.9, gamma=2.0)


def test_srigl_starts_with_whole_fan_ins_of_at_most_the_count_asked():
    masks = make_run("srigl", 0.8).maskset.masks
    fans = {name: mask.flatten(1).sum(1).unique().tolist() for name, mask in masks.items()}
    assert {name: len(fan) for name, fan in fans.items()} == dict.fromkeys(masks, 1)
    assert (
        0 < sum(int(mask.sum()) for mask in masks.values()) <= round(0.2 * sum(mask.numel() for mask in masks.values()))
    )


def test_set_ranks_each_sign_apart():
    method = make("set", 0.5, prune_rate=0.5)
    weights = [0.1, 0.2, 0.3, 0.4, -9.0, -8.0, -7.0, -6.0] + [0.0] * 8
    view = view_of(weights, [1] * 8 + [0] * 8)
    kept = method.drop_smallest(view)["w"][0]
    assert kept.nonzero().flatten().tolist() == [2, 3, 4, 5]
    together = make("set", 0.5, prune_rate=0.5, per_sign=False).drop_smallest(view)["w"][0]
    assert together.nonzero().flatten().tolist() == [4, 5, 6, 7]
    removed, final = method.update(view)
    assert torch.equal(removed["w"][0], kept)
    assert int(final["w"].sum()) == 8


def test_set_starts_at_zero_what_it_removes_and_draws_again():
    """A full layer of 400: removed are 0.3 of each sign, rounded down, and all of them come back, from zero."""
    method = make("set", 0.0)
    weight = nn.Parameter(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    maskset, optimizer = MaskSet({"w": weight}), torch.optim.SGD([weight], lr=0.0, momentum=0.9)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    view = View(weights=maskset.weights, masks=maskset.masks, step=10, timeline=LINE, seed=0)
    commit(method, "set", maskset, propose(method, "set", view), view, optimizer)
    negative = int((before < 0).sum())
    removed = int(0.3 * negative) + int(0.3 * (400 - negative))
    assert maskset.masks["w"].all()
    assert int((weight == 0).sum()) == removed
    assert torch.equal(weight[weight != 0], before[weight != 0])
    assert torch.equal(optimizer.state[weight]["momentum_buffer"] == 0, weight == 0)


def test_set_updates_after_every_epoch():
    assert list(make("set", 0.9).update_steps(Timeline(1000, 352))) == [352, 704]


def test_ac_dc_has_the_phases_of_the_authors_imagenet_configuration():
    """100 epochs of 10,009 steps: compressed for 5 epochs from 10, 20, ... 70, dense from 75, compressed from 85."""
    method, line = make("ac_dc", 0.9), Timeline(100 * 10_009, 10_009)
    planned = {epoch: method.planned_sparsity(epoch * 10_009, line) for epoch in range(101)}
    compressed = {epoch for start in range(10, 80, 10) for epoch in range(start, start + 5)} | {*range(85, 101)}
    assert {epoch for epoch, sparsity in planned.items() if sparsity == 0.9} == compressed
    assert {planned[epoch] for epoch in range(101) if epoch not in compressed} == {0.0}
    assert method.update_steps(line)[0] == 10 * 10_009 and method.update_steps(line)[-1] == 85 * 10_009
    short = list(method.update_steps(Timeline(630, 21)))  # 31 steps each, 15 of them before round(535.5)
    assert (short[0], short[1], short[-1]) == (71, 102, 536)


def test_ac_dc_ranks_what_came_back_and_refuses_phases_that_do_not_fit():
    method = make("ac_dc", 0.5)
    view = view_of([0.1, 0.2, 0.9, -0.8], [1, 1, 1, 1], step=20)
    assert method.update(view).masks["w"][0].tolist() == [False, False, True, True]
    back = view_of([0.0, 0.0, 0.9, -0.8], [0, 0, 1, 1], step=25)
    assert method.update(back).masks["w"].all()
    with pytest.raises(ValueError, match=r"last_dense must be warm_up and a whole number of phases, got 6\.5 phases"):
        find_method("ac_dc").cls(sparsity=0.9, phase=0.1)
    with pytest.raises(ValueError, match="phases must be in order"):
        find_method("ac_dc").cls(sparsity=0.9, warm_up=0.8)
    with pytest.raises(ValueError, match="an odd number of phases, got 12 phases"):  # dense from 0.65 on, not from 0.7
        find_method("ac_dc").cls(sparsity=0.9, last_dense=0.7)


def test_ac_dc_resets_momentum_where_dense_phases_begin_and_nowhere_else():
    """At 15, 25, ... 75 of 100 epochs, as the authors' configuration has it; at 80 the last dense phase goes on."""
    method, reset = make("ac_dc", 0.5, reset_momentum=True), []
    for step in method.update_steps(LINE):
        view = view_of([0.1, 0.2, 0.9, -0.8], [1, 1, 1, 1], step=step)
        reset += [step] if method.update(view).forget else []
    assert reset == [15, 25, 35, 45, 55, 65, 75]


def test_mest_exchanges_less_and_less_at_random_and_then_nothing():
    """0.2 of 10 active weights, half of that from 9/16 of the run on, none from 3/4 on: 2, 1, 0 go, the smallest."""
    method = make("mest", 0.5, update_every=10)
    assert list(method.update_steps(LINE)) == [10, 20, 30, 40, 50, 60, 70, 80]  # LINE has 100 steps
    for step, gone in ((10, 2), (50, 2), (60, 1), (70, 1), (80, 0)):
        view = view_of([*range(1, 11), *[0.0] * 10], [1] * 10 + [0] * 10, step=step)
        kept, final = (masks["w"][0] for masks in method.update(view))
        assert kept.nonzero().flatten().tolist() == list(range(gone, 10))
        assert int(final.sum()) == 10 and bool(final[kept].all())


def test_mest_with_a_soft_bound_starts_denser_and_ends_at_its_target():
    method = make("mest", 0.9, soft=0.05, update_every=10)
    planned = [method.planned_sparsity(step, LINE) for step in (0, 50, 60, 70, 80, 100)]
    assert planned == pytest.approx([0.85, 0.85, 0.875, 0.875, 0.9, 0.9]) and planned[-1] == 0.9
    view = view_of([*range(1, 16), *[0.0] * 85], [1] * 15 + [0] * 85, step=60)
    kept, final = (masks["w"][0] for masks in method.update(view))
    assert kept.nonzero().flatten().tolist() == list(range(5, 15))  # 10 stay, then count(0.875) = 12
    assert int(final.sum()) == 12
    with pytest.raises(ValueError, match=r"soft must be in \[0, sparsity = 0.9\], got 0.95"):
        find_method("mest").cls(sparsity=0.9, soft=0.95)


def test_snip_scores_are_g_times_w_ranked_over_all_layers():
    method = make("snip", 0.5)
    weights = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[3.0, -4.0]])}
    gradients = {"a": torch.tensor([[5.0, -1.0]]), "b": torch.tensor([[0.1, 0.9]])}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    view = View(weights=weights, masks=masks, step=0, timeline=LINE, seed=0, gradients=gradients)
    # |g w|: 5, 2, 0.3, 3.6
    assert {n: m.tolist() for n, m in method.setup(view).items()} == {"a": [[True, False]], "b": [[False, True]]}


def test_grasp_removes_the_largest_of_minus_w_times_hg():
    view = view_of([1.0, 2.0, -1.0, 3.0], step=0, gradients=[0.0] * 4, hessian_gradients=[1.0, -1.0, -3.0, 0.1])
    # -w Hg: -1, 2, -3, -0.3 -> removed first: position 1, then 3
    assert make("grasp", 0.5).setup(view)["w"][0].tolist() == [True, False, True, False]


def test_scoring_gradients_match_a_closed_form():
    """A linear model with softmax: g = X'(p - y) / n, and Hg by differencing the closed form of g."""
    torch.manual_seed(0)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2 * 6 * 6, 3, bias=False)

        def forward(self, x):
            return self.fc(x.flatten(1))

    model, images, temperature = Linear().double(), SmallImages(), 5.0
    images.images = images.images.double()
    wanted = Scoring(order=2, samples_per_class=4, chunks=2, temperature=temperature)
    found = score(model, {"w": model.fc.weight}, images, wanted, 8, seed=3)
    assert found.images == 12
    batches = [(images.images[chunk], images.labels[chunk]) for chunk in scoring_chunks(images, wanted, 8, 3)]
    assert [len(labels) for _, labels in batches] == [6, 6]
    assert all(torch.bincount(labels).tolist() == [2, 2, 2] for _, labels in batches)

    def gradient(weight):
        total = torch.zeros_like(weight)
        for x, y in batches:
            p = torch.softmax(x.flatten(1) @ weight.T / temperature, 1)
            total += (p - nn.functional.one_hot(y, 3)).T @ x.flatten(1) / temperature / len(y)
        return total

    weight = model.fc.weight.detach()
    g = gradient(weight)
    assert torch.allclose(found.gradients["w"], g, rtol=1e-9)
    step = 1e-5
    hg = (gradient(weight + step * g) - gradient(weight - step * g)) / (2 * step)
    assert torch.allclose(found.hessian_gradients["w"], hg, rtol=1e-6, atol=1e-12)
    # in pieces of one image (a chunk of 6 is more than four batches): the same, for this model has no batch statistics
    pieces = score(model, {"w": model.fc.weight}, images, wanted, 1, seed=3)
    assert torch.allclose(pieces.gradients["w"], g, rtol=1e-9)
    assert torch.allclose(pieces.hessian_gradients["w"], hg, rtol=1e-6, atol=1e-12)


def test_scoring_leaves_the_network_as_it_was():
    wanted = Scoring(batch_norm="running", augmented=False)
    model = SmallNet()
    model.bn1.eval()  # as it may be found
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    score(model, {"conv1.weight": model.conv1.weight}, SmallImages(), wanted, 8, seed=0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert modes == [module.training for module in model.modules()]


def test_scores_and_moments_are_of_full_fp32_on_a_card_too(monkeypatch):
    """TensorFloat-32, a card's default in convolutions, has ten bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, seen = SmallNet(), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    score(model, {"w": model.fc.weight}, SmallImages(), Scoring(), 8, seed=0)
    take_moments(model, {"w": model.fc.weight}, SmallImages(), Moments(), 8, seed=0)
    assert len(seen) >= 2 and not any(seen) and torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has only the older names")
def test_full_fp32_is_had_and_given_back_under_either_of_torchs_names():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    for part in (matmul, torch.backends.cudnn):  # after the first torch refuses to tell by the older name
        before = part.fp32_precision
        try:
            part.fp32_precision = "tf32"
            with exact_fp32():
                assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
            assert part.fp32_precision == "tf32"
        finally:
            part.fp32_precision = before


def test_scored_in_inference_mode_an_untrained_network_has_no_batch_norm():
    """Running mean 0 and variance 1: each norm divides by sqrt(1 + eps), whatever the batch is."""
    torch.manual_seed(0)
    model, plain = SmallNet().double(), SmallNet().double()
    plain.load_state_dict(model.state_dict())
    for name in ("bn1", "bn2"):
        setattr(plain, name, nn.Identity())
    images = SmallImages()
    images.images = images.images.double()
    found = [
        score(net, {"w": net.conv1.weight}, images, Scoring(batch_norm=how), 8, seed=3).gradients["w"]
        for net, how in ((model, "running"), (plain, "batch"), (model, "batch"))
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-4)
    assert not torch.allclose(found[2], found[1], rtol=0.1)


def test_plain_images_are_those_of_the_evaluation():
    """SNIP's authors score on images that are not cropped or flipped."""
    asked = []

    class Told(SmallImages):
        def sample(self, indices, seed, device, augmented=True):
            asked.append(augmented)
            return super().sample(indices, seed, device, augmented)

    for method in (make("snip", 0.5), make("snip", 0.5, batch_norm="running", augment=False)):
        model = SmallNet()
        score(model, {"w": model.conv1.weight}, Told(), method.scoring(), 8, seed=0)
    assert asked == [True, False]


def test_static_masks_never_change_and_differ_between_seeds():
    first, second = make_run("static"), make_run("static", seed=1)
    start = first.maskset.sha256()
    assert finish(first).maskset.sha256() == start != second.maskset.sha256()


def test_methods_with_the_same_budget_start_from_the_same_random_masks():
    """Paired comparisons: SET, RigL and static at one sparsity and seed begin with equal masks."""
    assert len({make_run(name).maskset.sha256() for name in ("static", "set", "rigl", "rigl_itop")}) == 1


def test_rates_are_shares_of_active_weights_never_more():
    assert make("granet", 0.9, prune_rate=1.0).prune_rate == 1.0
    with pytest.raises(ValueError, match="score_batches"):
        find_method("snip").cls(sparsity=0.9, score_batches=0)
    with pytest.raises(ValueError, match="batch_norm must be batch or running, got 'eval'"):
        find_method("snip").cls(sparsity=0.9, batch_norm="eval")
    with pytest.raises(ContractError, match="batch_norm batch or running, got 'eval'"):
        Scoring(batch_norm="eval")
    with pytest.raises(ValueError, match="samples_per_class"):
        find_method("grasp").cls(sparsity=0.9, samples_per_class=1)
    with pytest.raises(ValueError, match="temperature"):
        find_method("grasp").cls(sparsity=0.9, temperature=0.0)


def test_mest_removes_by_weight_and_lambda_times_gradient():
    weights = {"w": torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])}
    masks, gradients = {"w": weights["w"] != 0}, {"w": torch.tensor([[0.0, 0, 0, 0, 9, 0, 0, 0, 0, 0]])}
    view = View(weights=weights, masks=masks, step=10, timeline=LINE, seed=0, active_gradients=gradients)
    for gradient_weight, gone in ((0.0, 4), (0.1, 3)):  # 0.5 is the smallest; 0.5 + 0.1 x 9 is more than 1
        settings = {"update_every": 10, "gradient_weight": gradient_weight}
        kept, _ = find_method("mest").build(load_page("digits_resnet20"), 0.5, settings).update(view)
        assert masks["w"].sum() == 5 and (masks["w"] & ~kept["w"]).nonzero().tolist() == [[0, gone]]
