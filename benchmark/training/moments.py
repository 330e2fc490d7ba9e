"""Second moments of what layers see, for methods that ask how an output changes with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError
from benchmark.base.system import exact_fp32, modes_of, set_modes
from benchmark.data.images import Samples
from benchmark.networks.prunable import TRANSPOSED
from benchmark.training.scoring import scoring_pieces
from methods.core import Moments, Scoring

PART = 16  # images whose patches are held at once, in float64


@torch.no_grad()
def take_moments(
    model: nn.Module, weights: Mapping[str, nn.Parameter], train: Samples, wanted: Moments, batch_size: int, seed: int
) -> tuple[dict[str, Tensor], int]:
    """Return the mean of x x^T in every layer, float64 (groups, fan_in, fan_in), and over how many images it is.

    x: the inputs that one output sees, over images and output positions, and over all uses of a shared weight. The
    network is in evaluation mode and float32, images are augmented as in training and depend on `seed` alone.
    Invariant: the model is left as it was. Raises UserError for a layer whose inputs are not seen.
    """
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in moment_shapes(model, weights).items()}
    sums = {name: total.to(weights[name].device) for name, total in sums.items()}
    rows = dict.fromkeys(weights, 0)

    def add(name: str, probe: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for part in inputs[0].split(PART):
            seen = rows_of(probe, part.double(), sums[name].shape)
            sums[name] += seen.mT @ seen
            rows[name] += seen.shape[1]

    device, images = next(model.parameters()).device, 0
    with watching(model, weights, add), exact_fp32():
        for pixels, _, _ in scoring_pieces(train, Scoring(batches=wanted.batches), batch_size, seed, device):
            model(pixels)
            images += len(pixels)
    if unseen := [name for name, count in rows.items() if count == 0]:
        raise UserError(
            f"the inputs of layer {', '.join(unseen)} cannot be seen, since this backbone uses its weight from outside "
            "the layer: choose another backbone, or exempt it with keep_dense"
        )
    return {name: total / rows[name] for name, total in sums.items()}, images


def users(model: nn.Module, weights: Mapping[str, Tensor]) -> list[tuple[str, nn.Module]]:
    """Return the layers that use each of the weights; raises UserError for transposed convolutions."""
    names = {id(weight): name for name, weight in weights.items()}
    found = [(names[id(m.weight)], m) for m in model.modules() if id(getattr(m, "weight", None)) in names]
    for name, module in found:
        if isinstance(module, TRANSPOSED):
            raise UserError(f"layer {name} is a transposed convolution, which has no second moments of its inputs here")
    if packed := sorted(set(names.values()) - {name for name, _ in found}):
        raise UserError(
            f"layer {packed[0]} is packed in nn.MultiheadAttention, which shows no inputs of it: keep_dense"
        )
    return found


def moment_shapes(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, tuple[int, int, int]]:
    """Return the shape of each layer's second moments: groups, fan-in, fan-in."""
    groups = {name: int(getattr(module, "groups", 1)) for name, module in users(model, weights)}
    return {name: (groups[name], weight[0].numel(), weight[0].numel()) for name, weight in weights.items()}


def moment_sizes(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many products each output position of each layer adds to its second moments."""
    return {name: groups * fan * fan for name, (groups, fan, _) in moment_shapes(model, weights).items()}


def make_probe(module: nn.Module, weight: Tensor) -> nn.Module:
    """Return a layer that returns what each output of `module` sees: its weight is the identity, in every group.

    So stride, padding and dilation are those of the layer, whatever its kind.
    """
    probe = copy.deepcopy(module)
    shape = weight.shape[1:]  # of one output's
    eye = torch.eye(shape.numel(), dtype=torch.float64, device=weight.device).view(-1, *shape)
    probe.weight = nn.Parameter(eye.repeat(int(getattr(module, "groups", 1)), *[1] * len(shape)))
    probe.register_parameter("bias", None)
    return probe


def rows_of(probe: nn.Module, inputs: Tensor, shape: torch.Size) -> Tensor:
    """Return what the outputs of a layer see, (groups, images x positions, fan_in)."""
    seen: Tensor = probe(inputs)
    if isinstance(probe, nn.Linear):
        return seen.reshape(1, -1, shape[-1])
    by_group = seen.flatten(2).view(len(seen), *shape[:2], -1)
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


@contextmanager
def watching(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    look: Callable[[str, nn.Module, nn.Module, tuple[Tensor, ...]], None],
) -> Iterator[None]:
    """Put the model into evaluation mode for a while, and show the inputs of every layer with one of the weights."""
    modes = modes_of(model)
    probes = [(name, module, make_probe(module, weights[name])) for name, module in users(model, weights)]
    hooks = [module.register_forward_pre_hook(partial(look, name, probe)) for name, module, probe in probes]
    model.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        set_modes(modes)
