"""Static: a random sparse network that never changes, the lower control.

Layer densities by ERK (Evci et al., 2020, section 3), Erdos-Renyi (Mocanu et al., 2018) or uniform.

Deviations (point | paper | authors' code | here | why):
- first masks | not stated | RigL's: floor(S n) zeros in each layer; GraNet's and ITOP's: each weight drawn with its
  probability | exact counts that sum to the budget | the budget is exact; a drawn density differs from seed to seed
- ERK | density as (n_in + n_out + k_w + k_h) / (n_in n_out k_w k_h) | RigL's: layers that would exceed 1 become dense
  and the rest is solved again | as the code | without solving again the network would be sparser than asked
- first layer, uniform | dense | GraNet's: not exempt | not exempt; keep_dense=[first] exempts it | which layers are
  prunable belongs to the page, the same for every method
- first layer, ERK | not stated | RigL's: sparse, at sparsity 0.99 dense | sparse; keep_dense=[first] exempts it | which
  layers are prunable belongs to the page, the same for every method
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
