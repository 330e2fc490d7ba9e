"""Oracles: every method once more, written from its paper in plain NumPy; slow, obvious, sharing no code with them.

`ORACLES[name](settings, timeline)` answers for one run: `update_steps()`, `planned(step)`, `masks(step, ...)` and
`stages(step, ...)`, on dicts of arrays by layer name. `timeline` has `total_steps` T and `steps_per_epoch`; settings
left out are the paper's.

Fixed where papers leave freedom: a budget is round((1 - s) N); every selection takes exactly k, and of equal scores
the earlier layer's, then the lower row-major index's, is taken first.
"""

from __future__ import annotations

import math

import numpy as np


def budget(sparsity, weights):
    """Return how many of so many weights stay at `sparsity`."""
    return round((1 - sparsity) * weights)


def best(scores, count, among):
    """Return a mask of the `count` largest scores among the candidates, the lower index first where scores tie."""
    candidates = np.flatnonzero(among)
    if count > len(candidates):
        raise ValueError(f"{count} asked of {len(candidates)} candidates")
    order = np.lexsort((candidates, -scores.ravel()[candidates]))
    chosen = np.zeros(among.size, dtype=bool)
    chosen[candidates[order[:count]]] = True
    return chosen.reshape(among.shape)


def best_of_all(scores, count, among, select=best):
    """Return masks of the `count` largest scores of the whole network: its layers as one long vector, in order."""

    def joined(arrays):
        return np.concatenate([arrays[name].ravel() for name in scores])

    flat = select(joined(scores), count, joined(among))
    masks, start = {}, 0
    for name, array in scores.items():
        masks[name] = flat[start : start + array.size].reshape(array.shape)
        start += array.size
    return masks


def cosine(start, end, progress):
    """Return the cosine annealing from `start` to `end` (Dettmers & Zettlemoyer 2019; RigL, Sec. 3 with end 0)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2  # an update may come late


def cubic(start, end, progress):
    """Return Zhu & Gupta 2017, Eq. 1 (GraNet, Eq. 1), with progress (t - t0) / (n dt)."""
    return end + (start - end) * (1 - progress) ** 3


def moment(share, total_steps):
    """Return share x T; a product such as 0.29 x 100 = 28.999999999999996 is the whole number it stands for."""
    product = share * total_steps
    return round(product) if math.isclose(product, round(product), rel_tol=1e-12) else product


def parts(shape, distribution):
    """Return a layer's raw density times its size, a whole number.

    Erdos-Renyi (Mocanu 2018, Eq. 3): (n_in + n_out) / (n_in n_out), kernels left out; its kernel version ERK (RigL,
    Sec. 3 (1)): (n_in + n_out + k_w + k_h) / (n_in n_out k_w k_h); uniform: the same density everywhere.
    """
    if distribution == "erk":
        return sum(shape)
    if distribution == "er":
        return (shape[0] + shape[1]) * math.prod(shape[2:])
    return math.prod(shape)


def layer_counts(shapes, total, distribution):
    """Return how many of `total` weights each layer gets: RigL, Sec. 3 (1), solved anew while a layer exceeds 1.

    In whole numbers: density_l > 1 where left / mass * part_l > size_l, and a remainder is compared exactly.
    """
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    return divide(size, {name: parts(shape, distribution) for name, shape in shapes.items()}, total)


def divide(size, part, total):
    """Return `total` in proportion to the parts, no layer above its size, the rest to the largest remainders."""
    full = []
    while True:
        sparse = [name for name in size if name not in full]
        left = total - sum(size[name] for name in full)
        mass = sum(part[name] for name in sparse)
        above = [name for name in sparse if left * part[name] > size[name] * mass]
        if not above:
            break
        full += above
    counts = {name: size[name] for name in full}
    counts |= {name: left * part[name] // mass for name in sparse}
    by_remainder = sorted(sparse, key=lambda name: -(left * part[name] % mass))  # stable: the earlier layer on ties
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return {name: counts[name] for name in size}


def magnitudes(arrays):
    """Return the absolute values of every layer."""
    return {name: np.abs(array) for name, array in arrays.items()}


class Oracle:
    """One method over one run; what differs between methods is overridden."""

    defaults: dict = {}  # noqa: RUF012 (never written to)
    replaces_step = False  # whether an update takes the place of the optimiser step
    dense_gradients = "never"  # when gradients of inactive weights are read
    last = ""  # the layer of the classes, told by the engine
    best = staticmethod(best)

    def __init__(self, settings, timeline):
        self.settings = {**self.defaults, **settings}
        self.total_steps = timeline.total_steps
        self.steps_per_epoch = timeline.steps_per_epoch

    def __getattr__(self, name):
        try:
            return self.__dict__["settings"][name]
        except KeyError:
            raise AttributeError(name) from None

    def scoring(self):
        """Return what gradients are taken before the first step, or None."""

    def update_steps(self):
        """Return the steps after which masks change."""
        return []

    def planned(self, step):
        """Return the sparsity in force once `step` is over; None where nothing is promised."""
        return self.sparsity

    def masks(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Return the masks after the set-up (`step` 0) or the update at `step`; `draw(name, purpose)` is in [0, 1)."""
        if step == 0:
            return self.first(weights, gradients, hessian_gradients, draw)
        return self.update(step, weights, masks, gradients, draw)

    def stages(self, *shown):
        """Return the masks put in force one after the other, those of `masks` last: what one leaves out starts anew."""
        return [self.masks(*shown)]

    def first(self, weights, gradients, hessian_gradients, draw):
        """Return the random start at the planned sparsity, layer by layer the largest draws."""
        total = budget(self.planned(0), sum(weight.size for weight in weights.values()))
        counts = layer_counts({name: weight.shape for name, weight in weights.items()}, total, self.distribution)
        everything = {name: np.ones(weight.shape, bool) for name, weight in weights.items()}
        return {name: self.best(draw(name, "mask"), counts[name], everything[name]) for name in weights}

    def every(self, interval, end):
        """Return interval, 2 interval, ... as far as it is below `end`."""
        steps, step = [], interval
        while step < end:
            steps.append(step)
            step += interval
        return steps


