"""Starting several processes: what is refused, what a process that dies leaves, and who speaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.distributed import launch as starting
from benchmark.distributed.launch import LOST, check_gpus, explain, is_launched, is_lost, join, launch
from tests.harness.kills import is_published
from tests.harness.verdicts import judge

ROOT = Path(__file__).resolve().parents[2]
RUN = ["run", "--task", "digits_resnet20", "--device", "cpu", "--records", "records", "--runs", "runs"]
RUN += ["--leaderboard", "LEADERBOARD.md", "--data", "data"]
TWO = [*RUN, "--ranks", "2", "--method", "granet", "--args", "epochs=6 update_every=8", "--checkpoint-s", "0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def start(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    """Start a command in a folder of its own."""
    folder.mkdir(exist_ok=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=ENVIRONMENT, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return a command's exit status and what it said."""
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"RANKS=4 asks for 4 GPUs, one for each process, and this machine has 2: "):
        check_gpus(4, torch.device("cuda"))
    check_gpus(2, torch.device("cuda"))
    check_gpus(64, torch.device("cpu"))
    monkeypatch.setattr(starting, "choose_device", lambda asked: torch.device("cuda"))
    with pytest.raises(UserError, match="this machine has 2"):
        launch(4, "auto", [], print)


def test_a_process_joins_only_where_torchrun_has_started_it(monkeypatch):
    assert not is_launched()
    assert join(4, "cpu") is None and not torch.distributed.is_initialized()
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert is_launched()
    with pytest.raises(UserError, match="--ranks 4 was asked for and torchrun started 8 processes"):
        join(4, "cpu")


def ended(*codes: int) -> dict[int, SimpleNamespace]:
    return {rank: SimpleNamespace(exitcode=code, pid=100 + rank) for rank, code in enumerate(codes) if code}


@pytest.mark.parametrize(
    ("codes", "said", "status"),
    [
        (
            (0, -9, LOST, -15),
            "rank 1 of 4 (process 101) was ended by SIGKILL, as the system does when memory runs out",
            1,
        ),
        ((LOST, LOST, -15, -6), "rank 3 of 4 (process 103) was ended by SIGABRT; what was finished is kept", 1),
        ((LOST, 0, 70, -15), "rank 2 of 4 failed, as told above, and the others were stopped", 70),
        ((2, 2, 2, 2), "", 2),  # of which one has spoken
        ((0, -15, 0, 0), "rank 1 of 4 (process 101) was ended by SIGTERM", 1),
        ((0, -40, 0, 0), "rank 1 of 4 (process 101) was ended by signal 40", 1),  # a real-time one has no name
        ((LOST, LOST, 0, -15), "the 4 processes lost each other: one ended, or did not answer for 600 s", 1),
    ],
)
def test_the_process_that_is_named_is_the_cause(codes, said, status):
    message, code = explain(ended(*codes), 4)
    assert message.startswith(said) and code == status
    assert bool(message) == bool(said)


def test_errors_of_the_network_between_processes_are_told_from_others(monkeypatch):
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    assert not is_lost(gone)  # of a single process
    monkeypatch.setattr(starting, "stores", ["joined"])
    assert is_lost(gone) and is_lost(torch.distributed.DistBackendError("NCCL error"))
    assert is_lost(RuntimeError("Application timeout caused pair closure"))
    assert not is_lost(RuntimeError("shapes do not fit")) and not is_lost(ValueError("gloo"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "launcher"])
def test_a_killed_process_ends_the_run_within_seconds_and_the_same_command_goes_on(tmp_path, victim):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(whole, ["-m", "benchmark", *TWO]))[0] == 0
    process = start(broken, ["-m", "benchmark", *TWO])
    while not list(broken.glob("runs/*/checkpoint")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = children(process.pid)
    assert sorted(workers) == [0, 1]
    os.kill(process.pid if victim == "launcher" else workers[int(victim[-1])], signal.SIGKILL)
    began = time.monotonic()
    status, out, err = finish(process)
    assert time.monotonic() - began < 15
    assert not is_published(broken) and out.count("run 1/1") == 1
    if victim != "launcher":
        assert status == 1 and err.count("error:") == 1 and f"{victim} of 2 (process {workers[int(victim[-1])]})" in err
    time.sleep(1)
    assert not [pid for pid in workers.values() if Path(f"/proc/{pid}/cmdline").exists() and cmdline(pid)]
    status, out, err = finish(start(broken, ["-m", "benchmark", *TWO]))
    assert status == 0, err
    assert out.count("continuing") == 1 and out.count("epoch 6/6") == 1
    assert judge(broken, whole) == []


def cmdline(pid: int) -> str:
    """Return a process's command; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def children(parent: int) -> dict[int, int]:
    """Return the numbers of a launcher's processes by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(line.split("=", 1) for line in path.read_text().split("\0") if "=" in line)
            stat = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(stat[1]) == parent and "TORCHELASTIC_RUN_ID" in variables:
            found[int(variables["RANK"])] = int(path.parent.name)
    return found


@pytest.mark.slow
def test_torchrun_may_be_called_by_the_user(tmp_path):
    where = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    words = [*RUN, "--method", "set", "--args", "epochs=1 update_every=8"]
    status, out, err = finish(start(tmp_path, ["-m", "torch.distributed.run", *where, "-m", "benchmark", *words]))
    assert status == 0, err
    assert out.count("run 1/1") == 1
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("records/*.json")]
    assert record["environment"]["ranks"] == 2


@pytest.mark.slow
def test_a_run_that_is_interrupted_says_so_and_leaves_nothing_running(tmp_path):
    process = start(tmp_path, ["-m", "benchmark", *TWO])
    while not list(tmp_path.glob("runs/*/checkpoint")):
        assert process.poll() is None
        time.sleep(0.05)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130 and "stopped; the same command continues, from the last checkpoint" in err
    assert [cmdline(pid) for pid in workers.values()] == ["", ""]
