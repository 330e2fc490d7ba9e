"""What every room stands on: errors, files, the machine, the console."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout or the installation
# `python -c BOOT ROOT ...` runs the suite even if the working folder has a `benchmark` or a `statistics.py` of its own.
BOOT = "import sys; sys.path = [sys.argv.pop(1), *filter(None, sys.path)]; from benchmark.cli.app import main; main()"
