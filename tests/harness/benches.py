"""Folders to run grids in as the commands do, on runs as short and narrow as what they show allows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import benchmark.config.grids
import benchmark.runs.run
from benchmark.base.files import Places
from benchmark.base.system import choose_device
from benchmark.cli.app import app
from benchmark.config.grids import Source
from benchmark.grids.grid import GridRequest, run_grid
from benchmark.grids.plan import print_plan
from benchmark.grids.sweep import run_sweep
from benchmark.runs.run import Options
from benchmark.workers import Pool
from leaderboard import read_records, rebuild

ROOT = Path(__file__).resolve().parents[2]
NARROW = "batch_size=400 model_args.width=0.1"  # an epoch of the digits is 4 steps
TINY = f"epochs=2 update_every=2 ema_decay=0.9 {NARROW}"
CPU = choose_device("cpu")
PLACES = ["--records", "records", "--leaderboard", "L.md", "--runs", "runs", "--data", "data"]


def read_grid(path: Path) -> benchmark.config.grids.Grid:
    """Return the cells of a grid file, as `sparse-bench sweep` reads them."""
    return Source.ask(path, {}, "", has_gpu=False).grid()


def run_cells(folder: Path, **changes: Any) -> int:
    """Run a grid in a folder as `sparse-bench run` does; a run of GraNet at 0.9 unless changed."""
    settings = {
        "methods": "granet",
        "sparsities": "0.9",
        "tasks": "digits_resnet20",
        "seeds": "0",
        "arguments": TINY,
        "device": "cpu",
        "data_root": folder / "data",
        "wandb": "off",
        "fresh": False,
        "checkpoint_s": 0.0,
        "places": {"records": folder / "records", "leaderboard": folder / "LEADERBOARD.md", "runs": folder / "runs"},
        "command": "test",
        "console": Console(file=io.StringIO()),
        "tell": print,
    }
    asked = {**settings, **changes}
    lists = GridRequest(*(asked[name] for name in ("methods", "sparsities", "tasks", "seeds", "arguments")))
    places = {key: path for key, path in asked["places"].items() if path is not None}
    how = {name: asked[name] for name in ("wandb", "fresh", "checkpoint_s", "command")}
    options = Options(device=choose_device(asked["device"]), places=Places(**places), **how)
    told = asked["console"], asked["tell"]
    failed = run_grid(lists, options, asked["data_root"], *told, asked.get("snapshots", ""))
    rebuild(asked["places"]["records"], asked["places"]["leaderboard"])
    return failed


class Bench:
    """Runs lists of methods in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.shown = io.StringIO()

    def __call__(self, methods: str = "granet", sparsities: str = "0.9", arguments: str = TINY, **more: Any) -> int:
        console = Console(file=self.shown, width=200)
        told = {"console": console, "tell": lambda message: self.said.append(str(message))}
        more = {"methods": methods, "sparsities": sparsities, "arguments": arguments, **told, **more}
        return run_cells(self.folder, **more)

    def break_off(self, at: str, *asked: str, **more: Any) -> None:
        """Run until the engine calls a function of `benchmark.runs.run`, which fails."""
        with mock.patch.object(benchmark.runs.run, at, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            self(*asked, **more)

    def records(self) -> list[dict[str, Any]]:
        found, problems = read_records(self.folder / "records")
        assert not problems
        return found

    def written(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())


# --- grid files -------------------------------------------------------------------------------------------------------

HEAD = "title: Small\ntasks: [digits_resnet20]\nsparsities: [0.9]\nseeds: [0]\nrows:\n"
SHORT = "epochs: 1, batch_size: 400, model_args.width: 0.1"
DENSE = f"  - {{method: dense, args: {{{SHORT}}}}}\n"
SET = f"  - {{method: set, args: {{{SHORT}, update_every: 2}}}}\n"
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
        return range(3, 4)

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
        source, data = Source.ask(self.write(text), wanted, "", False), self.folder / "data"
        places = Places(self.folder / "records", self.folder / "L.md", self.folder / "runs")
        options = Options(device=CPU, checkpoint_s=self.checkpoint_s, command="test", places=places)
        console = Console(file=self.out, width=200)
        if plan:
            return print_plan(source.grid(), data, places, CPU, console)
        failed = run_sweep(source, options, self.pool, "cpu", data, console, lambda said: self.said.append(str(said)))
        if (self.folder / "records").exists():
            rebuild(self.folder / "records", self.folder / "L.md")
        return failed

    @property
    def shown(self) -> str:
        return self.out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        found, problems = read_records(self.folder / "records")
        assert not problems
        return found

    def done(self) -> list[str]:
        """Return the lines of runs made here, in order."""
        return [line for line in self.shown.splitlines() if " done: " in line]


# --- the command line -------------------------------------------------------------------------------------------------


def ask(*words: str) -> Result:
    """Give a command in this process; an interpreter of its own would take seconds to start."""
    return CliRunner().invoke(app, list(words))


def import_file(path: Path) -> ModuleType:
    """Return a file of Python, such as one that a document shows, as a module."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start `sparse-bench WORDS` as a process of its own, with everything it writes in `folder`."""
    command = [sys.executable, "-m", "benchmark", *words, *PLACES, "--device", "cpu"]
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
