"""Folders of image files: how they are laid out, listed, decoded and told apart."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data.listing import Files, check_name, list_part, write_skipped
from benchmark.data.pixels import fit_image, read_image
from benchmark.errors import UserError

DECODED_AT_ONCE = 256  # files one thread takes at a time: large enough to hide the pool's own cost
MAX_WORKERS = 16
DECODER = 2  # raised whenever the same file would give other pixels


@dataclass(frozen=True)
class Layout:
    """What a folder of images holds. `validation` is None unless the folder has both `val` and `test`.

    `skipped`: how many of each kind were left out.
    """

    classes: tuple[str, ...]
    train: Files
    validation: Files | None
    test: Files
    skipped: Mapping[str, int] = field(default_factory=dict)
    shared: int = 0  # images of the test part that are files of the training part

    def parts(self) -> dict[str, Files]:
        """Return the parts there are by name: `train`, `test`, perhaps `validation`."""
        held_out = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, "test": self.test, **held_out}

    def whole(self) -> Files:
        """Return the files of all parts, one part after the other."""
        parts = self.parts().values()
        return Files([path for part in parts for path in part.paths], torch.cat([part.labels for part in parts]))


def scan_folder(folder: Path) -> Layout:
    """List the images of `folder`: `train/CLASS/*`, and `test/CLASS/*` or `val/CLASS/*` (or both).

    Label k is the k-th class name in sorted order; folders inside a class are searched too. Nothing is decoded. What is
    hidden, empty or no image is left out and counted, and so is a file or folder that links lead to twice.
    Raises UserError when the folder, `train`, or both `test` and `val` are missing, when a part has no class or a class
    has no image, when two parts have different classes, and when every test image is a training image.
    Invariant: every class has at least one file in every part; no part has a file twice.
    """
    wanted = f"{folder}/train/CLASS/*.jpg and {folder}/test/CLASS/*.jpg (or val)"
    way_out = f"wanted: {wanted}; name another place with DATA= (the folder above) or the page's data_dir"
    check_name(str(folder))
    if not folder.is_dir():
        raise UserError(f"no image folder at {folder}; {way_out}")
    if not (folder / "train").is_dir():
        raise UserError(f"{folder}: no folder 'train'; {way_out}")
    held_out = [name for name in ("test", "val") if (folder / name).is_dir()]
    if not held_out:
        raise UserError(f"{folder}: neither a folder 'test' nor 'val'; {way_out}")
    check_name(str(folder.resolve()))
    parts = {name: list_part(folder / name) for name in ("train", *held_out)}
    train = parts["train"]
    for name in held_out:
        if parts[name].classes != train.classes:
            both = (train.classes, parts[name].classes)
            only = [", ".join(sorted(set(a) - set(b))) or "none" for a, b in (both, both[::-1])]
            raise UserError(
                f"{folder}: train and {name} must have the same classes; only in train: {only[0]}; "
                f"only in {name}: {only[1]}{write_skipped(train.skipped + parts[name].skipped)}"
            )
    test, others = parts[held_out[0]], {path.name for path in folder.iterdir() if path.is_dir()} - {"train", *held_out}
    beside = sum(not name.startswith(".") for name in others)
    layout = Layout(
        tuple(train.classes),
        train.files(),
        parts["val"].files() if len(held_out) == 2 else None,
        test.files(),
        sum((part.skipped for part in parts.values()), Counter({"folder beside train and test": beside})),
        sum(key in train.once for key in test.keys),
    )
    if layout.shared == len(layout.test.paths):
        raise UserError(
            f"{folder}: all {layout.shared} images of {held_out[0]} are files of train, so a test would say nothing: "
            "hold images out of train (split= makes a validation part, no test part)"
        )
    return layout


def check_memory(files: Files, size: int) -> None:
    """Raise UserError when `files`, decoded at `size`, can't fit the machine's memory."""
    need = len(files.paths) * 3 * size * size
    if hasattr(os, "sysconf") and need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(f"{len(files.paths)} images need {need / 2**30:.0f} GiB of memory: set in_memory=false")


def decode_files(files: Files, size: int) -> tuple[Tensor, Counter[str]]:
    """Decode all `files` in threads to a uint8 tensor (images, 3, size, size), resized by `fit_image` where needed.

    Also returns how many images were changed in which way, see `read_image`. Raises UserError naming the first file
    that can't be decoded.
    """
    pixels = np.empty((len(files.paths), 3, size, size), dtype=np.uint8)
    notes: list[str] = []

    def decode(first: int) -> None:
        for i in range(first, min(first + DECODED_AT_ONCE, len(files.paths))):
            pixels[i] = np.asarray(fit_image(read_image(files.paths[i], notes), size)).transpose(2, 0, 1)

    pool = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, MAX_WORKERS))
    try:
        for _ in pool.map(decode, range(0, len(files.paths), DECODED_AT_ONCE)):
            pass  # asking for the results raises the first error in file order
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels), Counter(notes)


def hash_files(folder: Path, layout: Layout) -> str:
    """Return a sha256 over the sorted names (relative to `folder`) and sizes in bytes of all files, and DECODER."""
    paths = {path.removeprefix(f"{folder}{os.sep}"): path for part in layout.parts().values() for path in part.paths}
    digest = hashlib.sha256(f"decoder {DECODER}\n".encode())
    for name, path in sorted(paths.items()):
        digest.update(f"{name} {os.stat(path).st_size}\n".encode())  # noqa: PTH116 (see cache.hash_source)
    return digest.hexdigest()
