"""The command that makes a record again, and the arithmetic that a record was computed in."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from leaderboard.store.schema import Record

RANKS = "RANKS="  # no setting is in capitals
NOTHING: Mapping[str, Any] = MappingProxyType({})


def repeat_commands(runs: list[Record], settings: Mapping[str, Any] = NOTHING) -> list[str]:
    """Return the commands that repeat the runs of a row, of these `settings`: one, or one for each way they were run.

    Ways differ in device, processes and settings of the page.
    """
    asked: dict[tuple[str, ...], set[int]] = {}
    for run in runs:
        asked.setdefault(repeat_words(run, settings), set()).add(run["seed"])
    return sorted(write_command(*words, seeds=sorted(seeds)) for words, seeds in asked.items())


def repeat_words(run: Record, settings: Mapping[str, Any] = NOTHING) -> tuple[str, ...]:
    """Return what a run must be asked for with, as `write_command` takes it: page, method, sparsity, device, settings.

    Settings are those that were changed, as `name=value`, sorted; before them comes `RANKS=n` where several processes
    trained together. `settings`: further ones of the method, that its page had then and has no more. Invariant: asked
    for again, with the same seed and the same version of the method, they give the same cell.
    """
    page, method = run["page"], run["method"]
    outside = method["source"].endswith(".py") and method["source"] != f"methods/{method['name']}.py"
    name = method["source"] if outside else method["name"]
    changed = {**page["changed"], **settings, **method["changed"]}
    words = [f"{setting}={setting_value(value)}" for setting, value in changed.items()]
    words += [f"{RANKS}{ranks_of(run)}"] if ranks_of(run) > 1 else []
    return page["name"], name, f"{run['sparsity']:.15g}", run["environment"]["device"], *sorted(words)


def setting_value(value: Any) -> str:
    """Return a value as `ARGS` reads it."""
    if isinstance(value, list):
        return f"[{','.join(setting_value(entry) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}: {setting_value(entry)}' for name, entry in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value)


def write_command(page: str, method: str, sparsity: str, device: str, *changes: str, seeds: Sequence[int]) -> str:
    """Return a command for the shell: `make bench …`, or `sparse-bench run …` for words in which make sees a meaning.

    Invariant: no text in a word is run by the shell or by make.
    """
    names = ("task", "method", "sparsity", "device")
    values = dict(zip(names, (page, method, sparsity, device), strict=True), seed=",".join(map(str, seeds)))
    values.update((RANKS.rstrip("=").lower(), word.removeprefix(RANKS)) for word in changes if word.startswith(RANKS))
    changes = tuple(word for word in changes if not word.startswith(RANKS))
    if all(re.fullmatch(r"[A-Za-z0-9_.,:/=+[\]-]+", word) for word in (*values.values(), *changes)):
        arguments = [f'ARGS="{" ".join(changes)}"'] if changes else []
        return " ".join(["make bench", *(f"{name.upper()}={value}" for name, value in values.items()), *arguments])
    options = [word for name, value in values.items() for word in (f"--{name}", value)]
    return shlex.join(
        [".venv/bin/sparse-bench", "run", *options, *(["--args", shlex.join(changes)] if changes else [])]
    )


ROUNDING = 1e-9  # a share of a run that is a whole epoch may be off by the last bits: 0.29 x 100 = 28.999999999999996


def name_arithmetic(precision: str, shares: int) -> str:
    """Return the name of an arithmetic: `fp32`, or `fp32-in-4-shares` where batch norm took a batch in four shares."""
    return precision if shares == 1 else f"{precision}-in-{shares}-shares"


def arithmetic(record: Record) -> str:
    """Return the name of a record's arithmetic. Records from before several processes could train count as one."""
    environment = record["environment"]
    return name_arithmetic(environment["precision"], environment.get("batch_norm_shares", 1))


def ranks_of(record: Record) -> int:
    """Return how many processes trained a run together."""
    return int(record["environment"].get("ranks", 1))


def drop_epochs(shares: Iterable[float], epochs: float) -> list[int]:
    """Return the epochs, counted from 0, from which on the learning rate is lower: shares of the run, rounded down.

    As int() does in the GraNet authors' code, but never before an epoch at the full rate, which a run of one has too.
    """
    return [max(1, math.floor(share * epochs + ROUNDING)) for share in shares]
