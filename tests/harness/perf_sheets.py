"""`python -m tests.harness.perf_sheets [N]`: time and memory of all pages of N records. A benchmark, not a test.

The records (10,000 unless said otherwise) are varied and valid: four pages of 30 to 160 epochs, twelve methods, three
sparsities, as many seeds as it takes, ResNet-20's layers. They are made in a temporary folder; the pages are then built
in a fresh process, as `make leaderboard` builds them. The page for a browser, which `make site` adds, is opened in
Chromium where one is installed.
"""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from leaderboard.store.records import file_text
from tests.harness.chromium import missing, time_opening
from tests.harness.record_factory import count_layers, make_record

ROOT = Path(__file__).resolve().parents[2]

SITE = "site.html"
GOAL_S, GOAL_MB, GOAL_OPEN_S = 10, 500, 1.0
EPOCHS = {"digits_resnet20": 30, "digits_long": 45, "cifar10_resnet20": 60, "cifar10_full": 160}
SPARSITIES = (0.9, 0.95, 0.98)
TEST_IMAGES = 10_000
# Label, group, whether the layers' counts differ from seed to seed, settings that differ from the defaults.
METHODS: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("dense", "dense", False, {}),
    ("static", "control", False, {}),
    ("static", "control", True, {"distribution": "uniform"}),
    ("small_dense", "control", False, {}),
    ("snip", "before training", True, {}),
    ("grasp", "before training", True, {}),
    ("set", "sparse-to-sparse", False, {}),
    ("rigl", "sparse-to-sparse", False, {}),
    ("rigl_itop", "sparse-to-sparse", False, {}),
    ("granet", "sparse-to-sparse", True, {}),
    ("granet", "dense-to-sparse", True, {"start_sparsity": 0.0}),
    ("gmp", "dense-to-sparse", True, {}),
]
# ResNet-20: name, shape, output positions of an image of 32 x 32 pixels.
LAYERS: list[tuple[str, list[int], int]] = [
    ("conv1.weight", [16, 3, 3, 3], 1024),
    *((f"stage1.{n}.conv{c}.weight", [16, 16, 3, 3], 1024) for n in range(3) for c in (1, 2)),
    *((f"stage2.{n}.conv{c}.weight", [32, 16 if n + c == 1 else 32, 3, 3], 256) for n in range(3) for c in (1, 2)),
    *((f"stage3.{n}.conv{c}.weight", [64, 32 if n + c == 1 else 64, 3, 3], 64) for n in range(3) for c in (1, 2)),
    ("stage2.0.shortcut.weight", [32, 16, 1, 1], 256),
    ("stage3.0.shortcut.weight", [64, 32, 1, 1], 64),
    ("classifier.weight", [10, 64], 1),
]
REST = 1_578  # parameters in norms and biases


SIZES = [math.prod(shape) for _, shape, _ in LAYERS]
TOTAL = sum(SIZES)


def spread(active: int, draw: random.Random, free: bool) -> list[int]:
    """Return how many of `active` weights each layer keeps: large layers are sparser; with `free`, by chance too."""
    scores = [size**0.5 * (draw.uniform(0.6, 1.4) if free else 1.0) for size in SIZES]
    counts = [min(size, int(active * score / sum(scores))) for size, score in zip(SIZES, scores, strict=True)]
    for place in sorted(range(len(SIZES)), key=lambda place: -SIZES[place]):  # what rounding left over
        counts[place] += min(SIZES[place] - counts[place], active - sum(counts))
    return counts


def make_counts(active: int, draw: random.Random, free: bool) -> dict[str, Any]:
    """Return layers, weights, densities and costs of a network with `active` weights."""
    counts = zip(LAYERS, spread(active, draw, free), strict=True)
    layers = [(name, shape, count, positions, True) for (name, shape, positions), count in counts]
    found = count_layers(layers, REST, 45_000 * 160)
    macs = found["macs"]
    macs["train"] = round(min(1.0, macs["inference_share"] * draw.uniform(1.0, 1.3)) * macs["train_dense"])
    macs["train_share"] = macs["train"] / macs["train_dense"]
    return found


def make_history(epochs: int, density: float, final: float, draw: random.Random) -> list[dict[str, Any]]:
    """Return a history that ends at the accuracy `final`, the share of weights ever active growing towards 1."""
    rows = []
    for epoch in range(1, epochs + 1):
        left = 1 - epoch / epochs
        measured = round(TEST_IMAGES * (final / 100 - 0.3 * left) + draw.randint(-40, 40) * (left > 0))
        rows.append(
            {
                "epoch": epoch,
                "step": 352 * epoch,
                "lr": 0.1 * (1.0, 0.1, 0.010000000000000002)[(epoch > epochs / 2) + (epoch > 0.75 * epochs)],
                "loss": 0.01 + left * draw.uniform(0.9, 1.1),
                "train_acc_pct": 100 * (1 - left * draw.uniform(0.5, 0.6)),
                "validation_acc_pct": 100 * round(50 * measured / 100) / 5_000,
                "test_acc_pct": 100 * measured / TEST_IMAGES,
                "density": density,
                "train_share": epoch / epochs * draw.uniform(0.99, 1.0),
                "explored": density + (1 - density) * (1 - left) / 2,
            }
        )
    return rows


