"""Starting and joining the processes that train one run together: torchrun, with one GPU a rank or gloo on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.rendezvous import rendezvous

from benchmark.base import BOOT, ROOT
from benchmark.base.errors import UserError
from benchmark.base.stopping import name_signal
from benchmark.base.system import choose_device

PATIENCE_S = 600.0  # for which ranks wait for each other
LOST = 75  # exit status of a rank that stopped because another one had ended
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "timeout caused")
EXCHANGES = ("torch/distributed/*.py", "torch/nn/parallel/distributed.py")
GO_ON = "what was finished is kept, and the same command continues from the last checkpoint"
stores: list[Store] = []  # of the group this process has joined; the launcher holds it, so it outlives a rank


def is_launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_gpus(processes: int, device: torch.device) -> None:
    """Raise UserError when more processes on this machine ask for a GPU each than it has GPUs."""
    if processes > 1 and (device.index is not None or device.type not in ("cuda", "cpu")):
        raise UserError(
            f"RANKS={processes} gives each process a GPU of its own, by NCCL, or the CPU: ask for DEVICE=cuda or "
            f"DEVICE=cpu, not '{device}'"
        )
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        found = torch.cuda.device_count()
        raise UserError(
            f"RANKS={processes} asks for {processes} GPUs, one for each process, and this machine has {found}: lower "
            "RANKS, or ask for DEVICE=cpu"
        )


def launch(ranks: int, device: str, arguments: list[str], tell: Callable[[object], None]) -> int:
    """Run this suite's command line with `arguments` in `ranks` processes on this machine; return the exit status.

    Each has one thread, torchrun's default, unless OMP_NUM_THREADS is set. When one fails the others are stopped at
    once, and one message says which and why: the rank's own if it printed one, else one from here.
    """
    check_gpus(ranks, choose_device(device))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # its report of a failure is a page long
    try:
        with tempfile.TemporaryDirectory() as folder:
            where = ["--standalone", "--nproc-per-node", str(ranks), "--log-dir", folder]
            command = [sys.executable, "-u", "-c", BOOT, str(ROOT), *arguments]
            torchrun.run(torchrun.parse_args([*where, "--no-python", *command]))
    except ChildFailedError as error:
        message, status = explain(error.failures, ranks)
        if message:
            tell(message)
        return status
    except SignalException as stopped:
        tell("stopped; the same command continues, from the last checkpoint where there is one")
        return 128 + stopped.sigval
    return 0


def explain(failures: Mapping[int, ProcessFailure], ranks: int) -> tuple[str, int]:
    """Return what remains to be said about failed ranks, and the exit status.

    The cause is a rank that was killed or that ended with a message of its own, not a rank that lost it.
    """
    order = sorted(failures.items(), key=lambda item: (suspicion(item[1].exitcode), item[0]))
    rank, failure = order[0]
    code = failure.exitcode
    if code == LOST:
        return f"the {ranks} processes lost each other: one ended, or did not answer for {PATIENCE_S:.0f} s; {GO_ON}", 1
    if code > 0:
        seen = (
            "" if code == 2 else f"rank {rank} of {ranks} failed, as told above, and the others were stopped; {GO_ON}"
        )
        return seen, code
    name = name_signal(-code)
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"rank {rank} of {ranks} (process {failure.pid}) was ended by {name}{why}; {GO_ON}", 1


def suspicion(code: int) -> int:
    """Return a lower number for an exit status that is more likely the cause than a consequence."""
    if code < 0:
        return 3 if -code == signal.SIGTERM else 0  # with which torchrun stops the others
    return 2 if code == LOST else 1


def join(asked: int, device: str) -> None:
    """Join the processes that torchrun started, on the GPU of this one's number or with gloo; else do nothing.

    Raises UserError if `asked`, unless 1, differs from the number that torchrun started, or if there are too few GPUs.
    Invariant: the process ends when its launcher does, however that ends, so that no run continues unnoticed.
    """
    if not is_launched():
        return
    started = int(os.environ["WORLD_SIZE"])
    if asked not in (1, started):
        raise UserError(f"--ranks {asked} was asked for and torchrun started {started} processes: leave --ranks out")
    chosen = choose_device(device)
    check_gpus(int(os.environ["LOCAL_WORLD_SIZE"]), chosen)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if chosen.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    patience = timedelta(seconds=PATIENCE_S)
    store, rank, ranks = next(iter(rendezvous("env://", timeout=patience)))
    stores.append(PrefixStore("told", store))
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=patience)


def tell_once(message: str, say: Callable[[], None]) -> None:
    """Call `say` on the first rank with this message; the others wait until it is done."""
    key = hashlib.sha256(message.encode()).hexdigest()
    if not stores:  # the group is not there yet
        if not is_launched() or os.environ.get("RANK") == "0":
            say()
        return
    try:
        if stores[0].add(key, 1) > 1:
            stores[0].wait([f"{key} said"], timedelta(seconds=2))
            return
    except RuntimeError:  # the launcher has gone, or the first rank ended before it spoke
        pass
    say()
    with contextlib.suppress(RuntimeError):
        stores[0].set(f"{key} said", "1")


def is_lost(error: BaseException) -> bool:
    """Return whether an error only means that another rank has ended, or has not answered in time.

    Recognised by its type, its text, or its origin in what torch calls to exchange tensors.
    """
    if not stores or not isinstance(error, RuntimeError):
        return False
    deepest = traceback.extract_tb(error.__traceback__)[-1:]
    exchanging = any(Path(frame.filename).match(place) for frame in deepest for place in EXCHANGES)
    return isinstance(error, dist.DistError) or exchanging or any(word in str(error) for word in SIGNS)


def leave(status: int) -> None:
    """End this process if it is one of several; after a failure, without waiting for the others."""
    if not stores:
        return
    if status == 0:
        dist.destroy_process_group()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
