"""Speed goals, and the modules of this folder that measure them, each in its own process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch


@dataclass(frozen=True)
class Goal:
    """One measured goal. `measured` and `limit` are ratios unless `unit` says otherwise."""

    name: str  # P1 ... as in the performance notes, or a word
    what: str
    measured: float
    relation: str  # "<=" or ">="; "" without a limit
    limit: float = 0.0
    unit: str = "x"
    details: dict[str, Any] = field(default_factory=dict)  # "note" is shown beside the figure

    @property
    def verdict(self) -> str:
        """pass, short, or empty without a limit."""
        if not self.relation:
            return ""
        reached = self.measured <= self.limit if self.relation == "<=" else self.measured >= self.limit
        return "pass" if reached else "short"

    def as_dict(self) -> dict[str, Any]:
        """Return the goal and its verdict as in the results file."""
        return {**asdict(self), "verdict": self.verdict}


FOLDER = Path(__file__).resolve().parent


def find_measures() -> dict[str, Callable[[bool], list[Goal]]]:
    """Return `measure` of each module of this folder that has one, by module name, sorted."""
    names = sorted(module.name for module in iter_modules([str(FOLDER)]) if module.name != "__main__")
    modules = {name: import_module(f"benchmark.perf.{name}") for name in names}
    return {name: module.measure for name, module in modules.items() if hasattr(module, "measure")}


def measure_here(name: str, quick: bool) -> list[Goal]:
    """Return what a module measures, on one thread."""
    torch.set_num_threads(1)
    return find_measures()[name](quick)


def measure_alone(name: str, quick: bool) -> list[Goal]:
    """Return what a module measures in its own process, since memory left by others would count in its peaks."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return alone.submit(measure_here, name, quick).result()
