"""Rank correlation of maps: against scipy on places worked out here, and what it must and must not mind."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.stats import rankdata, spearmanr

from tests.test_render_helpers import explain
from tubelens.agreement import agreement, ranks
from tubelens.clip import Box


def values(seed: int, shape: tuple[int, int, int] = (3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read_slowly(e, times, rows=32, columns=32):
    """Every place by itself: frame to crop, crop to clip, clip to cell, and scipy's spline there."""
    (grid,), (_, h, w) = e.parts, e.size
    box, (full_h, full_w) = e.source.box, e.source.size
    out = np.full((len(times), rows, columns), np.nan)
    cells = grid.values.double().numpy()
    for k, seconds in enumerate(times):
        frame = np.interp(seconds, e.source.times, range(len(e.source.times)))
        for i in range(rows):
            for j in range(columns):
                y = ((i + 0.5) / rows * full_h - box.top) * h / box.height - 0.5
                x = ((j + 0.5) / columns * full_w - box.left) * w / box.width - 0.5
                if -0.5 <= y <= h - 0.5 and -0.5 <= x <= w - 0.5:
                    pairs = ((frame, grid.t), (y, grid.y), (x, grid.x))
                    place = [[np.interp(p, c, range(len(c)))] for p, c in pairs]
                    out[k, i, j] = map_coordinates(cells, place, order=3, mode="mirror")[0]
    return out


def test_it_is_scipys_on_the_places_that_both_saw():
    """Two networks: other grids, other crops, other frames, other spans."""
    a = explain(values(1), box=Box(0.0, 24.0, 72.0, 72.0))
    b = explain(
        values(2, (2, 6, 6)),
        side=(24, 40),
        box=Box(6.0, 0.0, 60.0, 105.0),
        times=tuple(0.25 + 0.2 * i for i in range(8)),
        span=(0.2, 1.7),
    )
    times = np.linspace(0.2, 1.1, 16)
    x, y = read_slowly(a, times), read_slowly(b, times)
    both = np.isfinite(x) & np.isfinite(y)
    assert 0.3 < both.mean() < 0.6
    expected = spearmanr(x[both], y[both]).statistic
    assert abs(expected) > 0.02
    assert agreement(a, b) == pytest.approx(expected, abs=2e-4)
    assert agreement(b, a) == pytest.approx(agreement(a, b), abs=1e-12)
    assert agreement(a, replace(b, align="endpoints")) != pytest.approx(expected, abs=1e-3)


def test_only_the_order_counts():
    a = explain(values(1))
    assert agreement(a, a) == pytest.approx(1)
    assert agreement(a, explain(7 * values(1) - 3)) == pytest.approx(1, abs=1e-4)
    assert agreement(a, explain(-values(1))) == pytest.approx(-1, abs=1e-4)


def test_maps_of_one_scene_agree_across_crops():
    """Heat that falls from left to right over the frame, seen through two crops and two clip sizes."""
    ramp = torch.arange(8.0).expand(3, 4, 8)
    a = explain(-ramp, box=Box(0.0, 0.0, 48.0, 48.0))
    b = explain(-ramp, side=(16, 16), box=Box(0.0, 32.0, 48.0, 48.0))
    assert agreement(a, b) > 0.97
    assert agreement(a, explain(ramp, side=(16, 16), box=Box(0.0, 32.0, 48.0, 48.0))) < -0.97


def test_time_counts():
    early, middle, late = (torch.eye(3)[i].view(3, 1, 1).expand(3, 2, 2) for i in range(3))
    assert agreement(explain(early), explain(late)) < -0.5
    assert abs(agreement(explain(early), explain(middle))) < 0.5
    begun = explain(
        middle, times=tuple(i / 10 - 0.4 for i in range(12))
    )  # its middle is the other's beginning
    assert agreement(explain(early), begun) > 0.9


def test_nothing_in_common_is_not_a_number():
    a = explain(values(1))
    far = explain(values(2), times=tuple(9 + i / 10 for i in range(12)))
    assert math.isnan(agreement(a, far))
    left = explain(values(1), box=Box(0.0, 0.0, 48.0, 30.0))
    right = explain(values(1), box=Box(0.0, 45.0, 48.0, 30.0))
    assert math.isnan(agreement(left, right))
    for value in (0.0, 1.0, -0.3, 1e9):  # interpolated, these are constant up to rounding only
        assert math.isnan(agreement(a, explain(torch.full((3, 4, 5), value))))


def test_ranks_of_ties_are_their_mean():
    tied = np.random.default_rng(0).integers(0, 9, 200).astype(float)
    assert np.array_equal(ranks(tied), rankdata(tied))
    assert ranks(np.array([5.0, 1.0, 5.0, 5.0])).tolist() == [3, 1, 3, 3]
