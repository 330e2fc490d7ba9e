"""The first masks: what a method scores by before the first step, its rounds of scoring, its stored weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmark.base.errors import UserError
from benchmark.base.system import keep_random_state
from benchmark.config.cells import DonorRun
from benchmark.distributed.ranks import do_together, share_tensors
from benchmark.training.contract import ask_learned, list_stages, propose, show_donor
from benchmark.training.masks import MaskSet
from benchmark.training.scoring import ScoringGradients, score
from benchmark.training.sparse import SparseTraining
from benchmark.training.step import apply
from methods.core import ContractError, Masks, Scoring, Timeline, Update, View
from methods.core.answers import count_each

SILENT_SHARE = 0.5  # of scoring gradients that are exactly zero: more than this, and scores say little


def begin_masks(run: SparseTraining, donor: DonorRun | None, warn: Callable[[str], None]) -> None:
    """Take the gradients the method asks for, ask it for its first masks and commit them.

    Every rank scores all images, and rank 0's gradients count, so that scores are those of one process. Invariant: what
    is drawn from torch's generator meanwhile, in scoring or by a method, is not missed by the training that follows.
    """
    with keep_random_state(next(iter(run.maskset.weights.values())).device):
        choose_masks(run, donor, warn)


def choose_masks(run: SparseTraining, donor: DonorRun | None, warn: Callable[[str], None]) -> None:
    """Do what `begin_masks` does."""
    method, maskset = run.method, run.maskset
    for remark in method.remarks({name: tuple(weight.shape) for name, weight in maskset.weights.items()}):
        warn(f"{run.name}: {remark}")
    wanted = method.scoring()
    scores: ScoringGradients | None = None
    silent = 0.0  # share of the first round's gradients that are exactly zero
    masks: Masks | None = None
    rounds = wanted.rounds if wanted else 1
    lr = run.weight_group()["lr"]
    for round in range(rounds):
        if wanted is not None:
            scores = score_round(run, wanted, masks, round)
            if round == 0:
                silent = sum(count_each(g == 0 for g in scores.gradients.values())) / maskset.total
        view = first_view(maskset, run.timeline, run.seed, lr, donor, scores, masks, round)
        update = do_together(partial(propose, method, run.name, view))
        if round + 1 < rounds:
            masks = settle_round(run, update, view)
    run.begin_method_state(ask_learned(method, run.name, view))
    apply(run, update, view)
    if silent > SILENT_SHARE:
        warn(
            f"{silent:.0%} of the gradients {run.name} scores by are exactly zero: this backbone starts with zero "
            "gains; timm's ResNets take ARGS=model_args.zero_init_last=false"
        )


def score_round(run: SparseTraining, wanted: Scoring, masks: Masks | None, round: int) -> ScoringGradients:
    """Return the gradients of a round of scoring, rank 0's, and charge them; `masks`: None in the first round.

    Then the network has the masks that it came with, in a branch those of the run it leaves.
    """
    images, batch = run.scored()
    scores = score(run.model, run.maskset.weights, images, wanted, batch, run.seed, masks, round)
    share_tensors([*scores.gradients.values(), *(scores.hessian_gradients or {}).values()])
    counts = run.maskset.counts() if masks is None else dict(zip(masks, count_each(masks.values()), strict=True))
    run.meter.charge_scoring(wanted, scores.images, counts)
    return scores


def settle_round(run: SparseTraining, update: Update, view: View) -> Masks:
    """Return the masks that the next round of scoring runs under, those the method proposed last."""
    stages = list_stages(update)
    if not stages:
        return dict(run.maskset.masks)
    try:
        run.maskset.check_together(stages[-1], None)
    except ContractError as error:
        raise UserError(f"method '{run.name}' breaks its contract in setup: it {error}") from error
    return dict(run.maskset.take_leading(stages[-1]))


def first_view(
    maskset: MaskSet,
    timeline: Timeline,
    seed: int,
    lr: float,
    donor: DonorRun | None,
    scores: ScoringGradients | None = None,
    masks: Masks | None = None,
    round: int = 0,
) -> View:
    """Return what the method is shown for its first masks. A donor it asks for must have been resolved.

    `masks`: those that it returned in the last round of scoring; None in the first.
    """
    return View(
        weights=maskset.weights,
        masks=maskset.masks if masks is None else masks,
        step=0,
        timeline=timeline,
        seed=seed,
        gradients=scores.gradients if scores else None,
        hessian_gradients=scores.hessian_gradients if scores else None,
        last=maskset.last,
        lr=lr,
        round=round,
        **show_donor(donor, maskset.weights),
    )
