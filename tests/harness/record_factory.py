"""Valid records for tests: a network of three layers, small enough to work every number by hand.

They carry no seal, as a record in memory does: `leaderboard.write_record` adds it.
"""

from __future__ import annotations

import math
import re
from typing import Any

from benchmark.config.settings import merge_maps as merge
from leaderboard import Problem, render

# Two prunable layers of 600 and 400 weights (10 and 5 output positions each), a stem of 100 that is never pruned
# (20 positions), and 50 parameters in norms and biases: 1,000 prunable weights, 1,150 parameters,
# 600 x 10 + 400 x 5 + 100 x 20 = 10,000 multiply-adds.
STEM, FIRST, SECOND, REST = 100, 600, 400, 50
IMAGES = 300  # seen in training: 3 epochs of 100


def make_record(**changes: Any) -> dict[str, Any]:
    """Return a valid record of GraNet on the page `digits_resnet20`, with `changes` merged in at every depth.

    What follows from `sparsity`, `seed`, the method's name and budget and the last accuracy is worked out, so that
    `make_record(sparsity=0.8, seed=3, method={"name": "set"}, accuracy_pct={"last_epoch": 91.0})` is valid too.
    A change that breaks a rule is kept: invalid records are made in the same way. Three of five active weights are
    in the first layer: at sparsity 0.9 inference costs 60 x 10 + 40 x 5 + 2,000 = 2,800 multiply-adds, 0.28 of dense.
    """
    name = changes.get("method", {}).get("name", "granet")
    budget = changes.get("method", {}).get("budget", "dense" if name == "dense" else "exact")
    sparsity = changes.get("sparsity", 0.0 if budget == "dense" else 0.9)
    seed = changes.get("seed", 0)
    accuracy = changes.get("accuracy_pct", {}).get("last_epoch", 92.5)
    diverged = changes.get("status") == "diverged"
    base = {
        **make_surroundings(),
        "schema": 2,
        "protocol": 1,
        "run": f"digits_resnet20.{name}.{sparsity}.s{seed}.3f9a1c2e",
        "started": "2025-01-31T12:00:00+00:00",
        "finished": "2025-01-31T12:01:00+00:00",
        "command": f"make bench METHOD={name} SPARSITY={sparsity} SEED={seed}",
        "status": "ok",
        "skipped_steps": 0,
        "method": make_method(name, budget),
        "sparsity": sparsity,
        "seed": seed,
        "accuracy_pct": {
            "last_epoch": None if diverged else accuracy,
            "validation_selected": None if diverged else 92.0,
            "best_on_test": None if diverged else 95.0,
        },
        "selected": {"validation_epoch": None if diverged else 2, "test_epoch": None if diverged else 1},
        **make_counts(sparsity),
        "history": [] if diverged else [make_epoch(epoch, accuracy) for epoch in (1, 2, 3)],
        "updates": 2,
    }
    return merge(base, changes)


def make_surroundings() -> dict[str, Any]:
    """Return the parts of a record that say where and on what it ran."""
    return {
        "page": {
            "name": "digits_resnet20",
            "variant": "0a1b2c3d",
            "title": "ResNet-20 on digits",
            "changed": {},
            "settings": {"epochs": 3, "lr": 0.1},
        },
        "data": {"name": "digits", "classes": 10, "train": 100, "validation": 20, "test": 40, "fingerprint": "d1" * 32},
        "time": {"train_s": 40.0, "eval_s": 5.0, "total_s": 50.0, "images_per_s": 7.5},
        "environment": {
            "device": "cpu",
            "precision": "fp32",
            "torch": "2.0",
            "timm": "1.0",
            "python": "3.11",
            "platform": "Linux",
            "threads": 2,
        },
        "git": {"commit": "c0ffee", "dirty": False},
    }


def make_method(name: str, budget: str) -> dict[str, Any]:
    """Return the part of a record that names its method."""
    return {
        "name": name,
        "label": name,
        "reference": "Somebody et al., 2020",
        "group": "dense" if budget == "dense" else "sparse-to-sparse",
        "budget": budget,
        "changed": {},
        "settings": {},
        "source": f"methods/{name}.py",
        "sha256": "ab" * 32,
    }


def make_counts(sparsity: float) -> dict[str, Any]:
    """Return the counts and costs of a record whose masks have exactly the density asked for, from start to end."""
    active = round((1 - sparsity) * (FIRST + SECOND))
    second = active - active * 3 // 5
    layers = [
        ("stem.weight", [4, 1, 5, 5], STEM, 20, False),
        ("first.weight", [6, 4, 5, 5], active - second, 10, True),
        ("second.weight", [4, 4, 5, 5], second, 5, True),
    ]
    return {**count_layers(layers, REST, IMAGES), "masks_sha256": "cd" * 32}


