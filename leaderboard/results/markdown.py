"""The sheet of results: a pure function of records, branches and the paper's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from leaderboard.claims.claim import NOT_DECIDED, show_p
from leaderboard.paper.cells import PROTOCOL_DIFFERS, TESTED, TOO_FEW, TableView
from leaderboard.paper.markdown import done_of, meaning_of
from leaderboard.paper.published import Tables
from leaderboard.plasticity.findings import CLAIMS, NAMES, Finding, Study, find_findings, make_studies
from leaderboard.results.agreement import (
    AGREES,
    AGREES_ALONE,
    REVERSED,
    REVERSED_ALONE,
    SURE,
    UNCLEAR,
    UNCLEAR_ALONE,
    VERDICTS,
    Printed,
    Weighed,
    note_versions,
    weigh_statements,
)
from leaderboard.results.caveats import list_caveats, tell_apart
from leaderboard.results.growing import find_grown, growing_lines, tell_growing
from leaderboard.results.longer import find_longer, longer_lines, tell_longer
from leaderboard.results.scope import (
    Section,
    at_chance,
    branch_sections,
    cost_table,
    diverged_list,
    list_commands,
    ran_table,
    show_hours,
    table_sections,
)
from leaderboard.results.summary import summary_lines
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import show_interval, signed
from leaderboard.tables.sections import amount, is_changed
from leaderboard.tables.table import BLANK, LEAST_SEEDS, escape, line, percent

INTRODUCTION = """\
# Results

What the runs in this repository show, in short. Made by `make leaderboard` from the records of {sources} and from the
numbers that the paper prints, in `leaderboard/paper/paper_tables.yaml`; do not edit. [{board}]({board_link}) has every
row, [PAPER.md](PAPER.md) every cell of the paper's tables. The paper: {paper}."""

LEGEND = """\
The paper's statements are tested on the methods of `methods/` at their defaults: accuracy after the last epoch (the
paper's is that of the best test epoch), first row less second, in points; Welch's tests on the seeds that both rows
have (on all, where they share fewer than {least}): what one alone has may have been added after a look. **Paper**: in
how many cells of its Table 2 (Table 3 where that lacks a row) at this sparsity, or at all of them where it has not this
one, the first row is above the second, and the median difference. **p** is corrected by Holm's rule: *alone* over the
sparsities of this pair, as `make claim` does it (which takes all seeds), *of all* over all comparisons of the table,
run or not.

- *{agrees}*, *{reversed}*: significant (p of all ≤ {alpha:g}), with the sign of the paper's median, or the other one.
  *{unclear}*: significant, where the paper's cells lean to neither row: they do not all have one sign, and their median
  is within the ± that it prints.
- *{agrees_alone}*, *{reversed_alone}*, *{unclear_alone}*: significant for who came with this one question (p alone ≤
  {alpha:g}), not among all that are asked here: of twenty pairs that do not differ one comes out so by chance.
- *not shown*: not significant; in brackets the true difference that so many seeds of these spreads find in 4 of 5 such
  cases, and about how many seeds would find the paper's median, both among all that are asked here (alone, by `make
  claim`, less is enough): the spread of three seeds tells it only roughly.
- *less*, *more than the paper's*: the interval excludes the paper's median, which was found in other training.
- *too few seeds*, *not decided*, *not run*: the runs cannot carry a verdict, with the reason.
- *cited*: the paper copied one of the rows, or both, from another paper, with another dense network.
- **Training FLOPs** of the first and of the second row, in multiples of dense training: equal sparsity is not equal
  cost."""

WORDS = {
    "agrees": AGREES,
    "reversed": REVERSED,
    "unclear": UNCLEAR,
    "agrees_alone": AGREES_ALONE,
    "reversed_alone": REVERSED_ALONE,
    "unclear_alone": UNCLEAR_ALONE,
}
NO_RUNS = "There is no record of a run on a page of the leaderboard yet: `make bench METHOD=granet SPARSITY=0.9`."
NO_BRANCHES = "There is no study of pruning plasticity yet: `make plasticity`."
NO_PAIR = "No page has both rows of a statement yet."
AGAIN = """\
A finished run is not made twice by `make sweep` and `make plasticity`. The same seed gives the same bits on the same
kind of machine with as many threads. Folders of images must lie where their page says.
To train anew what has a record, name another folder: `sparse-bench sweep GRID --records FOLDER`."""
HEAD = (
    *("first − second", "sparsity", "paper", "ours", "95 % interval", "p alone", "p of all", "verdict"),
    "training FLOPs",
)


@dataclass(frozen=True)
class Links:
    """Link targets relative to the sheet: folders of records and of branches, the leaderboard's file."""

    records: str = "records"
    branches: str = "branches"
    board: str = "LEADERBOARD.md"


