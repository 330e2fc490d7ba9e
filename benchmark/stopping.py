"""Asking a run to stop: at its next step and with a checkpoint, so that nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
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


def leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle Ctrl-C while a command starts or ends: nothing is under way, and an import that is cut short says much."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # the launcher speaks for its ranks
        os.write(2, b"error: stopped\n")
    os._exit(130)


def take_ctrl_c(before: object, after: signal.Handlers | Callable[[int, FrameType | None], object]) -> None:
    """Have `after` handle Ctrl-C where `before` does; a handler of somebody else stays."""
    if signal.getsignal(signal.SIGINT) is before:
        signal.signal(signal.SIGINT, after)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal like Ctrl-C."""
    raise KeyboardInterrupt
