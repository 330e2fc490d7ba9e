"""Shared set-up: quiet, few threads, nothing written outside pytest's own folders."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve whatever else runs on the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks so small that a second thread costs more than it brings
os.environ["WANDB_SILENT"] = "true"
