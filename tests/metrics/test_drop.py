"""Average drop, increase and gain: closed forms, the formulas clip by clip, anchors as bright as the map."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.metrics.maps import coarse, flat, standing
from tests.perturbed import Box, clip
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation, Provenance
from tubelens.fill import Blur, Noise
from tubelens.layout import Grid
from tubelens.methods.record import voxels
from tubelens.metrics.anchors import anchor_maps
from tubelens.metrics.drop import (
    AverageDrop,
    AverageGain,
    AverageIncrease,
    drop,
    gain,
    increase,
    relaid,
    together,
)
from tubelens.metrics.protocol import Metric
from tubelens.model import BlackBox
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.truth import Truth

SIZE = (4, 8, 8)
FP32 = Run(precision="fp32")
ALL = (AverageDrop, AverageIncrease, AverageGain)


def explanation(saliency: Tensor, target: Target = Prob(1)) -> Explanation:  # noqa: B008
    """A map with one value a voxel, drawn from its minimum to its maximum."""
    record = Provenance("method", "model", "weights", None, "label", 0.0, 0.0, ())
    t, h, w = saliency.shape
    return Explanation((voxels(saliency),), (t, h, w), clip((t, h, w)).source, target, record)


def half_seen(saliency: Tensor) -> Explanation:
    """A map of which crops saw the lower half alone: the upper one is NaN."""
    t, h, w = saliency.shape
    parts = []
    for left, right in ((0, w // 2), (w // 2, w)):
        axes = (tuple(float(i) for i in range(a, b)) for a, b in ((0, t), (h // 2, h), (left, right)))
        values = saliency[:, h // 2 :, left:right]
        parts.append(Grid(values, *axes, (0, t), area=(h // 2, left, h, right)))
    return replace(explanation(saliency), parts=tuple(parts))


def random_map(seed: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def white(size: tuple[int, int, int] = SIZE) -> Clip:
    return Clip.from_array(np.ones((*size, 3), dtype=np.float32))


def tube(size: tuple[int, int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[1:3, 2:5, 1:5] = True
    return mask


def other(size: tuple[int, int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:, 5:8, 5:8] = True
    return mask


def linear(low: float, high: float, against: float = 0.0) -> BlackBox:
    """Class 1 has the probability `low + high * brightness of the tube - against * that of the other`."""

    def score(clips: Tensor) -> Tensor:
        p = low + high * clips[:, :, tube()].mean(dim=(1, 2))
        p = p - against * clips[:, :, other()].mean(dim=(1, 2))
        return torch.stack([1 - p, p], dim=1)

    return BlackBox(score, output="probs")


def test_closed_forms_on_a_known_tube():
    """A map that is 1 on k of the tube's 24 voxels keeps k / 24 of what the tube gives."""
    half = tube().clone()
    half[2] = False
    maps = [explanation(m.float()) for m in (tube(), half, ~tube())]
    found = together([AverageDrop(), AverageIncrease(), AverageGain()], linear(0.1, 0.8), white(), maps)
    drops, rises, gains = ([s.value for s in row] for row in found)
    assert drops == pytest.approx([0, 0.4 / 0.9, 0.8 / 0.9], abs=1e-6)
    assert rises == [0, 0, 0]
    assert gains == [0, 0, 0]
    model = linear(0.5, 0.4, against=0.3)  # .6 intact; the tube alone .9, the other alone .2
    maps = [explanation(tube().float()), explanation(other().float())]
    found = together([AverageDrop(), AverageIncrease(), AverageGain()], model, white(), maps)
    drops, rises, gains = ([s.value for s in row] for row in found)
    assert drops == pytest.approx([0, 0.4 / 0.6], abs=1e-6)
    assert rises == [1, 0]
    assert gains == pytest.approx([0.3 / 0.4, 0], abs=1e-6)
    assert found[0][0].facts["intact"] == pytest.approx(0.6)
    assert found[0][0].facts["dimmed"] == pytest.approx(0.9)
    assert found[0][0].facts["kept"] == pytest.approx(float(tube().float().mean()))


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_the_formulas_clip_by_clip(fill: str):
    model, c = Box(SIZE, scale=2.0), clip(SIZE)
    maps = [random_map(s) for s in range(8)]
    targets: list[Target] = [Prob(0), Logit(1), Prob(2), Logit(2)] * 2
    given = [explanation(m, t) for m, t in zip(maps, targets, strict=True)]
    metrics = [make(fill=fill, anchors=False) for make in ALL]
    found = together(metrics, model, c, given, run=FP32)
    base = c.pixels.mean(dim=(1, 2, 3), keepdim=True) if fill == "mean" else torch.zeros(3, 1, 1, 1)
    seen = set()
    for j, (m, t) in enumerate(zip(maps, targets, strict=True)):
        heat = (m - m.min()) / (m.max() - m.min())
        k = t.classes[0]
        y = float(model(c.pixels[None]).softmax(1)[0, k])
        o = float(model((heat * c.pixels + (1 - heat) * base)[None]).softmax(1)[0, k])
        expected = (max(0.0, y - o) / y, float(o > y), max(0.0, o - y) / (1 - y))
        assert [row[j].value for row in found] == pytest.approx(expected, abs=5e-5)
        seen.add(o > y)
    assert seen == {True, False}
    assert [row[0].higher_is_better for row in found] == [False, True, True]


