"""The Makefile: whatever a variable holds reaches the command as it was given, and nothing in it is ever run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Makefile").read_text()
VARIABLES = re.findall(r"^([A-Z_]+) *\?=", TEXT, re.M)
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
# What stands in for every command: it prints its arguments.
STAND_IN = '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >>"$SAID"\nprintf "\\n--\\n" >>"$SAID"\n'
# A target of each way in which variables are used, and the variables it passes on.
PASSES = {
    "bench": ["METHOD", "SPARSITY", "TASK", "SEED", "DEVICE", "DATA", "WANDB", "ARGS"],
    "table2": ["METHOD", "SPARSITY", "TASK", "SEED", "DEVICE", "DATA", "WANDB"],
    "sweep": ["GRID", "ARGS", "ENGINE", "JOBS", "PER_GPU", "ENGINE_ARGS", "RETRIES"],
    "claim": ["A", "B", "TASK", "SPARSITY"],
    "latency": ["RUN", "BATCH", "THREADS", "DEVICE"],
    "slim": ["RUN", "TO", "BATCH", "THREADS", "DEVICE", "DATA"],
    "faults": ["N", "SEED"],
    "check-method": ["METHOD"],
    "new-method": ["NAME"],
    "leaderboard": ["WANDB"],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the Makefile and commands that only say what they were asked."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
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
    for number, value in enumerate([*HOSTILE, *ODD]):
        name = PASSES[target][number % len(PASSES[target])]
        words, out = make(
            place, target, f"{name}={value}", *(["RUN=r"] if "RUN" in PASSES[target] and name != "RUN" else [])
        )
        assert value in words, f"{name}={value!r}: {words} {out}"
    assert not (place / "canary").exists()


def test_a_value_from_the_environment_is_as_harmless(place):
    for value in HOSTILE:
        words, _ = make(place, "bench", ARGS=value, METHOD=value)
        assert words.count(value) == 2
    assert not (place / "canary").exists()


@pytest.mark.parametrize("name", VARIABLES)
def test_no_variable_is_read_by_make_or_by_the_shell(name, place):
    """Also where a target has no use for it: make would work out what it hands on to every command."""
    targets = ["help", "bench", "table1", "leaderboard", "perf", "scale", "sweep", "latency", "slim"]
    for number, value in enumerate(HOSTILE):
        make(place, targets[number % len(targets)], f"{name}={value}", "GRID=x" if name != "GRID" else "PLAN=1")
    assert not (place / "canary").exists()


def test_what_make_would_run_names_no_value(place):
    for target in PASSES:
        given = [f"{name}=canary$(shell touch canary)" for name in VARIABLES]
        done = subprocess.run(["make", "-n", target, *given], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0 and "canary" not in done.stdout, target
    assert not (place / "canary").exists()


def test_every_variable_of_the_makefile_is_handed_on_as_it_is():
    handed = re.search(r"^ASKED = ((?:.*\\\n)*.*)$", TEXT, re.M)
    assert handed and set(handed[1].replace("\\", " ").split()) == set(VARIABLES), "a new variable belongs into ASKED"
    for line in TEXT.splitlines():
        for name in VARIABLES:
            assert f"$({name})" not in line and f"${{{name}}}" not in line, (
                f'write "$$ASKED_{name}" in a recipe and $(value {name}) in a condition: {line}'
            )


def test_precision_is_a_setting_and_flags_are_flags(place):
    words, _ = make(place, "bench", "PRECISION=bf16", "ARGS=epochs=2", "FRESH=1")
    assert words[words.index("--args") + 1] == "epochs=2 precision=bf16" and words[-1] == "--fresh"
    assert "--args" not in make(place, "bench")[0]
    words, _ = make(place, "table2", "PLAN=1", "GPUS=64", "PER_GPU=4")
    assert words[:7] == ["sweep", "configs/paper/table2.yaml", "--plan", "--gpus", "64", "--per-gpu", "4"]
    words, _ = make(place, "table2")
    assert words == ["sweep", "configs/paper/table2.yaml", "--device", "auto", "--data", "data", "--wandb", "off"]


def test_what_make_was_told_is_not_a_wish_of_a_make_within_a_command(place):
    """Tests run make: a default of the make around them must not look as if it were asked for."""
    (place / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexec make sweep GRID=x\n")
    words, out = make(place, "test")
    assert "--method" not in words and words[:2] == ["sweep", "x"], out
