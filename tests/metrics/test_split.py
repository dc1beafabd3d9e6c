"""What, where, when, order: closed forms, a slow reference, and planted shapes and directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tubelens as tl
from tests.metrics.maps import flat, standing
from tests.metrics.test_temporal import SIZE, Rises, explained, moving, ramp
from tests.perturbed import Box, clip
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.fill import Black, Blur, Mean, Once
from tubelens.metrics.bands import BandShare
from tubelens.metrics.edits import Tube, orders
from tubelens.metrics.protocol import CurveMetric
from tubelens.metrics.split import Split, shares, windows
from tubelens.metrics.temporal import TemporalEdit
from tubelens.model import BlackBox
from tubelens.planted import generate
from tubelens.running import Run
from tubelens.target import Logit, Prob
from tubelens.truth import Truth

PARTS = ("what", "when", "order")
score = st.floats(0, 1)


def parts(facts: dict[str, float], prefix: str = "") -> list[float]:
    return [facts[prefix + name] for name in PARTS]


# ── the decomposition ────────────────────────────────────────────────────────────────────────────────────


def test_shares_telescope():
    assert shares(0.1, 0.3, 0.6, 0.9).values() == pytest.approx([0.25, 0.375, 0.375])
    assert list(shares(0.1, 0.3, 0.6, 0.9)) == list(PARTS)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0, 0, 0, 1), (0, 0, 1)),  # direction
        ((0, 1, 1, 1), (1, 0, 0)),  # shape
        ((0, 0, 1, 1), (0, 1, 0)),  # at one time
        ((0, 0.9, 0.4, 1), (0.9, 0, 0.1)),  # a shuffle that flickers is worth no less than a still
        ((0.2, 0.1, 0.1, 1), (0, 0, 1)),  # less than nothing is nothing
        ((0, 1.5, 0.2, 1), (1, 0, 0)),  # more than all is all
        ((0, 0.2, 1.5, 1), (0.2, 0.8, 0)),
    ],
)
def test_levels_are_made_monotone(levels, expected):
    assert list(shares(*levels).values()) == pytest.approx(list(expected))


@settings(max_examples=200, deadline=None)
@given(score, score, score, score)
def test_shares_are_shares(removed, static, reordered, intact):
    found = list(shares(removed, static, reordered, intact).values())
    if intact - removed < 0.01:
        assert np.isnan(found).all()
    else:
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
        assert max(found) <= 1


# ── closed forms ─────────────────────────────────────────────────────────────────────────────────────────


def test_all_is_order_where_only_the_ramp_counts():
    mask = moving(range(8))
    f = Rises(mask.any(dim=0))
    [found] = Split(dilate=0)(f, ramp(mask), [explained(mask.float())], Truth(mask))
    shuffled = np.mean([(o[7] - o[0]) / 7 for o in orders("shuffle", range(8), 4)])
    facts = found.facts
    assert facts["baseline"] == pytest.approx(0.5)
    assert facts["evidence"] == pytest.approx(0.4)
    assert parts(facts) == pytest.approx([0, 0, 1], abs=1e-6)
    assert parts(facts, "tube:") == pytest.approx([0, 0, 1], abs=1e-6)
    assert facts["survives:static"] == facts["survives:frame"] == pytest.approx(0, abs=1e-6)
    assert facts["survives:reversed"] == pytest.approx(-1)
    assert facts["survives:shuffled"] == pytest.approx(shuffled, abs=1e-6)
    assert facts["survives:window"] == pytest.approx(3 / 7)
    assert facts["motion"] == pytest.approx(1)
    assert facts["lost"] == pytest.approx(1)
    # the moving block has 6 of the 20 pixels of its hull in the first and in the last frame; elsewhere it is
    # filled with the mean, which is the same in both
    assert facts["where"] == pytest.approx(6 / 20)
    assert found.value == facts["where"] == found.anchors["oracle"]


def test_order_that_is_symmetric_in_time_is_order_too():
    """A tent, brighter until the middle and darker again: backwards it is the same, shuffled it is not."""
    tent = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]) / 3

    def p(clips: Tensor) -> Tensor:
        seen = clips.mean(dim=(1, 3, 4))
        risen = 0.5 + 0.4 * (seen[:, 3:5].mean(dim=1) - (seen[:, 0] + seen[:, 7]) / 2)
        return torch.stack([1 - risen, risen], dim=1)

    video = Clip.from_array(tent[:, None, None, None].expand(*SIZE, 3))
    found = Split("order", n=8)(BlackBox(p, output="probs"), video, [explained(moving().float())])[0]
    left = np.mean(
        [(tent[o[3]] + tent[o[4]] - tent[o[0]] - tent[o[7]]) / 2 for o in orders("shuffle", range(8), 8)]
    )
    assert found.facts["survives:reversed"] == pytest.approx(1)
    assert found.facts["survives:static"] == pytest.approx(0, abs=1e-6)
    assert found.facts["survives:shuffled"] == pytest.approx(left, abs=1e-6)
    assert found.value == pytest.approx(1 - max(left, 0), abs=1e-6)
    assert found.value > 0.6


def test_what_speaks_against_the_class_outside_of_the_tube_does_not_count_twice():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, 2:6, 3:7] = True

    def p(clips: Tensor) -> Tensor:
        share = 0.1 + 0.8 * clips[:, :, mask].mean(dim=(1, 2)) - 0.1 * clips[:, :, ~mask].mean(dim=(1, 2))
        return torch.stack([1 - share, share], dim=1)

    video = Clip.from_array(torch.ones(*SIZE, 3))
    metric = Split(fill="black", baselines="black", dilate=0)
    [found] = metric(BlackBox(p, output="probs"), video, [explained(mask.float())], Truth(mask))
    assert found.facts["evidence"] == pytest.approx(0.7)
    assert found.value == found.anchors["oracle"] == 1  # of the score without the rest, 0.8
    assert found.facts["lost"] == pytest.approx(8 / 7)


def still(mask: Tensor) -> tuple[BlackBox, Clip]:
    """The probability of class 1 is how white some voxels are; elsewhere the clip is black."""

    def p(clips: Tensor) -> Tensor:
        share = clips[:, :, mask].mean(dim=(1, 2))
        return torch.stack([1 - share, share], dim=1)

    pixels = torch.zeros(3, *mask.shape)
    pixels[:, mask] = 1
    return BlackBox(p, output="probs"), Clip.from_array(pixels.permute(1, 2, 3, 0))


def test_all_is_what_where_a_still_says_it():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, 2:6, 3:7] = True
    f, video = still(mask)
    half = mask.clone()
    half[:, 2:4] = False
    other = mask.roll(6, dims=2)
    whys = [explained(m.float()) for m in (mask, half, other)]
    right, part, wrong = Split(fill="black", dilate=0, baselines="black")(f, video, whys, Truth(mask))
    for found in (right, part, wrong):
        assert parts(found.facts) == pytest.approx([1, 0, 0])
        assert found.facts["survives:shuffled"] == found.facts["survives:window"] == 1
        assert found.anchors["oracle"] == 1
        assert found.higher_is_better
    assert [s.value for s in (right, part, wrong)] == pytest.approx([1, 0.5, 0])
    assert [s.facts["lost"] for s in (right, part, wrong)] == pytest.approx([1, 0.5, 0])
    assert right.normalised == 1
    assert right.notes == ()
    assert parts(right.facts, "tube:") == parts(part.facts, "tube:") == pytest.approx([1, 0, 0])
    assert np.isnan(wrong.facts["tube:what"])  # without the tube nothing is lost
    assert "the map's own mean over time" not in " ".join(wrong.notes)
    [wide] = Split(fill="black", dilate=2, baselines="black", volume=0.05)(f, video, whys[1:2])
    assert wide.value == pytest.approx(1)  # widened, half of it covers the rest


def test_when_is_what_one_frame_shows_and_others_do_not():
    frames, n = 8, 4
    mask = torch.zeros(frames, 4, 4, dtype=torch.bool)
    mask[3, 1:3, 1:3] = True

    def p(clips: Tensor) -> Tensor:
        best = clips[:, :, :, 1:3, 1:3].mean(dim=(1, 3, 4)).amax(dim=1)
        return torch.stack([1 - best, best], dim=1)

    _, video = still(mask)
    f, why = BlackBox(p, output="probs"), explained(mask.float())
    [found] = Split(n=n, baselines="black", dilate=0)(f, video, [why])
    facts = found.facts
    assert parts(facts) == pytest.approx([1 / 8, 7 / 8, 0])  # every frame is held, not n of them
    assert facts["survives:frame"] == facts["survives:window"] == facts["survives:shuffled"] == 1
    assert facts["motion"] == pytest.approx(7 / 8)


def test_what_does_not_depend_on_when():
    """Evidence in two frames of sixteen is in two stills of sixteen, whenever it comes."""
    here = slice(1, 3)

    def p(clips: Tensor) -> Tensor:
        best = clips[:, :, :, here, here].mean(dim=(1, 3, 4)).amax(dim=1)
        return torch.stack([1 - best, best], dim=1)

    for start in range(15):
        mask = torch.zeros(16, 4, 4, dtype=torch.bool)
        mask[start : start + 2, here, here] = True
        _, video = still(mask)
        metric = Split(baselines="black", anchors=False, inside=False)
        [found] = metric(BlackBox(p, output="probs"), video, [explained(mask.float())])
        assert parts(found.facts) == pytest.approx([2 / 16, 14 / 16, 0])
        assert found.facts["survives:frame"] == 1
        assert found.forwards == 30 + 2  # with one baseline, and of the map the tube alone and the rest


def test_a_long_clip_is_held_at_32_frames_spread_evenly():
    mask = torch.zeros(66, 2, 2, dtype=torch.bool)
    mask[::2] = True  # half of the frames are white

    def p(clips: Tensor) -> Tensor:
        best = clips[:, :, 0].mean(dim=(1, 2, 3))
        return torch.stack([1 - best, best], dim=1)

    _, video = still(mask)
    metric = Split(baselines="black", anchors=False, inside=False)
    [found] = metric(BlackBox(p, output="probs"), video, [explained(mask.float())])
    held = [o[0] for o in orders("freeze", range(66), 32)]
    assert len(held) == 32
    assert found.facts["survives:static"] == pytest.approx(np.mean([t % 2 == 0 for t in held]))
    assert found.forwards == 1 + 1 + 32 + 4 + 1 + 32 + 2  # windows from frames 0, 2, ... 62


def test_a_fill_is_made_once_for_a_clip():
    made: list[int] = []

    @dataclass(frozen=True)
    class Counted:
        def over(self, pixels: Tensor):
            made.append(1)
            return Mean().over(pixels)

    mask = moving(range(8))
    f = Rises(mask.any(dim=0))
    metric = Split(fill=Counted())
    [found] = metric(f, ramp(mask), [explained(mask.float())], Truth(mask))
    assert len(made) == 1
    [same] = Split()(f, ramp(mask), [explained(mask.float())], Truth(mask))
    assert (found.value, found.anchors) == (same.value, same.anchors)
    once = Once(Counted())
    a, b = clip(SIZE, 1).pixels, clip(SIZE, 2).pixels
    nothing = torch.zeros(1, *SIZE)
    for pixels in (a, b, b):
        assert torch.equal(once.over(pixels)(nothing), Mean().over(pixels)(nothing))
    assert len(made) == 3


def test_rounding_makes_no_tube():
    video, f = clip((16, 16, 16)), Box((16, 16, 16), scale=4)
    target = int(f(video.pixels[None]).argmax())
    for metric in (Split(), TemporalEdit(), BandShare()):
        why = replace(flat(), target=Prob(target))
        [found] = metric(f, video, [why], None, Run(precision="fp32"))
        assert np.isnan(found.value)
        assert "no tube" in found.notes[0]
    why = replace(standing(), target=Prob(target))
    for metric in (Split(), TemporalEdit()):
        [found] = metric(f, video, [why], None, Run(precision="fp32"))
        assert found.value == found.anchors["time_mean"]


def test_a_truth_of_the_whole_clip_is_no_oracle():
    mask = moving(range(8))
    f = Rises(mask.any(dim=0))
    everything = Truth(torch.ones(SIZE, dtype=torch.bool))
    [found] = Split(volume=0.05)(f, ramp(mask), [explained(mask.float())], everything)
    assert "oracle" not in found.anchors
    assert found.normalised is None


def test_a_blurred_object_still_moves_so_blur_is_no_baseline_for_time():
    model = tl.load_model("bundled")
    planted = generate(0, task="dir")
    why = explained(planted.truth.float(), Prob(planted.label))
    blur, both = (
        Split(baselines=b, inside=False, anchors=False)(model, planted.clip(), [why])[0]
        for b in ("blur", "black+mean")
    )
    assert blur.facts["baseline"] > 0.8
    assert both.facts["baseline"] < 0.2


# ── slow reference ───────────────────────────────────────────────────────────────────────────────────────


def test_equals_the_slow_formulas():
    video, f = clip(SIZE), Box(SIZE, scale=4)
    x = video.pixels
    mask = moving((1, 2, 3))
    target = int(f(x[None]).argmax())
    metric = Split(volume=0.05, dilate=1, n=3, window=5, fill=Black(), seed=7, score="logit")
    why = explained(mask.float(), Prob(target))
    [found] = metric(f, video, [why], None, Run(precision="fp32"))
    facts = found.facts

    def logit(*versions: Tensor) -> list[float]:
        return f(torch.stack(versions))[:, target].tolist()

    [intact] = logit(x)
    mean = x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x)
    base = sum(logit(torch.zeros_like(x), mean)) / 2
    whole = intact - base
    assert facts["baseline"] == pytest.approx(base, abs=1e-5)
    assert facts["evidence"] == pytest.approx(whole, abs=1e-5)
    assert whole > 0.05

    def levels(frames: list[int], hull: Tensor) -> list[list[float]]:
        found = []
        for kind in ("freeze", "shuffle", "reverse"):
            versions = []
            every = kind == "freeze" and len(frames) == 8  # of the whole clip each frame is held
            for order in orders(kind, frames, 8 if every else 3, 7):
                y = x.clone()
                for t, source in zip(frames, order, strict=True):
                    y[:, t, hull] = x[:, source, hull]
                versions.append(y)
            found.append(logit(*versions))
        return found

    everywhere = torch.ones(SIZE[1:], dtype=torch.bool)
    static, shuffled, reversed_ = levels(list(range(8)), everywhere)
    names = ("static", "shuffled", "reversed")
    for name, values in zip(names, (static, shuffled, reversed_), strict=True):
        assert facts[f"survives:{name}"] == pytest.approx((np.mean(values) - base) / whole, abs=1e-4)
    assert facts["survives:frame"] == pytest.approx((max(static) - base) / whole, abs=1e-4)
    assert facts["motion"] == pytest.approx(1 - facts["survives:static"])
    loose = min(np.mean(shuffled), np.mean(reversed_))
    expected = shares(base, float(np.mean(static)), float(loose), intact)
    assert parts(facts) == pytest.approx(list(expected.values()), abs=1e-4)

    spans = [(0, 5), (2, 7), (3, 8)]
    held = [torch.stack([x[:, min(max(t, a), b - 1)] for t in range(8)], dim=1) for a, b in spans]
    assert facts["survives:window"] == pytest.approx((max(logit(*held)) - base) / whole, abs=1e-4)

    tube = Tube(mask, 1)
    region = x.clone()
    for t in (1, 2, 3):
        region[:, t, tube.hull] = 0
    [removed] = logit(region)
    assert facts["lost"] == pytest.approx((intact - removed) / whole, abs=1e-4)
    kept, rest = torch.zeros_like(x), []
    kept[:, tube.mask] = x[:, tube.mask]
    assert facts["where"] == pytest.approx(np.clip((logit(kept)[0] - base) / whole, 0, 1), abs=1e-4)
    for other in tube.elsewhere(2, 7):
        y = torch.zeros_like(x)
        y[:, other.mask] = x[:, other.mask]
        rest.append(np.clip((logit(y)[0] - base) / whole, 0, 1))
    assert found.anchors["random"] == pytest.approx(np.mean(rest), abs=1e-4)
    assert set(found.anchors) == {"random", "centre", "difference", "time_mean"}
    a, b, c = levels([1, 2, 3], tube.hull)
    inner = shares(removed, float(np.mean(a)), float(min(np.mean(b), np.mean(c))), intact)
    assert parts(facts, "tube:") == pytest.approx(list(inner.values()), abs=1e-4, nan_ok=True)


def test_forwards_are_shared():
    mask = moving(range(8))
    video, f = ramp(mask), Rises(mask.any(dim=0))
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    run = Run(batch=1000)
    whys = [explained(mask.float()), explained(noise), explained(noise, Prob(0))]
    plain = Split(anchors=False, inside=False, n=3)(f, video, whys, run=run)
    common = 2 + 8 + 3 + 1 + 3  # baselines, held, shuffled, reversed, windows from frames 0, 2 and 4
    assert f.batches == [1, common + 2 * 2]
    assert sum(s.forwards for s in plain) == 1 + common + 4
    f.batches.clear()
    Split(anchors=False, n=3)(f, video, whys[:1], run=run)
    assert f.batches == [1, common + 2 + 3 + 3 + 1]
    f.batches.clear()
    Split("order", inside=False, n=3)(f, video, whys[:1], run=run)
    assert f.batches == [1, common + 2]  # parts that belong to the model have no anchors


def test_the_value_is_the_part_asked_for():
    mask = moving(range(8))
    video, f = ramp(mask), Rises(mask.any(dim=0))
    why = explained(mask.float())
    for part in ("what", "where", "when", "order"):
        [found] = Split(part)(f, video, [why])
        assert found.value == found.facts[part]
        assert found.higher_is_better is (True if part == "where" else None)
        assert bool(found.anchors) is (part == "where")


def test_flat_maps_and_clips_without_evidence():
    mask = moving(range(8))
    video, f = ramp(mask), Rises(mask.any(dim=0))
    [flat] = Split("order")(f, video, [explained(torch.zeros(SIZE))])
    assert flat.value == pytest.approx(1)
    assert "where" not in flat.facts
    assert flat.notes == ("the map is the same everywhere, so it has no tube",)
    assert np.isnan(Split()(f, video, [explained(torch.zeros(SIZE))])[0].value)
    [against] = Split("what")(f, video, [explained(mask.float(), Prob(0))])  # class 0 falls
    assert np.isnan(against.value)
    assert against.notes == ("the clip scores 0.100 and nothing at all 0.500: no evidence to split",)
    assert np.isnan(against.facts["what"])
    assert against.facts["evidence"] == pytest.approx(-0.4)


def test_windows_start_every_half_and_end_at_the_end():
    x = torch.arange(9.0).view(1, 9, 1, 1)
    found = [version(x).flatten().tolist() for version in windows(9, 4)]
    assert found == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3],
        [2, 2, 2, 3, 4, 5, 5, 5, 5],
        [4, 4, 4, 4, 4, 5, 6, 7, 7],
        [5, 5, 5, 5, 5, 5, 6, 7, 8],
    ]
    assert [v(x[:, :3]).flatten().tolist() for v in windows(3, 4)] == [[0, 1, 2]]


def test_directions_are_order_and_shapes_are_what():
    """On the bundled network: mean over 8 clips of each task."""
    model = tl.load_model("bundled")
    found = {}
    for task in ("dir", "key"):
        metric = Split(n=3, window=8, anchors=False, inside=False)
        rows = []
        for seed in range(8):
            planted = generate(seed, task=task)
            why = explained(planted.truth.float(), Prob(planted.label))
            facts = metric(model, planted.clip(), [why], Truth(planted.truth))[0].facts
            rows.append([*parts(facts), facts["where"], facts["survives:reversed"]])
        found[task] = np.mean(rows, axis=0)
    (_, _, order, where, backwards), (what, _, shape_order, shape_where, shape_backwards) = found.values()
    assert order >= 0.8
    assert backwards <= 0.05
    assert shape_order <= 0.2
    assert what >= 0.8
    assert shape_backwards >= 0.95
    assert min(where, shape_where) >= 0.9


def test_the_tube_alone_carries_the_order():
    model = tl.load_model("bundled")
    planted = generate(2, task="dir")
    wrong = planted.truth.roll((0, 32, 32), (0, 1, 2))
    whys = [explained(m.float(), Logit(planted.label)) for m in (planted.truth, wrong)]
    right, other = Split()(model, planted.clip(), whys, Truth(planted.truth))
    assert right.value > 0.9 > 0.5 > other.value
    assert right.facts["tube:order"] > 0.8
    assert right.facts["lost"] > 0.9 > 0.3 > other.facts["lost"]
    assert right.anchors["random"] < 0.6
    assert right.facts["order"] == other.facts["order"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"part": "why"}, "part is one of what, where, when, order"),
        ({"score": "p"}, "score is one of prob, logit"),
        ({"window": 3}, "4 frames or more, not 3"),
        ({"baselines": "black+man"}, "no fill 'man'"),
        ({"fill": "man"}, "no fill 'man'"),
        ({"fill": None}, "a fill is one of"),
        ({"baselines": 3}, "baselines are names of fills"),
        ({"seed": True}, "a seed is a whole number"),
        ({"n": 0}, "n must be 1 or more"),
        ({"volume": 2.0}, "volume is the share"),
    ],
)
def test_bad_options(options, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=said):
        Split(**options)


def test_is_a_metric_and_its_repr_rebuilds_it():
    for metric in (Split(), Split("when", fill=Blur(2.0), baselines="mean"), Split(fill=Mean())):
        assert isinstance(metric, CurveMetric)
        assert eval(repr(metric)) == metric
    assert Split.kind == "curve"
    assert Split().higher_is_better is True
    assert Split("what").higher_is_better is None
