"""What was run, what it cost, and the commands that run it again."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from leaderboard.store.kinds import is_number
from leaderboard.store.records import finish_key, stable_key
from leaderboard.store.repeat import arithmetic, ranks_of, repeat_words, write_command
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import accuracies
from leaderboard.tables.sections import amount, make_sections
from leaderboard.tables.table import BLANK, Row, escape, flops, line, make_rows, multiple, percent, sparsities_of
from leaderboard.tables.usage import machine_of, name_machine

MOST = 5  # items of a list in an entry; more are only counted
MOST_DIVERGED = 10  # runs named
RAN = ("page", "data: training, validation, test images", "epochs", "runs", "diverged", "computed with", "code")
COST = ("page", "hours", "training FLOPs", "of dense", "dense network, accuracy, %")


@dataclass(frozen=True)
class Section:
    """Runs that share a line: `title` is escaped, `rows` are those of the runs that are no branches."""

    title: str
    runs: list[Record]
    rows: list[Row]


def table_sections(records: list[Record]) -> list[Section]:
    """Return the sections of the leaderboard, in its order."""
    return [Section(title, runs, make_rows(runs)) for title, runs in make_sections(records)]


def branch_sections(branches: Iterable[Record]) -> list[Section]:
    """Return the records of branches and their parents, a section for each page and data.

    Settings changed by a study do not split a section: branches of the sparsest networks have one their parents lack.
    """
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in sorted(branches, key=stable_key):
        page, data = record["page"]["name"], record["data"]["fingerprint"]
        groups.setdefault((-record["protocol"], page, data, arithmetic(record)), []).append(record)
    found = []
    for _, runs in sorted(groups.items()):
        parents: dict[str, list[Record]] = {}
        for run in runs:
            if "branch" not in run:
                parents.setdefault(run["page"]["variant"], []).append(run)
        rows = [row for group in parents.values() for row in make_rows(group)]
        found.append(Section(f"Branches: {escape(runs[0]['page']['title'])}", runs, rows))
    return found


def at_chance(run: Record) -> bool:
    """Return whether a finished run, no branch, ended no more than three standard errors above guessing a class."""
    guess, images = 1 / run["data"]["classes"], run["data"]["test"]
    if run["status"] != "ok" or "branch" in run or not images:
        return False
    return bool(run["accuracy_pct"]["last_epoch"] / 100 <= guess + 3 * math.sqrt(guess * (1 - guess) / images))


def ran_table(sections: list[Section]) -> list[str]:
    """Return the lines of the table of what was run."""
    lines = [line(RAN), line(["---"] * len(RAN))]
    for section in sections:
        runs, data = section.runs, section.runs[0]["data"]
        images = ", ".join(f"{data[part]:,}" for part in ("train", "validation", "test"))
        lines.append(
            line(
                [
                    f"{section.title}<br>{escape(runs[0]['page']['name'])}",
                    f"{escape(data['name'])}: {images}",
                    span(epochs_of(runs), "{:g}") or BLANK,
                    describe_runs(section),
                    str(sum(run["status"] != "ok" for run in runs)),
                    describe_machines(runs),
                    describe_code(runs),
                ]
            )
        )
    return lines


def epochs_of(runs: Iterable[Record]) -> list[float]:
    """Return the epochs of the runs' pages, as far as they are recorded."""
    return [value for run in runs if is_number(value := run["page"]["settings"].get("epochs"))]


def span(values: Iterable[float], how: str) -> str:
    """Return the range of values, `8` or `8 to 30`, or an empty text."""
    known = sorted(values)
    ends = list(dict.fromkeys(how.format(value) for value in (known[0], known[-1]))) if known else []
    return " to ".join(ends)


def listed(texts: Iterable[str], nouns: str) -> str:
    """Return texts as a list, or their number if they are many."""
    known = list(dict.fromkeys(texts))
    return ", ".join(known) if len(known) <= MOST else f"{len(known)} {nouns}"


