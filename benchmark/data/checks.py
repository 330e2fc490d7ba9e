"""What makes a data set meaningless: one class, a part without some class, test images that were trained on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.data.arrays import Stored
from benchmark.data.files import Layout, write_skipped
from benchmark.distributed.ranks import own_rank
from leaderboard.tables.table import printable

COMPARED = 100_000  # training images, of a streamed set: to look into more files would take minutes
PLACES = 64  # pixels by which images are told apart before all of them are compared


def tell(text: str, warn: bool = True) -> None:
    """Print a line about the data, once however many processes train; a warning where it disturbs no result."""
    if own_rank() == 0:
        print(printable(f"warning: {text}" if warn else text), file=sys.stderr if warn else sys.stdout, flush=True)


def describe_read(name: str, layout: Layout, notes: Mapping[str, int]) -> str:
    """Return what was read of a folder of images, what was left out and why, and what was done to pixels, in a line."""
    counts = [f"{len(files.paths):,} {part}" for part, files in layout.parts().items()]
    classes = "1 class" if len(layout.classes) == 1 else f"{len(layout.classes):,} classes"
    read = f"{name}: read {', '.join(counts[:-1])} and {counts[-1]} images in {classes}"
    changed = "".join(
        f"; {count:,} {'image' if count == 1 else 'images'} {kind}" for kind, count in sorted(notes.items())
    )
    return read + write_skipped(layout.skipped) + changed


def check_classes(name: str, classes: tuple[str, ...], train: Tensor, validation: Tensor | None, split: str) -> None:
    """Raise UserError for a data set of one class, and for a class that is not trained on; `train` holds labels.

    A class that the validation part lacks is told.
    """
    if len(classes) < 2:
        raise UserError(
            f"{name} has one class, '{classes[0]}', and any network is right on all of its images: add a folder for "
            "each further class, in train and in test"
        )
    absent = write_absent(classes, train)
    if absent:
        raise UserError(
            f"{name}: split={split} leaves no training image of class {absent}: add images to it, or set split=full"
        )
    if validation is not None and (absent := write_absent(classes, validation)):
        tell(f"{name}: split={split} leaves no validation image of class {absent}, for it has too few images")


def write_absent(classes: tuple[str, ...], labels: Tensor) -> str:
    """Return the names of the classes that are not among `labels`, the first five of them; "" where all are."""
    there = set(labels.unique().tolist())
    absent = [name for label, name in enumerate(classes) if label not in there]
    return ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")


def check_overlap(name: str, stored: Stored) -> int:
    """Return how many test images have the pixels of a training image; what any two parts share is told.

    Raises UserError where these are all test images, and where all training images are the same.
    """
    prints = dict(zip(stored.parts, hash_images([part.pixels for part in stored.parts.values()]), strict=True))
    train = set(prints["train"])
    if len(train) == 1 < len(prints["train"]):
        raise UserError(f"{name}: all {len(prints['train']):,} training images have the same pixels: replace them")
    validation = prints.get("validation", [])
    for other in ("train", "test"):
        theirs = set(prints[other])
        if shared := sum(image in theirs for image in validation):
            tell(f"{name}: {shared:,} of {len(validation):,} validation images are {other} images too")
    return judge_overlap(name, sum(image in train for image in prints["test"]), len(prints["test"]))


def check_copies(name: str, layout: Layout) -> int:
    """Return how many test images are files of the training part, or copies of one, byte by byte; some are told.

    Raises UserError where all are. Of more than COMPARED training images only files are compared, not what they hold.
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
    """Return `found`, how many of the test images are training images too: some are told, all are refused."""
    if found == tested:
        raise UserError(
            f"{name}: all {found:,} test images are training images too, so a test would say nothing: hold images out "
            "of train"
        )
    if found:
        tell(f"{name}: {found:,} of {tested:,} test images are training images too; the record says so")
    return found


def hash_images(parts: list[Tensor]) -> Iterator[list[bytes]]:
    """Yield, for each part, what tells its images apart: equal for equal pixels of all parts, and only for these.

    Most images differ in a few pixels already; only those that do not are hashed as a whole.
    """
    firsts = [sample_pixels(part.flatten(1).numpy()) for part in parts]
    times: dict[bytes, int] = {}
    for image in (image for part in firsts for image in part):
        times[image] = times.get(image, 0) + 1
    for part, few in zip(parts, firsts, strict=True):
        whole = part.flatten(1).numpy()
        yield [
            image if times[image] == 1 else image + hashlib.blake2b(whole[i].tobytes(), digest_size=16).digest()
            for i, image in enumerate(few)
        ]


def sample_pixels(images: np.ndarray) -> list[bytes]:
    """Return PLACES pixels of each row, or fewer where it has no more, spread over it."""
    chosen = np.linspace(0, images.shape[1] - 1, PLACES).astype(int)
    return [row.tobytes() for row in images[:, chosen]]
