"""Insertion and deletion: closed forms, a slow reference, torchcam, and what is shared between curves."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tubelens as tl
from tests.conftest import order_one
from tests.metrics.maps import between_anchors, explanation_of, flat, standing
from tests.perturbed import Box, clip
from tubelens.clip import Clip
from tubelens.errors import OptionError, ScoreError
from tubelens.explanation import Explanation, Provenance
from tubelens.fill import FILLS, Black, Blur, Freeze, Mean
from tubelens.masks import ranking
from tubelens.methods.record import voxels
from tubelens.metrics.anchors import anchor_maps, random_order
from tubelens.metrics.curves import Deletion, Insertion, curves, together
from tubelens.metrics.protocol import CurveMetric
from tubelens.model import TorchModel
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.truth import Truth

SIZE = (4, 6, 8)
N = 4 * 6 * 8
FP32 = Run(precision="fp32")
BLACK = ("black", "black")


class Counting(Box):
    """Counts the clips and the batches it is given."""

    def __init__(self, size: tuple[int, int, int] = SIZE) -> None:
        super().__init__(size)
        self.batches: list[int] = []

    def __call__(self, clips: Tensor) -> Tensor:
        self.batches.append(len(clips))
        return super().__call__(clips)


class Share:
    """The probability of class 1 is `low + high x` where x is the share of a white tube that is there."""

    output = "probs"

    def __init__(self, tube: Tensor, low: float = 0.0, high: float = 1.0) -> None:
        self.tube, self.low, self.high = tube, low, high

    def __call__(self, clips: Tensor) -> Tensor:
        p = self.low + self.high * clips[:, :, self.tube].mean(dim=(1, 2))
        return torch.stack([1 - p, p], dim=1)


def white(size: tuple[int, int, int] = SIZE) -> Clip:
    return Clip.from_array(np.ones((*size, 3), dtype=np.float32))


def tube(size: tuple[int, int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[1:3, 2:5, 1:5] = True
    return mask


def noise(seed: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def explained(saliency: Tensor, target: Target = Prob(1)) -> Explanation:  # noqa: B008
    record = Provenance("method", "model", "weights", None, "label", 0.0, 0.0, ())
    t, h, w = saliency.shape
    return Explanation((voxels(saliency),), (t, h, w), clip(SIZE).source, target, record)


def one(model: object, c: Clip, saliency: Tensor, mode: str = "insertion", **options: object) -> Tensor:
    options = {"fills": ["black"], "run": FP32} | options
    drawn = curves(model, c, [saliency], [Prob(1)], modes=[mode], **options)  # type: ignore[arg-type,list-item]
    return drawn.values[0][0, 0]


# ── closed forms ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [2, 5, 32, N + 1])
def test_curves_of_the_truth_are_known_exactly(steps: int):
    """Insertion of the tube first: min(1, x / v), or last: max(0, 1 - (1 - x) / v); deletion: 1 less that."""
    model, v = Share(tube(), 0.1, 0.8), float(tube().double().mean())
    first, last = tube().float(), -tube().float()
    drawn = curves(model, white(), [first, last], [Prob(1)], fills=BLACK, steps=steps, run=FP32)
    x = drawn.places
    assert len(x) == steps
    assert x[0] == 0
    assert x[-1] == 1
    torch.testing.assert_close(x, (torch.arange(steps) / (steps - 1)).double(), atol=0.5 / N + 1e-9, rtol=0)
    present = torch.stack([(x / v).clamp(max=1), (1 - (1 - x) / v).clamp(min=0)])
    torch.testing.assert_close(drawn.values[0][0], 0.1 + 0.8 * present, atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn.values[1][0], 0.1 + 0.8 * (1 - present), atol=1e-6, rtol=0)
    if steps == N + 1:  # all corners of the curve are points of it
        area = 1 - v / 2
        expected = torch.tensor([0.1 + 0.8 * area, 0.1 + 0.8 * (1 - area)]).double()
        torch.testing.assert_close(drawn.areas[0][0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(drawn.areas[1][0], 0.2 + 0.8 - expected, atol=1e-6, rtol=0)


def test_a_random_order_puts_the_tube_in_evenly():
    model = Share(tube())
    maps = [random_order(SIZE, seed) for seed in range(60)]
    drawn = curves(model, white(), maps, [Prob(1)], fills=BLACK, steps=9, run=FP32)
    for values, expected in zip(drawn.values, (drawn.places, 1 - drawn.places), strict=True):
        torch.testing.assert_close(values[0].mean(dim=0), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.areas[0].mean(), torch.tensor(0.5).double(), atol=0.02, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_no_order_does_better_than_the_truth_or_worse_than_its_reverse(seed: int, steps: int):
    model = Share(tube())
    maps = [noise(seed), tube().float(), -tube().float()]
    insertion, deletion = curves(model, white(), maps, [Prob(1)], fills=BLACK, steps=steps, run=FP32).areas
    some, best, worst = insertion[0].tolist()
    assert 0 <= worst - 1e-7 <= some <= best + 1e-7 <= 1
    some, best, worst = deletion[0].tolist()
    assert best - 1e-7 <= some <= worst + 1e-7


# ── slow reference ───────────────────────────────────────────────────────────────────────────────────────


def slow_curve(
    model: object,
    c: Clip,
    saliency: Tensor,
    mode: str,
    base: Tensor,
    steps: int,
    target: Target,
    cell: tuple[int, int, int] = (1, 1, 1),
) -> tuple[list[float], list[float]]:
    """From the definition: cells one by one into a list, sorted by their mean, one forward a point."""
    cells = []
    for t, y, x in itertools.product(*(range(0, n, k) for n, k in zip(c.size, cell, strict=True))):
        where = torch.zeros(c.size, dtype=torch.bool)
        where[t : t + cell[0], y : y + cell[1], x : x + cell[2]] = True
        cells.append((float(saliency[where].double().mean()), where))
    cells.sort(key=lambda item: -item[0])
    xs, ys = [], []
    for i in range(steps):
        count = int(np.floor(i * len(cells) / (steps - 1) + 0.5))
        chosen = torch.zeros(c.size, dtype=torch.bool)
        for _, where in cells[:count]:
            chosen |= where
        keep = chosen if mode == "insertion" else ~chosen
        altered = torch.where(keep, c.pixels, base)
        xs.append(count / len(cells))
        ys.append(float(target(model(altered[None]), model.output)))  # type: ignore[attr-defined,operator]
    return xs, ys


def bases(c: Clip) -> dict[str, Tensor]:
    """What is left where all is removed, from the definitions of the fills."""
    nothing = torch.zeros(1, *c.size)
    return {name: FILLS[name].over(c.pixels)(nothing)[0] for name in ("black", "mean", "blur", "noise")}


@pytest.mark.parametrize("mode", ["insertion", "deletion"])
@pytest.mark.parametrize("name", ["black", "mean", "blur", "noise"])
@pytest.mark.parametrize("target", [Prob(2), Logit(0), Contrast(1, 2)])
def test_a_curve_equals_its_definition(mode: str, name: str, target: Target):
    model, c, saliency = Box(SIZE), clip(SIZE), noise(5)
    drawn = curves(model, c, [saliency], [target], modes=[mode], fills=[name], steps=11, run=FP32)  # type: ignore[list-item]
    xs, ys = slow_curve(model, c, saliency, mode, bases(c)[name], 11, target)
    np.testing.assert_allclose(drawn.places, xs, atol=1e-12)
    np.testing.assert_allclose(drawn.values[0][0, 0], ys, atol=1e-5)
    area = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(xs, xs[1:], ys, ys[1:], strict=False))
    assert float(drawn.areas[0][0, 0]) == pytest.approx(area, abs=1e-5)


@pytest.mark.parametrize("cell", [(2, 2, 2), (4, 1, 1), (3, 4, 5), (9, 9, 2)])
@pytest.mark.parametrize("mode", ["insertion", "deletion"])
def test_cells_come_and_go_as_a_whole_in_the_order_of_their_mean(mode: str, cell: tuple[int, int, int]):
    model, c, saliency = Box(SIZE), clip(SIZE), noise(6)
    most = int(np.prod([-(-n // k) for n, k in zip(SIZE, cell, strict=True)])) + 1
    steps = min(7, most)
    found = one(model, c, saliency, mode, cell=cell, steps=steps)
    _, ys = slow_curve(model, c, saliency, mode, torch.zeros_like(c.pixels), steps, Prob(1), cell)
    np.testing.assert_allclose(found, ys, atol=1e-5)


def test_more_steps_than_cells_give_as_many_points_as_there_are():
    drawn = curves(Box(SIZE), clip(SIZE), [noise(0)], [Prob(1)], cell=(4, 3, 4), steps=32, run=FP32)
    assert drawn.places.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert drawn.forwards == 3 + 2 * 3


def test_freezing_is_deletion_of_motion_alone():
    """With the fill that depends on the mask: the recurrence again, for a mask made by hand."""
    model, c, saliency = Box(SIZE), clip(SIZE), noise(7)
    drawn = curves(model, c, [saliency], [Prob(1)], modes=["deletion"], fills=["freeze"], steps=5, run=FP32)
    order = saliency.flatten().argsort(descending=True)
    for point, count in enumerate([0, 48, 96, 144, 192]):
        keep = torch.ones(N)
        keep[order[:count]] = 0
        keep = keep.view(SIZE)
        altered = torch.empty_like(c.pixels)
        for y, x in itertools.product(range(SIZE[1]), range(SIZE[2])):
            shown = [t for t in range(SIZE[0]) if keep[t, y, x]]
            for t in range(SIZE[0]):
                before, after = [s for s in shown if s <= t], [s for s in shown if s > t]
                from_ = before[-1] if before else after[0] if after else None
                altered[:, t, y, x] = (
                    c.pixels[:, :, y, x].mean(1) if from_ is None else c.pixels[:, from_, y, x]
                )
        assert float(drawn.values[0][0, 0, point]) == pytest.approx(
            float(model(altered[None]).softmax(1)[0, 1]), abs=1e-5
        )


# ── torchcam ─────────────────────────────────────────────────────────────────────────────────────────────


def test_areas_equal_those_of_torchcam_on_clips():
    from torchcam.metrics import DeletionInsertionMetric

    c = clip((4, 8, 8), seed=3)
    net = order_one(
        nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)
        ),
        c.pixels[None],
    )
    saliency = noise(8, (4, 8, 8))

    class Extractor:  # of a map that is already there, at the size of the clip
        model = net

        def __call__(self, *args: object, **kwargs: object) -> list[Tensor]:
            return [saliency[None]]

        def fuse_cams(self, cams: list[Tensor]) -> Tensor:
            return cams[0]

        def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    base = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for kind, removed in (("zeros", None), ("given", base)):
        theirs = DeletionInsertionMetric(
            Extractor(), lambda z: z.softmax(dim=1), steps=16, baseline=removed, batch_size=7
        )
        theirs.update(c.pixels[None], class_idx=3)
        wanted = theirs.summary()
        fill = (
            Black()
            if kind == "zeros"
            else SimpleNamespace(over=lambda pixels: lambda m: torch.where(m[:, None] > 0, pixels, base))
        )
        drawn = curves(
            TorchModel(net, pack=lambda x: x),
            c,
            [saliency],
            [Prob(3)],
            fills=[fill, fill],  # type: ignore[list-item]
            steps=17,
            run=FP32,
        )
        insertion, deletion = (float(area[0, 0]) for area in drawn.areas)
        assert insertion == pytest.approx(wanted["insertion_auc"], abs=1e-4)
        assert deletion == pytest.approx(wanted["deletion_auc"], abs=1e-4)


# ── what is shared ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("maps", "steps"), [(1, 2), (1, 32), (5, 32), (3, 7)])
def test_maps_share_their_ends(maps: int, steps: int):
    model = Counting()
    drawn = curves(model, clip(SIZE), [noise(i) for i in range(maps)], [Prob(1)], steps=steps, run=FP32)
    assert drawn.forwards == sum(model.batches) == 3 + 2 * maps * (steps - 2)
    model = Counting()
    drawn = curves(
        model, clip(SIZE), [noise(i) for i in range(maps)], [Prob(1)], fills=BLACK, steps=steps, run=FP32
    )
    assert drawn.forwards == sum(model.batches) == 2 + 2 * maps * (steps - 2)


def test_batches_run_on_over_maps_modes_and_fills():
    model = Counting()
    curves(model, clip(SIZE), [noise(i) for i in range(3)], [Prob(1)], steps=6, run=Run(batch=10))
    assert model.batches == [1, 10, 10, 6]  # the intact clip, then 2 + 2 * 3 * 4


def test_curves_do_not_depend_on_the_batch_or_on_their_company():
    model, c, maps = Box(SIZE), clip(SIZE), [noise(i) for i in range(3)]
    whole = curves(model, c, maps, [Prob(1), Logit(2)], steps=9, run=Run(batch=1))
    again = curves(model, c, maps, [Prob(1), Logit(2)], steps=9, run=Run(batch=16))
    for a, b in zip(whole.values, again.values, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    for i, saliency in enumerate(maps):
        for j, target in enumerate([Prob(1), Logit(2)]):
            alone = curves(model, c, [saliency], [target], steps=9, run=FP32)
            for a, b in zip(whole.values, alone.values, strict=True):
                torch.testing.assert_close(a[j, i], b[0, 0], atol=1e-6, rtol=0)


def test_targets_and_maps_that_rank_alike_cost_nothing():
    model = Counting()
    maps = [noise(0), noise(1), 2 * noise(0)]
    drawn = curves(model, clip(SIZE), maps, [Prob(i) for i in range(3)], steps=5, run=FP32)
    assert sum(model.batches) == 3 + 2 * 2 * 3
    assert drawn.values[0].shape == (3, 3, 5)
    assert torch.equal(drawn.values[0][:, 0], drawn.values[0][:, 2])
    assert not torch.equal(drawn.values[0][:, 0], drawn.values[0][:, 1])


def test_a_time_limit_does_not_cut_a_curve():
    drawn = curves(Box(SIZE), clip(SIZE), [noise(0)], [Prob(1)], run=Run(seconds=1e-9, batch=1))
    assert drawn.values[0].shape == (1, 1, 32)


def test_infinity_is_an_error_that_says_where():
    class Sick(Box):
        def __call__(self, clips: Tensor) -> Tensor:
            return super().__call__(clips) / (clips.amax(dim=(1, 2, 3, 4))[:, None] > 0)

    with pytest.raises(ScoreError, match="the clip under mask 0 of 61"):
        curves(Sick(SIZE), clip(SIZE), [noise(0)], [Prob(1)], fills=BLACK, run=FP32)


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────


def test_ties_are_broken_by_the_seed_and_not_by_place():
    first = torch.zeros(SIZE, dtype=torch.bool)
    first[0] = True  # in raster order a flat map would put this frame in first
    model, flat = Share(first), torch.zeros(SIZE)
    areas = []
    for seed in range(8):
        values = one(model, white(), flat, steps=9, seed=seed)
        rank = ranking(flat, seed)
        expected = [float((rank[first] < round(N * i / 8)).float().mean()) for i in range(9)]
        np.testing.assert_allclose(values, expected, atol=1e-6)
        areas.append(float(values.mean()))
    assert len(set(areas)) > 1
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)  # 1 - 1/8 in raster order


@pytest.mark.parametrize("make", [Insertion, Deletion])
def test_rounding_is_no_order(make: type[Insertion | Deletion]):
    """A flat coarse grid scores as a flat map, and one that stands still as its mean over time."""
    size = (16, 16, 16)
    metric, c = make(steps=9), clip(size)
    box = torch.zeros(size, dtype=torch.bool)
    box[5:9, 5:9, 5:9] = True
    model = Share(box)
    same = explanation_of(torch.full(size, 0.3))
    maps = [flat(), same, standing(0), standing(1)]
    found, equal, *still = metric(model, c, maps, run=FP32)
    assert found.value == equal.value
    assert found.curve == equal.curve
    for score in (found, *still):
        assert score.value == score.anchors["time_mean"]


def test_zeros_are_ties_and_small_values_are_not():
    sparse = torch.zeros(SIZE)
    sparse[1, 2:4, 3] = torch.tensor([1.0, 2.0])
    metric = Insertion(anchors=False, steps=N + 1)
    (score,) = metric(Box(SIZE), clip(SIZE), [explained(sparse)], run=FP32)
    expected = one(Box(SIZE), clip(SIZE), sparse, fills=["blur"], steps=N + 1)
    assert score.curve is not None
    np.testing.assert_allclose(score.curve[1], expected, atol=1e-6)
    small = torch.where(sparse > 0, sparse * 1e-30, 1e-36)  # small all over is not rounding
    torch.testing.assert_close(one(Box(SIZE), clip(SIZE), small, fills=["blur"], steps=N + 1), expected)


def test_what_no_crop_saw_comes_last():
    saliency = noise(0)
    saliency[:, :, :3] = torch.nan
    lowest = saliency.nan_to_num(-100.0)
    model, c = Box(SIZE), clip(SIZE)
    for cell in ((1, 1, 1), (2, 3, 1)):
        torch.testing.assert_close(one(model, c, saliency, cell=cell), one(model, c, lowest, cell=cell))
    # a cell that was seen in part is ranked by that part: here the last, 5.0, is the first of all
    part = torch.tensor([[[1.0, 2.0, 3.0, 3.0, 5.0, torch.nan]]])
    x = Clip.from_array(np.ones((1, 1, 6, 3), dtype=np.float32))
    seen = torch.tensor([[[False, False, False, False, True, True]]])
    assert one(Share(seen), x, part, cell=(1, 1, 2), steps=4).tolist() == [0, 1, 1, 1]
    (score,) = Insertion(anchors=False, steps=5)(model, c, [explained_with_holes()], run=FP32)
    assert any("37.5% of the voxels were seen by no crop" in note for note in score.notes)


def explained_with_holes() -> Explanation:
    """Two parts that speak for the right five of eight columns."""
    from tubelens.layout import Grid

    values = noise(1, (4, 6, 5))
    t, y, x = (tuple(map(float, range(*ends))) for ends in ((0, 4), (0, 6), (3, 8)))
    part = Grid(values, t, y, x, (0, 4), area=(0, 3, 6, 8))
    whole = explained(noise(0))
    return Explanation((part, part), SIZE, whole.source, whole.target, whole.provenance)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_share_one_queue_and_split_its_cost():
    model = Counting()
    whys = [explained(noise(i), Prob(i % 3)) for i in range(4)]
    metrics = [Insertion(steps=8), Deletion(steps=8), Deletion(steps=8, fill="blur", score="logit")]
    found = together(metrics, model, clip(SIZE), whys, Truth(tube()), FP32)
    maps = 4 + 4 + 4  # maps, their means over time; random, centre, difference, oracle
    assert sum(model.batches) == 3 + 3 * maps * 6
    assert sum(score.forwards for row in found for score in row) == pytest.approx(sum(model.batches))
    assert [len(row) for row in found] == [4, 4, 4]
    # and each is what it is alone
    for metric, row in zip(metrics, found, strict=True):
        for why, score in zip(whys, row, strict=True):
            (alone,) = metric(Box(SIZE), clip(SIZE), [why], Truth(tube()), FP32)
            assert alone.value == pytest.approx(score.value, abs=1e-6)
            assert alone.anchors == pytest.approx(score.anchors, abs=1e-6)
            assert alone.facts == pytest.approx(score.facts, abs=1e-6)


def test_other_settings_are_other_queues():
    model = Counting()
    metrics = [Insertion(steps=8, anchors=False), Deletion(steps=5, anchors=False)]
    found = together(metrics, model, clip(SIZE), [explained(noise(0))], run=FP32)
    assert sum(model.batches) == (2 + 6) + (2 + 3)
    assert [row[0].forwards for row in found] == [8, 5]
    assert together([], model, clip(SIZE), [explained(noise(0))]) == []
    assert together(metrics, model, clip(SIZE), []) == [[], []]


@pytest.mark.parametrize(
    "other",
    [{"steps": 5}, {"cell": (2, 2, 2)}, {"seed": 1}, {"anchors": False}, {"parity": "icpr2022"}],
)
def test_metrics_that_differ_keep_their_own_settings(other: dict[str, object]):
    _each_as_alone([Deletion(steps=6), Deletion(**{"steps": 6} | other)])  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"snippet": 4}, {"seed": 1}, {"anchors": False}])
def test_so_do_published_ones(other: dict[str, object]):
    _each_as_alone([Deletion(parity="icpr2022"), Deletion(parity="icpr2022", **other)])  # type: ignore[arg-type]


def _each_as_alone(metrics: list[Deletion]) -> None:
    model, c, why = Box(SIZE), clip(SIZE), explained(noise(3).relu())
    (first,), (second,) = (metric(model, c, [why], run=FP32) for metric in metrics)
    assert (first.value, first.anchors) != (second.value, second.anchors)
    for order in ((0, 1), (1, 0)):
        both = together([metrics[i] for i in order], model, c, [why], run=FP32)
        for i, (score,) in zip(order, both, strict=True):
            alone = (first, second)[i]
            assert score.value == pytest.approx(alone.value, abs=1e-6)
            assert score.anchors == pytest.approx(alone.anchors, abs=1e-6)
            assert score.forwards == alone.forwards


@pytest.mark.parametrize("kind", ["prob", "logit"])
@pytest.mark.parametrize("given_", [Prob(2), Logit(2), Contrast(2, 0)])
def test_a_score_is_its_curve_with_anchors(kind: str, given_: Target):
    model, c, truth = Box(SIZE), clip(SIZE), Truth(tube())
    read: Target = given_ if isinstance(given_, Contrast) else Prob(2) if kind == "prob" else Logit(2)
    saliency = noise(3)
    for metric in (Insertion(steps=7, score=kind, seed=4), Deletion(steps=7, score=kind, seed=4)):  # type: ignore[arg-type]
        (score,) = metric(model, c, [explained(saliency, given_)], truth, FP32)
        maps = {"map": saliency} | anchor_maps(saliency, c, truth, seed=4)
        drawn = curves(
            model,
            c,
            list(maps.values()),
            [read],
            modes=[metric.mode],
            fills=[metric.fill],
            steps=7,
            seed=4,
            run=FP32,
        )
        areas = dict(zip(maps, drawn.areas[0][0].tolist(), strict=True))
        assert score.value == pytest.approx(areas.pop("map"), abs=1e-6)
        assert score.anchors == pytest.approx(areas, abs=1e-6)
        wanted = between_anchors(score)
        assert score.normalised == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
        assert (wanted is None) == any("no normalised score" in note for note in score.notes)
        values = drawn.values[0][0, 0]
        assert score.curve is not None
        np.testing.assert_allclose(score.curve[0], drawn.places)
        np.testing.assert_allclose(score.curve[1], values, atol=1e-6)
        assert score.facts["intact"] == pytest.approx(float(read(model(c.pixels[None]))), abs=1e-6)
        assert score.facts["start"] == pytest.approx(float(values[0]), abs=1e-6)
        assert score.facts["end"] == pytest.approx(float(values[-1]), abs=1e-6)
        assert score.facts["logit"] == float(not isinstance(read, Prob))
        assert score.higher_is_better is (metric.mode == "insertion")
        if metric.mode == "deletion":
            assert score.facts["aopc"] == pytest.approx(float((values[0] - values).mean()), abs=1e-6)
        else:
            assert "aopc" not in score.facts


def test_the_truth_is_worth_one_and_what_is_told_where_a_map_loses():
    model, c, truth = Share(tube()), white(), Truth(tube())
    best, worst = explained(tube().float()), explained(-tube().float())
    metrics = [Insertion(fill="black", steps=9), Deletion(fill="black", steps=9)]
    insertion, deletion = together(metrics, model, c, [best, worst], truth, FP32)
    for good, bad in (insertion, deletion):
        assert good.normalised == pytest.approx(1)
        assert good.notes == ()
        assert bad.normalised is not None
        assert bad.normalised < -0.5
        assert "does worse than a random order" in bad.notes[0]
    assert not any("deletion alone misleads" in note for note in insertion[1].notes)
    assert sum("deletion alone misleads" in note for note in deletion[1].notes) == 1
    (bare,) = Deletion(fill="black", steps=9, anchors=False)(model, c, [worst], truth, FP32)
    assert bare.anchors == {}
    assert bare.normalised is None
    assert bare.notes == ()


def test_a_fill_that_leaves_the_score_where_it_was_is_told():
    model = Share(tube(), 0.9, -0.5)  # the tube speaks against the class
    (score,) = Insertion(fill="black", anchors=False)(model, white(), [explained(noise(0))], run=FP32)
    assert score.notes == (
        "the target is no lower (0.900) where nothing of the clip is left than on the clip itself (0.400):"
        " the area says little; try another fill",
    )
    (score,) = Deletion(fill="black", anchors=False)(model, white(), [explained(noise(0))], run=FP32)
    assert "(0.900) where nothing of the clip is left" in score.notes[0]


@pytest.mark.parametrize("task", ["key", "dir"])
def test_planted_evidence_wins(task: str):
    """On the bundled network the object that decides beats the objects that do not, and a random order."""
    model = tl.load_model("bundled")
    planted = generate(1, task=task)  # type: ignore[arg-type]
    c = planted.clip()
    where = planted.truth.float()
    whys = [
        explained_at(c, where, planted.label),
        explained_at(c, planted.distractor.float(), planted.label),
    ]
    metrics = [Insertion(steps=7), Deletion(steps=7, cell=(2, 4, 4))]
    for row in together(metrics, model, c, whys, Truth(planted.truth), Run(batch=16, precision="fp32")):
        right, wrong = row
        sign = 1 if right.higher_is_better else -1
        assert sign * right.value > sign * wrong.value
        assert sign * right.value > sign * right.anchors["random"]
        if task == "dir" and right.higher_is_better:  # a blurred clip shows the direction: all score .999
            assert right.normalised is None
        else:
            assert right.normalised == pytest.approx(1, abs=1e-3)


def explained_at(c: Clip, saliency: Tensor, label: int) -> Explanation:
    base = explained(saliency, Logit(label))
    return Explanation(base.parts, c.size, c.source, base.target, base.provenance)


def test_a_metric_is_its_repr_and_fits_the_protocol():
    for metric in (
        Insertion(),
        Insertion(fill=Blur(2), cell=(2, 4, 4)),
        Deletion(seed=3),
        Deletion(fill=Freeze()),
    ):
        assert eval(repr(metric), {**globals(), "Insertion": Insertion, "Deletion": Deletion}) == metric
        assert metric.kind == "curve"
        assert not metric.needs_truth
    typed: Sequence[CurveMetric] = (Insertion(), Deletion())
    assert [m.higher_is_better for m in typed] == [True, False]
    assert Deletion().fill == "mean"
    assert FILLS["mean"] == Mean()


@pytest.mark.parametrize("metric", [Insertion, Deletion])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "a curve has at least 2 points"),
        ({"cell": (0, 1, 1)}, "at least 1 along time, height and width"),
        ({"cell": (2, 2)}, "at least 1 along time, height and width"),
        ({"cell": (1.5, 2, 2)}, "three whole numbers"),
        ({"cell": 2}, "three whole numbers"),
        ({"fill": 3}, "a fill is one of"),
        ({"fill": None}, "a fill is one of"),
        ({"fill": Blur}, "a fill is one of"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"seed": 2**63}, "a seed is a whole number"),
        ({"seed": 1.0}, "a seed is a whole number"),
        ({"fill": "blurr"}, "did you mean 'blur'"),
        ({"score": "p"}, "score is 'prob' or 'logit', not 'p'"),
        ({"parity": "icpr"}, "parity is None or 'icpr2022'"),
        ({"snippet": 0}, "a segment has at least one frame"),
    ],
)
def test_options_that_mean_nothing(
    metric: type, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=message):
        metric(**options)


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    model, c = Box(SIZE), clip(SIZE)
    with pytest.raises(OptionError, match="the map is 4x6x7 and the clip 4x6x8"):
        curves(model, c, [noise(0, (4, 6, 7))], [Prob(1)])
    with pytest.raises(OptionError, match="the map is 4x6x7 and the clip 4x6x8"):
        Deletion()(model, c, [explained(noise(0, (4, 6, 7)))])
    with pytest.raises(OptionError, match="the truth is 1x6x8 and the map 4x6x8"):
        Deletion()(model, c, [explained(noise(0))], Truth(torch.ones(1, 6, 8, dtype=torch.bool)))
    with pytest.raises(OptionError, match="at least 2 points, its ends, not 1"):
        curves(model, c, [noise(0)], [Prob(1)], steps=1)
    with pytest.raises(OptionError, match="modes are insertion and deletion"):
        curves(model, c, [noise(0)], [Prob(1)], fills=["black"])
    with pytest.raises(OptionError, match="modes are insertion and deletion"):
        curves(model, c, [noise(0)], [Prob(1)], modes=["delete"])  # type: ignore[list-item]
