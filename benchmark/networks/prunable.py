"""Which weights a page prunes: `.weight` of convolutions and linear layers, chosen by layer type."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import timm.layers
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.pages import Page

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
