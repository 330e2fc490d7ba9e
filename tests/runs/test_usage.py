"""What a run took of the machine: read right, absent where it cannot be known, and right across interruptions."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import pytest
import torch

import benchmark.training.train
from benchmark.base import meters
from benchmark.base.meters import Usage, find_nvml, find_rapl
from benchmark.runs.checkpoints import load_checkpoint
from tests.harness.benches import NARROW
from tests.harness.small import make_run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def lay_zone(root: Path, zone: str, name: str, energy_uj: object, reach_uj: int = 1_000_000) -> None:
    """Write a zone as the kernel's powercap shows it."""
    (root / zone).mkdir(exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", reach_uj)):
        (root / zone / file).write_text(f"{value}\n")


def test_packages_count_once_and_on_when_a_counter_starts_over(tmp_path: Path) -> None:
    def lay_zones(first: int, second: int, others: int) -> None:
        lay_zone(tmp_path, "intel-rapl:0", "package-0", first)
        lay_zone(tmp_path, "intel-rapl:1", "package-1", second)
        for zone, name in (("intel-rapl:0:0", "core"), ("intel-rapl-mmio:0", "package-0"), ("intel-rapl:2", "psys")):
            lay_zone(tmp_path, zone, name, others)

    lay_zones(100, 999_000, 0)
    rapl = find_rapl(tmp_path)
    lay_zones(500, 2_000, 7_000)
    assert rapl is not None and rapl.of == "2 processor packages (whole machine), RAPL"
    assert rapl.spend() == pytest.approx(400e-6 + 3_000e-6)
    assert rapl.spend() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert rapl.spend() is None


def test_without_counters_or_where_one_may_not_be_read_there_is_no_energy(tmp_path: Path) -> None:
    assert find_rapl(tmp_path / "absent") is None
    lay_zone(tmp_path, "intel-rapl:0", "package-0", 100)
    lay_zone(tmp_path, "intel-rapl:1", "package-1", "")
    assert find_rapl(tmp_path) is None, "a part of the packages is not the machine"


def test_a_gpu_tells_energy_time_and_processes_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise RuntimeError("not supported")

    energies, fake = [1_000, 5_500, 200], types.ModuleType("pynvml")
    answers = {
        "nvmlDeviceGetName": lambda handle: f"NVIDIA {handle}",
        "nvmlDeviceGetTotalEnergyConsumption": lambda _: energies.pop(0),
        "nvmlDeviceGetUtilizationRates": lambda _: types.SimpleNamespace(gpu=71),
        "nvmlDeviceGetComputeRunningProcesses": lambda _: ["a", "b", "c"],
    }
    for name, answer in {**answers, "nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": str}.items():
        setattr(fake, name, answer)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(uuid="1a2b"))
    gpu = find_nvml(CUDA)
    assert gpu is not None and gpu.of == "NVIDIA GPU-1a2b (whole device), NVML"
    assert (gpu.spend(), gpu.look()) == (4.5, (71.0, 3))
    assert gpu.spend() is None, "the driver was loaded again meanwhile"
    for name in answers:
        monkeypatch.setattr(fake, name, refuse)
    gpu = find_nvml(CUDA)
    assert gpu is not None and (gpu.of, gpu.spend(), gpu.look()) == ("GPU (whole device), NVML", None, (None, None))
    assert find_nvml(CPU) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_nvml(CUDA) is None


class Fake:
    """A source that tells the same of each reading."""

    def __init__(self, joules: float | None, busy: float | None = None, of: str = "it") -> None:
        self.told, self.seen, self.of = joules, (busy, None if busy is None else 2), of

    def spend(self) -> float | None:
        return self.told

    def look(self) -> tuple[float | None, int | None]:
        return self.seen


def begin(monkeypatch: pytest.MonkeyPatch, **sources: Fake) -> Usage:
    monkeypatch.setattr(meters, "find_sources", lambda device: sources)
    usage = Usage()
    usage.begin(CPU)
    return usage


def test_what_is_not_known_is_absent_and_what_is_read_in_the_background_is_averaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meters, "EVERY_S", 0.001)
    monkeypatch.setattr(meters, "read_process_peak", lambda: None)
    usage = begin(monkeypatch, gpu=Fake(None, busy=40.0), cpu=Fake(0.0))
    with usage.watch():
        until = time.monotonic() + 10
        while usage.totals["gpu"].looks < 3 and time.monotonic() < until:
            time.sleep(0.001)
    assert usage.describe() == {"gpu": {"of": "it", "utilisation_pct": 40.0, "processes": 2}}


def test_parts_of_a_run_are_summed_as_far_as_both_know(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([900, 500, 500])
    monkeypatch.setattr(meters, "read_process_peak", lambda: next(peaks))
    monkeypatch.setattr(meters, "forget_process_peak", lambda: True)
    first = begin(monkeypatch, gpu=Fake(5.0, of="card A"), cpu=Fake(1.0))
    first.updates_s = 0.5
    second = begin(monkeypatch, gpu=Fake(2.0, of="card B"))  # of a machine whose processor tells nothing
    second.load_state(first.state())
    second.updates_s += 0.25
    state = second.state()
    assert second.times() == {"updates_s": 0.75}
    assert second.describe() == {"process_peak_bytes": 900, "gpu": {"of": "card A; card B", "energy_j": 7.0}}
    third = begin(monkeypatch, cpu=Fake(1.0))
    third.load_state(state)
    third.read()
    assert third.describe() == {"process_peak_bytes": 900}


def test_a_run_whose_checkpoint_did_not_keep_it_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("rigl")
    state = run.state()
    del state["usage"]
    run.usage = begin(monkeypatch, cpu=Fake(1.0))
    run.load_state(state)
    run.usage.read()
    assert (run.usage.describe(), run.usage.times(), run.state()["usage"]) == ({}, {}, None)


def test_a_run_that_was_killed_and_continued_tells_the_whole_of_it(bench, monkeypatch) -> None:
    """A counter that spends a joule a step; what was done since the last checkpoint is done again."""
    train_step, done = benchmark.training.train.train_step, []

    class Counter(Fake):
        def spend(self) -> float:
            spent = len(done)
            done.clear()
            return float(spent)

    def step(run, *rest):
        if run.step == 6 and not list(bench.folder.rglob("killed")):
            (bench.folder / "killed").touch()
            raise ZeroDivisionError
        done.append(run.step)
        return train_step(run, *rest)

    monkeypatch.setattr(benchmark.training.train, "train_step", step)
    monkeypatch.setattr(meters, "find_sources", lambda device: {"cpu": Counter(None)})
    with pytest.raises(ZeroDivisionError):
        bench("set", arguments=f"epochs=2 update_every=2 {NARROW}")
    done.clear()
    (checkpoint,) = (bench.folder / "runs").rglob("checkpoint")
    state = load_checkpoint(checkpoint)
    kept, held = state["usage"], state["usage"]["peaks"]["process_peak_bytes"]
    assert kept["totals"]["cpu"]["energy_j"] == state["counters"][0] > 0
    monkeypatch.setattr(meters, "read_process_peak", lambda: held // 2)
    assert bench("set", arguments=f"epochs=2 update_every=2 {NARROW}") == 0
    (record,) = bench.records()
    assert record["usage"] == {"process_peak_bytes": held, "cpu": {"of": "it", "energy_j": 8.0}}
    assert kept["updates_s"] < record["time"]["updates_s"] < record["time"]["train_s"]
    assert held > 3 * 4 * record["weights"]["parameters"] + 64 * record["data"]["train"], "more than torch held"