def make_varied(number: int) -> dict[str, Any]:
    """Return the valid record of this number: the page varies fastest, then method, sparsity, seed."""
    draw = random.Random(number)
    page = list(EPOCHS)[number % 4]
    name, group, free, changed = METHODS[number // 4 % 12]
    sparsity = 0.0 if name == "dense" else SPARSITIES[number // 48 % 3]
    seed = number // 144 if name != "dense" else number // 48
    active = TOTAL if name == "dense" else round((1 - sparsity) * TOTAL)
    final = 100 * round(TEST_IMAGES * draw.gauss(0.93 - sparsity / 50 + number // 4 % 12 / 400, 0.002)) / TEST_IMAGES
    history = make_history(EPOCHS[page], active / TOTAL, final, draw)
    label = name + "".join(f" ({key}={value})" for key, value in changed.items())
    return make_record(
        run=f"{page}.{label.replace(' ', '_')}.{sparsity:g}.s{seed}.{number:08x}",
        sparsity=sparsity,
        seed=seed,
        protocol=2,
        page={
            "name": page,
            "title": f"ResNet-20, {page}",
            "variant": f"{number % 4:08x}",
            "settings": {f"setting_{key}": key / 7 for key in range(40)},  # as many as a page has
        },
        method={
            "name": name,
            "label": label,
            "group": group,
            "changed": changed,
            "settings": {"prune_rate": 0.5, "update_every": 100, "distribution": "erk", **changed},
        },
        data={"name": "cifar10", "train": 45_000, "validation": 5_000, "test": TEST_IMAGES},
        accuracy_pct={"last_epoch": history[-1]["test_acc_pct"]},
        history=history,
        time={"train_s": draw.uniform(900, 1100), "images_per_s": draw.uniform(6500, 8000)},
        **make_counts(active, draw, free and name != "dense"),
    )


def write_varied(folder: Path, number: int) -> int:
    """Write the record of this number to `folder`, without waiting for the disk; return the size of its file."""
    record = make_varied(number)
    return (folder / f"{record['run']}.json").write_text(file_text(record), encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Build every page of the records in `folder`, beside it, in this process; return times and memory."""
    began = time.perf_counter()
    import leaderboard.drawing.draw as draw
    from leaderboard.board import build

    stages: dict[str, float] = {"import": time.perf_counter() - began}
    places = {"read": (build, "load_store"), "tables": (build, "make_sheet"), "paper page": (build, "paper_text")}
    places["pictures"] = (draw, "draw_all")

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                stages[name] = stages.get(name, 0.0) + time.perf_counter() - start

        return run

    for name, (module, function) in places.items():
        mock.patch.object(module, function, timed(name, getattr(module, function))).start()
    summary, store = build.build_all(folder, folder.parent / "LEADERBOARD.md")
    total_s = time.perf_counter() - began
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    began = time.perf_counter()
    build.rebuild_site(store, folder, folder.parent / "LEADERBOARD.md", folder.parent / SITE)
    stages["site, not in total"] = time.perf_counter() - began
    return {"summary": summary, "stages": stages, "total_s": total_s, "own_mb": own, "child_mb": child}


def report(found: dict[str, Any], records: int, mean_kb: float) -> str:
    """Return what was measured, held against the goals, as lines of text."""
    # Where memory could not be watched: as if both processes had their peaks at once and shared nothing.
    memory = found["peak_mb"] or found["own_mb"] + 2 * found["child_mb"]
    goals: list[tuple[str, float, str, float]] = [
        ("total", found["total_s"], "s", GOAL_S),
        ("peak memory", memory, "MB", GOAL_MB),
    ]
    lines = [f"{records:,} records of {mean_kb:.1f} kB: {found['summary']}"]
    lines += [f"{name:<20}{seconds:8.2f} s" for name, seconds in found["stages"].items()]
    if found["open_s"] is not None:
        goals.append((f"site of {found['site_mb']:.1f} MB", found["open_s"], "s until it can be used", GOAL_OPEN_S))
    for name, value, unit, goal in goals:
        verdict = "pass" if value < goal else "SHORT"
        lines.append(f"{name:<20}{value:8.2f} {unit}, goal < {goal:g} {unit.partition(' ')[0]}: {verdict}")
    own, child = found["own_mb"], found["child_mb"]
    lines.append(f"{'':<20}of it {own:.0f} MB at most in the process, {child:.0f} MB in its largest child")
    return "\n".join(lines)


def group_mb(group: int) -> float:
    """Return the memory of all processes of a group, shared pages counted once; 0 where the system does not tell."""
    total_kb = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                total_kb += int((stat.parent / "smaps_rollup").read_text().partition("\nPss:")[2].split()[0])
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return total_kb / 1024


def measure_apart(folder: Path) -> dict[str, Any]:
    """Return what `measure` finds in a fresh process, and the peak of the memory of it and its children together."""
    command = [sys.executable, "-m", "tests.harness.perf_sheets", "--measure", str(folder)]
    peak_mb = 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None:
            peak_mb = max(peak_mb, group_mb(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**json.loads(lines[-1]), "peak_mb": peak_mb}


def main(records: int = 10_000) -> None:
    """Make the records, build the pages in a fresh process, print what it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "records"
        folder.mkdir()
        with ProcessPoolExecutor(2) as pool:
            sizes = list(pool.map(partial(write_varied, folder), range(records), chunksize=50))
        found, site = measure_apart(folder), folder.parent / SITE
        found |= {"site_mb": site.stat().st_size / 1e6, "open_s": None if missing() else time_opening(site)}
        print(report(found, records, sum(sizes) / len(sizes) / 1000))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main(*map(int, sys.argv[1:2]))
