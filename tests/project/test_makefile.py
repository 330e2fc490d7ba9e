"""The Makefile: whatever a variable holds reaches the command as it was given, and nothing in it is ever run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from benchmark.cli import shell
from benchmark.cli.targets import FLAGS, OPTIONS, TARGETS, make_words, read_given, variables

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Makefile").read_text()
VARIABLES = sorted({name for target in TARGETS for name in variables(target)})
# Each would leave a file called canary, were it read by make, by the shell, or by a shell within quotes.
HOSTILE = [
    "'; touch canary; '",
    '"; touch canary; "',
    "$(touch canary)",
    "$$(touch canary)",
    "$(shell touch canary)",
    "${shell touch canary}",
    "`touch canary`",
    "x; touch canary #",
    "x\ntouch canary",
    "x && touch canary | touch canary > canary",
    "),$(shell touch canary)",
]
ODD = ["it's", 'say "hi"', "a  b", "#1", "\\", "*", "~", "$HOME", "-n", "ä×≈"]
# What stands in for every command: it prints its arguments. What takes targets apart is the real thing.
STAND_IN = f"""#!/bin/sh
[ "$2" != benchmark.cli.targets ] || exec {shlex.quote(sys.executable)} "$@"
for word; do printf "%s\\0" "$word"; done >>"$SAID"
printf "\\n--\\n" >>"$SAID"
"""
# A target of each way in which variables are used, and the variables it passes on.
PASSES = {
    "bench": ["METHOD", "SPARSITY", "TASK", "SEED", "DEVICE", "DATA", "WANDB", "ARGS"],
    "table2": ["METHOD", "SPARSITY", "TASK", "SEED", "DEVICE", "DATA", "WANDB"],
    "sweep": ["GRID", "ARGS", "WORKERS", "JOBS", "PER_GPU", "WORKERS_ARGS", "RETRIES"],
    "claim": ["A", "B", "TASK", "SPARSITY"],
    "latency": ["RUN", "BATCH", "THREADS", "DEVICE"],
    "slim": ["RUN", "TO", "BATCH", "THREADS", "DEVICE", "DATA"],
    "faults": ["N", "SEED"],
    "check-method": ["METHOD", "ONLY"],
    "new-method": ["NAME"],
    "leaderboard": ["WANDB"],
    "plasticity": ["TASK", "EPOCHS", "ARGS"],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the Makefile and commands that only say what they were asked."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "benchmark").symlink_to(ROOT / "benchmark")
    for name in ("sparse-bench", "python"):
        (tmp_path / ".venv" / "bin" / name).write_text(STAND_IN)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(place: Path, *words: str, **environment: str) -> tuple[list[str], str]:
    """Run make in a place; return the words of the first command it ran, and all it printed."""
    said = place / "said"
    said.unlink(missing_ok=True)
    env = {**os.environ, "SAID": str(said), **environment}
    done = subprocess.run(["make", *words], cwd=place, env=env, capture_output=True, text=True, timeout=60)
    first = said.read_text().split("\n--\n")[0] if said.exists() else ""
    return first.split("\0")[:-1], done.stdout + done.stderr


@pytest.mark.parametrize("target", PASSES)
def test_a_value_reaches_the_command_as_it_was_given(target, place):
    """Every value by the targets that take many; by those that take few, some of each kind."""
    names = PASSES[target]
    values = [*HOSTILE, *ODD] if len(names) > 5 else [*HOSTILE[::3], *ODD[::3]]
    for start in range(0, len(values), len(names)):
        given = dict(zip(names, values[start:], strict=False))
        needed = {name: "r" for name in ("RUN", "A", "B") if name in names}
        words, out = make(place, target, *(f"{name}={value}" for name, value in {**needed, **given}.items()))
        assert set(given.values()) <= set(words), f"{given}: {words} {out}"
    assert not (place / "canary").exists()


def test_a_value_from_the_environment_is_as_harmless(place):
    names = [*PASSES["bench"], "PRECISION", "RANKS", "SNAPSHOTS"]
    words, _ = make(place, "bench", **dict(zip(names, HOSTILE, strict=True)))
    assert sum(any(value in word for word in words) for value in HOSTILE) == len(HOSTILE)
    assert not (place / "canary").exists()


@pytest.mark.parametrize("value", HOSTILE)
def test_no_variable_is_read_by_make_or_by_the_shell(value, place):
    """Neither by a target that takes it, nor by one that has no use for it and says so."""
    for target in ("bench", "sweep", "latency", "plasticity"):
        make(place, target, *(f"{name}={value}" for name in variables(target)))
    for target in ("help", "clean"):
        make(place, target, *(f"{name}={value}" for name in (*VARIABLES, "PYTHON", "UNKNOWN", "unknown")))
    assert not (place / "canary").exists()


def test_what_make_would_run_names_no_value(place):
    for target in TARGETS:
        given = [f"{name}=canary$(shell touch canary)" for name in variables(target)]
        done = subprocess.run(["make", "-n", target, *given], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0 and "canary" not in done.stdout, target
    assert not (place / "canary").exists()


def test_make_alone_prints_help(place):
    _, out = make(place)
    assert "make bench METHOD=granet SPARSITY=0.9" in out and "\n  ARGS=" in out


def test_what_makeflags_quotes_is_read_back():
    assert read_given(r"nk -j2 --jobserver-auth=3,4 -- N=x" + "\ny" + r" M=a\ \ b\\c\ $$x ARGS=lr=1 D:=4") == {
        "D": "4", "ARGS": "lr=1", "M": r"a  b\c $x", "N": "x\ny",
    }  # fmt: skip
    assert read_given("") == read_given("ks") == {}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["bench", "METHODS=static"], "make bench does not read METHODS (did you mean METHOD?); it reads ARGS, DATA"),
        (["bench", "EPOCHS=1"], 'EPOCHS (`make plasticity` does; as a setting: ARGS="epochs=1")'),
        (["bench", "GRID=x.yaml"], "GRID (`make sweep` does); it reads"),
        (["bench", "method=gmp"], "method (did you mean METHOD?)"),
        (
            ["bench", "ARGS=epochs=1", "batch_size=64", "lr=0.05"],
            'batch_size, lr (settings go into ARGS, in quotes: ARGS="epochs=1 batch_size=64 lr=0.05")',
        ),
        (["bench", "model_args.name=a b"], "ARGS=\"model_args.name='a b'\""),
        (["bench", "VENV=x"], "does not read VENV; it reads"),
        (["table2", "ARGS=lr=1"], "make table2 does not read ARGS (`make bench` and `make sweep` do)"),
        (["help", "X=1"], "make help does not read X"),
        (["clean", "X=1"], "it reads no variable, and nothing was run"),
        (["-n", "bench", "X=1"], "make bench does not read X"),
        (["lint", "bench", "SEEDS=1"], "make lint bench does not read SEEDS (did you mean SEED?)"),
        (["bench", "FRESH=maybe"], "FRESH must be 1 or 0, got 'maybe'"),
        (["latency"], "make latency needs RUN: make latency RUN=the name of a record"),
    ],
)  # fmt: skip
def test_a_variable_that_no_target_reads_is_refused_before_anything_runs(asked, told, place):
    words, out = make(place, *asked)
    assert told in out and "Error 2" in out and words == []
    assert len([line for line in out.splitlines() if line.startswith("error: ")]) == 1


def test_it_is_refused_where_nothing_is_installed_yet(place):
    shutil.rmtree(place / ".venv")
    _, out = make(place, "bench", "SEEDS=1", f"PYTHON={sys.executable}")
    assert "did you mean SEED?" in out and "installing" not in out


def test_the_environment_s_own_variables_and_make_s_are_no_mistakes(place):
    words, out = make(place, "lint", METHOD="x", FOO="1", CI="true", VENV="y", NAME="pc", N="3", A="b")
    assert words[:3] == ["-m", "ruff", "check"], out
    words, out = make(place, "-j2", "bench", "lint", "PYTHON=python9", "SHELL=/bin/sh", "SEED=1", RANKS="")
    assert words == ["run", "--seed", "1"] or words[:2] == ["-m", "ruff"], out
    assert make(place, "A=granet", "B=gmp", "claim")[0][-4:] == ["--a", "granet", "--b", "gmp"]


def test_only_what_was_given_is_handed_on_and_flags_are_flags(place):
    with pytest.raises(ValueError, match="PRECISION and precision= in ARGS are the same setting"):
        make_words("bench", {"PRECISION": "bf16", "ARGS": "epochs=2 precision=fp32"})
    words, _ = make(place, "bench", "PRECISION=bf16", "ARGS=epochs=2", "FRESH=1")
    assert words[words.index("--args") + 1] == "epochs=2 precision=bf16" and words[-1] == "--fresh"
    assert make(place, "bench", "FRESH=0")[0] == ["run"]
    assert make(place, "bench", "METHOD=")[0] == ["run", "--method", ""]  # which the command refuses
    words, _ = make(place, "table2", "PLAN=1", "GPUS=64", "PER_GPU=4")
    assert words == ["sweep", "configs/paper/table2.yaml", "--plan", "--gpus", "64", "--per-gpu", "4"]
    assert make(place, "table2", SEED="3")[0] == ["sweep", "configs/paper/table2.yaml", "--seed", "3"]
    assert make(place, "sweep", "GRID=some file", "METHOD=gmp")[0] == ["sweep", "--method", "gmp", "some file"]
    assert make(place, "check-method")[0] == ["check", "granet"]
    assert make(place, "faults")[0] == ["-m", "tests.harness.faults", "--count", "200"]


@pytest.mark.parametrize(
    ("asked", "status", "built"),
    [((), 0, True), ((), 1, True), ((), 2, False), ((), 130, False), (("PLAN=1",), 0, False)],
)
def test_a_table_rebuilds_all_pages_but_where_it_was_a_plan_or_stopped(asked, status, built, place):
    bench = place / ".venv" / "bin" / "sparse-bench"
    bench.write_text(f"#!/bin/sh\nexit {status}\n")
    words, out = make(place, "table1", *asked)
    assert words == (["-m", "leaderboard", "build"] if built else [])
    assert ("Error" in out) == bool(status)


@pytest.mark.parametrize(
    ("answers", "number", "ignored", "status", "told"),
    [
        (True, signal.SIGTERM, False, 130, ["up", "told"]),
        (False, signal.SIGTERM, False, -signal.SIGTERM, ["up"]),  # while it imports
        (True, signal.SIGHUP, True, 0, ["up", "ended", "-m", "leaderboard", "build"]),  # under nohup
    ],
)
def test_a_table_that_is_told_to_end_ends_its_sweep_and_rebuilds_nothing(answers, number, ignored, status, told, place):
    bench, said = place / ".venv" / "bin" / "sparse-bench", place / "said"
    trap = 'trap "echo told >>$SAID; kill $!; exit 130" TERM' if answers else ""
    bench.write_text(f"#!/bin/sh\n{trap}\necho up >>$SAID\nsleep {1 if ignored else 60} & wait\necho ended >>$SAID\n")
    code = (
        f"import pathlib, signal, sys, benchmark.cli.targets as t\nt.BIN = pathlib.Path({str(bench.parent)!r})\n"
        f"signal.signal({int(number)}, signal.SIG_IGN if {ignored} else signal.SIG_DFL)\nstatus = t.main('table1')\n"
        f"kept = signal.getsignal({int(number)}) is signal.SIG_IGN\n"
        f"sys.exit((status, kept) != ({int(status)}, {ignored}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "SAID": str(said)})
    end = time.monotonic() + 30
    while not said.exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)  # until it listens
    process.send_signal(number)
    assert process.wait(30) == 0
    assert said.read_text().replace("\0", " ").replace("--", "").split() == told


@pytest.mark.parametrize("target", TARGETS)
def test_every_variable_is_an_option_of_its_target_s_command_and_in_the_help(target):
    """So a new option of a command is a line in `TARGETS`, and a variable cannot outlive its option."""
    command = TARGETS[target][0].split()
    source = {
        "perf": "benchmark/perf/__main__.py",
        "gpu-check": "benchmark/perf/gpu.py",
        "faults": "tests/harness/faults.py",
        "claim": "leaderboard/claims/claim.py",
        "precision-study": "benchmark/studies/precision.py",
    }
    if command[0] == "sparse-bench":
        options = {
            name for p in typer.main.get_command(shell.app).commands[command[1]].params for name in (p.name, *p.opts)
        }
    else:
        read = (ROOT / source.get(target, "leaderboard/__main__.py")).read_text()
        options = {node.value for node in ast.walk(ast.parse(read)) if isinstance(node, ast.Constant)}
    for name in set(variables(target)) - {"PRECISION"}:
        option = f"--{OPTIONS.get(name, name.lower().replace('_', '-'))}"
        positional = f"<{name}>" in TARGETS[target][1]
        assert positional or option in options, f"{name} of make {target}"
        assert name in ("NAME", "N", "QUICK", "KEEP") or re.search(rf"^#:.*\b{name}=", TEXT, re.M), (
            f"{name} in the help"
        )
        assert name not in FLAGS or not positional


def test_what_make_was_told_is_not_a_wish_of_a_make_within_a_command(place):
    """Tests run make: a variable of the make around them must not look as if it were asked for."""
    bench = place / ".venv" / "bin" / "sparse-bench"
    inner = place / "inner"
    inner.write_text(STAND_IN)
    inner.chmod(0o755)
    bench.write_text('#!/bin/sh\n[ "$1" = sweep ] && exec ./inner "$@"\nexec make table2\n')
    words, out = make(place, "bench", "METHOD=x", "ARGS=y", SEED="7")
    assert words == ["sweep", "configs/paper/table2.yaml"], out
