"""The sheet docs/scale.md: what the paper's tables cost on many GPUs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from benchmark.base.console import format_flops
from benchmark.grids.times import Job, Spread, spread
from benchmark.recount.plans import Figures, ask, work_out
from benchmark.recount.sheets import DOCS, run_sheet, wrap
from leaderboard.tables.table import line

TITLES = {"table2": "Table 2 (CIFAR)", "table3": "Table 3 (ImageNet)"}
HEAD = """\
# What the paper's tables cost on many GPUs

Made by `make scale` from the grids in `configs/paper/`, the pages, the methods' schedules and
[scale.yaml](scale.yaml); do not edit. FLOPs are predicted as `PLAN=1` predicts them, without training, for every run as
if none were finished. **No time here was measured**: every hour follows from a throughput that is an estimate, and is
given as a range."""


def make_sheet(figures: Figures, given: dict[str, Any]) -> str:
    """Return the sheet, in Markdown, for `given`, the content of docs/scale.yaml."""
    tables = {
        table: [Scene(name, page, given["backbones"][page["model"]], given) for name, page in pages.items()]
        for table, pages in figures["tables"].items()
    }
    parts = [HEAD, cost_section(tables, given)]
    parts += [binding_section(tables, given), spread_section(tables, given)]
    parts += [storage_section(tables, figures["records"], given), assumption_section(given)]
    return "\n\n".join(parts) + "\n"


def cost_section(tables: dict[str, list[Scene]], given: dict[str, Any]) -> str:
    """Return what each page and each table costs: runs, FLOPs and hours on one device and on many."""
    name, devices = given["device"]["name"], given["devices"]
    heads = ["page", "runs (controls)", "training FLOPs", "x dense", f"a run on one {name}", f"GPU hours on one {name}"]
    lines = [line([*heads, f"hours on {devices}"]), line(["---"] * 7)]
    for table, scenes in tables.items():
        lines += [page_line(scene, devices) for scene in scenes]
        runs = sum(scene.figures["runs"] for scene in scenes)
        train = sum(scene.figures["train_macs"] for scene in scenes)
        dense = sum(dense_macs(scene) for scene in scenes)
        hours = [sum(scene.figures["runs"] * scene.run_s(speed) for scene in scenes) / 3600 for speed in (FAST, SLOW)]
        many = [spread_all(scenes, speed, devices).makespan_s / 3600 for speed in (FAST, SLOW)]
        cells = [
            TITLES[table],
            f"{runs}",
            format_flops(train),
            f"{train / dense:.2f}",
            "",
            between(hours),
            between(many),
        ]
        lines.append(line([f"**{cell}**" if cell else "" for cell in cells]))
    of_dense = " and ".join(
        f"{format_flops(sum(map(dense_macs, scenes)))} for {TITLES[table]}" for table, scenes in tables.items()
    )
    text = (
        f"FLOPs are those of all runs at the masks in force. {count_exact(tables)} Were every run dense, it would be "
        f"{of_dense}; GPUs do not skip zeros, so hours do not shrink with FLOPs. Each page is spread alone and each "
        "table as a whole, one run on a device, so pages do not add up in the last column."
    )
    return "\n".join(["## Cost", "", *lines, "", wrap(text)])


def page_line(scene: Scene, devices: int) -> str:
    """Return a page's line of the table of costs."""
    figures = scene.figures
    one = [scene.run_s(speed) for speed in (FAST, SLOW)]
    hours = [figures["runs"] * seconds / 3600 for seconds in one]
    many = [spread(scene.jobs(speed), devices).makespan_s / 3600 for speed in (FAST, SLOW)]
    of_dense = figures["train_macs"] / dense_macs(scene)
    cells = [
        scene.name,
        f"{figures['runs']} ({figures['controls']})",
        format_flops(figures["train_macs"]),
        f"{of_dense:.2f}",
    ]
    unit, length = ("h", 3600) if one[0] > 5400 else ("min", 60)
    return line([*cells, f"{between([seconds / length for seconds in one])} {unit}", between(hours), between(many)])


