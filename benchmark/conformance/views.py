"""Made-up views: what a method is shown where real runs rarely lead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmark.conformance.nets import make_network
from benchmark.conformance.trial import Kit
from benchmark.training.contract import list_stages, show_donor
from benchmark.training.method_state import weighs
from benchmark.training.rehearsal import stand_in_donor, stand_in_moments
from methods.core import DenseGrads, Inactive, Masks, Method, Timeline, Update, View

LINE = Timeline(24, 6)


def kit_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the convolutional network's prunable weights, all different."""
    model = make_network("conv", 0)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}


@dataclass
class Show:
    """A method under made-up weights and gradients: what the engine keeps for it goes from one proposal to the next."""

    method: Method
    kind: type[View] = View
    state: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weighs = weighs(self.method)  # until an update returns masks

    def ask(
        self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], gradients: Mapping[str, Tensor], step: int
    ) -> Masks:
        """Return the masks in force after the method's proposal, for setup (step 0, in all its rounds) or an update."""
        wanted = self.method.scoring() if step == 0 else None
        now = dict(masks)
        for round in range(wanted.rounds if wanted else 1):
            with torch.no_grad():
                view = self.view(weights, now, gradients, step, round)
                proposed = self.method.setup(view) if step == 0 else self.method.update(view)
            update = proposed if isinstance(proposed, Update) else Update(proposed)
            self.state |= update.state or {}
            self.learned |= {n: t for n, t in (update.values or {}).items() if n in self.learned}
            if step == 0:
                self.learned = dict(self.method.learned(view))
            if update.masks is not None:
                now, self.weighs = dict(list_stages(update)[-1]), False
        if self.weighs:
            now = {name: self.method.weigh(name, value, self.learned) != 0 for name, value in weights.items()}
        return now

    def view(
        self,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        step: int,
        round: int = 0,
    ) -> View:
        """Return a view with the gradients and the donor that the method declared."""
        method = self.method
        wanted = method.scoring()
        declared = wanted is not None if step == 0 else method.dense_gradients() is not DenseGrads.NEVER
        return self.kind(
            weights={name: weight * masks[name] for name, weight in weights.items()},
            masks=masks,
            step=step,
            timeline=LINE,
            seed=0,
            gradients=gradients if declared else None,
            hessian_gradients=gradients if step == 0 and wanted is not None and wanted.order == 2 else None,
            last="fc.weight",
            stored=weights if method.inactive is Inactive.STORED else None,
            state=self.state,
            learned=self.learned,
            active_gradients={n: g * masks[n] for n, g in gradients.items()} if step else None,
            input_moments=stand_in_moments(method, weights) if step else None,
            lr=0.1,
            round=round,
            **show_donor(stand_in_donor(method, weights) if step == 0 else None, weights),
        )


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
                masks, shown = all_true(values), Show(method)
                for step in [0, *method.update_steps(LINE)]:
                    masks = shown.ask(values, masks, slopes, step)
                    if shown.weighs:
                        continue  # its masks are where weigh() is zero, whatever is planned
                    yield f"{what}, {which}", step, method, masks, LINE


def distinct_values(seed: int) -> dict[str, Tensor]:
    """Return numbers just above 1, all different in float32 and all the same in bfloat16, in random places."""
    return place_values(seed, lambda places: 1 + places * 2.0**-20)


def coarse_values(seed: int) -> dict[str, Tensor]:
    """Return numbers in the same order that are all different in bfloat16, too: eight bits, and powers of two."""
    return place_values(seed, lambda places: (1 + places % 128 / 128) * 2.0 ** (places // 128))


def place_values(seed: int, make: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return what `make` makes of 0, 1, 2, ... in random places, shaped as the weights."""
    shapes = kit_shapes()
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    places = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    return {n: p.reshape(shapes[n]) for n, p in zip(shapes, make(places).split(sizes), strict=True)}


def shuffle(tensors: Mapping[str, Tensor], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the outputs (first dimension) of each layer in another order."""
    return {name: t[orders[name]] for name, t in tensors.items()}


def shuffled_view(orders: Mapping[str, Tensor]) -> type[View]:
    """Return a kind of view whose random numbers are in another order within each layer."""

    class Shuffled(View):
        def random(self, name: str, purpose: str = "", run: bool = False) -> Tensor:
            """Return the usual numbers, in the other order."""
            return shuffle({name: super().random(name, purpose, run)}, orders)[name]

        def uniform(self, name: str, purpose: str = "", run: bool = False) -> Tensor:
            """Return the usual numbers, in the other order; those of `normal` follow."""
            return shuffle({name: super().uniform(name, purpose, run)}, orders)[name]

    return Shuffled
