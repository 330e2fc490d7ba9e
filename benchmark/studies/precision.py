"""Growth in bf16: which weights an update would grow by gradients under bf16 autocast, in fp32, and of another batch.

Runs are trained in fp32 by the training loop. Before each update the dense gradients of its batch are taken three
times, with the same weights: in fp32, under bf16 autocast, and in fp32 of the batch that follows. The method's own
rule says what each would grow; the run goes on as if nobody had looked. `make precision-study`; the sheet is
leaderboard/PRECISION.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmark.base.console import Reporter
from benchmark.base.errors import UserError, explain
from benchmark.base.system import choose_device, describe_environment, describe_git, exact_fp32
from benchmark.config.cells import Cell, plan_cells, split_list
from benchmark.data.mixing import mix
from benchmark.data.sets import Data, load_data
from benchmark.distributed.ranks import own_share
from benchmark.networks.build import build, place
from benchmark.runs.record import stamp
from benchmark.runs.run import prepare, set_up_masks
from benchmark.training.contract import list_stages, propose
from benchmark.training.precision import choose_precision, get_random_state, set_determinism, set_random_state
from benchmark.training.speed import use_processor
from benchmark.training.state import Training
from benchmark.training.train import compute_gradients, train
from leaderboard.__main__ import HERE
from leaderboard.store.growth import FOLDER, OTHERS, REFERENCE, SCHEMA, Growth, write_growth
from leaderboard.store.privacy import hide_secrets
from leaderboard.store.records import file_stem
from methods.core import DenseGrads, Inactive

Batch = tuple[Tensor, Tensor]
Tensors = Mapping[str, Tensor]
BF16, ANOTHER = OTHERS


class Watch:
    """A hook of the training loop that compares, before each update, what it would grow; `updates` has the counts."""

    def __init__(self, run: Training) -> None:
        self.steps = run.method.update_steps(run.timeline)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=run.page.label_smoothing)
        self.updates: list[dict[str, Any]] = []

    def __call__(self, run: Training) -> None:
        """Compare growth if the next step is an update. Invariant: the run goes on to the bits of one not watched."""
        if run.step + 1 not in self.steps:
            return
        batch, another = next_batches(run)
        gradients = {
            REFERENCE: self.take(run, REFERENCE, batch),
            BF16: self.take(run, BF16, batch),
            ANOTHER: self.take(run, REFERENCE, another),
        }
        inactive = {name: ~mask for name, mask in run.maskset.masks.items()}
        grown = {name: grow(run, dense) for name, dense in gradients.items()}
        row: dict[str, Any] = {"step": run.step + 1, "inactive": sum(int(mask.sum()) for mask in inactive.values())}
        for name, dense in gradients.items():
            row[name] = count_growth(grown[name], dense, inactive)
            if name != REFERENCE:
                row[name]["shared"] = [int((mask & grown[REFERENCE][n]).sum()) for n, mask in grown[name].items()]
                row[name]["correlation"] = correlate(gradients[REFERENCE], dense, inactive)
        self.updates.append(row)

    def take(self, run: Training, precision: str, batch: Batch) -> dict[str, Tensor]:
        """Return a batch's dense gradients in a precision; buffers, random state and precision are as before."""
        own, state = run.precision, get_random_state(run.device)
        run.keep_buffers()
        run.optimizer.zero_grad(set_to_none=True)
        run.precision = precision
        with exact_fp32():
            compute_gradients(run, self.criterion, 1.0, *batch)
        run.precision = own
        dense = run.maskset.dense_gradients()
        run.optimizer.zero_grad(set_to_none=True)
        run.restore_buffers()
        set_random_state(state, run.device)
        return dense


def next_batches(run: Training) -> tuple[Batch, Batch]:
    """Return the batch of the next step, and the first of as many images after it."""
    found: list[Batch] = []
    ahead = 0
    while len(found) < 2:
        epochs, start = divmod(run.epoch_step + ahead, run.timeline.steps_per_epoch)
        epoch, page = run.epoch + epochs, run.page
        batches = run.data.train.epoch(run.seed, epoch, page.batch_size, page.drop_last, run.device, start, own_share())
        images, labels = next(iter(batches))
        images, labels = mix(images, labels, page, len(run.data.classes), run.seed, run.step + 1 + ahead)
        if run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if not found or len(labels) == len(found[0][1]):
            found.append((images, labels))
        ahead += 1
    return found[0], found[1]


