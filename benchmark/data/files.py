"""Folders of images: which files are read, which are skipped, and how a file becomes RGB pixels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from benchmark.base.errors import PassingError, UserError, kind_of, reason
from leaderboard.tables.table import plain

# Every picture format that Pillow decodes by itself.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".tga"),
)
CACHE = ".sparse-bench-cache"  # the folder of benchmark.data.cache, never a class
# Folders made by archives, file systems and storage servers, some with previews of the images.
FOREIGN = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")

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
    """Return the images of the folder `part` and its class names; see `scan_folder` for order and errors."""
    listed = Part()
    try:
        listed.fill(part)
    except OSError as error:
        raise kind_of(error)(
            f"{write_path(error.filename or part)}: cannot be read ({error.strerror}); fix or remove it"
        ) from error
    filled, why = set(listed.labels), write_skipped(listed.skipped)
    empty = [name for label, name in enumerate(listed.classes) if label not in filled]
    if empty:
        kinds = " ".join(EXTENSIONS)
        raise UserError(f"{part}: no image in class {', '.join(empty)}; add files ({kinds}) or remove the folder{why}")
    if not listed.classes:
        raise UserError(f"{part}: no class folder; expected {part}/CLASS/*.jpg, one folder per class{why}")
    return listed


@dataclass
class Part:
    """The images of one part while they are listed, and how many files of each kind were skipped.

    keys: device and inode of each image. seen: those of folders.
    """

    classes: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    seen: set[Key] = field(default_factory=set)
    once: set[Key] = field(default_factory=set)  # keys as a set
    linked: set[Key] = field(default_factory=set)  # keys of files found through a link

    def files(self) -> Files:
        """Return the files, in order."""
        return Files(self.paths, torch.tensor(self.labels, dtype=torch.int64))

    def fill(self, part: Path) -> None:
        """List all classes of the folder `part`; raises OSError, and UserError for a name that is not UTF-8."""
        self.seen |= {key_of(part), key_of(part.parent)}  # a link may lead back up
        folders, others = self.sort_out(str(part))
        self.skipped.update("image outside of the class folders" for _ in others)
        entered = {path: self.enter(path) for path in folders}  # all first: a link in one may lead to another
        for path, is_new in entered.items():
            if all(name.startswith(".") for name in os.listdir(path)):  # noqa: PTH208
                self.skipped["empty folder"] += 1
                continue
            self.classes.append(Path(path).name)
            for root, entries in sorted(self.walk(path), key=lambda pair: pair[0]) if is_new else ():
                self.take(root, entries)

    def walk(self, folder: str) -> Iterator[tuple[str, list[Entry]]]:
        """Yield a folder and those inside it, each with its images, none twice whatever the links."""
        folders, images = self.sort_out(folder)
        yield folder, images
        for inner in folders:
            if self.enter(inner):
                yield from self.walk(inner)

    def enter(self, folder: str) -> bool:
        """Return whether a folder is new, and remember it."""
        key = key_of(folder)
        if key in self.seen:
            self.skipped["folder met before through a link"] += 1
            return False
        self.seen.add(key)
        return True

    def sort_out(self, folder: str) -> tuple[list[str], list[Entry]]:
        """Return the folders and the images in a folder, sorted; count everything else."""
        folders, images = [], []
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name == CACHE:
                continue
            is_folder, suffix = is_a(entry.is_dir), os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if entry.name.startswith("."):
                self.skipped[f"hidden {'folder' if is_folder else 'file'}"] += 1
            elif is_folder and entry.name in FOREIGN:
                self.skipped[f"folder named {entry.name}"] += 1
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
        """Add the images of a folder, except those that were found before and are links, or were found by one."""
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
    """Return the device and inode of a file or folder, following links."""
    found = os.stat(path)  # noqa: PTH116 (a million Paths would take twice as long)
    return found.st_dev, found.st_ino


def is_a(ask: Callable[[], bool]) -> bool:
    """Call an entry's `is_dir` or `is_file`; a link to itself is neither."""
    try:
        return ask()
    except OSError:
        return False


def check_name(path: str) -> str:
    """Return the path; raises UserError if it is not UTF-8, since records hold text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{write_path(path)}: the name of a folder or image must be UTF-8: rename it") from None
    return path


def write_path(path: str | Path) -> str:
    """Return a path as printable text, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def write_skipped(skipped: Mapping[str, int]) -> str:
    """Return `; skipped 2 hidden files, 1 file of type .txt`, or an empty string."""
    listed = []
    for kind, count in sorted((kind, count) for kind, count in skipped.items() if count):
        plural = re.sub(r"\b(file|folder|image|link)\b", r"\1s", kind, count=1)
        listed.append(f"{count:,} {plural if count > 1 else kind}")
    return f"; skipped {', '.join(listed)}" if listed else ""


