"""What a network's masks are, layer by layer, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """A prunable weight: its name, how many of its weights are active, and of how many."""

    name: str
    active: int
    weights: int


@dataclass(frozen=True)
class Report:
    """What the masks are, layer by layer, and what they cost in FLOPs as shares of dense; None where not counted."""

    layers: tuple[LayerReport, ...]
    inference_share: float | None
    train_share: float | None
    skipped_steps: int = 0  # whose gradients were not finite

    @property
    def density(self) -> float:
        """The share of the prunable weights that is active."""
        return sum(layer.active for layer in self.layers) / sum(layer.weights for layer in self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{row.name:{width}}  {row.active:>11,} of {row.weights:>11,}  {row.active / row.weights:.4f}"
                 for row in (*self.layers, self.total())]  # fmt: skip
        shares = {"inference": self.inference_share, "training": self.train_share}
        lines += [f"{name} FLOPs {share:.4f} x dense" for name, share in shares.items() if share is not None]
        lines += [f"{self.skipped_steps} steps were skipped: not finite"] if self.skipped_steps else []
        return "\n".join(lines)

    def total(self) -> LayerReport:
        """Return the sum over all layers."""
        return LayerReport("all", sum(row.active for row in self.layers), sum(row.weights for row in self.layers))
