"""Masking the gradients, once per step, is enough: every other thing that could be masked stays what it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmark.training.optim import learning_rate, make_optimizer
from benchmark.training.train import Training
from tests.harness.small import BATCH, finish, make_run

SETTINGS = {
    "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "sgd, momentum": {"nesterov": False, "weight_decay": 5e-3},
    "sgd, clipped": {"nesterov": True, "weight_decay": 5e-3, "clip_norm": 0.5},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 5e-3},
    "adamw, clipped": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 5e-2, "clip_norm": 0.5},
}


def mask_everything(run: Training, masks: dict) -> None:
    """Multiply weights and every state of theirs by the masks."""
    with torch.no_grad():
        for name, weight in run.maskset.weights.items():
            weight *= masks[name]
            for state in run.optimizer.state[weight].values():
                if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                    state *= masks[name]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_masked_gradients_alone_give_the_bits_of_masking_everything_at_every_step(settings):
    """The second run is written out: mask, clip by the norm of what is left, step, mask again, to the first's masks."""
    ours, theirs = (make_run("rigl_itop", epochs=8, **settings) for _ in range(2))
    committed: dict[int, dict] = {}
    original = ours.maskset.commit

    def commit(proposed, *rest):
        original(proposed, *rest)
        committed[ours.step] = {name: mask.clone() for name, mask in ours.maskset.masks.items()}

    ours.maskset.commit = commit
    finish(ours)
    assert len(committed) >= 4 and ours.timeline.total_steps == 48

    page, masks, step = theirs.page, {n: m.clone() for n, m in theirs.maskset.masks.items()}, 0
    theirs.optimizer = make_optimizer(page, theirs.model)
    theirs.model.train()
    for epoch in range(page.epochs):
        for group in theirs.optimizer.param_groups:
            group["lr"] = learning_rate(page, epoch)
        for images, labels in theirs.data.train.epoch(0, epoch, BATCH, False, None):
            step += 1
            theirs.optimizer.zero_grad()
            nn.functional.cross_entropy(theirs.model(images), labels).backward()
            for name, weight in theirs.maskset.weights.items():
                weight.grad *= masks[name]
            if page.clip_norm:
                nn.utils.clip_grad_norm_(theirs.model.parameters(), page.clip_norm)
            theirs.optimizer.step()
            masks = committed.get(step, masks)
            mask_everything(theirs, masks)
    for name, weight in ours.model.named_parameters():
        assert torch.equal(weight, theirs.model.get_parameter(name)), name
    for name, weight in ours.maskset.weights.items():
        other = theirs.optimizer.state[theirs.maskset.weights[name]]
        for key, state in ours.optimizer.state[weight].items():
            if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                assert torch.equal(state, other[key]), (name, key)
                assert not state[~ours.maskset.masks[name]].any(), (name, key)
