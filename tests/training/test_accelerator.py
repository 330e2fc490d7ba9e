"""The engine on an accelerator: a stand-in, in a process of its own; and which devices can be asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import benchmark.base.system as system
import benchmark.workers.local as local
from benchmark.base.errors import UserError
from benchmark.base.system import choose_device
from benchmark.distributed.launch import check_gpus
from benchmark.workers import Pool
from tests.harness.accelerator import AVAILABLE
from tests.harness.benches import ROOT
from tests.harness.on_accelerator import PROMISES

SLOW = ("slow_methods_do_too", "the_kit_passes")
DAILY = [name for name in PROMISES if name not in SLOW]
needs_stand_in = pytest.mark.skipif(not AVAILABLE, reason="this torch takes no devices in Python")


def attempt(folder, *names: str) -> dict[str, str]:
    """Return what was wrong with each promise, tried in a process of its own: the stand-in changes all of torch."""
    out = folder / "found.json"
    own = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "tests.harness.on_accelerator", str(out), *names]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return attempt(tmp_path_factory.mktemp("daily"), *DAILY)


@needs_stand_in
@pytest.mark.xdist_group("accelerator")
@pytest.mark.parametrize("name", DAILY)
def test_promise(name, found):
    assert not found[name], found[name]


@needs_stand_in
@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_promise(name, tmp_path):
    found = attempt(tmp_path, name)
    assert not found[name], found[name]


def pretend(monkeypatch, kind: str, devices: int) -> None:
    """Have torch find so many devices of a kind."""
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "is_available", lambda: devices > 0)
    monkeypatch.setattr(module, "device_count", lambda: devices)


@pytest.mark.parametrize(
    ("asked", "there", "reason"),
    [
        ("tpu", None, "DEVICE must be auto, cpu or cuda, or another accelerator that torch knows, got 'tpu'"),
        ("cpu:1", None, "got 'cpu:1'"),
        ("cuda:0", ("cuda", 0), "DEVICE=cuda:0 was asked for, but torch finds no GPU here: use DEVICE=cpu"),
        ("cuda:2", ("cuda", 2), "DEVICE=cuda:2 was asked for, and the last 'cuda' device here is cuda:1"),
        ("xpu", ("xpu", 0), "torch finds no 'xpu' device here: use DEVICE=cpu"),
        ("mps", ("mps", 1), "DEVICE=mps: this device has no float64, in which .* use DEVICE=cpu"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_with_the_reason(asked, there, reason, monkeypatch):
    if there is not None:
        pretend(monkeypatch, *there)
    with pytest.raises(UserError, match=reason):
        choose_device(asked)


def test_a_device_is_asked_for_by_torchs_name(monkeypatch):
    pretend(monkeypatch, "cuda", 2)
    pretend(monkeypatch, "xpu", 1)
    monkeypatch.setattr(system, "has_float64", lambda device: True)
    for asked, found in {"auto": "cuda", "cuda": "cuda", "cuda:1": "cuda:1", "xpu": "xpu", "cpu": "cpu"}.items():
        assert choose_device(asked) == torch.device(found)


def test_the_workers_of_a_numbered_gpu_see_it_alone(monkeypatch):
    pretend(monkeypatch, "cuda", 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert local.open_workers(Pool(per_gpu=2), "cuda:1").gpus == ["GPU-b"]
    assert local.open_workers(Pool(), "cuda").gpus == ["GPU-a", "GPU-b"]
    assert Pool().device_there("cuda:1") == "cuda"  # as the one it sees is called there
    with pytest.raises(UserError, match=r"each process a GPU of its own.*not 'cuda:1'"):
        check_gpus(2, torch.device("cuda:1"))
