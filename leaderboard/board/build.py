"""All pages made from the records: built by one command, and held against the records by another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.board.page import PICTURES, Store, make_page, relative, store_state
from leaderboard.store.files import write_atomically
from leaderboard.store.measurements import folder_of, load_measurements
from leaderboard.store.records import load_store
from leaderboard.store.schema import Record
from leaderboard.tables.sections import amount, make_sections, section_name

if TYPE_CHECKING:
    from leaderboard.drawing.pictures import Picture
    from leaderboard.paper.cells import TableView
    from leaderboard.paper.published import Tables

    Compared = Callable[[], tuple[Tables, list[TableView]]]

PAPER = "PAPER.md"  # beside the leaderboard
PLASTICITY = "PLASTICITY.md"  # likewise, where there are branches that were pruned
RESULTS = "RESULTS.md"  # likewise, where there is a record or a branch
BRANCHES = "branches"  # beside the records
SITE = "site/index.html"


class BuildError(Exception):
    """Pages or pictures that could not be made, each named with the reason; the others were made."""


def build_all(records_dir: Path, page: Path) -> tuple[str, Store]:
    """Write the leaderboard `page`, the paper's page and the pictures beside it, and the site where there is one.

    Returns a line that sums it up, and the store they show. Raises BuildError at the end for what could not be made:
    a page that fails costs no other. Invariant: readers see each file old or new, whole; records that arrive meanwhile
    are on the pages in the end.
    """
    folders = records_dir, records_dir.parent / BRANCHES
    while True:
        before = [store_state(folder) for folder in folders]
        store = load_store(records_dir)
        summary = build_pages(store, records_dir, page)
        if [store_state(folder) for folder in folders] == before:
            return summary, store


def load_branches(records_dir: Path) -> Store:
    """Return the store of branches beside the folder of records."""
    return load_store(records_dir.parent / BRANCHES, branches=True)


def build_pages(store: Store, records_dir: Path, page: Path) -> str:
    """Write every page of a store that was read; return a line that sums it up. Raises BuildError as `build_all`."""
    said: list[str] = []
    site = page.parent / SITE
    branches, compared = load_branches(records_dir), compare_once(store)
    with ThreadPoolExecutor(1) as aside:  # many pictures are drawn by other processes, while this one writes the texts
        drawing = aside.submit(draw_pictures, store, branches, page.parent / PICTURES)
        steps: dict[str, Callable[[], object]] = {
            page.name: lambda: said.append(write_page(store, records_dir, page)),
            PAPER: lambda: write_atomically(
                page.parent / PAPER, paper_text(store, records_dir, page, compared).encode()
            ),
            PLASTICITY: lambda: replace_or_delete(
                page.parent / PLASTICITY, plasticity_text(branches, records_dir, page)
            ),
            RESULTS: lambda: replace_or_delete(
                page.parent / RESULTS, results_text(store, branches, records_dir, page, compared)
            ),
            "the pictures": lambda: said.append(drawing.result()),
            **({SITE: lambda: write_browser_page(store, records_dir, page, site)} if site.exists() else {}),
        }
        faults = []
        for name, step in steps.items():
            try:
                step()
            except Exception as error:  # whatever it is, the other pages are made
                faults.append(f"{name} could not be made: {type(error).__name__}: {error}")
    if faults:
        raise BuildError("; ".join(faults))
    return ", ".join(said)


def write_page(store: Store, records_dir: Path, page: Path) -> str:
    """Write the leaderboard; return a line that sums it up."""
    text, summary = make_page(records_dir, page, store)
    write_atomically(page, text.encode())
    return summary


def compare_once(store: Store) -> Compared:
    """Return what gives the paper's tables beside the records: worked out when first asked for, and only once."""

    @cache
    def compare() -> tuple[Tables, list[TableView]]:
        from leaderboard.paper.cells import compare_all
        from leaderboard.paper.published import load_tables

        tables = load_tables()
        return tables, compare_all(store[0], tables)

    return compare


def paper_text(store: Store, records_dir: Path, page: Path, compared: Compared | None = None) -> str:
    """Return the paper's page for a store that was read; `compared`: by `compare_once`, for several pages."""
    from leaderboard.paper.markdown import render_paper

    tables, views = (compared or compare_once(store))()
    return render_paper(store[0], tables, relative(records_dir, page), views)


def plasticity_text(branches: Store, records_dir: Path, page: Path) -> str:
    """Return the page of pruning plasticity, or an empty text where there is nothing to show."""
    from leaderboard.plasticity.markdown import render_plasticity

    records, problems = branches
    return render_plasticity(records, problems, relative(records_dir.parent / BRANCHES, page), PICTURES)


def results_text(store: Store, branches: Store, records_dir: Path, page: Path, compared: Compared) -> str:
    """Return the results in short, or an empty text where there is neither a record nor a branch."""
    from leaderboard.results.markdown import Places, render_results

    places = Places(relative(records_dir, page), relative(records_dir.parent / BRANCHES, page), page.name)
    skipped = len(store[1]) + len(branches[1])
    return render_results(store[0], branches[0], skipped, *compared(), places)


