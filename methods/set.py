"""SET: sparse evolutionary training.

Paper: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science", Nature Communications 2018, arXiv:1707.04780: after every epoch, remove a share zeta = 0.3 of the
smallest positive and of the largest negative weights of each layer and add as many new ones at random.

Deviations: the layers' densities come from the page's distribution at the exact budget (the paper: Erdos-Renyi with
epsilon = 20); new weights start at zero (as in the RigL and ITOP codes; the first public code drew them at random).
A weight that is exactly zero counts as positive. A weight removed and drawn again in the same update keeps its value.
`per_sign=false` drops by magnitude alone, as RigL's and ITOP's versions of SET do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Masks,
    Method,
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

    prune_rate: float = 0.3  # zeta
    per_sign: bool = True  # rank positive and negative weights apart
    update_every: int = 0  # ΔT in steps; 0: once per epoch
    distribution: str = from_page("erk")

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every or timeline.steps_per_epoch, timeline.total_steps)

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))

    def update(self, view: View) -> Masks:
        return grow(self.drop_smallest(view), random_scores(view), like=view.masks)

    def drop_smallest(self, view: View) -> Masks:
        """Return the masks without the share `prune_rate` of weights closest to zero, per sign or together."""
        if not self.per_sign:
            return drop(dict(view.masks), magnitude(view), self.prune_rate)
        negative = {name: view.masks[name] & (weight < 0) for name, weight in view.weights.items()}
        positive = {name: view.masks[name] & ~negative[name] for name in negative}
        kept_negative = drop(negative, magnitude(view), self.prune_rate)
        kept_positive = drop(positive, magnitude(view), self.prune_rate)
        return {name: kept_negative[name] | kept_positive[name] for name in kept_positive}
