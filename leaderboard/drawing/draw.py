"""The files of the pictures: written if out of date, sealed and checked.

A file holds the digest of its numbers and the versions of what drew it, in its metadata, and ends with a sha256 of
itself. So a current picture costs nothing to rebuild, and an edited one is found without drawing it again.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from leaderboard.drawing.figures import make_figure
from leaderboard.drawing.pictures import Picture
from leaderboard.drawing.style import SETTINGS
from leaderboard.store.files import write_atomically

DRAWING = 4  # raise it if the same numbers are drawn differently: every picture is then drawn again
FORMATS = ("svg", "png")
SHARPNESS = 120  # pixels per inch of a PNG: 1020 across
MANY = 8  # pictures that are worth starting other processes
STAMP = re.compile(rb"sparse-bench picture ([0-9a-f]{64}) \(drawing ([0-9]+), matplotlib ([^)]+)\)")


def draw_all(named: Mapping[str, Picture], folder: Path, workers: int = 2) -> list[Path]:
    """Write pictures, by the stems of their files, to `folder` as .svg and .png; return the paths.

    Many are shared among processes. Invariants: the same numbers give the same bytes, with the same matplotlib; readers
    see a file old or new, whole; a file that is current is not touched.
    """
    pictures = {folder / stem: picture for stem, picture in named.items()}
    due = [(stem, picture) for stem, picture in pictures.items() if not is_current(stem, picture)]
    if due:
        folder.mkdir(parents=True, exist_ok=True)
    if len(due) < MANY or workers < 2 or not draw_in_parallel(due, workers):
        for stem, picture in due:
            write_picture(stem, picture)
    return [file_of(stem, form) for stem in pictures for form in FORMATS]


def draw_in_parallel(due: list[tuple[Path, Picture]], workers: int) -> bool:
    """Write pictures with new processes; return False if the system kills or refuses them."""
    try:
        # a fresh interpreter each: a fork of a process with threads (torch, W&B) can hang
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(write_picture, *zip(*due, strict=True)))
    except (BrokenProcessPool, OSError):
        return False
    return True


def file_of(stem: Path, form: str) -> Path:
    """Return the file of a picture in one format."""
    return stem.with_name(f"{stem.name}.{form}")


def write_picture(stem: Path, picture: Picture) -> None:
    """Write one picture to STEM.svg and STEM.png, each atomically."""
    for form, data in render(picture).items():
        write_atomically(file_of(stem, form), data, durable=False)  # the records make it again


def render(picture: Picture, forms: Iterable[str] = FORMATS) -> dict[str, bytes]:
    """Return the files of a picture by format. Leaves matplotlib's settings as they were."""
    about = {"Title": picture.title, "Description": stamp_of(picture)}
    # None leaves out what would differ from one time or version to the next
    metadata = {"svg": {**about, "Date": None, "Creator": None}, "png": {**about, "Software": None}}
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    files = {}
    with matplotlib.rc_context({**defaults, **SETTINGS}):
        figure: Figure = make_figure(picture)
        for form in forms:
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=SHARPNESS, metadata=metadata[form])
            files[form] = seal(file.getvalue())
    return files


def stamp_of(picture: Picture) -> str:
    """Return the description in a picture's files: what it was drawn from, and by which versions."""
    return f"sparse-bench picture {picture.digest()} (drawing {DRAWING}, matplotlib {matplotlib.__version__})"


def make_end(data: bytes, digest: str) -> bytes:
    """Return the end of a sealed file: a comment in an SVG; a text chunk and the last chunk in a PNG."""
    if not data.startswith(b"\x89PNG"):
        return f"<!-- sha256 {digest} -->\n".encode()
    chunk = b"tEXtsha256\0" + digest.encode()
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]


def seal(data: bytes) -> bytes:
    """Return an SVG or PNG file with a sha256 of itself in it."""
    body = data[:-12] if data.startswith(b"\x89PNG") else data  # IEND, the last chunk, has 12 bytes
    return body + make_end(data, hashlib.sha256(body).hexdigest())


def is_sealed(data: bytes) -> bool:
    """Return whether a file is unchanged since `seal` made it."""
    end = len(make_end(data, "0" * 64))
    body = data[:-end]
    return data[-end:] == make_end(data, hashlib.sha256(body).hexdigest())


def is_current(stem: Path, picture: Picture) -> bool:
    """Return whether both files of a picture are whole, and drawn from its numbers by this version of the code."""
    stamp = stamp_of(picture).encode()
    for form in FORMATS:
        try:
            data = file_of(stem, form).read_bytes()
        except OSError:
            return False
        found = STAMP.search(data)
        if found is None or found[0] != stamp or not is_sealed(data):
            return False
    return True


def check_all(pictures: Mapping[str, Picture], folder: Path) -> list[str]:
    """Return what is wrong with the pictures in `folder`, one line each; `pictures` by stem. Nothing is written.

    A file is checked against its seal and the digest of the numbers. An SVG is also drawn again and compared bit by bit
    if it was drawn by the installed matplotlib; other versions draw the same numbers differently.
    """
    faults = [
        fault
        for stem, picture in pictures.items()
        for form in FORMATS
        for fault in check_file(file_of(folder / stem, form), form, picture)
    ]
    extra = [file for file in list_files(folder) if file[:-4] not in pictures]
    return faults + [f"picture {file} belongs to no record: delete it" for file in extra]


def check_file(path: Path, form: str, picture: Picture) -> Iterator[str]:
    """Yield what is wrong with one file of a picture, at most one line."""
    try:
        data = path.read_bytes()
    except OSError:
        yield f"picture {path.name} is missing"
        return
    found = STAMP.search(data)
    if found is None or not is_sealed(data):
        yield f"picture {path.name} was changed after it was drawn"
    elif found[1].decode() != picture.digest():
        yield f"picture {path.name} does not match the records"
    elif found[2].decode() != str(DRAWING):
        yield f"picture {path.name} was drawn by another version of the drawing code"
    elif (
        form == "svg" and found[3].decode() == matplotlib.__version__ and render(picture, [form])[form] != data
    ):  # either forged with a fitting seal, or the code changed and DRAWING did not
        yield f"picture {path.name} is not what the drawing code (version {DRAWING}) draws"


def list_files(folder: Path) -> list[str]:
    """Return the names of the pictures in `folder`, sorted; an absent folder has none."""
    try:
        return sorted(p.name for p in folder.iterdir() if p.suffix[1:] in FORMATS and not p.name.startswith("."))
    except OSError:
        return []
