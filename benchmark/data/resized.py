"""Serving resized images: decoded by torchvision and cut as ImageNet's transforms do, on tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import center_crop

from benchmark.data.cache import tell
from benchmark.data.shard import Shard, shrink
from benchmark.errors import UserError

CROP = transforms.RandomResizedCrop(1)  # for its law of boxes


class Resized:
    """A part's images as `shrink` made them: from the shard or, where it fails, from their files, to the same bits.

    `numbers`: the place of each image in the shard. Training and evaluation as `folders.StreamedImages` says.
    """

    def __init__(
        self, shard: Shard | None, numbers: np.ndarray, paths: list[str], resized: int, image_size: int, flip: bool
    ) -> None:
        self.shard, self.numbers, self.paths = shard, numbers, paths
        self.resized, self.size, self.flip = resized, image_size, flip
        self.told = False

    def read(self, index: int, augmented: bool) -> Tensor:
        """Return image `index`, uint8 (3, size, size). An augmented one draws from torch's generator of the CPU."""
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
        """Return the JPEG of image `index`; one that the shard does not hold whole is made again from its file."""
        content = None if self.shard is None else self.shard.read(int(self.numbers[index]))
        if content is None and self.shard is not None and not self.told:
            self.told = True
            tell(
                f"{self.shard.path}: damaged at {self.paths[index]}, which is made again; delete it to have it rebuilt"
            )
        return shrink(self.paths[index], self.resized) if content is None else content


def decode(content: bytes) -> Tensor:
    """Decode a JPEG to uint8 (3, height, width); raises UserError where torchvision was built without a decoder."""
    try:
        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        raise UserError(f"torchvision can't decode a JPEG here ({error}): set resized=0") from error
    return image


def scale(image: Tensor, height: int, width: int) -> Tensor:
    """Resize a uint8 image (3, ?, ?) to (3, height, width): bilinear with antialiasing, in whole-number arithmetic."""
    if image.shape[1:] == (height, width):
        return image
    laid_out = image[None].contiguous(memory_format=torch.channels_last)  # as decoded; twice as fast as planes
    return functional.interpolate(laid_out, size=(height, width), mode="bilinear", antialias=True)[0]
