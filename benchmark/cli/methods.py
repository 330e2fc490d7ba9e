"""The commands about methods and pages: `sparse-bench methods | pages | check | new-method`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.shell import (
    app,
    console,
    guarded,
)


@app.command()
def methods() -> None:
    """List the methods by group: name, paper, what each needs and its settings, from the code itself."""
    from benchmark.config.listing import print_methods

    guarded(lambda: print_methods(console))


@app.command()
def pages() -> None:
    """List the pages of configs/: name and title."""
    from benchmark.config.listing import print_pages

    guarded(lambda: print_pages(console))


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="methods, comma-separated: names, or paths of Python files")],
    only: Annotated[str, typer.Option(help="run these checks alone, comma-separated; without: all of them")] = "",
) -> None:
    """Hold a method to every promise of the interface on small networks and in two processes; print what was seen."""
    from benchmark.config.cells import split_list, split_methods
    from benchmark.conformance.report import check_methods

    if guarded(lambda: check_methods(split_methods(method), console, split_list(only, "ONLY") if only else [])):
        raise typer.Exit(1)


@app.command()
def new_method(
    name: Annotated[str, typer.Argument(help="name of the method: a Python name in lower case")],
    folder: Annotated[
        Path | None, typer.Option(help="where to write it (default: methods/ of the checkout here)")
    ] = None,
) -> None:
    """Write a small working method file to start from."""
    from benchmark.config.listing import write_new_method

    guarded(lambda: write_new_method(name, folder, console))
