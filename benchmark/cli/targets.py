"""`make TARGET NAME=value`: the command each target is, the variables it reads, and a refusal of every other one.

It needs only the standard library, because it runs before anything is installed. The values come from MAKEFLAGS, where
make leaves them as typed, so neither make nor the shell interprets them.
"""

from __future__ import annotations

from benchmark.cli.ctrl_c import guard_imports

if __name__ == "__main__":
    guard_imports()

import difflib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

GRID = "METHOD SPARSITY TASK SEED DEVICE DATA WANDB"
SWEEP = f"{GRID} PLAN GPUS WORKERS JOBS PER_GPU WORKERS_ARGS RETRIES"
# Target: its command and the variables it reads. A variable is the option of its name; one in < > is an argument.
TARGETS = {
    "bench": ("sparse-bench run", f"{GRID} ARGS PRECISION RANKS SNAPSHOTS FRESH"),
    "sweep": ("sparse-bench sweep", f"<GRID> {SWEEP} ARGS PRECISION"),
    "table1": ("sparse-bench sweep configs/paper/table1.yaml", SWEEP),
    "table2": ("sparse-bench sweep configs/paper/table2.yaml", SWEEP),
    "table3": ("sparse-bench sweep configs/paper/table3.yaml", SWEEP),
    "plasticity": (
        "sparse-bench plasticity",
        "TASK SCALE EPOCHS SEED MORE SCOPE PATTERN JOBS PER_GPU ARGS PRECISION PLAN DEVICE DATA",
    ),
    "precision-study": ("python -m benchmark.studies.precision", "METHOD SPARSITY TASK SEED ARGS DEVICE DATA"),
    "claim": ("python -m leaderboard claim", "A B TASK SPARSITY"),
    "leaderboard": ("python -m leaderboard build", "WANDB"),
    "latency": ("sparse-bench latency", "<RUN> BATCH THREADS DEVICE"),
    "slim": ("sparse-bench slim", "<RUN> TO BATCH THREADS DEVICE DATA"),
    "check-method": ("sparse-bench check", "<METHOD> ONLY"),
    "new-method": ("sparse-bench new-method", "<NAME>"),
    "methods": ("sparse-bench methods", ""),
    "pages": ("sparse-bench pages", ""),
    "test": ("python -m pytest", ""),
    "test-slow": ("python -m pytest -m slow", ""),
    "format-check": ("python -m ruff format --check .", ""),
    "lint": ("python -m ruff check .", ""),
    "types": ("python -m mypy", ""),
    "verify": ("python -m leaderboard verify", ""),
    "site": ("python -m leaderboard site", ""),
    "submit": ("python -m leaderboard submit", "DATA"),
    "perf-sheets": ("python -m tests.harness.perf_sheets", ""),
    "deviations": ("python -m benchmark.recount.deviations", ""),
    "flops": ("python -m benchmark.recount.flops", ""),
    "mutants": ("python -m tests.harness.mutants", ""),
    "perf": ("python -m benchmark.perf", "QUICK KEEP"),
    "gpu-check": ("python -m benchmark.perf.gpu", "DEVICE PARTS MINUTES TO QUICK FRESH"),
    "faults": ("python -m tests.harness.faults", "N SEED"),
}
EVERYWHERE = {"PYTHON", "SHELL"}  # for making .venv, and for make itself
FLAGS = {"FRESH", "PLAN", "QUICK", "KEEP"}
YES, NO = ("1", "yes", "true", "on"), ("", "0", "no", "false", "off")
OPTIONS = {"N": "count"}  # named unlike the variable
USUAL = {("check-method", "METHOD"): "granet", ("faults", "N"): "200"}
NEEDED = {"RUN": "the name of a record, without .json", "NAME": "my_method", "A": "granet", "B": "gmp"}
BIN = Path(".venv") / "bin"
SOURCE = Path(__file__).parents[2]


def read_given(makeflags: str) -> dict[str, str]:
    """Return the variables of make's command line from its MAKEFLAGS: `flags -- NAME=value ...`."""
    _, _, text = f" {makeflags}".partition(" -- ")
    given = {}
    for word in reversed(re.findall(r"(?:\\.|[^\\ \t])+", text, re.S)):  # make puts what came last first
        name, _, value = re.sub(r"\\(.)", r"\1", word, flags=re.S).replace("$$", "$").partition("=")
        given[name.rstrip(":?+!")] = value
    return given


def variables(target: str) -> list[str]:
    """Return the names of the variables a target reads."""
    return re.findall(r"\w+", TARGETS.get(target, ("", ""))[1])


