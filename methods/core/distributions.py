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
    return fill(shapes, total, {name: math.prod(shape) for name, shape in shapes.items()})


def erdos_renyi(shapes: Shapes, total: int) -> dict[str, int]:
    """Divide `total` by Erdos-Renyi: density of a layer ~ (n_in + n_out) / (n_in n_out) (Mocanu et al., 2018)."""
    return fill(shapes, total, {name: sum(shape[:2]) * math.prod(shape[2:]) for name, shape in shapes.items()})


def erk(shapes: Shapes, total: int) -> dict[str, int]:
    """Divide `total` by Erdos-Renyi-Kernel: density ~ (n_in + n_out + k_w + k_h) / (n_in n_out k_w k_h).

    Layers whose density would exceed 1 become dense and the rest is solved again (Evci et al., 2020, section 3).
    """
    return fill(shapes, total, {name: sum(shape) for name, shape in shapes.items()})


def uniform_but_last(shapes: Shapes, total: int, last: str, most: Mapping[str, int] | None = None) -> dict[str, int]:
    """Divide `total` so that every layer has the same density, but above 80 % sparsity `last` keeps a fifth of its own.

    A fifth is rounded up. The uniform pruning of Gale et al. (2019, arXiv:1902.09574) that Appendix C.3 of the GraNet
    paper takes up. most: how many each layer can have, default all its weights; what one cannot take goes to the
    others. An empty `last` is none.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    most = sizes if most is None else most
    others = {name: (most[name],) for name in shapes if name != last}
    if last not in sizes or 5 * total >= sum(sizes.values()):
        return fill({name: (most[name],) for name in shapes}, total, sizes)
    kept = min(-(-sizes[last] // 5), most[last], total)
    kept = max(kept, total - sum(math.prod(shape) for shape in others.values()))
    counts = fill(others, total - kept, {name: sizes[name] for name in others})
    return {name: counts.get(name, kept) for name in shapes}


DISTRIBUTIONS: dict[str, Callable[[Shapes, int], dict[str, int]]] = {
    "erk": erk,
    "er": erdos_renyi,
    "uniform": uniform,
}


def fill(shapes: Shapes, total: int, parts: Mapping[str, int]) -> dict[str, int]:
    """Divide `total` in proportion to `parts` (density ~ part / size), no layer above its size, in whole weights.

    Solves again each time layers become dense, then rounds by largest remainder (ties: the earlier layer). Computed in
    whole numbers, so that equal remainders are equal. Raises ValueError when `total` is outside [0, all weights].
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not 0 <= total <= sum(sizes.values()):
        raise ValueError(f"cannot keep {total} of {sum(sizes.values())} weights")
    counts: dict[str, int] = {}  # of layers that are dense
    while True:
        rest = total - sum(counts.values())
        sparse = [name for name in sizes if name not in counts]
        mass = sum(parts[name] for name in sparse)
        if not mass:  # nothing says who should have what is left
            parts, mass = sizes, max(1, sum(sizes[name] for name in sparse))
        over = [name for name in sparse if rest * parts[name] > sizes[name] * mass]
        if not over:
            break
        counts.update({name: sizes[name] for name in over})
    counts.update({name: rest * parts[name] // mass for name in sparse})
    by_remainder = sorted(sparse, key=lambda name: -(rest * parts[name] % mass))  # stable: ties keep layer order
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return {name: counts[name] for name in sizes}
