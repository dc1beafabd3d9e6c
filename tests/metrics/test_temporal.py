"""Time altered inside and outside tubes, and window by window: against loops, closed forms and scipy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Tensor

import tubelens as tl
from tests.metrics.maps import between_anchors, standing
from tests.perturbed import Box, clip
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation, Provenance
from tubelens.fill import Freeze
from tubelens.layout import Grid
from tubelens.methods.record import voxels
from tubelens.metrics.anchors import frame_difference
from tubelens.metrics.edits import Tube, distinct, edits, orders, retimed, top_voxels, volume_of
from tubelens.metrics.protocol import CurveMetric
from tubelens.metrics.temporal import TemporalEdit, Windows, time_profile, window_agreement
from tubelens.model import BlackBox
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.truth import Truth

SIZE = (8, 10, 12)
KINDS = ("freeze", "shuffle", "reverse")


def explained(saliency: Tensor, target: Target = Prob(1)) -> Explanation:  # noqa: B008
    size = tuple(saliency.shape)
    source = clip(size).source
    made = Provenance("by hand", "black box", "none", None, "1", 0.0, 0.0, ())
    return Explanation((voxels(saliency),), size, source, target, made)


def moving(frames: Sequence[int] = range(2, 7)) -> Tensor:
    """A 2 x 3 block that moves one column a frame."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for t in frames:
        mask[t, 4:6, t : t + 3] = True
    return mask


def ramp(mask: Tensor) -> Clip:
    """Grey, and in the hull of the mask brighter from frame to frame: 0 in the first, 1 in the last."""
    pixels = torch.full((3, *SIZE), 0.5)
    t = torch.linspace(0, 1, SIZE[0])[:, None]
    pixels[:, :, mask.any(dim=0)] = t.expand(3, SIZE[0], int(mask.any(dim=0).sum()))
    return Clip.from_array(pixels.permute(1, 2, 3, 0))


class Rises:
    """The probability of class 1 is 1/2 + 2/5 (last - first frame), in the mean over some pixels."""

    output = "probs"

    def __init__(self, where: Tensor, first: int = 0, last: int = SIZE[0] - 1) -> None:
        self.where, self.first, self.last, self.batches = where, first, last, []

    def __call__(self, clips: Tensor) -> Tensor:
        self.batches.append(len(clips))
        seen = clips[..., self.where].mean(dim=(1, 3))
        p = 0.5 + 0.4 * (seen[:, self.last] - seen[:, self.first])
        return torch.stack([1 - p, p], dim=1)


