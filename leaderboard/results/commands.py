"""Commands that make the runs again: grid files and studies as records name them, all else from settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from leaderboard.records import stable_key
from leaderboard.repeat import repeat_words, write_command
from leaderboard.schema import Record

MOST = 12  # commands shown
SAFE = re.compile(r"[A-Za-z0-9_.,:/=+[\]-]+")  # in a word that is shown: no meaning for a shell, make or Markdown
SHOWN = re.compile(r"[A-Za-z0-9_.,:/=+[\]\" -]+")  # in a command
HOW = ("--jobs", "--retries", "--engine", "--engine-args", "--per-gpu", "--device", "--data", "--wandb")  # not what
NARROW = ("--method", "--sparsity", "--task", "--seed")
STUDY = ("--task", "--scale", "--epochs", "--seed", "--more", "--scope", "--pattern")


def list_commands(records: list[Record], branches: list[Record]) -> tuple[list[str], int]:
    """Return commands that make what was run again, and how many are left out, for they are many or not plain words.

    Invariant: each consists of plain words, which mean nothing else to a shell, to make or in Markdown; the same
    records in any order give the same commands.
    """
    grids = {text: grid_command(text) for text in {run["command"] for run in records}}
    loose = [run for run in records if not grids[run["command"]]]
    studies = {study_command(text) for text in {run["command"] for run in branches}}
    found = [
        *join_seeds(command for command in grids.values() if command),
        *run_commands(loose),
        *sorted(studies - {""}),
    ]
    plain = [command for command in found if SHOWN.fullmatch(command)]
    hidden = len(found) - len(plain) + ("" in studies)
    return plain[:MOST], hidden + max(0, len(plain) - MOST)


def grid_command(command: str) -> str:
    """Return `make sweep GRID=…` for the command of a run of a grid file of configs/, else an empty text.

    Options that narrow the grid are kept, SEED as the last; those that say how it was run, not what, are left out.
    """
    words = split(command)
    if words[:2] not in (["sparse-bench", "grid"], ["sparse-bench", "sweep"]) or len(words) < 3:
        return ""
    options = read_options(words[3:])
    if options is None or not re.fullmatch(r"configs(/[A-Za-z0-9_-]+)+\.yaml", words[2]):
        return ""
    if not set(options) <= {*HOW, *NARROW}:
        return ""
    kept = [f"{name[2:].upper()}={options[name]}" for name in NARROW if name in options]
    return " ".join([f"make sweep GRID={words[2]}", *kept])


def join_seeds(commands: Iterable[str]) -> list[str]:
    """Return commands, sorted; those that differ in seeds alone become one, for all seeds where one names none."""
    seeds: dict[str, set[int] | None] = {}
    for command in sorted(set(commands)):
        found = re.fullmatch(r"(.*) SEED=(\d{1,18}(?:,\d{1,18})*)", command)
        text, own = (found[1], {int(seed) for seed in found[2].split(",")}) if found else (command, None)
        known = seeds.setdefault(text, set())
        seeds[text] = None if own is None or known is None else known | own
    return [
        text if known is None else f"{text} SEED={','.join(map(str, sorted(known)))}"
        for text, known in sorted(seeds.items())
    ]


def study_command(command: str) -> str:
    """Return `make plasticity …` for the command of a study, else an empty text."""
    words = split(command)
    options = read_options(words[2:]) if words[:2] == ["sparse-bench", "plasticity"] else None
    if options is None or not set(options) <= {*HOW, *STUDY}:
        return ""
    asked = [f"{name[2:].upper()}={value}" for name, value in options.items() if name in STUDY]
    return " ".join(["make plasticity", *asked])


def split(command: str) -> list[str]:
    """Return the words of a command; none where its quotes make no sense."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def read_options(words: list[str]) -> dict[str, str] | None:
    """Return options with their values, `--name value` each; None for words that are not so, or not plain."""
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(map(SAFE.fullmatch, words)):
        return None
    return dict(zip(names, values, strict=True)) if all(name.startswith("--") for name in names) else None


def run_commands(runs: Iterable[Record]) -> list[str]:
    """Return commands for runs, few: methods that were run alike are one, with lists."""
    cells: dict[tuple[str, ...], dict[str, set[int]]] = {}  # all but the sparsity: sparsity, seeds
    for run in sorted(runs, key=stable_key):
        page, method, sparsity, *rest = repeat_words(run)
        cells.setdefault((page, method, *rest), {}).setdefault(sparsity, set()).add(run["seed"])
    alike: dict[tuple[str, tuple[str, ...], tuple[str, ...], tuple[int, ...]], list[str]] = {}  # but the method
    for (page, method, *rest), by_sparsity in cells.items():
        seeds = {sparsity: tuple(sorted(known)) for sparsity, known in by_sparsity.items()}
        for known in sorted(set(seeds.values())):
            sparsities = tuple(sorted((s for s in seeds if seeds[s] == known), key=float))
            alike.setdefault((page, sparsities, tuple(rest), known), []).append(method)
    return sorted(
        write_command(page, ",".join(sorted(methods)), ",".join(sparsities), *rest, seeds=known)
        for (page, sparsities, rest, known), methods in alike.items()
    )
