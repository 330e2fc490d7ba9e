"""Shared set-up: quiet, few threads, nothing written outside pytest's own folders."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve whatever else runs on the cores
os.environ["WANDB_SILENT"] = "true"