# ── tubes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_region_is_the_hull_over_the_tubes_frames():
    mask = moving((2, 3, 6))
    tube = Tube(mask, 1)
    assert tube.frames == (2, 3, 6)
    assert tube.rest == (0, 1, 4, 5, 7)
    covered = {(y, x) for _, y, x in mask.nonzero().tolist()}
    wide = {(y + a, x + b) for y, x in covered for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert {tuple(p) for p in tube.hull.nonzero().tolist()} == wide
    expected = {(t, y, x) for t in (2, 3, 6) for y, x in wide}
    assert {tuple(p) for p in tube.region.nonzero().tolist()} == expected
    square = np.ones((1, 5, 5))
    assert np.array_equal(Tube(mask, 2).mask.numpy(), ndimage.binary_dilation(mask.numpy(), square))
    assert torch.equal(Tube(mask).mask, mask)


def test_shifted_tubes_keep_their_shape():
    tube = Tube(moving())
    for other in (*tube.elsewhere(5, seed=0), tube.centred(), tube.shifted((1, 2, 3))):
        assert other.region.sum() == tube.region.sum()
        assert other.voxels.sum() == tube.voxels.sum()
        assert len(other.frames) == len(tube.frames)
    assert all(other.key != tube.key for other in tube.elsewhere(5, seed=0))
    assert torch.equal(tube.shifted((1, 2, 3)).voxels, moving().roll((1, 2, 3), (0, 1, 2)))
    places = {t.key for t in tube.elsewhere(5, seed=0)}
    assert len(places) == 5
    assert places == {t.key for t in tube.elsewhere(5, seed=0)} != {t.key for t in tube.elsewhere(5, seed=1)}
    middle = tube.centred()
    y, x = middle.hull.nonzero().double().mean(dim=0).tolist()
    assert abs(y - 4.5) <= 0.5
    assert abs(x - 5.5) <= 0.5
    assert middle.frames == tube.frames
    assert tube.key == Tube(moving()).key != Tube(moving(), 1).key


def test_a_tube_elsewhere_is_never_where_it_is():
    """What lasts as long as the clip comes back to itself where it is moved in time alone."""
    slab, always = torch.zeros(2, *SIZE, dtype=torch.bool).unbind()
    slab[3:5], always[:, 2:5, 3:6] = True, True
    for mask in (slab, always):
        tubes = Tube(mask).elsewhere(400, seed=0)
        assert len(tubes) == 400
        assert not any(torch.equal(t.voxels, mask) for t in tubes)
    everywhere = Tube(torch.ones(SIZE, dtype=torch.bool))
    assert everywhere.elsewhere(3, seed=0) == []  # there is no other place
    assert Tube(torch.ones(1, 1, 1, dtype=torch.bool)).elsewhere(1, seed=0) == []


def test_the_top_voxels():
    saliency = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    found = top_voxels(saliency, 0.1)
    assert found.sum() == 96 == round(0.1 * 960)
    assert saliency[found].min() > saliency[~found].max()
    [best] = top_voxels(saliency, 1e-9).nonzero().tolist()
    assert saliency[tuple(best)] == saliency.max()

    ties = torch.zeros(SIZE)
    ties[3:5] = 1
    a, b = top_voxels(ties, 0.1, seed=0), top_voxels(ties, 0.1, seed=1)
    assert a.sum() == b.sum() == 96
    assert a[3:5].sum() == b[3:5].sum() == 96
    assert not torch.equal(a, b)
    assert 30 < a[3].sum() < 66  # not the early frames first

    spot = torch.zeros(SIZE)
    spot[2, 3, 4] = 1
    assert top_voxels(spot, 0.1).nonzero().tolist() == [[2, 3, 4]]
    assert not top_voxels(torch.full(SIZE, 0.3), 0.1).any()
    unseen = torch.full(SIZE, torch.nan)
    assert not top_voxels(unseen, 0.1).any()
    unseen[0] = torch.randn(SIZE[1:], generator=torch.Generator().manual_seed(1))
    assert top_voxels(unseen, 0.5).sum() == 119  # all that was seen but the lowest
    assert not top_voxels(unseen, 0.5)[1:].any()


def test_volume_is_the_users_then_the_truths():
    truth = Truth(moving())
    assert volume_of(0.2, truth) == 0.2
    assert volume_of(None, truth) == pytest.approx(30 / 960)
    assert volume_of(None, None) == volume_of(None, Truth(torch.zeros(SIZE, dtype=torch.bool))) == 0.05


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_orders():
    frames = [1, 2, 4, 5, 6, 9]
    assert orders("reverse", frames, 3) == [[9, 6, 5, 4, 2, 1]]
    assert orders("freeze", frames, 1) == [[5] * 6]  # of six frames, the fourth is the middle
    assert orders("freeze", frames, 3) == [[2] * 6, [5] * 6, [9] * 6]
    assert orders("freeze", frames, 2) == [[2] * 6, [6] * 6]
    assert orders("freeze", frames, 50) == [[t] * 6 for t in frames]
    found = orders("shuffle", frames, 40, seed=3)
    assert len(found) == 40
    assert all(sorted(o) == frames and o != frames for o in found)
    assert found == orders("shuffle", frames, 40, seed=3) != orders("shuffle", frames, 40, seed=4)
    for kind in KINDS:
        assert orders(kind, [7], 3) == [[7]]
        assert all(o == [] for o in orders(kind, [], 3))
    assert orders("shuffle", [3, 8], 5) == [[8, 3]]  # the only one that changes anything
    few = orders("shuffle", [3, 8, 9], 5)
    assert sorted(few) == sorted(map(list, itertools.permutations([3, 8, 9])))[1:]
    assert len({tuple(o) for o in orders("shuffle", range(4), 20)}) == 20


def test_shuffles_are_uniform_over_the_permutations_that_change_something():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(5000):
        [order] = orders("shuffle", range(3), 1, seed)
        counts[tuple(order)] = counts.get(tuple(order), 0) + 1
    assert set(counts) == set(itertools.permutations(range(3))) - {(0, 1, 2)}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(("inside", "outside", "whole")), st.integers(0, 10**6))
