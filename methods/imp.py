"""IMP: iterative magnitude pruning, the search for lottery tickets.

Papers: Frankle & Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, arXiv:1803.03635: train, prune the smallest 20 %
of the weights that are left, set the others back to their initial values, and again; Frankle et al., "Linear Mode
Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv:1912.05671: set them back to where they were early in
training (`rewind_epoch`); Renda et al., "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020,
arXiv:2003.02389: keep the weights and set back the learning rate alone (`keep_weights=true`).

Every round is a whole training: at the default rate a sparsity of 0.9 takes 12 of them, all of which are charged; at
`prune_rate=0.5` it takes 5.

Deviations (point | paper | authors' code | here | why):
- ranking | within each layer for small networks, over all layers for deep ones (VGG-19, ResNet-18) | open_lth: over all
  layers (sparse_global) | over all layers | the authors' code
- pruned after round k | 20 % of what is left; convolutions and the last layer at other rates in some networks |
  open_lth: ceil(0.2 n) of the n left, and all that tie with the next | round(0.8^k N) kept, ties to the lower index;
  in the last pruning what the sparsity asks, mostly less than 20 % | the target is hit exactly
- prunable weights | convolutions and linear layers | open_lth: the same, but not the last layer of its VGGs; a flag
  leaves out others | the page's prunable weights | the same layers for every method
- rewound to | initial weights; arXiv:1912.05671: an early step | open_lth: step 0, or where --rewinding_steps of
  pretraining end | the end of epoch rewind_epoch, 0 by default | the first paper's; snapshots are taken between epochs
- what is rewound | weights | open_lth: parameters and statistics of batch norm; the optimiser starts anew | the same |
  as the code
- learning-rate rewinding | arXiv:2003.02389: weights kept, the schedule set back to epoch k | not in open_lth, its own
  repository was not looked up | keep_weights=true, the schedule set back to rewind_epoch; momentum starts anew | one
  setting for both
- data order of later rounds | not stated | open_lth: drawn anew unless data_order_seed is given | epochs are counted
  through, so each round has its own | a round is more training
- accuracy reported | at the iteration of least validation loss (1803.03635) | open_lth: at the end of each level | last
  epoch; best and selected epochs are those of the last round | the ticket is what is trained last
- cost | not counted | counted nowhere in the repository (lottery/runner.py) | every round is charged | everything is
- recipe | ResNet-18: 30,000 steps of 128 images, lr 0.01 or 0.1 with warm-up | open_lth: 160 epochs, lr 0.1 divided by
  10 at 80 and 120, weight decay 1e-4, batch 128 | the page's, once for each round | one recipe for every method
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Masks, Method, Rounds, Timeline, View, all_active, keep_top_global, magnitude

ROUNDING = 1e-9  # log(0.64) / log(0.8) is 2.0000000000000004


@dataclass(frozen=True, kw_only=True)
class IMP(Method):
    """Train, prune the smallest weights of the whole network, rewind the others, and again."""

    reference: ClassVar[str] = "Frankle & Carbin, 2019, arXiv:1803.03635"
    group: ClassVar[Group] = Group.DENSE_TO_SPARSE

    prune_rate: float = 0.2  # share of the weights left that is pruned after a round
    rewind_epoch: int = 0  # the epoch whose end later rounds begin from; 0: the initial network
    keep_weights: bool = False  # True: only the learning rate is rewound (Renda et al., 2020)

    def validate(self) -> None:
        if not 0 < self.prune_rate < 1:
            raise ValueError(f"prune_rate must be in (0, 1), got {self.prune_rate}: a round prunes some of the weights")
        if self.rewind_epoch < 0:
            raise ValueError(f"rewind_epoch must be 0 or a later epoch, got {self.rewind_epoch}")

    def prunings(self) -> int:
        """Return how often the network is pruned: the least number that reaches the sparsity at this rate."""
        return max(1, math.ceil(math.log(1 - self.sparsity) / math.log(1 - self.prune_rate) - ROUNDING))

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return [f"trains {self.prunings() + 1} times, and every time is charged; prune_rate sets how often"]

    def rounds(self, epochs: int) -> Rounds:
        return Rounds(self.prunings() + 1, self.rewind_epoch, self.keep_weights)

    def update_steps(self, timeline: Timeline) -> Sequence[int]:
        return timeline.round_ends[:-1]

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        done = sum(end <= step for end in timeline.round_ends[:-1])
        return self.sparsity if done == self.prunings() else 1 - (1 - self.prune_rate) ** done

    def setup(self, view: View) -> Masks:
        return all_active(view)

    def update(self, view: View) -> Masks:
        kept = view.count(self.planned_sparsity(view.step, view.timeline))
        return keep_top_global(magnitude(view), kept, among=view.masks)
