"""Smaller files of a sparse network: active values, with a bit for each weight or a byte for each active one.

A layer is stored in whichever of the two is smaller. `docs/export.md` has a reader of thirty lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from benchmark.runs.export import serialise
from benchmark.training.masks import hash_masks, pack, unpack

STEP = 255  # a byte of 255 goes on by 255 places and holds no weight; a smaller one goes on by itself and holds one


def compress(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Return a safetensors file: `NAME.values` and `NAME.bits` or `NAME.gaps` of each mask, other tensors as they are.

    values: the active weights in row-major order. bits: the mask, eight weights to a byte, the first the highest.
    gaps: bytes, see STEP. The metadata has `shapes` and `masks_sha256`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in masks}
    for name, mask in masks.items():
        bits, gaps = pack(mask), encode_gaps(mask)
        tensors[f"{name}.values"] = state[name].detach().cpu()[mask.cpu()]
        tensors[f"{name}.{'bits' if len(bits) <= len(gaps) else 'gaps'}"] = bits if len(bits) <= len(gaps) else gaps
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    return serialise(tensors, {**about, "shapes": shapes, "masks_sha256": hash_masks(masks)})


def expand(content: bytes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state_dict and the masks in such a file."""
    length = int.from_bytes(content[:8], "little")
    shapes = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["shapes"])
    state, masks = load(content), {}
    for name, shape in shapes.items():
        size, values = torch.Size(shape), state.pop(f"{name}.values")
        bits, gaps = state.pop(f"{name}.bits", None), state.pop(f"{name}.gaps", None)
        masks[name] = unpack(bits, size) if bits is not None else decode_gaps(gaps, size)
        state[name] = torch.zeros(size, dtype=values.dtype).masked_scatter(masks[name], values)
    return state, masks


def encode_gaps(mask: Tensor) -> Tensor:
    """Return the distances from one active weight to the next, from place 0 for the first, as bytes; see STEP."""
    gaps = np.diff(np.flatnonzero(mask.cpu().numpy()), prepend=0)
    lengths = gaps // STEP + 1
    steps = np.full(int(lengths.sum()), STEP, np.uint8)
    steps[np.cumsum(lengths) - 1] = gaps % STEP
    return torch.from_numpy(steps)


def decode_gaps(steps: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask that `encode_gaps` was given."""
    mask = torch.zeros(shape.numel(), dtype=torch.bool)
    mask[steps.long().cumsum(0)[steps < STEP]] = True
    return mask.reshape(shape)
