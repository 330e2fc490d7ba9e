"""Folders of images resized once: every image as a small JPEG, all in one file, read image by image.

The file: the JPEGs one after the other; an index, two NumPy arrays with the end and the CRC-32 of each; and a tail with
the start and the SHA-256 of the index.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import struct
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import center_crop

from benchmark.base.errors import UserError
from benchmark.data.cache import DamagedError, Slot, hash_source, tell
from benchmark.data.files import MAX_WORKERS, Layout, orientation, refuse_image, to_rgb

QUALITY = 90
TOGETHER = 16  # images per task of a thread
AHEAD = 4  # tasks per thread that may wait for a slow disk: bounds the memory
LOOK = 500  # images after which the free space is checked
TELL_S = 10.0  # seconds between two lines of progress
TAIL = struct.Struct("<QQ32s")  # start of the index, number of images, SHA-256 of the index


class Shard:
    """The resized images of a folder in one open file, in the order of the layout's parts.

    Read, since a mapped file that someone truncates would crash the process.
    """

    def __init__(self, path: Path, ends: np.ndarray, checks: np.ndarray) -> None:
        self.path, self.ends, self.checks = path, ends, checks
        self.file: BinaryIO | None
        try:
            self.file = path.open("rb")
        except OSError:  # in a loader's process: the file was removed since the run began
            self.file = None

    def __getstate__(self) -> tuple[Any, ...]:
        return self.path, self.ends, self.checks  # a loader's process opens the file itself

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, number: int) -> bytes | None:
        """Return the JPEG of image `number`, or None where it is damaged or gone."""
        if self.file is None:
            return None
        start = int(self.ends[number - 1]) if number else 0
        try:
            content = os.pread(self.file.fileno(), int(self.ends[number]) - start, start)
        except OSError:  # a bad disk, or a file that was removed from a network drive
            return None
        return content if zlib.crc32(content) == self.checks[number] else None


def load_shard(folder: Path, layout: Layout, size: int) -> Shard | None:
    """Return the images of a folder's layout with their shorter side resized to `size`, made on first use.

    None, with a warning, where the file can't be written: `shrink` then makes the same images on each use. Raises
    UserError naming an image that can't be decoded.
    """
    slot = Slot(folder, f"resized-{size}", hash_source(folder, layout))
    paths = layout.whole().paths

    def read(path: Path) -> Shard:
        return open_shard(path, len(paths))

    def make(path: Path | None) -> Shard | None:
        return slot.read(read) if slot.write(path, lambda temporary: write_shard(temporary, paths, size)) else None

    found = slot.load(read, make)
    if found is None:
        tell(f"images are resized again each time they are used: resized={size} is slow without a file")
    return found


def shrink(path: str, size: int, notes: list[str] | None = None) -> bytes:
    """Return an image file as an RGB JPEG with its shorter side reduced to `size` (smaller images keep theirs).

    Bilinear with antialiasing. Raises UserError naming a file that can't be decoded. Invariant: a function of the file,
    `size` and Pillow's version alone.
    """
    try:
        with Image.open(path) as opened:
            turned = 5 <= orientation(opened) <= 8 and opened.format != "TIFF"  # whose size is the upright one
            scale = min(1.0, size / min(opened.size))
            wanted = round(opened.width * scale), round(opened.height * scale)
            opened.draft("RGB", (2 * wanted[0], 2 * wanted[1]))  # decode large JPEGs no larger than needed
            image = to_rgb(opened, notes)
        wanted = wanted[::-1] if turned else wanted
        if image.size != wanted:
            image = image.resize(wanted, Image.Resampling.BILINEAR)
        content = io.BytesIO()
        image.save(content, "JPEG", quality=QUALITY)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        refuse_image(path, error)
    return content.getvalue()


def shrink_all(paths: Sequence[str], size: int, notes: list[str] | None = None) -> Iterator[bytes]:
    """Yield `shrink` of every file in order; threads work a bounded number of images ahead."""
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    firsts = iter(range(0, len(paths), TOGETHER))
    pool = ThreadPoolExecutor(workers)

    def take(count: int) -> Iterator[Any]:
        for first in islice(firsts, count):
            portion = paths[first : first + TOGETHER]
            yield pool.submit(lambda portion: [shrink(path, size, notes) for path in portion], portion)

    try:
        waiting = deque(take(AHEAD * workers))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(take(1))
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(path: Path, paths: Sequence[str], size: int) -> None:
    """Write the file of all images, printing progress. Raises OSError once the disk turns out to be too small."""
    count, written, began = len(paths), 0, time.monotonic()
    told = began
    ends, checks = np.zeros(count, np.int64), np.zeros(count, np.uint32)
    notes: list[str] = []
    with path.open("wb") as file:
        for number, content in enumerate(shrink_all(paths, size, notes)):
            file.write(content)
            written += len(content)
            ends[number], checks[number] = written, zlib.crc32(content)
            left = (count - number - 1) / (number + 1)
            if number + 1 == LOOK and shutil.disk_usage(path.parent).free < left * written:
                needed = (1 + left) * written / 2**30
                raise OSError(errno.ENOSPC, f"about {needed:.1f} GiB are needed: no room on the disk")
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                line = f"{number + 1:,} of {count:,} images resized, about {(told - began) * left / 60:.0f} min left"
                tell(f"{line} ({path.parent})")
        index = io.BytesIO()
        np.save(index, ends)
        np.save(index, checks)
        file.write(index.getvalue() + TAIL.pack(written, count, hashlib.sha256(index.getvalue()).digest()))
    for kind, images in Counter(notes).items():
        tell(f"{path.parent}: {images:,} of {count:,} images {kind}")


def open_shard(path: Path, count: int) -> Shard:
    """Open a file of `count` images from `write_shard`; raises DamagedError for anything else.

    This checks the index; each image is checked when it is read.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, length - TAIL.size))
        tail = file.read()
        start, images, digest = TAIL.unpack(tail) if len(tail) == TAIL.size else (length, 0, b"")
        file.seek(min(start, length))
        index = file.read(max(0, length - TAIL.size - start))
    if images != count or hashlib.sha256(index).digest() != digest:
        raise DamagedError("damaged (its index does not match its checksum)")
    saved = io.BytesIO(index)
    return Shard(path, np.load(saved, allow_pickle=False), np.load(saved, allow_pickle=False))