def test_edits_equal_the_loop_over_voxels(edit, where, seed):
    """Every voxel of the region shows its own pixel in the frame that its frame is given; the rest stays."""
    g = torch.Generator().manual_seed(seed)
    size = (6, 5, 4)
    mask = torch.rand(size, generator=g) < 0.08
    mask[2, 1, 1] = True
    mask[int(torch.randint(6, (), generator=g))] = False
    if not mask.any():
        mask[0, 0, 0] = True
    x = torch.rand(2, *size, generator=g)
    tube = Tube(mask)
    hull = {(b, c) for _, b, c in mask.nonzero().tolist()}
    mine = sorted({a for a, _, _ in mask.nonzero().tolist()})
    rest = [t for t in range(6) if t not in mine]
    found = edits(edit, where, size, tube, n=3, seed=seed)
    whole, inner, other = (orders(edit, f, 3, seed) for f in (range(6), mine, rest))
    assert len(found) == len(inner if where == "inside" else whole)
    for i, version in enumerate(found):
        expected = x.clone()
        for t, y, c in itertools.product(range(6), range(5), range(4)):
            if (where == "inside" and (y, c) in hull) and t in mine:
                expected[:, t, y, c] = x[:, inner[i][mine.index(t)], y, c]
            elif where == "whole" or (where == "outside" and (y, c) not in hull):
                expected[:, t, y, c] = x[:, whole[i][t], y, c]
            elif where == "outside" and t in rest:
                expected[:, t, y, c] = x[:, other[i % len(other)][rest.index(t)], y, c]
        given_x = x.clone()
        assert torch.equal(version(given_x), expected)
        assert torch.equal(given_x, x)  # not written into


def test_inside_and_outside_share_no_voxel():
    tube = Tube(moving((2, 3, 6)), 1)
    x = torch.rand(3, *SIZE)
    inside = edits("reverse", "inside", SIZE, tube)[0](x) != x
    outside = edits("reverse", "outside", SIZE, tube)[0](x) != x
    assert not (inside & outside).any()
    assert torch.equal(inside.any(dim=0) | tube.region, tube.region)
    assert not (outside.any(dim=0) & tube.region).any()
    assert inside.any()
    assert outside[:, 0, tube.hull].any()  # the hull in the frames that are not the tube's is outside


def test_what_moves_within_the_region_stays_whole():
    """Frozen, the object stands where it was; reversed, it runs back; the ground around is untouched."""
    ground = torch.rand(3, 1, *SIZE[1:]).expand(3, *SIZE).clone()
    mask = moving(range(8))
    x = ground.clone()
    x[:, mask] = 1.0
    tube = Tube(mask)
    for version, t in zip(edits("freeze", "inside", SIZE, tube, n=2), (2, 6), strict=True):
        assert torch.equal(version(x), x[:, t : t + 1].expand(3, *SIZE))
    assert torch.equal(edits("reverse", "inside", SIZE, tube)[0](x), x.flip(1))
    for version in edits("shuffle", "outside", SIZE, tube):
        assert torch.equal(version(x), x)


def test_retimed_is_given_columns_and_frames():
    x = torch.rand(1, 4, 2, 2)
    columns = torch.tensor([[True, False], [False, False]])
    y = retimed(x, columns, [1, 3], [3, 0])
    assert torch.equal(y[0, :, 0, 0], x[0, [0, 3, 2, 0], 0, 0])
    assert torch.equal(y[0, :, 1], x[0, :, 1])


