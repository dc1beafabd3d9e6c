"""Shares of the bands: against all orders in which they can come, on games and scorers that are known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.metrics.maps import between_anchors
from tests.metrics.test_temporal import explained
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.fill import FILLS, Freeze, Noise
from tubelens.metrics.bands import BandShare
from tubelens.metrics.edits import Tube, top_voxels
from tubelens.metrics.protocol import CurveMetric
from tubelens.model import BlackBox
from tubelens.running import Run
from tubelens.spectra import spectra
from tubelens.target import Logit, Prob
from tubelens.truth import Truth

SIZE = (4, 6, 6)
BANDS = ("R", "G", "B", "IR")
FP32 = Run(precision="fp32")


def tube() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[1:3, 2:4, 1:5] = True
    return mask


def clip(bands: tuple[str, ...] = BANDS, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip.from_array(rng.random((*SIZE, len(bands)), dtype=np.float32), bands)


def lit() -> Clip:
    """White within the tube and black outside, in all bands."""
    pixels = tube().float()[..., None].expand(*SIZE, 4)
    return Clip.from_array(pixels.numpy(), BANDS)


def seen(p) -> BlackBox:
    """A black box that is told how white the tube is, in each band."""

    def score(clips: Tensor) -> Tensor:
        found = p(clips[:, :, tube()].mean(dim=2).unbind(dim=1))
        return torch.stack([1 - found, found], dim=1)

    return BlackBox(score, output="probs")


# ── scorers that are known ───────────────────────────────────────────────────────────────────────────────


def test_a_scorer_of_infrared_gives_all_to_infrared():
    why, truth = explained(tube().float()), Truth(tube(), bands=("IR",))
    f = seen(lambda b: 0.1 + 0.8 * b[3])
    [found] = BandShare(fill="black")(f, lit(), [why], truth)
    assert found.value == pytest.approx(1)
    assert found.facts == pytest.approx(
        {"intact": 0.9, "loss": 0.8}
        | {f"share:{b}": float(b == "IR") for b in BANDS}
        | {f"synergy:{a}+{b}": 0.0 for a, b in itertools.combinations(BANDS, 2)},
        abs=1e-6,
    )
    assert found.anchors == {"random": 0.25, "oracle": pytest.approx(1)}
    assert found.normalised == pytest.approx(1)
    assert found.higher_is_better
    [visible] = BandShare(fill="black", groups="RGB|IR")(f, lit(), [why], replace(truth, bands=("R", "B")))
    assert visible.value == pytest.approx(0, abs=1e-6)
    assert visible.anchors == {"random": 0.5, "oracle": pytest.approx(0, abs=1e-6)}
    assert visible.notes == (
        "the tube (0.000) does worse than bands drawn by lot (0.500)",
        "the truth is no better than a random order here: no normalised score",
    )
    assert visible.normalised is None
    assert found.notes == ()


def test_exclusive_or_is_synergy():
    """Class 1 if one of the two cues is there but not both; undecided without either."""
    why = explained(tube().float())

    def p(bands: tuple[Tensor, ...]) -> Tensor:
        red, infrared = (2 * b - 1 for b in (bands[0], bands[3]))  # -1, +1, or 0 where nothing is seen
        return 0.5 - 0.5 * red * infrared

    pixels = lit().pixels.clone()
    pixels[3] = 1 - pixels[3]
    pixels[:, 0, 0, 0] = 1 - pixels[:, 0, 0, 0]
    video = Clip.from_array(pixels.permute(1, 2, 3, 0), BANDS)
    [found] = BandShare(fill="grey")(seen(p), video, [why])
    shares = {name: found.facts[f"share:{name}"] for name in BANDS}
    assert shares == pytest.approx({"R": 0.5, "G": 0, "B": 0, "IR": 0.5}, abs=1e-6)
    assert found.facts["synergy:R+IR"] == pytest.approx(1)
    assert found.facts["synergy:R+G"] == pytest.approx(0, abs=1e-6)
    assert found.value == pytest.approx(0.5)
    assert found.higher_is_better is None
    assert found.anchors == {}
    [groups] = BandShare(fill="grey", groups="R+G+B|IR")(seen(p), video, [why])
    assert groups.facts["synergy:R+G+B+IR"] == pytest.approx(1)
    [redundant] = BandShare(fill="black")(seen(lambda b: torch.maximum(b[0], b[3])), lit(), [why])
    assert redundant.facts["synergy:R+IR"] == pytest.approx(-1)


def test_a_band_against_the_class_has_a_negative_share():
    f = seen(lambda b: 0.5 + 0.4 * b[0] - 0.1 * b[1])
    [found] = BandShare(fill="black")(f, lit(), [explained(tube().float())])
    assert found.facts["share:R"] == pytest.approx(4 / 3)
    assert found.facts["share:G"] == pytest.approx(-1 / 3)
    assert found.value == pytest.approx(4 / 3)


def test_bands_that_all_speak_against_the_class_share_no_evidence():
    """Filling them makes the class likelier: a share of that loss would call the worst the carrier."""
    f = seen(lambda b: 0.9 - 0.8 * b[3])
    [found] = BandShare(fill="black")(f, lit(), [explained(tube().float())], Truth(tube(), bands=("IR",)))
    assert np.isnan(found.value)
    assert found.normalised is None
    assert found.facts == pytest.approx({"intact": 0.1, "loss": -0.8})
    assert found.notes == ("filling all bands changes the score by +0.8000: there is no evidence to share",)
    # nor is a truth an oracle of which the same holds
    where = torch.zeros(SIZE, dtype=torch.bool)
    where[0, 0, :3] = True

    def p(clips: Tensor) -> Tensor:
        risen = 0.3 + 0.3 * clips[:, 0, where].mean(dim=1) - 0.1 * clips[:, 3, tube()].mean(dim=1)
        return torch.stack([1 - risen, risen], dim=1)

    white = Clip.from_array(torch.ones(*SIZE, 4), BANDS)
    metric = BandShare(fill="black", dilate=0, volume=3 / 144)
    [other] = metric(
        BlackBox(p, output="probs"), white, [explained(where.float())], Truth(tube(), bands=("R",))
    )
    assert other.value == pytest.approx(1)
    assert other.anchors == {"random": 0.25}


# ── slow reference ───────────────────────────────────────────────────────────────────────────────────────


class Mixed:
    """Three logits, smooth but not linear in four bands."""

    output = "logits"

    def __init__(self, bands: int = 4) -> None:
        g = torch.Generator().manual_seed(1)
        self.first = torch.randn(bands, *SIZE, 6, generator=g) / 4
        self.second = torch.randn(6, 3, generator=g)
        self.batches: list[int] = []

    def __call__(self, clips: Tensor) -> Tensor:
        self.batches.append(len(clips))
        return torch.tanh(torch.einsum("bcthw,cthwn->bn", clips - 0.5, self.first)) @ self.second


def slow(f: Mixed, x: Tensor, mask: Tensor, players: list[list[int]], fill: str, k: int) -> np.ndarray:
    """Mean over all orders in which players come in of what each adds to the probability of class k."""
    filled = FILLS[fill].over(x)(1 - mask.float()[None])[0]
    values = {}
    for n in range(len(players) + 1):
        for there in itertools.combinations(range(len(players)), n):
            y = filled.clone()
            for p in there:
                y[players[p]] = x[players[p]]
            values[frozenset(there)] = float(f(y[None]).softmax(1)[0, k])
    gained = np.zeros(len(players))
    orders = list(itertools.permutations(range(len(players))))
    for order in orders:
        for at, p in enumerate(order):
            gained[p] += values[frozenset(order[: at + 1])] - values[frozenset(order[:at])]
    return gained / len(orders)


@pytest.mark.parametrize("fill", ["mean", "black", "noise", "freeze"])
def test_equals_the_slow_formula(fill):
    video, f = clip(), Mixed()
    saliency = torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    truth = Truth(tube(), bands=("G", "IR"))
    cases = list(itertools.product((saliency, -saliency), range(3)))
    whys = [explained(values, Prob(k)) for values, k in cases]
    found = BandShare(fill=fill, volume=0.2)(f, video, whys, truth, FP32)
    assert sum(f.batches) == 1 + 3 * 15  # two maps and the truth
    assert sum(s.forwards for s in found) == 1 + 3 * 15
    alone = [[b] for b in range(4)]
    seen_shares = seen_oracles = 0
    for score, (values, k) in zip(found, cases, strict=True):
        mask = Tube(top_voxels(values, 0.2), 1).mask
        expected = slow(f, video.pixels, mask, alone, fill, k)
        assert abs(expected).max() > 0.01
        assert score.facts["loss"] == pytest.approx(expected.sum(), abs=1e-5)
        if expected.sum() < 0.01:
            assert np.isnan(score.value)
            continue
        seen_shares += 1
        shares = np.array([score.facts[f"share:{b}"] for b in BANDS])
        np.testing.assert_allclose(shares * score.facts["loss"], expected, atol=1e-6)
        assert (shares * score.facts["loss"]).sum() == pytest.approx(score.facts["loss"])
        value = (expected / expected.sum())[[1, 3]].sum()
        assert score.value == pytest.approx(value, rel=1e-3)
        oracle = slow(f, video.pixels, Tube(tube(), 1).mask, alone, fill, k)
        if oracle.sum() < 0.01:
            assert score.anchors == {"random": 0.5}
            continue
        seen_oracles += 1
        best = (oracle / oracle.sum())[[1, 3]].sum()
        assert score.anchors == pytest.approx({"random": 0.5, "oracle": best}, rel=1e-3)
        wanted = between_anchors(score)
        assert score.normalised == (None if wanted is None else pytest.approx(wanted, rel=1e-2))
    assert seen_shares
    assert seen_oracles


def test_the_whole_clip_is_one_game_of_sixteen_forwards():
    video, f = clip(), Mixed()
    g = torch.Generator().manual_seed(2)
    whys = [explained(torch.randn(SIZE, generator=g), Prob(2)), explained(torch.zeros(SIZE), Prob(2))]
    found = BandShare("clip")(f, video, whys, Truth(tube(), bands=("IR",)), Run(batch=100, precision="fp32"))
    assert f.batches == [1, 15]
    assert found[0].facts == found[1].facts
    assert found[0].forwards == 8
    everything = torch.ones(SIZE, dtype=torch.bool)
    expected = slow(f, video.pixels, everything, [[b] for b in range(4)], "mean", 2)
    assert found[0].value == pytest.approx(expected[3] / expected.sum(), rel=1e-4)
    assert found[0].anchors == {"random": 0.25}
    f.batches.clear()
    [groups] = BandShare("clip", groups="IR|RGB")(f, video, whys[:1], None, FP32)
    assert f.batches == [1, 3]
    expected = slow(f, video.pixels, everything, [[3], [0, 1, 2]], "mean", 2)
    assert groups.facts["share:IR"] == pytest.approx(expected[0] / expected.sum(), rel=1e-4)
    assert groups.facts["share:RGB"] == pytest.approx(expected[1] / expected.sum(), rel=1e-4)


def test_batches_do_not_matter():
    video = clip()
    why = explained(torch.rand(SIZE, generator=torch.Generator().manual_seed(0)))
    truth = Truth(tube(), bands=("IR",))
    scores = [
        BandShare(fill=Noise(3))(Mixed(), video, [why], truth, Run(batch=b, precision="fp32"))[0]
        for b in (1, 4, 100)
    ]
    for other in scores[1:]:
        assert other.facts == pytest.approx(scores[0].facts, abs=1e-5)
        assert other.value == pytest.approx(scores[0].value, abs=1e-4)


def test_logits_and_oracles_are_options():
    video, f = clip(), Mixed()
    why, truth = explained(tube().float(), Prob(1)), Truth(tube(), bands=("IR",))
    [logit] = BandShare(score="logit", anchors=False)(f, video, [why], truth)
    assert logit.facts["intact"] == pytest.approx(float(f(video.pixels[None])[0, 1]), abs=1e-5)
    assert logit.anchors == {"random": 0.25}
    assert logit.forwards == 16
    assert BandShare(score="logit", anchors=False)(
        f, video, [explained(tube().float(), Logit(1))], truth
    ) == [logit]
    assert BandShare()(f, video, []) == []


def test_where_there_is_nothing_to_share():
    [found] = BandShare()(seen(lambda b: 0.3 + 0 * b[0]), lit(), [explained(tube().float())])
    assert np.isnan(found.value)
    assert found.notes == ("filling all bands changes the score by +0.0000: there is no evidence to share",)
    [flat] = BandShare()(Mixed(), clip(), [explained(torch.zeros(SIZE))], Truth(tube(), bands=("IR",)))
    assert np.isnan(flat.value)
    assert flat.notes == ("the map is the same everywhere, so it has no tube",)
    assert flat.forwards == 1


def test_truth_in_bands_that_the_clip_does_not_have_is_unknown():
    truth = Truth(tube(), bands=("thermal",))
    [found] = BandShare("clip")(Mixed(), clip(), [explained(tube().float(), Prob(2))], truth)
    elsewhere, why = tube().roll(1, dims=0), explained(tube().float())
    assert BandShare()(Mixed(), clip(), [why], Truth(elsewhere))[0].forwards == 16
    nothing = Truth(tube().roll(3, dims=1), bands=("IR",))  # a truth whose loss changes nothing is no oracle
    [found_there] = BandShare(dilate=0, volume=0.1)(seen(lambda b: b[3]), lit(), [why], nothing)
    assert found_there.forwards == 31
    assert found_there.anchors == {"random": 0.25}
    assert found_there.normalised is None
    assert found.higher_is_better is None
    assert found.value == max(found.facts[f"share:{b}"] for b in BANDS)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


def test_groups_are_read():
    assert spectra(BANDS) == {"RGB": [0, 1, 2], "IR": [3]}
    assert spectra(BANDS[:3]) == {"R": [0], "G": [1], "B": [2]}
    assert spectra(("IR", "B", "R", "G")) == {"BRG": [1, 2, 3], "IR": [0]}
    assert spectra(BANDS, "RGB|IR") == {"RGB": [0, 1, 2], "IR": [3]}
    assert spectra(BANDS, " IR+R | GB ") == {"IR+R": [3, 0], "GB": [1, 2]}
    assert spectra(("I", "IR"), "IIR") == {"IIR": [0, 1]}
    assert spectra(("a+b", "c")) == {"a+b": [0], "c": [1]}


@pytest.mark.parametrize(
    ("bands", "groups", "said"),
    [
        (BANDS, "RGB", "must name each of the bands R, G, B, IR once"),
        (BANDS, "RGB|IR|IR", "must name each"),
        (BANDS, "RGB|R|IR", "must name each"),
        (BANDS, "RGB|UV", "no band begins 'UV': the clip has R, G, B, IR"),
        (BANDS, "RGB|", "groups 'RGB\\|' has one without a name"),
        (tuple("abcdefg"), "", r"7 bands have 128 subsets: give up to 6 groups, as in groups='a\+b|c"),
        (("R", "R"), "", "must have names of their own"),
    ],
)
def test_bad_groups(bands, groups, said):
    with pytest.raises(OptionError, match=said):
        spectra(bands, groups)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"where": "frame"}, "where is one of tube, clip"),
        ({"score": "p"}, "score is one of"),
        ({"fill": "man"}, "no fill 'man'"),
        ({"volume": -1.0}, "volume is the share"),
        ({"dilate": -1}, "dilate must be"),
        ({"groups": 5}, "groups are names of bands"),
        ({"seed": -1}, "a seed is a whole number"),
    ],
)
def test_bad_options(options, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=said):
        BandShare(**options)


def test_is_a_metric_and_its_repr_rebuilds_it():
    for metric in (BandShare(), BandShare("clip", "RGB|IR", Freeze(), 0.1)):
        assert isinstance(metric, CurveMetric)
        assert eval(repr(metric)) == metric
    assert BandShare.kind == "curve"