DECODED_AT_ONCE = 256  # files per task of a thread: large enough to hide the pool's overhead
MAX_WORKERS = 16
DECODER = 2  # raised whenever the same file would give other pixels


@dataclass(frozen=True)
class Layout:
    """What a folder of images contains; `validation` is None unless it has both `val` and `test`.

    skipped: how many files of each kind were left out.
    """

    classes: tuple[str, ...]
    train: Files
    validation: Files | None
    test: Files
    skipped: Mapping[str, int] = field(default_factory=dict)
    shared: int = 0  # test images that are files of the training part

    def parts(self) -> dict[str, Files]:
        """Return the parts by name: `train`, `test`, perhaps `validation`."""
        held_out = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, "test": self.test, **held_out}

    def whole(self) -> Files:
        """Return the files of all parts, in the order of `parts`."""
        parts = self.parts().values()
        return Files([path for part in parts for path in part.paths], torch.cat([part.labels for part in parts]))


def scan_folder(folder: Path) -> Layout:
    """List the images of `folder`: `train/CLASS/*`, and `test/CLASS/*` or `val/CLASS/*` (or both).

    Label k is the k-th class name in sorted order; folders inside a class are searched too. Nothing is decoded. Hidden
    and empty entries, other files, and whatever links lead to a second time are skipped and counted. Raises UserError
    when the folder, `train`, or both `test` and `val` are missing, when a part has no class or a class has no image,
    when two parts have different classes, and when every test image is a training image.
    Invariant: every class has at least one file in every part; no part has a file twice.
    """
    way_out = (
        f"expected {folder}/train/CLASS/*.jpg and {folder}/test/CLASS/*.jpg (or val); name another place with DATA= "
        "(the folder above) or the page's data_dir"
    )
    check_name(str(folder))
    if not folder.is_dir():
        raise UserError(f"no image folder at {folder}; {way_out}")
    if not (folder / "train").is_dir():
        raise UserError(f"{folder}: no folder 'train'; {way_out}")
    held_out = [name for name in ("test", "val") if (folder / name).is_dir()]
    if not held_out:
        raise UserError(f"{folder}: neither a folder 'test' nor 'val'; {way_out}")
    check_name(str(folder.resolve()))
    parts = {name: list_part(folder / name) for name in ("train", *held_out)}
    train = parts["train"]
    for name in held_out:
        if parts[name].classes != train.classes:
            both = (train.classes, parts[name].classes)
            only = [", ".join(sorted(set(a) - set(b))) or "none" for a, b in (both, both[::-1])]
            raise UserError(
                f"{folder}: train and {name} must have the same classes; only in train: {only[0]}; "
                f"only in {name}: {only[1]}{write_skipped(train.skipped + parts[name].skipped)}"
            )
    test, others = parts[held_out[0]], {path.name for path in folder.iterdir() if path.is_dir()} - {"train", *held_out}
    beside = sum(not name.startswith(".") for name in others)
    layout = Layout(
        tuple(train.classes),
        train.files(),
        parts["val"].files() if len(held_out) == 2 else None,
        test.files(),
        sum((part.skipped for part in parts.values()), Counter({"folder beside train and test": beside})),
        sum(key in train.once for key in test.keys),
    )
    if layout.shared == len(layout.test.paths):
        raise UserError(
            f"{folder}: all {layout.shared} images of {held_out[0]} are files of train, so a test would mean nothing: "
            "hold images out of train (split= makes a validation part, not a test part)"
        )
    return layout


def check_memory(layout: Layout, size: int, padded: int) -> None:
    """Raise UserError when a folder's images don't fit in the machine's memory.

    All are decoded at `size` and, on a CPU, held once more, those for training at `padded`; 0 for other devices.
    """
    parts = layout.parts()
    count, train = sum(len(files.paths) for files in parts.values()), len(parts["train"].paths)
    need = 3 * (count * size**2 + (train * padded**2 + (count - train) * size**2 if padded else 0))
    if hasattr(os, "sysconf") and need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(f"{count} images need {need / 2**30:.0f} GiB of memory: set in_memory=false")


