"""Runs made through the command line in a folder of their own."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.grids.grid import run_grid
from leaderboard import read_records

SHORT = "epochs=2 update_every=8 data=digits"


class Bench:
    """Runs grids in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.shown = io.StringIO()

    def __call__(self, methods="granet", sparsities="0.9", arguments=SHORT, tasks="digits_resnet20", **more) -> int:
        settings = {
            "methods": methods,
            "sparsities": sparsities,
            "tasks": tasks,
            "seeds": "0",
            "arguments": arguments,
            "device": "cpu",
            "data_root": self.folder / "data",
            "wandb": "off",
            "fresh": False,
            "checkpoint_s": 0.0,
            "places": {
                "records": self.folder / "records",
                "page": self.folder / "LEADERBOARD.md",
                "runs": self.folder / "runs",
            },
            "command": "test",
            "console": Console(file=self.shown, width=200),
            "tell": lambda message: self.said.append(str(message)),
        }
        return run_grid(**{**settings, **more})

    def records(self) -> list[dict]:
        found, problems = read_records(self.folder / "records")
        assert not problems
        return found

    def written(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)
