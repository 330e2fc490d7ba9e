"""Folders of images decoded once: pixels kept in one file, and read back only as what was decoded."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from benchmark.data.cache import DamagedError, Slot, hash_source
from benchmark.data.imagefiles import Layout, decode_files
from benchmark.data.stored import Arrays, Stored

ABOUT = "about"  # in the file's metadata: one entry, for several have no fixed order


def load_decoded(folder: Path, layout: Layout, size: int) -> Stored:
    """Return the images of a folder's layout as uint8 squares of `size`: from the cache, or decoded and kept there.

    Raises UserError naming an image that can't be decoded. Invariant: the same pixels and fingerprint either way; what
    the cache holds is used only where its pixels, labels and class names have the fingerprint of what was decoded.
    """
    slot = Slot(folder, f"decoded-{size}", hash_source(folder, layout))

    def read(path: Path) -> Stored:
        return read_decoded(path, layout)

    found = slot.read(read)
    if found is not None:
        return found
    with slot.building() as path:
        found = slot.read(read, silent=True)  # another process may have made it while this one waited
        if found is not None:
            return found
        notes: Counter[str] = Counter()
        parts = {}
        for name, files in layout.parts().items():
            pixels, changed = decode_files(files, size)
            parts[name] = Arrays(pixels, files.labels)
            notes += changed
        stored = Stored(layout.classes, parts, notes)
        slot.write(path, lambda temporary: write_decoded(temporary, stored))
    return stored


def find_fingerprint(folder: Path, layout: Layout, size: int) -> str:
    """Return the fingerprint of the images as `load_decoded` gives them, or "" where the cache does not say."""

    def read(path: Path) -> str:
        try:
            with safe_open(path, "pt") as file:
                return str(read_about(file)["fingerprint"])
        except (SafetensorError, ValueError) as error:
            raise DamagedError(f"damaged ({error})") from error

    return Slot(folder, f"decoded-{size}", hash_source(folder, layout)).read(read, silent=True) or ""


def write_decoded(path: Path, stored: Stored) -> None:
    """Write the pixels of all parts, and the fingerprint of the whole. Raises OSError where the disk is full."""
    pixels = {name: part.pixels for name, part in stored.parts.items()}
    if shutil.disk_usage(path.parent).free < sum(tensor.numel() for tensor in pixels.values()):
        raise OSError(errno.ENOSPC, "the disk has no room for it")
    about = json.dumps({"fingerprint": stored.fingerprint, "notes": stored.notes}, sort_keys=True)
    try:
        save_file(pixels, path, {ABOUT: f"{hashlib.sha256(about.encode()).hexdigest()} {about}"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def read_about(file: Any) -> dict[str, Any]:
    """Return what an open file says of itself; raises ValueError where that is not what was written."""
    digest, _, about = (file.metadata() or {}).get(ABOUT, "").partition(" ")
    if hashlib.sha256(about.encode()).hexdigest() != digest:
        raise ValueError("its metadata do not match their checksum")
    return dict(json.loads(about))


def read_decoded(path: Path, layout: Layout) -> Stored:
    """Read what `write_decoded` wrote of this layout; raises DamagedError when it is anything else."""
    try:
        with safe_open(path, "pt") as file:
            about = read_about(file)
            # Copied, not mapped: a file cut short by others under a mapping would end the process without a word.
            pixels = {name: file.get_tensor(name).clone() for name in layout.parts()}
    except (SafetensorError, ValueError) as error:
        raise DamagedError(f"damaged ({error})") from error
    parts = {name: Arrays(pixels[name], part.labels) for name, part in layout.parts().items()}
    stored = Stored(layout.classes, parts, about["notes"])
    if stored.fingerprint != about["fingerprint"] or any(tensor.dtype != torch.uint8 for tensor in pixels.values()):
        raise DamagedError("damaged (its content does not match its checksum)")
    return stored
