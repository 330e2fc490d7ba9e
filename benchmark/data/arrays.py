"""Images held in memory: what is stored, how it is split, and the cached file of decoded images."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.base.seeds import derive
from benchmark.data.cache import DamagedError, Slot, hash_source
from benchmark.data.files import Layout, decode_files


def split_indices(labels: Tensor, split: str, shuffled: bool) -> tuple[Tensor, Tensor]:
    """Return the training and the validation indices (10 %, rounded up), both rising.

    split "holdout": drawn by `stratify`. split "paper": the last 10 % in stored order, or of a fixed permutation if
    `shuffled`. Invariant: a partition that depends on (labels, split, shuffled) alone.
    """
    count = len(labels)
    share = -(-count // 10)
    if count < 2:
        raise UserError(f"split={split} needs at least 2 training images, got {count}; use split=full")
    if split == "holdout":
        held_out = stratify(labels, share, "holdout")
    else:
        order = sorted(range(count), key=lambda i: derive("paper split", i)) if shuffled else list(range(count))
        held_out = torch.tensor(sorted(order[count - share :]))
    return torch.ones(count, dtype=torch.bool).index_fill_(0, held_out, False).nonzero().squeeze(1), held_out


def stratify(labels: Tensor, total: int, name: str) -> Tensor:
    """Choose `total` rising indices, from each class in proportion to its size; the draw depends on `name` alone.

    Within a class images are ordered by a hash of (name, index); the k-th of n has rank (k + 1/2) / n, and the `total`
    lowest ranks over all classes are taken (Sainte-Lague apportionment).
    """
    places: list[tuple[float, int, int]] = []
    for label in sorted(set(labels.tolist())):
        members = sorted((labels == label).nonzero().squeeze(1).tolist(), key=lambda i: derive(name, i))
        places += [((k + 0.5) / len(members), label, i) for k, i in enumerate(members)]
    return torch.tensor(sorted(i for _, _, i in sorted(places)[:total]))


@dataclass(frozen=True)
class Arrays:
    """A part as stored: `pixels` uint8 (images, channels, size, size), `labels` int64."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DecodedSet:
    """A data set as read: class names, and its parts by name: `train`, `test`, perhaps `validation`.

    notes: how many images were changed in which way when decoded.
    """

    classes: tuple[str, ...]
    parts: dict[str, Arrays]
    notes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of class names, and of labels, shape and pixels of every part."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name, part in sorted(self.parts.items()):
            digest.update(f"\n{name} {tuple(part.pixels.shape)}\n".encode())
            digest.update(part.labels.numpy().astype("<i8").tobytes())
            digest.update(part.pixels.numpy().data)
        return digest.hexdigest()


ABOUT = "about"  # the only metadata entry, since several would have no fixed order


def load_decoded(folder: Path, layout: Layout, size: int) -> DecodedSet:
    """Return the images of a folder's layout as uint8 squares of `size`: from the cache, or decoded and cached.

    Raises UserError naming an image that can't be decoded. Invariant: the same pixels either way; cached ones are used
    only if they, the labels and the class names still have the fingerprint that was computed after decoding.
    """
    slot = Slot(folder, f"decoded-{size}", hash_source(folder, layout))

    def decode(path: Path | None) -> DecodedSet:
        notes: Counter[str] = Counter()
        parts = {}
        for name, files in layout.parts().items():
            pixels, changed = decode_files(files, size)
            parts[name] = Arrays(pixels, files.labels)
            notes += changed
        stored = DecodedSet(layout.classes, parts, notes)
        slot.write(path, lambda temporary: write_decoded(temporary, stored))
        return stored

    found = slot.load(lambda path: read_decoded(path, layout), decode)
    assert found is not None
    return found


def find_fingerprint(folder: Path, layout: Layout, size: int) -> str:
    """Return the fingerprint of what `load_decoded` returns, or "" if the images are not cached."""

    def read(path: Path) -> str:
        try:
            with safe_open(path, "pt") as file:
                return str(read_about(file)["fingerprint"])
        except (SafetensorError, ValueError) as error:
            raise DamagedError(f"damaged ({error})") from error

    return Slot(folder, f"decoded-{size}", hash_source(folder, layout)).read(read, silent=True) or ""


def write_decoded(path: Path, stored: DecodedSet) -> None:
    """Write the pixels of all parts, and the fingerprint. Raises OSError where the disk is full."""
    pixels = {name: part.pixels for name, part in stored.parts.items()}
    if shutil.disk_usage(path.parent).free < sum(tensor.numel() for tensor in pixels.values()):
        raise OSError(errno.ENOSPC, "the disk has no room for it")
    about = json.dumps({"fingerprint": stored.fingerprint, "notes": stored.notes}, sort_keys=True)
    try:
        save_file(pixels, path, {ABOUT: f"{hashlib.sha256(about.encode()).hexdigest()} {about}"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def read_about(file: Any) -> dict[str, Any]:
    """Return an open file's metadata; raises ValueError where they are not what was written."""
    digest, _, about = (file.metadata() or {}).get(ABOUT, "").partition(" ")
    if hashlib.sha256(about.encode()).hexdigest() != digest:
        raise ValueError("its metadata do not match their checksum")
    return dict(json.loads(about))


def read_decoded(path: Path, layout: Layout) -> DecodedSet:
    """Read what `write_decoded` wrote for this layout; raises DamagedError for anything else."""
    try:
        with safe_open(path, "pt") as file:
            about = read_about(file)
            # Copied, since a mapped file that someone truncates would crash the process.
            pixels = {name: file.get_tensor(name).clone() for name in layout.parts()}
    except (SafetensorError, ValueError) as error:
        raise DamagedError(f"damaged ({error})") from error
    parts = {name: Arrays(pixels[name], part.labels) for name, part in layout.parts().items()}
    stored = DecodedSet(layout.classes, parts, about["notes"])
    if stored.fingerprint != about["fingerprint"] or any(tensor.dtype != torch.uint8 for tensor in pixels.values()):
        raise DamagedError("damaged (its content does not match its checksum)")
    return stored