def decode_files(files: Files, size: int) -> tuple[Tensor, Counter[str]]:
    """Decode all `files`, in threads, to a uint8 tensor (images, 3, size, size), resized by `fit_image`.

    Also returns how many images were changed in which way. Raises UserError naming the first file that can't be
    decoded.
    """
    pixels = np.empty((len(files.paths), 3, size, size), dtype=np.uint8)
    notes: list[str] = []

    def decode(first: int) -> None:
        for i in range(first, min(first + DECODED_AT_ONCE, len(files.paths))):
            image = read_image(files.paths[i], notes)
            notes.extend([RESIZED] if size != min(image.size) else [])
            notes.extend([CUT] if image.width != image.height else [])
            pixels[i] = np.asarray(fit_image(image, size)).transpose(2, 0, 1)

    pool = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, MAX_WORKERS))
    try:
        for _ in pool.map(decode, range(0, len(files.paths), DECODED_AT_ONCE)):
            pass  # reading the results raises the first error in file order
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels), Counter(notes)


SAMPLED = 1000  # files whose content enters a fingerprint: reading a million would take as long as an epoch


def hash_files(folder: Path, layout: Layout) -> str:
    """Return a sha256 of DECODER and the sorted names (relative to `folder`) and sizes of all files.

    SAMPLED files, evenly spread, enter with their content, since uncompressed images of two sets may have equal sizes.
    """
    paths = {path.removeprefix(f"{folder}{os.sep}"): path for part in layout.parts().values() for path in part.paths}
    digest = hashlib.sha256(f"decoder {DECODER}\n".encode())
    for place, (name, path) in enumerate(sorted(paths.items())):
        digest.update(f"{name} {os.stat(path).st_size}\n".encode())  # noqa: PTH116 (see cache.hash_source)
        if place % -(-len(paths) // SAMPLED) == 0:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


ROTATED = "rotated as EXIF data say"
SCALED = "scaled from 16 bits to 8"
OPAQUE = "taken as opaque (transparency is left out)"
FIRST = "of several frames, the first of which was read"
RESIZED = "resized to the page's image_size"
CUT = "cut to the square in the middle"
COLOURS = ("LAB", "HSV", "YCbCr", "CMYK")  # other colour spaces, converted to RGB by Pillow


def read_image(path: str, notes: list[str] | None = None) -> Image.Image:
    """Decode one image as upright RGB; raises UserError naming the file when that fails.

    Changes to its pixels are added to `notes`. Invariant: a file of mode RGB or L that EXIF data do not rotate gives
    what Pillow's `convert("RGB")` gives.
    """
    try:
        with Image.open(path) as opened:
            return to_rgb(opened, notes)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
        refuse_image(path, error)


def to_rgb(image: Image.Image, notes: list[str] | None = None) -> Image.Image:
    """Return an opened image as upright RGB; see `read_image`. Raises ValueError for an ambiguous format.

    Of 16 bits the upper 8 are kept, as Pillow does for 16-bit RGB. Transparency is ignored.
    """
    told: list[str] = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # whose other frames are previews
        told.append(FIRST)
    turned = orientation(image) != 1  # asked first, since a TIFF file is rotated on loading
    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    told += [ROTATED] if turned else []
    if image.mode.startswith("I") or image.mode == "F":
        image = to_eight_bits(image)
        told.append(SCALED)
    if is_transparent(image):
        told.append(OPAQUE)
    if image.mode in COLOURS:
        told.append(f"turned from {image.mode} to RGB")
    if notes is not None:
        notes += told
    if image.mode in ("P", "PA", "La", "RGBa"):  # Pillow warns of these or refuses to convert them directly
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) where there is none."""
    asked: int | None = None
    with contextlib.suppress(Exception):  # broken EXIF data must not cost the image
        asked = image.getexif().get(ExifTags.Base.Orientation)
    return asked if asked is not None and asked in range(2, 9) else 1


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image as L. Raises ValueError for floats and 32 bits, whose white level is unknown."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and nothing says which is white: save 8 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # which have at most 16 bits
        raise ValueError("its pixels are 32-bit integers, and nothing says which is white: save 8 or 16 bits")
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def is_transparent(image: Image.Image) -> bool:
    """Return whether any pixel is not opaque."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        return bool(image.getextrema()[-1][0] < 255)  # type: ignore[index, misc]
    if "transparency" not in image.info:
        return False
    return bool(image.convert("RGBA").getextrema()[3][0] < 255)  # type: ignore[index, misc]


def refuse_image(path: str | Path, error: Exception) -> NoReturn:
    """Raise UserError: the image at `path` can't be decoded because of `error`, or not be read now."""
    if kind_of(error) is PassingError:
        raise PassingError(f"{path}: cannot be read now ({reason(error)}): try again") from error
    raise UserError(f"{path}: can't be decoded as an image ({error}); replace or remove the file") from error


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and crop the centre square; an image that fits is returned as it is.

    Bilinear with antialiasing, in Pillow's integer arithmetic: the same pixels on every machine.
    """
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
