"""All pages made from the records: built by one command, and held against the records by another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leaderboard.page import (
    PICTURES,
    Store,
    amount,
    make_page,
    make_sections,
    relative,
    replace_text,
    section_name,
    store_state,
)
from leaderboard.schema import Record
from leaderboard.store import load_store

PAPER = "PAPER.md"  # beside the leaderboard
SITE = "site/index.html"


def build_all(records_dir: Path, page: Path) -> tuple[str, Store]:
    """Write the leaderboard `page`, the paper's page and the pictures beside it.

    Returns a line that sums it up, and the store they show. Invariant: readers see each file old or new, whole; records
    that arrive meanwhile are on the pages in the end.
    """
    while True:
        before = store_state(records_dir)
        store = load_store(records_dir)
        summary = build_pages(store, records_dir, page)
        if store_state(records_dir) == before:
            return summary, store


def build_pages(store: Store, records_dir: Path, page: Path) -> str:
    """Write every page of a store that was read; return a line that sums it up."""
    from leaderboard.drawing.draw import FORMATS, draw_sections  # here, because matplotlib takes a second

    text, summary = make_page(records_dir, page, store)
    replace_text(page, text)
    replace_text(page.parent / PAPER, paper_text(store, records_dir, page))
    drawn = draw_sections(named_sections(store), page.parent / PICTURES)
    sweep(page.parent / PICTURES, drawn)
    return f"{summary}, {amount(len(drawn) // len(FORMATS), 'picture')}"


def sweep(folder: Path, wanted: list[Path]) -> None:
    """Delete the pictures in `folder` that were drawn here and show what no record gives any more."""
    from leaderboard.drawing.draw import STAMP, list_files

    for path in (folder / name for name in list_files(folder)):
        if path not in wanted and STAMP.search(path.read_bytes()):
            path.unlink()


def named_sections(store: Store) -> dict[str, list[Record]]:
    """Return the runs of each section by the section's file name."""
    return {section_name(runs[0]): runs for _, runs in make_sections(store[0])}


def paper_text(store: Store, records_dir: Path, page: Path) -> str:
    """Return the paper's page for a store that was read."""
    from leaderboard.paper.markdown import render_paper
    from leaderboard.paper.published import load_tables

    return render_paper(store[0], load_tables(), relative(records_dir, page))


def find_stale(records_dir: Path, page: Path) -> list[str]:
    """Return what is not as the records give it: files of records set aside, pages and pictures. Writes nothing."""
    store = load_store(records_dir)
    return [f"record {problem.file}: {problem.reason}" for problem in store[1]] + [
        *stale_texts(store, records_dir, page),
        *stale_pictures(store, page.parent / PICTURES),
    ]


def stale_texts(store: Store, records_dir: Path, page: Path) -> Iterator[str]:
    """Yield the pages that are missing or not what the records give."""
    wanted = {
        page: make_page(records_dir, page, store)[0],
        page.parent / PAPER: paper_text(store, records_dir, page),
    }
    for path, text in wanted.items():
        try:
            if path.read_text(encoding="utf-8") == text:
                continue
        except (OSError, UnicodeDecodeError):
            pass
        yield f"{path.name} is not what the records give"


def stale_pictures(store: Store, folder: Path) -> Iterator[str]:
    """Yield the pictures that are missing, not what the records give, or of no section."""
    from leaderboard.drawing.draw import check_section, stray

    sections = named_sections(store)
    for name, runs in sections.items():
        yield from check_section(name, runs, folder)
    yield from stray(folder, sections)


def build_site(records_dir: Path, page: Path, output: Path | None = None) -> tuple[Path, str]:
    """Write the leaderboard for a browser, one file without any other; return its path and a line that sums it up."""
    from leaderboard.web.site import write_site

    _, (records, problems) = build_all(records_dir, page)  # the file shows the pictures, so they are made first
    target = output or page.parent / SITE
    pictures = page.parent / PICTURES
    return target, write_site(make_sections(records), target, pictures, problems, relative(records_dir, target))
