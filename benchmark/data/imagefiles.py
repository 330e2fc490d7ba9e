"""Folders of image files: how they are laid out, listed, decoded and told apart."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import find_classes, make_dataset, pil_loader

from benchmark.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
DECODED_AT_ONCE = 256  # files one thread takes at a time: large enough to hide the pool's own cost
MAX_WORKERS = 16
CACHE = ".sparse-bench-cache"  # a folder of benchmark.data.cache, never a class


@dataclass(frozen=True)
class Files:
    """The image files of one part, sorted by class, then by path, and their labels (int64)."""

    paths: list[str]
    labels: Tensor

    def subset(self, indices: Tensor) -> Files:
        """Return the files at `indices`, in that order."""
        return Files([self.paths[i] for i in indices.tolist()], self.labels[indices])


@dataclass(frozen=True)
class Layout:
    """What a folder of images holds. `validation` is None unless the folder has both `val` and `test`."""

    classes: tuple[str, ...]
    train: Files
    validation: Files | None
    test: Files

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

    Label k is the k-th class name in sorted order; folders inside a class are searched too. Nothing is decoded.
    Raises UserError when the folder, `train`, or both `test` and `val` are missing, when a part has no class or a class
    has no image, and when two parts have different classes.
    Invariant: every class has at least one file in every part.
    """
    wanted = f"{folder}/train/CLASS/*.jpg and {folder}/test/CLASS/*.jpg (or val)"
    way_out = f"wanted: {wanted}; name another place with DATA= (the folder above) or the page's data_dir"
    if not folder.is_dir():
        raise UserError(f"no image folder at {folder}; {way_out}")
    if not (folder / "train").is_dir():
        raise UserError(f"{folder}: no folder 'train'; {way_out}")
    held_out = [name for name in ("test", "val") if (folder / name).is_dir()]
    if not held_out:
        raise UserError(f"{folder}: neither a folder 'test' nor 'val'; {way_out}")
    classes, train = list_part(folder / "train")
    parts = []
    for name in held_out:
        theirs, files = list_part(folder / name)
        if theirs != classes:
            only = [", ".join(sorted(set(a) - set(b))) or "none" for a, b in ((classes, theirs), (theirs, classes))]
            raise UserError(
                f"{folder}: train and {name} must have the same classes; only in train: {only[0]}; "
                f"only in {name}: {only[1]}"
            )
        parts.append(files)
    return Layout(classes, train, parts[1] if len(parts) == 2 else None, parts[0])


def list_part(part: Path) -> tuple[tuple[str, ...], Files]:
    """Return the sorted class names of the folder `part` and its files; see `scan_folder` for order and errors."""
    try:
        classes, _ = find_classes(str(part))
    except FileNotFoundError:
        raise UserError(f"{part}: holds no class folder; wanted: {part}/CLASS/*.jpg, one folder per class") from None
    classes = [name for name in classes if name != CACHE]
    index = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(part), index, EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"{part}: no image in class {', '.join(empty)}; add files ({kinds}) or remove the folder")
    return tuple(classes), Files([path for path, _ in found], labels)


def check_memory(files: Files, size: int) -> None:
    """Raise UserError when `files`, decoded at `size`, can't fit the machine's memory."""
    need = len(files.paths) * 3 * size * size
    if hasattr(os, "sysconf") and need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(f"{len(files.paths)} images need {need / 2**30:.0f} GiB of memory: set in_memory=false")


def read_image(path: str) -> Image.Image:
    """Decode one image as RGB, whatever its mode; raises UserError naming the file when that fails."""
    try:
        image: Image.Image = pil_loader(path)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        refuse_image(path, error)
    return image


def refuse_image(path: str, error: Exception) -> NoReturn:
    """Raise UserError: the image at `path` can't be decoded because of `error`."""
    raise UserError(f"{path}: can't be decoded as an image ({error}); replace or remove the file") from error


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shorter side is `size` and cut the centre square; an image that fits is returned as it is.

    Bilinear with antialiasing, in Pillow's integer arithmetic: the same pixels on every machine.
    """
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def decode_files(files: Files, size: int) -> Tensor:
    """Decode all `files` in threads to a uint8 tensor (images, 3, size, size), resized by `fit_image` where needed.

    Raises UserError naming the first file that can't be decoded.
    """
    pixels = np.empty((len(files.paths), 3, size, size), dtype=np.uint8)

    def decode(first: int) -> None:
        for i in range(first, min(first + DECODED_AT_ONCE, len(files.paths))):
            pixels[i] = np.asarray(fit_image(read_image(files.paths[i]), size)).transpose(2, 0, 1)

    pool = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, MAX_WORKERS))
    try:
        for _ in pool.map(decode, range(0, len(files.paths), DECODED_AT_ONCE)):
            pass  # asking for the results raises the first error in file order
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels)


def hash_files(folder: Path, layout: Layout) -> str:
    """Return a sha256 over the sorted names (relative to `folder`) and sizes in bytes of all files of a layout."""
    names = sorted(Path(path).relative_to(folder).as_posix() for part in layout.parts().values() for path in part.paths)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {(folder / name).stat().st_size}\n".encode())
    return digest.hexdigest()
