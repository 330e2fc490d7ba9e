"""RigL: drop by magnitude, grow by gradient.

Paper: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, arXiv:1911.11134, section 3 and
Algorithm 1: every ΔT steps until T_end, each layer drops a share f(t) = alpha/2 (1 + cos(t pi / T_end)) of its active
weights by magnitude and grows as many by dense-gradient magnitude; the update takes the place of the optimiser step.

The variant the GraNet paper's Table 2 calls RigL is `rigl_itop`.

Deviations (point | paper | authors' code | here | why):
- update and step | an update replaces the weight update | the same | the same | Algorithm 1
- steps counted | an update is one of Algorithm 1's steps | an update is not counted as a step | an update uses up one
  of the page's steps | every method gets the same number of batches
- first masks | not stated | floor(S n) zeros in each layer | exact counts that sum to the budget | the budget is exact
- layer densities | uniform with the first layer dense, or ERK | uniform or ERK by a flag; the first layer dense unless
  asked for (prune_first_layer=False on CIFAR, first_layer_sparsity=0 on ImageNet); its README's ERK rows prune it, but
  at sparsity 0.99 | the page's (ERK); also in uniform the first layer is exempt only where keep_dense says so | the
  same prunable layers for every method
- drop rate | cosine from alpha = 0.3 to 0 at T_end | constant by default, cosine to be asked for | cosine | the paper's
- number exchanged | share f(t) of a layer's active weights | rounded down | rounded down | as the code
- ties in magnitude | not stated | broken by noise from N(0, 1e-5) | to the lower index | the same masks everywhere
- candidates for growth | all weights not kept, the just-dropped included | the same | the same | Algorithm 1
- new weights | zero | zero, with zero momentum | zero, with zero momentum | as paper and code
- dropped and regrown in one update | not stated | keeps its value and momentum | keeps both | as the code
- ΔT | 100 steps (of 4096 images on ImageNet, 128 on CIFAR-10) | the same: maskupdate_frequency=100 | 100 steps of the
  page's batch size; short pages set another number | the paper's; ARGS=update_every=N changes it
- T_end | step 25,000 of 32,000 (ImageNet), 75,000 of 97,656 (CIFAR-10) | the same: maskupdate_end_step=25000
  (ImageNet), 75000 (CIFAR-10) | 0.75 of the run | one share for every length of run
- first update | not stated | step 0: maskupdate_begin_step=0 | step ΔT | at step 0 weights are but drawn, and gradients
  those of one batch; as GraNet and ITOP
- recipe | ImageNet: batch 4096, 32,000 steps; CIFAR-10: WRN-22-2, batch 128, 250 epochs | its flags: ImageNet: lr 0.1
  for 256 images, x0.1 at epochs 30, 70 and 90, weight decay 1e-4, label smoothing 0.1; CIFAR-10: 97,656 steps of 128,
  lr 0.1, divided by 5 every 30,000 steps, weight decay 5e-4; Nesterov in both | the page's | one recipe for every
  method
- training cost | (3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1) | counted in a notebook (Resnet_50_Param_Flops_Counting.ipynb),
  not in training | 3 f_S for a step, 2 f_S + f_D for an update | each step is charged as it is run
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DISTRIBUTIONS,
    DenseGrads,
    Group,
    Masks,
    Method,
    Timeline,
    View,
    cosine,
    drop,
    from_page,
    gradient_magnitude,
    grow,
    magnitude,
    random_masks,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class RigL(Method):
    """Exchange the smallest weights of each layer for those with the largest gradients."""

    reference: ClassVar[str] = "Evci et al., 2020, arXiv:1911.11134"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES
    keeps_layer_counts: ClassVar[bool] = True
    replaces_step: ClassVar[bool] = True  # Alg. 1: either an update or an SGD step

    prune_rate: float = 0.3  # alpha
    update_every: int = 100  # ΔT in steps
    update_end: float = 0.75  # T_end as a share of the run
    distribution: str = from_page("erk")

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, self.update_end * timeline.total_steps)  # t < T_end

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))

    def update(self, view: View) -> Masks:
        rate = cosine(self.prune_rate, 0.0, view.step / (self.update_end * view.timeline.total_steps))
        kept = drop(dict(view.masks), magnitude(view), rate)
        return grow(kept, gradient_magnitude(view), like=view.masks)
