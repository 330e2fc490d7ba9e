"""All commands together; the package itself can be imported without them."""

from __future__ import annotations

from benchmark.cli import run, methods, artifacts  # noqa: F401  # isort: skip (each adds its commands, in the order of --help)
from benchmark.cli.shell import app, main

__all__ = ["app", "main"]
