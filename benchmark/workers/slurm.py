"""Slurm workers: job arrays, through submitit; pre-empted jobs save a checkpoint and requeue."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmark.base.errors import UserError
from benchmark.workers import attendant
from benchmark.workers.base import ENDED, GRACE_S, LOST, QUEUED, RUNNING, Order, Pool, Status, require

NEEDS = "submitit"
SETTINGS: dict[str, Callable[[str], Any]] = {
    "partition": str,
    "account": str,
    "qos": str,
    "constraint": str,
    "time_min": int,
    "gpus": int,
    "cpus": int,
    "mem_gb": float,
    "parallel": int,
    "cluster": str,
}
SLURM_ONLY = {"partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
              "parallel": "array_parallelism"}  # fmt: skip
USUAL_MIN = 24 * 60  # a job's time limit, at which the workers save and the job requeues
MOST_REQUEUES = 1000
SIGNAL_S = 90  # before its time limit that a job is signalled
POLL_S = 1.0
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SUSPENDED", "UNKNOWN",
           "PREEMPTED", "READY"}  # fmt: skip
GOING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"}


def open_workers(pool: Pool, device: str) -> Slurm:
    """Return the workers. Raises UserError if Slurm is not available here, or PER_GPU is asked for without a GPU."""
    submitit = require("submitit")
    settings = pool.settings()
    cluster = settings.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UserError(f"WORKERS_ARGS: cluster must be slurm, or local to try jobs on this machine, got '{cluster}'")
    if cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
        raise UserError("WORKERS=slurm: there is no srun here; start the sweep on a node that submits jobs")
    if device == "cpu":
        settings["gpus"] = 0
    elif device != "auto":
        settings.setdefault("gpus", 1)
    if settings.get("gpus", 0) > 1:
        raise UserError(
            f"WORKERS_ARGS: gpus must be 0 or 1, since a job's workers use one GPU, got {settings['gpus']}: ask for "
            "more jobs with JOBS="
        )
    if pool.per_gpu > 1 and not settings.get("gpus"):
        raise UserError(f"PER_GPU={pool.per_gpu} needs a GPU for each job: give WORKERS_ARGS='gpus=1', or leave it out")
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return Slurm(submitit, pool, settings, cluster)


class Slurm:
    """Workers in jobs, PER_GPU in each. A job continues if the driver is killed; only a driver stops it."""

    def __init__(self, submitit: Any, pool: Pool, settings: dict[str, Any], cluster: str) -> None:
        self.submitit, self.pool, self.settings, self.cluster = submitit, pool, settings, cluster
        self.jobs: list[tuple[list[int], Any]] = []  # the workers of each

    def capacity(self) -> int:
        """Raise UserError: a queue takes any number of workers."""
        raise UserError("JOBS=auto: a queue has no fixed number of workers; give one with JOBS=")

    def executor(self, order: Order) -> Any:
        """Return submitit's executor with the job's settings."""
        more = {"slurm_max_num_timeout": MOST_REQUEUES} if self.cluster == "slurm" else {}
        executor = self.submitit.AutoExecutor(order.book.folder / "submitit", cluster=self.cluster, **more)
        parameters: dict[str, Any] = {
            "name": "sparse-bench",
            "timeout_min": self.settings.get("time_min", USUAL_MIN),
            "gpus_per_node": self.settings.get("gpus", 0),
            "cpus_per_task": self.settings.get("cpus", self.pool.per_gpu),
            "slurm_signal_delay_s": SIGNAL_S,
        }
        if "mem_gb" in self.settings:
            parameters["mem_gb"] = self.settings["mem_gb"]
        parameters |= {f"slurm_{SLURM_ONLY[key]}": value for key, value in self.settings.items() if key in SLURM_ONLY}
        executor.update_parameters(**parameters)
        return executor

    def start(self, order: Order, numbers: Sequence[int]) -> None:
        """Submit an array of jobs. Raises UserError if Slurm refuses it."""
        from cloudpickle import register_pickle_by_value

        register_pickle_by_value(attendant)
        size = self.pool.per_gpu
        parts = [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]
        executor = self.executor(order)
        try:
            with executor.batch():
                jobs = [executor.submit(order.attend(part, min(GRACE_S, SIGNAL_S / 2))) for part in parts]
        except Exception as error:  # submitit passes on sbatch's message in several kinds of errors
            raise UserError(f"WORKERS=slurm: the jobs were refused: {error}") from error
        self.jobs += zip(parts, jobs, strict=True)

    def poll(self) -> dict[int, Status]:
        """Return the status of each worker's job."""
        return {number: status for part, job in self.jobs for number in part for status in [self.status_of(job)]}

    def status_of(self, job: Any) -> Status:
        """Return the status of a job."""
        if not job.done():
            state = str(job.state).upper()
            if state in GOING:
                return Status(RUNNING)
            return Status(QUEUED) if state in WAITING else Status(LOST, f"job {job.job_id} {state}")
        try:
            job.result()
        except Exception as error:
            return Status(LOST, f"job {job.job_id}: {str(error).strip().splitlines()[-1]}")
        return Status(ENDED)

    def stop(self, grace_s: float) -> None:
        """Cancel waiting jobs, let the others end, and cancel those that take too long."""
        end = time.monotonic() + grace_s
        try:
            for _, job in self.jobs:
                if self.status_of(job).state == QUEUED:
                    job.cancel(check=False)
            while time.monotonic() < end and any(status.state == RUNNING for status in self.poll().values()):
                time.sleep(POLL_S)
        finally:
            for _, job in self.jobs:
                with contextlib.suppress(Exception):
                    if not job.done():
                        job.cancel(check=False)
