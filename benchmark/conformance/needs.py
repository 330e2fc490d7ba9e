"""Checks of what a method declares that it needs, and of what its needs cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmark.base.seeds import derive
from benchmark.conformance.budget import NETS
from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.method_state import beside_in
from benchmark.conformance.nets import BATCH, CHANNELS, CLASSES, IMAGES, SIZE, count_macs, make_network
from benchmark.conformance.trial import Call, Kit, State, Trial
from benchmark.training.method_state import weighs
from benchmark.training.scoring import scoring_pieces, set_mode
from methods.core import DenseGrads, Method, Moments, Scoring

CLOSE = 1e-3  # relative error of a gradient's norm: float32 against float64
GRADIENTS, PRODUCTS = "gradients", "Hessian-gradient products"
MOMENTS, SEEN = "input moments", ("conv", "depthwise")
COUNTS, MASKS = "donor counts", "donor masks"


@check(
    "declared-gradients",
    "set dense_grads = DenseGrads.AT_UPDATES if update() reads view.gradients, DenseGrads.NEVER if it does not",
)
def check_declared(kit: Kit) -> Outcome:
    """Update() reads gradients exactly if dense_grads says so: a reading is charged, so is a declaration."""
    trial = kit.trial()
    declared = trial.run.method.dense_gradients()
    updates = [call for call in trial.calls if call.step > 0]
    read = any(GRADIENTS in call.reads for call in updates)
    seen = f"declared {declared.value}, {'read' if read else 'not read'} in {len(updates)} updates"
    if read != (declared is not DenseGrads.NEVER) and (updates or not trial.error):
        return Outcome(False, seen)
    return Outcome(True, seen)


def read_in_setup(trial: Trial) -> set[str]:
    """Return what setup() read of its view, in every round of scoring."""
    return set().union(*(call.reads for call in trial.calls if call.step == 0))


@check(
    "declared-scoring",
    "return Scoring(order=1) from scoring() for view.gradients, Scoring(order=2) for view.hessian_gradients, else None",
)
def check_scoring(kit: Kit) -> Outcome:
    """Setup() reads gradients exactly if scoring() asks for them, Hessian-gradient products exactly if of order 2."""
    trial = kit.trial()
    wanted = trial.run.method.scoring()
    read = read_in_setup(trial)
    order = 0 if wanted is None else wanted.order
    needed = 2 if PRODUCTS in read else 1 if GRADIENTS in read else 0
    seen = f"declared order {order}, read {', '.join(sorted(read)) or 'nothing'}"
    return Outcome(order == needed, seen)


@check(
    "declared-donor",
    "return Donor(run) from donor() if setup() reads view.donor_counts, Donor(run, 'masks') for view.donor_masks, else "
    "None",
)
def check_donor(kit: Kit) -> Outcome:
    """Setup() reads the counts or the masks of another run exactly if donor() asks for them; updates read neither."""
    trial = kit.trial()
    wanted = trial.run.method.donor()
    needed = set() if wanted is None else {MASKS} if wanted.masks else {COUNTS}
    late = [call.step for call in trial.calls if call.step > 0 and call.reads & {COUNTS, MASKS}]
    if late:
        return Outcome(False, f"read of a donor at step {late[0]}, which is shown to setup() alone")
    read = read_in_setup(trial) & {COUNTS, MASKS}
    seen = f"declared {wanted.kind if wanted else 'none'}, read {', '.join(sorted(read)) or 'nothing'}"
    return Outcome(needed <= read <= needed | {COUNTS} if needed else not read, seen)


def batch_at(trial: Trial, step: int) -> tuple[Tensor, Tensor]:
    """Return the batch of a step, drawn from the loader again."""
    run = trial.run
    epoch, index = divmod(step - 1, run.timeline.steps_per_epoch)
    batches = run.data.train.epoch(run.seed, epoch, BATCH, False, run.device)
    return list(batches)[index]


def gradients_again(
    trial: Trial, state: Mapping[str, Tensor], loss: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Return the dense gradients of a loss at given weights, in float64, on a network of its own."""
    model = make_network(trial.setting.network, 9)
    model.load_state_dict(state)
    model.double().train()
    names = list(trial.run.maskset.weights)
    found = torch.autograd.grad(loss(model), [model.get_parameter(name) for name in names])
    return dict(zip(names, found, strict=True))


