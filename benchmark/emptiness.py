"""Refusing layers without a weight, where the sparsity alone decides and the page does not allow it."""

from __future__ import annotations

from benchmark.build import Built
from benchmark.cells import Cell
from benchmark.errors import UserError
from benchmark.networks.prunable import prunable_weights
from methods.core import count_kept


def check_budget(cell: Cell, built: Built) -> None:
    """Raise UserError when fewer weights than layers stay, so that some layer must be left empty by any method."""
    weights = prunable_weights(built.model, built.layers)
    kept = count_kept(cell.sparsity, built.dense_prunable)
    if kept < len(weights) and not cell.page.allow_empty_layers:
        raise UserError(
            f"sparsity {cell.sparsity:g} leaves {kept} of {built.dense_prunable:,} weights for {len(weights)} layers, "
            f"so a layer must stay empty ({', '.join(weights)}): lower SPARSITY, or allow it with "
            "ARGS=allow_empty_layers=true"
        )


def refuse_empty(cell: Cell, counts: dict[str, int]) -> None:
    """Raise UserError when first masks that no score decided leave a layer empty, unless the page allows it."""
    empty = [name for name, count in counts.items() if count == 0]
    if empty and not cell.page.allow_empty_layers:
        raise UserError(
            f"method '{cell.plugin.name}' at sparsity {cell.sparsity:g} leaves no weight in layer {', '.join(empty)}: "
            "lower SPARSITY, or allow it with ARGS=allow_empty_layers=true"
        )
