"""Dense: the same network with every weight, the upper control.

Deviations (point | paper | authors' code | here | why):
none
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Budget, Group, Masks, Method, View, all_active


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Keep every weight."""

    reference: ClassVar[str] = "control: no pruning"
    group: ClassVar[Group] = Group.DENSE
    budget: ClassVar[Budget] = Budget.DENSE

    def setup(self, view: View) -> Masks:
        return all_active(view)