def test_anchors_are_as_bright_as_the_map():
    """The map's values in the order of each anchor; the oracle has the largest of them on the truth."""
    model, c, truth = Box(SIZE), clip(SIZE), Truth(tube())
    k = int(model(c.pixels[None]).argmax())
    why = replace(half_seen(random_map(5)), target=Prob(k))
    m = why.saliency
    assert m[:, :4].isnan().all()
    heat = torch.zeros(SIZE)
    heat[:, 4:] = (m[:, 4:] - m[:, 4:].min()) / (m[:, 4:].max() - m[:, 4:].min())
    (score,) = AverageDrop(seed=3)(model, c, [why], truth, FP32)
    assert score.facts["kept"] == pytest.approx(float(heat.mean()))
    assert score.facts["dimmed"] == pytest.approx(float(model((heat * c.pixels)[None]).softmax(1)[0, k]))
    orders = anchor_maps(m, c, truth, seed=3)
    assert score.anchors.keys() == orders.keys()
    y = float(model(c.pixels[None]).softmax(1)[0, k])
    values = sorted(heat.flatten().tolist(), reverse=True)
    for name, order in orders.items():
        laid = relaid(heat, order, 3)
        assert sorted(laid.flatten().tolist(), reverse=True) == values
        flat, least = order.nan_to_num(nan=-9.0).flatten(), laid.flatten()
        by_order = least[flat.argsort(descending=True)]
        grouped = flat.sort(descending=True).values
        for (a, v), (b, w) in pairwise(zip(grouped.tolist(), by_order.tolist(), strict=True)):
            assert a == b or v >= w
        o = float(model((laid * c.pixels)[None]).softmax(1)[0, k])
        assert score.anchors[name] == pytest.approx(max(0.0, y - o) / y, abs=1e-5)
    a = score.anchors
    assert a["oracle"] != a["random"]
    assert score.normalised is None  # by what is laid anew for every map


def test_a_map_that_is_bright_everywhere_gains_nothing_on_its_anchors():
    """The known weakness: it drops next to nothing; but so does a random order of its values."""
    bright = torch.full(SIZE, 1.0)
    bright[0, 0, 0] = 0
    (fake,) = AverageDrop()(linear(0.1, 0.8), white(), [explanation(bright)], Truth(tube()), FP32)
    assert fake.value == pytest.approx(0, abs=1e-6)
    assert fake.anchors["random"] == pytest.approx(0, abs=0.04)
    assert fake.facts["kept"] > 0.99
    (good,) = AverageDrop()(linear(0.1, 0.8), white(), [explanation(tube().float())], Truth(tube()), FP32)
    assert good.anchors["random"] > 0.7
    assert good.anchors["oracle"] == pytest.approx(0, abs=1e-6)
    assert good.normalised is None
    (bad,) = AverageDrop()(linear(0.1, 0.8), white(), [explanation(other().float())], Truth(tube()), FP32)
    assert any("worse than" in note for note in bad.notes)
    assert not good.notes


