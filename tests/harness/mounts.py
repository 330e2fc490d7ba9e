"""File systems of a test's own: a small one to fill, a folder that is read-only for a while. Needs Linux and root."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

NEW_NAMESPACE = 0x20000  # CLONE_NEWNS
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
LAZY = 2  # MNT_DETACH
PATIENCE_S = 0.5  # for a file that someone is writing on a folder that is to be read-only


class Mounts:
    """Mounts that this process and those forked from it see, and that vanish with them."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.available = self.separate()

    def separate(self) -> bool:
        """Leave the mount namespace of the machine; return whether that is allowed here."""
        try:
            if self.libc.unshare(NEW_NAMESPACE):
                return False
            return not self.libc.mount(b"none", b"/", None, ctypes.c_ulong(RECURSIVE | PRIVATE), None)
        except AttributeError:  # not Linux
            return False

    def mount(self, source: Path | str, target: Path, kind: str, flags: int, options: str = "") -> None:
        """Mount; raises OSError."""
        words = [os.fsencode(source), os.fsencode(target), kind.encode()]
        if self.libc.mount(*words, ctypes.c_ulong(flags), options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(target))

    def make_small(self, folder: Path, mebibytes: int) -> None:
        """Put an empty file system of this size on a folder."""
        self.mount("tmpfs", folder, "tmpfs", 0, f"size={mebibytes}m")

    def make_read_only(self, folder: Path) -> bool:
        """Make a folder read-only; return False where files in it stay open for writing too long."""
        self.mount(folder, folder, "none", BIND)
        patience = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.mount("none", folder, "none", BIND | REMOUNT | READ_ONLY)
                return True
            except OSError:
                if time.monotonic() > patience:
                    self.release(folder)
                    return False
                time.sleep(0.002)

    def release(self, folder: Path) -> None:
        """Take away what was mounted last on a folder."""
        self.libc.umount2(os.fsencode(folder), LAZY)
