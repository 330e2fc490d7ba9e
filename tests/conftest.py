"""Shared set-up: quiet, few threads, nothing written outside pytest's own folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks so small that a second thread costs more than it brings
os.environ["WANDB_SILENT"] = "true"

from tests.harness.benches import Bench, Grid


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A folder to run lists of methods in."""
    return Bench(tmp_path)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """A folder to run grid files in."""
    return Grid(tmp_path)