class Dense(Oracle):
    """The dense network, and the narrower one: every weight stays (GraNet, Tables 2 and 3, "Dense")."""

    def planned(self, step):
        """Promise no sparsity."""

    def first(self, weights, gradients, hessian_gradients, draw):
        """Keep everything."""
        return {name: np.ones(weight.shape, bool) for name, weight in weights.items()}


class Static(Oracle):
    """Random masks, never changed (Evci 2020, arXiv:1911.11134, Sec. 4, "Static")."""

    defaults = {"distribution": "erk"}  # noqa: RUF012


class Snip(Oracle):
    """Lee 2019, arXiv:1810.02340, Eq. 6 and Alg. 1: s = |g w|, the top kappa of the whole network."""

    defaults = {"score_batches": 1, "batch_norm": "batch", "augment": True}  # noqa: RUF012

    def scoring(self):
        """One gradient of the loss, on the first batch; the authors' code: in inference mode, on plain images."""
        images = {"batches": self.score_batches, "samples_per_class": 0, "augmented": self.augment}
        return {"order": 1, "temperature": 1.0, "batch_norm": self.batch_norm, **images}

    def score(self, weight, gradient):
        """Return |dL/dc| at c = 1, rounded to float32."""
        return np.abs(gradient * weight)

    def first(self, weights, gradients, hessian_gradients, draw):
        """Return Alg. 1, lines 3 to 6; dividing every score by their sum (line 4) leaves the order as it is."""
        scores = {name: self.score(weights[name], gradients[name]) for name in weights}
        everything = {name: np.ones(weight.shape, bool) for name, weight in weights.items()}
        kept = budget(self.sparsity, sum(weight.size for weight in weights.values()))
        return best_of_all(scores, kept, everything, self.best)


class Grasp(Oracle):
    """Wang 2020, arXiv:2002.07376, Eq. 8 and Alg. 1: S(-theta) = -theta * Hg, the largest scores removed."""

    defaults = {"samples_per_class": 10, "temperature": 200.0}  # noqa: RUF012

    def scoring(self):
        """Hg over so many images of each class in two halves, the logits divided by the temperature."""
        few = {"samples_per_class": self.samples_per_class, "temperature": self.temperature}
        return {"order": 2, "chunks": 2, **few}

    def score(self, weight, gradient, hessian_gradient):
        """Return the change of the gradient flow when the weight goes, Eq. 8, rounded to float32."""
        return -(weight * hessian_gradient)

    def first(self, weights, gradients, hessian_gradients, draw):
        """Return Alg. 1, lines 3 to 5: keep the smallest scores, which is removing the largest."""
        scores = {n: self.score(weights[n], gradients[n], hessian_gradients[n]) for n in weights}
        everything = {name: np.ones(weight.shape, bool) for name, weight in weights.items()}
        kept = budget(self.sparsity, sum(weight.size for weight in weights.values()))
        return best_of_all({name: -score for name, score in scores.items()}, kept, everything, self.best)


