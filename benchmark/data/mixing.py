"""Mixup and CutMix: images of a batch mixed in pairs, by timm, with random numbers of the step."""

from __future__ import annotations

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from benchmark.base.seeds import derive
from benchmark.config.pages import Page


def mix(images: Tensor, labels: Tensor, page: Page, classes: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return a step's images mixed as the page says, and the share of each class in each; else both as they are.

    Mixup's alpha is `mixup` (Zhang et al., 2018), CutMix's `cutmix` (Yun et al., 2019); with both, a step has one of
    the two, each as often. One share holds for a batch, whose first image is mixed with the last, and so on; of an odd
    number the last one stays whole. Invariant: a function of (seed, step) alone, the same for every method, also in a
    run that is continued; numpy's random state stays as it is. The images are changed in place.
    """
    if not page.mixup and not page.cutmix:
        return images, labels
    pairs = len(labels) // 2 * 2
    before = np.random.get_state()  # timm draws from numpy's global generator
    np.random.seed(derive(seed, "mix", step) % 2**32)
    try:
        mixer = Mixup(page.mixup, page.cutmix, label_smoothing=0.0, num_classes=classes)
        shares = mixer(images[:pairs], labels[:pairs])[1]
    finally:
        np.random.set_state(before)
    whole = torch.nn.functional.one_hot(labels[pairs:], classes).to(shares.dtype)
    return images, torch.cat([shares, whole])
