"""Statistics of comparisons: Welch's and paired t-tests, with 95 % intervals, corrected for multiplicity and rounding.

Rows of a table are compared by Welch's test: pairing by seed would halve the degrees of freedom, and runs of one seed
share little. Paired are a run and the control made from it, or two branches of it. Accuracies are in percent,
differences in points. Everything rests on the t distribution, since three seeds are too few to resample. The tests
check the calibration by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, TypeVar

import numpy as np
from scipy.special import chdtri, nctdtrinc, ndtr, stdtr, stdtrit

ALPHA = 0.05  # two-sided; of a single comparison, and of a family after Holm's correction
POWER = 0.8  # with which a smallest detectable difference is found
NO_SPREAD = 1e-9  # points; the difference of two equal percentages is off by 1e-14 in double precision
ROUNDING = 1e-9  # of degrees of freedom
MOST_SEEDS = 1000  # above which nobody asks how many are needed
LEVELS = 40  # of each sample's spread, over which the power of a test is averaged
MANY = 30  # seeds from which on a spread is known well enough

K = TypeVar("K")


@dataclass(frozen=True)
class Difference:
    """What values say about a difference a - b, in points; `n` is the number of pairs, or of the smaller side's values.

    `sd` is the raw standard deviation of a difference of two values (ddof = 1); `low` and `high` bound the 95 %
    interval; `p` is two-sided; `detectable` is the true difference that so many values find with 80 % power, if
    the true spreads are those seen. All are None if n = 0, all but the mean if n < 2; interval, p and
    detectable also without spread. Invariant: p < 0.05 exactly if the interval excludes zero.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None


