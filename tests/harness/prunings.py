"""Records of pruned branches."""

from __future__ import annotations

import itertools
from typing import Any

from leaderboard.plasticity.findings import (
    PLASTICITY,
    Pruning,
)
from tests.harness.record_factory import make_epoch, make_record

LRS = {4: 0.1, 10: 0.01, 14: 0.001}  # by epoch; 16 epochs, drops after 8 and 12
BEFORE, UNPRUNED = 80.0, 90.0


def make_pruned(
    points: float | None,
    *,
    kind: str = PLASTICITY,
    seed: int = 0,
    sparsity: float = 0.5,
    rate: float = 0.5,
    regrow: bool = False,
    epoch: int = 4,
    **changes: Any,
) -> dict[str, Any]:
    """Return the record of a branch that regained `points` of accuracy; None: it diverged."""
    held = kind == PLASTICITY
    last = None if points is None else (BEFORE if held else UNPRUNED) + points
    end = epoch + 3 if held else 16
    left = sparsity if regrow else 1 - (1 - sparsity) * (1 - rate)
    label = "static (distribution=uniform)" if sparsity else "dense"
    name = f"digits.one_shot.{sparsity}.{rate}.{regrow}.s{seed}.e{epoch}.{kind}"
    base = make_record(
        sparsity=round(left, 6),
        seed=seed,
        run=name,
        status="ok" if points is not None else "diverged",
        method={
            "name": "one_shot",
            "settings": {"rate": rate, "regrow": regrow, "scope": "global", "pattern": "none"},
        },
        page={"settings": {"epochs": 16, "lr_schedule": "step", "lr_drops": [0.5, 0.75]}},
        branch={
            "parent": f"digits.parent.{sparsity}.s{seed}",
            "parent_label": label,
            "parent_sparsity": sparsity,
            "epoch": epoch,
            "step": 10 * epoch,
            "snapshot_sha256": "ef" * 32,
            "last_epoch": end,
            "hold_lr": held,
            "lr": LRS[epoch],
            "changed": {},
            "before": {"test_acc_pct": BEFORE, "validation_acc_pct": None, "active": 500},
            "after": {"test_acc_pct": 10.0, "validation_acc_pct": None, "active": 250},
            "unpruned_acc_pct": UNPRUNED,
        },
    )
    if last is not None:
        base["accuracy_pct"] = {"last_epoch": last, "validation_selected": None, "best_on_test": 100.0}
        base["selected"] = {"validation_epoch": None, "test_epoch": end}
        base["history"] = [{**make_epoch(e, last), "explored": 1.0} for e in range(epoch + 1, end + 1)]
    return {**base, "file": f"{name}.json", **changes}


def make_grid(points: Any, seeds: tuple[int, ...] = (0, 1, 2), kind: str = PLASTICITY) -> list[dict[str, Any]]:
    """Return branches of every cell and seed; `points(seed, cell)` is what each regained."""
    return [
        make_pruned(points(seed, cell), kind=kind, seed=seed, **cell._asdict())
        for seed, sparsity, rate, regrow, epoch in itertools.product(seeds, (0.0, 0.5), (0.2, 0.98), (False, True), LRS)
        for cell in [Pruning(sparsity, rate, regrow, epoch)]
    ]


def as_the_paper(seed: int, cell: Pruning) -> float:
    """Return points by which each of the three claims holds: by 3, 4 and 2 points, in every seed nearly alike."""
    lr = {0.1: 0.0, 0.01: -1.0, 0.001: -3.0}[LRS[cell.epoch]]
    return lr - (4.0 if cell.rate == 0.98 else 0.0) + (2.0 if cell.regrow else 0.0) + 0.2 * seed * (cell.epoch == 4)
