"""Layers with CSR weights (compressed sparse rows): only active weights are stored and multiplied.

Convolutions become matrix products, by im2col unless they are 1x1. They compute in fp32 in every mode: torch has no
other CSR products on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.inference.passes import Clock, Pass

WIN = 0.9  # a layer is converted if CSR takes at most this share of the dense layer's time
MOST_COLUMNS = 2**26  # elements of an im2col at most, 256 MiB


def to_csr(weight: Tensor) -> Tensor:
    """Return a weight as a CSR matrix (outputs x the rest) in fp32, with the 32-bit indices that MKL needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse tensors are in beta, says torch
        rows = weight.detach().float().flatten(1).to_sparse_csr()
        crow, col = rows.crow_indices().int(), rows.col_indices().int()
        return torch.sparse_csr_tensor(crow, col, rows.values(), size=rows.shape, check_invariants=False)


def multiply(matrix: Tensor, columns: Tensor) -> Tensor:
    """Return the product of a CSR matrix and a dense one, in fp32 even under autocast."""
    with torch.autocast(columns.device.type, enabled=False):
        return matrix @ columns.float()


class CsrLinear(nn.Module):
    """A linear layer with CSR weights, computed as W @ x.T: x @ W.T is several times slower."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.matrix = to_csr(layer.weight)
        self.bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        out = multiply(self.matrix, x.reshape(-1, x.shape[-1]).t()).t()
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], out.shape[-1]).to(x.dtype)


class CsrConv2d(nn.Module):
    """A convolution with CSR weights: a product with the image's columns."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.matrix = to_csr(layer.weight)
        self.bias = None if layer.bias is None else layer.bias.detach().float()[:, None]
        assert not isinstance(layer.padding, str)
        self.kernel, self.dilation = layer.kernel_size, layer.dilation
        self.padding, self.stride = layer.padding, layer.stride
        self.pointwise = set(self.kernel) == {1} and set(self.padding) == {0}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W') in the memory format of `x`."""
        if self.pointwise:
            columns = x[:, :, :: self.stride[0], :: self.stride[1]].transpose(0, 1)
        else:
            unfolded = functional.unfold(x.float(), self.kernel, self.dilation, self.padding, self.stride)
            columns = unfolded.transpose(0, 1)
        out = multiply(self.matrix, columns.reshape(self.matrix.shape[1], -1))
        if self.bias is not None:
            out = out + self.bias
        out = out.reshape(len(out), len(x), *self.sizes(x)).transpose(0, 1).to(x.dtype)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def sizes(self, x: Tensor) -> list[int]:
        """Return the height and width of the output."""
        sides = zip(x.shape[2:], self.kernel, self.dilation, self.padding, self.stride, strict=True)
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, d, p, s in sides]


def convert(layer: nn.Module) -> nn.Module | None:
    """Return the layer with CSR weights, or None for a kind that is not supported."""
    if isinstance(layer, nn.Linear):
        return CsrLinear(layer)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        return None if isinstance(layer.padding, str) else CsrConv2d(layer)
    return None


def convert_layers(network: nn.Module, names: Iterable[str]) -> None:
    """Replace the modules of these names, in place, by their CSR versions."""
    for name in names:
        converted = convert(network.get_submodule(name))
        assert converted is not None, f"{name} has no CSR version"
        network.set_submodule(name, converted)


def find_winners(run: Pass, names: Iterable[str], clock: Clock) -> list[str]:
    """Return the modules among `names` that are faster with CSR weights in a short trial on the pass's own inputs."""
    inputs = capture_inputs(run, names)
    return [name for name, x in inputs.items() if wins(run, run.network.get_submodule(name), x, clock)]


def wins(run: Pass, layer: nn.Module, x: Tensor, clock: Clock) -> bool:
    """Return whether a layer is faster with CSR weights on the input `x`; False where torch cannot compute it."""
    converted = convert(layer)
    if converted is None or count_columns(layer, x) > MOST_COLUMNS:
        return False
    dense, sparse = (partial(run.within, partial(module, x)) for module in (layer, converted))
    try:
        sparse()
    except RuntimeError:  # torch was built without sparse products, or memory is short
        return False
    _, seconds = clock.find_fastest([dense, sparse])
    return seconds[1] <= WIN * seconds[0]


def count_columns(layer: nn.Module, x: Tensor) -> int:
    """Return an upper bound on the elements of a convolution's im2col."""
    kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else (1, 1)
    return x.numel() * int(kernel[0]) * int(kernel[1])


def capture_inputs(run: Pass, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the input of each module in a pass, by name, for modules that are called exactly once."""
    seen: dict[nn.Module, list[Tensor]] = {run.network.get_submodule(name): [] for name in names}
    hooks = [module.register_forward_pre_hook(lambda module, inputs: seen[module].append(inputs[0])) for module in seen]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    inputs = {name: seen[run.network.get_submodule(name)] for name in names}
    return {name: own[0] for name, own in inputs.items() if len(own) == 1}
