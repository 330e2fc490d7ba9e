"""The weights that a page starts from, as its settings say: a file and its hash, or timm's name of its own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import timm

from benchmark.base.errors import UserError
from benchmark.base.files import expand, show
from benchmark.config.pages import Page

EXPORTED = "weights.safetensors"  # in the folder of a finished run


def find_start(page: Page) -> Path:
    """Return the file that the page's `init` names, itself or as a run's folder; raises UserError for none."""
    path = expand(Path(page.init))
    path = path / EXPORTED if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"init={page.init}: there is no file {path}; name a safetensors file, a state_dict saved by torch.save, or "
            "the folder of a finished run, runs/RUN"
        )
    return path


def pin_start(page: Page) -> Page:
    """Return the page with the hash of the file that it starts from, so that other weights make another table.

    Raises UserError for a file that cannot be read, or with another hash than the page's.
    """
    if not page.init:
        return page
    path = find_start(page)
    try:
        about = path.stat()
        found = hash_file(path, about.st_mtime_ns, about.st_size)
    except OSError as error:
        raise UserError(f"init={page.init}: {path} cannot be read: {error.strerror or error}") from error
    if page.init_sha256 not in ("", found):
        raise UserError(
            f"init={page.init}: {path} has the sha256 {found}, not {page.init_sha256}: name the right file, or leave "
            "init_sha256 out to start from this one"
        )
    return dataclasses.replace(page, init_sha256=found)


def describe_given_weights(page: Page) -> str:
    """Return what a pinned page starts from, in words: a file with the start of its hash, or timm's weights; or ""."""
    if page.init:
        return f"the weights of {show(find_start(page))}, sha256 {page.init_sha256[:8]}…"
    return f"timm's weights of {name_pretrained(page.model)}" if page.pretrained else ""


@functools.cache
def hash_file(path: Path, mtime_ns: int, size: int) -> str:
    """Return a file's sha256; a grid asks for the same one for each of its cells."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def name_pretrained(model: str) -> str:
    """Return timm's full name of the weights of `model`, `resnet50.a1_in1k`; the model's own name where it has none."""
    known = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return f"{known.architecture}.{known.tag}" if known is not None and known.tag else model
