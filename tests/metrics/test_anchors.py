"""The maps that every metric is read beside, and what is said where one of them wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from tests.metrics.maps import flat, standing
from tests.perturbed import clip
from tubelens.errors import OptionError
from tubelens.metrics.anchors import (
    anchor_maps,
    between,
    centre_prior,
    common_maps,
    frame_difference,
    loses,
    random_order,
    settled,
    time_mean,
    warnings_for,
)
from tubelens.metrics.protocol import normalised
from tubelens.truth import Truth

SIZE = (4, 6, 5)
NAN = float("nan")


def saliency(seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def truth() -> Truth:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[1:3, 2:4, 1:4] = True
    return Truth(mask)


def test_there_are_as_many_anchors_as_is_known():
    assert list(anchor_maps(saliency())) == ["random", "centre", "time_mean"]
    assert set(anchor_maps(saliency(), clip(SIZE))) == {"random", "centre", "time_mean", "difference"}
    every = anchor_maps(saliency(), clip(SIZE), truth(), seed=3)
    assert set(every) == {"random", "centre", "time_mean", "difference", "oracle"}
    assert torch.equal(every["oracle"], truth().mask.float())
    assert torch.equal(every["random"], random_order(SIZE, 3))
    assert torch.equal(every["centre"], centre_prior(SIZE))
    assert torch.equal(every["difference"], frame_difference(clip(SIZE).pixels))
    assert torch.equal(every["time_mean"], time_mean(saliency()))
    assert "time_mean" not in common_maps(SIZE, clip(SIZE), truth())


def test_the_mean_over_time_is_of_the_frames_that_were_seen():
    map_ = saliency()
    map_[0, 0, 0] = NAN
    map_[:, 1, 1] = NAN
    still = time_mean(map_)
    assert still.shape == SIZE
    for t in range(SIZE[0]):
        torch.testing.assert_close(still[t, 2, 2], map_[:, 2, 2].mean())
        torch.testing.assert_close(still[t, 0, 0], map_[1:, 0, 0].mean())
        assert still[t, 1, 1].isnan()


def test_the_random_order_has_every_rank_once():
    one, other = random_order(SIZE, 0), random_order(SIZE, 1)
    n = math.prod(SIZE)
    assert sorted((one.flatten() * n).round().int().tolist()) == list(range(1, n + 1))
    assert not torch.equal(one, other)


def test_the_centre_prior_is_a_gaussian_of_a_quarter_of_the_frame():
    prior = centre_prior((2, 8, 4))
    for y in range(8):
        for x in range(4):
            dy, dx = (y + 0.5) / 8 - 0.5, (x + 0.5) / 4 - 0.5
            assert float(prior[1, y, x]) == pytest.approx(
                math.exp(-(dy**2 + dx**2) / (2 * 0.25**2)), abs=1e-6
            )


def test_the_frame_difference_sums_bands_and_blurs_frames():
    pixels = clip(SIZE).pixels
    change = np.abs(np.diff(pixels.numpy(), axis=1)).sum(axis=0)
    for axis in (1, 2):
        change = gaussian_filter1d(change, 1.0, axis=axis, mode="nearest", radius=3)
    got = frame_difference(pixels)
    np.testing.assert_allclose(got[1:].numpy(), change, atol=1e-5)
    assert torch.equal(got[0], got[1])
    assert torch.equal(frame_difference(pixels[:, :1]), torch.zeros(1, *SIZE[1:]))


def test_sizes_must_agree():
    with pytest.raises(OptionError, match="the clip is 4x6x6 and the map 4x6x5"):
        anchor_maps(saliency(), clip((4, 6, 6)))
    with pytest.raises(OptionError, match="the truth is 4x6x6 and the map 4x6x5"):
        anchor_maps(saliency(), truth=Truth(torch.zeros(4, 6, 6, dtype=torch.bool)))


def test_a_map_is_told_of_every_rival_that_beats_it():
    anchors = {"random": 0.2, "centre": 0.3, "difference": 0.4, "time_mean": 0.5, "oracle": 0.9}
    assert warnings_for(0.6, anchors, True) == ()  # the oracle is no rival
    assert warnings_for(0.5, anchors, True) == ()  # a draw is no loss
    assert warnings_for(0.35, anchors, True) == (
        "the map (0.350) does worse than the frame difference (0.400) and its own mean over time (0.500)",
    )
    assert warnings_for(0.25, anchors, False) == ("the map (0.250) does worse than a random order (0.200)",)
    assert warnings_for(0.2, anchors, False) == ()
    assert warnings_for(0.0, {}, True) == ()
    assert warnings_for(NAN, anchors, True) == ()
    assert warnings_for(0.35, anchors, None) == ()


@pytest.mark.parametrize("all_or_none", [torch.ones, torch.zeros])
def test_a_truth_that_orders_nothing_is_no_oracle(all_or_none):
    assert "oracle" not in common_maps(SIZE, None, Truth(all_or_none(SIZE, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("value", "low", "high", "up", "expected"),
    [
        (0.6, 0.2, 1.0, True, 0.5),
        (0.0, 0.2, 1.0, True, -0.25),
        (0.3, 0.6, 0.1, False, 0.6),
        (0.9, 0.6, 0.1, False, -0.6),
        (0.6, 0.2, 1.0, False, None),  # the truth does worse
        (0.3, 0.6, 0.1, True, None),
        (0.3, 0.5, 0.5, True, None),
        (0.1, 0.0, 0.0009, True, None),  # or next to nothing better
        (0.0005, 0.0, 0.0011, True, 0.4545454),
        (5.0, 5.0, 5.049, True, None),
        (5.0, 5.0, 5.051, True, 0.0),
        (-5.0, -5.0, -5.049, False, None),
        (NAN, 0.0, 1.0, True, None),
        (0.3, NAN, 1.0, True, None),
    ],
)
def test_scores_are_normalised_where_the_truth_wins(value, low, high, up, expected):
    found = normalised(value, low, high, up)
    assert found == (None if expected is None else pytest.approx(expected))
    said = between(value, {"random": low, "oracle": high}, up)
    note = "the truth is no better than a random order here: no normalised score"
    assert said == (found, (note,) if found is None and value == value else ())


def test_what_nobody_knows_is_not_normalised_and_nothing_is_said():
    assert between(0.3, {"random": 0.1}, True) == (None, ())
    assert between(0.3, {"random": 0.1, "oracle": 0.5}, None) == (None, ())


def test_rounding_is_no_order():
    assert len(settled(flat().saliency).unique()) == 1
    for seed in range(5):
        still = settled(standing(seed).saliency)
        assert torch.equal(still, still[:1].expand_as(still))
        assert len(still.unique()) > 100
    map_ = saliency()
    unit = 1e-5 * map_.abs().max()
    torch.testing.assert_close(settled(map_), (map_ / unit).round() * unit, atol=1e-6, rtol=0)
    torch.testing.assert_close(settled(1e-30 * map_), 1e-30 * settled(map_))
    torch.testing.assert_close(settled(settled(map_)), settled(map_), atol=1e-7, rtol=0)
    zeros = torch.zeros(SIZE)
    assert torch.equal(settled(zeros), zeros)
    odd = saliency()
    odd[0, 0, 0], odd[1, 1, 1], odd[:, 2, 2] = NAN, math.inf, NAN
    kept = settled(odd)
    assert torch.equal(kept.isnan(), odd.isnan())
    assert kept[1, 1, 1] == math.inf
    usual = odd.isfinite()
    torch.testing.assert_close(kept[usual], odd[usual], atol=1e-4, rtol=0)
    assert len(kept[usual].unique()) == len(odd[usual].unique())


@pytest.mark.parametrize(
    ("value", "anchor", "up", "expected"),
    [
        (0.3 + 0.6 + 0.1, 1.0, True, False),  # .9999999999999999
        (1.0, 0.3 + 0.6 + 0.1, False, False),
        (0.9999, 1.0, True, True),
        (0.9999, 1.0, False, False),
        (1.0001, 1.0, False, True),
        (0.5, 1.0, None, False),
        (NAN, 1.0, True, False),
    ],
)
def test_a_tie_is_no_loss(value, anchor, up, expected):
    assert loses(value, anchor, up) is expected
