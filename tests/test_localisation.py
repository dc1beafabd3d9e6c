"""Scores against a known truth: closed forms, slow references, and invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from tubelens.errors import OptionError
from tubelens.metrics.localisation import (
    average_precision,
    centre_prior,
    distractor_mass,
    energy_in_tube,
    frame_difference,
    pointing,
    random_order,
)


def volume(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1)


def mask(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool).view(1, 1, -1)


def slow_average_precision(values: list[float], truth: list[bool]) -> float:
    """From the definition: every distinct value a threshold, recall and precision counted from nothing."""
    score, recall_before = 0.0, 0.0
    for threshold in sorted(set(values), reverse=True):
        kept = [t for v, t in zip(values, truth, strict=True) if v >= threshold]
        recall = sum(kept) / sum(truth)
        score += (recall - recall_before) * sum(kept) / len(kept)
        recall_before = recall
    return score


# ── average precision ────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_average_precision_equals_its_definition_also_with_ties(voxels: list[tuple[int, bool]]) -> None:
    values, truth = [float(v) for v, _ in voxels], [t for _, t in voxels]
    if not any(truth):
        truth[0] = True
    got = average_precision(volume(*values), mask(*truth))
    assert got == pytest.approx(slow_average_precision(values, truth), abs=1e-12)


def test_average_precision_by_hand() -> None:
    # ranks of the true voxels: 1, 3, 4 -> (1/1 + 2/3 + 3/4) / 3
    got = average_precision(volume(0.9, 0.8, 0.7, 0.6, -1.0), mask(1, 0, 1, 1, 0))
    assert got == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # a tie of one true and one false voxel at the top passes together: precision 1/2 for both orders
    assert average_precision(volume(1.0, 1.0, 0.0), mask(1, 0, 0)) == 0.5
    assert average_precision(volume(1.0, 1.0, 0.0), mask(0, 1, 0)) == 0.5


def test_average_precision_of_perfect_flat_and_worst_maps() -> None:
    truth = mask(0, 1, 1, 0, 0, 0, 0, 0)
    assert average_precision(truth.float(), truth) == 1.0
    assert average_precision(torch.zeros(truth.shape), truth) == 0.25
    assert average_precision(volume(-1.0, -7.0, -8.0, -2.0, -3.0, -4.0, -5.0, -6.0), truth) == pytest.approx(
        (1 / 7 + 2 / 8) / 2
    )


def test_average_precision_of_a_large_clip_has_no_rounding() -> None:
    # more than 2^24 voxels would lose counts in float32; a tenth of that with all true in front is exact
    n = 2_000_000
    truth = torch.arange(n).view(1, 1, n) < n // 2
    assert average_precision(torch.arange(n, 0, -1).view(1, 1, n).float(), truth) == 1.0


def test_average_precision_needs_a_true_voxel_and_equal_shapes() -> None:
    with pytest.raises(OptionError, match="at least one true voxel"):
        average_precision(volume(1.0), mask(0))


# ── energy, pointing ─────────────────────────────────────────────────────────────────────────────────────


def test_energy_counts_positive_mass_alone() -> None:
    saliency, truth = volume(3.0, -5.0, 1.0, 0.0), mask(1, 1, 0, 0)
    assert energy_in_tube(saliency, truth) == 0.75
    assert distractor_mass(saliency, ~truth) == 0.25
    assert energy_in_tube(volume(-1.0, 0.0), mask(1, 0)) == 0.0
    assert energy_in_tube(saliency * 7, truth) == 0.75


def test_pointing_hits_misses_and_shares_ties() -> None:
    truth = mask(0, 1, 0, 0)
    assert pointing(volume(0.1, 0.9, 0.0, 0.5), truth) == 1.0
    assert pointing(volume(0.1, 0.5, 0.9, 0.5), truth) == 0.0
    assert pointing(volume(0.9, 0.9, 0.9, 0.0), truth) == pytest.approx(1 / 3)
    assert pointing(torch.zeros(1, 1, 4), truth) == 0.25


def test_pointing_tolerance_is_a_distance_within_the_frame() -> None:
    truth = torch.zeros(2, 9, 9, dtype=torch.bool)
    truth[0, 2, 2] = True
    for (y, x), tolerance in itertools.product([(2, 2), (5, 6), (2, 4), (8, 8)], [0.0, 2.0, 4.9, 5.0]):
        saliency = torch.zeros(2, 9, 9)
        saliency[0, y, x] = 1.0
        assert pointing(saliency, truth, tolerance) == float(math.dist((y, x), (2, 2)) <= tolerance)
        # the same place a frame later never counts: nothing is true there
        assert pointing(saliency.flip(0), truth, tolerance) == 0.0
    two = torch.zeros(2, 9, 9)
    two[0, 2, 3] = two[1, 2, 3] = 1.0
    assert pointing(two, truth, tolerance=1.0) == 0.5


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_pointing_refuses_a_tolerance_that_means_nothing(tolerance: float) -> None:
    with pytest.raises(OptionError, match="tolerance"):
        pointing(volume(1.0), mask(1), tolerance)


@pytest.mark.parametrize("score", [energy_in_tube, average_precision, pointing, distractor_mass])
def test_scores_do_not_depend_on_storage_order_and_check_shapes(score) -> None:
    generator = torch.Generator().manual_seed(1)
    saliency = torch.randint(-2, 3, (4, 5, 6), generator=generator).float()  # many ties
    truth = torch.rand(4, 5, 6, generator=generator) < 0.3
    shuffle = torch.randperm(120, generator=generator)
    moved = [x.flatten()[shuffle].view(4, 5, 6) for x in (saliency, truth)]
    assert score(*moved) == pytest.approx(score(saliency, truth), abs=1e-12)
    with pytest.raises(OptionError, match="upsample the map first"):
        score(saliency[:2], truth)


# ── maps that look at no model ───────────────────────────────────────────────────────────────────────────


def test_random_order_is_a_seeded_permutation() -> None:
    one = random_order((3, 4, 5), seed=3)
    assert torch.equal(one, random_order((3, 4, 5), seed=3))
    assert not torch.equal(one, random_order((3, 4, 5), seed=4))
    assert torch.equal(one.flatten().sort().values, torch.arange(1, 61) / 60)


def test_random_order_scores_the_share_of_true_voxels() -> None:
    truth = torch.zeros(8, 32, 32, dtype=torch.bool)
    truth[:, 3:9, 20:26] = True
    scores = [average_precision(random_order((8, 32, 32), seed), truth) for seed in range(20)]
    assert np.mean(scores) == pytest.approx(float(truth.float().mean()), rel=0.05)


def test_centre_prior_is_a_gaussian_in_every_frame() -> None:
    prior = centre_prior((2, 5, 9), sigma=0.25)
    assert torch.equal(prior[0], prior[1])
    assert float(prior[0, 2, 4]) == 1.0
    dy, dx = 1 / 5, 3 / 9
    assert float(prior[0, 3, 1]) == pytest.approx(math.exp(-(dy**2 + dx**2) / (2 * 0.25**2)), rel=1e-5)
    torch.testing.assert_close(prior, prior.flip(1, 2))


def test_frame_difference_equals_a_slow_reference() -> None:
    pixels = torch.rand(3, 4, 12, 10, generator=torch.Generator().manual_seed(0))
    change = np.abs(np.diff(pixels.numpy().astype(np.float64), axis=1)).sum(axis=0)
    change = np.concatenate([change[:1], change])
    torch.testing.assert_close(frame_difference(pixels, sigma=0.0).double(), torch.from_numpy(change))
    for axis in (1, 2):
        change = gaussian_filter1d(change, 1.5, axis=axis, mode="nearest", radius=5)
    torch.testing.assert_close(
        frame_difference(pixels, sigma=1.5).double(), torch.from_numpy(change), rtol=1e-5, atol=1e-6
    )


def test_frame_difference_of_one_frame_says_nothing() -> None:
    assert torch.equal(frame_difference(torch.rand(3, 1, 8, 8)), torch.zeros(1, 8, 8))