# ── the metric ───────────────────────────────────────────────────────────────────────────────────────────


def test_closed_form_where_the_tube_is_all_that_counts():
    """p = 1/2 + 2/5 (last - first) of a ramp: .9 as it is, .5 held, .1 backwards."""
    mask = moving(range(8))
    video, f = ramp(mask), Rises(mask.any(dim=0))
    why, truth = explained(mask.float()), Truth(mask)
    expected = {"freeze": 0.4, "reverse": 0.8}
    shuffled = [0.4 * (o[7] - o[0]) / 7 for o in orders("shuffle", range(8), 4)]
    expected["shuffle"] = 0.4 - sum(shuffled) / 4
    for edit, drop in expected.items():
        [inside] = TemporalEdit(edit, dilate=0)(f, video, [why], truth)
        assert inside.value == pytest.approx(drop, abs=1e-6)
        assert inside.anchors["oracle"] == pytest.approx(drop, abs=1e-6)
        assert inside.normalised == pytest.approx(1)
        assert inside.anchors["random"] < drop / 2
        assert inside.facts["intact"] == pytest.approx(0.9)
        assert inside.facts["altered"] == pytest.approx(0.9 - drop)
        assert inside.facts["region"] == pytest.approx(20 / 120)
        assert inside.higher_is_better
        [outside] = TemporalEdit(edit, "outside", dilate=0)(f, video, [why], truth)
        assert outside.value == pytest.approx(0, abs=1e-6)
        assert outside.anchors["random"] > drop / 2
        assert outside.higher_is_better is False
        assert outside.notes == ()
        [whole] = TemporalEdit(edit, "whole")(f, video, [why], truth)
        assert whole.value == pytest.approx(drop, abs=1e-6)
        assert whole.higher_is_better is None
        assert whole.anchors == {}
        assert whole.facts["region"] == 1
    [spread] = TemporalEdit("shuffle", dilate=0)(f, video, [why], truth)
    assert spread.facts["spread"] == pytest.approx(np.std(shuffled), abs=1e-6)


def test_equals_the_slow_formula_with_its_anchors():
    video, f = clip(SIZE), Box(SIZE)
    truth = Truth(moving((1, 2, 3)))
    g = torch.Generator().manual_seed(3)
    smooth = torch.from_numpy(ndimage.gaussian_filter(torch.randn(SIZE, generator=g).numpy(), 1.5))
    for edit, where in itertools.product(KINDS, ("inside", "outside")):
        metric = TemporalEdit(edit, where, volume=0.06, n=3, randoms=2, seed=5, score="logit")
        [score] = metric(f, video, [explained(smooth, Prob(2))], truth, Run(precision="fp32"))

        def drop(mask: Tensor, edit: str = edit, where: str = where) -> float:
            tube = Tube(mask, 1)
            versions = torch.stack([v(video.pixels) for v in edits(edit, where, SIZE, tube, 3, 5)])
            return float(f(video.pixels[None])[0, 2] - f(versions)[:, 2].mean())

        def top(values: Tensor) -> Tensor:
            return values >= values.flatten().sort(descending=True).values[57]

        tube = top(smooth)
        assert score.value == pytest.approx(drop(tube), abs=1e-5)
        assert abs(score.value) > 1e-3
        row = smooth.mean(dim=0).expand(SIZE)
        expected = {
            "random": np.mean([drop(t.voxels) for t in Tube(tube).elsewhere(2, 5)]),
            "centre": drop(Tube(tube).centred().voxels),
            "difference": drop(top(frame_difference(video.pixels))),
            "time_mean": drop(top_voxels(row, 58 / 960, 5)),
            "oracle": drop(truth.mask),
        }
        assert score.anchors == pytest.approx(expected, abs=1e-5)
        wanted = between_anchors(score)
        assert score.normalised == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
        assert (wanted is None) == any("no normalised score" in note for note in score.notes)


