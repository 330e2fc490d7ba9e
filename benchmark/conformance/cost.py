"""Checks of promise 3: what is charged equals a recount from the masks that were in force, made without fvcore."""

from __future__ import annotations

from torch import Tensor

from benchmark.conformance.budget import NETS
from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.needs import asked_images
from benchmark.conformance.nets import BATCH, IMAGES, count_macs, make_network
from benchmark.conformance.trial import Kit, Trial
from methods.core import DenseGrads

ENGINE = "this is the engine's, unless needs are declared wrongly (see declared-gradients); report it"


class Recount:
    """The forward cost of a trial's network under any masks."""

    def __init__(self, trial: Trial) -> None:
        model = make_network(trial.setting.network, 0)
        self.uses, self.attention = count_macs(model)
        self.sizes = {name: model.get_parameter(name).numel() for name in self.uses}
        self.dense = self.forward({})

    def forward(self, masks: dict[str, Tensor]) -> int:
        """Return the multiply-adds of one image; a layer without a mask counts whole."""
        active = {name: int(masks[name].sum()) if name in masks else size for name, size in self.sizes.items()}
        return self.attention + sum(self.uses[name] * count for name, count in active.items())


@check("training-cost", ENGINE)
def check_training(kit: Kit) -> Outcome:
    """Every step is charged 2 f + f, or 2 f + f_D where dense gradients are read, to the unit."""
    totals = []
    for network in NETS:
        trial = kit.trial(network=network)
        method, line = trial.run.method, trial.run.timeline
        recount, due = Recount(trial), set(trial.run.method.update_steps(trial.run.timeline))
        wanted = method.scoring()
        total = 0 if wanted is None else {1: 3, 2: 12}[wanted.order] * recount.dense * asked_images(wanted)
        masks = trial.commits[0].after.masks if trial.commits else {}
        for seen in trial.steps:
            last = seen.step % line.steps_per_epoch == 0
            images = IMAGES - BATCH * (line.steps_per_epoch - 1) if last else BATCH
            forward = recount.forward(masks)
            dense = method.dense_grads is DenseGrads.EVERY_STEP
            dense = dense or (method.dense_grads is DenseGrads.AT_UPDATES and seen.step in due)
            total += images * (2 * forward + (recount.dense if dense else forward))
            if seen.train_macs != total:
                return Outcome(False, f"{network} step {seen.step}: {seen.train_macs:,} charged, recount {total:,}")
            masks = seen.state.masks
        totals.append(f"{network} {total:,}")
    return Outcome(True, ", ".join(totals))


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
