"""Oracles of the methods that move weights by more than a mask: Top-KAST, SNFS, Deep-R and DSR.

Beside the masks each leaves in `beside` what an update returns: `values` (not a number where there is none), `state`
and `trained`. `view` holds what else a method is shown: `stored`, `state`, `lr`, and draws by name and purpose.
`imagine(dense, layers, rng)` makes up stored weights and state that fit made-up weights.
"""

from __future__ import annotations

import math

import numpy as np

from tests.harness.oracles import ORACLES, Oracle, best, best_of_all, budget, cosine, layer_counts, moment

WRN = (1 / 8, 2 / 5, 7 / 10)  # epochs 25, 80 and 140 of 200
RESNET50 = (1 / 4, 1 / 2, 3 / 4)  # epochs 25, 50 and 75 of 100


def phase(schedule, share):
    """Return how many bounds of a schedule lie at or before this share of the run."""
    return sum(share >= bound for bound in {"wrn": WRN, "resnet50": RESNET50}[schedule])


def total_of(weights):
    """Return the number of weights."""
    return sum(weight.size for weight in weights.values())


class TopKast(Oracle):
    """Jayakumar 2020, arXiv:2106.03517, Sec. 2: A = top D, B = top D + M of each layer, every N steps."""

    defaults = {"extra": 1.0, "explore": 1e-4, "update_every": 100, "explore_end": 1.0, "distribution": "erk"}  # noqa: RUF012
    best = staticmethod(best)

    def update_steps(self):
        """Every N steps; with an end, up to the first at or after it."""
        end, steps = moment(self.explore_end, self.total_steps), []
        for step in self.every(self.update_every, self.total_steps):
            steps.append(step)
            if step >= end:
                break
        return steps

    def sets(self, step, stored):
        """Return A and B."""
        shapes, size = {n: w.shape for n, w in stored.items()}, total_of(stored)
        inner = layer_counts(shapes, budget(self.sparsity, size), self.distribution)
        more = round((1 + self.extra) * budget(self.sparsity, size))
        outer = layer_counts(shapes, min(size, more), self.distribution)
        over = step >= moment(self.explore_end, self.total_steps)
        a, b = {}, {}
        for name, weight in stored.items():
            everything = np.ones(weight.shape, bool)
            a[name] = self.best(np.abs(weight), inner[name], everything)
            b[name] = a[name] if over else self.best(np.abs(weight), max(inner[name], outer[name]), everything)
        return a, b

    def stages(self, step, *shown):
        """Return A; B is what is trained."""
        a, b = self.sets(step, self.view["stored"])
        self.beside = {"trained": b}
        return [a]

    def penalty(self, stored, masks):
        """Return the slope of lambda |w| in A and of lambda |w| / D outside: what is added to gradients in B."""
        rates = {True: self.explore, False: self.explore / (1 - self.sparsity)}
        return {n: np.where(masks[n], rates[True], rates[False]) * np.sign(w) for n, w in stored.items()}

    def imagine(self, dense, layers, rng):
        """Stored weights: those outside the masks are there too."""
        return {"stored": dense}


