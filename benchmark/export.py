"""The finished network as a file: plain weights that any strict load of the backbone accepts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from benchmark.cells import Cell
from benchmark.checkpoint import write_atomically
from benchmark.errors import UserError
from benchmark.train import Training


def export_weights(run: Training, path: Path, cell: Cell) -> None:
    """Write the evaluated network's state_dict as safetensors and verify the file that was written.

    Raises UserError when the file does not hold zeros exactly where the masks are inactive. Invariant: the names are
    those of the raw model's state_dict.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in run.evaluated().state_dict().items()}
    shared = {tensor.data_ptr() for tensor in state.values()}
    if len(shared) < len(state):  # tied weights: safetensors wants each tensor to own its memory
        state = {name: tensor.clone() for name, tensor in state.items()}
    settings = {"model": cell.page.model, "run": cell.identity, "masks_sha256": run.maskset.sha256()}
    write_atomically(path, save(state, metadata=settings))
    verify_export(run, path)


@torch.no_grad()
def verify_export(run: Training, path: Path) -> None:
    """Read the exported file back and raise UserError unless inactive weights are zero in it."""
    with safe_open(path, framework="pt") as file:
        for name, mask in run.maskset.masks.items():
            alive = int((file.get_tensor(name)[~mask.cpu()] != 0).sum())
            if alive:
                raise UserError(f"{path}: {alive} inactive weights of '{name}' are not zero; the run is invalid")
