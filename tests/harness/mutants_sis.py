"""Wrong forms of SIS, and of the second moments it reads; rows for `mutants.Mutant`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import benchmark.training.step as stepping
from methods.core import Moments, Update, View, keep_top_global, magnitude
from methods.sis import SIS


@dataclass(frozen=True, kw_only=True)
class SISWithoutInputs(SIS):
    """Takes every input for as large as any other, which is magnitude pruning by soft thresholds."""

    def update(self, view: View) -> Update:
        view._input_moments = {
            name: torch.eye(moment.shape[-1], dtype=moment.dtype).expand_as(moment).contiguous()
            for name, moment in view.input_moments.items()
        }
        return super().update(view)


@dataclass(frozen=True, kw_only=True)
class SISMovesNothing(SIS):
    """Keeps what the sparse weights name, at the values that training gave them."""

    def update(self, view: View) -> Update:
        return Update(super().update(view).masks)


@dataclass(frozen=True, kw_only=True)
class ReadsNoMoments(SIS):
    """Asks for second moments and prunes by magnitude."""

    def moments(self) -> Moments:
        return Moments()

    def update(self, view: View) -> Update:
        return Update(keep_top_global(magnitude(view), view.count(self.sparsity)))


def centred(original):
    """Return covariances in the place of second moments, nearly."""

    def take(*given):
        moments, images = original(*given)
        return {name: moment - moment.mean((1, 2), keepdim=True) for name, moment in moments.items()}, images

    return take


def in_training(original):
    """Take them under the statistics of each batch."""

    def eval_(self):
        return self.train()

    def take(model, *given):
        model.eval = eval_.__get__(model)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            return original(model, *given)
        finally:
            del model.eval
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])

    return take


def uncharged(original):
    """Take them over no image, as the meter is told."""
    return lambda *given: (original(*given)[0], 0)


METHODS = [
    ("SIS without inputs", "every input counts alike", "oracle:sis", SISWithoutInputs),
    ("SIS moves nothing", "weights that stay keep their values", "oracle:sis", SISMovesNothing),
    ("moments for nothing", "asked for, not read", "declared-moments", ReadsNoMoments),
]
ENGINE = [
    ("moments about means", "covariances", "declared-moments", "sis", stepping, "take_moments", centred),
    (
        "moments in training",
        "by each batch's statistics",
        "declared-moments",
        "sis",
        stepping,
        "take_moments",
        in_training,
    ),
    ("moments for free", "no image is charged", "training-cost", "sis", stepping, "take_moments", uncharged),
]