def test_one_queue_and_what_is_shared():
    mask = moving(range(8))
    video, f = ramp(mask), Rises(mask.any(dim=0))
    g = torch.Generator().manual_seed(0)
    others = [torch.randn(SIZE, generator=g) for _ in range(2)]
    whys = [explained(mask.float()), *map(explained, others), explained(mask.float(), Prob(0))]
    run = Run(batch=1000)
    scores = TemporalEdit("shuffle", anchors=False, n=3)(f, video, whys, run=run)
    assert f.batches == [1, 9]  # three tubes, of four maps
    assert [s.forwards for s in scores] == [2.5] * 4
    assert scores[0].value == pytest.approx(-scores[3].value, abs=1e-6)

    f.batches.clear()
    scores = TemporalEdit("reverse", randoms=2)(f, video, whys, Truth(mask), run=run)
    # the map, two random places and its mean over time; the difference, once; the truth is the first map, and
    # the middle of scattered voxels is where they are, so that only the first map's is another tube
    assert f.batches == [1, 3 * 4 + 1 + 1]
    assert sum(s.forwards for s in scores) == 15
    assert TemporalEdit("freeze", "whole", n=2)(f, video, whys[:1], run=run)[0].forwards == 3
    both = TemporalEdit("freeze", "whole", n=2)(f, video, whys[:2], run=run)
    assert sum(s.forwards for s in both) == 3
    assert TemporalEdit("freeze")(f, video, [], run=run) == []
    targets = [Prob(1), Logit(1), Contrast(1, 0), Prob(0)]
    found = distinct([explained(noise, t) for t in targets for noise in others], "prob")
    assert found == ([Prob(1), Contrast(1, 0), Prob(0)], [0, 0, 0, 0, 1, 1, 2, 2])


def test_time_limits_do_not_cut_it_short():
    mask = moving(range(8))
    f = Rises(mask.any(dim=0))
    why = explained(mask.float())
    full = TemporalEdit("shuffle", n=40, dilate=0, anchors=False)(f, ramp(mask), [why])[0]
    cut = TemporalEdit("shuffle", n=40, dilate=0, anchors=False)(f, ramp(mask), [why], run=Run(seconds=0))[0]
    assert replace(cut, forwards=0) == replace(full, forwards=0)


def test_maps_without_a_tube_and_tubes_of_one_frame():
    mask = moving(range(8))
    video, f = ramp(mask), Rises(mask.any(dim=0))
    flat = explained(torch.zeros(SIZE))
    [none] = TemporalEdit("freeze")(f, video, [flat])
    assert np.isnan(none.value)
    assert none.notes == ("the map is the same everywhere, so it has no tube",)
    assert TemporalEdit("freeze", "whole")(f, video, [flat])[0].value == pytest.approx(0.4)
    [single] = TemporalEdit("reverse", volume=0.01)(f, video, [explained(moving((3,)).float())])
    assert single.value == 0
    assert "single frame" in single.notes[-1]
    # places that no crop saw are the least salient
    part = Grid(torch.rand(8, 5, 12), *(tuple(map(float, range(n))) for n in (8, 5, 12)), (0, 8))
    crops = (replace(part, area=(0, 0, 5, 6)), replace(part, area=(0, 6, 5, 12)))
    half = replace(explained(torch.zeros(SIZE)), parts=crops)
    assert torch.equal(half.saliency.isnan().any(dim=(0, 2)), torch.arange(10) >= 5)
    [seen] = TemporalEdit("reverse", volume=0.5, dilate=0)(f, video, [half])
    assert seen.facts["region"] == pytest.approx(0.5)
    assert all(np.isfinite(v) for v in seen.anchors.values())


def test_notes_name_the_anchors_that_win():
    mask = moving(range(8))
    away = mask.roll(-4, dims=1)  # another row, where nothing happens
    [score] = TemporalEdit("freeze", dilate=0)(
        Rises(mask.any(dim=0)), ramp(mask), [explained(away.float())], Truth(mask)
    )
    assert score.value == pytest.approx(0, abs=1e-6)
    assert score.normalised == pytest.approx(0, abs=0.5)
    assert "does worse than" in score.notes[0]
    assert "the frame difference (0." in score.notes[0]
    assert "oracle" not in score.notes[0]


