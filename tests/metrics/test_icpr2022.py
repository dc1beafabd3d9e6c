"""Insertion and deletion as published for ICPR 2022, against the formula written down as it stands there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tests.metrics.test_curves import Counting, explained, noise
from tests.perturbed import Box, clip
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Black
from tubelens.metrics.curves import Deletion, Insertion, together
from tubelens.metrics.icpr2022 import Copies, Scaled, copy_ranks, published_order, voxel_ranks
from tubelens.metrics.removal import EMPTY
from tubelens.model import InputSpec, TorchModel
from tubelens.running import Run
from tubelens.target import Logit
from tubelens.zoo.recipe import Pack

FP32 = Run(precision="fp32")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
pack = Pack(MEAN, STD)
SIZE = (8, 6, 6)


class Net3D(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(48, 4)
        )


def network(c: Clip) -> TorchModel:
    return TorchModel(order_one(Net3D(), pack(c.pixels[None])), pack)


def at(saliency: Tensor, c: Clip, index: int = 2) -> Explanation:
    """With the logit as its target: the published scores are probabilities whatever was explained."""
    base = explained(saliency, Logit(index))
    return Explanation(base.parts, c.size, c.source, base.target, base.provenance)


def start_of(x: Tensor, factor: int) -> Tensor:
    small = F.interpolate(x[None], [n // factor for n in x.shape[1:]], mode="trilinear", align_corners=True)
    return F.interpolate(small, x.shape[1:], mode="trilinear", align_corners=True)[0]


def published_3d(
    net: nn.Module, x: Tensor, saliency: np.ndarray, label: int, start: Tensor | None
) -> np.ndarray:
    """Deletion where there is no start, else insertion: 100 forwards, one after the other."""
    points, voxels = 100, saliency.size
    order = np.argsort(-saliency.reshape(-1), kind="stable")
    current = (x if start is None else start).reshape(3, -1).clone()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (MEAN, STD))
    probabilities = []
    for count in np.linspace(0, voxels, points):
        chosen = order[: int(count)]
        current[:, chosen] = 0.0 if start is None else x.reshape(3, -1)[:, chosen]
        with torch.no_grad():
            logits = net((current.view(1, *x.shape) - mean) / std)
        probabilities.append(float(logits.softmax(dim=1)[0, label]))
    return np.array(probabilities)


def trapezoid(values: np.ndarray) -> float:
    """Over the number of the step, 0 to 99, as the authors' figures have it."""
    return sum((a + b) / 2 for a, b in pairwise(values))


@pytest.mark.parametrize("factor", [2, 4])
def test_the_3d_variant_equals_the_published_formula(factor: int):
    c = clip(SIZE, seed=1)
    model, saliency = network(c), noise(2, SIZE)
    insertion = Insertion(parity="icpr2022", factor=factor, anchors=False)
    deletion = Deletion(parity="icpr2022", anchors=False)
    ours = together([insertion, deletion], model, c, [at(saliency, c)], run=FP32)
    for (score,), start in zip(ours, (start_of(c.pixels, factor), None), strict=True):
        theirs = published_3d(model.module, c.pixels, saliency.numpy(), 2, start)
        assert theirs.std() > 0.005  # a curve that goes somewhere
        assert score.curve is not None
        np.testing.assert_allclose(score.curve[0], np.linspace(0, 1, 100), atol=1e-12)
        np.testing.assert_allclose(score.curve[1], theirs, atol=1e-5)
        assert score.value == pytest.approx(trapezoid(theirs) / 99, abs=1e-5)


# ── the segment network ──────────────────────────────────────────────────────────────────────────────────


class SegmentNet(nn.Module):
    """Fed `(segment, frame, band)` along the channels: 2 segments of 4 frames."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(12, 6, (1, 3, 3), padding=(0, 1, 1))
        self.fc = nn.Linear(6 * 2 * 4, 4)

    def forward(self, frames: Tensor) -> Tensor:
        segments = frames.unflatten(1, (-1, 12)).transpose(1, 2)  # (b, 12, s, h, w)
        return self.fc(F.adaptive_avg_pool3d(self.body(segments).relu(), (2, 2, 2)).flatten(1))


def published_segments(
    net: nn.Module, x: np.ndarray, saliency: np.ndarray, label: int, start: np.ndarray | None
) -> np.ndarray:
    """Laid out as the network's input, `(12 s, h, w)`: a map a segment, copied 12 times, ranked as one."""
    segments, h, w = saliency.shape
    copies = np.repeat(saliency[:, None], 12, axis=1).reshape(segments * 12, h, w)
    order = np.argsort(-copies.reshape(-1), kind="stable")
    current = (x if start is None else start).reshape(-1).copy()
    mean, std = (np.tile(v, segments * 4)[:, None, None] for v in (MEAN, STD))
    probabilities = []
    for count in np.linspace(0, copies.size, 100):
        chosen = order[: int(count)]
        current[chosen] = 0.0 if start is None else x.reshape(-1)[chosen]
        fed = torch.from_numpy((current.reshape(x.shape) - mean) / std).float()
        with torch.no_grad():
            probabilities.append(float(net(fed[None]).softmax(dim=1)[0, label]))
    return np.array(probabilities)


def segment_network(c: Clip) -> TorchModel:
    folded = Pack(MEAN, STD, axes="b (t c) h w")
    net = order_one(SegmentNet(), folded(c.pixels[None]))
    return TorchModel(net, folded, spec=InputSpec(8, (6, 6), snippet=4))


