"""Filters without effect: found by following the network, removed, and the smaller network counted.

Masks charge the filters that they removed; the inputs which these fed in the next layer are still charged. The smaller
network has neither. `sparse-bench slim`, the record of a run and `sparse-bench verify` all take it from here."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from benchmark.base.errors import UserError
from benchmark.config.pages import Page
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers

# What maps a constant channel to a constant channel, and leaves the others out of it.
CHANNELWISE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish)
UNCHANGING = (nn.Identity, nn.Dropout, nn.MaxPool2d)  # of a constant, in evaluation mode
RELU = (torch.relu, functional.relu)


@dataclass
class Chain:
    """A layer, what its channels pass, and the one layer that reads them."""

    producer: nn.Conv2d | nn.Linear
    passed: list[nn.Module]
    consumer: nn.Conv2d | nn.Linear

    def norms(self) -> list[nn.BatchNorm2d]:
        """Return the norms between the two layers."""
        return [module for module in self.passed if isinstance(module, nn.BatchNorm2d)]

    def parts(self) -> list[nn.Module]:
        """Return the modules that a cut changes; an activation may well be shared."""
        return [self.producer, *self.norms(), self.consumer]


@dataclass
class Removal:
    """How many filters were removed, of how many in the layers of chains, and why."""

    filters: int
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def removed(self) -> int:
        """How many filters were removed."""
        return sum(self.reasons.values())


@torch.no_grad()
def remove_dead_filters(network: nn.Module) -> tuple[nn.Module, Removal]:
    """Return a copy of `network` without the filters that have no effect, and what was removed.

    Raises whatever torch.fx does for a network that it cannot follow. Invariant: the outputs in evaluation mode are
    those of `network`, up to the order in which numbers are added. A layer keeps one filter at least.
    """
    smaller = copy.deepcopy(network).eval()
    chains = find_chains(smaller)
    removal = Removal(sum(len(chain.producer.weight) for chain in chains))
    while any([shorten(chain, removal.reasons) for chain in chains]):
        pass  # a filter that is gone reads no longer
    return smaller, removal


def find_chains(network: nn.Module) -> list[Chain]:
    """Return the chains of a network, in the order of its computation."""
    graph = fx.Tracer().trace(network)
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    weights = Counter(
        id(weight) for module in {id(m): m for m in modules.values()}.values() for weight in own_weights(module)
    )
    chains = []
    for node in graph.nodes:
        layer = module_of(node, modules)
        if layer is not None and is_layer(layer):
            chain = follow(node, layer, modules)
            if chain and all(calls[id(part)] == 1 and is_untied(part, weights) for part in chain.parts()):
                chains.append(chain)
    return chains


def own_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Return the parameters that a module holds itself."""
    return module.parameters(recurse=False)


def is_untied(module: nn.Module, holders: Counter[int]) -> bool:
    """Return whether no other module holds a parameter of this one; `holders` counts them by the parameter's id."""
    return all(holders[id(weight)] == 1 for weight in own_weights(module))


def module_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """Return the module that a node calls, or None."""
    return modules[str(node.target)] if node.op == "call_module" else None


def is_layer(module: nn.Module | None) -> bool:
    """Return whether a module is one whose outputs and inputs can be cut: every output reads every input."""
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def follow(node: fx.Node, producer: nn.Module, modules: dict[str, nn.Module]) -> Chain | None:
    """Return the chain that starts at a layer's node, or None where its channels go another way."""
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
    """Cut a chain's filters that have no effect, in place; return whether there were any."""
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
    for reason, which in (("unread", unread), ("zero", silent), ("folded", folded), ("merged", merged)):
        reasons[reason] += int(which.sum())
    return True


def constants(chain: Chain) -> Tensor:
    """Return what each channel would hold everywhere, where its filter has no active weight, as the consumer reads it.

    Shape (channels,); of no meaning for the filters that have active weights.
    """
    bias = chain.producer.bias
    values = torch.zeros(len(chain.producer.weight), device=chain.producer.weight.device) if bias is None else bias
    values = values.reshape(1, -1, 1, 1) if isinstance(chain.producer, nn.Conv2d) else values.reshape(1, -1)
    for module in chain.passed:
        values = module(values.clone())  # some work in place
    return values.flatten()


