"""Forked processes: children in place of new interpreters, whose imports take seconds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import benchmark.cli.app
import benchmark.cli.shell


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
