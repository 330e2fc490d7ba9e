"""The leaderboard sheet: a pure function of the records, rebuilt as a whole and replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from leaderboard.store.files import write_atomically
from leaderboard.store.measurements import Measurement, folder_of, load_measurements
from leaderboard.store.records import Problem, list_files, load_store
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import CONTROLS, blind_spots, gains_table, make_ranks
from leaderboard.tables.details import ABOUT, details_table, speed_table
from leaderboard.tables.sections import FIRST, amount, description, make_sections, section_name, skipped_files
from leaderboard.tables.table import Row, count_zeros, main_table, make_rows

INTRODUCTION = """\
# Leaderboard

Accuracy and cost of sparse-training methods. Made from the [records]({folder}) by `make leaderboard`; do not edit."""

UNITS = """\
- **Accuracy**: share of the test images classified correctly after the last epoch, in percent; mean ± sample standard
  deviation (ddof = 1) over n seeds. One seed has no ±. Diverged runs are counted beside n and enter no mean.
- **Rank**: the places a row may hold. The first is 1 + the rows significantly better, the last is the number of rows −
  those significantly worse (Welch's t-tests of all pairs at a sparsity, Holm's correction, 5 %); rows that the seeds do
  not tell apart share places. Bold: significantly better than every other row, so rank 1 alone. Dense, controls made
  from another row's runs, and rows that a newer version of their file replaces are not ranked.
- **Sparsity**: the share of prunable weights asked to be zero; where a method's weight count is an outcome, the one it
  delivered, unless that is within half a point of what was asked. The densities reached are in the details.
- **FLOPs** are 2 × multiply-adds of convolutions, linear layers and matrix products; norms, pooling and activations are
  left out. Inference: one image through the final network. Training: the whole run, with dense gradients and scoring
  passes. `0.19×` is a multiple of the dense network's; dense rows give FLOPs as they are.
- **Training time, images/s** in the details: medians over seeds, of a machine that may have done other work. No measure
  of a method: `make perf` is.
- **Notes** in the details: `(file …)` tells apart versions of a method's file; `uncommitted code` ran, in whole or
  in part, with files that differ from the commit named in the record; `repeats` are further runs of a seed; `empty
  layers` hold no weight.
- `·`: nothing to show. Different protocols, page settings, data or arithmetic (fp32, bf16) never share a table."""

DEAD = """\
- **Dead filters** in the details: without an active weight, as a share of all filters of the prunable layers. **Dead
  weights**: the share of active weights that read such a filter, or belong to a filter that nothing reads."""

SLIM = """\
- **Slim** in the details: the masks' cost leaves removed filters out, `slim 0.25×` the inputs that they free too, while
  residual streams keep their width (`make slim RUN=…` makes that network). Training is charged by the masks."""

ZERO = """\
- **Active weights that are zero** in the details: a budget is of active weights, and one that was activated late may
  never have had a gradient, so that counting non-zero weights finds fewer."""

TOOK = """\
- **Mask updates, peak memory, energy** in the details, where the machine told them: wall time in updates; the most that
  the process held, and that torch took from the GPU; energy of whole devices, whoever else used them, with the mean
  share of time in which the GPU was at work."""

PICTURES = "pictures"  # the folder beside the sheet

GAINS = (
    "Gains over controls: difference in points, paired by seed, with its 95 % interval; bold where it is significant "
    "after Holm's correction over this table."
)
CHOICE = " The step from random masks of the same layer densities to a method is what its choice of weights is worth."

RULE = "One seed counts once: of several runs of a row, sparsity and seed, the first that finished counts."


def render(
    records: list[Record],
    problems: list[Problem],
    folder: str = "records",
    pictures: str | None = None,
    measured: Sequence[Measurement] = (),
) -> str:
    """Return the sheet in Markdown, for records and problems as `read_records` or `load_store` returns them.

    `folder` is the link target of records, relative to the sheet; `pictures` the folder of the pictures, if any;
    `measured` the speed measurements, newest first. Invariant: the order of records and problems is irrelevant.
    """
    sections = [(title, runs, make_rows(runs)) for title, runs in make_sections(records)]
    entries = [entry for *_, rows in sections for row in rows for entry in row.cells.values()]
    finished = [run for entry in entries for run in entry.finished]
    lines = [INTRODUCTION.format(folder=quote(folder)), ""]
    if records:
        lines += [f"{amount(len(records), 'record')}, {amount(len(sections), 'table')}.", "", UNITS]
        lines += [DEAD] if any("dead" in run for run in finished) else []
        lines += [SLIM] if any("inference_slim" in run["macs"] for run in finished) else []
        lines += [ZERO] if any(count_zeros(run) for entry in entries for run in entry.counted) else []
        lines += [TOOK] if any("usage" in run or "updates_s" in run["time"] for run in finished) else []
    else:
        lines.append(FIRST)
    for title, runs, rows in sections:
        lines += section(title, runs, rows, folder, pictures, measured)
    return "\n".join([*lines, *skipped_files(problems)]) + "\n"


def section(
    title: str, runs: list[Record], rows: list[Row], folder: str, pictures: str | None, measured: Sequence[Measurement]
) -> list[str]:
    """Return the lines of one section: title, description, main table, pictures, gains, measured speed, details."""
    speed = speed_table(rows, measured)
    references = dict.fromkeys(f"{row.label}: {row.reference}" for row in rows if row.reference)
    gains, unseen = gains_table(rows), blind_spots(rows)
    return [
        "",
        f"## {title}",
        "",
        description(runs),
        "",
        *main_table(rows, make_ranks(rows)),
        "",
        f"{RULE} {unseen}".rstrip(),
        *(show_pictures(runs, pictures) if pictures is not None else []),
        *(["", GAINS + (CHOICE if CONTROLS["densities"] in gains[0] else ""), "", *gains] if gains else []),
        *(["", ABOUT, "", *speed] if speed else []),
        "",
        "<details>",
        "<summary>Details: seeds, densities, absolute costs, times, records</summary>",
        "",
        *details_table(rows, folder),
        "",
        *(f"- {reference}" for reference in references),
        "",
        "</details>",
    ]


def show_pictures(runs: list[Record], folder: str) -> list[str]:
    """Return the lines that show a section's pictures, which `leaderboard.drawing.draw` writes to `folder`."""
    from leaderboard.drawing.pictures import embed, name_pictures

    return embed(name_pictures(section_name(runs[0]), runs), folder)


