"""What a cluster runs in place of a worker: it starts the worker as a process of its own and watches it.

So a worker is the same process whatever starts it, and its closed input tells it when the attendant is gone. The
attendant is pickled by value and needs only the standard library.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.2


@dataclass
class Attendant:
    """Runs worker processes until they end; it can be pickled and run again to continue.

    `commands` and `logs`: one for each worker; `stop`: the file with which the driver ends the sweep.
    """

    commands: list[list[str]]
    logs: list[str]
    cwd: str
    environment: dict[str, str]
    stop: str
    grace_s: float
    workers: list[Any] = field(default_factory=list)  # processes that were started
    codes: dict[int, int] = field(default_factory=dict)  # exit statuses by place

    def __call__(self) -> None:
        """Start the workers and wait for them. Raises RuntimeError if one was lost before the sweep was stopped."""
        for command, log in zip(self.commands, self.logs, strict=True):
            self.start(command, log)
        try:
            while len(self.codes) < len(self.workers):
                time.sleep(POLL_S)
        finally:
            self.end()
        if any(self.codes.values()) and not Path(self.stop).exists():
            raise RuntimeError(f"worker ended with status {', '.join(map(str, self.codes.values()))}")

    def start(self, command: list[str], log: str) -> None:
        """Start one worker, and a thread that waits for it.

        A signal may call `checkpoint` at any line of this thread, and waiting here could deadlock on a lock that
        this thread holds.
        """
        environment = {**os.environ, **self.environment}
        with open(log, "ab") as out:
            worker = subprocess.Popen(
                command,
                cwd=self.cwd,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(worker)
        threading.Thread(target=self.wait, args=(len(self.workers) - 1,), daemon=True).start()

    def wait(self, place: int) -> None:
        """Wait for a worker and keep its exit status."""
        self.codes[place] = self.workers[place].wait()

    def end(self) -> None:
        """Have the workers save checkpoints and end; kill those that take too long."""
        end = time.monotonic() + self.grace_s
        self.signal("terminate")
        while len(self.codes) < len(self.workers) and time.monotonic() < end:
            time.sleep(POLL_S)
        self.signal("kill")
        while len(self.codes) < len(self.workers):
            time.sleep(POLL_S)

    def signal(self, action: str) -> None:
        """Call `terminate` or `kill` on every worker that has not ended."""
        for place, worker in enumerate(self.workers):
            if place not in self.codes:
                getattr(worker, action)()

    def checkpoint(self) -> Any:
        """End the workers and return what submitit requeues when the job is pre-empted or its time is up."""
        from submitit.helpers import DelayedSubmission

        self.end()
        self.workers, self.codes = [], {}
        return DelayedSubmission(self)
