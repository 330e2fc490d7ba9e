"""GraSP: gradient signal preservation.

Paper: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020, arXiv:2002.07376,
Eq. 8 and Algorithm 1: score -w Hg, remove the largest, one global ranking.

As in the authors' code, g is summed over both halves of the images and the second pass takes H g on the same images.

Deviations (point | paper | authors' code | here | why):
- sign | scores -w Hg, the largest are removed | the same | scores w Hg, the largest are kept | the same ranking
- normalisation | not stated | scores divided by the absolute value of their sum + 1e-10 | none | a positive factor
  leaves the ranking as it is
- temperature | not stated | logits divided by T = 200 | the same | as the code
- images | not stated | 10 of every class (cifar10; cifar100 with VGG-19), twice 5 (cifar100 with ResNet-32), ten times
  1 (tiny_imagenet); 25 by default | 10 of every class, once; samples_per_class=N | as configured for cifar10
- halves | not stated | the two halves of all images in order of class, so half of the classes in each | half of every
  class's images in each | a batch's statistics then come from all classes
- many classes (ImageNet) | not stated | 150 random batches of the loader (250 images in its code, 128 in its
  configuration) in pieces of 20, without halves | halves of more than four of the page's batches are taken batch by
  batch, each with its own statistics | memory
- weights scored | not stated | a copy of the network whose linear layers are initialised anew (xavier_normal), on
  ImageNet the last one alone | the very weights that are trained | a score of other weights says little of these
- which weights | not stated | those of convolutions and linear layers | the page's prunable ones | the same layers for
  every method
- batch norm while scoring | not stated | batch statistics | batch statistics | as the code
- weights kept | not stated | scores at or below the (S N)-th largest | exactly k, ties to the lower index | the budget
  is exact
- recipe | not stated | SGD without Nesterov, 160 epochs, all 50,000 images | the page's (on CIFAR with Nesterov; on
  CIFAR-10 45,000 images) | one recipe for every method
- accuracy | not stated | of the epoch that is best on the test set | of the last epoch; the best on test is recorded
  apart | a test set must not choose
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
