"""How a sparsity and a rate of pruning belong together, where pruning starts from masks that may be sparse."""

from __future__ import annotations

from methods.core.errors import RefusedError
from methods.core.masks import count_active
from methods.core.view import View, count_kept


def sparsity_before(sparsity: float, rate: float, regrow: bool) -> float:
    """Return the sparsity from which pruning the share `rate` of the active weights leads to `sparsity`.

    With `regrow` as many are grown as were pruned, so that it is the same. A rate of 0 says nothing: from dense.
    """
    if regrow:
        return sparsity
    return max(0.0, 1 - (1 - sparsity) / (1 - rate)) if rate else 0.0


def check_rate(view: View, sparsity: float, rate: float, regrow: bool) -> None:
    """Raise RefusedError where rate and sparsity do not lead from the masks in force to the same count.

    Without a rate nothing contradicts, unless fewer weights are active than are to stay.
    """
    active, target, total = count_active(view.masks), view.count(sparsity), view.count(0.0)
    left = active if regrow else count_kept(rate, active) if rate else min(active, target)
    if abs(left - target) > 1:  # both are rounded
        raise RefusedError(
            f"rate={rate:g}, regrow={regrow}, on {active:,} active weights leaves {left:,} of {total:,}, sparsity "
            f"{sparsity:g} {target:,}: ask SPARSITY={1 - left / total:.6g}, or another rate"
        )
