"""Data sets without images: labels and sizes, all that a plan needs of data that may not be on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from benchmark.config.pages import FOLDERS, Page
from benchmark.data.arrays import find_fingerprint, split_indices
from benchmark.data.checks import check_classes
from benchmark.data.files import hash_files, scan_folder
from benchmark.data.images import Images
from benchmark.data.sets import Data, find_folder, load_data

# Classes, training images, test images, as published. Training classes have (nearly) equal size.
KNOWN = {"cifar10": (10, 50_000, 10_000), "cifar100": (100, 50_000, 10_000), "imagenet": (1000, 1_281_167, 50_000)}


@dataclass
class Counted:
    """One part of a data set of which only the labels are known."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, *asked: Any, **more: Any) -> NoReturn:
        """Raise RuntimeError: there are no images."""
        raise RuntimeError("a stand-in has labels but no images")

    batches = sample = epoch


def stand_in(page: Page, root: Path) -> Data:
    """Return the page's data set, split as `load_data` splits it, without reading or downloading images.

    CIFAR and ImageNet have their published sizes, an image folder (ImageNet too, if present) what its listing says; the
    embedded digits are really loaded. `fingerprint` is empty where it would need the images. Raises UserError for a
    missing folder.
    """
    if page.data == "digits":
        return load_data(page, root, torch.device("cpu"))
    folder = find_folder(page, root)
    in_folder = page.data in FOLDERS
    name = folder.resolve().name if in_folder else page.data
    validation: Images | None = None
    fingerprint = ""
    if page.data == "folder" or (in_folder and folder.is_dir()):
        layout = scan_folder(folder)
        classes, labels, test = layout.classes, layout.train.labels, layout.test.labels
        fingerprint = (
            find_fingerprint(folder, layout, page.image_size) if page.in_memory else hash_files(folder, layout)
        )
        validation = None if layout.validation is None else Counted(layout.validation.labels)
    else:
        number, training, tests = KNOWN[page.data]
        classes = tuple(str(label) for label in range(number))
        labels, test = torch.arange(training) % number, torch.arange(tests) % number
    if validation is None and page.split != "full":
        kept, held_out = split_indices(labels, page.split, shuffled=in_folder)
        labels, validation = labels[kept], Counted(labels[held_out])
    if in_folder:
        check_classes(name, classes, labels, None, page.split)
    return Data(name, classes, 3, page.image_size, Counted(labels), validation, Counted(test), fingerprint)
