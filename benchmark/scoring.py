"""Gradients taken before the first step, for methods that score at initialisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.errors import UserError
from benchmark.folders import Images
from benchmark.seeds import derive
from methods.core import Scoring


@dataclass(frozen=True)
class ScoringGradients:
    """Dense float32 gradients by weight name, the Hessian-gradient product where asked, and the images used."""

    gradients: dict[str, Tensor]
    hessian_gradients: dict[str, Tensor] | None
    images: int


def score(
    model: nn.Module, weights: dict[str, nn.Parameter], train: Images, wanted: Scoring, batch_size: int, seed: int
) -> ScoringGradients:
    """Compute the gradients a method asked for, at the weights as they are, in float32 and training mode.

    Losses are cross-entropies averaged within each batch or chunk; gradients are summed over chunks. Invariant: the
    model is left as it was, buffers (batch statistics) and gradients included, and the images depend on `seed` only.
    """
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    torch.manual_seed(derive(seed, "scoring"))  # dropout and drop-path, where the backbone has them
    batches = scoring_batches(train, wanted, batch_size, seed, device)
    parameters = list(weights.values())
    total = [torch.zeros_like(weight) for weight in parameters]
    for images, labels in batches:
        add(total, torch.autograd.grad(loss(model, images, labels, wanted), parameters, allow_unused=True))
    product = None
    if wanted.order == 2:
        product = [torch.zeros_like(weight) for weight in parameters]
        for images, labels in batches:
            parts = torch.autograd.grad(loss(model, images, labels, wanted), parameters, create_graph=True)
            inner = torch.stack([(g * part).sum() for g, part in zip(total, parts, strict=True)]).sum()
            add(product, torch.autograd.grad(inner, parameters, allow_unused=True))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return ScoringGradients(
        dict(zip(weights, total, strict=True)),
        dict(zip(weights, product, strict=True)) if product else None,
        sum(len(labels) for _, labels in batches),
    )


def loss(model: nn.Module, images: Tensor, labels: Tensor, wanted: Scoring) -> Tensor:
    """Return the cross-entropy of the logits divided by the temperature."""
    return nn.functional.cross_entropy(model(images) / wanted.temperature, labels)


def add(total: list[Tensor], parts: tuple[Tensor | None, ...]) -> None:
    """Add each part to its total; a weight that took no part in the loss adds nothing."""
    for sum_, part in zip(total, parts, strict=True):
        if part is not None:
            sum_ += part.detach()


def scoring_batches(
    train: Images, wanted: Scoring, batch_size: int, seed: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Return the images to score on: the first batches of a shuffled epoch, or so many of every class in chunks."""
    generator = torch.Generator().manual_seed(derive(seed, "scoring images"))
    order = torch.randperm(len(train), generator=generator)
    if not wanted.samples_per_class:
        chunks = list(order.split(batch_size))[: wanted.batches]
    else:
        chosen = []
        labels = train.labels[order]
        for label in labels.unique():
            of_class = order[labels == label][: wanted.samples_per_class]
            if len(of_class) < wanted.chunks:
                raise UserError(f"scoring needs {wanted.chunks} images of each class, class {int(label)} has too few")
            chosen.append(of_class)
        chunks = [torch.cat([part[i :: wanted.chunks] for part in chosen]) for i in range(wanted.chunks)]
    return [train.sample(chunk, seed, device) for chunk in chunks]
