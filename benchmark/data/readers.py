"""Data sets that are read as a whole: the embedded digits and CIFAR."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from filelock import FileLock
from PIL import Image
from torch import Tensor

from benchmark.base.errors import PassingError, UserError, kind_of, reason
from benchmark.config.pages import Page
from benchmark.data.arrays import Arrays, DecodedSet, stratify
from benchmark.data.files import fit_image

CIFAR = {
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python"),
}


def read_digits(page: Page, folder: Path) -> DecodedSet:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 grey levels 0..16 scaled to 0..255; `folder` is ignored.

    360 images (20 %), drawn by `stratify` under the name "digits test", are the test part; the other 1,437 are the
    training part, in scikit-learn's order.
    """
    images, targets = load_digits()
    pixels = np.rint(images * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(targets)
    test = stratify(labels, -(-len(labels) // 5), "digits test")
    train = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, test, False).nonzero().squeeze(1)
    stacked = stack_images(pixels, page.image_size)
    parts = {"train": Arrays(stacked[train], labels[train]), "test": Arrays(stacked[test], labels[test])}
    return DecodedSet(tuple("0123456789"), parts)


def read_cifar(page: Page, folder: Path) -> DecodedSet:
    """Return CIFAR-10 or CIFAR-100 from `folder`, downloaded there by torchvision on first use.

    Raises UserError, saying which file to put where, when it is missing and can't be downloaded.
    """
    name, archive, unpacked = CIFAR[page.data]
    try:
        train, test = (open_cifar(name, folder, train) for train in (True, False))
    except Exception as error:  # networks, archives and pickles raise many kinds
        if kind_of(error) is PassingError:
            raise PassingError(f"{page.data}: {folder} cannot be read now ({reason(error)}): try again") from error
        found = [name for name in (archive, unpacked) if (folder / name).exists()]
        seen = f"{' and '.join(found)} in {folder} is damaged" if found else f"not found in {folder}"
        way_out = f"delete it and put {archive}" if found else f"put {archive}"
        raise UserError(
            f"{page.data}: {seen}, and the download failed ({error}); {way_out} or the unpacked {unpacked}/ in "
            f"{folder}, or name the folder above it with DATA=; TASK=digits_resnet20 needs no download"
        ) from error
    sets, size = {"train": train, "test": test}, page.image_size
    parts = {name: Arrays(stack_images(part.data, size), torch.tensor(part.targets)) for name, part in sets.items()}
    return DecodedSet(tuple(train.classes), parts)


def open_cifar(name: str, folder: Path, train: bool) -> Any:
    """Open a part of torchvision's data set `name`; if it is missing, one process downloads it and others wait."""
    reader = getattr(torchvision.datasets, name)
    try:
        return reader(str(folder), train=train)
    except RuntimeError:  # absent or damaged
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "download.lock"):
            return reader(str(folder), train=train, download=True)


def stack_images(pixels: np.ndarray, size: int) -> Tensor:
    """Return uint8 (images, height, width[, channels]) as (images, channels, size, size), resized by `fit_image`."""
    if pixels.shape[1:3] != (size, size):
        pixels = np.stack([np.asarray(fit_image(Image.fromarray(image), size)) for image in pixels])
    images = torch.from_numpy(pixels)
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


READERS = {"digits": read_digits, "cifar10": read_cifar, "cifar100": read_cifar}


STORED = Path("datasets", "data", "digits.csv.gz")  # in scikit-learn's package; rows of 64 grey levels and the digit


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the 1,797 images, float64 (1797, 8, 8) of grey levels 0..16, and their digits, int64 (1797,).

    Importing scikit-learn takes longer than an epoch, so its file is read directly where possible.
    Invariant: the values and order of sklearn.datasets.load_digits.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (Path(folder) / STORED).is_file():
            rows = np.loadtxt(Path(folder) / STORED, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn import datasets

    digits = datasets.load_digits()
    return digits.images, digits.target.astype(np.int64)
