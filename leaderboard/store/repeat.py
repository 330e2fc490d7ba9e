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
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.*/-]*")  # text in a list that YAML reads as text, but for these words
NO_TEXT = ("true", "false", "yes", "no", "on", "off", "y", "n", "null")
NOTHING: Mapping[str, Any] = MappingProxyType({})


def repeat_commands(runs: list[Record], settings: Mapping[str, Any] = NOTHING) -> list[str]:
    """Return the commands that repeat the runs of a row: one for each device, number of processes and page settings."""
    asked: dict[tuple[str, ...], set[int]] = {}
    for run in runs:
        asked.setdefault(repeat_words(run, settings), set()).add(run["seed"])
    return sorted(write_command(*words, seeds=sorted(seeds)) for words, seeds in asked.items())


def repeat_words(run: Record, settings: Mapping[str, Any] = NOTHING) -> tuple[str, ...]:
    """Return what repeats a run, as `write_command` takes it: page, method, sparsity, device, changed settings.

    Settings are sorted `name=value` words, and `RANKS=n` if several processes trained together. `settings`: further
    ones of the method that its page no longer has. Invariant: with the same seed and version of the method they give
    the same cell.
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
    return value if isinstance(value, str) else inner_value(value)


def inner_value(value: Any) -> str:
    """Return a value as it stands in a list or an object; text that YAML would read as something else is in quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(inner_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{inner_value(name)}: {inner_value(entry)}' for name, entry in value.items())}}}"
    is_plain = isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in NO_TEXT
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def write_command(page: str, method: str, sparsity: str, device: str, *changes: str, seeds: Sequence[int]) -> str:
    """Return a shell command: `make bench …`, or `sparse-bench run …` for words that mean something to make.

    Invariant: neither the shell nor make runs any text in a word.
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


ROUNDING = 1e-9  # a share of a run that is a whole epoch may be off in its last bits: 0.29 x 100 = 28.999999999999996


def name_arithmetic(precision: str, shares: int) -> str:
    """Return the name of an arithmetic: `fp32`, or `fp32-in-4-shares` if batch norm saw a batch in four shares."""
    return precision if shares == 1 else f"{precision}-in-{shares}-shares"


def arithmetic(record: Record) -> str:
    """Return the name of a record's arithmetic; older records count as one share."""
    environment = record["environment"]
    return name_arithmetic(environment["precision"], environment.get("batch_norm_shares", 1))


def ranks_of(record: Record) -> int:
    """Return how many processes trained a run together."""
    return int(record["environment"].get("ranks", 1))


def drop_epochs(shares: Iterable[float], epochs: float) -> list[int]:
    """Return the epochs, counted from 0, from which the learning rate is lower: shares of the run, rounded down.

    As int() does in the GraNet authors' code, but at least one epoch keeps the full rate.
    """
    return [max(1, math.floor(share * epochs + ROUNDING)) for share in shares]
