"""ROAD: the imputation against a dense solve and against pytorch-grad-cam's, and the scores step by step."""

from __future__ import annotations

import itertools
import math

import jaxtyping
import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import Tensor

from tests.metrics.maps import between_anchors, explanation_of, flat, standing
from tests.metrics.test_drop import FP32, SIZE, explanation, half_seen, linear, random_map, tube, white
from tests.perturbed import Box, clip
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.masks import ranking
from tubelens.metrics.anchors import anchor_maps
from tubelens.metrics.protocol import Metric
from tubelens.metrics.road import PERCENT, ROAD, Imputed, ROADLeRF, impute, together
from tubelens.model import BlackBox
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob
from tubelens.truth import Truth


def dense(pixels: Tensor, kept: Tensor) -> Tensor:
    """The system written out, an equation a removed voxel: a neighbour's weight is (1/2)^(steps - 1) / 7."""
    t, h, w = kept.shape
    holes = [tuple(v) for v in (~kept).nonzero().tolist()]
    number = {v: i for i, v in enumerate(holes)}
    a, b = np.eye(len(holes)), np.zeros((len(holes), len(pixels)))
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]
    for v, i in number.items():
        around = {}
        for s in steps:
            u = tuple(p + q for p, q in zip(v, s, strict=True))
            if all(0 <= p < n for p, n in zip(u, (t, h, w), strict=True)):
                around[u] = {1: 1 / 14, 2: 1 / 28, 3: 1 / 56}[sum(map(abs, s))]
        total = sum(around.values())
        if len(around) == 26:
            assert total == pytest.approx(1)
        for u, weight in around.items():
            if u in number:
                a[i, number[u]] -= weight / total
            else:
                b[i] += weight / total * pixels[(slice(None), *u)].double().numpy()
    found = pixels.double().clone()
    for v, value in zip(holes, np.linalg.solve(a, b), strict=True):
        found[(slice(None), *v)] = torch.from_numpy(value)
    return found


def scattered(size: tuple[int, int, int], share: float, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) > share


def block(size: tuple[int, int, int]) -> Tensor:
    kept = torch.ones(size, dtype=torch.bool)
    kept[1:4, 1:6, 0:5] = False
    return kept


@pytest.mark.parametrize("size", [(5, 7, 6), (1, 9, 8), (6, 1, 7), (4, 6, 1)])
def test_equals_a_dense_solve(size: tuple[int, int, int]):
    pixels = torch.rand(2, *size, generator=torch.Generator().manual_seed(1))
    masks = [scattered(size, 0.3), scattered(size, 0.9, 1), torch.ones(size, dtype=torch.bool)]
    masks += [block(size)] if size == (5, 7, 6) else []
    kept = torch.stack(masks)
    found = impute(pixels, kept)
    for row, mask in zip(found, kept, strict=True):
        assert (row.double() - dense(pixels, mask)).abs().max() < 1e-5
        assert torch.equal(row[:, mask], pixels[:, mask])
    assert float(found.max()) <= float(pixels.max())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of what their code does
def test_equals_pytorch_grad_cam_on_one_frame(share: float):
    pixels, kept = torch.rand(3, 1, 12, 10), scattered((1, 12, 10), share, 3)
    theirs = NoisyLinearImputer(noise=0.0)(pixels[:, 0], kept[0].float())
    torch.testing.assert_close(impute(pixels, kept[None])[0, :, 0], theirs, atol=1e-5, rtol=0)


def test_a_hidden_ramp_is_restored_exactly():
    t, y, x = torch.meshgrid(*(torch.arange(n) / n for n in (9, 12, 11)), indexing="ij")
    ramp = (0.3 * t + 0.4 * y + 0.2 * x)[None]
    kept = torch.ones(9, 12, 11, dtype=torch.bool)
    kept[2:8, 3:9, 1:8] = False
    torch.testing.assert_close(impute(ramp, kept[None])[0], ramp, atol=1e-5, rtol=0)


def test_a_clip_by_itself_is_restored_as_in_a_batch():
    pixels = torch.rand(2, 4, 9, 9)
    easy, hard = scattered((4, 9, 9), 0.1), scattered((4, 9, 9), 0.97, 2)
    both = impute(pixels, torch.stack([easy, hard]))
    alone = torch.cat([impute(pixels, easy[None]), impute(pixels, hard[None])])
    torch.testing.assert_close(both, alone, atol=1e-7, rtol=0)