def grow(run: Training, dense: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return which weights would become active by these gradients, by the method's own rule, from the weights now."""
    update = propose(run.method, run.name, run.view(dense, step=run.step + 1))
    return {name: mask & ~run.maskset.masks[name] for name, mask in list_stages(update)[-1].items()}


def count_growth(grown: Tensors, dense: Tensors, inactive: Tensors) -> dict[str, Any]:
    """Return how many weights each layer grows, and how many gradients of inactive weights are zero, or equal others.

    `by_index`: of the grown weights, those whose |gradient| weights that are not grown have as well.
    """
    zero = tied = by_index = at_zero = 0
    for name, mask in grown.items():
        scores = dense[name].abs()
        of_inactive, of_grown = scores[inactive[name]], scores[mask]
        times = of_inactive.unique(return_counts=True)[1]
        zero += int((of_inactive == 0).sum())
        tied += int(times[times > 1].sum())
        at_zero += int((of_grown == 0).sum())
        if len(of_grown):
            at_least = of_grown == of_grown.min()
            if int((of_inactive == of_grown.min()).sum()) > int(at_least.sum()):
                by_index += int(at_least.sum())
    counts = [int(mask.sum()) for mask in grown.values()]
    return {"grown": counts, "zero": zero, "tied": tied, "by_index": by_index, "grown_at_zero": at_zero}


def correlate(one: Tensors, other: Tensors, inactive: Tensors) -> float | None:
    """Return Spearman's correlation of the inactive weights' |gradients|, the mean over layers; None without any."""
    found = []
    for name, mask in inactive.items():
        pair = one[name][mask].abs(), other[name][mask].abs()
        if all(len(scores.unique()) > 1 for scores in pair):
            found.append(float(spearmanr(*(scores.cpu().numpy() for scores in pair)).statistic))
    return fmean(found) if found else None


def watch(cell: Cell, data: Data, device: torch.device, command: str, reporter: Reporter) -> Growth:
    """Train a cell and return its growth."""
    started = datetime.now(timezone.utc)
    set_determinism(cell.page, device)
    built = place(build(cell, data), cell.page, device)
    use_processor(3 * built.costs.dense * cell.page.batch_size, device)
    run = prepare(cell, built, data, device)
    set_up_masks(cell, run)
    watching = Watch(run)
    train(run, reporter, lambda run: None, watching)
    return {
        "schema": SCHEMA,
        "run": cell.with_data(data.fingerprint).identity,
        "masks_sha256": run.maskset.sha256(),
        "page": {"name": cell.page_name, "title": cell.page.title, "changed": dict(cell.page_changes)},
        "method": {"label": cell.label, "sha256": cell.plugin.sha256},
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "steps": run.timeline.total_steps,
        "layers": list(run.maskset.masks),
        "updates": watching.updates,
        "measured": stamp(started),
        "command": command,
        "environment": describe_environment(device, run.precision),
        "git": describe_git(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the growth of every cell asked for that has no file yet; return the exit status, 2 for a UserError."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.studies.precision", description=__doc__)
    parser.add_argument("--method", default="granet,rigl_itop", help="methods that grow by gradients; a list")
    parser.add_argument("--sparsity", default="0.9,0.98", help="in [0, 1); a list")
    parser.add_argument("--task", default="digits_resnet20", help="pages of configs/; a list")
    parser.add_argument("--seed", default="0,1,2", help="whole numbers; a list")
    parser.add_argument("--args", default="", help="name=value settings of the page or the method")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--data", type=Path, default=Path("data"), help="root folder of data sets")
    parser.add_argument("--to", type=Path, default=HERE / FOLDER, help="folder of the measurements")
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser.parse_args(words)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as runs have it, whose bits these are to repeat
    command = hide_secrets(shlex.join(["python", "-m", "benchmark.studies.precision", *words]))
    try:
        measure(asked, command)
    except (UserError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def measure(asked: argparse.Namespace, command: str) -> None:
    """Measure and write growth, whole seeds first: a comparison needs three."""
    console, device = Console(), choose_device(asked.device)
    cells = []
    for task in split_list(asked.task, "TASK"):
        of_page = plan_cells(asked.method, asked.sparsity, task, asked.seed, asked.args)
        if choose_precision(of_page[0].page, device) != REFERENCE:  # else the run keeps its name
            settings = f"{asked.args} precision={REFERENCE}".strip()
            of_page = plan_cells(asked.method, asked.sparsity, task, asked.seed, settings)
        cells += of_page
    for name, method in {cell.plugin.name: cell.method for cell in cells}.items():
        if method.dense_gradients() is not DenseGrads.AT_UPDATES or method.inactive is not Inactive.ZERO:
            raise UserError(f"method '{name}' grows by no dense gradient: take one such as granet or rigl_itop")
    loaded: dict[str, Data] = {}
    for cell in sorted(cells, key=lambda cell: (cell.page_name, cell.seed)):
        if cell.page_name not in loaded:
            loaded = {cell.page_name: load_data(cell.page, asked.data, device)}
        data = loaded[cell.page_name]
        run = cell.with_data(data.fingerprint).identity
        if (asked.to / f"{file_stem(run)}.json").exists():
            continue
        with Reporter(console, run, cell.page.epochs, -(-len(data.train) // cell.page.batch_size)) as reporter:
            growth = watch(cell, data, device, command, reporter)
        console.print(f"wrote {write_growth(growth, asked.to).name}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