def render_results(
    records: list[Record],
    branches: list[Record],
    skipped: int,
    tables: Tables,
    views: list[TableView],
    places: Links | None = None,
) -> str:
    """Return the sheet, or an empty text if there is neither a record nor a branch.

    `skipped`: how many files were skipped; `views`: what `compare_all` returns for these records. Invariant: the order
    of the records is irrelevant, and every number is a record's or a published one.
    """
    if not records and not branches:
        return ""
    places = places or Links()
    sections, studied = table_sections(records), branch_sections(branches)
    as_they_come = [section for section in sections if not is_changed(section.runs[0])] or sections
    tested = [(section, weigh_statements(section.runs, tables)) for section in as_they_come]
    studies = [(study, find_findings(study)) for study in make_studies(branches)]
    stores = (("runs", places.records, records), ("branches", places.branches, branches))
    introduction = INTRODUCTION.format(
        sources=" and of ".join(f"[{name}]({quote(folder)})" for name, folder, there in stores if there),
        board=escape(places.board),
        board_link=quote(places.board),
        paper=escape(tables.source),
    )
    every = [*sections, *studied]
    lines = [introduction, "", summary(every, [found for _, of in tested for found in of], studies), ""]
    grown, longer = find_grown(as_they_come), find_longer(as_they_come)
    notes = [*tell_longer(longer), *tell_growing(grown)]
    lines += summary_lines(as_they_come, tested, studies, notes, tables)
    lines += ["## What was run", "", *ran_lines(sections, studied, skipped), "", "## What it cost", ""]
    lines += ["Hours are of training, of one process, summed over runs. FLOPs are 2 × multiply-adds; *of dense*: as a"]
    lines += ["multiple of what the same runs would have cost dense.", "", *cost_table(every), ""]
    lines += ["## What agrees with the paper, and what does not", "", *agreement_lines(tested, tables), ""]
    lines += [
        *longer_lines(longer),
        *plasticity_lines(studies),
        "",
        *growing_lines(grown),
        "### The paper's own tables",
        "",
        own_tables(views),
        "",
    ]
    lines += ["## What a reader may not conclude", "", *(f"- {text}" for text in list_caveats(every, views, tables))]
    return "\n".join([*lines, "", "## Repeat it", "", *repeat_lines(records, branches)]) + "\n"


def summary(every: list[Section], tested: list[Weighed], studies: list[tuple[Study, list[Finding]]]) -> str:
    """Return three sentences: how much was run, and how many verdicts there are of each kind."""
    runs = [run for section in every for run in section.runs]
    made = sum("branch" in run for run in runs)
    numbers = ((len(runs) - made, "run", "runs"), (made, "branch", "branches"))
    ran = " and ".join(f"{number:,} {one if number == 1 else many}" for number, one, many in numbers if number)
    studied = [section.runs for section in every if any("branch" in run for run in section.runs)]
    parents = sum("branch" not in run for group in studied for run in group)
    ran += f" ({parents} of the runs are those that branches start from, on no table)" if parents else ""
    diverged = sum(run["status"] != "ok" for run in runs)
    text = f"**{ran}**, {show_hours(runs)} of training, {diverged} diverged"
    text += f", {lost} ended no better than chance." if (lost := sum(map(at_chance, runs))) else "."
    if tested:
        text += f" Of {amount(len(tested), 'comparison')} with the paper: {count(found.verdict for found in tested)}."
    if studies:
        verdicts = count(finding.verdict for _, findings in studies for finding in findings)
        text += f" Of the tests of its findings on pruning plasticity: {verdicts}."
    return text


def count(verdicts: Iterable[str]) -> str:
    """Return `3 as in the paper, 1 not shown`: in the order of VERDICTS, then by name."""
    counts = Counter(verdicts)
    order = [verdict for verdict in VERDICTS if verdict in counts]
    return ", ".join(f"{counts[name]} {name}" for name in [*order, *sorted(counts.keys() - set(order))])


def ran_lines(sections: list[Section], studied: list[Section], skipped: int) -> list[str]:
    """Return the lines on what was run."""
    lines = ran_table([*sections, *studied])
    notes = diverged_list([*sections, *studied])
    notes += [f"- {amount(skipped, 'file')} set aside, which enter nothing: the pages name them."] if skipped else []
    notes += [] if sections else [f"- {NO_RUNS}"]
    notes += [] if studied else [f"- {NO_BRANCHES}"]
    return lines + (["", *notes] if notes else [])


def agreement_lines(tested: list[tuple[Section, list[Weighed]]], tables: Tables) -> list[str]:
    """Return the lines on the paper's statements: a table for each section that has both rows of one."""
    shown = [(section, found) for section, found in tested if found]
    if not shown:
        return [NO_PAIR]
    from leaderboard.tables.stats import ALPHA

    lines = [LEGEND.format(**WORDS, alpha=ALPHA, least=LEAST_SEEDS), ""]
    for section, found in shown:
        about = f"{tell_apart(section.runs[0], tables)} {note_versions(section.runs)}".rstrip()
        lines += [f"### {section.title}", "", about, "", line(HEAD)]
        lines += [line(["---", "---:", "---", "---:", "---:", "---:", "---:", "---", "---"])]
        lines += [*(statement_row(one, tables) for one in found), ""]
    used = {status for _, found in shown for one in found for status in one.printed.statuses}
    marks = [f"{mark} {meaning_of(tables, name)}" for name, mark in tables.marks.items() if name in used and mark]
    return [*lines, *(f"- {mark}" for mark in marks)] if marks else lines[:-1]


