"""SIS and the second moments it reads, by numbers worked out by hand and by another way to the same optimum."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError
from benchmark.networks.costs import Costs, Meter
from benchmark.training.moments import take_moments
from methods.core import ContractError, Moments, NearOutputs, Rounds, Timeline, View
from methods.sis import SIS
from tests.harness import small
from tests.harness.disagreement import start

LINE = Timeline(16, 4, (8, 16))


def sparsify(weight: list, moments: Tensor, eta: float) -> list:
    """Return a layer's weights at the optimum."""
    return NearOutputs(torch.tensor(weight), moments).sparsify(eta, 400).tolist()


def test_where_inputs_are_alike_weights_are_softly_thresholded_to_the_ball():
    """|W - W0|^2 = 26 eta: 4, -3, 1 go down by 1 at 3 of 26; at 9 of 26 by 2, the third only to its zero."""
    eye = torch.eye(3).unsqueeze(0)
    assert sparsify([[4.0, -3.0, 1.0]], eye, 3 / 26) == [pytest.approx([3, -2, 0], abs=1e-6)]
    assert sparsify([[4.0, -3.0, 1.0]], eye, 9 / 26) == [pytest.approx([2, -1, 0], abs=1e-6)]


def test_one_weight_shrinks_by_the_root_of_eta_whatever_its_input():
    assert sparsify([[-2.0]], torch.full((1, 1, 1), 7.0), 0.25) == [pytest.approx([-1.0])]


def test_inputs_that_say_the_same_need_one_weight():
    """Inputs (x, 2x): 1 and 1 give 3x, as 0 and 3/2 do; a fourth of the squares may go: 3x/2, by 3/4 alone."""
    moments = torch.tensor([[[1.0, 2.0], [2.0, 4.0]]])
    assert sparsify([[1.0, 1.0]], moments, 0.25) == [pytest.approx([0, 0.75], abs=1e-6)]


def test_groups_see_their_own_inputs_and_silent_ones_need_no_weight():
    moments = torch.stack([torch.zeros(1, 1), torch.eye(1)])
    assert sparsify([[5.0], [-2.0]], moments, 0.25) == [[0.0], pytest.approx([-1.0], abs=1e-6)]
    assert sparsify([[5.0]], torch.zeros(1, 1, 1), 0.25) == [[0.0]]


def test_the_optimum_is_that_of_a_long_proximal_gradient_descent():
    """Of |W|_1 + m / 2 sum of squares, whose m is bisected until as much has changed as the constraint lets."""
    generator = torch.Generator().manual_seed(3)
    given, rows = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (9, 5)))
    moments, eta = rows.mT @ rows / 9, 0.3
    most = eta * torch.trace(given @ moments @ given.mT)
    low, high = 0.0, 1e3
    for _ in range(60):
        m = (low + high) / 2
        size, weight = 1 / (m * torch.linalg.matrix_norm(moments, 2)), given.clone()
        for _ in range(300):
            weight = weight - size * m * (weight - given) @ moments
            weight = weight.sign() * (weight.abs() - size).relu()
        off = torch.trace((weight - given) @ moments @ (weight - given).mT)
        low, high = (m, high) if off > most else (low, m)
    solved = NearOutputs(given, moments.unsqueeze(0)).sparsify(eta, 400)
    assert torch.allclose(solved, weight, atol=1e-4) and bool((solved == 0).any())


def test_the_budget_is_met_with_solved_weights_at_the_end_of_the_dense_training():
    weights = {"a": torch.tensor([[4.0, -3.0, 1.0, 0.5]]), "b": torch.tensor([[2.0, 0.1]])}
    view = View(
        weights=weights,
        masks={name: torch.ones_like(weight).bool() for name, weight in weights.items()},
        step=8,
        timeline=LINE,
        seed=0,
        input_moments={name: torch.eye(weight.shape[1]).unsqueeze(0) for name, weight in weights.items()},
    )
    method = SIS(sparsity=0.5, iterations=100)
    update = method.update(view)
    assert [mask.tolist() for mask in update.masks.values()] == [[[True, True, False, False]], [[True, False]]]
    assert all(bool((update.values[n].abs() < w.abs()).all()) for n, w in weights.items())
    assert all(bool(mask.all()) for mask in SIS(sparsity=0.0).update(view).masks.values())
    assert method.update_steps(LINE) == (8,) and [method.planned_sparsity(s, LINE) for s in (7, 8, 16)] == [0, 0.5, 0.5]
    assert method.rounds(4) == Rounds(2, keep_weights=True)
    once = dataclasses.replace(method, fine_tune=False)
    assert once.rounds(4) == Rounds() and once.update_steps(Timeline(8, 4)) == (8,) and once.remarks({}) == []
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        SIS(sparsity=0.5, iterations=0)


def test_the_masks_stay_while_the_network_is_fine_tuned():
    run = small.finish(start(SIS(sparsity=0.9, iterations=5, score_batches=1), "sis", small.SmallNet, 0))
    assert run.maskset.active() == round(0.1 * small.PRUNABLE) and run.step == 48
    densities = [row["density"] for row in run.history]
    assert densities[:3] == [1.0] * 3 and len(set(densities[3:])) == 1


# -------------------------------------------------------------------------------------------------------- the moments


def test_moments_are_of_what_one_output_sees_and_leave_the_model_as_it_was():
    """A kernel of 1 x 2 at stride 2 sees columns (1, 2) and (3, 0) of the padded row 1, 2, 3, and so on by group."""
    conv = nn.Conv2d(2, 2, (1, 2), stride=(1, 2), groups=2, bias=False)
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), conv).train()
    images = small.SmallImages()
    images.images = torch.tensor([[[[1.0, 2, 3]], [[0, 5, 0]]]]).expand(small.IMAGES, -1, -1, -1)
    weights = {"w": conv.weight}
    moments, seen = take_moments(model, weights, images, Moments(2), 8, 0)
    assert seen == 16 and moments["w"].dtype == torch.float64
    assert moments["w"].tolist() == [[[5, 1], [1, 2]], [[0, 0], [0, 12.5]]]
    assert model.training and conv.training and not conv._forward_pre_hooks
    backward = nn.ConvTranspose2d(2, 2, 1)
    with pytest.raises(UserError, match="transposed"):
        take_moments(backward, {"w": backward.weight}, images, Moments(), 8, 0)
    with pytest.raises(UserError, match="layer w cannot be seen"):
        bypassed = nn.Conv2d(2, 2, 1)
        bypassed.forward = lambda x: x
        take_moments(nn.Sequential(Outside(bypassed)), {"w": bypassed.weight}, images, Moments(), 8, 0)


class Outside(nn.Module):
    """Uses the weight of a layer without calling the layer."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.layer.weight)


def test_moments_are_shown_where_they_are_declared_and_charged():
    view = View(weights={}, masks={}, step=1, timeline=LINE, seed=0)
    with pytest.raises(ContractError, match=r"return Moments\(\) from moments\(\)"):
        _ = view.input_moments
    with pytest.raises(ContractError, match="at least 1 batch"):
        Moments(0)
    meter = Meter(*[Costs(per_weight={"w": 4}, layers={"w": 40}, fixed=5, dense=45, operators={}, omitted={})] * 2)
    meter.on_commit({"w": 3})
    meter.charge_moments(2, {"w": 25})  # of each image 4 x 3 + 5, and 4 positions x 5 x 5
    assert meter.train == 2 * (17 + 100)