def mean_std(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation (ddof = 1), None if there are too few values.

    Raises ValueError for a value that is None, NaN or infinite.
    """
    known = check_values(values)
    n = len(known)
    if n == 0:
        return None, None
    mean = math.fsum(known) / n
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1)) if n > 1 else None


def check_values(values: Iterable[float]) -> list[float]:
    """Return `values` as a list. Raises ValueError for one that is not a finite number."""
    known = list(values)
    for value in known:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"a value to compare must be a finite number, got {value!r}: leave that run out")
    return known


def check_grain(grain: float) -> None:
    """Raise ValueError for a `grain` that is no step of an accuracy."""
    if not math.isfinite(grain) or grain < 0:
        raise ValueError(f"grain must be 100 / number of test images, or 0 for none, got {grain!r}")


def widen(sd: Any, grain: float, accuracies: int) -> Any:
    """Return the standard deviation `sd` with the noise of rounding added, for a sum of that many `accuracies`.

    An accuracy moves in steps of `grain`, so rounding has the variance grain² / 12, and twice that in a difference of
    two accuracies. Seeds that agree to the last image thus do not count as a spread of zero, which would make any
    difference infinitely significant. The noise is added rather than used as a lower bound: with a bound, a t-test at
    seven seeds and a spread of 0.8 steps has 6 % false positives; with the sum, 5 % or fewer at any spread.
    """
    return np.sqrt(np.square(sd) + accuracies * grain**2 / 12)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], grain: float = 0.0) -> Difference:
    """Return a - b over the seeds (the keys) that both have: the paired, two-sided t-test.

    `grain` is 100 / number of test images, the step in which an accuracy moves; see `widen`. Without a grain, equal
    differences have an sd of zero and neither interval nor p, whatever the mean: a spread of zero carries no verdict.
    Raises ValueError for a value that is None or NaN.
    """
    check_grain(grain)
    check_values([*a.values(), *b.values()])
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    mean, sd = mean_std(differences)
    n = len(differences)
    if mean is None or sd is None:
        return Difference(n, mean, sd, None, None, None, None)
    return conclude(n, mean, sd, float(widen(sd, grain, 2)) / math.sqrt(n), n - 1)


def difference_of_means(a: Iterable[float], b: Iterable[float], grain: float = 0.0) -> Difference:
    """Return mean(a) - mean(b) of two independent samples, whatever their spreads: Welch's two-sided t-test, with the
    degrees of freedom of `cautious_error`.

    `grain` as in `paired_difference`. Seeds that two rows share make them a little alike, so the test errs on the safe
    side. Raises ValueError for a value that is None or NaN. Source: Welch, Biometrika 34 (1947).
    """
    check_grain(grain)
    samples = check_values(a), check_values(b)
    (mean_a, sd_a), (mean_b, sd_b) = map(mean_std, samples)
    counts = len(samples[0]), len(samples[1])
    mean = None if mean_a is None or mean_b is None else mean_a - mean_b
    if mean is None or sd_a is None or sd_b is None:
        return Difference(min(counts), mean, None, None, None, None, None)
    squares = np.square(widen(np.array([sd_a, sd_b]), grain, 1)) / counts
    return conclude_welch(min(counts), mean, math.hypot(sd_a, sd_b), (squares[0], squares[1]), counts)


def change_of_difference(
    before: tuple[Iterable[float], Iterable[float]], after: tuple[Iterable[float], Iterable[float]], grain: float = 0.0
) -> Difference:
    """Return mean(a) - mean(b) after, less the same before: two pairs of samples a, b, all four independent.

    Tested as `difference_of_means` tests two, with Satterthwaite's degrees of freedom of the four, halfway to those of
    the smallest. Raises ValueError for a value that is None or NaN. Source: Satterthwaite, Biometrics 2 (1946).
    """
    check_grain(grain)
    samples = [check_values(values) for values in (*after, *before)]
    counts = [len(values) for values in samples]
    if min(counts) < 2:
        return Difference(min(counts), None, None, None, None, None, None)
    means, sds = (np.array(of) for of in zip(*map(mean_std, samples), strict=True))
    error, freedom = map(float, cautious_error(np.square(widen(sds, grain, 1)) / counts, counts))
    return conclude(min(counts), float(means @ (1, -1, -1, 1)), float(np.linalg.norm(sds)), error, freedom)


def difference_from_published(
    ours: Sequence[float], mean: float, std: float | None, n: int = 3, grain: float = 0.0
) -> Difference:
    """Return ours - published, with `mean` ± `std` over `n` published runs, as `difference_of_means` does; `n` of the
    result is ours.

    `std` counts as a sample standard deviation (ddof = 1); a paper that divided by n states it too small, at three runs
    by a factor of 0.82. If it is None or n < 2, the published mean is taken as exact, so the interval is of our mean
    alone and too narrow for the difference: say so beside it. Raises ValueError for a value that is not finite, or a
    negative std.
    """
    check_grain(grain)
    average, sd = mean_std(ours)
    check_values([mean] if std is None else [mean, std])
    if std is not None and std < 0:
        raise ValueError(f"a published standard deviation must be at least 0, got {std!r}")
    if average is None or sd is None:
        return Difference(len(ours), None if average is None else average - mean, None, None, None, None, None)
    of_ours = float(widen(sd, grain, 1)) ** 2 / len(ours)
    if std is None or n < 2:
        return conclude(len(ours), average - mean, sd, math.sqrt(of_ours), len(ours) - 1)
    squares = of_ours, float(widen(std, grain, 1)) ** 2 / n
    return conclude_welch(len(ours), average - mean, math.hypot(sd, std), squares, (len(ours), n))


def welch_error(squares: Sequence[Any], counts: Sequence[Any]) -> tuple[Any, Any]:
    """Return standard error and degrees of freedom of a difference of means; squared errors and counts of each.

    Numbers, or arrays that fit each other. At equal numbers the interval covers the true difference in 94 to 97 % at
    any ratio of spreads. At unequal ones the degrees of freedom are rounded down: 2 against 3 and 10 against 3 would
    cover 91 and 92.7 % at worst, so 93 to 98 %.
    """
    total = sum(squares)
    parts = sum(square**2 / (n - 1) for square, n in zip(squares, counts, strict=True))
    freedom = np.divide(total**2, parts, out=np.ones(np.shape(parts)), where=np.asarray(parts) > 0)
    least, most = bounds_of(counts)
    return np.sqrt(total), np.where(least == most, freedom, np.floor(freedom + ROUNDING))


def bounds_of(counts: Sequence[Any]) -> tuple[Any, Any]:
    """Return the least and the greatest of `counts`, element by element."""
    return reduce(np.minimum, counts), reduce(np.maximum, counts)


def cautious_error(squares: Sequence[Any], counts: Sequence[Any]) -> tuple[Any, Any]:
    """Return what `welch_error` does, with degrees of freedom halfway to those of the smaller sample alone.

    Corrected for dozens of comparisons, a test needs the far tail of the t distribution, where Welch's degrees of
    freedom are too many: of 20 rows of three seeds, one with a fifth of the others' spread, 9 to 14 % of tables would
    lose the best row and not 5 %. Those of the smaller sample are always enough, and wasteful where spreads are alike.
    """
    error, freedom = welch_error(squares, counts)
    return error, (freedom + bounds_of(counts)[0] - 1) / 2


def safest_error(squares: Sequence[Any], counts: Sequence[Any]) -> tuple[Any, Any]:
    """Return what `cautious_error` does, between unequal numbers with the degrees of freedom of the smaller sample.

    Where one row is held against many, even the cautious ones are too many: of 29 rows, the best of ten seeds and the
    others of three with twice its spread, 11 % of tables would lose the best one and not 5 %.
    """
    error, freedom = cautious_error(squares, counts)
    least, most = bounds_of(counts)
    return error, np.where(least == most, freedom, least - 1)


def conclude_welch(n: int, mean: float, sd: float, squares: tuple[float, float], counts: tuple[int, int]) -> Difference:
    """Return the result of Welch's test; `squares` are the squared standard errors of both means, `counts` their n."""
    error, freedom = map(float, cautious_error(squares, counts))
    return conclude(n, mean, sd, error, freedom, welch_shift(*squares, *counts, ALPHA) if error > NO_SPREAD else None)


def conclude(
    n: int, mean: float, sd: float, error: float, freedom: float, detectable: float | None = None
) -> Difference:
    """Return the result of a t-test of `mean` with standard error `error` and `freedom` degrees of freedom.

    `detectable`: in standard errors, where those degrees of freedom are themselves estimated.
    """
    if error <= NO_SPREAD:
        return Difference(n, mean, sd, None, None, None, None)
    half = quantile(freedom, ALPHA) * error
    p = float(p_value(mean, error, freedom))
    found = shift(freedom, ALPHA) if detectable is None else detectable
    return Difference(n, mean, sd, mean - half, mean + half, p, found * error)


def p_value(mean: Any, error: Any, freedom: Any) -> Any:
    """Return the two-sided p of mean / error under the t distribution; numbers or arrays."""
    return 2 * stdtr(freedom, -np.abs(mean) / error)


@lru_cache(maxsize=4096)
def quantile(freedom: float, alpha: float) -> float:
    """Return the upper alpha / 2 quantile of the t distribution."""
    return float(stdtrit(freedom, 1 - alpha / 2))


@lru_cache(maxsize=4096)
def shift(freedom: float, alpha: float) -> float:
    """Return the true difference, in standard errors, that a t-test at `alpha` finds with power POWER.

    The noncentrality at which a noncentral t exceeds the two-sided bound in POWER of the cases. The other tail, a
    difference with the wrong sign, does not count.
    """
    return float(nctdtrinc(freedom, 1 - POWER, quantile(freedom, alpha)))


def welch_shift(square_a: float, square_b: float, n_a: int, n_b: int, alpha: float) -> float:
    """Return what `shift` does for Welch's test, whose error and degrees of freedom differ from sample to sample.

    A noncentral t with those of the true spreads would find its shift in 72 % of cases at three seeds, 60 % at a
    corrected `alpha`. Of the squared errors the ratio counts, to the next hundredth of their sum.
    """
    return _welch_shift(round(square_a / (square_a + square_b), 2), n_a, n_b, alpha)


@lru_cache(maxsize=4096)
def _welch_shift(share: float, n_a: int, n_b: int, alpha: float) -> float:
    if min(n_a, n_b) > MANY:
        return shift(float(cautious_error((share, 1 - share), (n_a, n_b))[1]), alpha)
    levels = (np.arange(LEVELS) + 0.5) / LEVELS  # of a sample's squared spread, which is independent of its mean
    square_a = share * chdtri(n_a - 1, levels) / (n_a - 1)
    square_b = (1 - share) * chdtri(n_b - 1, levels) / (n_b - 1)
    error, freedom = cautious_error((square_a[:, None], square_b[None, :]), (n_a, n_b))
    bounds = stdtrit(freedom, 1 - alpha / 2) * error
    low, high = 0.0, float(bounds.max()) + 10
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if ndtr(middle - bounds).mean() < POWER else (low, middle)
    return high


def smallest_detectable(sds: tuple[float, float], counts: tuple[int, int], alpha: float = ALPHA) -> float | None:
    """Return the true difference of two means that Welch's test finds with 80 % power, two-sided at `alpha`.

    `sds` are the standard deviations of both samples, in points, `counts` their sizes. None if one has fewer than two
    values, or neither has a spread.
    """
    if min(counts) < 2 or max(sds) <= NO_SPREAD:
        return None
    one, other = (sd**2 / n for sd, n in zip(sds, counts, strict=True))
    return welch_shift(one, other, *counts, alpha) * math.sqrt(one + other)


def seeds_needed(difference: float, sds: tuple[float, float], alpha: float = ALPHA) -> int | None:
    """Return the fewest seeds of both rows that find a true `difference` with 80 % power; `sds` are their spreads.

    None above MOST_SEEDS or without spread. An estimate: an sd from three seeds is easily off by a factor of two, and
    the number grows with its square.
    """
    for n in range(2, MOST_SEEDS + 1):
        least = smallest_detectable(sds, (n, n), alpha)
        if least is not None and least <= abs(difference):
            return n
    return None


def holm(ps: Mapping[K, float | None]) -> dict[K, float | None]:
    """Return the p-values adjusted for their number by Holm's step-down rule; at most 1.

    None is a comparison that was not made: it stays None and does not count. Raises ValueError for a p outside [0, 1].
    Invariant: rejecting those at most 0.05 errs in at most 5 % of families, under any dependence between the tests.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    known = {key: p for key, p in ps.items() if p is not None}
    for key, p in known.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p!r} for {key!r}")
    adjusted: dict[K, float | None] = dict.fromkeys(ps)
    largest = 0.0
    for place, key in enumerate(sorted(known, key=lambda key: known[key])):
        largest = max(largest, min(1.0, (len(known) - place) * known[key]))
        adjusted[key] = largest
    return adjusted


def rank_groups(
    groups: Mapping[K, Mapping[str, Mapping[int, float]]], grain: float = 0.0, least: int = 2
) -> dict[K, dict[str, tuple[int, int]]]:
    """Return the ranks (1 = most accurate) that each row of each group may have within its group.

    `groups` has accuracies in percent by group (such as a sparsity), row and seed. Ranks go from 1 + the significantly
    better rows to the number of rows less the significantly worse ones, see `find_better`. Invariant: all ranges hold
    the true ranks at once in at least 95 % of such tables. Raises ValueError for a value that is None or NaN.
    """
    found = {key: {name: [1, len(rows)] for name in rows} for key, rows in groups.items()}
    for key, better, worse in find_better(groups, grain, least):
        found[key][worse][0] += 1
        found[key][better][1] -= 1
    return {key: {name: (best, worst) for name, (best, worst) in rows.items()} for key, rows in found.items()}


def find_better(
    groups: Mapping[K, Mapping[str, Mapping[int, float]]], grain: float = 0.0, least: int = 2
) -> set[tuple[K, str, str]]:
    """Return group, better row and worse row of every pair in a group that is told apart.

    Welch's t-tests of all pairs, with Holm's correction over all groups; a row of fewer than `least` seeds differs from
    none. Invariant: all pairs returned differ in truth in at least 95 % of such tables, whatever the spreads of the
    rows; the better row has the higher mean. Raises ValueError for a value that is None or NaN.
    """
    pairs: dict[tuple[K, str, str], float] = {}  # better row, worse row: p
    for key, names, mean, error, freedom in compare_all(groups, grain, least):
        one, other = np.triu_indices(len(names), k=1)
        tested = error[one, other] > NO_SPREAD
        one, other = one[tested], other[tested]
        ps = p_value(mean[one] - mean[other], error[one, other], freedom[one, other])
        for first, second, p in zip(one.tolist(), other.tolist(), ps.tolist(), strict=True):
            upper, lower = (first, second) if mean[first] > mean[second] else (second, first)
            pairs[key, names[upper], names[lower]] = p
    return {pair for pair, adjusted in holm(pairs).items() if adjusted is not None and adjusted <= ALPHA}


def may_be_best(
    groups: Mapping[K, Mapping[str, Mapping[int, float]]], grain: float = 0.0, least: int = 2
) -> dict[K, set[str]]:
    """Return the rows of each group that cannot be ruled out as the best one.

    Ruled out is a row that another is above in a one-sided Welch's test, at 5 % divided by the number of other rows and
    of groups. That is all it takes: whichever row is the best one, it is left out only if one of the others passes
    above it by chance; see `safest_error`. A row of fewer than `least` seeds stays. Invariant: in at least 95 % of such
    tables the best row of every group is in (of several equally good ones, any given one). Raises ValueError for a
    value that is None or NaN. Source: subset selection by multiple comparisons with the best: Hsu, Annals of Statistics
    9 (1981).
    """
    asked = sum(len(rows) > 1 for rows in groups.values())
    found = {key: set(rows) for key, rows in groups.items()}
    for key, names, mean, error, freedom in compare_all(groups, grain, least, safest_error):
        above = mean[:, None] - mean[None, :]  # of the row over the column
        ps = stdtr(freedom, -above / np.maximum(error, NO_SPREAD))
        sure = (ps * (len(names) - 1) * asked <= ALPHA) & (above > 0) & (error > NO_SPREAD)
        found[key] -= {name for name, out in zip(names, sure.any(axis=0), strict=True) if out}
    return found


def compare_all(
    groups: Mapping[K, Mapping[str, Mapping[int, float]]],
    grain: float,
    least: int,
    find_error: Callable[..., tuple[Any, Any]] = cautious_error,
) -> Iterator[tuple[K, list[str], Any, Any, Any]]:
    """Yield each group with the names and means of the rows that can be tested, and the standard errors and degrees of
    freedom of all differences of their means, as square arrays."""
    check_grain(grain)
    for key, accuracies in groups.items():
        rows = {name: check_values(of_row.values()) for name, of_row in accuracies.items()}
        names = [name for name, values in rows.items() if len(values) >= max(least, 2)]
        n = np.array([len(rows[name]) for name in names])
        mean = np.array([np.mean(rows[name]) for name in names])
        square = np.array([widen(np.std(rows[name], ddof=1), grain, 1) ** 2 for name in names]) / n
        yield key, names, mean, *find_error((square[:, None], square[None, :]), (n[:, None], n[None, :]))
