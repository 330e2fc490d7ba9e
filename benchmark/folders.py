"""Folders of images: their layout, their decoding, and streaming; also what all parts of a data set share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import find_classes, make_dataset, pil_loader

from benchmark.errors import UserError
from benchmark.seeds import derive

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
DECODED_AT_ONCE = 256  # files one thread takes at a time: large enough to hide the pool's own cost
MAX_WORKERS = 16


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
        classes, index = find_classes(str(part))
    except FileNotFoundError:
        raise UserError(f"{part}: holds no class folder; wanted: {part}/CLASS/*.jpg, one folder per class") from None
    found = make_dataset(str(part), index, EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in found], dtype=torch.int64)
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"{part}: no image in class {', '.join(empty)}; add files ({kinds}) or remove the folder")
    return tuple(classes), Files([path for path, _ in found], labels)


def read_image(path: str) -> Image.Image:
    """Decode one image as RGB, whatever its mode; raises UserError naming the file when that fails."""
    try:
        image: Image.Image = pil_loader(path)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(f"{path}: can't be decoded as an image ({error}); replace or remove the file") from error
    return image


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shorter side is `size` and cut the centre square; an image that fits is returned as it is.

    Bilinear with antialiasing, in Pillow's integer arithmetic: the same pixels on every machine.
    """
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def decode_files(files: Files, size: int) -> Tensor:
    """Decode all `files` in threads to a uint8 tensor (images, 3, size, size), resized by `fit_image` where needed.

    Raises UserError naming the first file that can't be decoded, or when the result can't fit the machine's memory.
    """
    need = len(files.paths) * 3 * size * size
    if hasattr(os, "sysconf") and need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(f"{len(files.paths)} images need {need / 2**30:.0f} GiB of memory: set in_memory=false")
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


def draw_order(count: int, seed: int, epoch: int) -> tuple[Tensor, torch.Generator]:
    """Return the order of `count` images in an epoch and the CPU generator that drew it, for the draws that follow.

    Invariant: a function of (count, seed, epoch) alone, so every method and every device sees the same order.
    """
    generator = torch.Generator().manual_seed(derive("epoch", seed, epoch))
    return torch.randperm(count, generator=generator), generator


def batch_starts(count: int, batch_size: int, drop_last: bool = False, start: int = 0) -> range:
    """Return where each batch of `count` images begins, from batch index `start` on; its length counts the batches."""
    stop = count - count % batch_size if drop_last else count
    return range(start * batch_size, stop, batch_size)


def per_channel(values: Sequence[float]) -> Tensor:
    """Return a mean or deviation given in [0, 1] units as a (1, channels, 1, 1) tensor in units of uint8 pixels."""
    return torch.tensor(values, dtype=torch.float32).mul_(255).view(1, -1, 1, 1)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images as float32: (pixel - mean) / std per channel, both as given by `per_channel`."""
    return images.to(torch.float32).sub_(mean).div_(std)


class Images(Protocol):
    """One part of a data set. Images are served as normalised float32 (batch, channels, height, width)."""

    labels: Tensor  # int64, on the CPU, one per image in stored order

    def __len__(self) -> int: ...

    def epoch(
        self, seed: int, epoch: int, batch_size: int, drop_last: bool, device: torch.device, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, augmented (images, labels) from batch index `start` on.

        Invariant: a function of (seed, epoch) alone: every method, device and resumed run sees the same images.
        """
        ...

    def batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once in stored order, not augmented: for evaluation."""
        ...

    def sample(self, indices: Tensor, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the images at `indices` with their labels, augmented as in training: for scoring at initialisation."""
        ...


class StreamedImages:
    """One part of a data set, read from its files as it is used: ImageNet's transforms.

    Training: RandomResizedCrop(image_size), and a horizontal flip if `flip`. Evaluation: Resize to 256/224 of
    image_size, CenterCrop(image_size). `workers` processes decode; 0 decodes in this one.
    Invariant: an augmented image is a function of (seed, epoch, its index) alone, whatever the number of workers, and
    no global random state is changed.
    """

    def __init__(
        self, files: Files, image_size: int, mean: Sequence[float], std: Sequence[float], flip: bool, workers: int
    ) -> None:
        self.paths, self.labels, self.workers = files.paths, files.labels, workers
        self.mean, self.std = per_channel(mean), per_channel(std)
        mirror = [transforms.RandomHorizontalFlip()] if flip else []
        resize, crop = transforms.Resize(round(image_size * 256 / 224)), transforms.CenterCrop(image_size)
        self.augmented = transforms.Compose(
            [transforms.RandomResizedCrop(image_size), *mirror, transforms.PILToTensor()]
        )
        self.plain = transforms.Compose([resize, crop, transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def epoch(
        self, seed: int, epoch: int, batch_size: int, drop_last: bool, device: torch.device, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the shuffled, augmented batches of an epoch from batch index `start` on; see `Images`."""
        order, _ = draw_order(len(self), seed, epoch)
        starts = batch_starts(len(self), batch_size, drop_last, start)
        yield from self._stream([order[i : i + batch_size] for i in starts], ("augment", seed, epoch), device)

    def batches(self, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, not augmented, for evaluation; see `Images`."""
        order = torch.arange(len(self))
        starts = batch_starts(len(self), batch_size)
        yield from self._stream([order[i : i + batch_size] for i in starts], None, device)

    def sample(self, indices: Tensor, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`, augmented as in training; see `Images`."""
        starts = batch_starts(len(indices), 64)
        parts = list(self._stream([indices[i : i + 64].cpu() for i in starts], ("sample", seed), device))
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    def _stream(
        self, batches: list[Tensor], key: tuple[Any, ...] | None, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        transform = self.plain if key is None else self.augmented
        loader = DataLoader(
            _Decoder(self.paths, transform, key),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=min(self.workers, len(batches)),
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or else the loader would draw from the global random state
        )
        mean, std = self.mean.to(device), self.std.to(device)
        for batch, images in zip(batches, loader, strict=True):
            if isinstance(images, str):
                raise UserError(images)
            yield normalise(images.to(device, non_blocking=True), mean, std), self.labels[batch].to(device)


class _Decoder(Dataset[Tensor]):
    """Decodes and transforms lists of files; runs in the loader's processes."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], Tensor], key: tuple[Any, ...] | None):
        self.paths, self.transform, self.key = paths, transform, key

    def __getitems__(self, indices: Iterable[int]) -> Tensor | str:
        # An error is returned, not raised: the loader would bury its message in a worker's traceback.
        try:
            return torch.stack([self._read(index) for index in indices])
        except UserError as error:
            return str(error)

    def _read(self, index: int) -> Tensor:
        image = read_image(self.paths[index])
        if self.key is None:
            return self.transform(image)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reset the accelerator's generator, which fork_rng(devices=[]) leaves alone.
            torch.default_generator.manual_seed(derive(*self.key, index))
            return self.transform(image)


def _as_it_is(batch: Any) -> Any:
    return batch
