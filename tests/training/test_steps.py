"""What a step's images become: mixed by its number alone, and passed through the network in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmark import Sparsifier
from benchmark.conformance.trial import snapshot
from benchmark.data.mixing import mix
from benchmark.runs.checkpoints import load_checkpoint, save_checkpoint
from benchmark.training.setup import begin_masks
from benchmark.training.state import Training
from benchmark.training.train import compute_gradients, train, train_step
from methods.core import Masks, View
from methods.rigl_itop import RigLITOP
from tests.harness.small import BATCH, Silent, finish, make_page, make_run, make_training


def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 2, 6, 6, generator=generator), torch.arange(count) % 3


@pytest.mark.parametrize(("alphas", "count"), [({"mixup": 0.8}, 8), ({"cutmix": 1.0}, 8), ({"mixup": 0.8}, 7)])
def test_images_and_classes_are_mixed_by_one_share_that_depends_on_seed_and_step(alphas, count):
    page, (images, labels) = make_page(**alphas), draw(count)
    state = np.random.get_state()[1].copy()
    mixed, shares = mix(images.clone(), labels, page, 3, 0, 5)
    assert (np.random.get_state()[1] == state).all()
    pairs = count // 2 * 2
    partner = torch.cat([torch.arange(pairs).flip(0), torch.arange(pairs, count)])
    kept = next(shares[i, labels[i]] for i in range(pairs) if labels[i] != labels[partner[i]])
    hard = functional.one_hot(labels, 3).float()
    assert 0 < kept < 1 and torch.allclose(shares, kept * hard + (1 - kept) * hard[partner])
    if "mixup" in alphas:
        assert torch.allclose(mixed, kept * images + (1 - kept) * images[partner])
    else:
        cut = (mixed != images)[:4].flatten(1).float().mean(1)
        assert torch.allclose(cut, 1 - kept.expand(4)) and ((mixed == images) | (mixed == images[partner])).all()
    again, other = (mix(images.clone(), labels, page, 3, *key)[0] for key in ((0, 5), (0, 6)))
    assert torch.equal(again, mixed) and not torch.equal(other, mixed)


def test_a_run_that_mixes_goes_on_to_the_same_bits(tmp_path):
    recipe = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "epochs": 2, "accumulate": 2}
    whole = make_run("rigl_itop", **recipe)
    train(whole, Silent(), lambda _: None, lambda run: save_checkpoint(tmp_path / str(run.step), run.state()))
    again = make_run("rigl_itop", **recipe)
    again.load_state(load_checkpoint(tmp_path / "8"))
    finish(again)
    assert snapshot(again).differences(snapshot(whole)) == []
    plain = finish(make_run("rigl_itop", epochs=2))
    assert plain.history[-1]["loss"] != whole.history[-1]["loss"]


@dataclass(frozen=True, kw_only=True)
class Reads(RigLITOP):
    """Holds the gradients of trained weights that its updates are shown against those of all weights."""

    seen: ClassVar[list[bool]] = []

    def update(self, view: View) -> Masks:
        pairs = [(view.active_gradients[name], g * view.trained[name]) for name, g in view.gradients.items()]
        if "conv1.weight" in view.weights:  # else it is rehearsed
            self.seen.append(all(torch.equal(active, masked) for active, masked in pairs))
        return super().update(view)


@pytest.mark.parametrize("clip_norm", [0.0, 1e-3])
@pytest.mark.parametrize("loop", ["the runner's", "one's own", "one's own, under a scaler"])
def test_an_update_is_shown_the_gradients_of_trained_weights_before_clipping(loop, clip_norm):
    """Those of all weights are copied first of all, and divided by a scaler's scale, so they are the oracle."""
    Reads.seen.clear()
    method = Reads(sparsity=0.8, update_every=2)
    run = make_training(method, clip_norm=clip_norm, epochs=1)
    if loop == "the runner's":
        begin_masks(run, None, str)
        finish(run)
    else:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled="scaler" in loop)
        sparse = Sparsifier(run.model, torch.optim.SGD(run.model.parameters(), lr=0.1), method, total_steps=6)
        for images, labels in run.data.train.epoch(0, 0, BATCH, True, None):
            scaler.scale(functional.cross_entropy(run.model(images), labels)).backward()
            sparse.step(scaler, clip_norm)
            scaler.update()
    assert Reads.seen == [True, True]


def test_where_images_are_mixed_the_larger_share_counts_as_right():
    run = make_run("static")
    run.model.forward = lambda images: run.model.fc.bias + torch.tensor([0.0, 9.0, 0.0]).repeat(len(images), 1)
    shares = torch.tensor([[0.4, 0.6, 0.0], [0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]).repeat(2, 1)
    run.step = 1
    totals = train_step(run, draw(BATCH)[0], shares, nn.CrossEntropyLoss(), False)
    assert totals[1] == 4


def without_norms(run: Training) -> Training:
    """Take away what would make a part of a batch differ from the whole: batch statistics."""
    run.model.bn1 = run.model.bn2 = nn.Identity()
    return run


def test_the_gradient_of_a_step_in_parts_is_the_mean_over_its_images_and_masks_stay_the_same():
    """Eight images in parts of 3, 3 and 2: a mean of the parts' means would be another."""
    one, parts = (without_norms(make_run("rigl_itop", epochs=4, accumulate=count)) for count in (1, 3))
    images, labels = draw(BATCH)
    for run in (one, parts):
        logits, loss = compute_gradients(run, nn.CrossEntropyLoss(), 1.0, images, labels)
        assert torch.allclose(loss, functional.cross_entropy(logits, labels)) and len(logits) == BATCH
    for ours, theirs in zip(one.parameters, parts.parameters, strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)
    finish(one), finish(parts)
    assert one.maskset.sha256() == parts.maskset.sha256() and one.updates == parts.updates > 2
    assert (one.step, one.meter.state()) == (parts.step, parts.meter.state())
    torch.testing.assert_close(one.model.fc.weight, parts.model.fc.weight)
