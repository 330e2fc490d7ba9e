"""Weights that compute and that no mask reaches: told before training, and refused where they are many."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from torch import nn

from benchmark.errors import UserError, nearest
from benchmark.networks.prunable import Layer
from benchmark.pages import Page

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
