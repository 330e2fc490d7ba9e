"""Whole epochs on a device, through the engine's own loop: their time, the waits of the host, the memory they take."""

from __future__ import annotations

import gc
import itertools
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmark.base import ROOT
from benchmark.grids.memory import work_out_memory
from benchmark.perf.gpu_claims import NotHereError, Sheet
from benchmark.perf.gpu_runs import R20, Bench, Net, Steps, has_graphs, nets, seconds_of, train_for
from benchmark.training.state import Training

IMAGES = 50_000  # CIFAR-10's
Places = Counter[str]  # how often the host waited, by file and line


def check_epochs(sheet: Sheet, device: torch.device) -> None:
    """Time epochs as the engine accounts for them: images, steps and updates, no evaluation."""
    for net in nets(sheet.quick):
        sheet.do(net.label)
        bench = Bench(net, device, sheet.quick, images=IMAGES, eval_every=1000)
        medians = {"eager": time_epochs(bench, False)}
        if has_graphs(device):
            medians["graphed"] = time_epochs(bench, True)
        details = {**{how: round(value, 3) for how, value in medians.items()}, "images": len(bench.data.train)}
        sheet.tell("G2", f"{net.label}: an epoch of {IMAGES:,} images", min(medians.values()), "s", details)


def time_epochs(bench: Bench, graphs: bool) -> float:
    """Return the median seconds of an epoch, the first left out: kernels are chosen and graphs recorded in it."""
    ends: list[float] = []
    train_for(bench.begin(graphs=graphs), epochs=4, after_epoch=lambda run: ends.append(run.train_s))
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


@contextmanager
def count_cuda_waits() -> Iterator[Callable[[], Places]]:
    """Yield what returns all waits so far, as CUDA's own watch in torch tells them."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: Counter(
                place(warning.filename, warning.lineno)
                for warning in seen
                if "called a synchronizing" in str(warning.message)
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")


def place(filename: str, line: int) -> str:
    """Return a place in the code, relative to the suite where it lies there."""
    path = Path(filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{line}"


# By kind of device: what counts the host's waits.
COUNTERS: dict[str, Callable[[], AbstractContextManager[Callable[[], Places]]]] = {"cuda": count_cuda_waits}


def check_waits(sheet: Sheet, device: torch.device) -> None:
    """Count how often the host waits in the steps of an epoch: in ordinary ones never."""
    if device.type not in COUNTERS:
        raise NotHereError(f"a {device.type} has no count of the host's waits")
    bench = Bench(R20, device, sheet.quick, batches=12, update_every=5, drop_last=True)
    run = bench.begin()
    due = set(run.method.update_steps(run.timeline))
    per_epoch = run.timeline.steps_per_epoch
    ordinary: list[Places] = []
    at_updates: list[Places] = []
    with COUNTERS[device.type]() as count:
        before: Places = Counter()

        def watch(run: Training) -> None:
            nonlocal before
            now = count()
            if run.epoch and run.step % per_epoch != 1:  # the first of an epoch comes with its images
                (at_updates if run.step in due else ordinary).append(now - before)
            before = now

        train_for(run, epochs=3, after_step=watch)
    for what, steps in {"an ordinary step": ordinary, "a mask update": at_updates}.items():
        most = max(steps, key=lambda places: sum(places.values()))
        sheet.tell("P12", f"waits of the host in {what}", sum(most.values()), "", {"steps": len(steps), **most})
    if device.type == "cuda":
        sheet.do("steps in the profiler")
        profile_steps(sheet, bench)


def profile_steps(sheet: Sheet, bench: Bench) -> None:
    """Count in the profiler what the host asks of the device in a step: launches, and waits once more."""
    for how, graphs in {"eager": False, "graphed": True}.items():
        steps = Steps(bench.begin(graphs=graphs))
        seconds_of(bench.device, steps, 3)
        few, many = (count_calls(bench, steps, times) for times in (5, 15))
        calls = {name: (many[name] - few[name]) / 10 for name in many}
        waits = sum(calls.get(name, 0) for name in ("cudaStreamSynchronize", "cudaEventSynchronize"))
        shown = {name: value for name, value in calls.items() if value > 0}
        sheet.tell("P12", f"waits in a step by the profiler, {how}", waits, "", shown)


def count_calls(bench: Bench, steps: Steps, times: int) -> Counter[str]:
    """Return how often each function of CUDA's runtime was called in so many steps."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        seconds_of(bench.device, steps, times)
    return Counter({e.key: e.count for e in profiler.key_averages() if e.key.startswith(("cuda", "cu", "Memcpy"))})


def check_memory(sheet: Sheet, device: torch.device) -> None:
    """Compare the peak of a run's memory, through steps, an update and an evaluation, with what the plan says."""
    if device.type != "cuda":
        raise NotHereError(f"torch counts no memory of a {device.type}")
    for net in nets(sheet.quick):
        sheet.do(net.label)
        compare_memory(sheet, device, net)


def compare_memory(sheet: Sheet, device: torch.device, net: Net) -> None:
    """Train an epoch of one network and tell its peak as a share of what was planned."""
    bench = Bench(net, device, sheet.quick, batches=12, update_every=5)
    planned = work_out_memory(bench.cell.page, bench.data, bench.built, device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train_for(bench.begin(), epochs=1)
    peak = torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()  # the context and libraries; other processes count too
    sizes = {"peak": peak, "context": beside, "planned": planned.total, "planned context": planned.process}
    shown = {f"{name} GiB": round(size / 2**30, 3) for name, size in sizes.items()}
    sheet.tell("plan", f"{net.label}: memory of a run / what was planned", (peak + beside) / planned.total, "x", shown)
