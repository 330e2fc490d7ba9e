"""What a cluster runs in place of a worker: it starts the worker as a process of its own and stays beside it.

So a worker is the same process whatever starts it, and hears by its closed input when the attendant is gone. It travels
to the cluster by value and needs the standard library only.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Attendant:
    """Runs worker processes to their ends; pickled, it can be run again, which goes on where they stopped.

    `commands` and `logs`: one of each for every worker; `stop`: the file by which the sweep's driver ends it.
    """

    commands: list[list[str]]
    logs: list[str]
    cwd: str
    environment: dict[str, str]
    stop: str
    grace_s: float
    workers: list[Any] = field(default_factory=list)

    def __call__(self) -> None:
        """Start the workers and wait for them. Raises RuntimeError where one was lost before the sweep was stopped."""
        self.workers = [self.start(command, log) for command, log in zip(self.commands, self.logs, strict=True)]
        try:
            codes = [worker.wait() for worker in self.workers]
        finally:
            self.end()
        if any(codes) and not Path(self.stop).exists():
            raise RuntimeError(f"worker ended with status {', '.join(map(str, codes))}")

    def start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        """Start one worker."""
        environment = {**os.environ, **self.environment}
        with open(log, "ab") as out:
            return subprocess.Popen(
                command,
                cwd=self.cwd,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> None:
        """Have the workers save checkpoints and end; kill those that take too long."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def checkpoint(self) -> Any:
        """Return what submitit queues again when the job is pre-empted or its time is up, after the workers ended."""
        from submitit.helpers import DelayedSubmission

        self.end()
        self.workers = []
        return DelayedSubmission(self)