def test_the_last_voxel_that_is_kept_fills_the_clip():
    pixels, kept = torch.rand(3, 2, 5, 4), torch.zeros(1, 2, 5, 4, dtype=torch.bool)
    kept[0, 1, 2, 3] = True
    expected = pixels[:, 1, 2, 3][None, :, None, None, None].expand(1, 3, 2, 5, 4)
    torch.testing.assert_close(impute(pixels, kept), expected, atol=1e-5, rtol=0)
    with pytest.raises(OptionError, match="no voxel is kept"):
        impute(pixels, kept & False)


def test_versions_are_numbered_by_ranking_and_count():
    """Removed voxels have the seeded noise on them, the same in all versions, and kept ones none."""
    pixels = clip(SIZE).pixels
    ranks = [ranking(random_map(s)) for s in (1, 2)]
    family = Imputed(ranks, [30, 100, 200], noise=0.02, seed=5)
    assert len(family) == 6
    made = family.over(pixels)
    whole, masks = made(0, 6)
    assert masks is None
    torch.testing.assert_close(torch.cat([made(0, 1)[0], made(1, 4)[0], made(4, 6)[0]]), whole)
    noise = []
    for number, (rank, count) in enumerate(itertools.product(ranks, (30, 100, 200))):
        kept = rank >= count
        assert int((~kept).sum()) == count
        left = whole[number] - impute(pixels, kept[None])[0]
        assert not left[:, kept].any()
        noise.append(left.where(~kept, torch.nan))
    assert float(noise[2].nanmean()) == pytest.approx(0, abs=0.003)
    assert float(noise[2][~noise[2].isnan()].std()) == pytest.approx(0.02, rel=0.1)
    both = ~(noise[2].isnan() | noise[5].isnan())
    torch.testing.assert_close(noise[2][both], noise[5][both], atol=1e-6, rtol=0)
    assert not torch.equal(Imputed(ranks, [30], seed=6).over(pixels)(0, 1)[0], whole[:1])


@pytest.mark.parametrize(("make", "sign"), [(ROAD, -1), (ROADLeRF, 1)])
def test_step_by_step(make: type[ROAD | ROADLeRF], sign: int):
    """Sorted by value, removed, restored, scored: voxel sets and means done slowly."""
    model, c, n = Box(SIZE), clip(SIZE), math.prod(SIZE)
    whys = [explanation(random_map(1), Prob(2)), half_seen(random_map(2))]
    whys[1] = explanation(whys[1].saliency.nan_to_num(nan=-9.0), Contrast(0, 1))
    truth = Truth(tube())
    scores = make(percent=(20, 50, 70), noise=0.0, seed=2)(model, c, whys, truth, FP32)
    for score, why in zip(scores, whys, strict=True):

        def values(saliency: Tensor) -> list[float]:
            order = [int(i) for i in ranking(saliency, 2).flatten().argsort()]  # most salient first
            order = order if make is ROAD else order[::-1]
            found = []
            for share in (0.2, 0.5, 0.7):
                kept = torch.ones(n, dtype=torch.bool)
                kept[order[: round(share * n)]] = False
                z = model(dense(c.pixels, kept.view(SIZE)).float()[None])[0]
                p = z.softmax(0)
                found.append(float(p[2] if why.target == Prob(2) else z[0] - z[1]))  # noqa: B023
            return found

        own = values(why.saliency)
        z = model(c.pixels[None])[0]
        intact = float(z.softmax(0)[2] if why.target == Prob(2) else z[0] - z[1])
        assert score.curve is not None
        assert score.curve[0] == (0.0, 0.2, 0.5, 0.7)
        assert score.curve[1] == pytest.approx([intact, *own], abs=1e-4)
        assert score.value == pytest.approx(sum(own) / 3, abs=1e-4)
        assert score.facts["intact"] == pytest.approx(intact, abs=1e-5)
        orders = anchor_maps(why.saliency, c, truth, 2)
        assert score.anchors.keys() == orders.keys()
        for name in ("random", "oracle", "time_mean"):
            expected = sum(values(orders[name])) / 3
            assert score.anchors[name] == pytest.approx(expected, abs=1e-4)
        wanted = between_anchors(score)
        assert score.normalised == (None if wanted is None else pytest.approx(wanted))
        assert (wanted is None) == any("no normalised score" in note for note in score.notes)
        assert score.higher_is_better == (sign > 0)


