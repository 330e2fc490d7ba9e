"""Runs that are killed at chosen lines of the code, restarted, and held to the bits of undisturbed ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from benchmark.config.plugins import built_in_names
from tests.harness.kills import (
    Ending,
    Run,
    Runs,
    Trials,
    draw_kills,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = "epochs=2 update_every=2 batch_size=400 ema_decay=0.9 model_args.width=0.1"  # 2 x 4 steps
LONGER = TINY.replace("epochs=2", "epochs=5")  # for methods that make no update in 8 steps
GRADUAL = f"{TINY} prune_end=0.25"  # at its final sparsity after an epoch, so that a branch may prune once
# Its dropout draws from torch's own random numbers, which only a saved state can continue within an epoch.
DROPOUT = (
    "epochs=2 update_every=2 batch_size=400 ema_decay=0.9 optimizer=adamw image_size=16 model=vit_tiny_patch16_224 "
    "'model_args={patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2, proj_drop_rate: 0.2, drop_path_rate: 0.2}'"
)


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Iterator[Trials]:
    with Runs() as nursery:
        yield Trials(nursery, tmp_path_factory.mktemp("kills"))


def is_whole(ending: Ending) -> bool:
    """Return whether a killed run ended as an undisturbed one does and no file was ever seen in part."""
    return not ending.differences and not ending.torn


def test_a_killed_run_leaves_what_an_undisturbed_one_leaves(trials):
    """At the start, in training and while it is published; everywhere, and every method, in the slow tests."""
    run, random = Run("", "granet", TINY), Random("kills")
    changes, resumed = trials.reference(run)[1], 0
    for first, last in ((1, changes // 4), (changes // 4, changes // 2), (changes - 9, changes)):
        at = random.randint(first, last)
        ending = trials.kill(run, at)
        assert ending.kills == 1 and is_whole(ending), (at, ending)
        resumed += ending.resumed
    assert resumed  # others begin anew, or have nothing left but to publish


# A branch that prunes once and regrows by gradients, and one whose method goes on with updates; each from epoch 1.
BRANCHES = {
    "one_shot": {"method": "one_shot", "arguments": "rate=0.5 regrow=true", "hold_lr": True, "more": 1},
    "granet": {"arguments": "prune_rate=0.2 lr=0.05"},
}


@pytest.fixture(scope="module")
def parent(trials) -> str:
    """The folder of a run with a snapshot after its first epoch."""
    folder = trials.folder / "parent"
    assert trials.nursery(Run(str(folder), "granet", GRADUAL, snapshots="1"))["status"] == 0
    return str(folder)


def branch_of(parent: str, name: str, every: int = 1) -> Run:
    return Run("", "", "", every, parent=parent, asked=json.dumps({"epoch": 1, **BRANCHES[name]}))


@pytest.mark.slow
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_survives_twenty_kills(trials, parent, name):
    random, kills = Random(f"branch {name}"), 0
    for number, every in ((16, 1), (8, 3)):
        run = branch_of(parent, name, every)
        for instants in draw_kills(trials.reference(run)[1], number, random):
            ending = trials.kill(run, *instants)
            assert is_whole(ending), (instants, ending)
            kills += ending.kills
    assert kills >= 20


def fault(name: str, shown: str, share: float = 0.45, arguments: str = TINY):
    """Return a fault as a case of the test below: where the run is killed, and what has to show it."""
    return pytest.param(name, shown, share, arguments, id=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shown", "share", "arguments"),
    [
        fault("momentum is lost", "weights.safetensors"),
        fault("the epoch begins anew", "other history"),
        fault("random state is lost", "weights.safetensors", arguments=DROPOUT),
        fault("files are written in place", "checkpoint", 0.1),
        fault("a published record is not found again", "a copy of", 0.99),
        fault("nothing is swept", " is left", 0.62),
        fault("masks are drawn anew", "masks.safetensors"),
        fault("the average is lost", "weights.safetensors"),
        fault("costs are lost", "other macs"),
        fault("the history is lost", "other history"),
    ],
)
def test_a_fault_in_going_on_is_seen(trials, name, shown, share, arguments):
    run = Run("", "rigl", arguments, fault=name)
    ending = trials.kill(run, round(share * trials.reference(run)[1]))
    assert ending.kills
    assert any(shown in said for said in ending.differences + ending.torn), ending


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        *((method, LONGER if method in ("ac_dc", "dsr") else TINY) for method in built_in_names()),
        *((method, DROPOUT) for method in ("granet", "set")),
    ],
    ids=lambda value: {TINY: "resnet", LONGER: "resnet", DROPOUT: "dropout"}.get(value, value),
)
def test_every_method_survives_twenty_kills(trials, method, arguments):
    random = Random(f"twenty {method}")
    asked = kills = resumed = 0
    for number, every in ((14, 1), (6, 3)):
        run = Run("", method, arguments, every)
        for instants in draw_kills(trials.reference(run)[1], number, random):
            ending = trials.kill(run, *instants)
            assert is_whole(ending), (instants, ending)
            asked, kills, resumed = asked + len(instants), kills + ending.kills, resumed + ending.resumed
    print(f"{method}: {kills} kills of {asked} asked for, {resumed} restarts from a checkpoint")
    assert kills >= 20 and resumed >= 5
