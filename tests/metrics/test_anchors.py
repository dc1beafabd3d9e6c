"""The maps that every metric is read beside, and what is said where one of them wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from tests.perturbed import clip
from tubelens.errors import OptionError
from tubelens.metrics.anchors import (
    anchor_maps,
    centre_prior,
    common_maps,
    frame_difference,
    random_order,
    time_mean,
    warnings_for,
)
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