def test_score_of_a_contrast_stays_itself():
    video, f = clip(SIZE), Box(SIZE)
    mask = moving(range(8)).float()
    metric = TemporalEdit("reverse", anchors=False, volume=0.05)
    logit = replace(metric, score="logit")
    between = metric(f, video, [explained(mask, Contrast(0, 2))])[0]
    zero, two = (logit(f, video, [explained(mask, Logit(k))])[0].value for k in (0, 2))
    assert between.value == pytest.approx(zero - two, abs=1e-6)
    assert metric(f, video, [explained(mask, Logit(0))])[0] == metric(f, video, [explained(mask, Prob(0))])[0]
    assert metric(f, video, [explained(mask, Prob(0))])[0].value != pytest.approx(zero, abs=1e-6)


def test_planted_directions_turn_with_the_tube_and_shapes_do_not():
    model = tl.load_model("bundled")
    found: dict[str, list[tuple[float, float, float]]] = {"dir": [], "key": []}
    for task, seed in itertools.product(found, range(4)):
        planted = generate(seed, task=task)
        truth = Truth(planted.truth, planted.distractor)
        why = explained(planted.truth.float(), Prob(planted.label))
        metric = TemporalEdit("reverse", randoms=1)
        inside = metric(model, planted.clip(), [why], truth)[0]
        outside = replace(metric, where="outside", anchors=False)(model, planted.clip(), [why], truth)[0]
        found[task].append((inside.value, inside.anchors["random"], outside.value))
    direction, shape = (np.mean(found[task], axis=0) for task in ("dir", "key"))
    assert direction[0] >= 0.9
    assert direction[1] <= 0.4
    assert abs(direction[2]) <= 0.1
    assert abs(shape[0]) <= 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"edit": "blur"}, "edit is one of freeze, shuffle, reverse"),
        ({"where": "there"}, "where is one of inside, outside, whole"),
        ({"score": "p"}, "score is one of prob, logit"),
        ({"volume": 0.0}, "volume is the share"),
        ({"volume": 1.0}, "volume is the share"),
        ({"dilate": -1}, "dilate must be 0 or more"),
        ({"n": 0}, "n must be 1 or more"),
        ({"randoms": 0}, "randoms must be 1 or more"),
        ({"seed": 99999999999999999999999}, "a seed is a whole number"),
    ],
)
def test_bad_options(options, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=said):
        TemporalEdit(**options)


def test_an_explanation_of_another_clip():
    with pytest.raises(OptionError, match="of a clip of 8x10x12, and this one is 4x5x6"):
        TemporalEdit()(Box((4, 5, 6)), clip((4, 5, 6)), [explained(torch.rand(SIZE))])
    other = Truth(torch.zeros(4, 5, 6, dtype=torch.bool))
    with pytest.raises(OptionError, match="truth is of a clip of 4x5x6, and this one is 8x10x12"):
        TemporalEdit()(Box(SIZE), clip(SIZE), [explained(torch.rand(SIZE))], other)


def test_are_metrics_and_their_repr_rebuilds_them():
    for metric in (TemporalEdit("shuffle", "outside", 0.1), Windows(n=6, fill=Freeze())):
        assert isinstance(metric, CurveMetric)
        assert metric.kind == "curve"
        assert not metric.needs_truth
        again = eval(repr(metric))
        assert again == metric
        assert again.higher_is_better == metric.higher_is_better
    assert TemporalEdit.higher_is_better is None
    assert TemporalEdit().higher_is_better is True
    assert replace(TemporalEdit(), where="outside").higher_is_better is False


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────


def shown(frames: Sequence[int]) -> tuple[BlackBox, Clip]:
    """Something is shown in a few frames, and seeing any of them is enough."""
    pixels = torch.zeros(3, 12, 4, 4)
    pixels[:, list(frames), 1:3, 1:3] = 1

    def score(clips: Tensor) -> Tensor:
        p = clips[:, :, :, 1:3, 1:3].mean(dim=(1, 3, 4)).amax(dim=1)
        return torch.stack([1 - p, p], dim=1)

    return BlackBox(score, output="probs"), Clip.from_array(pixels.permute(1, 2, 3, 0))