def count_exact(tables: dict[str, list[Scene]]) -> str:
    """Return how many predictions are exact, in a sentence."""
    scenes = [scene for scenes in tables.values() for scene in scenes]
    exact, runs = (sum(scene.figures[key] for scene in scenes) for key in ("exact_runs", "runs"))
    return (
        f"{exact} of {runs} runs are predicted to the multiply-add; where scores or global pruning decide which layers "
        "keep weights, they are divided as the page divides them, which is too little for SNIP, by up to two thirds."
    )


def binding_section(tables: dict[str, list[Scene]], given: dict[str, Any]) -> str:
    """Return what the time of a step goes to on each backbone."""
    heads = [
        "backbone",
        "ms a step",
        "math",
        "memory",
        "launches",
        "loader",
        "bound by",
        "memory of a run",
        "fit on one",
    ]
    lines = [line(heads), line(["---"] * len(heads))]
    seen: dict[str, Scene] = {}
    for scenes in tables.values():
        for scene in scenes:
            seen.setdefault(scene.figures["model"], scene)
    for scene in seen.values():
        assumed, figures = scene.assumed, scene.figures
        batch = figures["batch_size"]
        parts = step_parts(scene, given)
        bound = max(parts, key=lambda name: max(parts[name]))
        gib = figures["memory_bytes"] / 2**30
        step = [1000 * batch / assumed["images_per_s"][speed] for speed in (FAST, SLOW)]
        shown = [
            between(parts[name]) if name in parts else "on the GPU" for name in ("math", "memory", "launches", "loader")
        ]
        fit = str(int(given["device"]["memory_gib"] / gib))
        lines.append(line([assumed["label"], between(step), *shown, bound, f"{gib:.1f} GiB", fit]))
    batches = ", ".join(sorted({str(scene.figures["batch_size"]) for scene in seen.values()}))
    text = (
        f"Milliseconds for a batch of {batches} images, each part as if it were alone (estimate); the largest part "
        "binds. Sparsity changes none of them: masks are factors of the gradients, and kernels are dense. Memory as "
        "PLAN=1 works it out, of a run alone in its process."
    )
    return "\n".join(["## What binds", "", *lines, "", wrap(text)])


def spread_section(tables: dict[str, list[Scene]], given: dict[str, Any]) -> str:
    """Return how the runs are spread, what sharing a device would bring, and what limits many devices."""
    text = (
        "Runs are whole and share nothing but files, so a table is spread by starting the same command as often as "
        "there are places for a run: each takes the next run that no other holds, by a lock file in the run's folder, "
        "and a control waits for its donor's record. Several runs on one device are as many processes on it. Below, "
        "the longest go first."
    )
    name = given["device"]["name"]
    heads = ["table", f"{name}s", "hours, one run on each", "at work, %", "several on each", "hours then"]
    lines = [line(heads), line(["---"] * len(heads))]
    limits = []
    for table, scenes in tables.items():
        for devices in (1, 8, given["devices"]):
            alone = [spread_all(scenes, speed, devices) for speed in (FAST, SLOW)]
            then = [share(scenes, speed, devices) / 3600 for speed in (FAST, SLOW)]
            hours = between(result.makespan_s / 3600 for result in alone)
            used = between(sorted(100 * result.used_share for result in alone))
            lines.append(line([TITLES[table], str(devices), hours, used, name_sharing(scenes), between(then)]))
        limits.append(f"- {TITLES[table]} on {devices}: {name_limit(alone, devices)}.")
    return "\n".join(["## Spread", "", wrap(text), "", *lines, "", *map(wrap, limits)])


def name_limit(alone: list[Spread], devices: int) -> str:
    """Return what many devices are limited by, in words; `alone` has the fast end, then the slow one."""
    chain = between(result.chain_s / 3600 for result in alone)
    even = between(result.work_s / devices / 3600 for result in alone)
    if alone[-1].chain_s > alone[-1].work_s / devices:
        return (
            f"the longest run and the control that waits for it take {chain} h, an even share of the work {even} h: "
            "more devices would bring nothing, several devices for one run would"
        )
    return (
        f"an even share of the work is {even} h, and the longest run with its control takes {chain} h: work limits it"
    )