def fold(consumer: nn.Conv2d | nn.Linear, constant: Tensor) -> None:
    """Add to the consumer's bias what channels of these constants give it."""
    share = consumer.weight.flatten(2).sum(2) @ constant if consumer.weight.dim() > 2 else consumer.weight @ constant
    consumer.bias = nn.Parameter(share if consumer.bias is None else consumer.bias + share)


def find_largest(constant: Tensor, among: Tensor) -> int:
    """Return the candidate whose constant is the furthest from zero, the first of equal ones."""
    return int(constant.abs().masked_fill(~among, -1).argmax())


def merge(consumer: nn.Conv2d | nn.Linear, constant: Tensor, into: int) -> None:
    """Have the consumer read from one channel what all channels of these constants give it; the others may then go."""
    sums = torch.einsum("oi...,i->o...", consumer.weight, constant)
    weight = consumer.weight.clone()
    weight[:, into] = sums / constant[into]
    consumer.weight = nn.Parameter(weight)


def cut(chain: Chain, keep: Tensor) -> None:
    """Keep these channels of a chain, in the producer's filters, the norms between and the consumer's inputs."""
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
    """Return what was removed, in words."""
    words = {"unread": "read by no weight", "zero": "constant zero", "folded": "constant, in the next bias"}
    words["merged"] = "constant, in another's place"
    parts = [f"{removal.reasons[reason]:,} {text}" for reason, text in words.items() if removal.reasons[reason]]
    detail = f" ({', '.join(parts)})" if parts else ""
    return f"{removal.removed:,} of {removal.filters:,} filters removed{detail}; residual streams stay"


TOLERANCE = 1e-5  # of the largest output
DRAWN = 4  # images on which outputs are compared where those of the page are not asked for


def shrink(network: nn.Module, images: Tensor) -> tuple[nn.Module, Removal, float]:
    """Return a copy without the filters that have no effect, what was removed, and how far its outputs are off.

    The distance is relative to the largest output on these images; `network` is in evaluation mode. Raises UserError
    for a network that torch.fx cannot follow, and where an output differs by more than TOLERANCE.
    """
    try:
        smaller, removal = remove_dead_filters(network)
    except Exception as error:  # torch.fx raises anything at all
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"torch.fx cannot follow its network, so what reads a filter is unknown, and nothing is removed "
            f"({type(error).__name__}: {reason}); the suite's CIFAR networks and timm's ResNets can be followed"
        ) from error
    with torch.inference_mode():
        expected, found = network(images), smaller(images)
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not off <= TOLERANCE:  # NaN is no match either
        raise UserError(f"the smaller network's outputs differ by {off:.1e} of the largest, more than {TOLERANCE:g}")
    return smaller, removal, off


def count_network(network: nn.Module, page: Page, shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of one image of `shape` (channels, height, width) through a network, all weights."""
    return count_costs(network, find_layers(network, page), shape).dense


def cut_slim(network: nn.Module, masks: Mapping[str, Tensor], shape: tuple[int, int, int]) -> nn.Module | None:
    """Return the smaller network; None for masks not of whole filters.

    `network` holds the weights, zero where a mask is off, on the CPU, and is left in evaluation mode. Raises UserError
    where `shrink` does, on images of `shape` drawn the same every time.
    """
    if not holds_whole_filters(masks):
        return None
    images = torch.randn(DRAWN, *shape, generator=torch.Generator().manual_seed(0))
    return shrink(network.eval(), images)[0]


def count_slim(network: nn.Module, masks: Mapping[str, Tensor], page: Page, shape: tuple[int, int, int]) -> int | None:
    """Return the multiply-adds of one image through the smaller network; None for masks not of whole filters.

    Residual streams, depthwise and grouped convolutions keep their width, so this may be more than the masks charge,
    never more than the dense network. Raises UserError where `cut_slim` does.
    """
    smaller = cut_slim(network, masks, shape)
    return None if smaller is None else count_network(smaller, page, shape)


def holds_whole_filters(masks: Mapping[str, Tensor]) -> bool:
    """Return whether the masks of all convolutions keep or remove whole filters, and remove one at least.

    A filter is a row of the first dimension. Masks of linear layers, of two dimensions, may be as they are. Invariant:
    masks that leave every convolution dense, or that are of linear layers alone, hold no whole filters.
    """
    rows = [mask.flatten(1) for mask in masks.values() if mask.dim() > 2]
    whole = all(bool((row.all(1) | ~row.any(1)).all()) for row in rows)
    return whole and not all(bool(row.all()) for row in rows)