def describe_runs(section: Section) -> str:
    """Return how many runs there are, of how many rows, controls made from their runs, sparsities and seeds."""
    runs, rows = section.runs, section.rows
    made = [run for run in runs if "branch" in run]
    if made:
        networks = {run["branch"]["parent"] for run in made}
        seeds = amount(len({run["seed"] for run in made}), "seed")
        count = f"{len(made):,} branch{'' if len(made) == 1 else 'es'} of {amount(len(networks), 'run')}"
        return f"{count}; {seeds}" + (
            f"; {amount(len(runs) - len(made), 'record')} of these runs" * (len(runs) > len(made))
        )
    cells = [cell for row in rows for cell in row.cells.values()]
    controls, repeats = sum(bool(row.made_from) for row in rows), sum(len(cell.repeats) for cell in cells)
    numbers = [amount(len(rows) - controls, "row")]
    numbers += [f"{amount(controls, 'control')} made from their runs"] if controls else []
    kinds = [" and ".join(numbers)]
    if sparsities := sparsities_of(rows):
        kinds.append(f"at {listed(map(percent, sparsities), 'sparsities')}")
    seeds = span([len(cell.counted) for cell in cells], "{}")
    kinds.append(f"{seeds} seed{'' if seeds == '1' else 's'} each")
    kinds += [amount(repeats, "repeat")] if repeats else []
    return f"{len(runs):,}: {'; '.join(kinds)}"


def describe_machines(runs: list[Record]) -> str:
    """Return arithmetic, kinds of machine with threads and processes, and versions of torch."""
    machines = count_machines(runs)
    shown = [
        machine if len(machines) == 1 else f"{machine}: {amount(count, 'run')}"
        for machine, count in sorted(machines.items())
    ]
    versions = map(escape, sorted({run["environment"]["torch"] for run in runs}))
    names = map(escape, sorted({arithmetic(run) for run in runs}))
    return "; ".join([", ".join(names), listed(shown, "kinds of machine"), f"torch {', '.join(versions)}"])


def count_machines(runs: Iterable[Record]) -> Counter[str]:
    """Return the number of runs by kind of machine."""
    return Counter(name_machine(*machine_of(run)) for run in runs)


def describe_code(runs: list[Record]) -> str:
    """Return how many commits were run, and how many runs used code that is in none."""
    commits = {run["git"]["commit"] for run in runs} - {None}
    parts = [amount(len(commits), "commit")]
    for words, value in (("with uncommitted code", True), ("of unknown code", None)):
        count = sum(run["git"]["dirty"] is value for run in runs)
        parts += [f"{amount(count, 'run')} {words}"] if count else []
    return "; ".join(parts)


def diverged_list(sections: list[Section]) -> list[str]:
    """Return a line for each of the first MOST_DIVERGED runs that diverged, and how many more there are."""
    found = []
    for section in sections:
        for run in sorted((run for run in section.runs if run["status"] != "ok"), key=stable_key):
            what = f"{escape(run['method']['label'])} at {percent(run['sparsity'])}, seed {run['seed']}"
            found.append(f"- Diverged: {section.title}, {what}.")
    more = len(found) - MOST_DIVERGED
    return found[:MOST_DIVERGED] + ([f"- Diverged: {more} more."] if more > 0 else [])


def cost_table(sections: list[Section]) -> list[str]:
    """Return the lines of the table of costs, with a last one for all sections together."""
    lines = [line(COST), line(["---"] + ["---:"] * (len(COST) - 1))]
    for section in sections:
        lines.append(line([section.title, *costs_of(section.runs), dense_accuracy(section.rows)]))
    if len(sections) > 1:
        lines.append(line(["*all*", *costs_of([run for section in sections for run in section.runs]), BLANK]))
    return lines


def costs_of(runs: list[Record]) -> list[str]:
    """Return hours of one process, training FLOPs, and these as a multiple of dense training."""
    train, dense = (sum(run["macs"][key] for run in runs) for key in ("train", "train_dense"))
    return [show_hours(runs), flops(train), multiple(train / dense)]


def show_hours(runs: list[Record]) -> str:
    """Return the hours that the runs trained, summed over their processes."""
    hours = sum(run["time"]["train_s"] * ranks_of(run) for run in runs) / 3600
    return f"{hours:,.1f} h" if hours >= 10 else f"{hours:.2f} h"


def dense_mean(rows: list[Row]) -> float | None:
    """Return the mean accuracy of the dense row that was run last and has a finished run, None without one."""
    known = [cell for row in rows if row.dense for cell in row.cells.values() if accuracies(cell)]
    newest = max(known, key=lambda cell: max(map(finish_key, cell.counted)), default=None)
    return None if newest is None else fmean(accuracies(newest).values())


