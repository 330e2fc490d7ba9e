"""Finished runs, and timings as short as they can be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark.inference import kernels, passes
from tests.harness.benches import Bench

TINY = "epochs=2 update_every=2 batch_size=400 model_args.width=0.25 prune_end=0.5"


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of static, small_dense and gmp_structured, for tests that only read or copy them."""
    bench = Bench(tmp_path_factory.mktemp("inference"))
    assert bench("static,small_dense", "0.9", arguments=TINY) == 0
    assert bench("gmp_structured", "0.7", arguments=TINY) == 0
    return bench.folder


@pytest.fixture
def board(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished runs that a test may write to."""
    shutil.copytree(done, tmp_path / "board")
    return tmp_path / "board"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((passes, "SAMPLE_S", 0.0), (passes, "TRIALS", 1), (kernels, "BUDGET_S", 0.0)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(kernels, "has_packages", lambda: False)  # of ONNX, which takes seconds to export
