"""The statistics of the tables, in NumPy: intervals, tests for paired values, corrections, average ranks.

A value belongs to a clip, and clips are what is drawn at random: several seeds of a clip are averaged before
anything is counted here, or the same clip would count as several witnesses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

RESAMPLES = 10_000
LEVEL = 0.95
SINGLE = 512
"""Up to so many values, a bootstrap draws each by itself; of more, those in the middle in bins."""
EXACT = 50
"""Up to so many differences, the signed-rank test is exact."""
FLAT = 1e-6
"""Values that differ by no more than this share of their size are equal: the rest is rounding."""


def bootstrap(
    values: Float[np.ndarray, "n *columns"],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Float[np.ndarray, "2 *columns"]:
    """The percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Only how often each value is drawn matters to a mean, so counts are drawn, once for a number of values,
    and every column of that length is one matrix product. Above `SINGLE` values they are sorted, and bins
    that grow from both tails inwards take the place of single values: the counts of the bins are still drawn
    exactly, and the sum of what is drawn within a bin is taken as normal with the mean and the variance it
    has. The cost is then that of about 70 values, whatever their number; outliers stay by themselves.

    Args:
        values: no NaN among them. Columns are resampled together, row by row.
        resamples: number of samples drawn.
        level: share of the resampled means that the interval holds.
        seed: of the draws, which depend on it and on the number of values alone.

    Returns:
        Lower and upper end; NaN where there are fewer than two values.
    """
    n = len(values)
    if n < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    rows = values.reshape(n, -1).astype(np.float64)
    middle = rows.mean(axis=0)
    starts, counts = _counts(n, resamples, seed)
    if len(starts) == n:
        means = _product(counts, rows - middle) / n
    else:
        ordered = np.sort(rows - middle, axis=0)
        sizes = np.diff([*starts, n])[:, None]
        within = np.add.reduceat(ordered, starts, axis=0) / sizes
        squares = np.add.reduceat((ordered - np.repeat(within, sizes[:, 0], axis=0)) ** 2, starts, axis=0)
        noise = np.random.default_rng((seed, n, 1)).standard_normal((resamples, 1))
        spread = np.sqrt(_product(counts, squares / sizes))
        means = (_product(counts, within) + spread * noise) / n
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0) + middle
    return np.asarray(ends.reshape(2, *values.shape[1:]))


@lru_cache(maxsize=4)  # a table asks again and again for the same number of clips
def _counts(n: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """First value of each bin of the sorted values, and how often each bin is drawn, `(resamples, bins)`."""
    generator = np.random.default_rng((seed, n, 0))
    starts = _bins(n)
    if len(starts) < n:
        return starts, generator.multinomial(n, np.diff([*starts, n]) / n, size=resamples).astype(np.float64)
    drawn = generator.integers(0, n, (resamples, n), dtype=np.int32)
    drawn += (np.arange(resamples, dtype=np.int32) * n)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
    return starts, counts.astype(np.uint16)


def _bins(n: int) -> np.ndarray:
    """Where bins start: every value by itself, or bins half as large again as the one further out."""
    if n <= SINGLE:
        return np.arange(n)
    sizes: list[int] = []
    size, left = 1.0, n // 2
    while left > 0:
        sizes.append(min(int(size), left))
        left -= sizes[-1]
        size *= 1.0 if len(sizes) < 8 else 1.5
    middle = [1] if n % 2 else []
    return np.cumsum([0, *sizes, *middle, *sizes[::-1]])[:-1]


def _product(counts: np.ndarray, columns: np.ndarray, rows: int = 1000) -> np.ndarray:
    """`counts @ columns` a thousand resamples at a time, so that the counts may stay small integers."""
    parts = [
        counts[i : i + rows].astype(np.float64, copy=False) @ columns for i in range(0, len(counts), rows)
    ]
    return np.concatenate(parts)


def wilson(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `n` (Wilson 1927); unlike a bootstrap it knows that 12 of 12 is no
    certainty. NaN without any.
    """
    if n < 1:
        return math.nan, math.nan
    z = 1.959963984540054
    share, room = hits / n, z**2 / n
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / n + room / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def ranked(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Ranks from 1, smallest first; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


@dataclass(frozen=True)
class SignedRank:
    """The answer of Wilcoxon's test.

    Attributes:
        n: differences that are not zero.
        statistic: sum of the ranks of the positive differences.
        p: two-sided.
        effect: matched-pairs rank-biserial correlation, (positive - negative) / all ranks, in [-1, 1].
    """

    n: int
    statistic: float
    p: float
    effect: float


def wilcoxon(differences: Float[np.ndarray, "n"], scale: float = 0.0) -> SignedRank:
    """Wilcoxon's signed-rank test that differences are symmetric about zero (Wilcoxon 1945).

    Zeros are left out, ties share their ranks. Up to `EXACT` differences the distribution over all 2^n signs
    of the ranks as they are, ties included; of more, the normal approximation with the tie correction and
    without a continuity correction. No difference at all gives p = 1.

    Args:
        differences: of paired values, one a clip, no NaN.
        scale: the largest size of these values; differences up to `FLAT` of it are zeros.
    """
    nonzero = differences[np.abs(differences) > FLAT * scale]
    n = len(nonzero)
    if not n:
        return SignedRank(0, 0.0, 1.0, 0.0)
    ranks = ranked(np.abs(nonzero))
    total = n * (n + 1) / 2
    positive = float(ranks[nonzero > 0].sum())
    if n <= EXACT:
        p = _exact(ranks, positive)
    else:
        _, ties = np.unique(ranks, return_counts=True)
        ties = ties.astype(np.float64)  # their cubes do not fit integers
        variance = n * (n + 1) * (2 * n + 1) / 24 - float((ties**3 - ties).sum()) / 48
        p = math.erfc(abs(positive - total / 2) / math.sqrt(2 * variance))
    return SignedRank(n, positive, p, (2 * positive - total) / total)


def _exact(ranks: np.ndarray, statistic: float) -> float:
    """Two-sided p of a sum of ranks, each of which counts with probability one half."""
    twice = np.rint(2 * ranks).astype(int)  # mid-ranks are halves
    share = np.zeros(int(twice.sum()) + 1)
    share[0] = 1.0
    for rank in twice:
        share[rank:] = (share[rank:] + share[:-rank]) / 2
        share[:rank] /= 2
    at = round(2 * statistic)
    return min(1.0, 2 * float(min(share[: at + 1].sum(), share[at:].sum())))


def holm(p: Sequence[float]) -> list[float]:
    """Values of p made good for being several tests (Holm 1979, step down); NaN is no test and stays.

    `max over j <= i of min(1, (m - j) p_(j))`, j from 0 in order of size.
    """
    values = np.asarray(p, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    raised = values[order] * np.arange(len(order), 0, -1)
    adjusted = values.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(raised))
    return [float(v) for v in adjusted]


@dataclass(frozen=True)
class Ranking:
    """Average ranks of k methods over n clips, and how far apart two must be to differ.

    Attributes:
        ranks: mean rank of each, 1 the best.
        n: clips that have a value of every method.
        chi2, p: of Friedman's test that all are alike.
        distance: critical difference of Nemenyi's test at .05.
        alike: groups (positions in order of rank: first, last) that the distance does not part; the longest
            only, and none of a single method.
    """

    ranks: tuple[float, ...]
    n: int
    chi2: float
    p: float
    distance: float
    alike: tuple[tuple[int, int], ...]


def ranking(values: Float[np.ndarray, "n k"], higher: bool) -> Ranking | None:
    """Friedman's test with Nemenyi's comparison of all pairs (Demsar 2006, section 3.2.2).

    `chi2 = 12 / (k n (k + 1)) sum_j R_j^2 - 3 n (k + 1)` with rank sums R_j, divided by
    `1 - sum (t^3 - t) / (n k (k^2 - 1))` for ties; critical difference `q sqrt(k (k + 1) / (6 n))`.

    Args:
        values: a row a clip, a column a method; rows with NaN are left out. Values of a row that differ by
            `FLAT` of its largest are equal.
        higher: whether higher is better.

    Returns:
        None where fewer than two methods or two clips are left.
    """
    whole = values[~np.isnan(values).any(axis=1)]
    n, k = whole.shape
    if n < 2 or k < 2:
        return None
    ranks, ties = row_ranks(whole, higher)
    means = ranks.mean(axis=0)
    even = 1 - ties / (n * k * (k**2 - 1))
    chi2, p = 0.0, 1.0
    if even > 0:
        chi2 = float((12 * n / (k * (k + 1)) * (means**2).sum() - 3 * n * (k + 1)) / even)
        half = torch.tensor([(k - 1) / 2, max(chi2, 0.0) / 2], dtype=torch.float64)
        p = float(torch.special.gammaincc(half[0], half[1]))
    distance = nemenyi(k) * math.sqrt(k * (k + 1) / (6 * n))
    return Ranking(tuple(map(float, means)), n, chi2, p, distance, _alike(np.sort(means), distance))


def row_ranks(values: Float[np.ndarray, "n k"], higher: bool) -> tuple[Float[np.ndarray, "n k"], float]:
    """Ranks within every row, 1 the best, equal ones sharing the mean of theirs; and the sum of t^3 - t over
    all ties of t values.
    """
    rows = values * (-1 if higher else 1)
    order = np.argsort(rows, axis=1, kind="stable")
    apart = np.diff(np.take_along_axis(rows, order, axis=1), axis=1)
    steps = np.cumsum(apart > FLAT * np.abs(rows).max(axis=1, keepdims=True, initial=0), axis=1)
    level = np.zeros(rows.shape, dtype=int)
    np.put_along_axis(level, order[:, 1:], steps, axis=1)
    ranks = np.full(rows.shape, 0.5)
    ties = 0.0
    for j in range(rows.shape[1]):  # few columns
        same = (level == level[:, j : j + 1]).sum(axis=1)
        ranks[:, j] += (level < level[:, j : j + 1]).sum(axis=1) + same / 2
        ties += float((same.astype(np.float64) ** 2 - 1).sum())  # summed over its t members: t^3 - t
    return ranks, ties


def _alike(ordered: np.ndarray, distance: float) -> tuple[tuple[int, int], ...]:
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ordered):
        last = int(np.flatnonzero(ordered - rank <= distance)[-1])
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return tuple(groups)


@lru_cache(maxsize=64)
def nemenyi(k: int, alpha: float = 0.05) -> float:
    """Critical value of Nemenyi's test for k methods: that of the studentised range over sqrt(2).

    With infinite degrees of freedom the range Q of k standard normal values has
    `P(Q <= q) = k integral phi(z) (Phi(z) - Phi(z - q))^(k - 1) dz`; integrated and inverted here.
    """
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(z)

    def reached(q: float) -> float:
        inner = (below - torch.special.ndtr(z - q)) ** (k - 1)
        return k * float(torch.trapezoid(density * inner, z))

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < 1 - alpha else (low, middle)
    return (low + high) / 2 / math.sqrt(2)
