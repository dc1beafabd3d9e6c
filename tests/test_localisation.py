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
    average_precision_by_chance,
    centre_prior,
    distractor_mass,
    energy_in_tube,
    frame_difference,
    pointing,
    random_order,
    spatial_pointing,
    temporal_iou,
    tube_iou,
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


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
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


# ── against other implementations, and in the mean over all orders ───────────────────────────────────────


def noisy(seed: int, size: tuple[int, int, int] = (5, 6, 7), levels: int = 6) -> torch.Tensor:
    """A map of few levels, signed, so that many voxels are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, levels, size, generator=generator).float()


def some(seed: int, size: tuple[int, int, int] = (5, 6, 7), share: float = 0.2) -> torch.Tensor:
    """True voxels at random, but none on the first frame."""
    truth = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
    truth[0] = False
    truth[2, 3, 3] = True
    return truth


@pytest.mark.parametrize("levels", [4, 10**6])
def test_average_precision_equals_scikit_learn(levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        saliency, truth = noisy(seed, (8, 16, 16), levels), some(seed, (8, 16, 16))
        expected = metrics.average_precision_score(truth.flatten().numpy(), saliency.flatten().numpy())
        assert average_precision(saliency, truth) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_chance_is_the_mean_over_all_orders() -> None:
    for true in (1, 2, 5):
        truth = mask(*([1] * true + [0] * (5 - true)))
        every = [average_precision(volume(*map(float, p)), truth) for p in itertools.permutations(range(5))]
        assert average_precision_by_chance(5, true) == pytest.approx(np.mean(every), abs=1e-12)
    assert average_precision_by_chance(1, 1) == 1.0
    assert average_precision_by_chance(200_000, 20_000) == pytest.approx(0.1, abs=1e-4)


def slow_matched_iou(values: list[float], truth: list[bool]) -> float:
    """Every order of the voxels, equal ones as drawn: mean overlap of the first `k` with the truth."""
    k = sum(truth)
    found = []
    for order in itertools.permutations(range(len(values))):
        first = sorted(order, key=lambda i: -values[i])[:k]  # stable
        both = sum(truth[i] for i in first)
        found.append(both / (2 * k - both))
    return float(np.mean(found))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-1, 2), st.booleans()), min_size=1, max_size=6))
def test_tube_iou_is_the_mean_over_all_ways_to_choose(voxels: list[tuple[int, bool]]) -> None:
    values, truth = [float(v) for v, _ in voxels], [t for _, t in voxels]
    if not any(truth):
        truth[-1] = True
    got = tube_iou(volume(*values), mask(*truth))
    assert got == pytest.approx(slow_matched_iou(values, truth), abs=1e-12)


def test_tube_iou_by_hand_and_of_a_large_flat_map() -> None:
    truth = mask(1, 1, 0, 0, 0)
    assert tube_iou(volume(5.0, 4.0, 3.0, 2.0, 1.0), truth) == 1.0
    assert tube_iou(volume(5.0, 0.0, 4.0, 2.0, 1.0), truth) == pytest.approx(1 / 3)
    assert tube_iou(volume(0.0, 0.0, 4.0, 2.0, 1.0), truth) == 0.0
    large = torch.arange(1_000_000).view(10, 1000, 100) % 10 == 0
    assert tube_iou(torch.zeros(large.shape), large) == pytest.approx(0.1 / 1.9, rel=1e-4)


def test_temporal_iou_equals_frames_sorted_by_their_positive_mass() -> None:
    for seed in range(8):
        saliency, truth = noisy(seed, levels=10**4), some(seed)
        truth[3] = False
        mass = [sum(v for v in frame.flatten().tolist() if v > 0) for frame in saliency]
        true = {t for t in range(5) if truth[t].any()}
        strongest = set(sorted(range(5), key=lambda t: -mass[t])[: len(true)])
        expected = len(true & strongest) / len(true | strongest)
        assert temporal_iou(saliency, truth) == pytest.approx(expected, abs=1e-12)
    # negative values do not cancel positive ones, and equal frames share their credit
    saliency = torch.zeros(3, 1, 2)
    saliency[1] = torch.tensor([2.0, -9.0])
    truth = torch.zeros(3, 1, 2, dtype=torch.bool)
    truth[1, 0, 1] = True
    assert temporal_iou(saliency, truth) == 1.0
    assert temporal_iou(torch.zeros(3, 1, 2), truth) == pytest.approx(1 / 3)
    assert temporal_iou(saliency, torch.ones(3, 1, 2, dtype=torch.bool)) == 1.0


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.3])
def test_spatial_pointing_equals_a_loop_over_frames(tolerance: float) -> None:
    for seed in range(6):
        saliency, truth = noisy(seed), some(seed, share=0.03)
        rates = []
        for t in range(5):
            places = truth[t].nonzero().tolist()
            if places:
                best = (saliency[t] == saliency[t].max()).nonzero().tolist()
                rates.append(np.mean([min(math.dist(b, p) for p in places) <= tolerance for b in best]))
        assert spatial_pointing(saliency, truth, tolerance) == pytest.approx(np.mean(rates), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), st.floats(0, 9))
def test_pointing_with_slack_equals_distances(seed: int, tolerance: float) -> None:
    saliency, truth = noisy(seed, levels=4), some(seed, share=0.02)
    best = (saliency == saliency.max()).nonzero().tolist()
    true = truth.nonzero().tolist()
    hits = [any(p[0] == b[0] and math.dist(p, b) <= tolerance for p in true) for b in best]
    assert pointing(saliency, truth, tolerance) == pytest.approx(np.mean(hits), abs=1e-12)


ALL = [energy_in_tube, average_precision, pointing, spatial_pointing, tube_iou, temporal_iou, distractor_mass]


@pytest.mark.parametrize("score", ALL)
def test_voxels_that_no_crop_saw_are_the_least_salient(score) -> None:
    saliency, truth = noisy(3, levels=50) + 5.0, some(4)
    unseen = torch.rand(saliency.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    unseen[4] = True  # a whole frame
    least = saliency.masked_fill(unseen, 0.0)  # below all others, and without mass
    got = score(saliency.masked_fill(unseen, torch.nan), truth)
    assert got == pytest.approx(score(least, truth), abs=1e-12)
    assert 0 <= score(torch.full((5, 6, 7), torch.nan), truth) <= 1


@pytest.mark.parametrize("score", [tube_iou, temporal_iou, spatial_pointing])
def test_scores_at_matched_volume_need_a_true_voxel(score) -> None:
    with pytest.raises(OptionError, match="at least one true voxel"):
        score(volume(1.0, 2.0), mask(0, 0))
    with pytest.raises(OptionError, match="upsample the map first"):
        score(volume(1.0, 2.0), mask(0, 1, 1))
