"""All sheets made from the records: built by one command, and checked against the records by another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.board.sheet import PICTURES, Store, make_sheet, relative, store_state
from leaderboard.store import growth
from leaderboard.store.files import write_atomically
from leaderboard.store.measurements import folder_of, load_measurements
from leaderboard.store.records import load_store
from leaderboard.tables.sections import amount, make_sections, section_name

if TYPE_CHECKING:
    from leaderboard.drawing.pictures import Picture
    from leaderboard.paper.cells import TableView
    from leaderboard.paper.published import Tables

    Compare = Callable[[], tuple[Tables, list[TableView]]]

PAPER = "PAPER.md"  # beside the leaderboard
PLASTICITY = "PLASTICITY.md"  # likewise, where there are branches that were pruned
PRECISION = "PRECISION.md"  # likewise, where growth in bf16 was measured
RESULTS = "RESULTS.md"  # likewise, where there is a record or a branch
BRANCHES = "branches"  # beside the records
SITE = "site/index.html"


class BuildError(Exception):
    """Sheets or pictures that could not be made, each named with the reason; the others were made."""


def build_all(records_dir: Path, sheet: Path) -> tuple[str, Store]:
    """Write the leaderboard `sheet`, the sheets and pictures beside it, and the site if there is one.

    Returns a one-line summary, and the records shown. Raises BuildError at the end for what failed: one failure costs
    no other sheet. Invariant: readers see each file old or new, whole; records that arrive meanwhile are shown in the
    end.
    """
    folders = records_dir, records_dir.parent / BRANCHES, records_dir.parent / growth.FOLDER
    while True:
        before = [store_state(folder) for folder in folders]
        store = load_store(records_dir)
        summary = build_sheets(store, records_dir, sheet)
        if [store_state(folder) for folder in folders] == before:
            return summary, store


def load_branches(records_dir: Path) -> Store:
    """Return the store of branches beside the folder of records."""
    return load_store(records_dir.parent / BRANCHES, branches=True)


def build_sheets(store: Store, records_dir: Path, sheet: Path) -> str:
    """Write every sheet of a store; return a one-line summary. Raises BuildError as `build_all`."""
    said: list[str] = []
    site = sheet.parent / SITE
    branches = load_branches(records_dir)
    with ThreadPoolExecutor(1) as aside:  # while other processes draw, this one writes the sheets
        drawing = aside.submit(draw_pictures, store, branches, sheet.parent / PICTURES)
        steps: dict[str, Callable[[], object]] = {
            path.name: partial(replace_or_delete, path, make)
            for path, make in list_sheets(store, branches, records_dir, sheet, said).items()
        }
        steps["the pictures"] = lambda: said.append(drawing.result())
        if site.exists():
            steps[SITE] = lambda: rebuild_site(store, records_dir, sheet, site)
        faults = []
        for name, step in steps.items():
            try:
                step()
            except Exception as error:  # whatever it is, the other sheets are made
                faults.append(f"{name} could not be made: {type(error).__name__}: {error}")
    if faults:
        raise BuildError("; ".join(faults))
    return ", ".join(said)


def list_sheets(
    store: Store, branches: Store, records_dir: Path, sheet: Path, said: list[str]
) -> dict[Path, Callable[[], str]]:
    """Return what makes the text of each sheet; an empty text has no file. `said` gets the leaderboard's summary."""

    @cache
    def compare() -> tuple[Tables, list[TableView]]:
        from leaderboard.paper.cells import compare_all
        from leaderboard.paper.published import load_tables

        tables = load_tables()
        return tables, compare_all(store[0], tables)

    def board() -> str:
        text, summary = make_sheet(records_dir, sheet, store)
        said.append(summary)
        return text

    return {
        sheet: board,
        sheet.parent / PAPER: lambda: paper_text(store, records_dir, sheet, compare),
        sheet.parent / PLASTICITY: lambda: plasticity_text(branches, records_dir, sheet),
        sheet.parent / PRECISION: lambda: precision_text(store, records_dir, sheet),
        sheet.parent / RESULTS: lambda: results_text(store, branches, records_dir, sheet, compare),
    }


def paper_text(store: Store, records_dir: Path, sheet: Path, compare: Compare) -> str:
    """Return the sheet of the paper's tables; `compare` gives them beside the records."""
    from leaderboard.paper.markdown import render_paper

    tables, views = compare()
    return render_paper(store[0], tables, relative(records_dir, sheet), views)


def plasticity_text(branches: Store, records_dir: Path, sheet: Path) -> str:
    """Return the sheet of pruning plasticity, or an empty text if there is nothing to show."""
    from leaderboard.plasticity.markdown import render_plasticity

    records, problems = branches
    return render_plasticity(records, problems, relative(records_dir.parent / BRANCHES, sheet), PICTURES)


