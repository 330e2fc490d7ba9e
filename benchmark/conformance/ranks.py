"""Two processes that train together, for the check that they have the masks of one.

Started with other hash seeds and other global random states than each other; they share each batch through gloo.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmark.base.errors import UserError

RANKS, PATIENCE_S = 2, 120  # and so long again for every eight methods
# Half of the weights stay: sparser networks have paths that lead nowhere, where a gradient of zero is one rounding or
# another, and its sign may differ with the order of a sum.
SHARED = 0.5


def run_ranks(methods: list[str], before: str = "") -> dict[str, Any]:
    """Train each method in two processes; return by name, for each rank, mask hashes, a hash of the weights, an error.

    before: "module:function" to call in each process first. Raises UserError when the processes do not come back.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(RANKS):
            command = [sys.executable, "-m", "benchmark.conformance.ranks", folder, str(rank), before, *methods]
            roots = [str(Path(__file__).resolve().parents[2]), *sys.path]
            environment = {
                **os.environ,
                "PYTHONHASHSEED": str(rank + 1),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(path for path in roots if path),
            }
            with open(Path(folder) / f"said{rank}", "wb") as said:  # a pipe would fill, and stop who prints much
                processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
        patience_s = PATIENCE_S * (1 + len(methods) // 8)
        deadline = time.monotonic() + patience_s
        try:
            for process in processes:
                process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass  # what they wrote, or did not, tells
        finally:
            for process in processes:
                process.kill()
                process.wait()
        try:
            results = [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
        except (OSError, ValueError):
            texts = [(Path(folder) / f"said{rank}").read_text(errors="replace").strip() for rank in range(RANKS)]
            lines = "; ".join(text.splitlines()[-1] for text in texts if text) or f"no answer within {patience_s} s"
            raise UserError(f"two processes could not train together: {lines}") from None
    return {name: [result[name] for result in results] for name in results[0]}


def work(folder: Path, rank: int, methods: list[str]) -> None:
    """Train each method as one of the ranks and write down what was seen."""
    from benchmark.config.plugins import find_method
    from benchmark.conformance.trial import Kit

    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    seen = {}
    for method in methods:
        plugin = find_method(method)
        trial = Kit(plugin).trial(network="vit", double=True, sparsity=SHARED, noise=rank + 1)
        hasher = hashlib.sha256()
        for parameter in trial.run.model.parameters():
            hasher.update(parameter.detach().numpy().tobytes())
        seen[plugin.name] = {"masks": trial.mask_hashes(), "weights": hasher.hexdigest(), "error": trial.error}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def call(target: str) -> None:
    """Call "module:function"."""
    import importlib

    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    if sys.argv[3]:
        call(sys.argv[3])
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4:])
