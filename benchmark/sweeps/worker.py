"""One worker of a sweep: the same grid as all others, the first cell that no other holds, until none is left."""

from __future__ import annotations

import _thread
import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from benchmark.engines import Order
from benchmark.engines.book import SPEC, STOP, Book
from benchmark.environment import choose_device
from benchmark.errors import UserError
from benchmark.notes import write_note
from benchmark.places import Places, expand_home
from benchmark.planning.gridfile import Grid
from benchmark.planning.source import Source
from benchmark.run import Options
from benchmark.stopping import ask_to_stop, stop_asked

LOOK_S = 0.5  # between two looks for the file that ends the sweep
PATIENCE_S = 20.0  # from being asked to stop until a run is stopped wherever it is, and again until the process ends
# What torch and its libraries read at their start. Of several processes, each is fastest on one thread.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def write_order(book: Book, source: Source, options: Options, device: str, data_root: Path) -> Order:
    """Write down what the workers of a sweep are to do and return the order to start them with.

    `device` is what the user asked: `auto` is decided where the worker runs.
    """
    places = {key: str(path.resolve()) for key, path in dataclasses.asdict(options.places).items()}
    content = {
        "source": source.as_dict(),
        "cells": fingerprint(source.grid()),
        "device": device,
        "data": str(expand_home(data_root).resolve()),
        "wandb": options.wandb,
        "checkpoint_s": options.checkpoint_s,
        "command": options.command,
        "places": places,
        "retries": book.retries,
    }
    write_note(book.folder / SPEC, content)
    environment = {key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()}
    if options.device.type == "cuda" and "OMP_NUM_THREADS" not in os.environ:
        del environment["OMP_NUM_THREADS"]  # a GPU's host thread may use what it likes
    resolved = Book(book.folder.resolve(), book.retries, known=book.known)
    return Order(resolved, str(Path.cwd()), environment)


def fingerprint(grid: Grid) -> str:
    """Return a hash of which cells a grid has."""
    names = json.dumps([item.cell.identity for item in grid.items])
    return hashlib.sha256(names.encode()).hexdigest()


def work(spec: Path, number: int, console: Console, tell: Callable[[object], None]) -> None:
    """Run a sweep's cells as its worker `number`. Raises UserError where the code gives others here."""
    from benchmark.sweeps.sweep import Sweep

    listen(spec.parent / STOP)
    content: dict[str, Any] = json.loads(spec.read_text())
    grid = Source(**content["source"]).grid()
    if fingerprint(grid) != content["cells"]:
        raise UserError(f"{spec}: the methods, pages or code have changed since this sweep began: start it again")
    places = Places(**{key: Path(path) for key, path in content["places"].items()})
    options = Options(
        device=choose_device(content["device"]),
        wandb=content["wandb"],
        checkpoint_s=content["checkpoint_s"],
        command=content["command"],
        places=places,
    )
    console.print(f"worker {number}, process {os.getpid()}, {torch.get_num_threads()} thread(s)", highlight=False)
    book = Book(spec.parent, content["retries"], number)
    Sweep(grid, Path(content["data"]), options, book, console, tell).run()


def listen(stop: Path) -> None:
    """Have this process stop on SIGTERM, SIGINT and SIGUSR2, when the file `stop` appears and when its input closes.

    The last is how a worker hears that whoever started it is gone, however that ended.
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
    """Whether a stop that was asked for has been waited for long enough."""

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
    """Look for the file `stop`; after a stop was asked for, by whatever, see to it that the process ends."""
    while not stop_asked():
        if stop.exists():
            ask_to_stop()
        time.sleep(LOOK_S)
    time.sleep(PATIENCE_S)
    Overdue.now = True
    _thread.interrupt_main()
    time.sleep(PATIENCE_S)
    os._exit(130)
