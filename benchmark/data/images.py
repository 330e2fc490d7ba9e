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
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        drop_last: bool,
        device: torch.device,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled, augmented (images, labels) from batch index `start` on.

        share: (rank, ranks); each rank is given, and makes, every ranks-th image of each batch, from `rank` on.
        Invariant: a function of (seed, epoch) alone: every method, device and resumed run sees the same images.
        """
        ...

    def batches(
        self, batch_size: int, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once in stored order, for evaluation; with `share` (rank, ranks), every ranks-th batch."""
        ...

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return the images at `indices` with their labels, for scoring at initialisation.

        They are augmented as in training, or as for evaluation.
        """
        ...


class Reader(Protocol):
    """Where the images of a part come from."""

    def read(self, index: int, augmented: bool) -> Tensor:
        """Return image `index`, uint8 (3, size, size), for training if `augmented`, else for evaluation.

        Random numbers are drawn from torch's generator of the CPU, which the caller has seeded. Raises UserError.
        """
        ...


class Originals:
    """Images read from their files by Pillow and cut by torchvision's transforms; see `Reader`, `StreamedImages`."""

    def __init__(self, paths: list[str], image_size: int, flip: bool) -> None:
        self.paths = paths
        mirror = [transforms.RandomHorizontalFlip()] if flip else []
        resize, crop = transforms.Resize(round(image_size * 256 / 224)), transforms.CenterCrop(image_size)
        self.augmented = transforms.Compose(
            [transforms.RandomResizedCrop(image_size), *mirror, transforms.PILToTensor()]
        )
        self.plain = transforms.Compose([resize, crop, transforms.PILToTensor()])

    def read(self, index: int, augmented: bool) -> Tensor:
        """Decode image `index` and cut it; see `Reader`."""
        image: Tensor = (self.augmented if augmented else self.plain)(read_image(self.paths[index]))
        return image


class StreamedImages:
    """One part of a data set, read as it is used, by default from its files: ImageNet's transforms.

    Training: RandomResizedCrop(image_size), and a horizontal flip if `flip`. Evaluation: Resize to 256/224 of
    image_size, CenterCrop(image_size). `workers` processes decode; 0 decodes in this one.
    Invariant: an augmented image is a function of (seed, epoch, its index) alone, whatever the number of workers, and
    no global random state is changed.
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
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the shuffled, augmented batches of an epoch from batch index `start` on; see `Images`."""
        order, _ = draw_order(len(self), seed, epoch)
        starts = batch_starts(len(self), batch_size, drop_last, start)
        batches = [order[i : i + batch_size][share[0] :: share[1]] for i in starts]
        yield from self._stream(batches, ("augment", seed, epoch), device)

    def batches(
        self, batch_size: int, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in order, not augmented, for evaluation; see `Images`."""
        batches = torch.arange(len(self)).split(batch_size)[share[0] :: share[1]]
        yield from self._stream(list(batches), None, device)

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`; see `Images`."""
        starts = batch_starts(len(indices), 64)
        key = ("sample", seed) if augmented else None
        parts = list(self._stream([indices[i : i + 64].cpu() for i in starts], key, device))
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

    def _stream(
        self, batches: list[Tensor], key: tuple[Any, ...] | None, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            BatchReader(self.reader, key),
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
            images = images.to(device, non_blocking=True).contiguous()  # from pixels to planes, quickest on the device
            yield normalise(images, mean, std), self.labels[batch].to(device)


class BatchReader(Dataset[Tensor]):
    """Reads lists of images; runs in the loader's processes."""

    def __init__(self, reader: Reader, key: tuple[Any, ...] | None) -> None:
        self.reader, self.key = reader, key

    def __getitems__(self, indices: Iterable[int]) -> Tensor | str:
        # An error is returned, not raised: the loader would bury its message in a worker's traceback.
        try:
            # Pixel by pixel, as decoded: to put planes together here would cost a fifth of the time of a small JPEG.
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


def _as_it_is(batch: Any) -> Any:
    return batch