class Gmp(Oracle):
    """Zhu & Gupta 2017, arXiv:1710.01878, Sec. 3, pruned globally as GraNet's baseline (arXiv:2106.10404, Sec. 4.1)."""

    defaults = {"prune_end": 0.5}  # noqa: RUF012
    start = 0.0

    def prune_steps(self):
        """Return the pruning updates: every dt steps up to t_f, before the run's last step."""
        end = moment(self.prune_end, self.total_steps)
        return [step for step in self.every(self.update_every, self.total_steps) if step <= end]

    def update_steps(self):
        """Prune until t_f and never again."""
        return self.prune_steps()

    def planned(self, step):
        """Return Eq. 1 after k of n pruning updates, t0 = 0; s_i itself before the first."""
        steps = self.prune_steps()
        done = sum(s <= step for s in steps)
        return cubic(self.start, self.sparsity, done / len(steps)) if done else self.start

    def first(self, weights, gradients, hessian_gradients, draw):
        """Start dense."""
        return {name: np.ones(weight.shape, bool) for name, weight in weights.items()}

    def prune(self, step, weights, masks):
        """Return the largest |w| of the whole network among the active ones, down to the budget."""
        kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
        return best_of_all(magnitudes(weights), kept, masks, self.best)

    def update(self, step, weights, masks, gradients, draw):
        """Prune; what is pruned stays away."""
        return self.prune(step, weights, masks)


class Exchange(Oracle):
    """Drop and grow in each layer, as many as were dropped: what RigL, SET and GraNet have in common."""

    round_drop = staticmethod(math.floor)

    def drops(self, step, active):
        """Return how many of a layer's active weights are dropped."""
        return self.round_drop(self.rate(step) * active)

    def keep(self, step, weight, mask):
        """Return which active weights of a layer are not dropped: all but the smallest |w|."""
        active = int(mask.sum())
        return self.best(np.abs(weight), active - self.drops(step, active), mask)

    def growth(self, name, gradients, draw):
        """Return by what weights are grown: the size of the dense gradient."""
        return np.abs(gradients[name])

    def candidates(self, mask, kept):
        """Return which weights may be grown: all that were not kept, those dropped a moment ago included."""
        return ~kept

    def exchange(self, step, weights, masks, gradients, draw):
        """Return the masks after one drop and one growth in each layer."""
        result = {}
        for name, mask in masks.items():
            kept = self.keep(step, weights[name], mask)
            missing = int(mask.sum()) - int(kept.sum())
            result[name] = kept | self.best(self.growth(name, gradients, draw), missing, self.candidates(mask, kept))
        return result

    def update(self, step, weights, masks, gradients, draw):
        """Exchange, and nothing else."""
        return self.exchange(step, weights, masks, gradients, draw)


class Rigl(Exchange):
    """Evci 2020, arXiv:1911.11134, Sec. 3 and Alg. 1."""

    defaults = {"prune_rate": 0.3, "update_every": 100, "update_end": 0.75, "distribution": "erk"}  # noqa: RUF012
    replaces_step = True  # Alg. 1: the branch of an update has no SGD step
    dense_gradients = "at updates"

    def update_steps(self):
        """Every dt steps while t < T_end."""
        return self.every(self.update_every, moment(self.update_end, self.total_steps))

    def rate(self, step):
        """Return f_decay(t; alpha, T_end) = alpha / 2 (1 + cos(t pi / T_end)), Sec. 3 (2)."""
        return cosine(self.prune_rate, 0.0, step / moment(self.update_end, self.total_steps))


class RiglItop(Exchange):
    """Liu 2021, arXiv:2102.02887, Sec. 4: RigL's exchange, rarely, to the end of the run, the drop rounded up."""

    defaults = {"prune_rate": 0.5, "final_prune_rate": 0.005, "distribution": "erk"}  # noqa: RUF012
    dense_gradients = "at updates"
    round_drop = staticmethod(math.ceil)

    def update_steps(self):
        """Every dt steps before the run's last."""
        return self.every(self.update_every, self.total_steps)

    def rate(self, step):
        """Return the rate annealed over the whole run."""
        return cosine(self.prune_rate, self.final_prune_rate, step / self.total_steps)


class RiglItopFilter(RiglItop):
    """RigL-ITOP, grown by each weight's share of the gradient of its filter."""

    def growth(self, name, gradients, draw):
        """Return the size of the gradient, every filter's of length one; zero where all of a filter's are zero."""
        shares = np.abs(gradients[name]).astype(np.float64)
        for place, row in enumerate(shares):
            length = math.sqrt(float((row * row).ravel().sum()))
            shares[place] = row / length if length > 0 else 0
        return shares


