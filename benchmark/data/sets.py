"""Data sets: read, split in the same way for all methods, and served as batches that depend on (seed, epoch) alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.base.errors import UserError
from benchmark.base.files import expand
from benchmark.base.seeds import derive
from benchmark.config.pages import FOLDERS, Page
from benchmark.data.arrays import Arrays, DecodedSet, load_decoded, split_indices
from benchmark.data.checks import check_classes, check_copies, check_overlap, describe_read, tell
from benchmark.data.files import (
    CUT,
    MAX_WORKERS,
    RESIZED,
    Layout,
    check_memory,
    decode_files,
    hash_files,
    scan_folder,
)
from benchmark.data.images import (
    ALONE,
    Batches,
    Images,
    Share,
    StreamedImages,
    batch_starts,
    draw_order,
    normalise,
    per_channel,
)
from benchmark.data.readers import READERS
from benchmark.data.shard import Resized, load_shard
from benchmark.distributed.ranks import own_cores

PIXELS_AT_ONCE = 2**23  # augmented together on an accelerator: few launches, about 200 MB of workspace


@dataclass(frozen=True)
class Data:
    """A data set, split.

    fingerprint: a sha256 of all parts before the split, the same on every machine: of class names, labels and pixels
    (at image_size) in memory, of file names, sizes and a sample of contents when streamed. overlap: how many test
    images are training images too, by pixels or, when streamed, by content; None for data other than folders.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    train: Images
    validation: Images | None
    test: Images
    fingerprint: str
    overlap: int | None = None


