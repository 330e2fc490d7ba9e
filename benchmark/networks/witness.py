"""A second, independent count of a network's multiply-adds.

`benchmark.networks.costs` reads a trace module by module; this one intercepts PyTorch's operators as they run, so it
counts functional calls like layers and fused attention like its parts. It also finds which parameters enter
multiply-adds, however they are transformed first; `benchmark.networks.prunable` reports those that no mask covers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Counted = tuple[int, tuple[Tensor, ...]]  # multiply-adds, and the factors


def convolve(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Counted:
    """Every weight meets each output position, or each input position if transposed."""
    positions = prod((x if rest[4] else out).shape[2:])
    return len(x) * positions * weight.numel(), (x, weight)


def multiply(out: Tensor, first: Tensor, second: Tensor, *bias: Any) -> Counted:
    """A matrix or vector product, or a fused linear layer: each output sums over the last dimension of `first`."""
    return out.numel() * first.shape[-1], (first, second)


def multiply_add(out: Tensor, added: Tensor, first: Tensor, second: Tensor, **scales: Any) -> Counted:
    """A product added to another tensor."""
    return multiply(out, first, second)


def sum_products(out: Tensor, added: Tensor, first: Tensor, second: Tensor, **scales: Any) -> Counted:
    """A batch of matrix products, summed."""
    return len(first) * out.numel() * first.shape[-1], (first, second)


def spread(out: Tensor, first: Tensor, second: Any, *rest: Any) -> Counted:
    """An elementwise product: free unless it is an outer product, which a later sum turns into a matrix product."""
    grows = isinstance(second, Tensor) and out.numel() > max(first.numel(), second.numel())
    return (out.numel(), (first, second)) if grows else (0, ())


def attend(out: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Counted:
    """Fused attention: the scores, then the weighted mean of the values."""
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]), (query, key, value)


PRODUCTS: dict[str, Callable[..., Counted]] = {
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), convolve),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "linear"), multiply),
    **dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_"), multiply_add),
    **dict.fromkeys(("addbmm", "addbmm_"), sum_products),
    "mul": spread,
}


class Witness(TorchDispatchMode):
    """Counts the multiply-adds of everything that runs inside it.

    total: all of them. weights: by parameter, where the parameter itself is a factor; parts: likewise by its part, the
    place and the number of its elements. factors: parameters that are a factor or were used to compute one. ending:
    the parameters of `weights` in the order of their products, up to the last that the outputs depend on. Invariant: a
    tensor is followed only while it depends on parameters and constants alone; one that also depends on the image is a
    feature map.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.total = 0
        self.weights: Counter[str] = Counter()
        self.parts: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
        self.factors: set[str] = set()
        self.ending: list[str] = []
        self.reached: dict[int, int] = {}  # by storage address: how many of these products a tensor may depend on
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        # By storage address (views share it): the storage, kept alive so that its address is not reused, and the
        # parameters that the tensor was computed from.
        self.followed: dict[int, tuple[Any, frozenset[str]]] = {}
        self.parameters: dict[int, str] = {}
        for buffer in model.buffers():
            self.follow(buffer, frozenset())
        for name, parameter in model.named_parameters():
            self.parameters.setdefault(address(parameter), name)
            self.follow(parameter, frozenset([self.parameters[address(parameter)]]))

    def follow(self, tensor: Tensor, origins: frozenset[str]) -> None:
        """Remember which parameters a tensor was computed from."""
        self.followed[address(tensor)] = tensor.untyped_storage(), origins

    def origins(self, tensors: Iterable[Tensor]) -> list[frozenset[str] | None]:
        """Return the parameters behind each tensor; None for one that depends on the image."""
        return [self.followed.get(address(tensor), (None, None))[1] for tensor in tensors]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operator, count it, and follow its outputs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        count = attend if name.startswith("_scaled_dot_product") else PRODUCTS.get(name)
        inputs, before = tensors((args, kwargs)), len(self.ending)
        if count is not None:
            self.charge(*count(out, *args, **kwargs))
        depth = len(self.ending) if len(self.ending) > before else self.depth(inputs)
        self.trace(inputs, tensors(out))
        self.reached.update((address(output), depth) for output in tensors(out))
        return out

    def depth(self, found: Iterable[Tensor]) -> int:
        """Return how many products lead to the last one that these tensors depend on; 0 where there is none."""
        return max((self.reached.get(address(tensor), 0) for tensor in found), default=0)

    def forward(self, counts: Mapping[str, int]) -> int:
        """Return the multiply-adds of the pass when `counts[name]` weights are active in each of these parameters."""
        return self.total - sum(
            self.weights[name] // self.sizes[name] * (self.sizes[name] - count) for name, count in counts.items()
        )

    def charge(self, macs: int, factors: Iterable[Tensor]) -> None:
        """Count a product."""
        self.total += macs
        origins = self.origins(factors)
        for place, factor in {address(factor): factor for factor in factors}.items():
            if place in self.parameters:
                self.weights[self.parameters[place]] += macs
                self.ending.append(self.parameters[place])
                self.parts[self.parameters[place]][int(factor.storage_offset()), factor.numel()] += macs
        if None in origins:  # otherwise only weights go in, such as the position biases that an MLP computes
            self.factors.update(*(names for names in origins if names))

    def is_even(self, name: str) -> bool:
        """Return whether every weight of a parameter took part in as many multiply-adds as any other."""
        size = self.sizes[name]
        parts = {(place, min(count, size)): macs for (place, count), macs in self.parts[name].items()}
        whole = all(count == size for _, count in parts) or sum(count for _, count in parts) == size
        return whole and len({macs / count for (_, count), macs in parts.items()}) <= 1

    def trace(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Follow outputs computed from parameters and constants alone; drop those that depend on the image."""
        origins = self.origins(inputs)
        for output in outputs:
            if None in origins or not address(output):
                self.followed.pop(address(output), None)
            else:
                self.follow(output, frozenset().union(*(names for names in origins if names)))


def address(tensor: Tensor) -> int:
    """Return a value unique to the tensor's storage while it lives; 0 where there is none (sparse tensors)."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among an operator's arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Have nn.MultiheadAttention and transformer layers compute by operators that can be counted, for a while."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def watch(model: nn.Module, images: Tensor) -> tuple[Any, Witness]:
    """Return the outputs of `model` for these images, in its current mode, and the count of that pass."""
    with without_fast_path(), Witness(model) as witness:
        outputs = model(images)
    if found := tensors(outputs):  # none where they are packed in an object of the network's own
        del witness.ending[witness.depth(found) :]
    return outputs, witness


def find_last(seen: Witness, names: Iterable[str]) -> str:
    """Return the layer, of those whose weights have these names, whose product gives a pass its outputs: the classes.

    The last one computed that they depend on, wherever it is registered; the last name where a pass shows none.
    """
    known = list(names)
    return next((name for name in reversed(seen.ending) if name in known), known[-1])


def recount(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Witness:
    """Count one input of `shape`, such as (channels, height, width), in evaluation mode; modes are restored.

    dtype: of the input, such as whole numbers for tokens; None = as the network's parameters.
    """
    modes = {module: module.training for module in model.modules()}  # some may be frozen
    like = next(model.parameters())
    try:
        return watch(model.eval(), torch.zeros(1, *shape, device=like.device, dtype=dtype or like.dtype))[1]
    finally:
        for module, training in modes.items():
            module.training = training