class Srigl(Rigl):
    """Lasby 2024, arXiv:2305.02299, Sec. 3: RigL with a constant fan-in, and neurons ablated below gamma of it."""

    defaults = {**Rigl.defaults, "gamma": 0.3}  # noqa: RUF012

    def planned(self, step):
        """Promise no count: it is what whole fan-ins make."""

    def fans(self, weights):
        """Return each layer's fan-in: its share in whole inputs a neuron, then one more where most is left over."""
        total = budget(self.sparsity, sum(weight.size for weight in weights.values()))
        counts = layer_counts({name: weight.shape for name, weight in weights.items()}, total, self.distribution)
        fans = {name: max(1, counts[name] // len(weight)) for name, weight in weights.items()}
        used = sum(fans[name] * len(weight) for name, weight in weights.items())
        for name in sorted(weights, key=lambda name: -(counts[name] % len(weights[name]) / len(weights[name]))):
            size = len(weights[name])
            if counts[name] > fans[name] * size and used + size <= total:
                fans[name] += 1
                used += size
        return fans

    def first(self, weights, gradients, hessian_gradients, draw):
        """Return the largest draws of each neuron."""
        fans, masks = self.fans(weights), {}
        for name in weights:
            drawn = draw(name, "mask")
            masks[name] = np.stack([self.best(row, fans[name], np.ones(row.shape, bool)) for row in drawn])
        return masks

    def survivors(self, name, salient, fan):
        """Return which neurons have gamma times the fan-in of salient weights; one at least, in the last layer all."""
        counts = salient.reshape(len(salient), -1).sum(1)
        alive = [name == self.last or bool(count >= self.gamma * fan) for count in counts]
        return alive if any(alive) else [place == int(np.argmax(counts)) for place in range(len(counts))]

    def update(self, step, weights, masks, gradients, draw):
        """Keep and grow in neurons that stay, to the fan-in that the ablated ones leave them."""
        fans, result = self.fans(weights), {}
        for name, mask in masks.items():
            size, slope, fan = np.abs(weights[name]), np.abs(gradients[name]), fans[name]
            if fan == mask[0].size:
                result[name] = mask
                continue
            kept = self.keep(step, weights[name], mask)
            grown = self.best(slope, int(mask.sum()) - int(kept.sum()), np.ones(mask.shape, bool))
            alive = self.survivors(name, kept | grown, fan)
            fan = min(mask[0].size, fan * len(mask) // sum(alive))
            among = mask & np.array(alive).reshape(-1, *[1] * (mask.ndim - 1))
            stay = self.best(size, min(int(kept.sum()), int(among.sum())), among)
            result[name] = np.zeros(mask.shape, bool)
            for row in np.flatnonzero(alive):
                few = self.best(size[row], min(fan, int(stay[row].sum())), stay[row])
                result[name][row] = few | self.best(slope[row], fan - int(few.sum()), ~few)
        return result


class GraNet(Gmp, RiglItop):
    """Liu 2021, arXiv:2106.10404, Alg. 2: gradual pruning (Eq. 1), then zero-cost neuroregeneration (Eqs. 2 and 3)."""

    defaults = {  # noqa: RUF012
        "start_sparsity": 0.5,
        "prune_rate": 0.5,
        "final_prune_rate": 0.005,
        "prune_end": 0.5,
        "distribution": "erk",
    }
    first = Oracle.first

    @property
    def start(self):
        """The sparsity s_i of Eq. 1."""
        return self.start_sparsity

    def update_steps(self):
        """Regeneration goes on after t_f: every dt steps before the run's last."""
        return self.every(self.update_every, self.total_steps)

    def update(self, step, weights, masks, gradients, draw):
        """Prune globally (Eq. 1), drop the share r of each layer by |w| (Eq. 2), grow as many by |g| (Eq. 3)."""
        return self.exchange(step, weights, self.prune(step, weights, masks), gradients, draw)

    def stages(self, step, weights, masks, *shown):
        """Set what Eq. 1 prunes to zero first; what Eq. 2 drops and Eq. 3 regrows keeps its value."""
        result = Oracle.stages(self, step, weights, masks, *shown)
        return [self.prune(step, weights, masks), *result] if step else result


class GraNetLate(GraNet):
    """GraNet from a dense network that nothing touches until t0, as its authors' FLOPs counter has it."""

    defaults = {  # noqa: RUF012
        "prune_start": 0.05,
        "prune_rate": 0.5,
        "final_prune_rate": 0.005,
        "prune_end": 0.5,
    }
    first, start = Gmp.first, 0.0

    def late(self, steps):
        """Return the steps that come after t0."""
        return [step for step in steps if step > moment(self.prune_start, self.total_steps)]

    def prune_steps(self):
        """Prune from t0 on."""
        return self.late(Gmp.prune_steps(self))

    def update_steps(self):
        """Regenerate from t0 on."""
        return self.late(GraNet.update_steps(self))


def even_but_last(shapes, total, last, most):
    """Return uniform counts: GraNet, App. C.3, as Gale 2019, Sec. 3: the last layer at density 0.2 above 80 % sparsity.

    No layer gets more than `most`, what it has; the others take what is left over.
    """
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    fixed = {}
    if last in size and total / sum(size.values()) < 0.2:
        rest = sum(count for name, count in most.items() if name != last)
        fixed[last] = max(total - rest, min(math.ceil(size[last] / 5), most[last], total))
    free = {name: most[name] for name in size if name not in fixed}
    return {**fixed, **divide(free, {name: size[name] for name in free}, total - sum(fixed.values()))}


class GmpUniform(Gmp):
    """Zhu & Gupta 2017, Sec. 3, every layer to the same sparsity: GraNet, App. C.3."""

    def prune(self, step, weights, masks):
        """Return the largest |w| of each layer, as many as its share of the budget."""
        kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
        shapes = {name: weight.shape for name, weight in weights.items()}
        counts = even_but_last(shapes, kept, self.last, {name: int(mask.sum()) for name, mask in masks.items()})
        return {name: self.best(np.abs(weights[name]), counts[name], mask) for name, mask in masks.items()}


class GraNetUniform(GmpUniform, GraNet):
    """Liu 2021, App. C.3: Eq. 1 layer by layer from a uniform start; Eqs. 2 and 3 as they are."""

    def first(self, weights, gradients, hessian_gradients, draw):
        """Return the random start, uniform too."""
        shapes = {name: weight.shape for name, weight in weights.items()}
        size = {name: weight.size for name, weight in weights.items()}
        counts = even_but_last(shapes, budget(self.planned(0), sum(size.values())), self.last, size)
        return {n: self.best(draw(n, "mask"), counts[n], np.ones(shape, bool)) for n, shape in shapes.items()}

    prune_steps = Gmp.prune_steps
    update_steps = GraNet.update_steps
    update = GraNet.update
    stages = GraNet.stages


def take_filters(rows, room, rooms=None, best_first=False):
    """Return which (layer, row) of `rows`, each (layer, row, score, size), are taken, the best first while they fit.

    rooms: what a layer may take at most, which does not hold for the best of a layer where these come first.
    """
    ranked = sorted((row for row in rows if row[3]), key=lambda row: -row[2])  # stable
    best = []
    if best_first:
        for layer in dict.fromkeys(row[0] for row in rows):
            best += [row for row in ranked if row[0] == layer][:1]
    taken, left = set(), dict(rooms or {})
    for row in [row for row in ranked if row in best] + [row for row in ranked if row not in best]:
        layer, place, _, size = row
        if size > room or (rooms is not None and row not in best and size > left[layer]):
            continue
        taken.add((layer, place))
        room -= size
        left[layer] = left.get(layer, 0) - size
    return taken


def rows_of(arrays, masks):
    """Return (layer, row, score, size) of each filter: the L1 norm (Li 2017, Sec. 3.1) and number of its weights."""
    rows = []
    for name, mask in masks.items():
        for place in range(len(mask)):
            score = float(np.abs(arrays[name][place].astype(np.float64))[mask[place]].sum())
            rows.append((name, place, score, int(mask[place].sum())))
    return rows


def only_rows(mask, name, taken):
    """Return the mask within the filters that are taken."""
    keep = np.array([(name, place) in taken for place in range(len(mask))])
    return mask & keep.reshape(-1, *[1] * (mask.ndim - 1))


def largest_filters(weights, count, masks, last, scope):
    """Return masks of the largest filters that fit into `count` weights, all of the last layer's among them."""
    pruned = {name: mask for name, mask in masks.items() if name != last}
    room = max(0, count - int(masks[last].sum()) if last in masks else count)
    room = min(room, sum(int(mask.sum()) for mask in pruned.values()))
    rooms = None
    if scope == "layer" and room:
        rooms = layer_counts({name: (int(mask.sum()),) for name, mask in pruned.items()}, room, "uniform")
    taken = take_filters(rows_of(weights, pruned), room, rooms, best_first=True)
    return {name: only_rows(mask, name, taken) if name in pruned else mask for name, mask in masks.items()}


def regrown_filters(gradients, kept, like, scope, among=None):
    """Return `kept` and the filters of the largest summed |g| among the empty ones, as many weights as in `like`.

    among: the weights that a filter gets; without it those it had in `like`, or all where it had none.
    """
    new = {}
    for name, mask in kept.items():
        had = like[name] | ~like[name].reshape(len(mask), -1).any(1).reshape(-1, *[1] * (mask.ndim - 1))
        had = had if among is None else among[name]
        new[name] = had & ~mask.reshape(len(mask), -1).any(1).reshape(-1, *[1] * (mask.ndim - 1))
    missing = {name: int(like[name].sum()) - int(mask.sum()) for name, mask in kept.items()}
    taken = take_filters(rows_of(gradients, new), sum(missing.values()), missing if scope == "layer" else None)
    return {name: mask | only_rows(new[name], name, taken) for name, mask in kept.items()}


def fours(array):
    """Return an array's groups of four consecutive inputs, one a row; None where its inputs are no multiple of 4."""
    return np.moveaxis(array, 1, -1).reshape(-1, 4) if array.shape[1] % 4 == 0 else None


def from_fours(groups, shape):
    """Return groups in the shape they were taken from."""
    return np.moveaxis(groups.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def largest_of_four(weights, n, share, masks, best):
    """Return masks with `n` of 4 (Mishra 2021) in a share of the groups: those that have so few, then the cheapest."""
    groups = []
    for name, mask in masks.items():
        if fours(mask) is None:
            continue
        for place, (values, active) in enumerate(zip(np.abs(fours(weights[name])), fours(mask), strict=True)):
            kept = best(values, min(n, int(active.sum())), active)
            lost = values[active & ~kept].astype(np.float64).sum() if active.sum() > n else -1.0
            groups.append((lost, name, place, kept))
    order = sorted(range(len(groups)), key=lambda i: groups[i][0])  # stable
    result = {name: mask.copy() for name, mask in masks.items()}
    for i in order[: round(share * len(groups))]:
        _, name, place, kept = groups[i]
        changed = fours(result[name]).copy()
        changed[place] = kept
        result[name] = from_fours(changed, result[name].shape)
    return result


N_OF_FOUR = {"2:4": 2, "1:4": 1}


class GmpStructured(Gmp):
    """Zhu & Gupta's schedule, the filters of the smallest L1 norm (Li 2017, arXiv:1608.08710) or groups to N:M."""

    defaults = {"prune_end": 0.5, "pattern": "filters", "scope": "global"}  # noqa: RUF012

    def prune(self, step, weights, masks):
        """Return the largest filters, or the N largest of four in the schedule's share of the groups."""
        if self.pattern == "filters":
            kept = budget(self.planned(step), sum(weight.size for weight in weights.values()))
            return largest_filters(weights, kept, masks, self.last, self.scope)
        share = self.planned(step) / self.sparsity
        return largest_of_four(weights, N_OF_FOUR[self.pattern], share, masks, self.best)


class GraNetStructured(GmpStructured, RiglItop):
    """GraNet's Eqs. 1 to 3 on filters, scored as in its Section 3, or within groups of four."""

    defaults = {  # noqa: RUF012
        "prune_rate": 0.5,
        "final_prune_rate": 0.005,
        "prune_end": 0.5,
        "pattern": "filters",
        "scope": "global",
    }
    first = Gmp.first
    update_steps = GraNet.update_steps

    def stages(self, *shown):
        """Set what Eq. 1 prunes to zero first, where it prunes weights; a filter that comes back keeps its values."""
        return (Oracle if self.pattern == "filters" else GraNet).stages(self, *shown)

    def update(self, step, weights, masks, gradients, draw):
        """Prune (Eq. 1), drop (Eq. 2), grow (Eq. 3); filters, among those that were alive when the update began."""
        pruned = self.prune(step, weights, masks)
        if self.pattern != "filters":
            return self.exchange(step, weights, pruned, gradients, draw)
        return regrown_filters(gradients, self.drop_filters(step, weights, pruned), pruned, "layer", self.alive(masks))

    def alive(self, masks):
        """Return the weights of the filters that may come back."""
        return masks

    def drop_filters(self, step, weights, masks):
        """Return the masks without the share r of each layer's filters, the smallest by L1 norm."""
        kept = {}
        for name, mask in masks.items():
            alive = mask.reshape(len(mask), -1).any(1)
            sums = np.array([score for _, _, score, _ in rows_of(weights, {name: mask})])
            stay = self.best(sums, int(alive.sum()) - self.drops(step, int(alive.sum())), alive)
            kept[name] = mask & stay.reshape(-1, *[1] * (mask.ndim - 1))
        return kept

    def exchange(self, step, weights, masks, gradients, draw):
        """Drop the share r of each layer's weights; grow as many in each group."""
        result = {}
        for name, mask in masks.items():
            kept = self.keep(step, weights[name], mask)
            result[name] = mask if fours(mask) is None else self.refill(name, mask, kept, gradients)
        return result

    def refill(self, name, mask, kept, gradients):
        """Return `kept` with every group filled up to its count in `mask`, by |g|."""
        rows = zip(fours(mask), fours(kept), np.abs(fours(gradients[name])), strict=True)
        full = [had | self.best(size, int(was.sum()) - int(had.sum()), ~had) for was, had, size in rows]
        return from_fours(np.array(full), mask.shape)


class OneShot(Oracle):
    """GraNet, Section 3: one magnitude pruning of what is active, with or without as many regrown by gradient."""

    defaults = {"rate": 0.0, "scope": "global", "pattern": "none", "regrow": False}  # noqa: RUF012

    def scoring(self):
        """One gradient of the loss, where something is regrown."""
        return {"order": 1, "batches": 1, "samples_per_class": 0, "temperature": 1.0} if self.regrow else None

    def prune(self, weights, masks, kept):
        """Return the `kept` largest of the active weights, or of their filters, together or in each layer."""
        if self.pattern == "filters":
            return largest_filters(weights, kept, masks, self.last, self.scope)
        if self.scope == "global":
            return best_of_all(magnitudes(weights), kept, masks, self.best)
        counts = layer_counts({name: (int(mask.sum()),) for name, mask in masks.items()}, kept, "uniform")
        return {name: self.best(np.abs(weights[name]), counts[name], mask) for name, mask in masks.items()}

    def regrow_as_many(self, gradients, pruned, masks):
        """Return the masks with as many active as before, by |g| among all that are inactive."""
        if self.pattern == "filters":
            return regrown_filters(gradients, pruned, masks, self.scope)
        size, inactive = magnitudes(gradients), {name: ~mask for name, mask in pruned.items()}
        missing = {name: int(masks[name].sum()) - int(mask.sum()) for name, mask in pruned.items()}
        if self.scope == "global":
            grown = best_of_all(size, sum(missing.values()), inactive, self.best)
        else:
            grown = {name: self.best(size[name], missing[name], inactive[name]) for name in missing}
        return {name: mask | grown[name] for name, mask in pruned.items()}

    def stages(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Prune; where asked, grow what starts from zero."""
        if self.pattern in N_OF_FOUR:
            return [largest_of_four(weights, N_OF_FOUR[self.pattern], 1.0, masks, self.best)]
        active = sum(int(mask.sum()) for mask in masks.values())
        if not self.regrow:
            return [self.prune(weights, masks, budget(self.sparsity, sum(mask.size for mask in masks.values())))]
        pruned = self.prune(weights, masks, budget(self.rate, active))
        return [pruned, self.regrow_as_many(gradients, pruned, masks)]


class Set(Exchange):
    """Mocanu 2018, arXiv:1707.04780, Alg. 1: zeta of the smallest positive and of the largest negative weights go."""

    defaults = {"prune_rate": 0.3, "per_sign": True, "update_every": 0, "distribution": "erk"}  # noqa: RUF012

    def update_steps(self):
        """After each epoch, or every so many steps where asked, before the run's last step."""
        return self.every(self.update_every or self.steps_per_epoch, self.total_steps)

    def rate(self, step):
        """Return zeta, the same at every update."""
        return self.prune_rate

    def signs(self, weight, mask):
        """Return the groups that are dropped from apart: positive weights, zero among them, and negative ones."""
        return [mask & (weight >= 0), mask & (weight < 0)]

    def keep(self, step, weight, mask):
        """Return the weights furthest from zero, of each sign apart where asked."""
        groups = self.signs(weight, mask) if self.per_sign else [mask]
        kept = np.zeros(mask.shape, bool)
        for group in groups:
            active = int(group.sum())
            kept |= self.best(np.abs(weight), active - self.drops(step, active), group)
        return kept

    def growth(self, name, gradients, draw):
        """Return random numbers: SET grows blindly."""
        return draw(name, "grow")

    def stages(self, step, weights, masks, *shown):
        """Remove first: Alg. 1 adds new connections, so one that is drawn again starts anew."""
        result = Oracle.stages(self, step, weights, masks, *shown)
        return [{n: self.keep(step, weights[n], mask) for n, mask in masks.items()}, *result] if step else result


class AcDc(Gmp):
    """Peste 2021, arXiv:2106.12379, Alg. 1, with the phases of its ImageNet configuration as shares of the run."""

    defaults = {"warm_up": 0.1, "phase": 0.05, "last_dense": 0.75, "last_compressed": 0.85}  # noqa: RUF012

    def plan(self):
        """Return (step, whether it compresses), back from the last compression, phase by phase."""
        length = math.floor(moment(self.phase, self.total_steps))
        step, share, found = round(moment(self.last_compressed, self.total_steps)), self.last_compressed, []
        while length and share > self.warm_up - self.phase / 2:
            found.append((step, share))
            step, share = step - length, share - self.phase
        found.reverse()
        dense_until_last = self.last_dense - self.phase / 2
        compresses = [share < dense_until_last and place % 2 == 0 for place, (_, share) in enumerate(found)]
        compresses[-1:] = [True] * len(compresses[-1:])
        return [(step, compress) for (step, _), compress in zip(found, compresses, strict=True)]

    def update_steps(self):
        """Return where phases begin."""
        return [step for step, _ in self.plan()]

    def planned(self, step):
        """Return the full sparsity in a compressed phase, none in a dense one."""
        begun = [compress for first, compress in self.plan() if first <= step]
        return self.sparsity if begun and begun[-1] else 0.0

    def prune(self, step, weights, masks):
        """Return the largest of all weights; those that came back from zero are ranked too."""
        return Gmp.prune(self, step, weights, {name: np.ones(mask.shape, bool) for name, mask in masks.items()})


class Mest(Oracle):
    """Yuan 2021, arXiv:2110.14032, scheduled as in its code: prune to a lower bound, grow at random to an upper."""

    defaults = {  # noqa: RUF012
        "prune_rate": 0.2,
        "soft": 0.0,
        "halve_at": 0.5625,
        "update_end": 0.75,
        "distribution": "erk",
    }

    def update_steps(self):
        """Every dt steps until the first at which nothing is exchanged any more."""
        steps = []
        for step in self.every(self.update_every, self.total_steps):
            steps.append(step)
            if step >= moment(self.update_end, self.total_steps):
                break
        return steps

    def left(self, step):
        """Return 1, a half or nothing, by the phase in which the last planned update fell."""
        last = max([planned for planned in self.update_steps() if planned <= step], default=0)
        if last >= moment(self.update_end, self.total_steps):
            return 0
        return 0.5 if last >= moment(self.halve_at, self.total_steps) else 1

    def planned(self, step):
        """Return the upper bound: denser than the target in EM&S."""
        return self.sparsity - self.left(step) * self.soft

    def pruned(self, step, weights, masks):
        """Return, from the counts after the update, each layer's largest weights down to the lower bound."""
        total = sum(weight.size for weight in weights.values())
        had = {name: (int(mask.sum()),) for name, mask in masks.items()}
        upper = layer_counts(had, budget(self.planned(step), total), "uniform")
        mutated = self.left(step) * self.prune_rate * (1 - self.sparsity) if self.soft == 0 else 0
        lower = budget(self.sparsity + mutated, total)
        lower = layer_counts({name: (count,) for name, count in upper.items()}, lower, "uniform")
        return {n: self.best(np.abs(weights[n]), lower[n], mask) for n, mask in masks.items()}, upper

    def growth(self, name, gradients, draw):
        """Return random numbers."""
        return draw(name, "grow")

    def stages(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Set to zero what is pruned, then grow."""
        if step == 0:
            return [self.first(weights, gradients, hessian_gradients, draw)]
        kept, upper = self.pruned(step, weights, masks)
        grown = {}
        for name, mask in kept.items():
            new = self.best(self.growth(name, gradients, draw), upper[name] - int(mask.sum()), ~mask)
            grown[name] = mask | new
        return [kept, grown]


ORACLES = {
    "ac_dc": AcDc,
    "mest": Mest,
    "dense": Dense,
    "small_dense": Dense,
    "static": Static,
    "snip": Snip,
    "grasp": Grasp,
    "gmp": Gmp,
    "set": Set,
    "rigl": Rigl,
    "rigl_itop": RiglItop,
    "rigl_itop_filter": RiglItopFilter,
    "srigl": Srigl,
    "granet": GraNet,
    "gmp_uniform": GmpUniform,
    "granet_uniform": GraNetUniform,
    "granet_late": GraNetLate,
    "gmp_structured": GmpStructured,
    "granet_structured": GraNetStructured,
    "one_shot": OneShot,
}