def statement_row(tested: Weighed, tables: Tables) -> str:
    """Return the line of a statement at a sparsity."""
    found = tested.difference
    verdict = f"**{tested.verdict}**" if tested.verdict in SURE else tested.verdict
    return line(
        [
            f"{escape(tested.a)} − {escape(tested.b)}",
            percent(tested.sparsity),
            show_printed(tested.printed, tables),
            BLANK if found is None or found.mean is None else f"{signed(found.mean)} ({show_counts(tested.counts)})",
            BLANK if found is None else show_interval(found),
            show_p(tested.alone_p),
            show_p(tested.adjusted_p),
            f"{verdict} ({escape(tested.reason)})".replace(") (", "; ", 1) if tested.reason else verdict,
            BLANK if None in tested.trains else " and ".join(f"{share:#.3g}×" for share in tested.trains if share),
        ]
    )


def show_counts(counts: tuple[int, int]) -> str:
    """Return `n=5`, or `n=5 and 10` where the first row has fewer seeds than the second."""
    return f"n={' and '.join(map(str, dict.fromkeys(counts)))}"


def show_printed(printed: Printed, tables: Tables) -> str:
    """Return `3 of 4, +0.25 ᵗ†`: what the paper prints, with the marks of all numbers it rests on."""
    if printed.middle is None:
        return BLANK
    marks = "".join(tables.marks[status] for status in printed.statuses)
    notes = [f"Table {printed.table}" if printed.table != 2 else ""]
    notes += [f"at {', '.join(map(str, printed.columns))} %" if len(printed.columns) > 1 else ""]
    notes += ["cited" if printed.cited else ""]
    said = ", ".join(note for note in notes if note)
    return f"{printed.above} of {printed.cells}, {signed(printed.middle)} {marks}".rstrip() + (
        f" ({said})" if said else ""
    )


def plasticity_lines(studies: list[tuple[Study, list[Finding]]]) -> list[str]:
    """Return the lines on pruning plasticity: a row for each study, a column for each of the paper's findings."""
    lines = ["### Pruning plasticity", ""]
    if not studies:
        return [*lines, NO_BRANCHES]
    lines += [
        "[PLASTICITY.md](PLASTICITY.md) has the figures and how each is measured; effects in points, positive where"
    ]
    lines += ["the paper's statement holds, p Holm's over a study.", "", line(["study", "seeds", *CLAIMS.values()])]
    lines.append(line(["---"] * (2 + len(CLAIMS))))
    for study, findings in studies:
        seeds = sorted({finding.difference.n for finding in findings})
        cells = ["<br>".join(show_finding(found) for found in findings if found.claim == claim) for claim in CLAIMS]
        title = f"{study.title}; {amount(study.more, 'epoch')}"
        lines.append(line([title, " or ".join(map(str, seeds)) or BLANK, *cells]))
    return lines


def show_finding(finding: Finding) -> str:
    """Return `plasticity: **supported**, +3.00, p 0.01`."""
    known = finding.difference.mean is not None
    effect = f", {signed(finding.difference.mean or 0.0)}, p {show_p(finding.adjusted_p)}" if known else ""
    reason = f" ({escape(finding.reason)})" if finding.reason else ""
    return f"{NAMES[finding.kind]}: **{finding.verdict}**{effect}{reason}"


def own_tables(views: list[TableView]) -> str:
    """Return how many entries of the paper's tables were run, and with which verdicts."""
    parts = []
    for view in views:
        verdicts = [found.verdict for found in view.distinct() if found.verdict in (*TESTED, TOO_FEW, NOT_DECIDED)]
        parts.append(f"Table {view.table.number}: {done_of(view)}" + (f" ({count(verdicts)})" if verdicts else ""))
    cells = [found for view in views for found in view.distinct() if found.compared is None]
    elsewhere = sum(found.verdict == PROTOCOL_DIFFERS for found in cells)
    other = f" Run in another protocol alone: {amount(elsewhere, 'cell')}." if elsewhere else ""
    return (
        f"In the paper's protocol: {'; '.join(parts)}.{other} A printed row that can be read in two ways counts as "
        "two. [PAPER.md](PAPER.md) holds each beside the printed number."
    )


def repeat_lines(records: list[Record], branches: list[Record]) -> list[str]:
    """Return the commands in a block; the last one verifies the results."""
    commands, hidden = list_commands(records, branches)
    more = (
        f"\n{amount(hidden, 'further command')} left out here: `make site` writes a page with one for each row."
        if hidden
        else ""
    )
    return ["```", *commands, "make verify", "```", "", AGAIN + more]