def precision_text(store: Store, records_dir: Path, sheet: Path) -> str:
    """Return the sheet on growth in bf16, or an empty text if none was measured."""
    from leaderboard.results.precision import render_precision

    folder = records_dir.parent / growth.FOLDER
    growths, problems = growth.load_growth(folder)
    return render_precision(growths, store[0], problems, relative(folder, sheet), relative(records_dir, sheet))


def results_text(store: Store, branches: Store, records_dir: Path, sheet: Path, compare: Compare) -> str:
    """Return the results in short, or an empty text if there is neither a record nor a branch."""
    from leaderboard.results.markdown import Links, render_results

    places = Links(relative(records_dir, sheet), relative(records_dir.parent / BRANCHES, sheet), sheet.name)
    skipped = len(store[1]) + len(branches[1])
    return render_results(store[0], branches[0], skipped, *compare(), places)


def replace_or_delete(path: Path, make: Callable[[], str]) -> None:
    """Write what `make` returns to `path`, in one instant; an empty text has no file."""
    if text := make():
        write_atomically(path, text.encode())
    else:
        path.unlink(missing_ok=True)


def draw_pictures(store: Store, branches: Store, folder: Path) -> str:
    """Draw what is out of date, delete pictures of no record; return how many pictures there are."""
    from leaderboard.drawing.draw import FORMATS, draw_all  # here, because matplotlib takes a second

    drawn = draw_all(list_all_pictures(store, branches), folder)
    sweep(folder, drawn)
    return amount(len(drawn) // len(FORMATS), "picture")


def sweep(folder: Path, wanted: list[Path]) -> None:
    """Delete the pictures in `folder` that were drawn here and belong to no record now."""
    from leaderboard.drawing.draw import STAMP, list_files

    for path in (folder / name for name in list_files(folder)):
        try:
            if path not in wanted and STAMP.search(path.read_bytes()):
                path.unlink()
        except FileNotFoundError:  # another process deleted it
            continue


def list_all_pictures(store: Store, branches: Store) -> dict[str, Picture]:
    """Return the pictures of all sections and of pruning plasticity by the stem of their files."""
    from leaderboard.drawing.pictures import name_pictures
    from leaderboard.plasticity.findings import make_studies
    from leaderboard.plasticity.markdown import list_pruning_pictures

    found: dict[str, Picture] = {}
    for _, runs in make_sections(store[0]):
        found.update(name_pictures(section_name(runs[0]), runs))
    return {**found, **list_pruning_pictures(make_studies(branches[0]))}


def rebuild_site(store: Store, records_dir: Path, sheet: Path, target: Path) -> str:
    """Write the leaderboard for a browser, with the pictures there are; return a one-line summary."""
    from leaderboard.web.site import write_site

    records, problems = store
    pictures = sheet.parent / PICTURES
    return write_site(make_sections(records), target, pictures, problems, relative(records_dir, target))


def site_text(store: Store, records_dir: Path, sheet: Path, target: Path) -> str:
    """Return the leaderboard for a browser, with the pictures there are."""
    from leaderboard.web.site import read_pictures, render_site

    records, problems = store
    pictures = read_pictures(sheet.parent / PICTURES)
    return render_site(make_sections(records), problems, pictures, relative(records_dir, target))


def build_site(records_dir: Path, sheet: Path, output: Path | None = None) -> tuple[Path, str]:
    """Write every sheet and the leaderboard for a browser, as one file; return its path and a summary."""
    _, store = build_all(records_dir, sheet)  # the file shows the pictures, so they are made first
    target = output or sheet.parent / SITE
    return target, rebuild_site(store, records_dir, sheet, target)


def find_stale(records_dir: Path, sheet: Path) -> list[str]:
    """Return what does not follow from the records: skipped files, sheets and pictures. Writes nothing."""
    from leaderboard.drawing.draw import check_all

    store, branches = load_store(records_dir), load_branches(records_dir)
    faults = [f"record {problem.file}: {problem.reason}" for problem in store[1] + branches[1]]
    _, faulty = load_measurements(folder_of(records_dir), store[0])
    faulty += growth.load_growth(records_dir.parent / growth.FOLDER)[1]
    faults += [f"measurement {problem.file}: {problem.reason}" for problem in faulty]
    checks: dict[str, Callable[[], Iterable[str]]] = {
        path.name: partial(differing, path, make)
        for path, make in list_sheets(store, branches, records_dir, sheet, []).items()
    }
    checks["the pictures"] = lambda: check_all(list_all_pictures(store, branches), sheet.parent / PICTURES)
    site = sheet.parent / SITE
    if site.exists():
        checks[SITE] = lambda: differing(site, lambda: site_text(store, records_dir, sheet, site))
    for name, check in checks.items():
        try:
            faults += check()
        except Exception as error:
            faults.append(f"{name} cannot be made: {type(error).__name__}: {error}")
    return faults


def differing(path: Path, make: Callable[[], str]) -> Iterator[str]:
    """Yield a fault if the sheet at `path` is not the text that `make` returns; an empty text has no file."""
    try:
        current = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        current = None
    if current != (make() or None):
        yield f"{path.name} does not match the records"