def name_sharing(scenes: list[Scene]) -> str:
    """Return how many runs share a device, in words."""
    counts = sorted({scene.assumed["at_once"] for scene in scenes})
    return " or ".join(map(str, counts))


def storage_section(tables: dict[str, list[Scene]], records: dict[str, int], given: dict[str, Any]) -> str:
    """Return what the runs leave on disk, and what they need while they last."""
    heads = ["table", "records", "weights", "masks", f"checkpoints, {given['devices']} runs at once"]
    lines = [line(heads), line(["---"] * len(heads))]
    for table, scenes in tables.items():
        sizes = [
            sum(scene.figures["runs"] * record_bytes(scene, records) for scene in scenes),
            sum(scene.figures["runs"] * scene.figures["weights_bytes"] for scene in scenes),
            sum(scene.figures["runs"] * scene.figures["masks_bytes"] for scene in scenes),
            # while one is written, the one before it is still there
            2 * given["devices"] * max(scene.figures["checkpoint_bytes"] for scene in scenes),
        ]
        lines.append(line([TITLES[table], *map(show_bytes, sizes)]))
    text = "Records are committed; weights and masks stay in `runs/`, where controls made from masks look for them."
    return "\n".join(["## Storage", "", *lines, "", text])


def assumption_section(given: dict[str, Any]) -> str:
    """Return every assumption with its source."""
    device = given["device"]
    facts = [
        f"{device['name']}: {device['memory_gib']} GiB, {device['bf16_tflops']} TFLOP/s in bf16: {device['source']}",
        f"before the first step and after the last {between(reversed(given['start_s']))} s (estimate): "
        f"{given['start_source']}",
        f"parts of a step (estimate): {given['times_source']}",
        f"storage: {given['storage_source']}",
        "an image in evaluation takes a third of one in training (estimate), as in every plan",
    ]
    for assumed in given["backbones"].values():
        (slow, fast), (low, high) = assumed["images_per_s"], assumed["gain"]
        facts.append(f"{assumed['label']}, {slow:,} to {fast:,} images/s (estimate): {assumed['source']}")
        several = f"{assumed['at_once']} runs of {assumed['label']} on a device"
        facts.append(f"{several} do {low:g} to {high:g} times the work of one (estimate): {assumed['gain_source']}")
        if "loader_source" in assumed:
            facts.append(f"the loader of {assumed['label']} (estimate): {assumed['loader_source']}")
    return "\n".join(["## Assumptions", "", *(wrap(f"- {fact}") for fact in facts)])


def between(values: Iterable[float]) -> str:
    """Return a range such as `0.42–0.51`, or one number where its ends look alike; two digits that count."""
    low, high = (show_number(value) for value in values)
    return low if low == high else f"{low}–{high}"


def between_hours(seconds: Iterable[float]) -> str:
    """Return a range of times, given in seconds, in hours."""
    return f"{between(value / 3600 for value in seconds)} h"


def show_number(value: float) -> str:
    """Return a number with two digits that count, or all of a larger one's before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def show_bytes(size: float) -> str:
    """Return a size in the unit that leaves its number between 1 and 1024."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} GiB" if size < 1000 else f"{size:,.0f} GiB"


SLOW, FAST = 0, 1


@dataclass(frozen=True)
class Scene:
    """One page of a table with what is assumed of its backbone."""

    name: str
    figures: dict[str, Any]
    assumed: dict[str, Any]
    given: dict[str, Any]

    def run_s(self, speed: int) -> float:
        """Return the seconds of one run at the slow or the fast end."""
        images = self.figures["epochs"] * self.figures["images_per_epoch"]
        return float(self.given["start_s"][speed] + images / self.assumed["images_per_s"][speed])

    def jobs(self, speed: int, gain: float = 1.0, at_once: int = 1) -> list[Job]:
        """Return the runs; of `at_once` on a device each is `at_once / gain` times as long. Controls wait."""
        seconds = self.run_s(speed) * at_once / gain
        controls = self.figures["controls"]
        pairs = [
            job
            for number in range(controls)
            for job in (
                Job(f"{self.name} {number}", seconds),
                Job(f"{self.name} {number}, control", seconds, f"{self.name} {number}"),
            )
        ]
        alone = range(controls, self.figures["runs"] - controls)
        return pairs + [Job(f"{self.name} {number}", seconds) for number in alone]

    def shared_jobs(self, speed: int) -> list[Job]:
        """Return the runs as long as they are with as many on a device as the backbone is assumed to gain by."""
        return self.jobs(speed, self.assumed["gain"][speed], self.assumed["at_once"])


