"""Small folders of images, and what is read of them."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.data.files import CACHE

FORK = multiprocessing.get_context("fork")
PARTS = {"train": ["a", "b"], "test": ["a", "b"]}


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSE_BENCH_CACHE", raising=False)


def made(folder: Path) -> list[Path]:
    """Files of the cache beside a folder, locks apart."""
    return sorted(path for path in (folder.parent / CACHE).glob("*") if path.suffix != ".lock")


def fail_to_save(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


CPU = torch.device("cpu")


def page(**changes: Any) -> Any:
    """The settings `load_data` reads, with plain values."""
    settings: dict[str, Any] = {
        "data": "folder",
        "data_dir": "",
        "split": "full",
        "image_size": 8,
        "crop_pad": 0,
        "crop_mode": "zero",
        "flip": False,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "workers": 0,
        "in_memory": True,
        "resized": 0,
        "batch_size": 4,
        "drop_last": False,
    }
    return SimpleNamespace(**{**settings, **changes})


def collect(stream: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(stream)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def write_folder(
    root: Path, parts: dict[str, list[str]], count: int = 3, size: int = 8, kind: str = "png", seed: int = 0
) -> Path:
    """Write `count` images of random pixels per class: root/PART/CLASS/K.kind."""
    random = np.random.RandomState(seed)
    for part, classes in parts.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = random.randint(0, 256, (size, size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.{kind}")
    return root


def stored_pixels(images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation of a page with mean 0 and deviation 1."""
    return images.mul(255).round().to(torch.uint8)
