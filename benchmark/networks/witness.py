"""A second count of a network's multiply-adds, taken as they happen, that shares nothing with the first.

`benchmark.networks.costs` reads a trace by module; this one watches a pass from below PyTorch's operators, where a call
of a function is seen like a call of a layer and fused attention like its parts. It also sees which parameters are
factors of multiply-adds, whatever is made of them before: `benchmark.networks.prunable` tells which of these no mask
reaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Counted = tuple[int, tuple[Tensor, ...]]  # multiply-adds, and the factors


def convolve(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Counted:
    """Every weight meets each position of the output, or, transposed, of the input."""
    positions = prod((x if rest[4] else out).shape[2:])
    return len(x) * positions * weight.numel(), (x, weight)


def multiply(out: Tensor, first: Tensor, second: Tensor) -> Counted:
    """A product of matrices or vectors: every number of the result is a sum over the last dimension of the first."""
    return out.numel() * first.shape[-1], (first, second)


def multiply_add(out: Tensor, added: Tensor, first: Tensor, second: Tensor, **scales: Any) -> Counted:
    """A product that is added to something."""
    return multiply(out, first, second)


def sum_products(out: Tensor, added: Tensor, first: Tensor, second: Tensor, **scales: Any) -> Counted:
    """Products of matrices, added to each other."""
    return len(first) * out.numel() * first.shape[-1], (first, second)


def project(out: Tensor, x: Tensor, weight: Tensor, *bias: Any) -> Counted:
    """A linear layer that was not taken apart."""
    return multiply(out, x, weight)


def spread(out: Tensor, first: Tensor, second: Any, *rest: Any) -> Counted:
    """A product element by element: free, unless it is an outer product, which a sum makes one of matrices."""
    grows = isinstance(second, Tensor) and out.numel() > max(first.numel(), second.numel())
    return (out.numel(), (first, second)) if grows else (0, ())


def attend(out: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Counted:
    """Fused attention: the scores, then the mean of the values."""
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]), (query, key, value)


PRODUCTS: dict[str, Callable[..., Counted]] = {
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), convolve),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), multiply),
    **dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_"), multiply_add),
    **dict.fromkeys(("addbmm", "addbmm_"), sum_products),
    "linear": project,
    "mul": spread,
}


class Witness(TorchDispatchMode):
    """Counts the multiply-adds of whatever runs within it.

    `total` of all, `weights` by the parameter that is a factor itself, `factors` the parameters that are one or that a
    factor is made from. Invariant: a tensor is followed as long as nothing but parameters and constants went into it;
    what meets the image is a feature map, and no longer a weight.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.total = 0
        self.weights: Counter[str] = Counter()
        self.factors: set[str] = set()
        self.sizes: dict[str, int] = {}
        # By storage, which views share: the storage, held so that its address is not given away, and its parameters.
        self.followed: dict[int, tuple[Any, frozenset[str]]] = {}
        self.parameters: dict[int, str] = {}
        for _, buffer in model.named_buffers():
            self.follow(buffer, frozenset())
        for name, parameter in model.named_parameters():
            self.parameters.setdefault(address(parameter), name)
            self.sizes[name] = parameter.numel()
            self.follow(parameter, frozenset([self.parameters[address(parameter)]]))

    def follow(self, tensor: Tensor, origins: frozenset[str]) -> None:
        """Take note of what a tensor is made from."""
        self.followed[address(tensor)] = tensor.untyped_storage(), origins

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operator, count it, and follow what it made."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        count = attend if name.startswith("_scaled_dot_product") else PRODUCTS.get(name)
        if count is not None:
            self.charge(*count(out, *args, **kwargs))
        self.trace(tensors((args, kwargs)), tensors(out))
        return out

    def forward(self, counts: Mapping[str, int]) -> int:
        """Return the multiply-adds of what was seen when `counts[name]` weights of these parameters are active."""
        return self.total - sum(
            self.weights[name] // self.sizes[name] * (self.sizes[name] - count) for name, count in counts.items()
        )

    def charge(self, macs: int, factors: Iterable[Tensor]) -> None:
        """Count a product."""
        self.total += macs
        origins = [self.followed.get(address(factor), (None, None))[1] for factor in factors]
        for factor in {address(factor) for factor in factors} & self.parameters.keys():
            self.weights[self.parameters[factor]] += macs
        if None in origins:  # else it is made of weights alone, such as the biases that an MLP gives to positions
            self.factors.update(*(names for names in origins if names))

    def trace(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Follow outputs made of parameters and constants alone, and lose those that the image went into."""
        origins = [self.followed.get(address(tensor), (None, None))[1] for tensor in inputs]
        for output in outputs:
            if None in origins or not address(output):
                self.followed.pop(address(output), None)
            else:
                self.follow(output, frozenset().union(*(names for names in origins if names)))


def address(tensor: Tensor) -> int:
    """Return what tells a tensor's storage from all others that live; 0 for a tensor without one, such as sparse."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the arguments or results of an operator."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def watch(model: nn.Module, images: Tensor) -> tuple[Any, Witness]:
    """Return what `model` gives for these images, in the mode it is in, and what it took."""
    with Witness(model) as witness:
        return model(images), witness


def recount(model: nn.Module, shape: tuple[int, int, int]) -> Witness:
    """Return what an image of `shape` (channels, height, width) takes in evaluation mode; the model stays as it was."""
    training = model.training
    like = next(model.parameters())
    try:
        return watch(model.eval(), torch.zeros(1, *shape, device=like.device, dtype=like.dtype))[1]
    finally:
        model.train(training)