def count_layers(layers: list[tuple[str, list[int], int, int, bool]], rest: int, images: int) -> dict[str, Any]:
    """Return the counts and costs of a network whose masks stay as they are for so many images of training.

    layers: name, shape, active weights, output positions, whether it is pruned. rest: parameters beside them.
    """
    rows = [
        {"name": n, "shape": shape, "weights": size, "active": kept, "macs": positions * size, "prunable": prunable}
        for n, shape, kept, positions, prunable in layers
        for size in [math.prod(shape)]
    ]
    prunable, active = (sum(row[key] for row in rows if row["prunable"]) for key in ("weights", "active"))
    left_out = rest + sum(row["weights"] for row in rows if not row["prunable"])
    dense, inference = sum(row["macs"] for row in rows), sum(kept * uses for _, _, kept, uses, _ in layers)
    return {
        "weights": {
            "prunable": prunable,
            "active": active,
            "parameters": left_out + prunable,
            "active_parameters": left_out + active,
            "dense_prunable": prunable,
            "dense_parameters": left_out + prunable,
        },
        "density": {
            "prunable": active / prunable,
            "all_parameters": (left_out + active) / (left_out + prunable),
        },
        "layers": rows,
        "empty_layers": [row["name"] for row in rows if row["active"] == 0],
        "macs": {
            "inference_dense": dense,
            "inference": inference,
            "train_dense": images * 3 * dense,
            "train": images * 3 * inference,
            "scoring": 0,
            "inference_share": inference / dense,
            "train_share": inference / dense,
            "operators": {"conv": dense},
            "omitted": {"batch_norm": 3},
        },
    }


def make_epoch(epoch: int, accuracy: float) -> dict[str, Any]:
    """Return one entry of the history."""
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": 0.1,
        "loss": 1.0 / epoch,
        "train_acc_pct": 99.0,
        "validation_acc_pct": 92.0,
        "test_acc_pct": accuracy,
        "density": 0.1,
        "train_share": 0.2,
        "explored": 0.1 + 0.05 * (epoch - 1),
    }


def make_runs(name: str, values: Any, **changes: Any) -> list[dict[str, Any]]:
    """Return runs of a method as read from files, one for each value, None for one that diverged; 10,000 test images.

    `values` are accuracies after the last epoch, of seeds 0, 1, 2 … or by seed.
    """
    runs = []
    for seed, value in (values if isinstance(values, dict) else dict(enumerate(values))).items():
        own = {
            "seed": seed,
            "sparsity": 0.0 if name == "dense" else 0.9,
            "status": "diverged" if value is None else "ok",
            "method": {"name": name},
            "data": {"test": 10_000},
        }
        if value is not None:
            reached = {"last_epoch": value, "validation_selected": value - 1, "best_on_test": max(value, 95.0)}
            own["accuracy_pct"] = reached
        record = make_record(**merge(own, changes))
        place = (name, record["method"]["label"], record["sparsity"], seed, sorted(changes.items()))
        runs.append({**record, "file": ".".join(map(str, place))})
    return runs


def show(*records: dict[str, Any], problems: tuple[Problem, ...] = ()) -> str:
    """Render records as if read from files named by their place."""
    return render(named(*records), list(problems))


def named(*records: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**record, "file": f"{place}.json"} for place, record in enumerate(records)]


def table(text: str, number: int = 0) -> list[list[str]]:
    """Return the cells of the number-th table of a page, without the line under the head."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in row[2:-2].split(" | ")] for row in blocks[number].splitlines()]
    return [rows[0], *rows[2:]]


def row(text: str, label: str, number: int = 0) -> list[str]:
    """Return the one row of a table that starts with `label`."""
    (found,) = [cells for cells in table(text, number) if cells[0] == label]
    return found


RUN = make_record()["run"]
USAGE = {
    "process_peak_bytes": 3 * 2**30,
    "device_peak_bytes": 5 * 2**30,
    "gpu": {"of": "NVIDIA X (whole device), NVML", "energy_j": 9_000.0, "utilisation_pct": 70.0, "processes": 2},
    "cpu": {"of": "1 processor package (whole machine), RAPL", "energy_j": 500.0},
}


def engine(name: str, ms: float, dense_ms: float, **more: Any) -> dict[str, Any]:
    """Return the figures of one engine."""
    times = {"ms": ms, "low_ms": 0.9 * ms, "high_ms": 1.1 * ms, "speed_up": dense_ms / ms}
    return {"engine": name, "status": "ok", "note": "", "mode": "fp32", **times, **more}


def batch(size: int = 1, dense: float = 8.0, zeros: float = 8.0, csr: float = 2.0) -> dict[str, Any]:
    """Return the figures of a batch size: dead filters invalid, slim twice as fast as dense."""
    rows = [engine("dense", dense, dense), engine("dense fp32", 2 * dense, dense), engine("zeros", zeros, dense)]
    rows += [engine("csr", csr, dense), {"engine": "dead filters", "status": "invalid", "note": "differs"}]
    rows += [engine("slim", dense / 2, dense), {"engine": "2:4", "status": "skipped", "note": "no GPU"}]
    return {"batch": size, "rounds": 9, "engines": rows}


def make_measurement(**changes: Any) -> dict[str, Any]:
    """Return a valid measurement of the run that `record_factory` makes."""
    return {
        "schema": 1,
        "run": RUN,
        "masks_sha256": "cd" * 32,
        "measured": "2025-03-01T12:00:00Z",
        "command": "sparse-bench latency",
        "device": "cpu",
        "hardware": "Some CPU",
        "threads": 1,
        "clock": "processor time",
        "load": 0.1,
        "environment": {"torch": "2.14", "python": "3.11", "platform": "Linux"},
        "size_bytes": {"dense": 4_000, "packed": 600},
        "batches": [batch(1), batch(64, 80.0, 80.0, 100.0)],
        **changes,
    }
