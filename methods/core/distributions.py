"""How a budget is divided among layers before anything is known of the weights.

Each function takes the shapes and the number of weights to keep in all, and returns whole counts per layer that sum
to exactly that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Shapes = Mapping[str, tuple[int, ...]]


def uniform(shapes: Shapes, total: int) -> dict[str, int]:
    """Divide `total` so that every layer has the same density. No layer is exempt; a page's `keep_dense` exempts."""
    return fill(shapes, total, {name: 1.0 for name in shapes})


def erdos_renyi(shapes: Shapes, total: int) -> dict[str, int]:
    """Divide `total` by Erdos-Renyi: density of a layer ~ (n_in + n_out) / (n_in n_out) (Mocanu et al., 2018)."""
    return fill(shapes, total, {name: sum(shape[:2]) / math.prod(shape[:2]) for name, shape in shapes.items()})


def erk(shapes: Shapes, total: int) -> dict[str, int]:
    """Divide `total` by Erdos-Renyi-Kernel: density ~ (n_in + n_out + k_w + k_h) / (n_in n_out k_w k_h).

    Layers whose density would exceed 1 become dense and the rest is solved again (Evci et al., 2020, section 3).
    """
    return fill(shapes, total, {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()})


DISTRIBUTIONS: dict[str, Callable[[Shapes, int], dict[str, int]]] = {
    "erk": erk,
    "er": erdos_renyi,
    "uniform": uniform,
}


def fill(shapes: Shapes, total: int, raw: Mapping[str, float]) -> dict[str, int]:
    """Give each layer a density proportional to `raw`, at most 1, in whole weights that sum to `total`.

    Solves density = epsilon x raw again each time layers reach 1, then rounds by largest remainder (ties: the earlier
    layer). Raises ValueError when `total` is outside [0, number of weights].
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not 0 <= total <= sum(sizes.values()):
        raise ValueError(f"cannot keep {total} of {sum(sizes.values())} weights")
    dense: set[str] = set()
    while True:
        rest = total - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        epsilon = rest / weight if weight else 0.0
        over = {name for name in sizes if name not in dense and epsilon * raw[name] > 1.0}
        if not over:
            break
        dense |= over
    share = {name: float(n) if name in dense else epsilon * raw[name] * n for name, n in sizes.items()}
    return apportion(share, sizes, total)


def apportion(share: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Round the real-valued `share` per layer to whole counts that sum to `total` and never exceed `sizes`."""
    counts = {name: min(math.floor(value), sizes[name]) for name, value in share.items()}
    order = sorted(share, key=lambda name: counts[name] - share[name])  # sorted() is stable: ties keep layer order
    missing = total - sum(counts.values())
    while missing > 0:
        for name in order:
            if missing and counts[name] < sizes[name]:
                counts[name] += 1
                missing -= 1
    return counts
