"""Asking a run to stop at its next step, with a checkpoint, so that no work is lost."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SLICE_S = 0.1  # between two checks for a stop while waiting
LOOK_S = 0.5  # between two looks for the file that ends the sweep
REPEAT_S = 1.0  # within which a signal is the one before
PATIENCE_S = 20.0  # from a request to stop until the run is interrupted, and again until the process exits


class Wish:
    """Whether this process was asked to stop. A plain flag: a signal handler must not wait for a lock."""

    asked = False
    interrupted = -float("inf")  # when it was last told to end


def ask_to_stop() -> None:
    """Have the run of this process save a checkpoint after its next step and end with KeyboardInterrupt."""
    Wish.asked = True


def stop_asked() -> bool:
    """Return whether this process was asked to stop."""
    return Wish.asked


def name_signal(number: int) -> str:
    """Return the name of the signal that ended a process, or its number: real-time ones have no name."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def obey() -> None:
    """Raise KeyboardInterrupt if this process was asked to stop."""
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
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does; outside the main thread, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal like Ctrl-C; once, where a group is told to end and a member hands it on."""
    before, Wish.interrupted = Wish.interrupted, time.monotonic()
    if Wish.interrupted - before > REPEAT_S:
        raise KeyboardInterrupt


def listen(stop: Path) -> None:
    """Have this process stop on SIGTERM, SIGINT and SIGUSR2, when the file `stop` appears or its input closes.

    A closed input tells a worker that whoever started it is gone, however that ended.
    """
    for name in ("SIGTERM", "SIGINT", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), on_signal)
    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    threading.Thread(target=watch, args=(stop,), daemon=True).start()


def on_signal(number: int, frame: FrameType | None) -> None:
    """Ask for a stop at the next step; when asked again by `watch`, stop at once."""
    if Overdue.now:
        raise KeyboardInterrupt
    ask_to_stop()


class Overdue:
    """Whether a requested stop is overdue."""

    now = False


def wait_for_end_of_input() -> None:
    """Ask for a stop when the other end of this process's input is closed."""
    try:
        while sys.stdin is not None and os.read(sys.stdin.fileno(), 4096):
            pass
    except (OSError, ValueError):
        return
    ask_to_stop()


def watch(stop: Path) -> None:
    """Look for the file `stop`; once a stop is requested in any way, make sure that the process ends."""
    while not stop_asked():
        if stop.exists():
            ask_to_stop()
        time.sleep(LOOK_S)
    time.sleep(PATIENCE_S)
    Overdue.now = True
    _thread.interrupt_main()
    time.sleep(PATIENCE_S)
    os._exit(130)
