"""Gradients taken before the first step, for methods that score at initialisation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.base.buffers import KeptBuffers
from benchmark.base.errors import UserError, reason
from benchmark.base.seeds import derive
from benchmark.base.system import exact_fp32, modes_of, set_modes
from benchmark.data.images import Samples
from benchmark.networks.costs import fuse_attention, unfuse_attention
from benchmark.training.stored import zero_outside
from methods.core import Masks, Scoring


@dataclass(frozen=True)
class ScoringGradients:
    """Dense float32 gradients by weight name, the Hessian-gradient product where asked, and the images used."""

    gradients: dict[str, Tensor]
    hessian_gradients: dict[str, Tensor] | None
    images: int


def score(
    model: nn.Module,
    weights: dict[str, nn.Parameter],
    train: Samples,
    wanted: Scoring,
    batch_size: int,
    seed: int,
    masks: Masks | None = None,
    round: int = 0,
) -> ScoringGradients:
    """Compute the gradients a method asked for, in float32 and training mode, or its flow.

    At the weights as they are, or, in a further round, with those outside `masks` at zero. Losses are cross-entropies
    averaged within each batch or chunk; gradients are summed over chunks. Invariant: the model is left as it was,
    weights, buffers (batch statistics), modes and gradients included, and the images depend on `seed` only, or on
    `seed` and `round` where the method asks for fresh ones.
    """
    images_seed = seed if round == 0 or not wanted.fresh else derive(seed, "scoring round", round)
    with masked(weights, masks), exact_fp32():
        if wanted.flow:
            return score_flow(model, weights, train)
        return score_loss(model, weights, train, wanted, batch_size, images_seed)


@contextmanager
def masked(weights: Mapping[str, nn.Parameter], masks: Masks | None) -> Iterator[None]:
    """Hold the weights outside `masks` at zero for a while."""
    if masks is None:
        yield
        return
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                zero_outside(masks[name], weight)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])


def score_flow(model: nn.Module, weights: Mapping[str, nn.Parameter], train: Samples) -> ScoringGradients:
    """Return the gradients of the sum of the outputs of |model| for one input of ones, in float64.

    On a copy in evaluation mode whose parameters and buffers are all replaced by their absolute values, as the authors
    do. Raises UserError where they overflow even so.
    """
    shadow = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for tensor in shadow.state_dict().values():
            if tensor.is_floating_point():
                tensor.abs_()
    images, _ = train.sample(torch.tensor([0]), 0, next(model.parameters()).device)
    parameters = [shadow.get_parameter(name) for name in weights]
    flow = shadow(torch.ones_like(images, dtype=torch.float64)).sum()
    found = torch.autograd.grad(flow, parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise UserError("the flow through this backbone overflows float64: it cannot be scored by it")
    return ScoringGradients(dict(zip(weights, gradients, strict=True)), None, 1)


def score_loss(
    model: nn.Module, weights: Mapping[str, nn.Parameter], train: Samples, wanted: Scoring, batch_size: int, seed: int
) -> ScoringGradients:
    """Return the gradients of the loss, and the Hessian-gradient product where it is asked for."""
    device = next(model.parameters()).device
    buffers = KeptBuffers(list(model.buffers()))
    modes = modes_of(model)
    unfused = unfuse_attention(model)  # fused attention has no second derivative
    set_mode(model, wanted)
    torch.manual_seed(derive(seed, "scoring"))  # dropout and drop-path, where the backbone has them
    parameters = list(weights.values())
    total, product = [torch.zeros_like(weight) for weight in parameters], None
    try:
        pieces = scoring_pieces(train, wanted, batch_size, seed, device)
        for images, labels, share in pieces:
            add(total, torch.autograd.grad(loss(model, images, labels, share, wanted), parameters, allow_unused=True))
        if wanted.order == 2:
            product = [torch.zeros_like(weight) for weight in parameters]
            for images, labels, share in pieces:
                add_hessian_product(product, total, loss(model, images, labels, share, wanted), parameters)
    finally:
        buffers.put_back()
        fuse_attention(unfused)
        set_modes(modes)
    return ScoringGradients(
        dict(zip(weights, total, strict=True)),
        dict(zip(weights, product, strict=True)) if product else None,
        sum(len(labels) for _, labels, _ in pieces),
    )


def set_mode(model: nn.Module, wanted: Scoring) -> None:
    """Put the model into training mode, its batch norms into the mode that the scoring asks for."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(wanted.batch_norm == "batch")


def add_hessian_product(
    product: list[Tensor], direction: list[Tensor], value: Tensor, parameters: list[nn.Parameter]
) -> None:
    """Add to `product` the Hessian of the loss `value` times `direction`, by differentiating the gradient once more.

    Raises UserError when the backbone has an operator without a second derivative.
    """
    try:
        parts = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
        pairs = [(g, part) for g, part in zip(direction, parts, strict=True) if part is not None]
        inner = torch.stack([(g * part).sum() for g, part in pairs]).sum()
        add(product, torch.autograd.grad(inner, parameters, allow_unused=True))
    except RuntimeError as error:
        if "derivative" not in str(error):
            raise
        raise UserError(f"this backbone cannot be scored by second derivatives: {reason(error)}") from error


def loss(model: nn.Module, images: Tensor, labels: Tensor, share: float, wanted: Scoring) -> Tensor:
    """Return `share` times the cross-entropy of the logits divided by the temperature.

    Raises UserError for a network that returns anything but logits.
    """
    logits = model(images)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"this network returns a {type(logits).__name__}, and scores are taken of a tensor of logits: wrap it in a "
            "module that returns these alone"
        )
    return share * nn.functional.cross_entropy(logits / wanted.temperature, labels)


def add(total: list[Tensor], parts: tuple[Tensor | None, ...]) -> None:
    """Add each part to its total; a weight that took no part in the loss adds nothing."""
    for sum_, part in zip(total, parts, strict=True):
        if part is not None:
            sum_ += part.detach()


def scoring_pieces(
    train: Samples, wanted: Scoring, batch_size: int, seed: int, device: torch.device
) -> list[tuple[Tensor, Tensor, float]]:
    """Return (images, labels, share of their chunk) to score on, each small enough for the device.

    A chunk of more than four batches of the page (many classes, as on ImageNet) is taken batch by batch, each weighed
    by its share, so that losses stay chunk means; batch statistics are then those of the pieces.
    """
    pieces = []
    for chunk in scoring_chunks(train, wanted, batch_size, seed):
        for part in chunk.split(batch_size if len(chunk) > 4 * batch_size else len(chunk)):
            pieces.append((*train.sample(part, seed, device, wanted.augmented), len(part) / len(chunk)))
    return pieces


def scoring_chunks(train: Samples, wanted: Scoring, batch_size: int, seed: int) -> list[Tensor]:
    """Return which images to score on: the first batches of a shuffled epoch, or so many of every class in chunks."""
    generator = torch.Generator().manual_seed(derive(seed, "scoring images"))
    order = torch.randperm(len(train), generator=generator)
    if not wanted.samples_per_class:
        return list(order.split(batch_size))[: wanted.batches]
    chosen = []
    labels = train.labels[order]
    for label in labels.unique():
        of_class = order[labels == label][: wanted.samples_per_class]
        if len(of_class) < wanted.chunks:
            raise UserError(
                f"scoring takes {wanted.samples_per_class} images of each class in {wanted.chunks} parts, and class "
                f"{int(label)} has {len(of_class)}: give it {wanted.chunks} or more"
            )
        chosen.append(of_class)
    return [torch.cat([part[i :: wanted.chunks] for part in chosen]) for i in range(wanted.chunks)]