def profiled(frames: Sequence[int], size: tuple[int, int, int] = (12, 4, 4)) -> Explanation:
    saliency = torch.zeros(size)
    for weight, t in enumerate(frames, 1):
        saliency[t] = weight
    return explained(saliency)


def test_neighbours_restore_single_frames_but_no_window():
    f, video = shown((5, 6, 7, 8))
    [score] = Windows()(f, video, [profiled((5, 6, 7, 8))])
    assert score.facts["largest:1"] == score.facts["mean:1"] == 0
    assert score.facts["largest"] == 1
    assert score.facts["mean"] == pytest.approx(1 / 9)
    assert score.facts["restored"] == 1
    assert score.facts["first"] == 5
    assert np.isnan(score.facts["agreement:1"])
    assert score.curve == (tuple((np.arange(9) + 2) / 12), (0.0,) * 5 + (1.0,) + (0.0,) * 3)
    assert score.forwards == 1 + 12 + 9
    assert score.anchors["random"] == 0


def test_importances_equal_the_slow_formula_and_scipys_correlation():
    size = (9, 4, 5)
    video, f = clip(size), Box(size, scale=3)
    saliency = torch.randn(size, generator=torch.Generator().manual_seed(2))
    truth = Truth(torch.rand(size, generator=torch.Generator().manual_seed(4)) < 0.2)
    run = Run(precision="fp32")
    [score] = Windows(n=5)(f, video, [explained(saliency, Prob(2))], truth, run)

    def importances(n: int) -> list[float]:
        found = []
        for s in range(9 - n + 1):
            x = video.pixels.clone()
            for t in range(s, s + n):
                x[:, t] = video.pixels[:, s - 1] if s else video.pixels[:, n]
            p = f(torch.stack([video.pixels, x])).softmax(1)[:, 2]
            found.append(float(p[0] - p[1]))
        return found

    def correlation(values: Tensor, n: int) -> float:
        profile = [float(v.clamp_min(0).sum()) for v in values]
        means = [sum(profile[s : s + n]) / n for s in range(9 - n + 1)]
        return float(stats.spearmanr(means, importances(n)).statistic)

    assert score.curve is not None
    np.testing.assert_allclose(score.curve[1], importances(5), atol=1e-6)
    assert score.value == pytest.approx(correlation(saliency, 5))
    assert score.facts["agreement:1"] == pytest.approx(correlation(saliency, 1))
    difference, oracle = correlation(frame_difference(video.pixels), 5), correlation(truth.mask.float(), 5)
    assert score.anchors == pytest.approx({"random": 0, "difference": difference, "oracle": oracle})
    assert score.normalised == pytest.approx(score.value / oracle)
    assert score.facts["mean:1"] == pytest.approx(np.mean(importances(1)), abs=1e-6)
    assert score.facts["largest:1"] == pytest.approx(max(importances(1)), abs=1e-6)
    ratio = max(importances(1)) / max(importances(5))
    assert score.facts["restored"] == pytest.approx(1 - ratio, abs=1e-4)


def test_the_map_that_knows_when_wins():
    f, video = shown((3, 4))
    whys = [profiled((3, 4)), profiled((0, 1)), explained(torch.ones(12, 4, 4))]
    good, early, still = Windows()(f, video, whys)
    assert good.value > 0.7
    assert early.value < good.value
    assert np.isnan(still.value)
    assert "the map is the same in all frames" in still.notes[-1]
    assert sum(s.forwards for s in (good, early, still)) == 22
    truth = torch.zeros(12, 4, 4, dtype=torch.bool)
    truth[:, 0, 0] = True  # as large in every frame: it says nothing of time
    [same] = Windows()(f, video, whys[:1], Truth(truth))
    assert "oracle" not in same.anchors
    assert same.normalised is None
    truth[3:5, 1:3, 1:3] = True
    [oracle] = Windows()(f, video, whys[:1], Truth(truth))
    assert oracle.normalised == pytest.approx(good.value / oracle.anchors["oracle"])


