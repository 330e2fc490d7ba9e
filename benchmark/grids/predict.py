"""The cost of a run, predicted from its schedule: the meter of training, driven without training.

Exact where the layers' counts are known before training: masks that need no scores, kept layer by layer. Where weights
or scores decide (global pruning, SNIP), the planned count is divided among the layers as the page divides it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmark.config.cells import Cell
from benchmark.data.sets import Data
from benchmark.networks.build import Built, build
from benchmark.networks.costs import Meter
from benchmark.networks.prunable import prunable_weights
from benchmark.runs.run import make_timeline
from benchmark.training.contract import list_stages, planned_count, propose
from benchmark.training.masks import MaskSet
from benchmark.training.method_state import weighs
from benchmark.training.moments import moment_sizes
from benchmark.training.scoring import scoring_chunks
from benchmark.training.setup import first_view
from methods.core import DISTRIBUTIONS, DenseGrads, Inactive, Scoring, Timeline, Trains, count_kept, geometric

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Network:
    """A network built for planning: it is not trained, and every weight stays active."""

    built: Built
    maskset: MaskSet
    seed: int  # that drew its weights


def page_of(cell: Cell) -> tuple[str, str]:
    """Return what cells of one page with the same settings share."""
    return cell.page_name, cell.variant


class Networks:
    """Builds networks on the CPU and keeps those of the current page, since a page's cells come one after another."""

    def __init__(self) -> None:
        self.page = ("", "")
        self.kept: dict[str, Network] = {}

    def get(self, cell: Cell, data: Data) -> Network:
        """Return the cell's network."""
        page = page_of(cell)
        if page != self.page:
            self.page, self.kept = page, {}
        key = self.key(cell)
        if key not in self.kept:
            built = build(cell, data)
            maskset = MaskSet(prunable_weights(built.model, built.layers), built.last)
            self.kept[key] = Network(built, maskset, cell.seed)
        return self.kept[key]

    def take(self, cell: Cell) -> Built | None:
        """Return the cell's network, which is not kept any longer; None where none was built with its seed."""
        key = self.key(cell)
        if self.page != page_of(cell) or key not in self.kept or self.kept[key].seed != cell.seed:
            return None
        return self.kept.pop(key).built

    @staticmethod
    def key(cell: Cell) -> str:
        """Return which of a page's networks a cell has."""
        return f"narrow {cell.sparsity}" if cell.method.narrows_network else "full"


@dataclass(frozen=True)
class Prediction:
    """What a run will cost, in multiply-adds. `exact`: whether it is what the run's record will say.

    `counts`: active weights by layer at the end.
    """

    train: int
    train_dense: int
    exact: bool
    counts: dict[str, int] = field(repr=False)

    @property
    def share(self) -> float:
        """The cost as a multiple of the dense network's."""
        return self.train / self.train_dense


@dataclass
class Forecast:
    """The layers' counts as a run goes on; `exact`: whether they are known, not just likely, to the end."""

    counts: dict[str, int]
    exact: bool


def predict(cell: Cell, data: Data, network: Network, donor: Prediction | None = None) -> Prediction:
    """Return what training the cell will cost, by its schedule; `data` may be a stand-in.

    `donor`: what is predicted of the run that a control is made from, where the cell has no donor yet. Not foreseen are
    steps that are not finite. Invariant: where `exact`, `train` is the record's `macs.train`, to the multiply-add.
    """
    method, built = cell.method, network.built
    timeline = make_timeline(cell, data)
    meter = Meter(built.costs, built.reference)
    wanted = method.scoring()
    rounds_exact = True
    if wanted is not None:
        chunks = scoring_chunks(data.train, wanted, cell.page.batch_size, cell.seed)
        images = 1 if wanted.flow else sum(len(chunk) for chunk in chunks)
        meter.charge_scoring(wanted, images)
        rounds_exact = foresee_rounds(cell, network, wanted, images, meter)
    forecast = start(cell, network, timeline, donor)
    meter.on_commit(forecast.counts)
    charge = functools.partial(charge_steps, cell, data, timeline, meter, foresee_trained(cell, network, timeline))
    reads, done = method.dense_gradients(), 0
    all_trained = method.trains is Trains.ALL and (method.straight_through or not weighs(method))
    for step in method.update_steps(timeline):
        # Between two updates nothing changes, and the meter is linear in images: one charge for all these steps.
        charge(done, step - 1, all_trained or reads is DenseGrads.EVERY_STEP)
        charge(step - 1, step, all_trained or reads is not DenseGrads.NEVER)
        foresee_moments(cell, data, network, meter)
        go_on(forecast, cell, network, step, timeline)
        meter.on_commit(forecast.counts)
        done = step
    all_trained = all_trained and not weighs(method)  # whose last update fixes the masks in the thresholds' place
    charge(done, timeline.total_steps, all_trained or reads is DenseGrads.EVERY_STEP)
    exact = forecast.exact and rounds_exact and not weighs(method)
    return Prediction(meter.train, meter.train_dense, exact, forecast.counts)