def replace_or_delete(path: Path, text: str) -> None:
    """Give `path` the content `text`, in one instant; an empty text has no file."""
    if text:
        write_atomically(path, text.encode())
    else:
        path.unlink(missing_ok=True)


def draw_pictures(store: Store, branches: Store, folder: Path) -> str:
    """Draw what is not current, delete what no record gives any more; return how many pictures there are."""
    from leaderboard.drawing.draw import FORMATS, draw_all, draw_sections  # here, because matplotlib takes a second

    drawn = draw_sections(named_sections(store), folder) + draw_all(pruning_pictures(branches), folder)
    sweep(folder, drawn)
    return amount(len(drawn) // len(FORMATS), "picture")


def sweep(folder: Path, wanted: list[Path]) -> None:
    """Delete the pictures in `folder` that were drawn here and show what no record gives any more."""
    from leaderboard.drawing.draw import STAMP, list_files

    for path in (folder / name for name in list_files(folder)):
        try:
            if path not in wanted and STAMP.search(path.read_bytes()):
                path.unlink()
        except FileNotFoundError:  # another process deleted it
            continue


def pruning_pictures(branches: Store) -> dict[str, Picture]:
    """Return the pictures of pruning plasticity by the stem of their files."""
    from leaderboard.plasticity.findings import make_studies
    from leaderboard.plasticity.markdown import list_pruning_pictures

    return list_pruning_pictures(make_studies(branches[0]))


def named_sections(store: Store) -> dict[str, list[Record]]:
    """Return the runs of each section by the section's file name."""
    return {section_name(runs[0]): runs for _, runs in make_sections(store[0])}


def write_browser_page(store: Store, records_dir: Path, page: Path, target: Path) -> str:
    """Write the leaderboard for a browser, with the pictures there are; return a line that sums it up."""
    from leaderboard.web.site import write_site

    records, problems = store
    pictures = page.parent / PICTURES
    return write_site(make_sections(records), target, pictures, problems, relative(records_dir, target))


def browser_text(store: Store, records_dir: Path, page: Path, target: Path) -> str:
    """Return the leaderboard for a browser, with the pictures there are."""
    from leaderboard.web.site import read_pictures, render_site

    records, problems = store
    pictures = read_pictures(page.parent / PICTURES)
    return render_site(make_sections(records), problems, pictures, relative(records_dir, target))


def build_site(records_dir: Path, page: Path, output: Path | None = None) -> tuple[Path, str]:
    """Write every page and the leaderboard for a browser, one file without any other; return its path and a summary."""
    _, store = build_all(records_dir, page)  # the file shows the pictures, so they are made first
    target = output or page.parent / SITE
    return target, write_browser_page(store, records_dir, page, target)


def find_stale(records_dir: Path, page: Path) -> list[str]:
    """Return what is not as the records give it: files set aside, pages and pictures. Writes nothing."""
    store, branches = load_store(records_dir), load_branches(records_dir)
    compared = compare_once(store)
    faults = [f"record {problem.file}: {problem.reason}" for problem in store[1] + branches[1]]
    _, faulty = load_measurements(folder_of(records_dir), store[0])
    faults += [f"measurement {problem.file}: {problem.reason}" for problem in faulty]
    checks: dict[str, Callable[[], Iterator[str]]] = {
        page.name: lambda: differing(page, lambda: make_page(records_dir, page, store)[0]),
        PAPER: lambda: differing(page.parent / PAPER, lambda: paper_text(store, records_dir, page, compared)),
        PLASTICITY: lambda: differing(
            page.parent / PLASTICITY, lambda: plasticity_text(branches, records_dir, page) or None
        ),
        RESULTS: lambda: differing(
            page.parent / RESULTS, lambda: results_text(store, branches, records_dir, page, compared) or None
        ),
        "the pictures": lambda: stale_pictures(store, branches, page.parent / PICTURES),
    }
    site = page.parent / SITE
    if site.exists():
        checks[SITE] = lambda: differing(site, lambda: browser_text(store, records_dir, page, site))
    for name, check in checks.items():
        try:
            faults += check()
        except Exception as error:
            faults.append(f"{name} cannot be made: {type(error).__name__}: {error}")
    return faults


def differing(path: Path, make: Callable[[], str | None]) -> Iterator[str]:
    """Yield a fault where the page at `path` is not the text that `make` returns; None where there must be no page."""
    try:
        current = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        current = None
    if current != make():
        yield f"{path.name} is not what the records give"


def stale_pictures(store: Store, branches: Store, folder: Path) -> Iterator[str]:
    """Yield the pictures that are missing, not what the records give, or of no section."""
    from leaderboard.drawing.draw import check_all, check_section, stray

    sections = named_sections(store)
    for name, runs in sections.items():
        yield from check_section(name, runs, folder)
    pruned = pruning_pictures(branches)
    yield from check_all(pruned, folder)
    yield from stray(folder, {*sections, *(stem.rsplit(".", 1)[0] for stem in pruned)})
