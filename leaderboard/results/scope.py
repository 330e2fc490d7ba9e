"""What was run and what it cost: a line for each page of the leaderboard, and for the branches of each page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from leaderboard.arithmetic import arithmetic, ranks_of
from leaderboard.comparisons import accuracies
from leaderboard.kinds import is_number, is_whole
from leaderboard.page import amount, make_sections
from leaderboard.records import stable_key
from leaderboard.schema import Record
from leaderboard.table import BLANK, Row, escape, flops, line, make_rows, multiple, percent, sparsities_of

MOST = 5  # entries of a list in a cell; more are only counted
MOST_DIVERGED = 10  # runs named
RAN = ("page", "data: training, validation, test images", "epochs", "runs", "diverged", "computed with", "code")
COST = ("page", "hours", "training FLOPs", "of dense", "dense network, accuracy, %")


@dataclass(frozen=True)
class Section:
    """Runs that share a line: `title` is harmless in Markdown, `rows` are those of the runs that are no branches."""

    title: str
    runs: list[Record]
    rows: list[Row]


def table_sections(records: list[Record]) -> list[Section]:
    """Return the sections of the leaderboard, in its order."""
    return [Section(title, runs, make_rows(runs)) for title, runs in make_sections(records)]


def branch_sections(branches: Iterable[Record]) -> list[Section]:
    """Return the records of branches and of the runs they go on from, a section for each page and data.

    Settings that a study changed do not part them: branches of the sparsest networks have one that their parents lack.
    """
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in sorted(branches, key=stable_key):
        page, data = record["page"]["name"], record["data"]["fingerprint"]
        groups.setdefault((-record["protocol"], page, data, arithmetic(record)), []).append(record)
    found = []
    for _, runs in sorted(groups.items()):
        rows = make_rows([run for run in runs if "branch" not in run])
        found.append(Section(f"Branches: {escape(runs[0]['page']['title'])}", runs, rows))
    return found


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
                    show_epochs(runs),
                    describe_runs(section),
                    str(sum(run["status"] != "ok" for run in runs)),
                    describe_machines(runs),
                    describe_code(runs),
                ]
            )
        )
    return lines


def show_epochs(runs: list[Record]) -> str:
    """Return the epochs that the page trains, `8` or `8 to 30`."""
    known = [value for run in runs if is_number(value := run["page"]["settings"].get("epochs"))]
    return span(known, "{:g}") or BLANK


def span(values: Iterable[float], how: str) -> str:
    """Return `8`, or `8 to 30`; empty where there is none."""
    known = sorted(values)
    ends = list(dict.fromkeys(how.format(value) for value in (known[0], known[-1]))) if known else []
    return " to ".join(ends)


def listed(texts: Iterable[str], nouns: str) -> str:
    """Return texts as a list, or how many there are where they are many."""
    known = list(dict.fromkeys(texts))
    return ", ".join(known) if len(known) <= MOST else f"{len(known)} {nouns}"


def describe_runs(section: Section) -> str:
    """Return how many runs there are, and of what: rows, controls made from other rows' runs, sparsities and seeds."""
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
    """Return precision, kinds of machine with their threads and processes, and versions of torch."""
    machines = count_machines(runs)
    shown = [
        machine if len(machines) == 1 else f"{machine}: {amount(count, 'run')}"
        for machine, count in sorted(machines.items())
    ]
    versions = map(escape, sorted({run["environment"]["torch"] for run in runs}))
    names = map(escape, sorted({arithmetic(run) for run in runs}))
    return "; ".join([", ".join(names), listed(shown, "kinds of machine"), f"torch {', '.join(versions)}"])


def count_machines(runs: Iterable[Record]) -> Counter[str]:
    """Return the number of runs by kind of machine, each as `name_machine` names it."""
    found = Counter(machine_of(run) for run in runs)
    named: Counter[str] = Counter()
    for machine, number in found.items():  # named once each, for there are many runs and few machines
        named[name_machine(*machine)] += number
    return named


def machine_of(run: Record) -> tuple[str, str, int, int]:
    """Return device, its name, threads and processes of a run; what a record does not say is empty or 0."""
    environment = run["environment"]
    name, threads = environment.get("device_name"), environment.get("threads")
    known = name if isinstance(name, str) else ""
    return environment["device"], known, threads if is_whole(threads) else 0, ranks_of(run)


def name_machine(device: str, name: str, threads: int, ranks: int) -> str:
    """Return `cpu (AMD EPYC), 1 thread, 4 processes`, harmless in Markdown."""
    shown = f"{escape(device)} ({escape(name)})" if name else escape(device)
    shown += f", {amount(threads, 'thread')}" if threads else ""
    return shown + (f", {ranks} processes" if ranks > 1 else "")


def describe_code(runs: list[Record]) -> str:
    """Return how many commits the runs are of, and how many ran with code that is in none."""
    commits = {run["git"]["commit"] for run in runs} - {None}
    parts = [amount(len(commits), "commit")]
    for words, value in (("with uncommitted code", True), ("of unknown code", None)):
        count = sum(run["git"]["dirty"] is value for run in runs)
        parts += [f"{amount(count, 'run')} {words}"] if count else []
    return "; ".join(parts)


def diverged_list(sections: list[Section]) -> list[str]:
    """Return a line for each run that diverged, the first few; nothing where none did."""
    found = []
    for section in sections:
        for run in sorted((run for run in section.runs if run["status"] != "ok"), key=stable_key):
            what = f"{escape(run['method']['label'])} at {percent(run['sparsity'])}, seed {run['seed']}"
            found.append(f"- Diverged: {section.title}, {what}.")
    more = len(found) - MOST_DIVERGED
    return found[:MOST_DIVERGED] + ([f"- Diverged: {more} more."] if more > 0 else [])


def cost_table(sections: list[Section]) -> list[str]:
    """Return the lines of the table of what it cost, with a last one for all together."""
    lines = [line(COST), line(["---"] + ["---:"] * (len(COST) - 1))]
    for section in sections:
        lines.append(line([section.title, *costs_of(section.runs), dense_accuracy(section.rows)]))
    if len(sections) > 1:
        lines.append(line(["*all*", *costs_of([run for section in sections for run in section.runs]), BLANK]))
    return lines


def costs_of(runs: list[Record]) -> list[str]:
    """Return hours of one process, training FLOPs, and these as a multiple of what dense training would have cost."""
    train, dense = (sum(run["macs"][key] for run in runs) for key in ("train", "train_dense"))
    return [show_hours(runs), flops(train), multiple(train / dense)]


def show_hours(runs: list[Record]) -> str:
    """Return the hours that the runs trained, of one process: those of several count each."""
    hours = sum(run["time"]["train_s"] * ranks_of(run) for run in runs) / 3600
    return f"{hours:,.1f} h" if hours >= 10 else f"{hours:.2f} h"


def dense_accuracy(rows: list[Row]) -> str:
    """Return accuracy of the dense row and its range over seeds; BLANK where there is none."""
    shown = []
    for row in rows:
        for cell in row.cells.values() if row.dense else ():
            ends = span(accuracies(cell).values(), "{:.2f}")
            shown.append(cell.accuracy() + (f", {ends}" if " to " in ends else ""))
    return "; ".join(shown) or BLANK