def find_unread(given: dict[str, str], goals: list[str]) -> str:
    """Return the error for variables that no goal reads, with the fix; empty if all are read."""
    known = sorted({name for goal in goals for name in variables(goal)})
    unread = [name for name in given if name not in EVERYWHERE.union(known)]
    if not unread:
        return ""
    settings = "ARGS" in known and [name for name in unread if name.upper() not in known and name.islower()]
    faults = [f"{name}{advise(name, given[name], known)}" for name in unread if not settings or name not in settings]
    if settings:
        words = [*filter(None, [given.get("ARGS")]), *(f"{name}={shlex.quote(given[name])}" for name in settings)]
        faults.append(f"{', '.join(settings)} (settings go into ARGS, in quotes: {quote('ARGS', ' '.join(words))})")
    reads = f"reads {', '.join(known)}" if known else "reads no variable"
    return f"make {' '.join(goals)} does not read {', '.join(faults)}; it {reads}, and nothing was run"


def advise(name: str, value: str, known: list[str]) -> str:
    """Return the advice for an unread variable: the nearest one, another target, or a setting."""
    close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]}?)"
    others = [f"`make {target}`" for target in TARGETS if name in variables(target)]
    ways = [f"{' and '.join(others[:2])} {'does' if len(others) == 1 else 'do'}"] if others else []
    if "ARGS" in known and is_setting(name.lower()):
        ways.append(f"as a setting: {quote('ARGS', f'{name.lower()}={shlex.quote(value)}')}")
    return f" ({'; '.join(ways)})" if ways else ""


def is_setting(name: str) -> bool:
    """Return whether a page or a built-in method has a setting of this name, by the files, without importing them."""
    files = [SOURCE / "benchmark" / "config" / "pages.py", *(SOURCE / "methods").glob("*.py")]
    return any(re.search(rf"^    {re.escape(name)}: ", file.read_text(encoding="utf-8"), re.M) for file in files)


def quote(name: str, value: str) -> str:
    """Return `NAME="value"` as a shell takes it."""
    return f'{name}="{value}"' if not re.search(r'["$`\\!]', value) else shlex.quote(f"{name}={value}")


def make_words(target: str, given: dict[str, str]) -> list[str]:
    """Return the command of a target with the given options, values unchanged.

    Environment variables count unless empty. Raises ValueError for a missing variable, or a flag with another value.
    """
    command, read = TARGETS[target]
    words, positional = shlex.split(command), []
    asked = {name: os.environ[name] for name in variables(target) if os.environ.get(name)}
    asked = {**{name: usual for (of, name), usual in USUAL.items() if of == target}, **asked, **given}
    if asked.get("PRECISION"):
        if re.search(r"(^|\s)['\"]?precision=", asked.get("ARGS", "")):
            raise ValueError("PRECISION and precision= in ARGS are the same setting: give one of them")
        asked["ARGS"] = f"{asked.get('ARGS', '')} precision={shlex.quote(asked['PRECISION'])}".strip()
    for name in variables(target):
        value = asked.get(name)
        if name in NEEDED and not value:
            raise ValueError(f"make {target} needs {name}: make {target} {name}={NEEDED[name]}")
        if value is None or name == "PRECISION":
            continue
        option = f"--{OPTIONS.get(name, name.lower().replace('_', '-'))}"
        if f"<{name}>" in read:
            positional.append(value)
        elif name not in FLAGS:
            words += [option, value]
        elif value.lower() in YES:
            words.append(option)
        elif value.lower() not in NO:
            raise ValueError(f"{name} must be 1 or 0, got '{value}'")
    return [*words, *(["--"] if any(value.startswith("-") for value in positional) else []), *filter(None, positional)]


def run(words: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by the command; a make that it starts must not inherit these variables."""
    sys.stdout.flush()
    os.execve(BIN / words[0], [str(BIN / words[0]), *words[1:]], environment)


def wait_for(words: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its status; it ends when this process is told to, and goes on under nohup."""
    process = subprocess.Popen(words, env=environment)

    def hand_on(number: int, _: object) -> None:
        if number != signal.SIGINT:  # a terminal's Ctrl-C has reached the command too, which ends when it is ready
            process.terminate()

    numbers = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, hand_on)
    status = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return status


def main(target: str = "") -> int:
    """Run a target of the Makefile; without one, only check that every variable is read by a goal."""
    given = read_given(os.environ.get("MAKEFLAGS", ""))
    goals = os.environ.get("ASKED_GOALS", "").split() or [target or "help"]
    fault = find_unread(given, goals)
    try:
        if fault:
            raise ValueError(fault)
        words = make_words(target, given) if target else []
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ASKED_GOALS", "ASKED_PYTHON", *variables(target))
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    if target.startswith("table") and "--plan" not in words:  # whose pages depend on more than new records
        status = wait_for([str(BIN / words[0]), *words[1:]], environment)
        stopped = status in (2, 130) or status < 0  # 2: nothing was run
        built = 0 if stopped else subprocess.run([BIN / "python", "-m", "leaderboard", "build"]).returncode
        return built or status
    return run(words, environment) if target else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
