"""The end of an epoch: accuracies, and the line of the history that keeps them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from benchmark.arithmetic import measure_accuracy
from benchmark.data.folders import Images

if TYPE_CHECKING:  # the loop imports this module
    from benchmark.train import Training


def evaluate_epoch(run: Training, loss: float, train_acc_pct: float) -> None:
    """Evaluate where the page asks for it and append the epoch's line to the history."""
    started = time.monotonic()
    validation = test = None
    if run.epoch % run.page.eval_every == 0 or run.epoch == run.page.epochs:
        test = accuracy_pct(run, run.data.test)
        validation = accuracy_pct(run, run.data.validation) if run.data.validation is not None else None
    run.eval_s += time.monotonic() - started
    row = history_row(run, run.epoch, loss, train_acc_pct)
    run.history.append({**row, "validation_acc_pct": validation, "test_acc_pct": test})


def history_row(run: Training, epoch: int, loss: float, train_acc_pct: float | None) -> dict[str, Any]:
    """Return a line of the history as things stand, with the accuracies of the last evaluation."""
    last = run.history[-1] if run.history else {}
    return {
        "epoch": epoch,
        "step": run.step,
        "lr": run.optimizer.param_groups[0]["lr"],
        "loss": loss if math.isfinite(loss) else None,
        "train_acc_pct": train_acc_pct,
        "validation_acc_pct": last.get("validation_acc_pct"),
        "test_acc_pct": last.get("test_acc_pct"),
        "density": run.maskset.active() / run.maskset.total,
        "explored": run.maskset.explored_share(),
        "train_share": run.meter.train / run.meter.train_dense,
    }


def accuracy_pct(run: Training, images: Images) -> float:
    """Return the evaluated network's top-1 accuracy in per cent."""
    return measure_accuracy(run.evaluated(), images, run.device, run.autocast(), run.channels_last)
