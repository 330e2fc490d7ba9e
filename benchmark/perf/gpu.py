"""`make gpu-check`: what only a machine with a GPU can tell, in parts of their own processes, and a report of it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmark.base import ROOT
from benchmark.base.errors import UserError, nearest, reason
from benchmark.base.files import expand
from benchmark.base.system import CODE, choose_device, describe_environment, describe_git, name_device, use_device
from benchmark.perf.gpu_claims import ABSENT, DONE, FAILED, LATE, RUNNING, NotHereError, Sheet
from benchmark.perf.gpu_epochs import check_epochs, check_memory, check_waits
from benchmark.perf.gpu_report import MACHINE, read_parts, write_report
from benchmark.perf.gpu_runs import seconds_of
from benchmark.perf.gpu_same import check_bits, check_masks
from benchmark.perf.gpu_sharing import check_sharing
from benchmark.perf.gpu_steps import check_imagenet, check_modes, check_steps, check_updates, check_vit
from benchmark.training.cuda_graphs import ASKED

FOLDER = Path(__file__).resolve().parent / "results" / "gpu"
MINUTES = 8.0
LEAST_S = 15.0  # no part is begun with less
WARNING = re.compile(r"\w*Warning: |warnings\.warn\(")


@dataclass(frozen=True)
class Part:
    """A part of the check: what it does, and the seconds after which it is stopped.

    `of_card`: a CPU has nothing of it. `share`: its weight where parts at small sizes divide the time.
    """

    check: Callable[[Sheet, torch.device], None]
    limit_s: float
    of_card: bool = False
    share: int = 1


def check_machine(sheet: Sheet, device: torch.device) -> None:
    """Tell the machine, and the bandwidth and arithmetic it reaches."""
    facts: dict[str, Any] = {**describe_environment(device, "fp32"), **describe_git(), "cuda": torch.version.cuda}
    facts.pop("precision")
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"memory GiB": round(card.total_memory / 2**30, 1), "multiprocessors": card.multi_processor_count}
        facts |= {"capability": f"{card.major}.{card.minor}", "cudnn": torch.backends.cudnn.version()}
        facts["driver"] = ask_driver()
    facts["processors"] = os.cpu_count()
    sheet.facts |= facts
    count, side = (2**20, 256) if sheet.quick else (2**28, 8192)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(2):  # the second counts
        copied = seconds_of(device, lambda: target.copy_(source), 3)
        multiplied = seconds_of(device, lambda: left @ right, 3)
    sheet.tell("machine", "copy, read and written", 8 * count / copied / 1e9, "GB/s")
    sheet.tell("machine", f"bf16 product of {side}x{side}", 2 * side**3 / multiplied / 1e12, "TFLOP/s")


def ask_driver() -> str:
    """Return the version of NVIDIA's driver, or empty where its tool is not there."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.split()
        return lines[0] if lines else ""
    return ""


# In order of importance: what is left when time is over is the least.
PARTS = {
    MACHINE: Part(check_machine, 60),
    "masks": Part(check_masks, 100, share=2),
    "bits": Part(check_bits, 100, share=2),
    "steps": Part(check_steps, 90),
    "updates": Part(check_updates, 75),
    "epochs": Part(check_epochs, 100),
    "waits": Part(check_waits, 60, of_card=True),
    "memory": Part(check_memory, 60, of_card=True),
    "sharing": Part(check_sharing, 90, of_card=True),
    "vit": Part(check_vit, 45),
    "modes": Part(check_modes, 120),
    "imagenet": Part(check_imagenet, 75, of_card=True),
}


def read_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, or another accelerator by torch's name, such as cuda:1"
    )
    parser.add_argument("--parts", default="", help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="most that it may take; parts left over wait")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder of the report; finished parts there are kept")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as on a CPU: does it run at all")
    parser.add_argument("--fresh", action="store_true", help="run finished parts again")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)  # this process does one part
    return parser.parse_args()