def charge_steps(
    cell: Cell,
    data: Data,
    timeline: Timeline,
    meter: Meter,
    trained: Counts | None,
    first: int,
    last: int,
    dense_gradients: bool,
) -> None:
    """Charge the steps after `first` up to `last`, under the same masks; those of further rounds add no reference."""
    end = timeline.round_ends[0]
    gradients = meter.weight_gradients(dense_gradients, trained)
    for again, start, stop in ((False, min(first, end), min(last, end)), (True, max(first, end), max(last, end))):
        images = images_until(cell, data, timeline, stop) - images_until(cell, data, timeline, start)
        meter.step(images, meter.forward, gradients, repeat_round=again)


def foresee_trained(cell: Cell, network: Network, timeline: Timeline) -> Counts | None:
    """Return how many weights of each layer are trained, as the first masks have it; None where the active ones are."""
    method = cell.method
    asks = method.scoring() is not None or method.donor() is not None
    if method.inactive is not Inactive.STORED or method.trains is Trains.ALL or asks:
        return None
    update = propose(method, cell.plugin.name, first_view(network.maskset, timeline, cell.seed, cell.page.lr, None))
    return None if update.trained is None else {name: int(mask.sum()) for name, mask in update.trained.items()}


def foresee_rounds(cell: Cell, network: Network, wanted: Scoring, images: int, meter: Meter) -> bool:
    """Charge the further rounds of scoring at likely masks; return whether there are none, so that nothing is guessed.

    Methods that score in rounds thin the network by one factor a round.
    """
    for done in range(1, wanted.rounds):
        likely = count_kept(geometric(cell.sparsity, done / wanted.rounds), network.maskset.total)
        meter.charge_scoring(wanted, images, divide(cell, network, likely))
    return wanted.rounds == 1


def foresee_moments(cell: Cell, data: Data, network: Network, meter: Meter) -> None:
    """Charge the second moments of layers' inputs that an update reads, where it does."""
    wanted = cell.method.moments()
    if wanted is not None:
        images = min(wanted.batches * cell.page.batch_size, len(data.train))
        meter.charge_moments(images, moment_sizes(network.built.model, network.maskset.weights))


def images_until(cell: Cell, data: Data, timeline: Timeline, step: int) -> int:
    """Return how many images the first `step` steps train on; an epoch's last batch may be smaller."""
    batch, per_epoch = cell.page.batch_size, len(data.train)
    if cell.page.drop_last:
        per_epoch = timeline.steps_per_epoch * batch
    epochs, steps = divmod(step, timeline.steps_per_epoch)
    return epochs * per_epoch + steps * batch


def start(cell: Cell, network: Network, timeline: Timeline, donor: Prediction | None) -> Forecast:
    """Return the counts of the first masks: those of a donor, those the method draws, or likely ones."""
    method, maskset = cell.method, network.maskset
    if cell.donor is not None:
        return Forecast(dict(cell.donor.counts), True)  # every control keeps its donor's layer counts
    if donor is not None:
        return Forecast(dict(donor.counts), donor.exact)
    planned = planned_count(method, maskset, 0, timeline)
    settled_later = len(method.update_steps(timeline)) > 0 and not method.keeps_layer_counts
    if method.scoring() is not None or method.donor() is not None or settled_later:
        likely = count_kept(method.planned_sparsity(0, timeline), maskset.total) if planned is None else planned
        return Forecast(divide(cell, network, likely), False)
    stages = list_stages(
        propose(method, cell.plugin.name, first_view(maskset, timeline, cell.seed, cell.page.lr, cell.donor))
    )
    masks = stages[-1] if stages else maskset.masks
    return Forecast({name: int(mask.sum()) for name, mask in masks.items()}, True)


def go_on(forecast: Forecast, cell: Cell, network: Network, step: int, timeline: Timeline) -> None:
    """Take the forecast past the update at `step`."""
    planned = planned_count(cell.method, network.maskset, step, timeline)
    if planned is None:  # an outcome: near the schedule's count
        planned = count_kept(cell.method.planned_sparsity(step, timeline), network.maskset.total)
    if not cell.method.keeps_layer_counts:
        forecast.counts = divide(cell, network, planned)


def divide(cell: Cell, network: Network, total: int) -> dict[str, int]:
    """Return `total` weights divided among the layers by the method's distribution, or the page's where it has none."""
    distribution = cell.method_settings().get("distribution", cell.page.distribution)
    shapes = {name: tuple(weight.shape) for name, weight in network.maskset.weights.items()}
    return DISTRIBUTIONS[distribution](shapes, total)
