"""Gini index and entropy of maps: closed forms, slow references, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.metrics.maps import clip_of, explanation_of
from tubelens.metrics.complexity import Complexity, Sparseness, complexity, gini
from tubelens.metrics.protocol import Metric
from tubelens.truth import Truth

SIZE = (3, 4, 5)
N = 60


def volume(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1)


def test_gini_is_one_minus_one_over_n_for_a_single_voxel_and_zero_for_equal_ones() -> None:
    for n in (2, 7, 1000):
        assert gini(volume([0.0] * (n - 1) + [3.0])) == pytest.approx(1 - 1 / n, abs=1e-12)
        assert gini(volume([0.4] * n)) == pytest.approx(0.0, abs=1e-7)
        assert gini(volume(list(map(float, range(1, n + 1))))) == pytest.approx((n - 1) / (3 * n), abs=1e-12)


def test_gini_equals_the_mean_absolute_difference() -> None:
    """Half the mean difference of all pairs over the mean: Gini's own definition."""
    for seed in range(4):
        values = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))
        a = values.abs().flatten().double().numpy()
        expected = np.abs(a[:, None] - a[None, :]).mean() / (2 * a.mean())
        assert gini(values) == pytest.approx(expected, abs=1e-12)


def test_complexity_equals_scipys_entropy() -> None:
    for seed in range(4):
        values = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
        expected = stats.entropy(values.abs().flatten().double().numpy())
        assert complexity(values) == pytest.approx(expected, abs=1e-12)
    assert complexity(volume([0.0, 0.0, 5.0])) == 0.0
    assert complexity(volume([2.0] * 8)) == pytest.approx(math.log(8), abs=1e-12)
    assert complexity(volume([1.0, -1.0, 0.0])) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("measure", [gini, complexity])
def test_only_sizes_of_values_count(measure) -> None:
    generator = torch.Generator().manual_seed(9)
    values = torch.randn(SIZE, generator=generator)
    moved = values.flatten()[torch.randperm(N, generator=generator)].view(SIZE)
    assert measure(moved) == pytest.approx(measure(values), abs=1e-12)
    assert measure(-3 * values) == pytest.approx(measure(values), abs=1e-6)
    unseen = values.clone()
    unseen[0] = torch.nan
    zero = values.clone()
    zero[0] = 0
    assert measure(unseen) == measure(zero)
    assert math.isnan(measure(torch.zeros(SIZE)))


@pytest.mark.parametrize("metric", [Sparseness(), Complexity()], ids=repr)
def test_metrics_tell_anchors_but_nothing_normalised(metric) -> None:
    measure = {"Sparseness()": gini, "Complexity()": complexity}[repr(metric)]
    assert isinstance(metric, Metric)
    assert (metric.kind, metric.needs_truth) == ("map", False)
    clip, mask = clip_of(SIZE), torch.zeros(SIZE, dtype=torch.bool)
    mask[1, 1:3, 2] = True
    saliency = torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    score = metric(explanation_of(saliency, clip), clip, Truth(mask))
    assert score.value == pytest.approx(measure(saliency), abs=1e-6)
    assert score.anchors["oracle"] == pytest.approx(measure(mask.float()), abs=1e-9)
    assert score.anchors["time_mean"] == pytest.approx(measure(saliency.mean(0).expand(SIZE)), abs=1e-5)
    assert set(score.anchors) == {"random", "centre", "difference", "time_mean", "oracle"}
    assert score.normalised is None
    assert score.higher_is_better is isinstance(metric, Sparseness)
    bare = metric(explanation_of(saliency))
    assert set(bare.anchors) == {"random", "centre", "time_mean"}
    none = metric(explanation_of(torch.zeros(SIZE)))
    assert math.isnan(none.value)
    assert none.notes == ("the map is zero everywhere",)


def test_closed_forms_of_the_metrics() -> None:
    one = torch.zeros(SIZE)
    one[2, 3, 4] = 1
    assert Sparseness()(explanation_of(one)).value == pytest.approx(1 - 1 / N, abs=1e-4)
    flat = Complexity()(explanation_of(torch.ones(SIZE)))
    assert flat.value == pytest.approx(math.log(N), abs=1e-6)
    assert flat.facts == {"share": pytest.approx(1.0, abs=1e-6)}
    assert flat.anchors["random"] < flat.value
    assert Sparseness()(explanation_of(one)).anchors["random"] == pytest.approx((N - 1) / (3 * N), abs=1e-6)
