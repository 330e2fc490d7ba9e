"""Static: a random sparse network that never changes, the lower control.

Layer densities by ERK (Evci et al., 2020, section 3), Erdos-Renyi (Mocanu et al., 2018) or uniform.
Deviation: exact counts, where several public codes draw each weight with a probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import DISTRIBUTIONS, Group, Masks, Method, View, from_page, random_masks


@dataclass(frozen=True, kw_only=True)
class Static(Method):
    """Draw the masks at random once and keep them."""

    reference: ClassVar[str] = "control: random masks, Evci et al., 2020, arXiv:1911.11134"
    group: ClassVar[Group] = Group.CONTROL

    distribution: str = from_page("erk")  # erk, er or uniform

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))