CROP = transforms.RandomResizedCrop(1)  # for the distribution of its boxes


class Resized:
    """A part's images as `shrink` makes them: from the shard or, where it fails, from their files, to the same bits.

    numbers: the index of each image in the shard. For the transforms see `StreamedImages`.
    """

    def __init__(
        self, shard: Shard | None, numbers: np.ndarray, paths: list[str], resized: int, image_size: int, flip: bool
    ) -> None:
        self.shard, self.numbers, self.paths = shard, numbers, paths
        self.resized, self.size, self.flip = resized, image_size, flip
        self.told = False

    def read(self, index: int, augmented: bool) -> Tensor:
        """Return image `index`, uint8 (3, size, size); an augmented one draws from torch's CPU generator."""
        image = decode(self.fetch(index))
        if not augmented:
            shorter = round(self.size * 256 / 224)
            height, width = (shorter * side // min(image.shape[1:]) for side in image.shape[1:])
            centre: Tensor = center_crop(scale(image, height, width), [self.size, self.size])
            return centre
        top, left, height, width = CROP.get_params(image, list(CROP.scale), list(CROP.ratio))
        cut = scale(image[:, top : top + height, left : left + width], self.size, self.size)
        return cut.flip(-1) if self.flip and torch.rand(1) < 0.5 else cut

    def fetch(self, index: int) -> bytes:
        """Return the JPEG of image `index`, made again from its file where the shard is damaged."""
        content = None if self.shard is None else self.shard.read(int(self.numbers[index]))
        if content is None and self.shard is not None and not self.told:
            self.told = True
            gone = self.shard.file is None
            what = "is gone: images are" if gone else f"damaged at {self.paths[index]}, which is"
            tell(f"{self.shard.path}: {what} made again{'' if gone else '; delete it to rebuild it'}")
        return shrink(self.paths[index], self.resized) if content is None else content


def decode(content: bytes) -> Tensor:
    """Decode a JPEG to uint8 (3, height, width); raises UserError where torchvision has no decoder."""
    try:
        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        raise UserError(f"torchvision can't decode a JPEG here ({error}): set resized=0") from error
    return image


def scale(image: Tensor, height: int, width: int) -> Tensor:
    """Resize a uint8 image (3, ?, ?) to (3, height, width): bilinear with antialiasing, in integer arithmetic."""
    if image.shape[1:] == (height, width):
        return image
    laid_out = image[None].contiguous(memory_format=torch.channels_last)  # twice as fast
    return functional.interpolate(laid_out, size=(height, width), mode="bilinear", antialias=True)[0]
