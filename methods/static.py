"""Static: a random sparse network that never changes, the lower control.

Layer densities by ERK (Evci et al., 2020, section 3), Erdos-Renyi (Mocanu et al., 2018) or uniform.

Or by another run, its donor, named by a record, a run or a row of the leaderboard (`granet`, or with its settings
`granet:start_sparsity=0.0`, for the donor of the cell's own sparsity and seed). What a method gains over these is not
due to what they keep of it (Frankle et al., 2021, arXiv:2009.08576; Su et al., 2020, arXiv:2009.11094):
`densities=RUN` draws at random as many weights in each layer as that run ended with; `masks=RUN` starts from the very
masks it ended with; `shuffle=layers` puts these in another order within each layer, `shuffle=filters` within each
output filter (first dimension), so that each keeps its count. `shuffle=layers` is a uniform draw at given counts, and
gives the masks of `densities=RUN`. The draws are not those the first masks of other methods are made of, so a control
owes nothing to where its donor started. `distribution` has no effect with a donor, whose training is not charged.

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

from torch import Tensor

from methods.core import DISTRIBUTIONS, Donor, Group, Masks, Method, View, from_page, keep_top, random_masks

KINDS = {"none": "masks", "layers": "shuffled masks", "filters": "shuffled filters"}  # of donors, by `shuffle`


@dataclass(frozen=True, kw_only=True)
class Static(Method):
    """Draw the masks at random once, or take them from another run, and keep them."""

    reference: ClassVar[str] = "control: random masks, Evci et al., 2020, arXiv:1911.11134"
    group: ClassVar[Group] = Group.CONTROL

    distribution: str = from_page("erk")  # erk, er or uniform
    densities: str = ""  # another run: as many weights in each layer as it ended with
    masks: str = ""  # another run: the masks it ended with
    shuffle: str = "none"  # what of `masks` is put in another order: none, layers or filters

    def validate(self) -> None:
        if self.densities and self.masks:
            raise ValueError(
                f"densities and masks each name a run, got '{self.densities}' and '{self.masks}': give one of them"
            )
        if self.shuffle not in KINDS:
            raise ValueError(f"shuffle must be one of {', '.join(KINDS)}, got {self.shuffle!r}")
        if self.shuffle != "none" and not self.masks:
            raise ValueError(f"shuffle={self.shuffle} needs masks to shuffle: add masks=RUN (ARGS='masks=granet ...')")

    def donor(self) -> Donor | None:
        if self.masks:
            return Donor(self.masks, KINDS[self.shuffle])
        return Donor(self.densities) if self.densities else None

    def setup(self, view: View) -> Masks:
        if self.masks and self.shuffle == "none":
            return {name: mask.clone() for name, mask in view.donor_masks.items()}
        if self.masks and self.shuffle == "filters":
            return {name: shuffle_filters(mask, view.random(name, "donor")) for name, mask in view.donor_masks.items()}
        if self.masks or self.densities:
            return {name: keep_top(view.random(name, "donor"), count) for name, count in view.donor_counts.items()}
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))


def shuffle_filters(mask: Tensor, draws: Tensor) -> Tensor:
    """Return a mask with as many True in each output filter (first dimension), where the draws are largest."""
    flat = mask.flatten(1)
    rank = draws.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < flat.sum(dim=1, keepdim=True)).reshape(mask.shape)
