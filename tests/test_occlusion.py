"""Occlusion: the mean drop of the boxes over each voxel, done voxel by voxel, and beside captum."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from tests.perturbed import Box, clip, indicator, sees
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError
from tubelens.flow import flows
from tubelens.masks import Tracked, Windows
from tubelens.methods.occlusion import Occlusion, boxes
from tubelens.methods.protocol import Scalable
from tubelens.metrics.localisation import average_precision
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob

CASES = [
    ((4, 8, 8), (2, 4, 4), (2, 4, 4)),  # tiles evenly
    ((4, 8, 8), (2, 4, 4), (1, 2, 2)),  # overlaps evenly
    ((5, 9, 7), (2, 4, 3), (2, 3, 2)),  # cut off at the border
    ((3, 6, 6), (9, 3, 3), (4, 2, 3)),  # longer than the clip
]


def slow(f: Box, pixels: Tensor, k: int, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """For every box, replaced by the mean colour; each voxel collects the drops of the boxes over it."""
    _, *size = pixels.shape
    mean = pixels.mean(dim=(1, 2, 3))
    drops: dict[tuple[int, int, int], list[float]] = {}
    whole = float(f(pixels[None]).softmax(1)[0, k])
    starts = []
    for n, w, s in zip(size, window, stride, strict=True):
        axis = [0]
        while axis[-1] + w < n:
            axis.append(axis[-1] + s)
        starts.append(axis)
    for t in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                hidden = pixels.clone()
                inside = (slice(t, t + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
                for c in range(3):
                    hidden[(c, *inside)] = mean[c]
                drop = whole - float(f(hidden[None]).softmax(1)[0, k])
                for v in torch.zeros(size)[inside].add(1).nonzero().tolist():
                    voxel = (v[0] + t, v[1] + y, v[2] + x)
                    drops.setdefault(voxel, []).append(drop)
    out = torch.empty(size)
    for voxel, values in drops.items():
        out[voxel] = sum(values) / len(values)
    return out


@pytest.mark.parametrize(("size", "window", "stride"), CASES)
def test_equals_the_slow_formula(size, window, stride):
    video, f = clip(size), Box(size)
    found = Occlusion(window, stride)(f, video, [Prob(0), Prob(2)])
    for why, k in zip(found, (0, 2), strict=True):
        expected = slow(f, video.pixels, k, window, stride)
        assert expected.std() > 1e-4
        torch.testing.assert_close(why.grid, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(why.saliency, why.grid)
        assert why.size == why.grid.shape == size
    n = len(Windows(size, *Occlusion(window, stride)._plan(size)))
    assert found[0].provenance.forwards == n + 1 == Occlusion(window, stride).passes(f, video).forwards
    assert found[0].provenance.facts == {"windows": n, "covered": 1}
    assert found[0].provenance.prob == pytest.approx(float(f(video.pixels[None]).softmax(1)[0, 0]))


@pytest.mark.parametrize(("size", "window", "stride"), CASES[:3])
def test_equals_captum(size, window, stride):
    """Its formula for overlapping windows is the same mean of drops, at any stride up to the window."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import Occlusion as Peer
    video, f = clip(size), Box(size)
    peer = Peer(lambda x: f(x)).attribute(
        video.pixels[None], (3, *window), (3, *stride), baselines=0, target=1, perturbations_per_eval=4
    )
    (why,) = Occlusion(window, stride, fill="black")(f, video, [Logit(1)])
    torch.testing.assert_close(why.grid, peer[0, 0], atol=1e-5, rtol=1e-4)


