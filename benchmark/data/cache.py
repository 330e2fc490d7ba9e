"""Files made from a folder of images, kept for the next start.

They lie in `.sparse-bench-cache` beside the folder or, where that isn't writable, in the user's cache (XDG_CACHE_HOME
or ~/.cache, `sparse-bench`). SPARSE_BENCH_CACHE=off keeps none, SPARSE_BENCH_CACHE=FOLDER keeps them there. A file's
name contains a hash of its source: the name, size and modification time of every image, the class names and the
decoder's version. When the source changes, the old files are removed. An image changed without changing its size and
time goes unnoticed: remove the cache by hand then.
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
LARGE = 100 * 2**20  # bytes: the user is told of larger files
FORMAT = 3  # raised whenever the same source would give another file
MADE = re.compile(r"(?P<stem>.+)\.(?P<kind>(?:decoded|resized)-\d+)\.(?P<source>[0-9a-f]{16})")

T = TypeVar("T")


class DamagedError(Exception):
    """A cached file is not what was written."""


def tell(text: str) -> None:
    """Print a line about the cache to stderr."""
    print(f"cache: {text}", file=sys.stderr, flush=True)


def list_places(folder: Path) -> list[tuple[Path, str]]:
    """Return the places for files made from `folder`, in order of preference, and the stem of their names there."""
    asked, folder = os.environ.get(VARIABLE, ""), folder.resolve()
    if asked == "off":
        return []
    distinct = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"  # names alone may clash
    if asked:
        return [(Path(_expand(asked)), distinct)]
    home = os.environ.get("XDG_CACHE_HOME") or _expand("~/.cache")
    beside, users = (folder.parent / CACHE, folder.name), (Path(home, "sparse-bench"), distinct)
    return [beside] if home.startswith("~") else [beside, users]


def hash_source(folder: Path, layout: Layout) -> str:
    """Return a hash, 16 hex digits, of all that determines the pixels of a folder's images, without reading one."""
    versions = [FORMAT, DECODER, PIL.__version__, features.version("jpg"), features.version("libjpeg_turbo")]
    digest = hashlib.sha256(repr([versions, layout.classes]).encode())
    for name, part in sorted(layout.parts().items()):
        for path, label in zip(part.paths, part.labels.tolist(), strict=True):
            found = os.stat(path)  # noqa: PTH116 (a million Paths would take twice as long)
            line = (name, path.removeprefix(f"{folder}{os.sep}"), label, found.st_size, found.st_mtime_ns)
            digest.update(f"{line!r}\n".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Slot:
    """A file of the cache, which may not exist yet.

    kind: decoded-SIZE or resized-SIZE. source: from `hash_source`, before any image is read, so that the file isn't
    found again if an image changes meanwhile.
    """

    folder: Path
    kind: str
    source: str

    def load(self, reader: Callable[[Path], T], maker: Callable[[Path | None], T | None]) -> T | None:
        """Return what `reader` makes of the file or, where there is none, what `maker` returns, which may write it.

        `maker` runs under the lock and gets the path that `write` takes.
        """
        found = self.read(reader)
        if found is not None:
            return found
        with self.building() as path:
            found = self.read(reader, silent=True)  # another process may have made it while this one waited
            return maker(path) if found is None else found

    def read(self, reader: Callable[[Path], T], silent: bool = False) -> T | None:
        """Return what `reader` makes of the file, or None where it is missing or damaged.

        `reader` raises DamagedError or OSError, which is printed unless `silent`.
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
        """Hold the lock under which files of this folder are made, waiting for other processes.

        Yields the file's path, or None, with a warning, where no place is writable.
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
        """Let `writer` write the file, atomically; return whether it succeeded. Call it inside `building`.

        A full disk costs the file, with a warning. Files made from earlier states of the folder are removed.
        """
        if path is None:
            return False
        stem = path.name.removesuffix(f".{self.kind}.{self.source}")
        temporary = path.with_name(f"{stem}.tmp")  # one name, under the lock: overwrites what a killed process left
        try:
            writer(temporary)
            temporary.chmod(0o644)  # for other users of the folder
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
    return os.path.expanduser(path)  # noqa: PTH111 (keeps an unknown home; Path would raise)


def _acquire(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that makes a file of the same folder ({lock.lock_file})")
        lock.acquire()
