"""Layers whose weights are compressed rows (CSR): only active weights are stored and multiplied.

Convolutions become matrix products, 1x1 ones directly and others by im2col. They compute in fp32 whatever the mode:
torch has CSR products in no other type on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.inference.passes import Clock, Pass

WIN = 0.9  # a layer is converted where CSR takes at most this share of the dense layer's time
MOST_COLUMNS = 2**26  # numbers that an im2col may hold, 256 MiB


def to_csr(weight: Tensor) -> Tensor:
    """Return a weight as a CSR matrix (outputs x the rest) in fp32, its indices 32 bits wide as MKL takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse tensors beta
        rows = weight.detach().float().flatten(1).to_sparse_csr()
        crow, col = rows.crow_indices().int(), rows.col_indices().int()
        return torch.sparse_csr_tensor(crow, col, rows.values(), size=rows.shape, check_invariants=False)


def multiply(matrix: Tensor, columns: Tensor) -> Tensor:
    """Return the product of a CSR matrix and a dense one, in fp32 also under autocast."""
    with torch.autocast(columns.device.type, enabled=False):
        return matrix @ columns.float()


class CsrLinear(nn.Module):
    """A linear layer's function with CSR weights, as W @ x.T: the other way round is several times slower."""

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
    """A convolution's function with CSR weights: a product with the image's columns."""

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
            columns = functional.unfold(x.float(), self.kernel, self.dilation, self.padding, self.stride).transpose(
                0, 1
            )
        out = multiply(self.matrix, columns.reshape(self.matrix.shape[1], -1))
        if self.bias is not None:
            out = out + self.bias
        out = out.reshape(len(out), len(x), *self.sizes(x)).transpose(0, 1).to(x.dtype)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def sizes(self, x: Tensor) -> list[int]:
        """Return height and width of the output."""
        sides = zip(x.shape[2:], self.kernel, self.dilation, self.padding, self.stride, strict=True)
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, d, p, s in sides]


def convert(layer: nn.Module) -> nn.Module | None:
    """Return the layer with CSR weights, or None for a kind that has no such form here."""
    if isinstance(layer, nn.Linear):
        return CsrLinear(layer)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        return None if isinstance(layer.padding, str) else CsrConv2d(layer)
    return None


def convert_layers(network: nn.Module, names: Iterable[str]) -> None:
    """Replace the modules of these names, in place, by their forms with CSR weights."""
    for name in names:
        converted = convert(network.get_submodule(name))
        assert converted is not None, f"{name} has no form with CSR weights"
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, converted)


def find_winners(run: Pass, names: Iterable[str], clock: Clock) -> list[str]:
    """Return the modules among `names` that a short timing finds faster with CSR weights, at the pass's own inputs."""
    inputs = capture_inputs(run, names)
    return [name for name, x in inputs.items() if wins(run, run.network.get_submodule(name), x, clock)]


def wins(run: Pass, layer: nn.Module, x: Tensor, clock: Clock) -> bool:
    """Return whether a layer is faster with CSR weights on the input `x`; False where torch here cannot compute it."""
    converted = convert(layer)
    if converted is None or count_columns(layer, x) > MOST_COLUMNS:
        return False
    dense, sparse = (partial(run.within, partial(module, x)) for module in (layer, converted))
    try:
        sparse()
    except RuntimeError:  # a torch built without sparse products, or too little memory
        return False
    _, seconds = clock.find_fastest([dense, sparse])
    return seconds[1] <= WIN * seconds[0]


def count_columns(layer: nn.Module, x: Tensor) -> int:
    """Return how many numbers a convolution's im2col holds, at most."""
    kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else (1, 1)
    return x.numel() * int(kernel[0]) * int(kernel[1])


def capture_inputs(run: Pass, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the input of each module in a pass, by name; modules not called exactly once are left out."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [run.network.get_submodule(name).register_forward_pre_hook(keep_input(seen[name])) for name in seen]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: inputs[0] for name, inputs in seen.items() if len(inputs) == 1}


def keep_input(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that appends a module's input to `kept`."""
    return lambda module, inputs: kept.append(inputs[0])