def relative_error(given: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference over the norm of the true value, all layers together."""
    names = list(true)
    difference = torch.cat([(given[name].double() - true[name]).flatten() for name in names])
    return float(difference.norm() / torch.cat([true[name].flatten() for name in names]).norm())


@check("dense-gradients", "this is the engine's; report it")
def check_dense(kit: Kit) -> Outcome:
    """The gradients shown are those of the batch at the weights of its forward pass, of inactive weights too."""
    trial = kit.trial()
    offered = 0
    for call in trial.calls:
        if call.step < 2 or call.gradients is None:
            continue
        state = trial.steps[call.step - 2].state
        if not all(bool(mask.any()) for mask in state.masks.values()):
            continue  # an empty layer cuts off those before it: their gradients are zero, but for roundings
        offered += 1
        images, labels = batch_at(trial, call.step)

        def loss(model: nn.Module, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            return nn.functional.cross_entropy(model(images.double()), labels)

        true = gradients_again(trial, state.model, loss)
        given = call.gradients or {}
        if any(gradient.dtype != torch.float32 for gradient in given.values()):
            return Outcome(False, "gradients are not in float32")
        error = relative_error(given, true)
        inactive = {name: ~mask for name, mask in state.masks.items()}
        if any(bool(mask.any()) for mask in inactive.values()):
            hidden = relative_error(
                {name: given[name] * mask for name, mask in inactive.items()},
                {name: true[name] * mask for name, mask in inactive.items()},
            )
            error = max(error, hidden)
        if not error < CLOSE:
            return Outcome(False, f"step {call.step}: off by {error:.1%} of their norm")
    return Outcome(True if offered else None, f"{offered} updates, all within {CLOSE:.1%}")


@check("scoring-gradients", "this is the engine's; report it")
def check_scored(kit: Kit) -> Outcome:
    """Setup() sees gradients of the very weights that are trained, on as many images as it asked for."""
    trial = kit.trial()
    wanted = trial.run.method.scoring()
    if wanted is None or not trial.calls:
        return Outcome(None, "nothing is scored")
    pieces = scoring_pieces(trial.run.data.train, wanted, BATCH, trial.setting.seed, trial.run.device)
    images = 1 if wanted.flow else sum(len(labels) for _, labels, _ in pieces)
    if images != asked_images(wanted):
        return Outcome(False, f"{images} images, asked for {asked_images(wanted)}")

    def loss(model: nn.Module) -> Tensor:
        if wanted.flow:
            return flow(model)
        set_mode(model, wanted)
        parts = [
            share * nn.functional.cross_entropy(model(x.double()) / wanted.temperature, y) for x, y, share in pieces
        ]
        return torch.stack(parts).sum()

    true = gradients_again(trial, trial.start, loss)
    error = relative_error(trial.calls[0].gradients or {}, true)
    if not error < CLOSE:
        return Outcome(False, f"gradients off by {error:.1%} of their norm")
    if wanted.order == 2:
        error = relative_error(trial.calls[0].hessian_gradients or {}, product_again(trial, true, loss))
        if not error < 10 * CLOSE:
            return Outcome(False, f"Hessian-gradient products off by {error:.1%} of their norm")
    last = trial.calls[wanted.rounds - 1]
    if wanted.rounds > 1 and not wanted.fresh:
        masks = trial.calls[wanted.rounds - 2].masks or {}
        state = {name: tensor * masks[name] if name in masks else tensor for name, tensor in trial.start.items()}
        error = relative_error(last.gradients or {}, gradients_again(trial, state, loss))
        if not error < CLOSE:
            return Outcome(False, f"round {wanted.rounds}: gradients off by {error:.1%} of their norm")
    return Outcome(True, f"{images} images, order {wanted.order}, {wanted.rounds} rounds, within {error:.2%}")


def flow(model: nn.Module) -> Tensor:
    """Return the sum of the outputs of |model| for an input of ones."""
    model.eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.abs_()
    outputs: Tensor = model(torch.ones(1, CHANNELS, SIZE, SIZE, dtype=torch.float64))
    return outputs.sum()


def asked_images(wanted: Scoring) -> int:
    """Return how many images a round of scoring declares, as far as the kit has so many."""
    if wanted.flow:
        return 1
    return min(wanted.samples_per_class * CLASSES or wanted.batches * BATCH, IMAGES)


def product_again(
    trial: Trial, direction: Mapping[str, Tensor], loss: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Return the Hessian of the loss times `direction`, by differencing gradients: no second derivative is taken."""
    length = torch.cat([d.flatten() for d in direction.values()]).norm()
    size = 1e-8 / float(length)  # so small a shift crosses no kink of a ReLU
    sides = []
    for sign in (1, -1):
        state = {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in trial.start.items()
        }
        state.update({name: state[name] + sign * size * d for name, d in direction.items()})

        def shifted(model: nn.Module, state: dict[str, Tensor] = state) -> Tensor:
            model.load_state_dict(state)  # in float64: a copy in float32 would round the shift away
            return loss(model)

        sides.append(gradients_again(trial, trial.start, shifted))
    return {name: (sides[0][name] - sides[1][name]) / (2 * size) for name in direction}


@check(
    "declared-moments",
    "return Moments() from moments() if update() reads view.input_moments, else None; wrong moments are the engine's: "
    "report them",
)
def check_moments(kit: Kit) -> Outcome:
    """Update() reads second moments of inputs exactly if moments() asks for them, and they are those of plain loops."""
    worst, shown = 0.0, 0
    for network in SEEN:
        trial = kit.trial(network=network)
        wanted = trial.run.method.moments()
        updates = [call for call in trial.calls if call.step > 0]
        read = any(MOMENTS in call.reads for call in updates)
        if read != (wanted is not None) and (updates or not trial.error):
            return Outcome(False, f"declared {wanted}, {'read' if read else 'not read'} in {len(updates)} updates")
        for call in updates:
            if wanted is None or call.moments is None or len(trial.steps) < call.step:
                continue
            again, shown = moments_again(trial, call, wanted), shown + 1
            if any(call.moments[name].shape != moment.shape for name, moment in again.items()):
                return Outcome(False, f"{network} step {call.step}: moments are not (groups, fan-in, fan-in)")
            worst = max(worst, relative_error(call.moments, again))
            if not worst < CLOSE:
                return Outcome(False, f"{network} step {call.step}: moments off by {worst:.1%} of their norm")
    return Outcome(True, f"{shown} updates see moments, within {worst:.2%}")


def moments_again(trial: Trial, call: Call, wanted: Moments) -> dict[str, Tensor]:
    """Return the second moments of every layer's inputs at an update, in float64, on a network of its own."""
    run, sums, rows = trial.run, {}, {}
    model = make_network(trial.setting.network, 9)
    model.load_state_dict({**trial.steps[call.step - 1].state.model, **(call.weights or {})})
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in run.maskset.weights}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    seed = derive(run.seed, "input moments", call.step)
    model.double().eval()
    with torch.no_grad():
        for images, _, _ in scoring_pieces(run.data.train, Scoring(batches=wanted.batches), BATCH, seed, run.device):
            model(images.double())
        for name, layer in layers.items():
            sums[name], rows[name] = add_products(layer, torch.cat(seen[name]))
    return {name: total / rows[name] for name, total in sums.items()}


