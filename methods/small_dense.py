"""Small-dense: a narrower dense network with as many weights as the sparse one, the control of Evci et al., 2020.

All hidden widths are multiplied by one factor, the one whose prunable weights come nearest to the budget; the count
is therefore an outcome and is reported. FLOPs are its own, shares are relative to the full network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Budget, Group, Masks, Method, View, all_active


@dataclass(frozen=True, kw_only=True)
class SmallDense(Method):
    """Train a narrower network with every weight active."""

    reference: ClassVar[str] = "control: narrower network, Evci et al., 2020, arXiv:1911.11134"
    group: ClassVar[Group] = Group.CONTROL
    budget: ClassVar[Budget] = Budget.OUTCOME
    narrows_network: ClassVar[bool] = True

    def setup(self, view: View) -> Masks:
        return all_active(view)