class Snfs(Oracle):
    """Dettmers & Zettlemoyer 2019, arXiv:1907.04840, Alg. 1, and its code's core.py; redistribute=false: RigL's."""

    defaults = {  # noqa: RUF012
        "prune_rate": 0.5,
        "final_prune_rate": 0.005,
        "redistribute": True,
        "update_every": 0,
        "update_end": 1.0,
        "distribution": "erk",
    }
    dense_gradients = "every step"
    alpha = 0.9
    best = staticmethod(best)

    def update_steps(self):
        """Momentum moves at each step."""
        return list(range(1, self.total_steps + 1))

    def mask_steps(self):
        """Masks change at the end of epochs, or every so many steps."""
        end = min(moment(self.update_end, self.total_steps), self.total_steps)
        return self.every(self.update_every or self.steps_per_epoch, end)

    def stages(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Average the gradients; at some steps exchange weights."""
        if step == 0:
            self.beside = {"state": {n: np.zeros_like(w) for n, w in weights.items()}}
            return [self.first(weights, gradients, hessian_gradients, draw)]
        state = self.view["state"]
        momentum = {n: self.alpha * state[n] + (1 - self.alpha) * gradients[n] for n in weights}
        self.beside = {"state": dict(momentum)}
        so_far = len([s for s in self.mask_steps() if s <= step])  # that should have been made by now
        if so_far <= int(state.get("exchanges", 0)):
            return []
        self.beside["state"]["exchanges"] = np.array(step // (self.update_every or self.steps_per_epoch))
        return [self.exchanged(step, weights, masks, {n: np.abs(m) for n, m in momentum.items()})]

    def rate(self, step):
        """Return r by its cosine."""
        share = min(1.0, step / moment(self.update_end, self.total_steps))
        return cosine(self.prune_rate, self.final_prune_rate, share)

    def removals(self, step, masks, part):
        """Return how many weights each layer loses."""
        counts = {}
        for name, mask in masks.items():
            active, zeros, rate = int(mask.sum()), int((~mask).sum()), self.rate(step)
            if not self.redistribute:
                counts[name] = math.floor(rate * active)
                continue
            if zeros / mask.size < 0.2 and part[name] > 1 / len(masks):
                rate = min(zeros / mask.size, rate)
            counts[name] = math.ceil(rate * active)
        return counts

    def regrowth(self, lost, masks, part):
        """Return how many weights each layer gets: its part, at most 0.99 of its places; what is over to all alike."""
        if not self.redistribute:
            return lost
        total, room = sum(lost.values()), {n: int((~mask).sum()) + lost[n] for n, mask in masks.items()}
        wish, rounds = {n: part[n] * total for n in masks}, 0
        while rounds < 1000:
            excess = [max(0.0, wish[n] - 0.99 * room[n]) for n in masks]
            wish = {n: min(wish[n], 0.99 * room[n]) + math.fsum(excess) / len(masks) for n in masks}
            rounds += 1
            if not any(excess):
                break
        counts = {n: math.floor(min(wish[n], 0.99 * room[n])) for n in masks}
        while sum(counts.values()) < total:  # the largest remainder first, one each, as long as it takes
            for name in sorted(masks, key=lambda n: math.floor(min(wish[n], 0.99 * room[n])) - wish[n]):
                if sum(counts.values()) < total and counts[name] < room[name]:
                    counts[name] += 1
        return counts

    def parts(self, masks, size):
        """Return each layer's part of the sum of mean |M| of active weights."""
        means = {}
        for name, mask in masks.items():
            total = float((size[name].astype(np.float64) * mask).sum())
            means[name] = total / int(mask.sum()) if mask.any() else 0.0
        whole = math.fsum(means.values())
        return {n: mean / whole if whole else 0.0 for n, mean in means.items()}

    def exchanged(self, step, weights, masks, size):
        """Return the masks after one removal and one growth; what was removed may be grown."""
        part, result = self.parts(masks, size), {}
        lost = self.removals(step, masks, part)
        gained = self.regrowth(lost, masks, part)
        for name, mask in masks.items():
            kept = self.best(np.abs(weights[name]), int(mask.sum()) - lost[name], mask)
            result[name] = kept | self.best(size[name], gained[name], ~kept)
        return result

    def imagine(self, dense, layers, rng):
        """Momentum of every kind, ties and zeros among it; no exchange was made yet."""
        kinds = [rng.standard_normal, lambda shape: rng.choice([-0.5, 0.25, 0.0], shape), np.zeros]
        make = kinds[int(rng.integers(len(kinds)))]
        return {"state": {n: make(w.shape).astype(np.float32) for n, w in dense.items()}}


class DeepR(Oracle):
    """Bellec 2018, arXiv:1711.05136, Alg. 1; form=cnn: Mostafa & Wang 2019, prune_sign_change and grow_random."""

    defaults = {"form": "original", "l1": 1e-5, "noise": 1e-5, "schedule": "wrn", "distribution": "erk"}  # noqa: RUF012
    best = staticmethod(best)
    new = 1e-12

    def update_steps(self):
        """After every step; the cnn form up to epoch 190 of 200."""
        share = 1.0 if self.form == "original" else 0.95
        return [step for step in range(1, self.total_steps + 1) if step - 1 < moment(share, self.total_steps)]

    def signs(self, weights):
        """Return the fixed sign of each position."""
        return {n: np.where(self.view["uniform"](n, "sign", True) < 0.5, -1, 1).astype(np.float32) for n in weights}

    def dies(self, name, weight, mask):
        """Return which active weights of a layer are cut, and what the others are."""
        if self.form == "cnn":
            return mask & (np.sign(weight) * self.view["state"][name] < 0), weight
        sign = self.signs({name: weight})[name]
        theta = weight * sign
        theta = theta + self.view["lr"] * (self.noise * self.view["normal"](name, "noise") - self.l1)
        return mask & ~(theta > 0), theta * sign

    def stages(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Cut; connect as many of each layer at random, so that what is cut starts anew where it is drawn."""
        if step == 0:
            first = self.first(weights, gradients, hessian_gradients, draw)
            signs = self.signs(weights)
            self.leave(
                {n: np.abs(w) * signs[n] for n, w in weights.items()} if self.form == "original" else weights, first
            )
            return [first]
        kept, after, values = {}, {}, {}
        for name, mask in masks.items():
            dead, value = self.dies(name, weights[name], mask)
            kept[name] = mask & ~dead
            grown = self.drawn(name, mask, dead)
            after[name] = kept[name] | grown
            values[name] = np.where(grown, np.float32(self.new) * self.signs({name: mask})[name], value)
        self.leave(values if self.form == "original" else weights, after, kept)
        return [kept, after]

    def leave(self, values, after, kept=None):
        """Leave what the update returns: values of active weights, or the signs that the next one compares with."""
        if self.form == "original":
            self.beside = {"values": {n: np.where(after[n], v, np.nan) for n, v in values.items()}}
        else:
            kept = after if kept is None else kept
            self.beside = {"state": {n: np.sign(v) * kept[n] for n, v in values.items()}}

    def drawn(self, name, mask, dead):
        """Return as many dormant positions as were cut; in the cnn form those before the just-cut."""
        draws = self.view["uniform"](name, "grow")
        if self.form == "original":
            return self.best(draws, int(dead.sum()), ~mask | dead)
        fresh = self.best(draws, min(int(dead.sum()), int((~mask).sum())), ~mask)
        return fresh | self.best(draws, int(dead.sum()) - int(fresh.sum()), dead)

    def penalty(self, step, weights):
        """Return what is added to the gradients before a step: the slope of l1 |w|, and noise while it is hot."""
        if self.form == "original":
            return {}
        share = (step - 1) / self.total_steps
        heat = [1e-5, 1e-8, 1e-12, 1e-15][phase(self.schedule, share)] if share < 0.95 else 0
        spread = math.sqrt(2 * 0.01 * heat)
        return {n: self.l1 * np.sign(w) + spread * self.view["normal"](n, "noise") for n, w in weights.items()}

    def imagine(self, dense, layers, rng):
        """Signs of the step before, half of them another."""
        return {"state": {n: np.sign(w * rng.choice([-1, 1], w.shape)).astype(np.int8) for n, w in layers.items()}}


class Dsr(Oracle):
    """Mostafa & Wang 2019, arXiv:1902.05967, Alg. 1, and main.py of IntelAI/dynamic-reparameterization."""

    defaults = {  # noqa: RUF012
        "exchange": 0.1,
        "threshold": 1e-3,
        "update_every": 100,
        "schedule": "wrn",
        "distribution": "uniform",
    }
    best = staticmethod(best)

    def update_steps(self):
        """Where the step is a multiple of the period of its epoch, up to epoch 190 of 200."""
        bounds, steps = {"wrn": WRN, "resnet50": RESNET50}[self.schedule], []
        for step in range(1, self.total_steps):
            passed = sum(step > moment(bound, self.total_steps) for bound in bounds)
            if step % (self.update_every * [1, 2, 4, 8][passed]) == 0 and step < moment(0.95, self.total_steps):
                steps.append(step)
        return steps

    def survivors(self, weight, mask, limit):
        """Return what is not below the threshold, or the first weight where all is."""
        kept = mask & ~(np.abs(weight) < limit)
        if mask.any() and not kept.any():
            kept.flat[np.flatnonzero(mask)[0]] = True
        return kept

    def portions(self, total, part, room):
        """Divide `total` by the parts; the rest to layers in a drawn order, and again what does not fit."""
        order = sorted(room, key=lambda name: self.view["key"](name, "rest"))
        given = {name: 0 for name in room}
        while sum(given.values()) < total:
            left, places = total - sum(given.values()), [n for n in order if given[n] < room[n]]
            mass = sum(part[n] for n in places)
            extra = {n: left * part[n] // mass if mass else 0 for n in places}
            rest = left - sum(extra.values())
            for i, name in enumerate(places):
                given[name] = min(room[name], given[name] + extra[name] + (i < rest))
        return given

    def stages(self, step, weights, masks, gradients, hessian_gradients, draw):
        """Remove below H, grow at random by survivors, move H."""
        if step == 0:
            self.beside = {"state": {"threshold": np.array(self.threshold)}}
            return [self.first(weights, gradients, hessian_gradients, draw)]
        limit = float(self.view["state"]["threshold"])
        kept = {n: self.survivors(weights[n], mask, limit) for n, mask in masks.items()}
        gone = {n: int(mask.sum()) - int(kept[n].sum()) for n, mask in masks.items()}
        room = {n: int((~mask).sum()) for n, mask in masks.items()}  # without the just-removed
        removed, active = sum(gone.values()), sum(int(mask.sum()) for mask in masks.values())
        new = self.portions(min(removed, sum(room.values())), {n: int(m.sum()) for n, m in kept.items()}, room)
        back = self.portions(removed - sum(new.values()), gone, gone)
        after = {}
        for name, mask in masks.items():
            draws = self.view["uniform"](name, "grow")
            fresh = self.best(draws, new[name], ~mask)
            after[name] = kept[name] | fresh | self.best(draws, back[name], mask & ~kept[name])
        self.beside = {"state": {"threshold": np.array(self.moved(limit, removed, self.exchange * active))}}
        return [kept, after]

    def moved(self, limit, removed, wanted):
        """Return H after an update that removed so many where N_p were wanted."""
        if removed > 1.1 * wanted:
            return limit / 2
        return limit * 2 if removed < 0.9 * wanted else limit

    def imagine(self, dense, layers, rng):
        """A threshold that takes few, some or all."""
        return {"state": {"threshold": np.array(rng.choice([1e-3, 0.3, 0.5, 4.0]))}}


ORACLES |= {"top_kast": TopKast, "snfs": Snfs, "deep_r": DeepR, "dsr": Dsr}

# Settings that are tried, the first at more sparsities; and oracles that err, each to be told from the method.
VARIANTS = {
    "top_kast": [
        {"update_every": 3},
        {"update_every": 2, "extra": 0.0, "distribution": "uniform"},
        {"update_every": 4, "extra": 30.0, "explore_end": 0.4},
        {"update_every": 6, "explore_end": 0.5, "explore": 0.01},
    ],
    "snfs": [
        {},
        {"update_every": 2, "prune_rate": 1.0, "distribution": "uniform"},
        {"redistribute": False, "prune_rate": 0.3, "final_prune_rate": 0.0, "update_every": 3, "update_end": 0.75},
        {"update_every": 1, "prune_rate": 0.9, "final_prune_rate": 0.4, "sparsity": 0.1},
    ],
    "deep_r": [{}, {"l1": 0.05, "noise": 0.2}, {"form": "cnn", "l1": 0.2}, {"form": "cnn", "schedule": "resnet50"}],
    "dsr": [
        {"update_every": 2},
        {"update_every": 1, "threshold": 0.1, "exchange": 0.5, "schedule": "resnet50"},
        {"update_every": 1, "threshold": 0.5, "distribution": "erk", "sparsity": 0.05},
    ],
}


def by_network(self, step, stored):
    """Return A and B ranked over the whole network."""
    sizes = [budget(self.sparsity, total_of(stored))] * 2
    sizes[1] = min(total_of(stored), 2 * sizes[1])
    everything = {n: np.ones(w.shape, bool) for n, w in stored.items()}
    return [best_of_all({n: np.abs(w) for n, w in stored.items()}, size, everything) for size in sizes]


def fresh_only(self, step, weights, masks, size):
    """Exchange as SNFS does, without growing what was just removed while there is anything else."""
    return Snfs.exchanged(self, step, weights, masks, {n: np.where(masks[n], -1, s) for n, s in size.items()})


WRONG = {
    "top_kast": [
        ("B is A", {"sets": lambda self, step, stored: [TopKast.sets(self, step, stored)[0]] * 2}),
        ("of the network together", {"sets": by_network}),
        (
            "what is inactive is forgotten",
            {"stages": lambda self, step, weights, *rest: forgetful(self, step, weights)},
        ),
    ],
    "snfs": [
        ("no redistribution", {"redistribute": False}),
        ("by the gradient of the step", {"alpha": 0.0}),
        ("the just-removed are no candidates", {"exchanged": fresh_only}),
        (
            "shares by size",
            {"parts": lambda self, masks, size: {n: m.size / total_of(masks) for n, m in masks.items()}},
        ),
    ],
    "deep_r": [
        ("signs at every step", {"signs": lambda self, w: {n: np.sign(self.view["normal"](n, "sign")) for n in w}}),
        ("new weights at zero", {"new": 0.0}),
        ("what is cut and drawn again goes on", {"stages": lambda self, *shown: DeepR.stages(self, *shown)[-1:]}),
    ],
    "dsr": [
        ("H stays", {"moved": lambda self, limit, removed, wanted: limit}),
        ("every layer alike", {"portions": lambda self, total, part, room: Dsr.portions(self, total, room, room)}),
        ("none is kept where all would go", {"survivors": lambda self, w, mask, limit: mask & ~(np.abs(w) < limit)}),
    ],
}


def forgetful(self, step, weights):
    """Choose as Top-KAST does among the values that the network computes with."""
    a, b = self.sets(step, self.view["stored"] if step == 0 else weights)
    self.beside = {"trained": b}
    return [a]