def dense_macs(scene: Scene) -> int:
    """Return what all runs of a page would cost if each were dense, in multiply-adds."""
    return int(scene.figures["runs"] * scene.figures["dense_train_macs"])


def spread_all(scenes: Iterable[Scene], speed: int, places: int) -> Spread:
    """Return all runs of the scenes on so many places, one on each."""
    return spread([job for scene in scenes for job in scene.jobs(speed)], places)


def step_parts(scene: Scene, given: dict[str, Any]) -> dict[str, list[float]]:
    """Return the milliseconds that each part of a step would take alone, least and most."""
    assumed, figures = scene.assumed, scene.figures
    math = 3 * 2 * figures["dense_macs"] * figures["batch_size"] / (given["device"]["bf16_tflops"] * 1e9)
    parts = {"math": [math, math], "memory": assumed["memory_ms"], "launches": assumed["launches_ms"]}
    if "loader_images_per_s" in assumed:
        parts["loader"] = [1000 * figures["batch_size"] / rate for rate in reversed(assumed["loader_images_per_s"])]
    return parts


def share(scenes: list[Scene], speed: int, devices: int) -> float:
    """Return the seconds that the runs take with several on a device, as many as each backbone is assumed to gain by.

    Pages with as many at once are spread together, and these groups one after the other.
    """
    numbers = sorted({scene.assumed["at_once"] for scene in scenes})
    together = [[scene for scene in scenes if scene.assumed["at_once"] == number] for number in numbers]
    return sum(
        spread([job for scene in group for job in scene.shared_jobs(speed)], number * devices).makespan_s
        for number, group in zip(numbers, together, strict=True)
    )


def record_bytes(scene: Scene, records: dict[str, int]) -> int:
    """Return the size of the record of a run of the page."""
    return (
        records["rest"]
        + records["epoch"] * int(scene.figures["epochs"])
        + records["layer"] * int(scene.figures["layers"])
    )


SHEET, FIGURES, GIVEN = "scale.md", "scale.json", "scale.yaml"  # made, worked out, written by hand


def read_figures() -> Figures:
    """Return the figures that were worked out last."""
    figures: Figures = json.loads((DOCS / FIGURES).read_text(encoding="utf-8"))
    return figures


def read_given() -> dict[str, Any]:
    """Return the assumptions."""
    given: dict[str, Any] = yaml.safe_load((DOCS / GIVEN).read_text(encoding="utf-8"))
    return given


def find_stale() -> str:
    """Return why the sheet is not up to date, or nothing. Reads, and works out no figure anew."""
    if (DOCS / SHEET).read_text(encoding="utf-8") != make_sheet(read_figures(), read_given()):
        return f"docs/{SHEET} is not what docs/{FIGURES} and docs/{GIVEN} give"
    if read_figures()["question"] != ask():
        return f"docs/{FIGURES} is of other runs than configs/paper/ asks for: a page, a method or a grid has changed"
    return ""


def rebuild() -> str:
    """Work the figures out, write them and the sheet, and return how many runs they are of."""
    figures = work_out()
    (DOCS / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (DOCS / SHEET).write_text(make_sheet(figures, read_given()), encoding="utf-8")
    return f"{sum(page['runs'] for pages in figures['tables'].values() for page in pages.values())} runs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 for a sheet that is out of date."""
    return run_sheet(arguments, "scale", find_stale, rebuild)


if __name__ == "__main__":
    sys.exit(main())
