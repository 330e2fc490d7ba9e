"""A page of a table with what is assumed of its backbone: times of runs, alone, shared and spread over devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmark.planning.spread import Job, Spread, spread

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
