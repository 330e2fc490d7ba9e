"""Dead filters: found by tracing the network, removed, and the smaller network counted.

Masks save the multiply-adds of the filters that they remove, but not those of the next layer's weights that read these
filters. The smaller network has neither. `sparse-bench slim`, a run's record and `sparse-bench verify` all use it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from benchmark.base.errors import UserError, reason
from benchmark.config.pages import Page
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers

# Modules that map a constant channel to a constant channel, each channel on its own.
CHANNELWISE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish)
UNCHANGING = (nn.Identity, nn.Dropout, nn.MaxPool2d)  # leave a constant as it is, in evaluation mode
RELU = (torch.relu, functional.relu)


@dataclass
class Chain:
    """A layer, the modules its channels pass through, and the only layer that reads them."""

    producer: nn.Conv2d | nn.Linear
    passed: list[nn.Module]
    consumer: nn.Conv2d | nn.Linear

    def norms(self) -> list[nn.BatchNorm2d]:
        """Return the norms between the two layers."""
        return [module for module in self.passed if isinstance(module, nn.BatchNorm2d)]

    def parts(self) -> list[nn.Module]:
        """Return the modules that a cut changes; activations may be shared."""
        return [self.producer, *self.norms(), self.consumer]


@dataclass
class Removal:
    """How many filters were removed, out of how many in the chains' layers, and why."""

    filters: int
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def removed(self) -> int:
        """Number of filters removed."""
        return self.reasons.total()


@torch.no_grad()
def remove_dead_filters(network: nn.Module) -> tuple[nn.Module, Removal]:
    """Return a copy of `network` without its dead filters, and what was removed.

    Raises whatever torch.fx does for a network that it cannot trace. Invariant: the outputs in evaluation mode are
    those of `network`, up to the order of summation. A layer keeps at least one filter.
    """
    smaller = copy.deepcopy(network).eval()
    chains = find_chains(smaller)
    removal = Removal(sum(len(chain.producer.weight) for chain in chains))
    while any([shorten(chain, removal.reasons) for chain in chains]):
        pass  # a removed filter no longer reads its inputs, which may be dead now
    return smaller, removal


def find_chains(network: nn.Module) -> list[Chain]:
    """Return the chains of a network, in the order in which it computes them."""
    graph = fx.Tracer().trace(network)
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    holders = Counter(id(weight) for module in network.modules() for weight in module.parameters(recurse=False))
    chains = []
    for node in graph.nodes:
        layer = module_of(node, modules)
        if layer is not None and is_layer(layer):
            chain = follow(node, layer, modules)
            parts = chain.parts() if chain else []
            untied = all(holders[id(weight)] == 1 for part in parts for weight in part.parameters(recurse=False))
            if chain and untied and all(calls[id(part)] == 1 for part in parts):
                chains.append(chain)
    return chains


def module_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """Return the module that a node calls, or None."""
    return modules[str(node.target)] if node.op == "call_module" else None


def is_layer(module: nn.Module | None) -> bool:
    """Return whether a module's outputs and inputs can be cut, since every output reads every input."""
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def follow(node: fx.Node, producer: nn.Module, modules: dict[str, nn.Module]) -> Chain | None:
    """Return the chain that starts at a layer's node, or None where its channels go elsewhere."""
    passed: list[nn.Module] = []
    spatial = type(producer) is nn.Conv2d
    while len(node.users) == 1:
        (reader,) = node.users
        if reader.all_input_nodes != [node]:
            return None
        node, module = reader, module_of(reader, modules)
        if is_layer(module):
            fits = (type(module) is nn.Conv2d) == spatial
            return Chain(producer, passed, module) if fits else None  # type: ignore[arg-type]
        if isinstance(module, CHANNELWISE) and (spatial or not isinstance(module, nn.BatchNorm2d)):
            passed.append(module)
        elif is_relu(node):
            passed.append(nn.ReLU())
        elif spatial and is_mean(node):
            spatial = False
        elif not isinstance(module, UNCHANGING):
            return None
    return None


def is_relu(node: fx.Node) -> bool:
    """Return whether a node is torch's ReLU, called as a function or a method."""
    return (node.op == "call_function" and node.target in RELU) or (node.op == "call_method" and node.target == "relu")


