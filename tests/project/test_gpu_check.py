"""Promises of `make gpu-check`: parts run alone, to an end or a limit, and verdicts follow from what they told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from benchmark.base.errors import UserError
from benchmark.perf import gpu, gpu_same, gpu_steps
from benchmark.perf.gpu_claims import ABSENT, CLAIMS, DONE, FAILED, LATE, Sheet
from benchmark.perf.gpu_report import gather, read_parts, render, write_report
from tests.harness import accelerator

CPU = torch.device("cpu")


def ask(tmp_path, *words):
    sys.argv = ["gpu", "--device", "cpu", "--to", str(tmp_path), *words]
    return gpu.read_arguments()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu"])
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("masks", "bits") else ()) for name in gpu.PARTS]
)
def test_a_part_runs_on_a_cpu_at_small_sizes(name, tmp_path):
    assert gpu.do_part(name, tmp_path, CPU, True) == (
        ABSENT if name in ("waits", "memory", "sharing", "imagenet") else DONE
    )
    told = read_parts(tmp_path)[name]
    assert bool(told["goals"]) == (told["status"] == DONE) and bool(told["reason"]) == (told["status"] == ABSENT)


def test_a_device_that_chooses_other_masks_or_other_bits_is_found(tmp_path, monkeypatch):
    """Planted: a CPU that is shown other gradients than the device, and an interruption that forgets the momentum."""
    bring = gpu_same.bring

    def tampered(view):
        twin = bring(view)
        twin._gradients = twin._gradients and {
            name: -g.flatten().roll(1).view_as(g) for name, g in twin._gradients.items()
        }
        return twin

    monkeypatch.setattr(gpu_same, "bring", tampered)
    monkeypatch.setattr(gpu_same, "FEW", ("granet", "set"))
    gpu.do_part("masks", tmp_path, CPU, True)
    first = read_parts(tmp_path)["masks"]["goals"][0]
    assert (first["measured"], first["verdict"]) == (1, "short")  # SET grows at random, whatever the gradients
    assert first["details"]["granet"].startswith("steps [")
    monkeypatch.setattr(torch.optim.SGD, "load_state_dict", lambda optimizer, state: None)
    gpu.do_part("bits", tmp_path, CPU, True)
    again, resumed = read_parts(tmp_path)["bits"]["goals"][:2]
    assert (again["verdict"], resumed["verdict"]) == ("pass", "short")


ON_THE_STAND_IN = """
import contextlib, sys, collections, pathlib, torch
from tests.harness import accelerator
accelerator.install()
from benchmark.perf import gpu, gpu_epochs

@contextlib.contextmanager
def count():
    first = len(accelerator.WAITS)
    yield lambda: collections.Counter(str(wait) for wait in accelerator.WAITS[first:])

gpu_epochs.COUNTERS["standin"] = count
torch.set_num_threads(1)
for name in sys.argv[2:]:
    gpu.do_part(name, pathlib.Path(sys.argv[1]), torch.device("standin"), True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not accelerator.AVAILABLE, reason="this torch has no devices in Python")
def test_an_accelerator_chooses_the_cpu_s_masks_and_its_host_waits_in_no_ordinary_step(tmp_path):
    parts = ("masks", "bits", "waits", "vit")
    subprocess.run([sys.executable, "-c", ON_THE_STAND_IN, str(tmp_path), *parts], cwd=gpu.ROOT, check=True)
    told = read_parts(tmp_path)
    assert [told[name]["status"] for name in parts] == [DONE] * 4
    wanted = {goal["what"]: goal["verdict"] for name in parts for goal in told[name]["goals"] if goal["relation"]}
    assert wanted.pop("waits of the host in a mask update") in ("pass", "short")
    assert len(wanted) == 5 and set(wanted.values()) == {"pass"}


def test_a_part_that_fails_hangs_or_dies_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    files = {name: tmp_path / "parts" / f"{name}.json" for name in ("steps", "vit")}
    sheets = {name: Sheet(file, name, {}) for name, file in files.items()}
    sheets["steps"].tell("G1", "ResNet-20: masked step / dense step, eager", 1.01)
    sheets["vit"].end(DONE)
    write = {name: f"open({str(file)!r}, 'w').write({file.read_text()!r})" for name, file in files.items()}
    says = {
        "machine": "print('no such device'); raise SystemExit(3)",
        "steps": f"{write['steps']}.real; import time; time.sleep(60)",
        "vit": write["vit"],
    }
    monkeypatch.setattr(gpu, "order", lambda name, *rest: [sys.executable, "-c", says[name]])
    monkeypatch.setitem(gpu.PARTS, "steps", gpu.Part(gpu_steps.check_steps, 2.0))
    gpu.check_all(ask(tmp_path, "--parts", "vit,steps", "--fresh"), Console(quiet=True))
    parts = read_parts(tmp_path)
    assert [parts[name]["status"] for name in ("machine", "steps", "vit")] == [FAILED, LATE, DONE]
    assert parts["machine"]["reason"] == "its process ended with status 3; no such device"
    assert parts["steps"]["reason"] == "stopped after 2 s"
    report = json.loads((tmp_path / "report.json").read_text())
    verdicts = {verdict["what"]: verdict["verdict"] for verdict in report["verdicts"]}
    assert verdicts["ResNet-20: masked step / dense step, eager"] == "pass"  # told before the part was stopped
    assert verdicts["VGG-19: masked step / dense step, eager"] == "not measured: stopped after 2 s"


