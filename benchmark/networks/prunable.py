"""Which weights are pruned, and those that compute but are reached by no mask."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

import timm.layers
from torch import Tensor, nn

from benchmark.base.errors import UserError, nearest
from benchmark.config.pages import Page

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
# Subclasses that multiply by the stored weight itself. Others, such as weight-standardised convolutions, compute with
# weights of their own making, where a masked zero is no zero.
PLAIN = (*LAYERS, timm.layers.Conv2dSame, timm.layers.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@dataclass(frozen=True)
class Layer:
    """A layer with multiply-adds: the name of its weight, the modules that use it, and whether the page prunes it."""

    name: str  # of the parameter, as in state_dict
    modules: tuple[str, ...]  # names of the modules that share the weight; more than one when tied
    prunable: bool
    transposed: bool = False  # whether the first dimension of the weight is the inputs, not the outputs


def is_depthwise(module: nn.Module) -> bool:
    """Return whether every input channel of a convolution has its own filters."""
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == getattr(module, "in_channels", None)


def find_layers(model: nn.Module, page: Page) -> list[Layer]:
    """Return the convolutions and linear layers of `model` in the order of its modules, tied weights once.

    A layer is not prunable when its weight is frozen, when it is a depthwise convolution and the page keeps those
    dense, or when it matches the page's `keep_dense` (patterns on weight names; `first` and `last`). Raises UserError
    for a pattern that matches nothing, for a layer that computes with other weights than it stores, and for
    nn.MultiheadAttention, whose packed projection is no layer.
    """
    found: dict[int, tuple[str, list[str], nn.Module, Tensor]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            raise UserError(
                f"module '{name}' is torch.nn.MultiheadAttention, whose packed in_proj_weight cannot be pruned by "
                "layer: use a backbone with separate linear layers, such as timm's ViTs"
            )
        if isinstance(module, LAYERS):
            refuse_derived(name, module)
            entry = found.setdefault(id(module.weight), (f"{name}.weight", [], module, module.weight))
            entry[1].append(name)
    names = [entry[0] for entry in found.values()]
    dense = dense_names(names, page.keep_dense)
    layers = []
    for weight_name, modules, module, weight in found.values():
        exempt = weight_name in dense or not weight.requires_grad
        exempt = exempt or (is_depthwise(module) and not page.prune_depthwise)
        layers.append(Layer(weight_name, tuple(modules), not exempt, isinstance(module, TRANSPOSED)))
    if not any(layer.prunable for layer in layers):
        raise UserError(f"page '{page.title}' leaves nothing to prune: keep_dense = {page.keep_dense}")
    return layers


def refuse_derived(name: str, module: nn.Module) -> None:
    """Raise UserError for a layer whose effective weight is not the parameter a mask would zero."""
    if type(module) not in PLAIN or not isinstance(module.weight, nn.Parameter):
        raise UserError(
            f"layer '{name}' is a {type(module).__name__}: it computes with another weight than it stores, so "
            "a masked zero would not stay zero; choose a backbone with plain convolutions and linear layers"
        )


def dense_names(names: list[str], patterns: list[str]) -> set[str]:
    """Return the weight names that match a pattern of `keep_dense`."""
    dense = set()
    for pattern in patterns:
        special = {"first": names[:1], "last": names[-1:]}
        matching = special.get(pattern, [name for name in names if fnmatchcase(name, pattern)])
        if not matching:
            raise UserError(f"keep_dense: '{pattern}' matches no weight; the weights are {', '.join(names)}")
        dense.update(matching)
    return dense


def prunable_weights(model: nn.Module, layers: list[Layer]) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by name, in layer order."""
    return {layer.name: model.get_parameter(layer.name) for layer in layers if layer.prunable}


MOST = 0.05  # of all weights: what a network may leave dense that nobody asked for
SHOWN = 5  # names in a message


def tell_unmasked(model: nn.Module, layers: list[Layer], factors: Collection[str], page: Page) -> list[str]:
    """Return a sentence for each kind of weights that compute under no mask, with their share of all parameters.

    factors: the parameters that are factors of multiply-adds. Asked for are layers that the page keeps dense, by
    keep_dense or as depthwise convolutions, and frozen ones; others are parameters of two dimensions and more that
    belong to no convolution or linear layer. Raises UserError where these others are more than a twentieth of all
    parameters and the page's `allow_dense` does not name them, and for a pattern there that no parameter has.
    """
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    kept = [layer.name for layer in layers if not layer.prunable]
    masked = {layer.name for layer in layers}
    others = [
        name for name, weight in model.named_parameters() if weight.dim() > 1 and name in factors and name not in masked
    ]
    allowed = match(page.allow_dense, list(sizes))
    total = sum(sizes.values())
    refused = {name: sizes[name] for name in others if name not in allowed}
    if sum(refused.values()) > MOST * total:
        raise UserError(
            f"backbone '{page.model}' multiplies by weights that no mask reaches: {describe(refused, total)}; masks "
            f"are for the weights of convolutions and linear layers, and more than {MOST:.0%} must not stay dense "
            f"unasked: choose another backbone, or accept it with ARGS=allow_dense=[{','.join(suggest(refused))}]"
        )
    told = {
        "stay dense as the page asks (keep_dense, prune_depthwise) or because they are frozen": kept,
        "compute under no mask": others,
    }
    return [f"{describe({name: sizes[name] for name in names}, total)} {why}" for why, names in told.items() if names]


def match(patterns: list[str], names: list[str]) -> set[str]:
    """Return the parameters that a pattern of `allow_dense` names; raises UserError for one that names none."""
    found = set()
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f"allow_dense: '{pattern}' matches no parameter of the backbone{nearest(pattern, names)}")
        found.update(matching)
    return found


def describe(sizes: dict[str, int], total: int) -> str:
    """Return names with their share: `a.weight, b.weight and 3 more (1,234 weights, 5.1 % of all parameters)`."""
    count = sum(sizes.values())
    names = sorted(sizes, key=lambda name: -sizes[name])  # stable: ties in the backbone's order
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} ({count:,} weights, {count / total:.1%} of all parameters)"


def suggest(sizes: dict[str, int]) -> list[str]:
    """Return few patterns that name these parameters, by the first part of their names.

    None begins with a star, which ARGS, read as YAML, would not take.
    """
    return sorted({f"{name.partition('.')[0]}.*" if "." in name else name for name in sizes})
