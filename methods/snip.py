"""SNIP: single-shot network pruning by connection sensitivity.

Paper: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv:1810.02340,
Eqs. 5-6 and Algorithm 1: one mini-batch, score |dL/dc| at c = 1, which is |g w|, one global top-k.

Deviations: the official code prunes biases too, here only prunable weights; the batch has the page's size (the
official default is 100). The scores are taken at the very weights that are trained, with batch statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Masks, Method, Scoring, View, keep_top_global, snip_scores


@dataclass(frozen=True, kw_only=True)
class SNIP(Method):
    """Keep the weights whose removal would change the loss most, judged once before training."""

    reference: ClassVar[str] = "Lee et al., 2019, arXiv:1810.02340"
    group: ClassVar[Group] = Group.BEFORE_TRAINING

    score_batches: int = 1  # mini-batches to score on; more for many classes

    def validate(self) -> None:
        if self.score_batches < 1:
            raise ValueError(f"score_batches must be at least 1, got {self.score_batches}")

    def scoring(self) -> Scoring:
        return Scoring(order=1, batches=self.score_batches)

    def setup(self, view: View) -> Masks:
        return keep_top_global(snip_scores(view), view.count(self.sparsity))