def is_mean(node: fx.Node) -> bool:
    """Return whether a node takes the mean over height and width and drops both."""
    axes = [node.kwargs.get("dim"), *node.args[1:2]]
    given = [tuple(axis) for axis in axes if isinstance(axis, list | tuple)]
    kept = node.kwargs.get("keepdim", False) or len(node.args) > 2
    return node.op == "call_method" and node.target == "mean" and given in ([(2, 3)], [(-2, -1)]) and not kept


def shorten(chain: Chain, reasons: Counter[str]) -> bool:
    """Cut a chain's dead filters, in place; return whether there were any."""
    reading, writing = chain.consumer.weight, chain.producer.weight
    unread = ~reading.transpose(0, 1).flatten(1).any(1)
    empty = ~writing.flatten(1).any(1)
    constant = constants(chain)
    silent = empty & (constant == 0) & ~unread
    unpadded = isinstance(chain.consumer, nn.Linear) or chain.consumer.padding in ((0, 0), "valid")
    same = empty & ~silent & ~unread  # a constant that is read
    folded = same & unpadded
    merged = same & ~folded & (torch.arange(len(same), device=same.device) != find_largest(constant, same))
    gone = unread | silent | folded | merged
    if gone.all():
        gone[0] = unread[0] = silent[0] = folded[0] = False
    if not gone.any():
        return False
    if folded.any():
        fold(chain.consumer, constant * folded)
    if merged.any():
        merge(chain.consumer, constant * same, find_largest(constant, same))
    cut(chain, ~gone)
    for why, which in (("unread", unread), ("zero", silent), ("folded", folded), ("merged", merged)):
        reasons[why] += int(which.sum())
    return True


def constants(chain: Chain) -> Tensor:
    """Return the constant that the consumer reads from each channel whose filter has no active weight.

    Shape (channels,); meaningless for filters with active weights.
    """
    bias = chain.producer.bias
    values = torch.zeros(len(chain.producer.weight), device=chain.producer.weight.device) if bias is None else bias
    values = values.reshape(1, -1, 1, 1) if isinstance(chain.producer, nn.Conv2d) else values.reshape(1, -1)
    for module in chain.passed:
        values = module(values.clone())  # some work in place
    return values.flatten()


def fold(consumer: nn.Conv2d | nn.Linear, constant: Tensor) -> None:
    """Add the contribution of channels with these constants to the consumer's bias."""
    share = consumer.weight.flatten(2).sum(2) @ constant if consumer.weight.dim() > 2 else consumer.weight @ constant
    consumer.bias = nn.Parameter(share if consumer.bias is None else consumer.bias + share)


def find_largest(constant: Tensor, among: Tensor) -> int:
    """Return the candidate whose constant is furthest from zero, the first among equals."""
    return int(constant.abs().masked_fill(~among, -1).argmax())


def merge(consumer: nn.Conv2d | nn.Linear, constant: Tensor, into: int) -> None:
    """Make the consumer read the contribution of all these constants from one channel, so that the others can go."""
    sums = torch.einsum("oi...,i->o...", consumer.weight, constant)
    weight = consumer.weight.clone()
    weight[:, into] = sums / constant[into]
    consumer.weight = nn.Parameter(weight)


def cut(chain: Chain, keep: Tensor) -> None:
    """Keep these channels in the producer's filters, the norms between and the consumer's inputs."""
    producer, consumer = chain.producer, chain.consumer
    producer.weight = nn.Parameter(producer.weight[keep])
    if producer.bias is not None:
        producer.bias = nn.Parameter(producer.bias[keep])
    consumer.weight = nn.Parameter(consumer.weight[:, keep])
    left = int(keep.sum())
    setattr(producer, "out_channels" if isinstance(producer, nn.Conv2d) else "out_features", left)
    setattr(consumer, "in_channels" if isinstance(consumer, nn.Conv2d) else "in_features", left)
    for norm in chain.norms():
        cut_norm(norm, keep)


def cut_norm(norm: nn.BatchNorm2d, keep: Tensor) -> None:
    """Keep these channels of a batch norm."""
    norm.num_features = int(keep.sum())
    for name, values in [*norm.named_parameters(), *norm.named_buffers()]:
        if values.dim() == 1:
            kept = values[keep]
            setattr(norm, name, nn.Parameter(kept) if isinstance(values, nn.Parameter) else kept)