def add_products(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the sum of x x^T over images and output positions, position by position, and how many there are."""
    if isinstance(layer, nn.Linear):
        return (inputs.mT @ inputs).unsqueeze(0), len(inputs)
    assert isinstance(layer, nn.Conv2d)
    (size, _), (stride, _), pad = layer.kernel_size, layer.stride, int(layer.padding[0])
    padded = nn.functional.pad(inputs, (pad, pad, pad, pad))
    corners = range(0, padded.shape[-1] - size + 1, stride)
    patches = [
        padded[:, :, i : i + size, j : j + size].reshape(len(inputs), layer.groups, -1)
        for i in corners
        for j in corners
    ]
    products = [torch.einsum("ngi,ngj->gij", patch, patch) for patch in patches]
    return torch.stack(products).sum(0), len(inputs) * len(patches)


ENGINE = "this is the engine's, unless needs are declared wrongly (see declared-gradients); report it"


class Recount:
    """The forward cost of a trial's network under any masks."""

    def __init__(self, trial: Trial) -> None:
        model = make_network(trial.setting.network, 0)
        self.uses, self.attention = count_macs(model)
        self.sizes = {name: model.get_parameter(name).numel() for name in self.uses}
        self.dense = self.forward({})
        groups = {f"{name}.weight": getattr(module, "groups", 1) for name, module in model.named_modules()}
        fans = {name: model.get_parameter(name)[0].numel() for name in trial.run.maskset.weights}
        self.products = sum(self.uses[name] * groups[name] * fan**2 for name, fan in fans.items())

    def forward(self, masks: dict[str, Tensor]) -> int:
        """Return the multiply-adds of one image; a layer without a mask counts whole."""
        active = {name: int(masks[name].sum()) if name in masks else size for name, size in self.sizes.items()}
        return self.attention + sum(self.uses[name] * count for name, count in active.items())


@check("training-cost", ENGINE)
def check_training(kit: Kit) -> Outcome:
    """Every step is charged 2 f and the weight gradients of what is trained or read, every round of scoring its passes.

    To the unit: 3 f for most methods, 2 f + f_D where dense gradients are read or all weights are trained; where they
    are weighed, of those that autograd reaches. Second moments are charged a forward pass and their products.
    """
    totals = []
    for network in NETS:
        trial = kit.trial(network=network)
        method, line = trial.run.method, trial.run.timeline
        recount, due = Recount(trial), set(trial.run.method.update_steps(trial.run.timeline))
        wanted, moments = method.scoring(), method.moments()
        total = 0 if wanted is None else {1: 3, 2: 12}[wanted.order] * recount.dense * asked_images(wanted)
        for before in trial.calls[: wanted.rounds - 1] if wanted else ():  # each further round runs under these masks
            assert wanted is not None
            total += asked_images(wanted) * (2 * recount.forward(before.masks or {}) + recount.dense)
        for begun, seen in zip(trial.states(), trial.steps, strict=False):
            last = seen.step % line.steps_per_epoch == 0
            images = IMAGES - BATCH * (line.steps_per_epoch - 1) if last else BATCH
            forward, reads = recount.forward(begun.masks), method.dense_gradients()
            dense = reads is DenseGrads.EVERY_STEP or (reads is DenseGrads.AT_UPDATES and seen.step in due)
            total += images * (2 * forward + (recount.dense if dense else recount.forward(reached(method, begun))))
            if moments is not None and seen.step in due:
                total += min(moments.batches * BATCH, IMAGES) * (forward + recount.products)
            if seen.train_macs != total:
                return Outcome(False, f"{network} step {seen.step}: {seen.train_macs:,} charged, recount {total:,}")
        totals.append(f"{network} {total:,}")
    return Outcome(True, ", ".join(totals))


def reached(method: Method, state: State) -> dict[str, Tensor]:
    """Return which weights a backward pass gives a gradient: the trained, or those that `weigh` lets it reach."""
    stored, learned = beside_in(state, "stored"), beside_in(state, "learned")
    if not weighs(method) or not stored:
        return state.trained
    found = {}
    for name, values in stored.items():
        leaf = values.clone().requires_grad_()
        used = method.weigh(name, leaf, learned)
        (gradient,) = torch.autograd.grad(used.sum(), leaf)
        found[name] = (used != 0) | (gradient != 0)
    return found


@check("inference-cost", ENGINE)
def check_inference(kit: Kit) -> Outcome:
    """The multiply-adds of the final masks, groups, strides and attention included."""
    shares = []
    for network in NETS:
        trial = kit.trial(network=network)
        recount = Recount(trial)
        meter = trial.run.meter
        if meter.reference.dense != recount.dense:
            return Outcome(False, f"{network}: dense {meter.reference.dense:,}, recount {recount.dense:,}")
        charged, again = meter.costs.forward(trial.run.maskset.counts()), recount.forward(trial.run.maskset.masks)
        if charged != again:
            return Outcome(False, f"{network}: {charged:,}, recount {again:,}")
        shares.append(f"{network} {again / recount.dense:.3f}x")
    return Outcome(True, ", ".join(shares))
