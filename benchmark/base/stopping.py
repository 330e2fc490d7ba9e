"""Asking a run to stop: at its next step and with a checkpoint, so that nothing is done twice."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SLICE_S = 0.1  # between two looks at whether a stop was asked for, while waiting


class Wish:
    """Whether this process was asked to stop. A plain flag: a signal handler must not wait for a lock."""

    asked = False


def ask_to_stop() -> None:
    """Have the run of this process save a checkpoint after its next step and end with KeyboardInterrupt."""
    Wish.asked = True


def stop_asked() -> bool:
    """Return whether this process was asked to stop."""
    return Wish.asked


def obey() -> None:
    """Raise KeyboardInterrupt where this process was asked to stop."""
    if Wish.asked:
        raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Wait; raises KeyboardInterrupt as soon as this process is asked to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        obey()
        time.sleep(min(left, SLICE_S))
    obey()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does; where this is not the main thread, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal like Ctrl-C."""
    raise KeyboardInterrupt
