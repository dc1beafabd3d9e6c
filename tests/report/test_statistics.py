"""Intervals, tests and ranks against SciPy, exact enumerations and slow references."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from tubelens.evaluate.report import statistics
from tubelens.evaluate.report.flips import mcnemar
from tubelens.evaluate.report.statistics import bootstrap, holm, nemenyi, ranked, ranking, wilcoxon


def test_few_values_reach_the_exact_bootstrap_distribution() -> None:
    values = np.array([0.1, 0.35, 0.4, 0.85, 0.7])
    means = np.array([np.mean(drawn) for drawn in product(values, repeat=5)])  # all 3125 samples
    exact = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap(values), exact, atol=0.021)  # means lie on a grid of this width
    inner = np.quantile(means, [0.1, 0.9])
    np.testing.assert_allclose(bootstrap(values, level=0.8), inner, atol=0.021)


@pytest.mark.parametrize("n", [40, 300, 512, 513, 3000])
def test_interval_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).lognormal(0, 1.2, n)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=1, batch=500
    ).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(bootstrap(values), [theirs.low, theirs.high], atol=0.04 * width)


def test_a_lone_outlier_among_many_is_drawn_as_often_as_it_should() -> None:
    values = np.zeros(3001)
    values[17] = 3001.0  # the mean of a sample is how often it was drawn: binomial, about Poisson(1)
    low, high = bootstrap(values)
    assert low == pytest.approx(stats.binom.ppf(0.025, 3001, 1 / 3001), abs=0.05)
    assert high == pytest.approx(stats.binom.ppf(0.975, 3001, 1 / 3001), abs=0.05)


def test_values_within_a_bin_still_vary() -> None:
    values = np.where(np.arange(4000) < 1333, -1.0, 1.0)  # sorted, and one large bin holds both
    low, high = bootstrap(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 4000**0.5, rel=0.04)
    skewed = np.random.default_rng(0).exponential(1, 20_000)
    low, high = bootstrap(skewed)
    se = skewed.std() / len(skewed) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * se, rel=0.03)


def test_columns_are_drawn_together_and_seeds_rule() -> None:
    rows = np.random.default_rng(3).normal(size=(60, 2, 3))
    both = bootstrap(rows)
    assert both.shape == (2, 2, 3)
    np.testing.assert_allclose(both[:, 1, 2], bootstrap(rows[:, 1, 2]))
    np.testing.assert_array_equal(bootstrap(rows[:, 0, 0], seed=4), bootstrap(rows[:, 0, 0], seed=4))
    assert (bootstrap(rows[:, 0, 0], seed=4) != bootstrap(rows[:, 0, 0], seed=5)).all()
    large = np.random.default_rng(3).normal(size=(900, 2))
    np.testing.assert_allclose(bootstrap(large)[:, 1], bootstrap(large[:, 1]))


def test_too_few_values_have_no_interval_and_equal_ones_have_none_to_speak_of() -> None:
    assert np.isnan(bootstrap(np.array([0.3]))).all()
    assert np.isnan(bootstrap(np.empty(0))).all()
    np.testing.assert_allclose(bootstrap(np.full(7, 0.3)), [0.3, 0.3])


@pytest.mark.parametrize("n", [512, 513, 514, 1000, 99_999])
def test_bins_hold_every_value_once_and_stay_few(n: int) -> None:
    starts = statistics._bins(n)
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert starts[-1] < n
    sizes = np.diff([*starts, n])
    assert sizes.sum() == n
    assert (sizes == sizes[::-1]).all()
    assert (sizes[:8] == 1).all()
    assert len(starts) <= (n if n <= 512 else 80)


@pytest.mark.parametrize("n", [1, 2, 9, 50])
def test_signed_rank_is_exact_where_scipys_is(n: int) -> None:
    d = np.random.default_rng(n).normal(0.3, 1, n)
    ours = wilcoxon(d)
    assert ours.p == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, abs=1e-12)
    assert ours.statistic == stats.wilcoxon(d, method="exact", alternative="greater").statistic


def test_signed_rank_with_ties_is_the_permutation_distribution() -> None:
    d = np.array([3.0, 1, -1, 1, 4, -2, 3, 2, -2, 5])
    ranks = stats.rankdata(np.abs(d))
    signs = np.array(list(product([0, 1], repeat=len(d))))
    sums = signs @ ranks
    seen = ranks[d > 0].sum()
    exact = min(1, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
    assert wilcoxon(d).p == pytest.approx(exact, abs=1e-12)
    assert wilcoxon(np.concatenate([d, np.zeros(4)])) == wilcoxon(d)  # zeros say nothing


@pytest.mark.parametrize("step", [0, 2])
def test_signed_rank_of_many_is_scipys_approximation(step: int) -> None:
    d = np.random.default_rng(5).normal(0.1, 1, 400)
    d = np.round(d * step) if step else d
    theirs = stats.wilcoxon(d, method="asymptotic", correction=False)
    assert wilcoxon(d).p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert wilcoxon(-d).p == pytest.approx(theirs.pvalue, rel=1e-9)


def test_the_cubes_of_many_ties_do_not_overflow() -> None:
    n, above = 3_000_001, 1_501_000  # all tied: the number above zero is binomial
    d = np.where(np.arange(n) < above, 1.0, -1.0)
    found = wilcoxon(d)
    assert found.effect == pytest.approx(2 * above / n - 1)
    assert found.p == pytest.approx(math.erfc((2 * above - n) / (2 * n) ** 0.5), rel=1e-5)


def test_p_is_a_probability_where_both_sides_are_even() -> None:
    assert wilcoxon(np.array([1.0, 2, -3])).p == 1.0


def test_effect_is_plus_one_where_all_are_above() -> None:
    assert wilcoxon(np.array([1.0, 2, 3])).effect == 1
    assert wilcoxon(-np.array([1.0, 2, 3])).effect == -1
    nothing = wilcoxon(np.zeros(5))
    assert (nothing.n, nothing.p, nothing.effect) == (0, 1.0, 0.0)


def test_ranks_are_scipys() -> None:
    values = np.array([3.0, 1, 3, 2, 2, 2, -5])
    np.testing.assert_array_equal(ranked(values), stats.rankdata(values))


def test_holm_is_the_step_down_rule() -> None:
    p = [0.01, 0.04, float("nan"), 0.03, 0.005, 0.6]
    ours = holm(p)
    known = sorted(v for v in p if v == v)
    for value, adjusted in zip(p, ours, strict=True):
        if value != value:
            assert adjusted != adjusted
            continue
        before = known[: known.index(value) + 1]
        assert adjusted == pytest.approx(min(1, max((len(known) - j) * v for j, v in enumerate(before))))
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("decimals", [0, 6])
def test_ranking_is_friedmans_test(decimals: int) -> None:
    values = np.round(np.random.default_rng(2).normal(size=(30, 5)) + np.arange(5) * 0.3, decimals)
    found = ranking(values, higher=False)
    assert found is not None
    theirs = stats.friedmanchisquare(*values.T)
    assert found.chi2 == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)
    np.testing.assert_allclose(found.ranks, stats.rankdata(values, axis=1).mean(axis=0))
    higher = ranking(values, higher=True)
    assert higher is not None
    np.testing.assert_allclose(higher.ranks, 6 - np.array(found.ranks))
    assert found.distance == pytest.approx(
        stats.studentized_range.ppf(0.95, 5, np.inf) / 2**0.5 * (30 / 180) ** 0.5
    )


def test_rows_with_gaps_are_left_out_and_all_alike_is_p_one() -> None:
    values = np.random.default_rng(2).normal(size=(9, 3))
    with_gap = np.vstack([values, [np.nan, 1, 2]])
    assert ranking(with_gap, True) == ranking(values, True)
    same = ranking(np.ones((5, 3)), True)
    assert same is not None
    assert (same.ranks, same.p, same.alike) == ((2.0, 2.0, 2.0), 1.0, ((0, 2),))
    assert ranking(values[:1], True) is None
    assert ranking(values[:, :1], True) is None


def test_groups_that_are_alike_are_the_longest_runs_within_the_distance() -> None:
    means = np.sort(np.random.default_rng(7).uniform(1, 9, 9))
    for distance in (0.1, 0.8, 2.0, 9.0):
        runs = {(i, j) for i in range(9) for j in range(i + 1, 9) if means[j] - means[i] <= distance}
        longest = {
            (i, j) for i, j in runs if not any((a, b) != (i, j) and a <= i and j <= b for a, b in runs)
        }
        assert set(statistics._alike(means, distance)) == longest


def test_critical_values_are_demsars_and_scipys() -> None:
    published = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for k, q in published.items():
        assert nemenyi(k) == pytest.approx(q, abs=1.1e-3)
    for k in (2, 12, 20):
        assert nemenyi(k) == pytest.approx(stats.studentized_range.ppf(0.95, k, np.inf) / 2**0.5, abs=1e-6)
        theirs = stats.studentized_range.ppf(0.9, k, np.inf) / 2**0.5
        assert nemenyi(k, 0.1) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(("mended", "broken"), [(3, 9), (9, 3), (0, 6), (5, 5), (400, 460)])
def test_mcnemar_is_a_binomial_test(mended: int, broken: int) -> None:
    theirs = stats.binomtest(mended, mended + broken).pvalue
    assert mcnemar(mended, broken) == pytest.approx(theirs)
    assert np.isnan(mcnemar(0, 0))
