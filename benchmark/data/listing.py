"""What lies in a folder of images: which files are read, each once, and how many of each kind are left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmark.errors import UserError
from leaderboard.table import plain

# Every kind that Pillow decodes without another program, and that holds a picture rather than data or a document.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga"),
)
CACHE = ".sparse-bench-cache"  # a folder of benchmark.data.cache, never a class

Key = tuple[int, int]  # device and inode
Entry = os.DirEntry[str]


@dataclass(frozen=True)
class Files:
    """The image files of one part, sorted by class, then by path, and their labels (int64)."""

    paths: list[str]
    labels: Tensor

    def subset(self, indices: Tensor) -> Files:
        """Return the files at `indices`, in that order."""
        return Files([self.paths[i] for i in indices.tolist()], self.labels[indices])


def list_part(part: Path) -> Part:
    """Return the images of the folder `part` and its class names, sorted; see `scan_folder` for order and errors."""
    listed = Part()
    try:
        listed.fill(part)
    except OSError as error:
        raise UserError(
            f"{write_path(error.filename or part)}: cannot be read ({error.strerror}); mend or remove it"
        ) from error
    there = set(listed.labels)
    empty = [name for label, name in enumerate(listed.classes) if label not in there]
    why = write_skipped(listed.skipped)
    if empty:
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"{part}: no image in class {', '.join(empty)}; add files ({kinds}) or remove the folder{why}")
    if not listed.classes:
        raise UserError(f"{part}: holds no class folder; wanted: {part}/CLASS/*.jpg, one folder per class{why}")
    return listed


@dataclass
class Part:
    """The images of one part as they are listed, and how many of each kind were left out.

    `keys`: what the file system knows each file by, device and inode. `seen`: the same of folders.
    """

    classes: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    seen: set[Key] = field(default_factory=set)
    once: set[Key] = field(default_factory=set)  # keys, for looking up
    linked: set[Key] = field(default_factory=set)  # of files that were found through a link

    def files(self) -> Files:
        """Return the files in order."""
        return Files(self.paths, torch.tensor(self.labels, dtype=torch.int64))

    def fill(self, part: Path) -> None:
        """List all classes of the folder `part`. Raises OSError, and UserError for a name that is not UTF-8."""
        for above in (part, part.parent):  # a link may lead back up
            self.seen.add(key_of(above))
        folders, others = self.sort_out(str(part))
        self.skipped.update("image outside of the class folders" for _ in others)
        entered = {path: self.enter(path) for path in folders}  # all, before a link in one leads to another
        for path, is_new in entered.items():
            if not any(not name.startswith(".") for name in os.listdir(path)):  # noqa: PTH208
                self.skipped["empty folder"] += 1
                continue
            self.classes.append(Path(path).name)
            for root, entries in sorted(self.walk(path), key=lambda pair: pair[0]) if is_new else ():
                self.take(root, entries)

    def walk(self, folder: str) -> Iterator[tuple[str, list[Entry]]]:
        """Yield a folder and those inside it, each with its images; none twice, wherever links lead."""
        folders, images = self.sort_out(folder)
        yield folder, images
        for inner in folders:
            if self.enter(inner):
                yield from self.walk(inner)

    def enter(self, folder: str) -> bool:
        """Return whether a folder was not met before, and remember it."""
        key = key_of(folder)
        if key in self.seen:
            self.skipped["folder met before through a link"] += 1
            return False
        self.seen.add(key)
        return True

    def sort_out(self, folder: str) -> tuple[list[str], list[Entry]]:
        """Return the folders and the images in a folder, sorted; count what else it holds."""
        folders, images = [], []
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name == CACHE:
                continue
            is_folder, suffix = is_a(entry.is_dir), os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if entry.name.startswith("."):
                self.skipped[f"hidden {'folder' if is_folder else 'file'}"] += 1
            elif is_folder:
                folders.append(check_name(entry.path))
            elif not is_a(entry.is_file):
                self.skipped["link to nowhere"] += 1
            elif suffix in EXTENSIONS:
                check_name(entry.path)
                images.append(entry)
            else:
                self.skipped[f"file of type {plain(suffix)[:16]}" if suffix else "file without a type"] += 1
        return folders, images

    def take(self, root: str, images: list[Entry]) -> None:
        """Add the images of a folder, but for those that are there already and that a link leads to."""
        device = key_of(root)[0]
        for entry in images:
            key, linked = (device, entry.inode()), entry.is_symlink()
            if linked:
                key = key_of(entry.path)
            if key in self.linked or (linked and key in self.once):
                self.skipped["image met before through a link"] += 1
                continue
            if linked:
                self.linked.add(key)
            self.once.add(key)
            self.keys.append(key)
            self.paths.append(entry.path)
            self.labels.append(len(self.classes) - 1)


def key_of(path: str | Path) -> Key:
    """Return what the file system knows a file or folder by, links followed."""
    found = os.stat(path)  # noqa: PTH116 (of a million files, each a Path, takes twice as long)
    return found.st_dev, found.st_ino


def is_a(ask: Callable[[], bool]) -> bool:
    """Return the answer of an entry's `is_dir` or `is_file`; a link to itself is neither."""
    try:
        return ask()
    except OSError:
        return False


def check_name(path: str) -> str:
    """Return the path; raises UserError where it is not UTF-8, for a record holds text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{write_path(path)}: the name of a folder or image must be UTF-8: rename it") from None
    return path


def write_path(path: str | Path) -> str:
    """Return a path as text that can be printed, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def write_skipped(skipped: Mapping[str, int]) -> str:
    """Return `; skipped 2 hidden files, 1 file of type .txt`, or nothing."""
    counts = sorted((kind, count) for kind, count in skipped.items() if count)
    listed = ", ".join(f"{count:,} {plural(kind) if count > 1 else kind}" for kind, count in counts)
    return f"; skipped {listed}" if listed else ""


def plural(kind: str) -> str:
    """Return the plural of `hidden file`, `folder met before through a link` and the like."""
    return re.sub(r"\b(file|folder|image|link)\b", r"\1s", kind, count=1)
