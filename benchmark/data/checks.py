"""What makes a data set meaningless: one class, a part without some class, test images that were trained on."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.data.arrays import DecodedSet
from benchmark.data.files import Layout, write_skipped
from benchmark.distributed.ranks import own_rank
from leaderboard.tables.table import printable

COMPARED = 100_000  # training images of a streamed set: reading more files would take minutes
PLACES = 64  # pixels that are compared first


def tell(text: str, warn: bool = True) -> None:
    """Print a line about the data, on rank 0 alone; a warning goes to stderr. Nobody need be reading."""
    if own_rank():
        return
    name = "stderr" if warn else "stdout"
    try:
        print(printable(f"warning: {text}" if warn else text), file=getattr(sys, name), flush=True)
    except (OSError, ValueError):  # a closed pipe or a full disk would else be met again at the end
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)


def describe_read(name: str, layout: Layout, notes: Mapping[str, int]) -> str:
    """Describe, in one line, what was read from a folder of images, what was skipped, and how pixels were changed."""
    counts = [f"{len(files.paths):,} {part}" for part, files in layout.parts().items()]
    classes = "1 class" if len(layout.classes) == 1 else f"{len(layout.classes):,} classes"
    read = f"{name}: read {', '.join(counts[:-1])} and {counts[-1]} images in {classes}"
    changed = [f"; {count:,} {'image' if count == 1 else 'images'} {kind}" for kind, count in sorted(notes.items())]
    return read + write_skipped(layout.skipped) + "".join(changed)


def check_classes(name: str, classes: tuple[str, ...], train: Tensor, validation: Tensor | None, split: str) -> None:
    """Raise UserError for a data set of one class, and for a class without training images; `train` holds labels.

    Warns of a class without validation images.
    """
    if len(classes) < 2:
        raise UserError(
            f"{name} has one class, '{classes[0]}', so any network is right on every image: add a folder for each "
            "further class, in train and in test"
        )
    absent = write_absent(classes, train)
    if absent:
        raise UserError(
            f"{name}: split={split} leaves no training image of class {absent}: add images to it, or set split=full"
        )
    if validation is not None and (absent := write_absent(classes, validation)):
        tell(f"{name}: split={split} leaves no validation image of class {absent}, which has too few images")


def write_absent(classes: tuple[str, ...], labels: Tensor) -> str:
    """Name the classes that are not among `labels`, at most five; "" if there are none."""
    there = set(labels.unique().tolist())
    absent = [name for label, name in enumerate(classes) if label not in there]
    return ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")


def check_overlap(name: str, stored: DecodedSet, split: tuple[Tensor, Tensor] | None) -> int:
    """Return how many test images have the pixels of a training image; warns of images that any two parts share.

    Raises UserError if all of them do, and if all training images are the same. `split`: which of the training part are
    trained on and which are validation images, if it is divided.
    """
    prints = dict(zip(stored.parts, hash_images([part.pixels for part in stored.parts.values()]), strict=True))
    train = set(prints["train"])
    if len(train) == 1 < len(prints["train"]):
        raise UserError(f"{name}: all {len(prints['train']):,} training images have the same pixels: replace them")
    validation = prints.get("validation", [])
    if split is not None:
        kept, held_out = ([prints["train"][i] for i in part.tolist()] for part in split)
        trained = set(kept)
        if shared := sum(image in trained for image in held_out):
            tell(f"{name}: {shared:,} of {len(held_out):,} validation images are copies of training images")
    for other in ("train", "test"):
        theirs = set(prints[other])
        if shared := sum(image in theirs for image in validation):
            tell(f"{name}: {shared:,} of {len(validation):,} validation images are {other} images too")
    return judge_overlap(name, sum(image in train for image in prints["test"]), len(prints["test"]))


def check_copies(name: str, layout: Layout) -> int:
    """Return how many test images are files of the training part or exact copies of one; warns if there are any.

    Raises UserError if all are. With more than COMPARED training images, contents are not compared.
    """
    found = layout.shared
    if len(layout.train.paths) <= COMPARED:
        sizes = [{path: Path(path).stat().st_size for path in part.paths} for part in (layout.train, layout.test)]
        both = set(sizes[0].values()) & set(sizes[1].values())
        train, test = (
            [hashlib.sha256(Path(path).read_bytes()).digest() for path, size in part.items() if size in both]
            for part in sizes
        )
        theirs = set(train)
        found = sum(content in theirs for content in test)
    return judge_overlap(name, found, len(layout.test.paths))


def judge_overlap(name: str, found: int, tested: int) -> int:
    """Return `found`, the number of test images that are training images too: warn of some, refuse all."""
    if found == tested:
        raise UserError(
            f"{name}: all {found:,} test images are training images too, so a test would mean nothing: hold images out "
            "of train"
        )
    if found:
        tell(f"{name}: {found:,} of {tested:,} test images are training images too; the record says so")
    return found


def hash_images(parts: list[Tensor]) -> Iterator[list[bytes]]:
    """Yield, for each part, a key for each image; keys are equal if and only if pixels are, in all parts.

    Most images already differ in a few pixels; only the others are hashed as a whole.
    """
    firsts = [sample_pixels(part.flatten(1).numpy()) for part in parts]
    times = Counter(image for part in firsts for image in part)
    for part, few in zip(parts, firsts, strict=True):
        whole = part.flatten(1).numpy()
        yield [
            image if times[image] == 1 else image + hashlib.blake2b(whole[i].tobytes(), digest_size=16).digest()
            for i, image in enumerate(few)
        ]


def sample_pixels(images: np.ndarray) -> list[bytes]:
    """Return PLACES pixels of each row, evenly spread."""
    chosen = np.linspace(0, images.shape[1] - 1, PLACES).astype(int)
    return [row.tobytes() for row in images[:, chosen]]
