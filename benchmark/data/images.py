"""Images as they are served: what all parts of a data set share, and streaming from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmark.base.errors import UserError
from benchmark.base.seeds import derive
from benchmark.data.files import Files, read_image

Batches = Iterator[tuple[Tensor, Tensor]]  # images and labels
Share = tuple[int, int]  # rank, ranks
ALONE: Share = (0, 1)


def draw_order(count: int, seed: int, epoch: int) -> tuple[Tensor, torch.Generator]:
    """Return the order of `count` images in an epoch, and the CPU generator that drew it, for further draws.

    Invariant: a function of (count, seed, epoch) alone: the same order for every method and device.
    """
    generator = torch.Generator().manual_seed(derive("epoch", seed, epoch))
    return torch.randperm(count, generator=generator), generator


def batch_starts(count: int, batch_size: int, drop_last: bool = False, start: int = 0) -> range:
    """Return the first image of each batch, from batch index `start` on."""
    stop = count - count % batch_size if drop_last else count
    return range(start * batch_size, stop, batch_size)


def per_channel(values: Sequence[float]) -> Tensor:
    """Return a mean or deviation in [0, 1] units as a (1, channels, 1, 1) tensor in units of uint8 pixels."""
    return torch.tensor(values, dtype=torch.float32).mul_(255).view(1, -1, 1, 1)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images as float32, (pixel - mean) / std per channel; see `per_channel`."""
    return images.to(torch.float32).sub_(mean).div_(std)


class Images(Protocol):
    """One part of a data set; images are normalised float32 (batch, channels, height, width)."""

    labels: Tensor  # int64, on the CPU, one per image in stored order

    def __len__(self) -> int: ...

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
        """Yield shuffled, augmented (images, labels) from batch index `start` on.

        share: (rank, ranks); each rank makes every ranks-th image of each batch, from `rank` on. Invariant: a function
        of (seed, epoch) alone: every method, device and resumed run sees the same images.
        """
        ...

    def batches(self, batch_size: int, device: torch.device, share: Share = ALONE) -> Batches:
        """Yield every image once, in stored order, for evaluation; with `share`, every ranks-th batch."""
        ...

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return the images at `indices` with their labels, for scoring; not `augmented`: as in evaluation."""
        ...


class Reader(Protocol):
    """Where the images of a part come from."""

    def read(self, index: int, augmented: bool) -> Tensor:
        """Return image `index`, uint8 (3, size, size), for training if `augmented`, otherwise for evaluation.

        Random numbers come from torch's CPU generator, which the caller has seeded. Raises UserError.
        """
        ...


class Originals:
    """Images decoded from their files by Pillow and cropped by torchvision's transforms; see `StreamedImages`."""

    def __init__(self, paths: list[str], image_size: int, flip: bool) -> None:
        self.paths = paths
        mirror = [transforms.RandomHorizontalFlip()] if flip else []
        resize, crop = transforms.Resize(round(image_size * 256 / 224)), transforms.CenterCrop(image_size)
        self.augmented = transforms.Compose(
            [transforms.RandomResizedCrop(image_size), *mirror, transforms.PILToTensor()]
        )
        self.plain = transforms.Compose([resize, crop, transforms.PILToTensor()])

    def read(self, index: int, augmented: bool) -> Tensor:
        """Decode and crop image `index`; see `Reader`."""
        image: Tensor = (self.augmented if augmented else self.plain)(read_image(self.paths[index]))
        return image


class StreamedImages:
    """One part of a data set, decoded as it is used, with ImageNet's transforms.

    Training: RandomResizedCrop(image_size), and a horizontal flip if `flip`. Evaluation: Resize to 256/224 of
    image_size, CenterCrop(image_size). `workers` processes decode; 0: this one does. Invariant: an augmented image is
    a function of (seed, epoch, its index) alone, and no global random state changes.
    """

    def __init__(
        self,
        files: Files,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool,
        workers: int,
        reader: Reader | None = None,
    ) -> None:
        self.labels, self.workers = files.labels, workers
        self.mean, self.std = per_channel(mean), per_channel(std)
        self.reader = reader or Originals(files.paths, image_size, flip)

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
        order, _ = draw_order(len(self), seed, epoch)
        starts = batch_starts(len(self), batch_size, drop_last, start)
        batches = [order[i : i + batch_size][share[0] :: share[1]] for i in starts]
        yield from self._stream(batches, ("augment", seed, epoch), device)

    def batches(self, batch_size: int, device: torch.device, share: Share = ALONE) -> Batches:
        """Yield all images in order, not augmented, for evaluation; see `Images`."""
        batches = torch.arange(len(self)).split(batch_size)[share[0] :: share[1]]
        yield from self._stream(list(batches), None, device)

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`; see `Images`."""
        starts = batch_starts(len(indices), 64)
        key = ("sample", seed) if augmented else None
        parts = list(self._stream([indices[i : i + 64].cpu() for i in starts], key, device))
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    def _stream(self, batches: list[Tensor], key: tuple[Any, ...] | None, device: torch.device) -> Batches:
        loader = DataLoader(
            BatchReader(self.reader, key),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=min(self.workers, len(batches)),
            collate_fn=_identity,
            pin_memory=device.type != "cpu",
            generator=torch.Generator(),  # otherwise the loader draws from the global random state
        )
        mean, std = self.mean.to(device), self.std.to(device)
        for batch, images in zip(batches, loader, strict=True):
            if isinstance(images, str):
                raise UserError(images)
            images = images.to(device, non_blocking=True).contiguous()  # channels first: fastest on the device
            yield normalise(images, mean, std), self.labels[batch].to(device, non_blocking=True)


class BatchReader(Dataset[Tensor]):
    """Reads lists of images; runs in the loader's processes."""

    def __init__(self, reader: Reader, key: tuple[Any, ...] | None) -> None:
        self.reader, self.key = reader, key

    def __getitems__(self, indices: Iterable[int]) -> Tensor | str:
        # Errors are returned, since the loader would bury a raised one in a worker's traceback.
        try:
            # Channels last, as decoded: converting here would take a fifth of the time of a small JPEG.
            return torch.stack([self._read(index).permute(1, 2, 0) for index in indices]).permute(0, 3, 1, 2)
        except UserError as error:
            return str(error)

    def _read(self, index: int) -> Tensor:
        if self.key is None:
            return self.reader.read(index, augmented=False)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reset the accelerator's generator, which fork_rng(devices=[]) leaves alone.
            torch.default_generator.manual_seed(derive(*self.key, index))
            return self.reader.read(index, augmented=True)


def _identity(batch: Any) -> Any:
    return batch
