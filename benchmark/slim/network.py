"""The smaller network of a network whose masks hold whole filters: cut, held to its outputs, and counted.

Masks charge the filters that they removed; the inputs which these fed in the next layer are still charged. The smaller
network has neither. `sparse-bench slim`, the record of a run and `sparse-bench verify` all take it from here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmark.costs import count_costs
from benchmark.errors import UserError
from benchmark.latency.filters import Removal, remove_dead_filters
from benchmark.maskset import holds_whole_filters
from benchmark.networks.prunable import find_layers
from benchmark.pages import Page

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
