"""GraSP: gradient signal preservation.

Paper: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, arXiv:2002.07376,
Eq. 8 and Algorithm 1: score -w Hg, remove the largest, one global ranking.

As in the authors' code: logits divided by T = 200, 10 images of every class in two halves, batch statistics; g is
summed over both halves, and the second pass takes H g on the same images. Deviations: that code puts half of the
classes into each half, here each has images of every class; it re-initialises the linear layers of the copy it scores,
here the scores are taken at the very weights that are trained; exactly k weights are kept instead of those under a
threshold. Very many images (ImageNet's 1,000 classes) are taken in batches of the page's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import Group, Masks, Method, Scoring, View, grasp_scores, keep_top_global


@dataclass(frozen=True, kw_only=True)
class GraSP(Method):
    """Keep the weights whose removal would weaken the gradient flow most, judged once before training."""

    reference: ClassVar[str] = "Wang et al., 2020, arXiv:2002.07376"
    group: ClassVar[Group] = Group.BEFORE_TRAINING

    samples_per_class: int = 10
    temperature: float = 200.0  # T: divides the logits

    def validate(self) -> None:
        if self.samples_per_class < 2:
            raise ValueError(f"samples_per_class must be at least 2 (two halves), got {self.samples_per_class}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def scoring(self) -> Scoring:
        return Scoring(order=2, samples_per_class=self.samples_per_class, chunks=2, temperature=self.temperature)

    def setup(self, view: View) -> Masks:
        return keep_top_global(grasp_scores(view), view.count(self.sparsity))