def dense_accuracy(rows: list[Row]) -> str:
    """Return accuracy of the dense row and its range over seeds, or BLANK."""
    shown = []
    for row in rows:
        for cell in row.cells.values() if row.dense else ():
            ends = span(accuracies(cell).values(), "{:.2f}")
            shown.append(cell.accuracy() + (f", {ends}" if " to " in ends else ""))
    return "; ".join(shown) or BLANK


MOST_COMMANDS = 12  # commands shown
SAFE = re.compile(r"[A-Za-z0-9_.,:/=+[\]-]+")  # in a word: no meaning to a shell, make or Markdown
SHOWN = re.compile(r"[A-Za-z0-9_.,:/=+[\]\" -]+")  # in a command
HOW = ("--jobs", "--retries", "--workers", "--workers-args", "--per-gpu", "--device", "--data", "--wandb", "--engine",
       "--engine-args")  # not what; the last two as they were once called  # fmt: skip
NARROW = ("--method", "--sparsity", "--task", "--seed")
STUDY = ("--task", "--scale", "--epochs", "--seed", "--more", "--scope", "--pattern")


def list_commands(records: list[Record], branches: list[Record]) -> tuple[list[str], int]:
    """Return commands that repeat what was run, and how many are left out: too many, or not plain words.

    First those whose data anybody has. Invariant: no word has a meaning to a shell, to make or in Markdown; the order
    of the records is irrelevant.
    """
    grids = {text: grid_command(text) for text in {run["command"] for run in records}}
    loose = [run for run in records if not grids[run["command"]]]
    studies = {study_command(text) for text in {run["command"] for run in branches}}
    found = [
        *join_seeds(command for command in grids.values() if command),
        *run_commands(loose),
        *sorted(studies - {""}),
    ]
    distant = name_distant([*records, *branches], grids)
    plain = [command for command in found if SHOWN.fullmatch(command)]
    plain.sort(key=lambda command: any(word.partition("=")[2] in distant for word in command.split()))
    hidden = len(found) - len(plain) + ("" in studies)
    return plain[:MOST_COMMANDS], hidden + max(0, len(plain) - MOST_COMMANDS)


def name_distant(runs: Iterable[Record], grids: Mapping[str, str]) -> set[str]:
    """Return the pages and grid files all of whose runs read a folder of images, which others may not have.

    grids: `grid_command` of the records' commands.
    """
    near: dict[str, bool] = {}
    for run in runs:
        grid = grids.get(run["command"], "").removeprefix("make sweep GRID=").partition(" ")[0]
        for name in (run["page"]["name"], grid):
            near[name] = near.get(name, False) or run["page"]["settings"].get("data") != "folder"
    return {name for name, is_near in near.items() if name and not is_near}


def grid_command(command: str) -> str:
    """Return `make sweep GRID=…` for the command of a sweep over a grid file in configs/, else an empty text.

    Options that narrow the grid are kept, SEED last; those that say how it was run are left out.
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
    """Return commands, sorted; those that differ only in seeds become one, for all seeds if one names none.

    A part of a grid is left out where all of it is there.
    """
    seeds: dict[str, set[int] | None] = {}
    for command in sorted(set(commands)):
        found = re.fullmatch(r"(.*) SEED=(\d{1,18}(?:,\d{1,18})*)", command)
        text, own = (found[1], {int(seed) for seed in found[2].split(",")}) if found else (command, None)
        known = seeds.setdefault(text, set())
        seeds[text] = None if own is None or known is None else known | own
    grids = [text for text, known in seeds.items() if known is None and re.fullmatch(r"make sweep GRID=\S+", text)]
    return [
        text if known is None else f"{text} SEED={','.join(map(str, sorted(known)))}"
        for text, known in sorted(seeds.items())
        if not any(text.startswith(f"{grid} ") for grid in grids)
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
    """Return the words of a command; none if its quotes do not match."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def read_options(words: list[str]) -> dict[str, str] | None:
    """Return options with their values; None unless all are `--name value` in plain words."""
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(map(SAFE.fullmatch, words)):
        return None
    return dict(zip(names, values, strict=True)) if all(name.startswith("--") for name in names) else None


def run_commands(runs: Iterable[Record]) -> list[str]:
    """Return as few commands as possible for runs: methods run alike share one."""
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
