"""Processes that train one network together, forked from one that has imported everything."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

import benchmark.training.train as loop
from benchmark.config.plugins import find_method
from benchmark.conformance import nets
from benchmark.conformance.ranks import SHARED
from benchmark.conformance.trial import Kit, Trial
from benchmark.distributed.ranks import count_ranks, own_rank
from benchmark.runs.checkpoints import Saver
from methods.core import View
from tests.harness.benches import run_cells
from tests.harness.forks import Nursery, fork, serve

PATIENCE_S = 120


class Unused(nn.Module):
    """A network with a norm that takes no part in the output: its parameters never have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(nets.CHANNELS, 8, 3, padding=1, bias=False)
        self.idle = nn.LayerNorm(8)
        self.fc = nn.Linear(8, nets.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return logits


nets.NETWORKS["unused"] = Unused


def describe(trial: Trial) -> dict[str, Any]:
    """Return what the processes of a trial must agree on."""
    run = trial.run
    hasher = hashlib.sha256()
    for tensor in run.model.parameters():
        hasher.update(tensor.detach().numpy().tobytes())
    return {
        "error": trial.error,
        "masks": trial.mask_hashes(),
        "weights": hasher.hexdigest(),
        "macs": run.meter.train,
        "accuracy": [[row["train_acc_pct"], row["test_acc_pct"]] for row in run.history],
        "loss": [row["loss"] for row in run.history],
        "names": list(run.model.state_dict()),
        "unused": getattr(run.forward, "find_unused_parameters", None),
    }


def train_methods(names: list[str]) -> dict[str, Any]:
    """Train each method on the kit's transformer, in double precision: sums in another order round the same masks."""
    return {name: describe(train_one("vit", name, double=True, sparsity=SHARED)) for name in names}


def train_one(network: str, method: str = "rigl_itop", **setting: Any) -> Trial:
    """Train on a network of the kit; every process has other global random states than the others."""
    return Kit(find_method(method)).trial(network=network, noise=own_rank() + 1, **setting)


def train_network(network: str, **setting: Any) -> dict[str, Any]:
    """Train on a network of the kit, and say what it came to."""
    return describe(train_one(network, **setting))


def train_with(fault: str) -> dict[str, Any]:
    """Train with a fault planted in rank 1 alone."""
    if own_rank() == 1:
        FAULTS[fault]()
    began = time.monotonic()
    return {**describe(train_one("conv")), "took_s": time.monotonic() - began}


def fail_in_an_update() -> None:
    """Have the method raise in an update."""
    progress: Any = View.progress

    def refuse(self: View) -> float:
        if self.step == 6:
            raise ArithmeticError("here alone")
        return float(progress.fget(self))

    View.progress = property(refuse)  # type: ignore[assignment,method-assign]


def change_a_weight() -> None:
    """Add the smallest step to one weight, late in the second epoch."""
    step = loop.train_step

    def drift(run: loop.Training, *rest: Any) -> Tensor:
        totals = step(run, *rest)
        if run.step == 11:
            with torch.no_grad():
                weight = run.maskset.weights["conv2.weight"]
                active = run.maskset.masks["conv2.weight"].nonzero()[0]
                weight[tuple(active)] = torch.nextafter(weight[tuple(active)], torch.tensor(10.0))
        return totals

    loop.train_step = drift


def change_a_mask() -> None:
    """Activate one more weight of rank 1's masks, behind the engine's back."""
    step = loop.train_step

    def drift(run: loop.Training, *rest: Any) -> Tensor:
        totals = step(run, *rest)
        if run.step == 12:
            mask = run.maskset.masks["fc.weight"]
            mask[tuple((~mask).nonzero()[0])] = True
        return totals

    loop.train_step = drift


FAULTS = {
    "an update fails": fail_in_an_update,
    "a weight drifts": change_a_weight,
    "a mask drifts": change_a_mask,
}


def run_bench(folder: str, arguments: str, die: Sequence[int] = ()) -> dict[str, Any]:
    """Make a whole run, saving after every step; `die`: the rank that kills itself, and after which step."""

    def save_often(saver: Saver, training: loop.Training) -> None:
        if own_rank() == 0:
            saver.save(training)
        if [own_rank(), training.step] == list(die):
            os.kill(os.getpid(), signal.SIGKILL)

    Saver.__call__ = save_often  # type: ignore[method-assign]
    said = io.StringIO()
    failed = run_cells(
        Path(folder),
        methods="rigl_itop",
        sparsities="0.8",
        arguments=arguments,
        command="crews",
        console=Console(file=said, width=200),
        tell=lambda message: said.write(f"{message}\n"),
    )
    return {"failed": failed, "said": said.getvalue()}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task for task in (train_methods, train_network, train_with, run_bench)
}


def work(folder: Path, rank: int, ranks: int, task: str, arguments: dict[str, Any]) -> int:
    """Do a task as one of the ranks and write down what came of it."""
    torch.manual_seed(0)
    if ranks > 1:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
        assert count_ranks() == ranks
    try:
        answer = TASKS[task](**arguments)
    except BaseException as error:
        answer = {"raised": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    (folder / f"{rank}.json").write_text(json.dumps(answer))
    return 0


def work_together(ranks: int, task: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Do a task in forked processes; return what each says, or nothing of one that was killed.

    When one is killed so are the others, as torchrun does it.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = {fork(lambda rank=rank: work(Path(folder), rank, ranks, task, arguments)) for rank in range(ranks)}
        deadline = time.monotonic() + PATIENCE_S
        while children:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended:
                children.remove(ended)
            if status or time.monotonic() > deadline:
                for child in children:
                    os.kill(child, signal.SIGKILL)
            if not ended:
                time.sleep(0.002)
        files = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]


class Crew(Nursery):
    """The process that others are forked from. A context manager."""

    def __init__(self) -> None:
        super().__init__("tests.harness.crews")

    def __call__(self, ranks: int, task: str, **arguments: Any) -> list[dict[str, Any]]:
        """Do a task in so many processes and return what each says."""
        answer: list[dict[str, Any]] = self.ask([ranks, task, arguments])
        return answer


if __name__ == "__main__":
    serve(lambda asked: work_together(*asked))
