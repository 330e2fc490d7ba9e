"""Several runs on one card: on streams of one process, and as processes of their own."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from functools import partial

import torch

from benchmark.base import BOOT, ROOT
from benchmark.base.system import choose_device, use_device
from benchmark.base.timing import median_ratio, milliseconds
from benchmark.perf import pool
from benchmark.perf.gpu_claims import NotHereError, Sheet
from benchmark.perf.gpu_runs import R20, Bench, Steps, has_graphs, synchronise, time_on

RUNS = 4
START = BOOT.partition("from ")[0] + "from benchmark.perf.gpu_sharing import serve; serve()"


def check_sharing(sheet: Sheet, device: torch.device) -> None:
    """Train four ResNet-20 at once, on streams and in processes, against one."""
    if device.type == "cpu":
        raise NotHereError("runs share a card, and this is a CPU (`make perf` has processes on one)")
    if has_graphs(device):
        sheet.do("streams")
        share_streams(sheet, device)
    sheet.do("processes")
    share_processes(sheet, device)


def share_streams(sheet: Sheet, device: torch.device) -> None:
    """Time four runs in turn on a stream each, whole steps and the recorded passes alone."""
    bench = Bench(R20, device, sheet.quick)
    runs = [Steps(bench.begin(graphs=True)) for _ in range(RUNS)]
    streams = [torch.cuda.Stream() for _ in runs]

    def together(passes: bool) -> None:
        for stream, steps in zip(streams, runs, strict=True):
            with torch.cuda.stream(stream):
                replay(steps) if passes else steps()

    def replay(steps: Steps) -> None:
        assert steps.run.graphed is not None and steps.run.graphed.recording is not None
        steps.run.graphed.recording.replay()

    times = time_on(
        device,
        {
            "one": runs[0],
            "four": partial(together, False),
            "one, passes alone": lambda: replay(runs[0]),
            "four, passes alone": partial(together, True),
        },
        sheet.quick,
    )
    gain = RUNS * median_ratio(times["one"], times["four"])
    sheet.tell("G3", f"ResNet-20: {RUNS} runs on streams / one, images a second", gain, "x", milliseconds(times))
    alone = RUNS * median_ratio(times["one, passes alone"], times["four, passes alone"])
    sheet.tell("G3", f"ResNet-20: {RUNS} runs on streams / one, recorded passes alone", alone)


def serve() -> None:
    """Train ResNet-20 for as many seconds as each line of stdin says; print steps per wall and processor second."""
    device = choose_device(os.environ["GPU_CHECK_DEVICE"])
    use_device(device)
    torch.set_num_threads(1)
    quick = bool(os.environ.get("GPU_CHECK_QUICK"))
    steps = Steps(Bench(R20, device, quick).begin(graphs=has_graphs(device)))
    for line in itertools.chain(["0"], sys.stdin):
        synchronise(device)
        began, busy, done = time.monotonic(), time.process_time(), 0
        while done == 0 or time.monotonic() - began < float(line):
            steps()
            done += 1
            if done % 10 == 0:
                synchronise(device)  # or the host would queue seconds of work
        synchronise(device)
        print(done / (time.monotonic() - began), done / max(1e-9, time.process_time() - busy), flush=True)


def share_processes(sheet: Sheet, device: torch.device) -> None:
    """Train in one process, then in four at once, in turn; tell how many more images a second four make."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPU_CHECK_DEVICE": str(device)}
    environment["GPU_CHECK_QUICK"] = "1" if sheet.quick else ""
    command = [sys.executable, "-c", START, str(ROOT)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(command, **options) for _ in range(RUNS)]  # type: ignore[call-overload]
    try:
        for process in processes:  # the first step of each warms up
            pool.listen(process)
        seconds, alone, together = 0.2 if sheet.quick else 1.5, [], []
        for _ in range(2 if sheet.quick else 4):
            alone.append(pool.train(processes[:1], seconds)[0])
            together.append(pool.train(processes, seconds)[0])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    gain = statistics.median(many / one for one, many in zip(alone, together, strict=True))
    details = {"steps a second, one": round(statistics.median(alone), 1)}
    sheet.tell("G3", f"ResNet-20: {RUNS} processes / one, images a second", gain, "x", details)
