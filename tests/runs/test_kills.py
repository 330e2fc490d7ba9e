"""Runs that are killed at chosen lines of the code, restarted, and held to the bits of undisturbed ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from benchmark.config.plugins import built_in_names
from tests.harness.kills import (
    ANYWHERE,
    PAGE,
    SPOTS,
    Ending,
    Nursery,
    Run,
    Trials,
    draw_kills,
    find_differences,
    find_torn,
    is_published,
    read_outcome,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = "epochs=2 update_every=2 batch_size=400 ema_decay=0.9 model_args.width=0.1"  # 2 x 4 steps
GRADUAL = f"{TINY} prune_end=0.25"  # at its final sparsity after an epoch, so that a branch may prune once
# Its dropout draws from torch's own random numbers, which only a saved state can continue within an epoch.
DROPOUT = (
    "epochs=2 update_every=2 batch_size=400 ema_decay=0.9 optimizer=adamw image_size=16 model=vit_tiny_patch16_224 "
    "'model_args={patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2, proj_drop_rate: 0.2, drop_path_rate: 0.2}'"
)
# Every spot once, shared among methods to save time, and how often these save: a run that saves at each third step has
# steps to do again. A spot with ! is a line at which files change, such as between fsync and rename.
SHARES = {
    "granet": (1, ["update", "checkpoint!", "epoch end", "record!", "publish"]),
    "rigl": (3, ["step", "epoch end!", "export!", "publish!", "cell"]),
    "snip": (1, ["setup", "checkpoint", "export", "record"]),
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Iterator[Trials]:
    with Nursery() as nursery:
        yield Trials(nursery, tmp_path_factory.mktemp("kills"))


def is_whole(ending: Ending) -> bool:
    """Return whether a killed run ended as an undisturbed one does and no file was ever seen in part."""
    # A writer killed among records or beside the page leaves a hidden file there, which no reader looks at and git
    # ignores: those folders belong to several processes, so nobody may sweep them.
    strange = [name for name in ending.litter if not name.startswith(".partial-")]
    return not ending.differences and not ending.torn and not strange


@pytest.mark.parametrize(
    "method", ["granet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rigl", "snip"))]
)
def test_a_run_killed_at_any_spot_leaves_what_an_undisturbed_one_leaves(trials, method):
    every, spots = SHARES[method]
    run, random = Run("", method, TINY, every), Random(f"spots {method}")
    lines = trials.reference(run)[1]
    resumed = 0
    for spot in spots:
        line = random.randint(1, lines[spot])
        ending = trials.kill(run, [(spot, line)])
        assert ending.kills == 1, (spot, line)
        assert is_whole(ending), (spot, line, ending)
        resumed += ending.resumed
    assert resumed  # others begin anew, or have nothing left but to publish


@pytest.mark.slow
def test_every_spot_of_a_run_is_killed_at(trials):
    spots = {spot for _, spots in SHARES.values() for spot in spots}
    assert set(SPOTS.values()) - {"load"} == {spot.rstrip("!") for spot in spots}
    for method, (every, _) in SHARES.items():
        assert trials.reference(Run("", method, TINY, every))[1].keys() - {ANYWHERE} <= spots


@pytest.mark.slow
def test_dropout_goes_on_within_an_epoch(trials):
    run, random = Run("", "rigl", DROPOUT), Random("dropout")
    lines = trials.reference(run)[1]
    for line in (lines["step"] * 3 // 8, random.randint(lines["step"] // 2, lines["step"])):
        ending = trials.kill(run, [("step", line)])
        assert ending.kills == ending.resumed == 1
        assert is_whole(ending), (line, ending)


@pytest.mark.slow
def test_a_restarted_run_may_be_killed_again(trials):
    run = Run("", "granet", TINY)
    lines = trials.reference(run)[1]
    for kills in (
        [("step", lines["step"] // 2), ("load", 30), ("checkpoint!", 5)],
        [("record!", 3), ("publish", lines["publish"] // 3)],
    ):
        ending = trials.kill(run, kills)
        assert ending.kills == len(kills)
        assert is_whole(ending), (kills, ending)


@pytest.mark.slow
def test_a_run_killed_from_outside_at_any_time_leaves_the_same(trials):
    random = Random("outside")
    ending = trials.kill(Run("", "granet", TINY), [random.uniform(0.2, 0.6) for _ in range(3)])
    assert ending.kills and is_whole(ending), ending


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
def test_a_branch_killed_at_any_spot_leaves_what_an_undisturbed_one_leaves(trials, parent):
    run, random, resumed = branch_of(parent, "one_shot"), Random("branches"), 0
    lines = trials.reference(run)[1]
    for spot in ("load", "setup", "step", "checkpoint!", "record!"):
        line = random.randint(1, lines[spot])
        ending = trials.kill(run, [(spot, line)])
        assert ending.kills == 1 and is_whole(ending), (spot, line, ending)
        resumed += ending.resumed
    assert resumed
    lost = trials.kill(replace(run, fault="momentum is lost"), [("step", lines["step"] // 2)])
    assert lost.kills == 1 and "weights.safetensors" in lost.differences
    (record,) = trials.reference(run)[0].records
    assert record["branch"]["epoch"] == 1 and [row["epoch"] for row in record["history"]] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_survives_twenty_kills(trials, parent, name):
    random, kills = Random(f"branch {name}"), 0
    for number, every in ((16, 1), (8, 3)):
        run = branch_of(parent, name, every)
        for instants in draw_kills(trials.reference(run)[1], number, random):
            ending = trials.kill(run, instants)
            assert is_whole(ending), (instants, ending)
            kills += ending.kills
    assert kills >= 20


def fault(name: str, shown: str, spot: str = "step", share: float = 0.6, arguments: str = TINY, slow: bool = True):
    """Return a fault as a case of the test below: where the run is killed, and what has to show it."""
    return pytest.param(name, shown, spot, share, arguments, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("name", "shown", "spot", "share", "arguments"),
    [
        fault("momentum is lost", "weights.safetensors", slow=False),
        fault("the epoch begins anew", "record: history", share=0.7),
        fault("random state is lost", "weights.safetensors", share=0.7, arguments=DROPOUT),
        fault("files are written in place", "checkpoint", "checkpoint!", 0.2),
        fault("a published record is not found again", "2 records", "publish"),
        fault("nothing is swept", ".weights.safetensors.", "export!", 0.4),
        fault("masks are drawn anew", "masks.safetensors"),
        fault("the average is lost", "weights.safetensors"),
        fault("costs are lost", "record: macs"),
        fault("the history is lost", "record: history"),
    ],
)
def test_a_fault_in_going_on_is_seen(trials, name, shown, spot, share, arguments):
    run = Run("", "rigl", arguments, fault=name)
    line = round(share * trials.reference(run)[1][spot])
    ending = trials.kill(run, [(spot, line)])
    assert ending.kills
    assert any(shown in said for said in ending.differences + ending.torn), ending


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "arguments"),
    [*((method, TINY) for method in built_in_names()), *((method, DROPOUT) for method in ("granet", "set"))],
    ids=lambda value: {TINY: "resnet", DROPOUT: "dropout"}.get(value, value),
)
def test_every_method_survives_twenty_kills(trials, method, arguments):
    random = Random(f"twenty {method}")
    asked = kills = resumed = 0
    for number, every in ((14, 1), (6, 3)):
        run = Run("", method, arguments, every)
        for instants in draw_kills(trials.reference(run)[1], number, random):
            ending = trials.kill(run, instants)
            assert is_whole(ending), (instants, ending)
            asked, kills, resumed = asked + len(instants), kills + ending.kills, resumed + ending.resumed
    print(f"{method}: {kills} kills of {asked} asked for, {resumed} restarts from a checkpoint")
    assert kills >= 20 and resumed >= 5


@pytest.mark.slow
def test_commands_killed_at_random_times_leave_one_record(tmp_path):
    command = [sys.executable, "-m", "benchmark", "run", "--method", "granet", "--task", "digits_resnet20"]
    command += ["--args", "epochs=8 update_every=8", "--checkpoint-s", "0", "--device", "cpu", "--data", "data"]
    command += ["--records", "records", "--leaderboard", PAGE, "--runs", "runs"]
    environment, random = {**os.environ, "PYTHONPATH": str(ROOT)}, Random("commands")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    subprocess.run(command, cwd=whole, env=environment, check=True, capture_output=True)
    killed = 0
    while not is_published(broken):
        process = subprocess.Popen(command, cwd=broken, env=environment, stdout=subprocess.DEVNULL)
        while killed < 3 and process.poll() is None and not list(broken.glob("runs/*/checkpoint")):
            time.sleep(0.01)
        try:
            process.wait(random.uniform(0, 9) if killed < 3 else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        assert find_torn(broken) == []
    assert killed
    assert find_differences(read_outcome(whole), read_outcome(broken)) == []
