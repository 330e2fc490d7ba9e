"""What a run takes of the machine: memory, energy, the GPU's time. What cannot be known is absent, never zero."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")
EVERY_S = 2.0  # between two readings; RAPL's counters start over after minutes


def read_number(path: Path) -> int | None:
    """Return the whole number in a file of the system; None where there is none or it may not be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# Memory


def read_process_peak(process: Path = Path("/proc/self")) -> int | None:
    """Return the most memory that this process has held, in bytes: since `forget_process_peak`, or since it began."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    if sys.platform == "darwin":  # where it is in bytes
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def forget_process_peak(process: Path = Path("/proc/self")) -> bool:
    """Let the peak of this process's memory begin with what it holds now; return whether the system could."""
    try:
        (process / "clear_refs").write_text("5")  # see proc(5); Linux alone
    except OSError:
        return False
    return True


def ask_allocator(device: torch.device, question: str, *about: Any) -> Any:
    """Return what torch's allocator for the device answers, None where it has no such function.

    It counts on the host: nothing waits for the device.
    """
    try:
        return getattr(torch.get_device_module(device), question)(*about)
    except (AttributeError, RuntimeError, NotImplementedError, ImportError):
        return None


def read_device_peak(device: torch.device) -> int | None:
    """Return the most memory that torch has taken from the device, in bytes; a GPU's context is not in it."""
    found = ask_allocator(device, "max_memory_reserved", device)
    return found if isinstance(found, int) and found > 0 else None


def forget_device_peak(device: torch.device) -> None:
    """Let the peak of the device's memory begin now, without what earlier runs of this process left in the cache."""
    if read_device_peak(device) is not None:
        gc.collect()  # a run before this one may be in a cycle, and would hold its memory
        ask_allocator(device, "empty_cache")
        ask_allocator(device, "reset_peak_memory_stats", device)


# Energy and time of the GPU


class Source(Protocol):
    """Where energy is told. `of`: what it is the energy of, and who tells."""

    of: str

    def spend(self) -> float | None:
        """Return the joules since the last call, None where they cannot be known."""

    def look(self) -> tuple[float | None, int | None]:
        """Return the share of time at work just now, in per cent, and the number of processes; None where unknown."""


class Rapl:
    """The energy of all processor packages by Intel's or AMD's counters, the whole machine's.

    `counters`: the counter files, each with the number of µJ at which it starts over.
    """

    def __init__(self, counters: Mapping[Path, int]) -> None:
        self.ranges = dict(counters)
        self.last = {path: read_number(path) for path in counters}
        number = len(counters)
        self.of = f"{number} processor package{'' if number == 1 else 's'} (whole machine), RAPL"

    def spend(self) -> float | None:
        """Return the joules since the last call, None where a counter could not be read.

        Right as long as a counter starts over at most once between two calls.
        """
        before, self.last = self.last, {path: read_number(path) for path in self.ranges}
        spent = 0
        for path, reach in self.ranges.items():
            first, now = before[path], self.last[path]
            if first is None or now is None:
                return None
            spent += now - first if now >= first else now - first + reach
        return spent / 1e6

    def look(self) -> tuple[None, None]:
        """Return that nothing is known of time and processes."""
        return None, None


def find_rapl(root: Path = POWERCAP) -> Rapl | None:
    """Return the counters of the processor packages; None where there are none or one may not be read.

    Only zones `intel-rapl:N` named package-N, AMD's too: their parts, and the same packages by way of `intel-rapl-mmio`
    or `psys`, would count twice. DRAM is left out, as not every machine tells it.
    """
    counters: dict[Path, int] = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
        except OSError:
            return None
        reach = read_number(zone / "max_energy_range_uj")
        if reach is None or read_number(zone / "energy_uj") is None:
            return None
        counters[zone / "energy_uj"] = reach
    return Rapl(counters) if counters else None


class Nvml:
    """A GPU's energy, time at work and processes, as its driver tells them: the whole device's, whoever uses it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle
        self.of = f"{self.ask('nvmlDeviceGetName') or 'GPU'} (whole device), NVML"
        self.last = self.ask("nvmlDeviceGetTotalEnergyConsumption")

    def ask(self, question: str) -> Any:
        """Return the driver's answer about the device, None where it has none."""
        try:
            return getattr(self.library, question)(self.handle)
        except Exception:  # NVML has an error for each thing that a device, driver or container does not tell
            return None

    def spend(self) -> float | None:
        """Return the joules since the last call; None for old GPUs, parts of one, and a counter that was reset."""
        before, self.last = self.last, self.ask("nvmlDeviceGetTotalEnergyConsumption")  # mJ since the driver's start
        known = before is not None and self.last is not None and self.last >= before
        return (self.last - before) / 1e3 if known else None

    def look(self) -> tuple[float | None, int | None]:
        """Return the share of the last moments in which a kernel ran, and how many processes the driver shows."""
        rates, processes = (
            self.ask(f"nvmlDeviceGet{what}") for what in ("UtilizationRates", "ComputeRunningProcesses")
        )
        return None if rates is None else float(rates.gpu), len(processes or ()) or None