def test_windows_are_normalised_only_where_the_truth_finds_them():
    """The same score, beside a truth that knows when and one that is wrong about it."""
    f, video = shown((2, 3, 4, 5))
    frames = (1, 2, 3, 4, 5, 6)
    right, wrong = (torch.zeros(12, 4, 4, dtype=torch.bool) for _ in range(2))
    right[2:6], wrong[8:] = True, True
    why = profiled(frames)
    [good] = Windows()(f, video, [why], Truth(right))
    [bad] = Windows()(f, video, [why], Truth(wrong))
    assert good.normalised == pytest.approx(good.value / good.anchors["oracle"])
    assert bad.value == good.value > 0 > bad.anchors["oracle"]
    assert bad.normalised is None
    assert "no normalised score" in bad.notes[-1]


def test_a_map_that_stands_still_has_no_windows():
    size = (16, 16, 16)
    for seed in range(5):
        [found] = Windows()(Box(size, scale=3), clip(size), [replace(standing(seed), target=Prob(2))])
        assert np.isnan(found.value)
        assert "the map is the same in all frames" in found.notes[0]


def test_where_no_window_matters():
    f, video = shown(())
    [score] = Windows()(f, video, [profiled((3, 4))])
    assert np.isnan(score.value)
    assert "no window matters more than another" in score.notes[-1]
    assert "restored" not in score.facts

    def hardly(clips: Tensor) -> Tensor:
        p = 0.5 + 1e-7 * clips[:, 0, :, 0, 0] @ torch.arange(12.0)
        return torch.stack([1 - p, p], dim=1)

    noise = clip((12, 4, 4))
    [rounding] = Windows()(BlackBox(hardly, output="probs"), noise, [profiled((3, 4))])
    assert rounding.curve is not None
    assert len(set(rounding.curve[1])) > 3
    assert np.isnan(rounding.value)


def test_fills_and_short_clips(monkeypatch: pytest.MonkeyPatch):
    size = (3, 4, 5)
    video, f = clip(size), Box(size)
    [score] = Windows(fill="black")(f, video, [explained(torch.rand(size))])
    assert score.curve is not None
    assert len(score.curve[0]) == 2  # windows of two frames
    x = video.pixels.clone()
    x[:, :2] = 0
    p = f(torch.stack([video.pixels, x])).softmax(1)[:, 1]
    assert score.curve[1][0] == pytest.approx(float(p[0] - p[1]), abs=1e-6)
    with pytest.raises(OptionError, match="one frame has no windows"):
        Windows()(Box((1, 4, 5)), clip((1, 4, 5)), [explained(torch.rand(1, 4, 5))])
    with pytest.raises(OptionError, match="4 frames or more, not 3: fewer are restored"):
        Windows(n=3)
    with pytest.raises(OptionError, match="no fill 'blak'"):
        Windows(fill="blak")
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match="score is one of"):
        Windows(score="p")


def test_agreement_of_profiles():
    profile = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert window_agreement(profile, np.array([1.0, 2.0, 3.0])) == 1
    assert window_agreement(profile, np.array([3.0, 2.0, 1.0])) == -1
    assert np.isnan(window_agreement(profile, np.ones(3)))
    assert np.isnan(window_agreement(np.zeros(5), np.array([1.0, 2.0, 3.0])))
    rounding = 1 + 1e-9 * np.random.default_rng(0).random(5)  # a map that is the same in all frames, nearly
    assert np.isnan(window_agreement(rounding, np.array([1.0, 2.0, 3.0])))
    # what differs by less than the unit is equal
    assert np.isnan(window_agreement(profile, np.array([0.0, 1e-7, 2e-7]), unit=1e-5))
    signed = torch.tensor([[[1.0, -5.0]], [[torch.nan, 2.0]]])
    assert time_profile(signed).tolist() == [1.0, 2.0]
