"""Data sets as read into memory, before they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Arrays:
    """A part as stored: `pixels` uint8 (images, channels, size, size), `labels` int64."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Stored:
    """A data set as read: class names, and its parts by name: `train`, `test`, perhaps `validation`.

    `notes`: how many images were changed in which way as they were decoded.
    """

    classes: tuple[str, ...]
    parts: dict[str, Arrays]
    notes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over class names, and labels, shape and pixels of every part; computed once."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name, part in sorted(self.parts.items()):
            digest.update(f"\n{name} {tuple(part.pixels.shape)}\n".encode())
            digest.update(part.labels.numpy().astype("<i8").tobytes())
            digest.update(part.pixels.numpy().data)
        return digest.hexdigest()