@pytest.mark.parametrize("copied", [True, False])
def test_the_segment_variant_equals_the_published_formula(copied: bool):
    c = clip(SIZE, seed=1)
    model = segment_network(c)
    by_frame = noise(2, SIZE)
    by_segment = by_frame.unflatten(0, (2, 4)).mean(dim=1)
    saliency = by_segment.repeat_interleave(4, dim=0) if copied else by_frame
    whys = [at(saliency, c)]
    metrics = [
        Insertion(parity="icpr2022", factor=4, anchors=False),
        Deletion(parity="icpr2022", anchors=False),
    ]
    fed = c.pixels.transpose(0, 1).reshape(24, 6, 6).numpy()
    start = start_of(c.pixels, 4).transpose(0, 1).reshape(24, 6, 6).numpy()
    for (score,), first in zip(together(metrics, model, c, whys, run=FP32), (start, None), strict=True):
        theirs = published_segments(model.module, fed, by_segment.numpy(), 2, first)
        assert theirs.std() > 0.005
        assert score.curve is not None
        np.testing.assert_allclose(score.curve[1], theirs, atol=1e-5)
        assert score.value == pytest.approx(trapezoid(theirs) / 99, abs=1e-5)
    # and it is another measure than that of whole voxels
    (voxelwise,) = Deletion(parity="icpr2022", anchors=False, snippet=1)(model, c, whys, run=FP32)
    assert abs(voxelwise.value - score.value) > 1e-4


def test_at_the_edge_of_a_step_some_bands_of_a_place_are_gone():
    x = torch.ones(3, *SIZE)
    order = published_order([noise(3, SIZE)], snippet=4)
    jobs = [(0, count, True) for count in order.counts]
    family = order.family(jobs, Black())
    assert isinstance(family, Copies)
    versions, masks = family.over(x)(0, 100)
    assert masks is None
    torch.testing.assert_close(1 - versions.mean(dim=(1, 2, 3, 4)), torch.tensor(order.counts) / x.numel())
    bands = versions.sum(dim=1)
    halved = ((bands > 0) & (bands < 3)).flatten(1).sum(dim=1)
    assert 0 < halved.sum() <= 100  # one voxel at most at every edge
    assert halved.max() == 1
    whole, _ = order.family([EMPTY], Black()).over(x)(0, 1)
    assert not whole.any()


def test_segments_must_divide_the_clip():
    with pytest.raises(OptionError, match="segments of 3 frames do not fit a clip of 8"):
        Deletion(parity="icpr2022", snippet=3)(Box(SIZE), clip(SIZE), [explained(noise(0, SIZE))])


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_factor_of_16_freezes_16_frames_at_the_corners_of_the_first():
    x = clip((16, 32, 32)).pixels
    base = Scaled().over(x)(torch.zeros(1, 16, 32, 32))[0]
    ramp = torch.linspace(0, 1, 32)
    rows = torch.lerp(x[:, 0, :1], x[:, 0, -1:], ramp[:, None])
    plane = torch.lerp(rows[:, :, :1], rows[:, :, -1:], ramp)
    torch.testing.assert_close(base, plane[:, None].expand_as(base), atol=1e-5, rtol=0)
    small = clip((3, 5, 5)).pixels  # where the published code fails
    torch.testing.assert_close(
        Scaled().over(small)(torch.zeros(1, 3, 5, 5))[0], small[:, :1, :1, :1].expand_as(small)
    )
    torch.testing.assert_close(Scaled().over(small)(torch.ones(1, 3, 5, 5))[0], small)
    with pytest.raises(OptionError, match="a factor of 1 or more, not 0"):
        Insertion(parity="icpr2022", factor=0)


def test_equal_values_are_in_the_order_of_storage_and_nan_is_last():
    values = torch.zeros(2, 2, 2)
    values[1, 0, 1] = 1
    values[0, 0, 0] = torch.nan
    values[1, 1, 1] = -5
    assert voxel_ranks(values).flatten().tolist() == [7, 1, 2, 3, 4, 0, 5, 6]
    one = torch.tensor([[[0.0]], [[0.0]], [[2.0]], [[2.0]]])  # two segments of two frames, one pixel
    ranks = copy_ranks(one, 2, 3)
    assert ranks.shape == (3, 4, 1, 1)
    assert ranks[:, 2:, 0, 0].T.flatten().tolist() == list(range(6))  # frame by frame, band by band
    assert ranks[:, :2, 0, 0].T.flatten().tolist() == list(range(6, 12))


def test_parity_settles_the_other_options_and_shares_its_queue():
    model = Counting(SIZE)
    whys = [explained(noise(i, SIZE)) for i in range(2)]
    c = clip(SIZE)
    odd = Deletion(steps=5, fill="noise", cell=(2, 2, 2), score="logit", parity="icpr2022", anchors=False)
    plain = [Insertion(parity="icpr2022", anchors=False), Deletion(parity="icpr2022", anchors=False)]
    found = together([*plain, odd], model, c, whys, run=FP32)
    assert sum(model.batches) == 3 + 2 * 2 * 98
    assert found[1] == found[2]
    assert found[1][0].facts["logit"] == 0
    (anchored,) = Deletion(parity="icpr2022")(Box(SIZE), c, [whys[0]], run=FP32)
    assert set(anchored.anchors) == {"random", "centre", "difference", "time_mean"}