def test_all_share_the_forwards():
    calls: list[int] = []
    inner = Box(SIZE)

    def score(clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return inner(clips)

    model = BlackBox(score)
    given = [explanation(random_map(s), Prob(s)) for s in range(3)]
    still = explanation(random_map(3, (1, 8, 8)).expand(SIZE).contiguous(), Prob(0))
    (a, b) = AverageDrop()(model, clip(SIZE), [still, still], None, FP32)
    assert sum(calls) == 1 + 4  # it is its own mean over time, and the second is the first
    assert a.value == b.value == a.anchors["time_mean"]
    calls.clear()
    found = together([make() for make in ALL], model, clip(SIZE), given, Truth(tube()), FP32)
    assert sum(calls) == 1 + 3 * (1 + 5)
    assert sum(s.forwards for row in found for s in row) == pytest.approx(sum(calls))
    metrics = [AverageDrop(), AverageDrop(fill="blur"), AverageDrop(fill=Blur()), AverageDrop(seed=1)]
    apart = together(metrics, model, clip(SIZE), given, run=FP32)
    assert [s.value for s in apart[0]] == [s.value for s in found[0]] == [s.value for s in apart[3]]
    assert [s.value for s in apart[1]] == [s.value for s in apart[2]] != [s.value for s in apart[0]]
    assert apart[3][0].anchors["random"] != apart[0][0].anchors["random"]
    assert together([AverageDrop()], model, clip(SIZE), []) == [[]]


def test_a_contrast_may_rise_but_is_nothing_to_take_a_share_of():
    model, c, m = Box(SIZE), clip(SIZE), random_map(1)
    z = model(c.pixels[None])[0]
    high, low = (int(z.argmax()), int(z.argmin()))
    heat = explanation(m).heat
    after = model((heat * c.pixels)[None])[0]
    up, down = explanation(m, Contrast(high, low)), explanation(m, Contrast(low, high))
    y, o = float(z[high] - z[low]), float(after[high] - after[low])
    metrics = [AverageDrop(), AverageGain(), AverageIncrease()]
    drops, gains, rises = together(metrics, model, c, [up, down], run=FP32)
    for score in (*drops, *gains):
        assert math.isnan(score.value)
        assert all(math.isnan(v) for v in score.anchors.values())
        assert score.notes == ("a contrast is no probability that a share can be taken of",)
    assert [s.value for s in rises] == [float(o > y), float(-o > -y)]
    assert drops[0].facts["intact"] == pytest.approx(y, abs=1e-5)
    assert drops[0].facts["dimmed"] == pytest.approx(o, abs=1e-3)


def test_a_flat_map_shows_nothing_and_one_that_stands_still_its_mean():
    size = (16, 16, 16)
    metric = AverageDrop()
    found, still = metric(Box(size), clip(size), [flat(), standing()], run=FP32)
    assert found.facts["kept"] == 0
    assert found.value == found.anchors["random"] == found.anchors["time_mean"]
    assert still.value == still.anchors["time_mean"] != still.anchors["random"]
    unseen = explanation(torch.full(size, torch.nan))
    assert metric(Box(size), clip(size), [unseen], run=FP32)[0].facts["kept"] == 0
    # drawn from zero on, a flat map is bright
    bright = replace(coarse(torch.ones(4, 4, 4)), scale="positive")
    (all_of_it,) = metric(Box(size), clip(size), [bright], run=FP32)
    assert all_of_it.facts["kept"] == pytest.approx(1)
    assert all_of_it.value == pytest.approx(0, abs=1e-5)


def test_ends_of_the_range():
    y, o = torch.tensor([0.0, 1.0, 1.0, 1.5]).double(), torch.tensor([0.0, 1.0, 0.5, 2.0]).double()
    assert drop(y, o)[1:3].tolist() == [0, 0.5]
    assert drop(y, o)[0].isnan()
    assert increase(y, o).tolist() == [0, 0, 0, 1]
    assert gain(y, o)[:3].tolist() == [0, 0, 0]
    assert gain(y, o)[3].isnan()


def test_options():
    for make in ALL:
        metric = make(fill=Noise(seed=2), seed=1, anchors=False)
        assert eval(repr(metric), {make.__name__: make, "Noise": Noise}) == metric
        assert isinstance(metric, Metric)
        assert metric.kind == "curve"
        with pytest.raises(OptionError, match="did you mean 'blur'"):
            make(fill="blurr")
    with pytest.raises(OptionError, match="do not fit a clip"):
        AverageDrop(anchors=False)(Box(SIZE), clip(SIZE), [explanation(random_map(0, (2, 8, 8)))])
