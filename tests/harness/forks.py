"""Forked processes: children in place of new interpreters, whose imports take seconds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import benchmark.base.system
import benchmark.cli.app
import benchmark.cli.shell
from benchmark.config.plugins import built_in_names, find_method
from benchmark.runs.checkpoints import Saver
from benchmark.training.state import Training

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """A process that has imported everything and forks a child for each request. A context manager.

    It is a module run as a program, which calls `serve`. It has no threads and no GPU that a fork could break.
    """

    def __init__(self, module: str, *words: str) -> None:
        self.command = [sys.executable, "-m", module, *words]

    def __enter__(self) -> Any:
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.command, cwd=ROOT, env={**os.environ, **alone}, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, request: Any) -> Any:
        """Return the answer to a request; both go as a line of JSON."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def warm() -> None:
    """Import what every run needs, once; the checkout may change while the tests run."""
    torch.set_num_threads(1)
    for name in built_in_names():
        find_method(name)
    benchmark.base.system.code_of_process()


def serve(answer: Callable[[Any], Any], prepare: Callable[[], None] = warm) -> None:
    """Answer the requests that come from standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a child prints must not be taken for an answer
    prepare()
    gc.freeze()  # or every child would search, and so copy, all that was imported
    for line in sys.stdin:
        answers.write(f"{json.dumps(answer(json.loads(line)))}\n")
        answers.flush()


def save_every(steps: int) -> None:
    """Save at each n-th step and each epoch's end; a real Saver waits until twenty times its cost is over."""

    def save_often(saver: Saver, run: Training) -> None:
        if run.step % steps == 0 or not run.epoch_step:
            saver.save(run)

    Saver.__call__ = save_often  # type: ignore[method-assign]


def fork(action: Any) -> int:
    """Run `action` in a forked child, which exits with what it returns; return the child's number."""
    child = os.fork()
    if not child:
        status = 99
        try:
            status = action()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def be_reaper() -> None:
    """Become the parent of orphans: workers whose driver was killed are waited for, and never left behind."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def list_children(process: int) -> list[int]:
    """Return the numbers of a process's children."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


class Forks:
    """Stands in for `subprocess` in the local engine: workers are forked, for a new interpreter takes seconds."""

    PIPE, STDOUT = -1, -2

    def __init__(self) -> None:
        self.inputs: list[int] = []  # of all workers that this process has started

    def Popen(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> Fork:  # noqa: N802
        """Start a worker; `command` ends with `worker SPEC NUMBER`."""
        take, give = os.pipe()
        self.inputs.append(give)
        words = command[command.index("worker") :]
        # Until it is as a new interpreter would be, a signal must not meet the handler that the driver has set.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        child = fork(lambda: self.work(words, take, stdout.fileno(), env))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.close(take)
        return Fork(child)

    def work(self, words: list[str], take: int, log: int, env: dict[str, str]) -> int:
        """Be a worker."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setsid()
        for old, new in ((take, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        sys.stdin = os.fdopen(0)
        for give in self.inputs:
            os.close(give)  # or no worker would hear that the driver is gone
        os.environ.update(env)
        sys.argv = ["sparse-bench", *words]
        try:
            benchmark.cli.app.main()
        except SystemExit as ending:
            return ending.code if isinstance(ending.code, int) else 0
        return 0


class Fork:
    """A forked worker as the local engine wants it."""

    def __init__(self, child: int) -> None:
        self.child = child
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        if self.code is None:
            found, status = os.waitpid(self.child, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code

    def wait(self) -> None:
        """Wait for its end."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])

    def terminate(self) -> None:
        """Ask it to stop."""
        os.kill(self.child, signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        os.kill(self.child, signal.SIGKILL)
