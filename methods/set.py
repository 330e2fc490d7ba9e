"""SET: sparse evolutionary training.

Paper: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science", Nature Communications 2018, arXiv:1707.04780: after every epoch, remove a share zeta = 0.3 of the
smallest positive and of the largest negative weights of each layer and add as many new ones at random.

`per_sign=false update_every=N` comes nearer to the versions of SET in the RigL and ITOP codes.

Deviations (point | paper | authors' code | here | why):
- first masks | Erdos-Renyi by epsilon | Erdos-Renyi, epsilon = 20 | the page's distribution (ERK), exact counts | the
  sparsity is asked, not an outcome of epsilon; methods of equal budget start from the same masks
- weights removed | smallest positive and largest negative, each sign apart | the same; RigL's and ITOP's versions: by
  magnitude | each sign apart; by magnitude with per_sign=false | the paper's
- a weight that is zero | not stated | removed, as it looks like one that is masked | counts as positive | it must
  belong to one of the two
- when | after every epoch | after every epoch; RigL's version: every 100 steps; ITOP's: every 1500 steps | after every
  epoch; update_every=N: every N steps | the paper's
- share removed | 0.3 | 0.3; RigL's version: 0.3, annealed by a cosine; ITOP's: 0.5 | 0.3 throughout | the paper's
- number added | as many as removed | as many; ITOP's version: as many only in expectation | as many, in each layer |
  the budget is exact
- new weights | not stated | random normal in the code with sparse data structures; RigL's and ITOP's versions: zero |
  zero | the engine starts every new weight at zero, for all methods alike
- removed and drawn again in one update | a new connection like the others | starts at zero; RigL's and ITOP's versions:
  keeps its value | starts at zero with zero momentum: both masks are applied in turn | the paper's
- momentum of the weights that stay | not stated | lost after every epoch: the optimiser is made anew | kept | what
  stays goes on as it was; one optimiser for every method
- last layer | not stated | dense, as it has few outputs | as sparse as the page's distribution says; keep_dense=[last]
  exempts it | the same layers for every method
- update and step | update after an epoch's last step | the same; RigL's version: both in one step | update follows the
  step | as the paper
- after the last epoch | not stated | one more update, after the last evaluation | no update | new weights would never
  be trained
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Masks,
    Method,
    Stages,
    Timeline,
    View,
    drop,
    from_page,
    grow,
    magnitude,
    random_masks,
    random_scores,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class SET(Method):
    """Exchange the weights closest to zero for random new ones, once per epoch."""

    reference: ClassVar[str] = "Mocanu et al., 2018, arXiv:1707.04780"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    keeps_layer_counts: ClassVar[bool] = True

    prune_rate: float = 0.3  # zeta
    per_sign: bool = True  # rank positive and negative weights apart
    update_every: int = 0  # ΔT in steps; 0: once per epoch
    distribution: str = from_page("erk")

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every or timeline.steps_per_epoch, timeline.total_steps)

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))

    def update(self, view: View) -> Stages:
        kept = self.drop_smallest(view)
        return kept, grow(kept, random_scores(view), like=view.masks)  # what is drawn again starts at zero

    def drop_smallest(self, view: View) -> Masks:
        """Return the masks without the share `prune_rate` of weights closest to zero, per sign or together."""
        if not self.per_sign:
            return drop(dict(view.masks), magnitude(view), self.prune_rate)
        negative = {name: view.masks[name] & (weight < 0) for name, weight in view.weights.items()}
        positive = {name: view.masks[name] & ~negative[name] for name in negative}
        kept_negative = drop(negative, magnitude(view), self.prune_rate)
        kept_positive = drop(positive, magnitude(view), self.prune_rate)
        return {name: kept_negative[name] | kept_positive[name] for name in kept_positive}
