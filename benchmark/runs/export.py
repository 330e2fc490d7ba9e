"""A network as two files: plain weights that the backbone loads strictly, and the masks as bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.base.files import run_folder
from benchmark.base.system import to_cpu
from benchmark.runs.checkpoints import load_checkpoint
from benchmark.training.masks import hash_masks, pack, unpack
from leaderboard.store.files import write_atomically

WEIGHTS, MASKS = "weights.safetensors", "masks.safetensors"


def export_network(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], folder: Path, about: Mapping[str, str]
) -> dict[str, str]:
    """Write a network's `state` (a state_dict) and its masks to `folder`, verify the files, and return their sha256.

    about: goes into the files' metadata. Raises UserError when an inactive weight is not zero. Invariant: the names are
    those of the raw model's state_dict.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in to_cpu(dict(state)).items()}
    if len({tensor.data_ptr() for tensor in tensors.values()}) < len(tensors):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # safetensors refuses shared memory
    masks = to_cpu(dict(masks))
    digest = {"masks_sha256": hash_masks(masks)}
    shapes = {"shapes": json.dumps({name: list(mask.shape) for name, mask in masks.items()})}
    write_atomically(folder / WEIGHTS, serialise(tensors, {**about, **digest}))
    bits = {name: pack(mask) for name, mask in masks.items()}
    write_atomically(folder / MASKS, serialise(bits, {**about, **digest, **shapes}))
    written = read_export(folder)[1]
    if hash_masks(written) != digest["masks_sha256"]:
        raise UserError(f"{folder / MASKS}: holds other masks than the run's; the run is invalid")
    return hash_export(folder)


def serialise(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Return a safetensors file with a sorted header: the library's has no fixed order, so bytes would vary."""
    written: bytes = save(dict(tensors), metadata=dict(about))
    end = 8 + int.from_bytes(written[:8], "little")
    header = json.dumps(json.loads(written[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps tensors aligned
    return len(header).to_bytes(8, "little") + header + written[end:]


def hash_export(folder: Path) -> dict[str, str]:
    """Return the sha256 of the two files in `folder` by their names."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, MASKS)}


def read_export(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and the masks in `folder`.

    Raises UserError, naming the file, when one is missing or damaged, when they belong to different runs, and when an
    inactive weight is not zero.
    """
    weights, about = read_tensors(folder / WEIGHTS)
    bits, about_masks = read_tensors(folder / MASKS)
    masks = unpack_masks(folder / MASKS, bits, about_masks)
    if any(name not in weights or weights[name].shape != mask.shape for name, mask in masks.items()):
        raise UserError(f"{folder / MASKS} holds no masks for the weights in {folder / WEIGHTS}")
    digest = hash_masks(masks)
    if {about.get("masks_sha256"), about_masks.get("masks_sha256")} != {digest}:
        raise UserError(f"{folder / MASKS}: its masks are not those that {WEIGHTS} was written with")
    for name, mask in masks.items():
        alive = int((weights[name][~mask] != 0).sum())
        if alive:
            raise UserError(f"{folder / WEIGHTS}: {alive} inactive weights of '{name}' are not zero; it is invalid")
    return weights, masks


def unpack_masks(path: Path, bits: Mapping[str, Tensor], about: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the masks in a file; raises UserError, naming it, where its bits and shapes do not match."""
    try:
        shapes = {name: torch.Size(shape) for name, shape in json.loads(about.get("shapes", "{}")).items()}
        fits = set(shapes) == set(bits) and all(
            bits[name].dtype == torch.uint8 and bits[name].shape == (-(-shape.numel() // 8),)
            for name, shape in shapes.items()
        )
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError):
        fits = False
    if not fits or not bits:
        raise UserError(f"{path} is not a file of masks: its bits do not match its shapes")
    return {name: unpack(bits[name], shape) for name, shape in shapes.items()}


def read_interrupted(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return the weights, masks and metadata in a run's checkpoint; raises UserError for any other file."""
    saved = load_checkpoint(path)
    try:
        state = saved["average"] or saved["model"]
        masks = {name: unpack(bits, state[name].shape) for name, bits in saved["masks"].items()}
        about = {**saved["about"], "interrupted_at_step": str(saved["counters"][0])}
        return state, masks, {str(key): str(value) for key, value in about.items()}
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} is not that of a run ({type(error).__name__}): name another run") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors and metadata; raises UserError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; name the folder of runs with --runs, or run the cell again"
        ) from error


def read_files(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return the weights, the masks and what the weights' metadata says of the run; see `read_export`."""
    about = {key: value for key, value in read_tensors(folder / WEIGHTS)[1].items() if key != "masks_sha256"}
    return *read_export(folder), about


def read_network(name: str, runs: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return a run's weights, masks and metadata, from its files or, if it was interrupted, from its checkpoint.

    Raises UserError for a run without either.
    """
    folder = run_folder(runs, name)
    if (folder / WEIGHTS).exists():
        return read_files(folder)
    if (folder / "checkpoint").exists():
        return read_interrupted(folder / "checkpoint")
    there = sorted(path.parent.name for pattern in (WEIGHTS, "checkpoint") for path in runs.glob(f"*/{pattern}"))
    raise UserError(f"no run '{name}' in {runs}; there is: {', '.join(dict.fromkeys(there)) or 'none'}")
