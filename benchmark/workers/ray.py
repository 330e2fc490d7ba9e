"""Ray workers: tasks of a Ray cluster, an existing one or one started here."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmark.base.errors import UserError
from benchmark.workers import attendant
from benchmark.workers.base import ENDED, GRACE_S, LOST, RUNNING, Order, Pool, Status, require

NEEDS = "ray"
SETTINGS: dict[str, Callable[[str], Any]] = {"address": str, "cpus": float}
CONNECT_S, HEALTH_S = 5.0, 18.0  # for a cluster to answer: under half a minute together
POLL_S = 0.2


def open_workers(pool: Pool, device: str) -> Ray:
    """Connect to the cluster, or start one. Raises UserError if it does not answer or lacks GPUs."""
    ray = require("ray")
    settings = pool.settings()
    connect(ray, settings.get("address", "local"))
    gpus = 0.0 if device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
    if not gpus and (device not in ("auto", "cpu") or pool.per_gpu > 1):
        ray.shutdown()
        asked = f"PER_GPU={pool.per_gpu}" if pool.per_gpu > 1 else f"DEVICE={device}"
        raise UserError(f"{asked} needs GPUs, and the runs of this Ray cluster would be on CPUs: it has none to give")
    return Ray(ray, pool, settings.get("cpus", 1.0), bool(gpus))


def connect(ray: Any, address: str) -> None:
    """Connect this process to the cluster at `address`: `local` starts one, `auto` finds one, else host:port.

    Raises UserError, within half a minute, if there is none.
    """
    way_out = "leave WORKERS_ARGS=address out to start one here, or start one with `ray start --head`"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address not in ("local", "auto"):
        if not host or not port.isdigit():
            raise UserError(f"WORKERS_ARGS: address must be auto, host:port or ray://host:port, got '{address}'")
        check_health(host.strip("[]"), int(port), address.startswith("ray://"), way_out)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **{"include_dashboard": False}
                 if address == "local" else {})  # fmt: skip
    except Exception as error:  # Ray raises many kinds
        raise UserError(f"no Ray cluster at address={address} ({str(error).splitlines()[0]}): {way_out}") from error


def check_health(host: str, port: int, client: bool, way_out: str) -> None:
    """Raise UserError if no Ray cluster answers at host and port; `client`: ask its client server."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at address={host}:{port} ({error}): {way_out}") from error
    component = ["--component", "ray_client_server"] if client else []
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}", *component]
    try:
        subprocess.run(command, capture_output=True, timeout=HEALTH_S, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise UserError(f"what answers at {host}:{port} is not a healthy Ray cluster: {way_out}") from error


class Ray:
    """Workers as Ray tasks: Ray places them, restarts lost ones, and gives each its share of a GPU."""

    def __init__(self, ray: Any, pool: Pool, cpus: float, gpus: bool) -> None:
        self.ray, self.pool, self.cpus = ray, pool, cpus
        self.share = 1 / pool.per_gpu if gpus else 0.0  # of a GPU, for each worker
        self.tasks: dict[int, Any] = {}

    def capacity(self) -> int:
        """Return how many workers the cluster has room for now."""
        there = self.ray.cluster_resources()
        room = there.get("CPU", 1.0) / self.cpus if self.cpus else float("inf")
        return max(1, int(min(room, there["GPU"] / self.share if self.share else room)))

    def start(self, order: Order, numbers: Sequence[int]) -> None:
        """Submit tasks, which Ray retries if their node or process is lost."""
        self.ray.cloudpickle.register_pickle_by_value(attendant)
        options = {"num_cpus": self.cpus, "num_gpus": self.share, "max_retries": self.pool.retries}
        for number in numbers:
            task = self.ray.remote(lambda job: job()).options(retry_exceptions=True, name=f"worker-{number}", **options)
            self.tasks[number] = task.remote(order.attend([number], GRACE_S))

    def poll(self) -> dict[int, Status]:
        """Return the status of the tasks; waiting ones count as running, because Ray does not tell them apart here."""
        ready = set(self.ray.wait(list(self.tasks.values()), num_returns=len(self.tasks), timeout=0)[0])
        return {
            number: self.status_of(task) if task in ready else Status(RUNNING) for number, task in self.tasks.items()
        }

    def status_of(self, task: Any) -> Status:
        """Return the status of a task that has ended."""
        try:
            self.ray.get(task)
        except Exception as error:
            return Status(LOST, str(error).strip().splitlines()[-1])
        return Status(ENDED)

    def stop(self, grace_s: float) -> None:
        """Wait for the tasks, cancel the rest, and disconnect; a cluster that was started here ends."""
        end = time.monotonic() + grace_s
        try:
            while time.monotonic() < end and any(status.state == RUNNING for status in self.poll().values()):
                time.sleep(POLL_S)
        finally:
            for task in self.tasks.values():
                with contextlib.suppress(Exception):
                    self.ray.cancel(task, force=True)
            self.ray.shutdown()
