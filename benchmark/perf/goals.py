"""Goals: what is wanted of a speed, what was measured, and whether that is enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Goal:
    """One goal as measured. `measured` and `limit` are ratios unless `unit` says otherwise."""

    name: str  # P1 ... as in the performance notes, or a word
    what: str
    measured: float
    relation: str  # "<=" or ">="; "" where there is nothing to reach
    limit: float = 0.0
    unit: str = "x"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether the goal is reached: pass, short, or nothing where it has no limit."""
        if not self.relation:
            return ""
        reached = self.measured <= self.limit if self.relation == "<=" else self.measured >= self.limit
        return "pass" if reached else "short"

    def as_dict(self) -> dict[str, Any]:
        """Return the goal and its verdict as the results file keeps them."""
        return {**asdict(self), "verdict": self.verdict}