def test_least_salient_first_is_the_reverse_ranking():
    c, m = clip(SIZE), random_map(4)
    seen: list[Tensor] = []

    def score(clips: Tensor) -> Tensor:
        seen.extend(clips)
        return Box(SIZE)(clips)

    for make in (ROAD, ROADLeRF):
        make(percent=(50,), anchors=False)(BlackBox(score), c, [explanation(m)], run=FP32)
    _, first, _, last = ((x != c.pixels).any(dim=0) for x in seen)
    assert torch.equal(first, ~last)
    assert float(m[first].min()) > float(m[last].max())
    seen.clear()
    ROAD(percent=(50,), anchors=False)(BlackBox(score), c, [half_seen(m)], run=FP32)
    first = (seen[1] != c.pixels).any(dim=0)
    assert first[:, 4:].all()  # what no crop saw is least salient
    assert not first[:, :4].any()


def test_the_truth_wins_and_nothing_else():
    """A white tube on black, and a score that is its brightness: gone is what is removed."""
    c = Clip.from_array(np.repeat(tube().numpy()[..., None].astype(np.float32), 3, axis=3))
    given = [explanation(tube().float()), explanation(-tube().float()), explanation(random_map(3))]
    morf, lerf = together([ROAD(), ROADLeRF()], linear(0.1, 0.8), c, given, Truth(tube()), FP32)
    assert [s.normalised for s in (morf[0], lerf[0])] == [1, 1]
    assert morf[0].value < 0.2 < morf[2].value < morf[1].value
    assert lerf[0].value > 0.8 > lerf[2].value > lerf[1].value
    assert not morf[0].notes
    assert "worse than a random order" in morf[1].notes[0]


def test_both_directions_share_a_queue():
    calls: list[int] = []
    inner = Box(SIZE)

    def score(clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return inner(clips)

    given = [explanation(random_map(s), Prob(s)) for s in range(2)]
    metrics = [ROAD(), ROADLeRF(), ROAD(score="logit")]
    found = together(metrics, BlackBox(score), clip(SIZE), given, Truth(tube()), FP32)
    assert sum(calls) == 1 + 2 * 9 * (2 + 2 + 4)
    assert sum(s.forwards for row in found for s in row) == pytest.approx(sum(calls))
    (alone,) = ROAD(score="logit")(
        inner, clip(SIZE), [explanation(random_map(1), Logit(1))], Truth(tube()), FP32
    )
    assert alone.value == pytest.approx(found[2][1].value, abs=1e-6)
    assert alone.value != pytest.approx(found[0][1].value, abs=1e-3)
    by_batch = [
        ROAD(anchors=False)(inner, clip(SIZE), given[:1], run=Run(batch=b, precision="fp32"))[0].value
        for b in (1, 4, 9)
    ]
    assert by_batch == pytest.approx([found[0][0].value] * 3, abs=1e-6)
    assert together([ROAD()], inner, white(), []) == [[]]


def test_maps_that_rank_alike_are_scored_once_and_rounding_is_no_order():
    size, calls, inner = (16, 16, 16), [], Box((16, 16, 16))

    def score(clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return inner(clips)

    metric = ROAD(percent=(30, 60))
    maps = [standing(), standing(), flat(), explanation_of(torch.full(size, 0.3))]
    a, b, c, d = metric(BlackBox(score), clip(size), maps, run=FP32)
    assert sum(calls) == 1 + 2 * (2 + 3)  # one that stands still, a flat one; random, centre, difference
    assert a.value == b.value == a.anchors["time_mean"] != c.value
    assert c.value == d.value == c.anchors["time_mean"]
    assert a.curve == b.curve


def test_other_noise_is_another_queue_and_one_voxel_is_always_kept():
    given = [explanation(random_map(0))]
    metrics = [ROAD(noise=0.0, anchors=False), ROAD(noise=0.3, anchors=False)]
    quiet, noisy = together(metrics, Box(SIZE), clip(SIZE), given, run=FP32)
    assert abs(quiet[0].value - noisy[0].value) > 1e-3
    tiny = (1, 2, 2)
    (score,) = ROAD(percent=(99,), noise=0.0)(
        Box(tiny), clip(tiny), [explanation(random_map(0, tiny))], run=FP32
    )
    assert 0 < score.value < 1


def test_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    for make in (ROAD, ROADLeRF):
        metric = make(percent=(5, 50), noise=0.1, seed=3)
        assert eval(repr(metric), {make.__name__: make}) == metric
        assert isinstance(metric, Metric)
        for percent in ((), (0, 10), (10, 100), (20, 10), (10, 10)):
            with pytest.raises(OptionError, match="percentages"):
                make(percent=percent)
        with pytest.raises(OptionError, match="noise"):
            make(noise=-1.0)
        with pytest.raises(OptionError, match="score"):
            make(score="p")  # type: ignore[arg-type]
    assert tuple(range(10, 100, 10)) == PERCENT
