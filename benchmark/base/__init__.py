"""What every room stands on: errors, files, the machine, the console."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout or the installation