def count_dead(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many filters there are ("of"), are dead ("filters"), and how many active weights are dead ("weights").

    A filter is a row of the first dimension of a mask, dead without an active weight. A weight is dead where it reads a
    dead filter, or belongs to one that no active weight reads, as far as one layer alone reads another's outputs:
    filters that end in a residual stream count, weights that read the stream never do. Where torch.fx cannot follow
    `network`, a plain one that is left as it is, "weights" is missing.
    """
    empty = {name: ~mask.flatten(1).any(1) for name, mask in masks.items()}
    found = {"filters": sum(int(rows.sum()) for rows in empty.values()), "of": sum(map(len, empty.values()))}
    try:
        chains = find_chains(network)
    except Exception:  # torch.fx raises anything at all
        return found
    names = {id(weight): name for name, weight in network.named_parameters() if name in masks}
    dead = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for chain in chains:
        writer, reader = names.get(id(chain.producer.weight)), names.get(id(chain.consumer.weight))
        if writer and reader:
            dead[reader] |= masks[reader] & empty[writer].view(1, -1, *[1] * (masks[reader].dim() - 2))
            unread = ~masks[reader].transpose(0, 1).flatten(1).any(1)
            dead[writer] |= masks[writer] & unread.view(-1, *[1] * (masks[writer].dim() - 1))
    return {**found, "weights": sum(int(mask.sum()) for mask in dead.values())}


def describe_removal(removal: Removal) -> str:
    """Describe in words what was removed."""
    words = {"unread": "read by no weight", "zero": "constant zero", "folded": "constant, in the next bias"}
    words["merged"] = "constant, in another's place"
    parts = [f"{removal.reasons[why]:,} {text}" for why, text in words.items() if removal.reasons[why]]
    detail = f" ({', '.join(parts)})" if parts else ""
    return f"{removal.removed:,} of {removal.filters:,} filters removed{detail}; residual streams stay"


TOLERANCE = 1e-5  # of the largest output
DRAWN = 4  # random images on which outputs are compared


def shrink(network: nn.Module, images: Tensor) -> tuple[nn.Module, Removal, float]:
    """Return a copy without the dead filters, what was removed, and how much its outputs differ.

    The difference is relative to the largest output on these images; `network` is in evaluation mode. Raises UserError
    for a network that torch.fx cannot trace, and for a difference above TOLERANCE.
    """
    try:
        smaller, removal = remove_dead_filters(network)
    except Exception as error:  # torch.fx may raise anything
        raise UserError(
            f"torch.fx cannot trace its network, so what reads a filter is unknown and nothing is removed "
            f"({type(error).__name__}: {reason(error)}); the suite's CIFAR networks and timm's ResNets can be traced"
        ) from error
    with torch.inference_mode():
        off = distance(smaller(images), network(images))
    if not off <= TOLERANCE:  # NaN fails too
        raise UserError(f"the smaller network's outputs differ by {off:.1e} of the largest, more than {TOLERANCE:g}")
    return smaller, removal, off


def distance(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference between outputs as a share of the largest one expected."""
    return float((outputs.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def count_network(network: nn.Module, page: Page, shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of one image of `shape` (channels, height, width), all weights active."""
    return count_costs(network, find_layers(network, page), shape).dense


def cut_slim(network: nn.Module, masks: Mapping[str, Tensor], shape: tuple[int, int, int]) -> nn.Module | None:
    """Return the network without its dead filters; None where the masks do not remove whole filters.

    `network`, on the CPU, has zeros where a mask is off, and is left in evaluation mode. Raises UserError where
    `shrink` does, on fixed random images of `shape`.
    """
    if not holds_whole_filters(masks):
        return None
    images = torch.randn(DRAWN, *shape, generator=torch.Generator().manual_seed(0))
    return shrink(network.eval(), images)[0]


def count_slim(network: nn.Module, masks: Mapping[str, Tensor], page: Page, shape: tuple[int, int, int]) -> int | None:
    """Return the multiply-adds of one image through the network that `cut_slim` returns; None where that does.

    Residual streams, depthwise and grouped convolutions keep their width, so this may exceed the cost by the masks,
    but not that of the dense network. Raises UserError where `cut_slim` does.
    """
    smaller = cut_slim(network, masks, shape)
    return None if smaller is None else count_network(smaller, page, shape)


def holds_whole_filters(masks: Mapping[str, Tensor]) -> bool:
    """Return whether the masks of all convolutions keep or remove whole filters, and remove at least one.

    A filter is a row of the first dimension. Masks of linear layers (two dimensions) do not matter.
    """
    rows = [mask.flatten(1) for mask in masks.values() if mask.dim() > 2]
    whole = all(bool((row.all(1) | ~row.any(1)).all()) for row in rows)
    return whole and not all(bool(row.all()) for row in rows)