def test_a_warning_is_never_why_a_part_was_not_measured(tmp_path):
    sheet = Sheet(tmp_path / "parts" / "bits.json", "bits", {})
    sheet.do("rigl interrupted")
    write = f"open({str(sheet.path)!r}, 'w').write({sheet.path.read_text()!r})"
    warn = "import time, warnings\nwarnings.warn('old', FutureWarning)"
    says = {"bits": f"{write}\n{warn}\ntime.sleep(99)", "masks": f"print('no card', flush=True)\n{warn}\nexit(3)"}
    for name, code in says.items():
        script = tmp_path / f"{name}.py"
        script.write_text(code)  # a file: only there a warning shows its line of code
        gpu.supervise(name, [sys.executable, str(script)], tmp_path, 3.0)
        assert "FutureWarning: old\n  warnings.warn(" in (tmp_path / "parts" / f"{name}.log").read_text()
    reasons = [read_parts(tmp_path)[name]["reason"] for name in says]
    assert reasons == ["stopped after 3 s; it was at: rigl interrupted", "its process ended with status 3; no card"]


def test_at_small_sizes_every_part_has_its_turn():
    waiting, left = [name for name, part in gpu.PARTS.items() if not part.of_card], 170.0
    while waiting:  # each takes all that it may
        limit_s = gpu.limit_of(waiting[0], waiting, left, True)
        assert gpu.LEAST_S <= limit_s <= left
        left, waiting = left - limit_s, waiting[1:]
    assert gpu.limit_of("bits", ["bits"], 480.0, False) == gpu.PARTS["bits"].limit_s


def test_finished_parts_are_not_run_again_unless_asked_or_measured_elsewhere(tmp_path, monkeypatch):
    ran = []

    def supervise(name, words, folder, limit_s):
        ran.append(name)
        status = {"vit": FAILED, "steps": ABSENT}.get(name, DONE)
        Sheet(folder / "parts" / f"{name}.json", name, gpu.describe(CPU, True)).end(status)

    monkeypatch.setattr(gpu, "supervise", supervise)
    console, words = Console(quiet=True), ("--parts", "vit,steps,bits")
    gpu.check_all(ask(tmp_path, *words), console)
    assert ran == ["machine", "bits", "steps", "vit"]  # the most important first
    gpu.check_all(ask(tmp_path, *words), console)
    assert ran[4:] == ["vit"]
    gpu.check_all(ask(tmp_path, "--fresh", *words), console)
    assert len(ran) == 9
    monkeypatch.setattr(gpu, "describe", lambda device, quick: {"device": "another"})
    gpu.check_all(ask(tmp_path, "--minutes", "0.1", *words), console)
    assert len(ran) == 9  # they would be run again, and no time is left
    monkeypatch.undo()
    for dirty, hashed in ((False, False), (True, True), (None, True)):  # edited, or a copy that git does not know
        monkeypatch.setattr(gpu, "describe_git", lambda dirty=dirty: {"commit": "c", "dirty": dirty})
        assert ("sources" in gpu.describe(CPU, True)) is hashed
    with pytest.raises(UserError, match="no part 'bit': did you mean 'bits'"):
        gpu.choose_parts("masks,bit")


def test_verdicts_follow_from_what_was_measured(tmp_path):
    sheet = Sheet(tmp_path / "parts" / "updates.json", "updates", {"quick": False})
    sheet.tell("G3", "ResNet-50: a mask update", 12.5, "ms")
    sheet.tell("G3", "ResNet-50: a mask update / an eager step", 3.0)
    sheet.tell("G3", "VGG-19: a mask update", 9.0, "ms")
    sheet.end(DONE)
    small = Sheet(tmp_path / "parts" / "steps.json", "steps", {"quick": True}, quick=True)
    small.tell("G1", "ResNet-20: masked step / dense step, eager", 5.0)
    small.end(FAILED, "RuntimeError: out of memory")
    report, paths = write_report(tmp_path, list(gpu.PARTS))
    verdicts = {verdict["what"]: (verdict["measured"], verdict["verdict"]) for verdict in report["verdicts"]}
    assert len(report["verdicts"]) == len(CLAIMS)
    assert verdicts["ResNet-50: a mask update"] == (12.5, "pass")
    assert verdicts["ResNet-50: a mask update / an eager step"] == (3.0, "short")
    assert verdicts["ResNet-50: memory of an update / weights"] == (None, "not measured: not on such a device")
    assert verdicts["ResNet-20: masked step / dense step, eager"][1] == "not measured: small sizes say nothing of it"
    assert verdicts["ResNet-20: eager step / the same as CUDA graphs"][1] == "not measured: RuntimeError: out of memory"
    assert verdicts["waits of the host in an ordinary step"][1] == "not measured: part waits was not run"
    text = paths[0].read_text()
    assert text == render(gather(read_parts(tmp_path), list(gpu.PARTS)))
    assert "1 pass, 1 short, 25 not measured." in text
    assert "| G3 | ResNet-50: a mask update / an eager step | ≤ 2× | 3× | **short** |" in text
    assert "- VGG-19: a mask update: **9 ms**" in text


def test_every_claim_is_told_by_a_part_that_there_is():
    assert {claim.part for claim in CLAIMS} <= set(gpu.PARTS)
    assert len({(claim.goal, claim.what) for claim in CLAIMS}) == len(CLAIMS)
