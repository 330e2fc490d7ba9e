"""P3: masking gradients gives bit for bit what masking weights and momentum after every step gives."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.perf.goals import Goal
from benchmark.perf.peers import R20, Net, Peer, backward, make_model, make_sgd, sparsify
from benchmark.perf.update import propose

STEPS, EVERY = 48, 12  # steps, and steps between two updates
SMALL = Net(R20.label, R20.model, 8, 16)  # images small enough to train on here


def measure(quick: bool) -> list[Goal]:
    """Return how many values of weights and momentum differ in their bits, over all recipes."""
    recipes = {"Nesterov, decay": (True, 5e-4), "plain momentum, no decay": (False, 0.0)}
    counts = {label: count_differing(SMALL, *recipe) for label, recipe in recipes.items()}
    what = (
        f"{SMALL.label}: values that differ from masked weights and momentum, {STEPS} steps, {STEPS // EVERY} updates"
    )
    return [Goal("P3", what, float(sum(counts.values())), "<=", 0, "", details=counts)]


def count_differing(net: Net, nesterov: bool, decay: float) -> int:
    """Train with masked gradients and a fused step beside the peer, with the same masks; count differing values."""
    ours, theirs = make_model(net), make_model(net)
    maskset, same = sparsify(ours, 0.8), sparsify(theirs, 0.8)
    optimizer, other = make_sgd(ours, True), make_sgd(theirs, True)  # torch's loop rounds otherwise, masks or not
    for group in (*optimizer.param_groups, *other.param_groups):
        group.update(nesterov=nesterov, weight_decay=decay)
    peer = Peer(theirs, other, same.masks)
    generator = torch.Generator().manual_seed(3)
    for step in range(1, STEPS + 1):
        images = torch.randn(net.batch, 3, net.size, net.size, generator=generator)
        batch = images.contiguous(memory_format=torch.channels_last), torch.arange(net.batch) % 10
        backward(ours, *batch)
        proposed = propose(maskset) if step % EVERY == 0 else ()  # reads dense gradients, as growth does
        maskset.mask_gradients()
        optimizer.step()
        backward(theirs, *batch)
        peer.step()
        for masks in proposed:
            maskset.commit(masks, None, optimizer)
            peer.masks = {name: mask.float() for name, mask in masks.items()}
            peer.apply()
    pairs = list(zip(values(ours, optimizer), values(theirs, other), strict=True))
    return sum(int((a.view(torch.int32) != b.view(torch.int32)).sum()) for a, b in pairs)


def values(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all weights and momentum; -0.0, which a product with a mask gives, counts as 0.0."""
    state = [optimizer.state[parameter]["momentum_buffer"] for parameter in model.parameters()]
    return [tensor.detach() + 0.0 for tensor in (*model.parameters(), *state)]
