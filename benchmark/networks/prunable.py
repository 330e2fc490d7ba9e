"""Which weights are pruned, and which take part in products although no mask covers them."""

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
# Subclasses that multiply by the stored weight itself. Others, such as weight-standardised convolutions, derive another
# weight from it, in which a masked zero is not zero. Weight standardisation subtracts each filter's mean: to mask its
# result instead would need the masks at inference too, where the exported weights alone would give other outputs.
STANDARDISED = tuple(getattr(timm.layers, f"{kind}StdConv2d{pad}") for kind in ("", "Scaled") for pad in ("", "Same"))
PLAIN = (*LAYERS, timm.layers.Conv2dSame, timm.layers.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@dataclass(frozen=True)
class Layer:
    """A layer with multiply-adds: the name of its weight, the modules that use it, and whether the page prunes it."""

    name: str  # of the parameter, as in state_dict
    modules: tuple[str, ...]  # names of the modules that share the weight, several when tied; none of a packed one
    prunable: bool
    transposed: bool = False  # whether the first dimension of the weight is the inputs, not the outputs


# The projections of nn.MultiheadAttention: packed in one, or one each where keys or values have another width.
PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def is_depthwise(module: nn.Module) -> bool:
    """Return whether every input channel of a convolution has its own filters."""
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == getattr(module, "in_channels", None)


def find_layers(model: nn.Module, page: Page) -> list[Layer]:
    """Return the convolutions and linear layers of `model` in the order of its modules, tied weights once.

    The input projections of nn.MultiheadAttention, parameters of its own, are layers too. A layer is not prunable when
    its weight is frozen, when it is a depthwise convolution and the page keeps those dense, or when it matches the
    page's `keep_dense` (patterns of weight names; `first` and `last`). Raises UserError where there is no such
    layer, for a pattern that matches nothing and for a layer that derives another weight from the one it stores.
    """
    found: dict[int, tuple[str, list[str], nn.Module, Tensor]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention):
            for part in PACKED:
                if (weight := getattr(module, part)) is not None:
                    found.setdefault(id(weight), (f"{name}.{part}", [], module, weight))
        if isinstance(module, LAYERS):
            refuse_derived(name, module)
            entry = found.setdefault(id(module.weight), (f"{name}.weight", [], module, module.weight))
            entry[1].append(name)
    if not found:
        raise UserError(f"{type(model).__name__} has no convolution and no linear layer: there is nothing to prune")
    dense = match("keep_dense", page.keep_dense, [entry[0] for entry in found.values()])
    layers = []
    for weight_name, modules, module, weight in found.values():
        exempt = weight_name in dense or not weight.requires_grad
        exempt = exempt or (is_depthwise(module) and not page.prune_depthwise)
        layers.append(Layer(weight_name, tuple(modules), not exempt, isinstance(module, TRANSPOSED)))
    if not any(layer.prunable for layer in layers):
        raise UserError(f"page '{page.title}' leaves nothing to prune: keep_dense = {page.keep_dense}")
    return layers


def refuse_derived(name: str, module: nn.Module) -> None:
    """Raise UserError for a layer that multiplies by something other than the parameter that a mask zeroes."""
    if type(module) not in PLAIN or not isinstance(module.weight, nn.Parameter):
        why = "it subtracts the mean of each filter first" if isinstance(module, STANDARDISED) else "it derives that"
        raise UserError(
            f"layer '{name}' is a {type(module).__name__}: it computes with another weight than it stores ({why}), so "
            "a masked zero would not stay zero; choose a backbone with plain convolutions and linear layers"
        )


def match(setting: str, patterns: list[str], names: list[str]) -> set[str]:
    """Return the names that a pattern of the page's `setting` matches; raises UserError for one that matches none."""
    special = {"first": names[:1], "last": names[-1:]} if setting == "keep_dense" else {}
    found = set()
    for pattern in patterns:
        matching = special.get(pattern) or [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            hint = nearest(pattern, names) or f"; the weights are {', '.join(names)}"
            raise UserError(f"{setting}: '{pattern}' matches no weight{hint}")
        found.update(matching)
    return found


def prunable_weights(model: nn.Module, layers: list[Layer]) -> dict[str, nn.Parameter]:
    """Return the prunable parameters by name, in layer order."""
    return {layer.name: model.get_parameter(layer.name) for layer in layers if layer.prunable}


MOST = 0.05  # of all parameters: what may stay dense without anyone asking for it
SHOWN = 5  # names in a message


def tell_unmasked(model: nn.Module, layers: list[Layer], factors: Collection[str], page: Page) -> list[str]:
    """Return a sentence for each kind of weights that no mask covers, with their share of all parameters.

    factors: the parameters that enter multiply-adds. Either the layers are dense on purpose (keep_dense, depthwise,
    frozen), or they are parameters of two or more dimensions outside convolutions and linear layers. Raises UserError
    where the latter exceed MOST of all parameters and `allow_dense` does not name them, and for a pattern there that
    matches nothing.
    """
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    kept = [layer.name for layer in layers if not layer.prunable]
    masked = {layer.name for layer in layers}
    others = [
        name for name, weight in model.named_parameters() if weight.dim() > 1 and name in factors and name not in masked
    ]
    allowed = match("allow_dense", page.allow_dense, list(sizes))
    total = sum(sizes.values())
    refused = {name: sizes[name] for name in others if name not in allowed}
    if sum(refused.values()) > MOST * total:
        raise UserError(
            f"backbone '{page.model}' multiplies by weights that no mask reaches: {describe(refused, total)}; masks "
            f"cover convolutions and linear layers, and at most {MOST:.0%} of all parameters may stay dense unasked: "
            f"choose another backbone, or accept it with ARGS=allow_dense=[{','.join(suggest(refused))}]"
        )
    told = {
        "stay dense because the page says so (keep_dense, prune_depthwise) or they are frozen": kept,
        "are covered by no mask": others,
    }
    return [f"{describe({name: sizes[name] for name in names}, total)} {why}" for why, names in told.items() if names]


def describe(sizes: dict[str, int], total: int) -> str:
    """Return names with their share: `a.weight, b.weight and 3 more (1,234 weights, 5.1 % of all parameters)`."""
    count = sum(sizes.values())
    names = sorted(sizes, key=lambda name: -sizes[name])  # stable: ties in the backbone's order
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} ({count:,} weights, {count / total:.1%} of all parameters)"


def suggest(sizes: dict[str, int]) -> list[str]:
    """Return a few patterns that match these parameters: none starts with a star, which YAML would not accept."""
    return sorted({f"{name.partition('.')[0]}.*" if "." in name else name for name in sizes})
