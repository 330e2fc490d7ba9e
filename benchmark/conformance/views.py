"""Made-up views: what a method is shown where real runs rarely lead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmark.conformance.nets import make_network
from benchmark.conformance.trial import Kit
from benchmark.training.masks import show_donor
from benchmark.training.rehearsal import stand_in_donor
from methods.core import DenseGrads, Masks, Method, Timeline, View

LINE = Timeline(24, 6)


def kit_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the convolutional network's prunable weights, all different."""
    model = make_network("conv", 0)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}


def show(
    method: Method,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    step: int,
    kind: type[View] = View,
) -> View:
    """Return a view with the gradients and the donor that the method declared, for setup (step 0) or an update."""
    wanted = method.scoring()
    declared = wanted is not None if step == 0 else method.dense_grads is not DenseGrads.NEVER
    return kind(
        weights={name: weight * masks[name] for name, weight in weights.items()},
        masks=masks,
        step=step,
        timeline=LINE,
        seed=0,
        gradients=gradients if declared else None,
        hessian_gradients=gradients if step == 0 and wanted is not None and wanted.order == 2 else None,
        last="fc.weight",
        **show_donor(stand_in_donor(method, weights) if step == 0 else None, weights),
    )


def ask(method: Method, view: View) -> Masks:
    """Return the masks that the method's proposal for a view leaves in force."""
    with torch.no_grad():
        proposed = method.setup(view) if view.step == 0 else method.update(view)
    return proposed[-1] if isinstance(proposed, tuple) else proposed


def all_true(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def propose_with_ties(kit: Kit) -> Iterator[tuple[str, int, Method, Masks, Timeline]]:
    """Yield proposals on weights and gradients full of ties: what, step, method, masks, timeline."""
    shapes = kit_shapes()
    signs = {n: torch.ones(s).flatten().index_fill_(0, torch.arange(0, s[0], 2), -1).view(s) for n, s in shapes.items()}
    weights = {
        "equal weights": {n: torch.full(s, 0.25) * signs[n] for n, s in shapes.items()},
        "weights of zero": {n: torch.zeros(s) for n, s in shapes.items()},
        "two values": {
            n: torch.where(torch.arange(s[0]).view(-1, *[1] * (len(s) - 1)) % 2 == 0, 0.5, 0.0).expand(s)
            for n, s in shapes.items()
        },
    }
    gradients = {
        "zero gradients": {n: torch.zeros(s) for n, s in shapes.items()},
        "equal gradients": {n: torch.ones(s) for n, s in shapes.items()},
    }
    for sparsity in (0.5, 0.9):
        method = kit.method(sparsity)
        for what, values in weights.items():
            for which, slopes in gradients.items():
                masks: Masks = all_true(values)
                for step in [0, *method.update_steps(LINE)]:
                    masks = ask(method, show(method, values, masks, slopes, step))
                    yield f"{what}, {which}", step, method, masks, LINE


def distinct_values(seed: int) -> dict[str, Tensor]:
    """Return numbers just above 1, all different in float32 and all the same in bfloat16, in random places."""
    shapes = kit_shapes()
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    places = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    parts = (1 + places * 2.0**-20).split([torch.Size(shape).numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def shuffle(tensors: Mapping[str, Tensor], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the outputs (first dimension) of each layer in another order."""
    return {name: t[orders[name]] for name, t in tensors.items()}


def shuffled_view(orders: Mapping[str, Tensor]) -> type[View]:
    """Return a kind of view whose random numbers are in another order within each layer."""

    class Shuffled(View):
        def random(self, name: str, purpose: str = "") -> Tensor:
            """Return the usual numbers, in the other order."""
            return shuffle({name: super().random(name, purpose)}, orders)[name]

    return Shuffled
