"""Files made from a folder of images, kept so that the next start need not make them again.

They lie in `.sparse-bench-cache` beside the folder or, where that can't be written, in the user's cache
(XDG_CACHE_HOME or ~/.cache, `sparse-bench`). SPARSE_BENCH_CACHE=off keeps none, SPARSE_BENCH_CACHE=FOLDER keeps them
there. A file's name holds a hash of its source: every image's name, size and time of change, the class names and the
decoder's version. Another source is another name, and the files made from the one before are then removed. An image
whose content was changed under the same size and time can't be noticed: remove the cache by hand after such a change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import PIL
from filelock import FileLock, Timeout
from PIL import features

from benchmark.data.files import CACHE, DECODER, Layout

VARIABLE = "SPARSE_BENCH_CACHE"
LARGE = 100 * 2**20  # bytes: a file that its owner wants to know of
FORMAT = 3  # raised whenever the same source would give another file
MADE = re.compile(r"(?P<stem>.+)\.(?P<kind>(?:decoded|resized)-\d+)\.(?P<source>[0-9a-f]{16})")

T = TypeVar("T")


class DamagedError(Exception):
    """A file of the cache is not what was written."""


def tell(text: str) -> None:
    """Print a line about the cache where it disturbs no result."""
    print(f"cache: {text}", file=sys.stderr, flush=True)


def list_places(folder: Path) -> list[tuple[Path, str]]:
    """Return where files made from `folder` may lie, and the stem of their names there, in order of preference."""
    asked, folder = os.environ.get(VARIABLE, ""), folder.resolve()
    if asked == "off":
        return []
    distinct = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"  # two may have the same name
    if asked:
        return [(Path(_expand(asked)), distinct)]
    home = os.environ.get("XDG_CACHE_HOME") or _expand("~/.cache")
    beside, users = (folder.parent / CACHE, folder.name), (Path(home, "sparse-bench"), distinct)
    return [beside] if home.startswith("~") else [beside, users]


def hash_source(folder: Path, layout: Layout) -> str:
    """Return 16 hexadecimal digits of all that decides the pixels of a folder's images, without reading one."""
    versions = [FORMAT, DECODER, PIL.__version__, features.version("jpg"), features.version("libjpeg_turbo")]
    digest = hashlib.sha256(repr([versions, layout.classes]).encode())
    for name, part in sorted(layout.parts().items()):
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            found = os.stat(path)  # noqa: PTH116 (of a million files, each a Path, takes twice as long)
            line = (name, path.removeprefix(f"{folder}{os.sep}"), label, found.st_size, found.st_mtime_ns)
            digest.update(f"{line!r}\n".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Slot:
    """One file of the cache, which may not be there yet: what it was made from, and what it is.

    `kind`: decoded-SIZE or resized-SIZE. `source`: as `hash_source` gives it, taken before any image is read, so that
    an image changed meanwhile makes the file one that is not found again.
    """

    folder: Path
    kind: str
    source: str

    def read(self, reader: Callable[[Path], T], silent: bool = False) -> T | None:
        """Return what `reader` makes of the file, or None where there is none or it is damaged.

        `reader` raises DamagedError or OSError. A file that is not used is told in one line, unless `silent`.
        """
        for place, stem in list_places(self.folder):
            path = place / f"{stem}.{self.kind}.{self.source}"
            try:
                return reader(path)
            except FileNotFoundError:
                continue
            except (DamagedError, OSError) as error:
                if not silent:
                    tell(f"{path} is not used: {error}")
        return None

    @contextlib.contextmanager
    def building(self) -> Iterator[Path | None]:
        """Hold the lock under which the file is made, waiting for another process that makes one of this folder.

        Gives the file's path, or None, which is told, where no place can be written.
        """
        reasons = []
        for place, stem in list_places(self.folder):
            lock = FileLock(place / f"{stem}.lock")
            try:
                place.mkdir(parents=True, exist_ok=True)
                _acquire(lock)
            except (OSError, NotImplementedError) as error:  # read-only, full, or without locks
                reasons.append(f"{place}: {getattr(error, 'strerror', None) or error}")
                continue
            try:
                yield place / f"{stem}.{self.kind}.{self.source}"
            finally:
                lock.release()
            return
        if reasons:
            tell(f"none is kept, so the next start will be as slow as this one ({'; '.join(reasons)})")
        yield None

    def write(self, path: Path | None, writer: Callable[[Path], None]) -> bool:
        """Let `writer` fill a file and put it at `path` whole; return whether it is there. Call within `building`.

        A full disk costs the file, told in one line. Files made from this folder in another state are removed.
        """
        if path is None:
            return False
        stem = path.name.removesuffix(f".{self.kind}.{self.source}")
        temporary = path.with_name(f"{stem}.tmp")  # one name, under the lock: what a killed builder left is overwritten
        try:
            writer(temporary)
            temporary.chmod(0o644)  # other users of the same folder may read it
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            tell(f"{path} was not written: {error.strerror or error}")
            return False
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._remove_older(path.parent, stem)
        if path.stat().st_size >= LARGE:
            tell(f"{path} was written ({path.stat().st_size / 2**20:,.0f} MiB); {VARIABLE}=off keeps none")
        return True

    def _remove_older(self, place: Path, stem: str) -> None:
        for path in place.iterdir():
            made = MADE.fullmatch(path.name)
            if made and made["stem"] == stem and made["source"] != self.source:
                with contextlib.suppress(OSError):
                    path.unlink()
                    tell(f"{path} was removed: its images, or the decoder, have changed since")


def _expand(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 (leaves a home that it does not know; Path would raise)


def _acquire(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"another process makes a file of the same folder: waiting for it ({lock.lock_file})")
        lock.acquire()