def find_nvml(device: torch.device) -> Nvml | None:
    """Return the meter of an NVIDIA GPU; None on other devices and without nvidia-ml-py (the extra `gpu`)."""
    if device.type != "cuda":
        return None
    try:
        library = importlib.import_module("pynvml")
        library.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid  # NVML's own numbers ignore CUDA_VISIBLE_DEVICES
        return Nvml(library, library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except Exception:  # no library, no driver, AMD's devices, a device that NVML does not know
        return None


def find_sources(device: torch.device) -> dict[str, Source]:
    """Return the sources that this machine has for a run on `device`: `gpu`, `cpu`."""
    found = {"gpu": find_nvml(device), "cpu": find_rapl()}
    return {name: source for name, source in found.items() if source is not None}


# A run


@dataclass
class Total:
    """What a source has told of a run so far. energy_j: None once a part of it could not be known."""

    of: str
    energy_j: float | None = 0.0
    looks: int = 0
    busy_pct: float = 0.0  # their sum
    processes: int = 0  # the most

    def add(self, source: Source, look: bool) -> None:
        """Add what the source tells since the last time."""
        spent = source.spend()
        self.energy_j = None if spent is None or self.energy_j is None else self.energy_j + spent
        busy, processes = source.look() if look else (None, None)
        if busy is not None:
            self.looks, self.busy_pct = self.looks + 1, self.busy_pct + busy
        self.processes = max(self.processes, processes or 0)

    def describe(self) -> dict[str, Any]:
        """Return what a record says of it; empty where nothing is known."""
        found = {
            "energy_j": self.energy_j or None,  # a counter that stood still is no counter
            "utilisation_pct": self.busy_pct / self.looks if self.looks else None,
            "processes": self.processes or None,
        }
        known = {key: value for key, value in found.items() if value is not None}
        return {"of": self.of, **known} if known else {}


@dataclass
class Usage:
    """What a run takes of the machine, from `begin` to the end of training, over all its interruptions.

    `updates_s`: wall time in mask updates. Peaks are of one process, rank 0's, and its device. Energy and the GPU's
    time are those of whole devices, whoever else uses them. Invariant: nothing here waits for a device.
    """

    updates_s: float = 0.0
    known: bool = True  # False: continued from a checkpoint that did not keep this
    peaks: dict[str, int] = field(default_factory=dict)  # bytes
    totals: dict[str, Total] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    earlier: dict[str, int] | None = None  # peaks before the run was continued
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    floor: int = 0  # a process's peak up to here may be of something before the run
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, device: torch.device, ranks: int = 1) -> None:
        """Start watching. Of several ranks energy is not watched, since one process does not see all their devices."""
        self.device = device
        forget_device_peak(device)
        self.floor = 0 if forget_process_peak() else read_process_peak() or 0
        self.sources = find_sources(device) if ranks == 1 else {}
        self.totals = {name: Total(source.of) for name, source in self.sources.items()}

    def read(self, look: bool = False) -> None:
        """Add what has been taken since the last reading; `look` at what is at work just now, too."""
        with self.lock:
            process = read_process_peak()
            now = {
                "process_peak_bytes": process if process is not None and process > self.floor else None,
                "device_peak_bytes": read_device_peak(self.device),
            }
            before = self.earlier if self.earlier is not None else dict.fromkeys(now, 0)
            self.peaks = {key: max(now[key] or 0, before[key]) for key in now if now[key] and key in before}
            for name, source in self.sources.items():
                self.totals[name].add(source, look)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Read in the background every EVERY_S, where there is energy to be read, and once at the end."""
        ended = threading.Event()

        def read_on() -> None:
            while not ended.wait(EVERY_S):
                self.read(look=True)

        thread = threading.Thread(target=read_on, name="meters", daemon=True) if self.sources else None
        try:
            if thread is not None:
                thread.start()
            yield
        finally:
            ended.set()
            if thread is not None:
                thread.join()
            self.read()

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps; None where a part of the run is unknown."""
        if not self.known:
            return None
        self.read()
        totals = {name: dataclasses.asdict(total) for name, total in self.totals.items()}
        return {"updates_s": self.updates_s, "peaks": dict(self.peaks), "totals": totals}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` returned, with what both parts of the run can know; None: nothing is known."""
        if state is None:
            self.known, self.sources = False, {}
            return
        self.updates_s, self.earlier = state["updates_s"], dict(state["peaks"])
        self.sources = {name: source for name, source in self.sources.items() if name in state["totals"]}
        totals = {name: Total(**state["totals"][name]) for name in self.sources}
        for name, total in totals.items():
            of = self.sources[name].of
            total.of = total.of if of in total.of else f"{total.of}; {of}"  # continued on another machine
        self.totals = totals

    def describe(self) -> dict[str, Any]:
        """Return what the record says: peaks, and for each source its energy and time at work."""
        if not self.known:
            return {}
        told = {name: total.describe() for name, total in self.totals.items() if name in self.sources}
        return {**self.peaks, **{name: about for name, about in told.items() if about}}

    def times(self) -> dict[str, float]:
        """Return what the record's times say."""
        return {"updates_s": self.updates_s} if self.known else {}
