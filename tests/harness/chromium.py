"""A headless Chromium that is installed already, for the page of the leaderboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# The table, its controls and the picture can be used once the script has run and the frame after it was laid out.
USABLE = """() => new Promise(done => {
    const wait = () => document.querySelector("#controls[hidden]") || document.readyState === "loading"
        ? requestAnimationFrame(wait)
        : requestAnimationFrame(() => setTimeout(() => done(performance.now())));
    wait();
})"""


def missing() -> str:
    """Return why no browser can be started; empty if one can."""
    if find_chromium() is None:
        return "no Chromium is installed"
    return "" if find_spec("playwright") else "Playwright is not installed"


def find_chromium() -> str | None:
    """Return the path of the browser."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def start_chromium() -> Iterator[Any]:
    """Start it, and end it in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=list(OPTIONS))
        yield chromium
        chromium.close()


def time_opening(path: Path, times: int = 3) -> float:
    """Return the median time in seconds from asking for a page to when it can be used."""
    found = []
    with start_chromium() as chromium:
        for _ in range(times):
            page = chromium.new_page()
            page.goto(path.as_uri(), wait_until="commit")
            found.append(page.evaluate(USABLE) / 1000)
            page.close()
    return median(found)