def test_drops_of_windows_side_by_side_are_their_own():
    """An additive black box: the drop of each window is exactly what lies in it."""
    size = (4, 6, 6)
    video = clip(size)
    weight = torch.randn(size, generator=torch.Generator().manual_seed(3))

    class Additive:
        output = "logits"

        def __call__(self, clips: Tensor) -> Tensor:
            s = (clips.mean(1) * weight).sum((1, 2, 3))
            return torch.stack([s, -2 * s], 1)

    one, two = Occlusion((2, 3, 3), (2, 3, 3), fill="black")(Additive(), video, [Logit(0), Contrast(0, 1)])
    own = (video.pixels.mean(0) * weight).unfold(0, 2, 2).unfold(1, 3, 3).unfold(2, 3, 3).sum((3, 4, 5))
    spread = own.repeat_interleave(2, 0).repeat_interleave(3, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(one.grid, spread, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(two.grid, 3 * spread, atol=1e-5, rtol=1e-4)


def test_default_window_is_half_the_frames_and_a_quarter_of_the_rest():
    assert Occlusion()._plan((16, 64, 64)) == ((8, 16, 16), (4, 8, 8))
    assert Occlusion()._plan((5, 10, 30)) == ((3, 3, 8), (1, 1, 4))
    assert Occlusion()._plan((1, 4, 4)) == ((1, 1, 1), (1, 1, 1))
    assert Occlusion(stride=(1, 2, 3))._plan((16, 64, 64)) == ((8, 16, 16), (1, 2, 3))


def test_finds_where_the_model_looks():
    size = (8, 16, 16)
    (why,) = Occlusion()(sees(size), clip(size), [Prob(1)])
    truth = indicator(size)
    assert why.grid[truth].min() > why.grid[~truth].mean() + 0.05
    assert truth[tuple(int(i) for i in (why.grid == why.grid.max()).nonzero()[0])]


def moving(size: tuple[int, int, int]) -> tuple[Clip, Tensor]:
    """A textured square that moves two pixels a frame over a still ground, and where it is."""
    frames, h, w = size
    rng = np.random.default_rng(2)
    ground = 0.2 * ndimage.gaussian_filter(rng.random((h, w)), 1) + 0.2
    patch = ndimage.zoom(rng.random((5, 5)), 2, order=1)
    video, where = np.repeat(ground[None], frames, 0), np.zeros(size, dtype=bool)
    for t in range(frames):
        at = (t, slice(8, 18), slice(2 + 2 * t, 12 + 2 * t))
        video[at], where[at] = patch, True
    return Clip.from_array(video[..., None].repeat(3, -1).astype(np.float32)), torch.from_numpy(where)


def test_tracked_windows_stay_on_what_moves():
    """Slow formula over the masks that the flow gives; a moving object is found better than by still ones."""
    pytest.importorskip("cv2")
    size = (8, 26, 32)
    video, where = moving(size)

    class Moving:
        output = "probs"

        def __call__(self, clips: Tensor) -> Tensor:
            p = 1 - (clips[:, 0, where] == 0).float().mean(dim=1) ** 2  # it takes most of it to be missed
            return torch.stack([p, 1 - p], 1)

    f = Moving()
    method = Occlusion((8, 8, 8), (8, 4, 4), fill="black", tracked=True)
    (why,) = method(f, video, [Prob(0)])
    masks = Tracked(size, (8, 8, 8), (8, 4, 4), *flows(video.pixels))
    total, count = torch.zeros(size), torch.zeros(size)
    for i in range(len(masks)):
        kept = masks.batch(i, i + 1)[0]
        drop = float(f(video.pixels[None])[0, 0] - f((video.pixels * kept)[None])[0, 0])
        total, count = total + drop * (1 - kept), count + (1 - kept)
    expected = torch.where(count > 0, total / count.clamp_min(1), 0.0)
    torch.testing.assert_close(why.grid, expected, atol=1e-6, rtol=1e-4)
    assert why.provenance.facts == {"windows": len(masks), "covered": float((count > 0).float().mean())}
    (still,) = Occlusion((8, 8, 8), (8, 4, 4), fill="black")(f, video, [Prob(0)])
    gain = average_precision(why.grid, where) - average_precision(still.grid, where)
    assert gain > 0.3
    assert eval(repr(method)) == method


def test_batches_and_time_change_nothing():
    size = (5, 9, 7)
    video, f = clip(size), Box(size)
    (whole,) = Occlusion()(f, video, [Prob(0)])
    for run in (Run(batch=1), Run(batch=7), Run(seconds=1e-9)):
        (why,) = Occlusion()(f, video, [Prob(0)], run)
        torch.testing.assert_close(why.grid, whole.grid, atol=1e-6, rtol=1e-4)
        assert why.provenance.forwards == whole.provenance.forwards


@pytest.mark.parametrize("forwards", [12, 20, 148, 149, 1000, 10**6])
def test_affords_the_finest_stride_that_fits(forwards):
    size = (16, 64, 64)
    video, f = clip(size), Box(size)
    method = Occlusion((8, 32, 32)).afford(forwards, f, video)
    assert method.passes(f, video).forwards <= forwards
    assert isinstance(method, Scalable)
    if method.stride != (1, 1, 1):
        finer = tuple(max(1, round(w * (method.stride[1] - 1) / 32)) for w in (8, 32, 32))
        assert 1 + boxes(size, (8, 32, 32), finer) > forwards
    assert Occlusion((8, 32, 32)).afford(9, f, video).stride == (8, 32, 32)
    with pytest.raises(OptionError, match=r"at least 9 forwards, the budget is 8.*larger window"):
        Occlusion((8, 32, 32)).afford(8, f, video)


@pytest.mark.parametrize(("size", "window", "stride"), [*CASES, ((16, 64, 64), (5, 7, 9), (5, 2, 4))])
def test_counts_boxes_without_making_them(size, window, stride):
    plan = Occlusion(window, stride)._plan(size)
    assert boxes(size, *plan) == len(Windows(size, *plan))


def test_senseless_options():
    with pytest.raises(OptionError, match=r"stride 5 and window 4"):
        Occlusion((2, 4, 4), (2, 5, 4))
    with pytest.raises(OptionError, match="stride"):
        Occlusion(stride=(1, 0, 1))
    with pytest.raises(OptionError, match="stride 9"):
        Occlusion(stride=(1, 9, 1))(Box((4, 8, 8)), clip((4, 8, 8)), [Prob(0)])
    with pytest.raises(OptionError, match=r"no fill 'blak' .did you mean 'black'"):
        Occlusion(fill="blak")


def test_nan_is_an_error_and_repr_rebuilds():
    class Bad:
        output = "logits"

        def __call__(self, clips: Tensor) -> Tensor:
            return torch.full((len(clips), 2), float("nan"))

    with pytest.raises(ScoreError):
        Occlusion()(Bad(), clip((4, 8, 8)), [Prob(0)])
    method = Occlusion((1, 2, 3), (1, 1, 2), fill="freeze")
    assert eval(repr(method)) == method