Store = tuple[list[Record], list[Problem]]


def make_sheet(records_dir: Path, output: Path, store: Store | None = None) -> tuple[str, str]:
    """Return the text for `output` and a one-line summary; `store`: the records, if they were read already."""
    records, problems = load_store(records_dir) if store is None else store
    measured, faulty = load_measurements(folder_of(records_dir), records)
    problems = [*problems, *faulty]
    folder = relative(records_dir, output)
    skipped = f", {amount(len(problems), 'file')} skipped" if problems else ""
    tables = amount(len(make_sections(records)), "table")
    text = render(records, problems, folder, PICTURES, measured)
    return text, f"{amount(len(records), 'record')} in {tables}{skipped}"


def relative(folder: Path, sheet: Path) -> str:
    """Return the path of `folder` relative to `sheet`, for links."""
    return Path(os.path.relpath(folder.resolve(), sheet.resolve().parent)).as_posix()


def rebuild(records_dir: Path, output: Path) -> str:
    """Write the sheet of the records in `records_dir` to `output` and return a one-line summary.

    Invariant: readers see the old text or the new one, whole; if several processes write records and rebuild at once,
    the last text has all of them.
    """
    while True:
        before = store_state(records_dir)
        text, summary = make_sheet(records_dir, output)
        write_atomically(output, text.encode())
        # A record that arrived meanwhile may be in a text that another process wrote and this one has just replaced.
        if store_state(records_dir) == before:
            return summary


def is_current(records_dir: Path, output: Path) -> bool:
    """Return whether the sheet at `output` is up to date; one that cannot be made is not."""
    try:
        return output.read_bytes() == make_sheet(records_dir, output)[0].encode()
    except Exception:  # no sheet, or a record that breaks it, which rebuilding reports
        return False


def shows_records(sheet: Path, records_dir: Path) -> bool:
    """Return whether the sheet at `sheet` was made from records in `records_dir`, which may be missing by now."""
    try:
        text = sheet.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return text.startswith(INTRODUCTION.format(folder=quote(relative(records_dir, sheet)))) and FIRST not in text


def store_state(folder: Path) -> list[tuple[str, int, int]]:
    """Return the names, sizes and times of records and measurements, which change when one arrives."""
    found = []
    for path in [*list_files(folder), *list_files(folder_of(folder))]:
        try:
            stat = path.stat()
        except OSError:  # a broken link, or gone since it was listed
            continue
        found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return found
