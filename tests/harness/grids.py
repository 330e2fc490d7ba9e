"""Grid files, and sweeps of them through the command line."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from benchmark.grids.sweep import run_sweep
from benchmark.workers import Pool
from leaderboard import read_records

ROOT = Path(__file__).resolve().parents[2]

HEAD = "title: Small\ntasks: [digits_resnet20]\nsparsities: [0.9]\nseeds: [0]\nrows:\n"
DENSE = "  - {method: dense, args: {epochs: 1}}\n"
SET = "  - {method: set, args: {epochs: 1, update_every: 8}}\n"
CONTROLS = "controls: [densities]\n"

BROKEN = '''
from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Method, keep_top_global, magnitude


@dataclass(frozen=True, kw_only=True)
class Broken(Method):
    """Keep the largest weights; works until the first update of a real network, which has more than three layers."""

    reference: ClassVar[str] = "a test"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE

    def update_steps(self, timeline):
        return range(5, 6)

    def setup(self, view):
        return keep_top_global(magnitude(view), view.count(self.sparsity))

    def update(self, view):
        if len(view.weights) > 3:
            raise RuntimeError("too many layers")
        return dict(view.masks)
'''


class Grid:
    """Runs grid files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.out = io.StringIO()
        self.pool = Pool()
        self.checkpoint_s = 0.0

    def write(self, text: str) -> Path:
        path = self.folder / "grid.yaml"
        path.write_text(text)
        return path

    def __call__(self, text: str, plan: bool = False, **wanted: str) -> int:
        self.out, self.said = io.StringIO(), []
        return run_sweep(
            file=self.write(text),
            lists=wanted,
            arguments="",
            plan=plan,
            device="cpu",
            data_root=self.folder / "data",
            wandb="off",
            checkpoint_s=self.checkpoint_s,
            places={
                "records": self.folder / "records",
                "page": self.folder / "L.md",
                "runs": self.folder / "runs",
            },
            pool=self.pool,
            command="test",
            console=Console(file=self.out, width=200),
            tell=lambda message: self.said.append(str(message)),
        )

    @property
    def shown(self) -> str:
        return self.out.getvalue()

    def records(self) -> list[dict]:
        found, problems = read_records(self.folder / "records")
        assert not problems
        return found

    def done(self) -> list[str]:
        """Return the lines of made here, in order."""
        return [line for line in self.shown.splitlines() if " done: " in line]
