"""A run whose host does not wait for the device has the bits of one that waits, also where steps are not finite."""

from __future__ import annotations

import pytest
import torch

from benchmark.conformance.trial import Silent, snapshot
from benchmark.runs.checkpoints import load_checkpoint, save_checkpoint
from benchmark.training.train import Training, train
from tests.harness.small import finish, make_run, poison


def start(name: str, waits: bool, bad: set[int], **page) -> Training:
    """Return a run in which the images of the steps `bad` are infinite."""
    run = poison(make_run(name, **page), bad)
    run.waits = waits
    return run


OPTIMIZERS = {
    "sgd": {},
    "sgd, clipped": {"clip_norm": 0.5},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5},
}


SOME = {2, 3, 4, 5, 12}  # two of them with updates


@pytest.mark.parametrize(
    ("name", "bad", "page"),
    [
        *(("granet", SOME, page) for page in OPTIMIZERS.values()),
        ("rigl", SOME, {}),
        ("granet", {1}, {}),
        ("rigl", set(), {}),
    ],
    ids=[*OPTIMIZERS, "rigl", "the first step", "all finite"],
)
def test_a_run_that_does_not_wait_has_the_bits_of_one_that_does(name, bad, page):
    waiting, other = (finish(start(name, waits, bad, **page)) for waits in (True, False))
    assert snapshot(other).differences(snapshot(waiting)) == []
    assert other.skipped_steps == waiting.skipped_steps == len(bad)
    assert (other.history, other.updates) == (waiting.history, waiting.updates)


def test_a_checkpoint_counts_the_steps_skipped_so_far(tmp_path):
    whole, seen = start("granet", False, {2, 9}), []

    def save(run):
        save_checkpoint(tmp_path / str(run.step), run.state())
        seen.append((run.step, run.skipped_steps))

    train(whole, Silent(), lambda _: None, save)
    assert seen[:3] == [(1, 0), (2, 1), (3, 1)] and seen[-1] == (24, 2)
    for step in (2, 9):
        again = start("granet", False, {2, 9})
        again.load_state(load_checkpoint(tmp_path / str(step)))
        finish(again)
        assert snapshot(again).differences(snapshot(whole)) == []
        assert again.skipped_steps == 2


def test_without_waiting_the_host_asks_the_device_for_nothing_between_updates(monkeypatch):
    """Every question to the device goes through item(), bool() or int(): none is asked in a step without an update."""
    import benchmark.training.train as module

    run, asked = start("granet", False, set(), epochs=1), []  # an update at step 3, none at the last step
    original = module.train_step

    def counted(run, images, labels, criterion, due):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
                usual = getattr(torch.Tensor, name)
                patch.setattr(torch.Tensor, name, lambda t, usual=usual: (asked.append(run.step), usual(t))[1])
            return original(run, images, labels, criterion, due)

    monkeypatch.setattr(module, "train_step", counted)
    finish(run)
    assert set(asked) == {3}