class MemoryImages:
    """One part of a data set held as uint8 on `device`; crops and flips are one gather per batch.

    pad > 0: a random square of the stored size is cropped after padding by `pad` pixels, by reflection or with zeros
    (black before normalisation, as torchvision's RandomCrop does). flip: mirrored with probability 1/2.
    """

    def __init__(
        self, part: Arrays, page: Page, device: torch.device, pad: int = 0, mode: str = "zero", flip: bool = False
    ) -> None:
        self.labels, self.size, self.pad, self.flip = part.labels, part.pixels.shape[-1], pad, flip
        self.stored = pad_images(part.pixels.to(device), pad, mode)
        self.stored_labels = part.labels.to(device)
        self.mean, self.std = per_channel(page.mean).to(device), per_channel(page.std).to(device)
        # On an accelerator several batches are cropped together, since launches dominate the cost of small ones.
        self.pixels_at_once = 0 if device.type == "cpu" else PIXELS_AT_ONCE

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        drop_last: bool,
        device: torch.device,
        start: int = 0,
        share: Share = ALONE,
    ) -> Batches:
        """Yield the shuffled, augmented batches of an epoch from batch index `start` on; see `Images`."""
        order, generator = draw_order(len(self), seed, epoch)
        drawn = self._draw(order, generator)
        starts = batch_starts(len(self), batch_size, drop_last, start)
        together = max(1, self.pixels_at_once // (batch_size * self.size**2))
        for first in starts[::together]:
            batches = drawn[:, first : min(first + together * batch_size, starts.stop)].split(batch_size, 1)
            own = [batch[:, share[0] :: share[1]] for batch in batches]
            images, labels = self._cut(torch.cat(own, 1))
            lengths = [batch.shape[1] for batch in own]
            yield from zip(images.to(device).split(lengths), labels.to(device).split(lengths), strict=True)

    def batches(self, batch_size: int, device: torch.device, share: Share = ALONE) -> Batches:
        """Yield every image once in stored order, not augmented; see `Images`."""
        inside = slice(self.pad, self.pad + self.size)
        for i in batch_starts(len(self), batch_size)[share[0] :: share[1]]:
            images = normalise(self.stored[i : i + batch_size, :, inside, inside], self.mean, self.std)
            yield images.to(device), self.stored_labels[i : i + batch_size].to(device)

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`; see `Images`."""
        generator = torch.Generator().manual_seed(derive("sample", seed))
        drawn = self._draw(indices.cpu(), generator)
        if not augmented:
            drawn[1:3], drawn[3] = self.pad, 0
        images, labels = self._cut(drawn)
        return images.to(device), labels.to(device)

    def _draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        # Rows: image, top, left, mirrored. Drawn on the CPU, in this order: the same images on every device.
        offsets = torch.randint(0, 2 * self.pad + 1, (2, len(indices)), generator=generator)
        mirrored = torch.randint(0, 2, (1, len(indices)), generator=generator) * int(self.flip)
        return torch.cat([indices.unsqueeze(0), offsets, mirrored]).to(self.stored.device)

    def _cut(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        index, top, left, mirrored = drawn
        images, labels = self.stored.index_select(0, index), self.stored_labels.index_select(0, index)
        if self.pad or self.flip:
            along = torch.arange(self.size, device=drawn.device)
            columns = torch.where(mirrored[:, None] == 1, self.size - 1 - along, along) + left[:, None]
            rows = (along + top[:, None]) * self.stored.shape[-1]
            places = (rows[:, :, None] + columns[:, None, :]).flatten(1)[:, None].expand(-1, images.shape[1], -1)
            images = images.flatten(2).gather(2, places).reshape(len(images), -1, self.size, self.size)
        return normalise(images, self.mean, self.std), labels


def pad_images(pixels: Tensor, pad: int, mode: str) -> Tensor:
    """Pad uint8 images by `pad` pixels on each side: `reflect` (the border is not repeated) or `zero`."""
    padded, size = functional.pad(pixels, (pad, pad, pad, pad)), pixels.shape[-1]
    if mode == "reflect":  # torch cannot reflect uint8: copy line by line, all rows before all columns
        first, last = pad, pad + size - 1
        for dim in (2, 3):
            for k in range(1, pad + 1):
                padded.select(dim, first - k).copy_(padded.select(dim, first + k))
                padded.select(dim, last + k).copy_(padded.select(dim, last - k))
    return padded


def load_data(page: Page, root: Path, device: torch.device) -> Data:
    """Read the page's data set from `root`/(data_dir or the data set's name), split it, and put it on `device`.

    split: full = train on all training images; paper = on the first 90 % in stored order (for folders, which are stored
    by class, of a fixed permutation), validate on the rest; holdout = validate on 10 % of every class. A folder with
    both `val` and `test` has its own validation part, so its training part is never split. Raises UserError before any
    batch when data is missing or unusable; when streaming, only one image per class and part is decoded here.
    Invariant: parts are disjoint and do not depend on the run's seed.
    """
    folder = find_folder(page, root)
    name = folder.resolve().name if page.data in FOLDERS else page.data
    channels = 1 if page.data == "digits" else 3
    if len(page.mean) != channels or len(page.std) != channels:
        raise UserError(f"mean and std must have {channels} value(s) for data={page.data}, got {page.mean}, {page.std}")
    if page.data in FOLDERS:
        data = load_folder(page, name, folder, device)
    elif page.in_memory:
        stored = READERS[page.data](page, folder)
        data = hold(page, name, stored, divide(page, stored), device)
    else:
        raise UserError(f"in_memory=false streams from a folder of images; data={page.data} is always in memory")
    if page.drop_last and len(data.train) < page.batch_size:
        most = f"{len(data.train)} (all training images) with drop_last"
        raise UserError(f"batch_size must be at most {most}, got {page.batch_size}")
    return data


def find_folder(page: Page, root: Path) -> Path:
    """Return the folder of the page's data set; raises UserError for `~user` of an unknown user."""
    return expand(root) / expand(Path(page.data_dir or page.data))


def load_folder(page: Page, name: str, folder: Path, device: torch.device) -> Data:
    """Return the images of a folder, in memory or streamed, and print what was read; see `load_data`."""
    layout = scan_folder(folder)
    if page.in_memory:
        padded = page.image_size + 2 * page.crop_pad if device.type == "cpu" else 0
        check_memory(layout, page.image_size, padded)
        stored = load_decoded(folder, layout, page.image_size)
        notes = dict(stored.notes)
        split = divide(page, stored)
        data = hold(page, name, stored, split, device)
    else:
        data, notes = stream_folder(page, name, folder, layout)
    tell(describe_read(f"folder {name}", layout, notes), warn=False)
    held_out = None if data.validation is None else data.validation.labels
    check_classes(name, data.classes, data.train.labels, held_out, page.split)
    return replace(data, overlap=check_overlap(name, stored, split) if page.in_memory else check_copies(name, layout))


def divide(page: Page, stored: DecodedSet) -> tuple[Tensor, Tensor] | None:
    """Return which of the stored training images are trained on and which are held out; None if the page says none."""
    if "validation" in stored.parts or page.split == "full":
        return None
    return split_indices(stored.parts["train"].labels, page.split, shuffled=page.data in FOLDERS)


def hold(page: Page, name: str, stored: DecodedSet, split: tuple[Tensor, Tensor] | None, device: torch.device) -> Data:
    """Split a stored data set, see `divide`, and put it on `device`."""
    train, validation = stored.parts["train"], stored.parts.get("validation")
    if split is not None:
        kept, held_out = split
        validation = Arrays(train.pixels[held_out], train.labels[held_out])
        train = Arrays(train.pixels[kept], train.labels[kept])
    train_part = MemoryImages(train, page, device, page.crop_pad, page.crop_mode, page.flip)
    held_out_part = None if validation is None else MemoryImages(validation, page, device)
    test_part = MemoryImages(stored.parts["test"], page, device)
    channels, size = train.pixels.shape[1:3]
    return Data(name, stored.classes, channels, size, train_part, held_out_part, test_part, stored.fingerprint)


def stream_folder(page: Page, name: str, folder: Path, layout: Layout) -> tuple[Data, dict[str, int]]:
    """Split the images of a folder as the page says, to be decoded (or resized once) as they are used.

    Also returns how many of the images that are decoded now are changed in which way.
    """
    whole, shard = layout.whole(), load_shard(folder, layout, page.resized) if page.resized else None
    notes = check_firsts(layout) if shard is None else {}  # making a shard decodes every image and prints its notes
    workers = page.workers or min(own_cores(), MAX_WORKERS)

    def serve(numbers: Tensor) -> StreamedImages:
        files, size = whole.subset(numbers), page.image_size
        reader = Resized(shard, numbers.numpy(), files.paths, page.resized, size, page.flip) if page.resized else None
        return StreamedImages(files, size, page.mean, page.std, page.flip, workers, reader)

    counts = [len(files.paths) for files in layout.parts().values()]
    train, test, *others = torch.arange(sum(counts)).split(counts)
    validation = others[0] if others else None
    if validation is None and page.split != "full":
        kept, held_out = split_indices(layout.train.labels, page.split, shuffled=True)
        train, validation = train[kept], train[held_out]
    fingerprint = hash_files(folder, layout)
    held_out_part = None if validation is None else serve(validation)
    served = serve(train), held_out_part, serve(test)
    return Data(name, layout.classes, 3, page.image_size, *served, fingerprint), notes


def check_firsts(layout: Layout) -> dict[str, int]:
    """Decode one image per class and part; return how many are changed in which way, other than in size.

    Raises UserError naming one that can't be decoded.
    """
    found: Counter[str] = Counter()
    looked = 0
    for part in layout.parts().values():
        firsts = np.unique(part.labels.numpy(), return_index=True)[1]
        found += decode_files(part.subset(torch.from_numpy(firsts)), size=1)[1]
        looked += len(firsts)
    return {
        f"{kind} (of {looked:,} looked at, one of each class and part)": count
        for kind, count in found.items()
        if kind not in (RESIZED, CUT)
    }