def choose_parts(text: str) -> list[str]:
    """Return the parts that are asked for, in their order; raises UserError for one that there is not."""
    asked = [name.strip() for name in text.split(",") if name.strip()] or list(PARTS)
    for name in asked:
        if name not in PARTS:
            raise UserError(f"PARTS: no part '{name}'{nearest(name, PARTS)}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if name in {MACHINE, *asked}]


def describe(device: torch.device, quick: bool) -> dict[str, Any]:
    """Return what a part's figures hold for: those of another device, size or code are measured again."""
    git = describe_git()
    about = {"device": name_device(device), "quick": quick, "commit": git["commit"]}
    return about if git["dirty"] is False else {**about, "sources": hash_sources()}


def hash_sources() -> str:
    """Return a hash of the code, for a copy whose commit does not tell."""
    digest = hashlib.sha256()
    files = (path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml"))
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def do_part(name: str, folder: Path, device: torch.device, quick: bool) -> str:
    """Do one part here; return how it ended. What it raises becomes the reason in its file, the rest is printed."""
    sheet = Sheet(folder / "parts" / f"{name}.json", name, describe(device, quick), quick)
    sheet.write()
    try:
        use_device(device)
        PARTS[name].check(sheet, device)
        sheet.end(DONE)
    except NotHereError as error:
        sheet.end(ABSENT, str(error))
    except Exception as error:  # a device, its driver or a compiler may fail in any way
        traceback.print_exc()
        sheet.end(FAILED, f"{type(error).__name__}: {reason(error)[:400]}")
    return sheet.status


def order(name: str, folder: Path, asked: argparse.Namespace, quick: bool) -> list[str]:
    """Return the command that does one part."""
    words = ["--alone", name, "--device", asked.device, "--to", str(folder), *(["--quick"] if quick else [])]
    return [sys.executable, "-m", "benchmark.perf.gpu", *words]


def supervise(name: str, words: list[str], folder: Path, limit_s: float) -> None:
    """Run a part in its own process; one that hangs is stopped, and how it ended is in its file in any case."""
    log = folder / "parts" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    (log.parent / f"{name}.json").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != ASKED}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may not repeat its bits
    began, status, fault = time.monotonic(), FAILED, ""
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
            fault = f"its process ended with status {code}"
        except subprocess.TimeoutExpired:
            status, fault = LATE, f"stopped after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
                process.wait()
    told = read_parts(folder).get(name)
    if told is None or told["status"] == RUNNING:
        doing = told["doing"] if told else "starting" if status == LATE else ""
        last = "" if status == LATE else last_line(log.read_text(errors="replace"))
        sheet = Sheet(log.with_suffix(".json"), name, told["about"] if told else {}, began=began)
        if told:
            restore(sheet, told)
        reasons = [fault, f"it was at: {doing}" if doing else "", last if last != doing else ""]
        sheet.end(status, "; ".join(filter(None, reasons)))


def last_line(text: str) -> str:
    """Return the last line of a log that is not part of a warning, whose second line shows the code that gave it."""
    lines = [line for line in text.splitlines() if line.strip()]
    above = ["", *lines]
    kept = [
        line
        for line, before in zip(lines, above, strict=False)
        if not WARNING.search(line) and not (WARNING.search(before) and line.startswith(" "))
    ]
    return kept[-1].strip() if kept else ""


def restore(sheet: Sheet, told: Any) -> None:
    """Give a sheet what a part had told before it was cut short."""
    sheet.facts = told["facts"]
    for goal in told["goals"]:
        sheet.quick = not goal["relation"]  # so that it gets its limit again, or none
        sheet.tell(goal["name"], goal["what"], goal["measured"], goal["unit"], goal["details"])


def limit_of(name: str, waiting: list[str], left: float, quick: bool) -> float:
    """Return the seconds of a part: its limit, at small sizes its share of what is left, so that all have a turn."""
    limit = min(left, PARTS[name].limit_s)
    if not quick:
        return limit
    share = left * PARTS[name].share / sum(PARTS[other].share for other in waiting)
    return min(limit, max(LEAST_S, share))


def check_all(asked: argparse.Namespace, console: Console) -> None:
    """Do the parts one after the other and write the report after each."""
    device, folder = choose_device(asked.device), expand(asked.to).resolve()
    quick, names = asked.quick or device.type == "cpu", choose_parts(asked.parts)
    about, ends = describe(device, quick), time.monotonic() + 60 * asked.minutes
    before = {
        name: told["status"]
        for name, told in read_parts(folder).items()
        if told["status"] in (DONE, ABSENT) and told["about"] == about and not asked.fresh
    }
    absent = [name for name in names if PARTS[name].of_card and device.type == "cpu"]
    waiting = [name for name in names if name not in (*before, *absent)]
    for name in names:
        if name in before:
            console.print(f"{name}: {before[name]} before", style="dim", markup=False, soft_wrap=True)
            continue
        left = ends - time.monotonic()
        if name in absent:
            do_part(name, folder, device, quick)  # says so at once: no process is worth it
        elif left < LEAST_S:
            console.print(
                f"{name}: no time left; the same command goes on", style="yellow", markup=False, soft_wrap=True
            )
            continue
        else:
            supervise(name, order(name, folder, asked, quick), folder, limit_of(name, waiting, left, quick))
            waiting.remove(name)
        told = read_parts(folder)[name]
        said = f"{name}: {told['status']} in {told['seconds']:.0f} s{'; ' if told['reason'] else ''}{told['reason']}"
        console.print(said, style="" if told["status"] == DONE else "yellow", markup=False, soft_wrap=True)
        write_report(folder, list(PARTS))
    report, paths = write_report(folder, list(PARTS))
    for verdict in report["verdicts"]:
        if not verdict["verdict"].startswith(ABSENT):
            text = f"{verdict['goal']} {verdict['what']}: {verdict['measured']:.4g} ({verdict['verdict']})"
            console.print(text, style="red" if verdict["verdict"] == "short" else "green", markup=False, soft_wrap=True)
    console.print(f"to send back: {' and '.join(map(str, paths))}", markup=False, soft_wrap=True)


def main() -> int:
    """Do what the command line asks; a missed goal or a failed part is in the report and no failure of the command."""
    asked, console = read_arguments(), Console()
    try:
        if asked.alone:
            if asked.quick:
                torch.set_num_threads(1)  # at small sizes a second one costs more than it brings
            return 0 if do_part(asked.alone, asked.to, choose_device(asked.device), asked.quick) != FAILED else 1
        check_all(asked, console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it was", style="yellow")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
