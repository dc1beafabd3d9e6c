"""The spectral ledger: against slow sums over all orders, on scorers that are known, on planted networks."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tubelens as tl
from tests.metrics.test_bands import BANDS, FP32, SIZE, Mixed, clip, explained, lit, seen, tube
from tubelens.accounts import Ledger, Region
from tubelens.errors import OptionError, ScoreError, TargetError
from tubelens.evaluate.planted_models import planted_model
from tubelens.fill import FILLS, Noise
from tubelens.ledger import FLAT, Terms, ledger, ledgers, tubes_of
from tubelens.model import BlackBox, TorchModel
from tubelens.planted import PlantedClip, generate
from tubelens.render import ledger_figure
from tubelens.render.paper import pixels
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob

N = 60


def box(bands: int = 4, output: str = "logits", labels: tuple[str, ...] | None = None) -> BlackBox:
    return BlackBox(Mixed(bands), output=output, labels=labels, name="mixed")


def blobs() -> Tensor:
    """Three tubes apart: 8 voxels of 3, a diagonal of 4 voxels of 5, and one of 1.9."""
    saliency = torch.zeros(SIZE)
    saliency[0:2, 0:2, 0:2] = 3.0
    for t in range(4):
        saliency[t, 2 + t, 5 - t] = 5.0
    saliency[3, 0, 5] = 1.9
    return saliency


TOP = 13 / 144
"""The share of the voxels that `blobs` has."""


# ── slow reference ───────────────────────────────────────────────────────────────────────────────────────


def slow(f: Mixed, x: Tensor, mask: Tensor, players: list[list[int]], fill: str, target: object) -> dict:
    """The value of every set of players."""
    filled = FILLS[fill].over(x)(1 - mask.float()[None])[0]
    values = {}
    for n in range(len(players) + 1):
        for there in itertools.combinations(range(len(players)), n):
            y = filled.clone()
            for p in there:
                y[players[p]] = x[players[p]]
            values[frozenset(there)] = float(target(f(y[None])))
    return values


@pytest.mark.parametrize("fill", ["mean", "black", "noise", "freeze"])
@pytest.mark.parametrize("target", [Logit(1), Prob(2), Contrast(0, 2)])
def test_equals_brute_force(fill, target):
    video, f = clip(), box()
    players = [[3], [0, 2], [1]]
    score = "prob" if isinstance(target, Prob) else "logit"
    found = ledger(
        f, video, explained(blobs(), target), "IR|R+B|G", fill=fill, volume=TOP, score=score, run=FP32
    )
    assert found.target == target
    assert [region.name for region in found.regions] == ["whole clip", "tube 1", "tube 2"]
    assert found.groups == (("IR", ("IR",)), ("R+B", ("R", "B")), ("G", ("G",)))
    masks = [torch.ones(SIZE, dtype=torch.bool), grown(blobs() == 3), grown(blobs() == 5)]
    for region, mask in zip(found.regions, masks, strict=True):
        values = slow(f.score, video.pixels, mask, players, fill, target)
        everything = frozenset(range(3))
        by_number = [values[frozenset(i for i in range(3) if s >> i & 1)] for s in range(8)]
        np.testing.assert_allclose(region.values, by_number, atol=1e-6)
        gained, pairs = np.zeros(3), np.zeros((3, 3))
        for order in itertools.permutations(range(3)):
            for at, p in enumerate(order):
                gained[p] += values[frozenset(order[: at + 1])] - values[frozenset(order[:at])]
            for i, j in itertools.permutations(range(3), 2):
                before = frozenset(order[: min(order.index(i), order.index(j))])
                with_i, with_j = values[before | {i}], values[before | {j}]
                pairs[i, j] += values[before | {i, j}] - with_i - with_j + values[before]
        gained, pairs = gained / 6, pairs / 6
        assert abs(pairs).max() > 0.001
        np.testing.assert_allclose(region.shapley, gained, atol=1e-6)
        np.testing.assert_allclose(region.synergy, pairs, atol=1e-6)
        alone = [values[frozenset({i})] - values[frozenset()] for i in range(3)]
        np.testing.assert_allclose(region.alone, alone, atol=1e-6)
        # the books balance
        assert region.total == pytest.approx(values[everything] - values[frozenset()], abs=1e-6)
        assert region.shapley.sum() == pytest.approx(region.total, abs=1e-9)
        assert region.alone.sum() + region.synergy.sum() / 2 == pytest.approx(region.total, abs=1e-9)
        np.testing.assert_allclose(region.alone + region.synergy.sum(axis=1) / 2, region.shapley, atol=1e-9)
        assert region.share == pytest.approx(float(mask.float().mean()))
        if region.evidence:
            np.testing.assert_allclose(region.shares * region.total, region.shapley)
            assert region.together * region.total == pytest.approx(region.synergy.sum() / 2)
    assert found.forwards == 1 + 3 * 7


def grown(mask: Tensor) -> Tensor:
    """With the eight neighbours of each pixel in its frame."""
    out = torch.zeros_like(mask)
    for t, y, x in mask.nonzero().tolist():
        out[t, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
    return out


def test_one_queue_for_all_regions_and_maps():
    f, video = box(), clip()
    maps = [explained(blobs(), Logit(0)), explained(blobs().flip(2), Logit(0)), explained(blobs(), Logit(0))]
    f.score.batches.clear()
    found = ledger(f, video, maps, volume=TOP, run=Run(batch=100, precision="fp32"))
    assert f.score.batches[0] == 1
    assert len(f.score.batches) == 2
    # the whole clip, two tubes of the first map, two of the second; the third has those of the first
    assert f.score.batches[1] == 5 * 3
    names = [region.name for region in found.regions]
    assert names[0] == "whole clip"
    assert len(names) == 7
    assert [r.values for r in found.regions[1:3]] == [r.values for r in found.regions[5:]]
    assert found.regions[1].values != found.regions[3].values
    assert found.forwards == 16
    # two targets at once cost no forward more
    f.score.batches.clear()
    others = [[explained(blobs(), Logit(0))], [explained(blobs(), Logit(1))], Prob(2)]
    first, second, third = ledgers(f, video, others, Terms(volume=TOP), Run(batch=100, precision="fp32"))
    assert f.score.batches == [1, 9]
    assert first.regions[0].values == found.regions[0].values
    assert first.regions[1].values == found.regions[1].values
    assert second.target == Logit(1)
    assert third.target == Logit(2)  # a class stands for what is scored
    assert [r.name for r in third.regions] == ["whole clip"]
    assert (first.forwards, second.forwards) == (10 / 3, 10 / 3)


def test_methods_are_named_where_there_are_several():
    maps = [explained(blobs(), Logit(0)) for _ in range(3)]
    for i, method in enumerate(("RISE(n=100)", "Tubes()", "RISE(n=5)")):
        maps[i] = replace(maps[i], provenance=replace(maps[i].provenance, method=method))
    flat = replace(maps[0], parts=explained(torch.ones(SIZE)).parts)
    found = ledger(box(), clip(), [*maps, flat], volume=TOP)
    assert [r.name for r in found.regions] == [
        "whole clip",
        *("rise tube 1", "rise tube 2", "tubes tube 1", "tubes tube 2", "rise-2 tube 1", "rise-2 tube 2"),
    ]
    assert found.notes == (f"rise-3: {FLAT}",)


def test_batches_do_not_matter():
    why = explained(blobs(), Prob(1))
    found = [
        ledger(box(), clip(), why, "R|G|B|IR", fill=Noise(3), run=Run(batch=b, precision="fp32"))
        for b in (1, 4, 100)
    ]
    for other in found[1:]:
        for a, b in zip(found[0].regions, other.regions, strict=True):
            assert a.values == pytest.approx(b.values, abs=1e-5)


# ── tubes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_tubes_are_the_connected_parts_with_the_most_mass():
    saliency = blobs()
    first, second = tubes_of(saliency, 3, TOP)
    assert torch.equal(first, saliency == 3)  # 24 before 20 before 1.9, which is a speck
    assert torch.equal(second, saliency == 5)  # joined over corners
    assert len(tubes_of(saliency, 1, TOP)) == 1
    saliency[3, 0, 5] = 2.5  # more than a tenth of 24
    assert [int(part.sum()) for part in tubes_of(saliency, 3, TOP)] == [8, 4, 1]
    # the share says how many voxels
    (one,) = tubes_of(saliency, 3, 4 / 144)
    assert torch.equal(one, saliency == 5)
    holes = saliency.clone()
    holes[2:, :2] = torch.nan
    assert [int(part.sum()) for part in tubes_of(holes, 3, TOP)] == [8, 4]
    assert tubes_of(torch.zeros(SIZE)) == []
    # a large part of weak voxels is less than a small one of strong ones; what speaks against has no mass
    weak = torch.full(SIZE, -1.0)
    weak[0, :4, :4] = 0.1
    weak[2:, 5, 5] = 2.0
    assert [int(part.sum()) for part in tubes_of(weak, 3, 18 / 144)] == [2, 16]
    weak[0, :4, :4] = -0.1
    assert [int(part.sum()) for part in tubes_of(weak, 3, 18 / 144)] == [2]
    weak[2:, 5, 5] = -0.2
    assert tubes_of(weak, 3, 18 / 144) == []


def test_when_a_tube_is():
    found = ledger(box(), clip(), explained(blobs(), Logit(0)), volume=TOP, tubes=1)
    whole, one = found.regions
    assert whole.seconds == (0, 3 / 25)
    assert one.seconds == (0, 1 / 25)
    padded = clip()
    padded = tl.Clip(padded.pixels, BANDS, replace(padded.source, span=(0.0, 2 / 25), padded=1))
    assert ledger(box(), padded).regions[0].seconds == (0, 2 / 25)
    assert [r.name for r in ledger(box(), clip(), explained(blobs()), tubes=0).regions] == ["whole clip"]


# ── scorers that are known ───────────────────────────────────────────────────────────────────────────────


def test_infrared_alone():
    found = ledger(seen(lambda b: 0.1 + 0.8 * b[3]), lit(), explained(tube().float()), fill="black")
    assert found.score == "probability"  # all that the model gives
    for region in found.regions:
        assert region.shares == pytest.approx([0, 1], abs=1e-6)
        assert region.alone == pytest.approx([0, 0.8], abs=1e-6)
        assert abs(region.synergy).max() < 1e-6
        assert region.together == pytest.approx(0, abs=1e-6)


def exclusive() -> tuple[BlackBox, tl.Clip]:
    """Class 1 if one of two cues is there but not both, and undecided without either; and such a clip."""

    def p(bands: tuple[Tensor, ...]) -> Tensor:
        red, infrared = (2 * b - 1 for b in (bands[0], bands[3]))  # -1, +1, or 0 where nothing is seen
        return 0.5 - 0.5 * red * infrared

    video = lit().pixels.clone()
    video[3] = 1 - video[3]
    return seen(p), tl.Clip.from_array(video.permute(1, 2, 3, 0), BANDS)


def test_exclusive_or_is_synergy_and_nothing_alone():
    model, video = exclusive()
    found = ledger(model, video, explained(tube().float()), "R+G+B|IR", fill="grey")
    assert len(found.regions) == 2
    for region in found.regions:
        assert region.total == pytest.approx(0.5)
        assert region.alone == pytest.approx([0, 0], abs=1e-6)
        assert region.synergy[0, 1] == pytest.approx(0.5)
        assert region.together == pytest.approx(1)
        assert region.shares == pytest.approx([0.5, 0.5])
    either = seen(lambda b: torch.maximum(b[0], b[3]))
    redundant = ledger(either, lit(), 1, fill="black").regions[0]
    assert redundant.alone == pytest.approx([1, 1])
    assert redundant.together == pytest.approx(-1)


def test_evidence_that_adds_up_is_synergy_in_the_probability_but_not_in_the_logit():
    """Two bands worth 3 each: the second adds little to a probability, and as much to a logit."""

    def score(clips: Tensor) -> Tensor:
        sums = 3 * (clips[:, 0].mean(dim=(1, 2, 3)) + clips[:, 1].mean(dim=(1, 2, 3)))
        return torch.stack([torch.zeros_like(sums), sums], dim=1)

    white = tl.Clip.from_array(np.ones((*SIZE, 2), dtype=np.float32), ("VIS", "IR"))
    model = BlackBox(score)
    logit = ledger(model, white, 1, fill="black")
    assert logit.score == "logit"
    assert logit.regions[0].synergy[0, 1] == pytest.approx(0, abs=1e-6)
    prob = ledger(model, white, 1, fill="black", score="prob")
    assert prob.score == "probability"
    s = [1 / (1 + np.exp(-z)) for z in (0, 3, 6)]
    assert prob.regions[0].synergy[0, 1] == pytest.approx(s[2] - 2 * s[1] + s[0], abs=1e-6)


# ── networks that were trained for one band, and for two together ────────────────────────────────────────


@cache
def planted(seed: int, name: str) -> PlantedClip:
    return generate(seed, name)


@cache
def books(name: str, score: str | None = None) -> tuple[Region, ...]:
    """The ledgers of fresh clips, of their own class, over the whole clip; none is left out."""
    model = planted_model(name)
    found = []
    for seed in range(800_000, 800_000 + N):
        video = planted(seed, name)
        of = ledger(model, video.clip(), video.label, score=score, run=FP32)
        assert of.players == ("RGB", "IR")
        found.append(of.regions[0])
    return tuple(found)


@pytest.mark.parametrize("score", ["logit", "prob"])
def test_the_infrared_network_looks_at_infrared(score):
    regions = books("infrared", score)
    shares = np.array([region.shares[1] for region in regions])
    print(f"infrared's share, {score}:", *np.round(shares, 3))
    assert shares.mean() >= 0.9
    assert np.mean(shares >= 0.9) >= 0.9
    total = sum(region.total for region in regions)
    assert abs(sum(region.alone[0] for region in regions)) <= 0.05 * total
    assert abs(sum(region.synergy[0, 1] for region in regions)) <= 0.05 * total


def test_the_network_of_exclusive_or_needs_both():
    """In the mean over all clips, whatever the network made of them: single clips differ (see docs)."""
    regions = books("xor")
    total = sum(region.total for region in regions)
    synergy = sum(region.synergy[0, 1] for region in regions) / total
    alone = sum(region.alone for region in regions) / total
    print(f"xor: together {synergy:.3f}, alone {np.round(alone, 3)}")
    assert synergy >= 0.8
    assert abs(alone).max() <= 0.1
    assert np.mean([region.together for region in regions]) >= 0.8


def test_why_one_class_rather_than_the_other():
    """The two classes of xor against each other: that something is there at all speaks for both."""
    model, regions = planted_model("xor"), []
    for seed in range(800_000, 800_000 + N):
        video = planted(seed, "xor")
        target = Contrast(video.label, 1 - video.label)
        regions.append(ledger(model, video.clip(), target, run=FP32).regions[0])
    total = sum(region.total for region in regions)
    assert sum(region.synergy[0, 1] for region in regions) >= 0.9 * total
    assert abs(sum(region.alone for region in regions)).max() <= 0.1 * total


# ── what is asked about ──────────────────────────────────────────────────────────────────────────────────


def test_targets_as_a_user_writes_them():
    f, video = box(labels=("run", "walk_dog", "swim")), clip()
    scores = f(video.pixels[None])[0]
    top = int(scores.argmax())
    assert ledger(f, video).target == Logit(top)
    named = ledger(f, video, "walk dog")
    assert (named.label, named.target) == ("walk_dog", Logit(1))
    assert named.prob == pytest.approx(float(scores.softmax(0)[1]))
    assert named.predicted[0] == (f.labels[top], pytest.approx(float(scores.softmax(0)[top])))
    assert named.forwards == 1 + 3
    assert ledger(f, video, 2, score="prob").target == Prob(2)
    assert ledger(f, video, Prob(2)).target == Logit(2)
    contrast = ledger(f, video, Contrast(2, 0), score="prob")
    assert (contrast.target, contrast.score) == (Contrast(2, 0), "difference of logits")
    assert contrast.label == "swim rather than run"
    assert ledger(box(output="sigmoid"), video, 1).score == "logit"
    assert (named.model, named.weights, named.video) == ("mixed", "as given", "an array")
    assert named.fill == "Mean()"
    for index in (np.int64(2), torch.tensor(2)):
        assert ledger(f, video, index).target == Logit(2)
    with pytest.raises(TargetError, match="unknown label 'jog'"):
        ledger(f, video, "jog")
    with pytest.raises(TargetError, match="class 3 is out of range"):
        ledger(f, video, 3)


def test_without_evidence_there_are_no_shares():
    found = ledger(seen(lambda b: 0.9 - 0.8 * b[3]), lit(), explained(tube().float()), fill="black")
    for region in found.regions:
        assert region.total == pytest.approx(-0.8)
        assert (region.shares, region.together) == (None, None)
        assert region.alone == pytest.approx([0, -0.8], abs=1e-6)
    line = "probability 0.900 with all bands filled, 0.100 as it is: -0.800; there is no evidence to share"
    assert str(found).count(line) == 2
    assert "%" not in str(found).replace("% of the voxels", "")
    assert not [word for word in texts(found) if word.endswith("%")]
    assert found.to_json()["regions"][0]["shares"] is None


def test_a_flat_map_has_no_tube():
    found = ledger(box(), clip(), explained(torch.ones(SIZE)))
    assert [region.name for region in found.regions] == ["whole clip"]
    assert found.notes == (FLAT,)
    assert str(found).endswith("note: the map is the same everywhere or nowhere positive, so it has no tube")


def test_bad_clips_and_maps():
    with pytest.raises(OptionError, match="and Y stands alone: the clip has no other"):
        ledger(box(1), clip(("Y",)))
    with pytest.raises(OptionError, match="and RGB stands alone: give two groups or more"):
        ledger(box(3), clip(("R", "G", "B")), groups="RGB")
    assert ledger(box(3), clip(("R", "G", "B"))).players == ("R", "G", "B")
    with pytest.raises(OptionError, match="7 bands have 128 subsets"):
        ledger(box(7), clip(tuple("abcdefg")))
    with pytest.raises(OptionError, match="no band begins 'UV'"):
        ledger(box(), clip(), groups="RGB|UV")
    with pytest.raises(OptionError, match="the explanation is of a clip of 2x6x6, and this one is 4x6x6"):
        ledger(box(), clip(), explained(torch.rand(2, 6, 6)))
    with pytest.raises(OptionError, match="a ledger is of one target, and these maps are of several"):
        ledger(box(), clip(), [explained(blobs(), Prob(0)), explained(blobs(), Prob(1))])
    f = BlackBox(lambda clips: torch.full((len(clips), 2), float("nan")))
    with pytest.raises(ScoreError, match="NaN or infinity"):
        ledger(f, clip())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": []}, "is of a label, a class index, a target, or of explanations"),
        ({"of": ["run", 3]}, "is of a label, a class index, a target, or of explanations"),
        ({"fill": "man"}, "no fill 'man'"),
        ({"volume": 1.0}, "volume is the share"),
        ({"tubes": -1}, "tubes must be at least 0"),
        ({"tubes": 2.5}, "tubes must be at least 0, a whole number, not 2.5"),
        ({"of": 2.5}, "or of explanations of one class, not of float 2.5"),
        ({"of": torch.rand(3)}, "or of explanations of one class, not of Tensor"),
        ({"groups": "RGB|IR|"}, "has one without a name: write them as in RGB"),
        ({"groups": 5}, "groups are names of bands"),
        ({"score": "p"}, "score is one of prob, logit"),
        ({"seed": -1}, "a seed is a whole number"),
    ],
)
def test_bad_options(options, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(OptionError, match=said):
        ledger(box(), clip(), **options)


# ── as text and on disk ──────────────────────────────────────────────────────────────────────────────────


def kept() -> Ledger:
    """A ledger made by hand: alone +1 and -0.5, together 2; then of two bands that say nothing."""
    return Ledger(
        label="unlike",
        target=Logit(1),
        prob=0.9,
        predicted=(("alike", 0.95), ("unlike", 0.9)),
        groups=(("RGB", ("R", "G", "B")), ("IR", ("IR",))),
        regions=(
            Region("whole clip", (0.0, 1.5), 1.0, (0.5, 1.5, 0.0, 3.0)),
            Region("tube 1", (0.25, 1.0), 0.031, (3.0, 3.0, 2.9, 3.001)),
        ),
        score="logit",
        fill="Blur(sigma=5)",
        model="net",
        weights="w.pt",
        video="visible=a.mp4|lwir=b.mp4",
        forwards=7,
        notes=("mind this",),
    )


def test_the_title_of_a_contrast_names_the_predicted_class_where_it_is_another():
    found = replace(kept(), target=Contrast(0, 1), label="alike rather than unlike")
    assert found.title == "alike rather than unlike p=0.90"
    other = replace(found, label="unlike rather than alike")
    assert other.title == "unlike rather than alike p=0.90 (predicted: alike p=0.95)"


def test_at_a_lower_precision_every_coalition_is_rounded_alike():
    """A band that the network does not look at brings exactly nothing, also rounded."""
    video, net = lit(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 144, 3))
    with torch.no_grad():
        net[1].weight.view(3, 4, 144)[:, 3] = 0
        net[1].bias += 100
    model = TorchModel(net.eval(), lambda x: x.clone(), name="linear")
    low, full = (
        ledger(model, video, 1, fill="black", run=Run(precision=p, pilot=False)) for p in ("bf16", "fp32")
    )
    (whole,), (exact,) = low.regions, full.regions
    assert full.players[-1] == "IR"
    assert (whole.shapley[-1], exact.shapley[-1]) == (0, pytest.approx(0, abs=1e-4))
    assert whole.values[-1] != exact.values[-1]
    assert (low.forwards, full.forwards) == (5, 4)


def test_the_table():
    assert str(kept()).split("\n") == [
        "unlike p=0.90 (predicted: alike p=0.95) · net (w.pt), filled by blur(sigma=5)",
        "",
        "whole clip (0.00 to 1.50 s)",
        "logit 0.50 with all bands filled, 3.00 as it is: +2.50, of which 80% together",
        "     alone  with RGB  with IR  total  share",
        "RGB  +1.00              +1.00  +2.00    80%",
        "IR   -0.50     +1.00           +0.50    20%",
        "sum  +0.50     +1.00    +1.00  +2.50   100%",
        "",
        "tube 1 (0.25 to 1.00 s, 3.1% of the voxels)",
        "logit 3.00 with all bands filled, 3.00 as it is: +0.00; there is no evidence to share",
        "     alone  with RGB  with IR  total  share",
        "RGB  +0.00              +0.05  +0.05      –",
        "IR   -0.10     +0.05           -0.05      –",
        "sum  -0.10     +0.05    +0.05  +0.00      –",
        "note: mind this",
    ]
    assert repr(kept()) == "<Ledger of 'unlike' (p=0.900) over RGB, IR: whole clip, tube 1>"


def test_json_has_every_number(tmp_path: Path):
    path = kept().save(tmp_path / "new" / "k.json")
    told = json.loads(path.read_text())
    assert told == json.loads(json.dumps(kept().to_json()))
    first, second = told["regions"]
    assert first["values"] == [
        {"as_they_are": [], "score": 0.5},
        {"as_they_are": ["RGB"], "score": 1.5},
        {"as_they_are": ["IR"], "score": 0.0},
        {"as_they_are": ["RGB", "IR"], "score": 3.0},
    ]
    assert first["alone"] == {"RGB": 1.0, "IR": -0.5}
    assert first["synergy"] == [{"bands": ["RGB", "IR"], "score": 2.0}]
    assert first["shapley"] == {"RGB": 2.0, "IR": 0.5}
    assert first["shares"] == {"RGB": 0.8, "IR": 0.2}
    assert (first["total"], first["together"], first["share_of_voxels"]) == (2.5, 0.8, 1.0)
    assert (second["seconds"], second["shares"], second["together"]) == ([0.25, 1.0], None, None)
    assert told["groups"] == [{"name": "RGB", "bands": ["R", "G", "B"]}, {"name": "IR", "bands": ["IR"]}]
    assert told["predicted"][0] == {"label": "alike", "prob": 0.95}
    assert eval(told["target"]) == Logit(1)
    for key in ("label", "prob", "score", "fill", "model", "weights", "video", "forwards"):
        assert told[key] == getattr(kept(), key)
    assert told["notes"] == ["mind this"]


def test_csv_has_a_line_a_number(tmp_path: Path):
    with kept().save(tmp_path / "k.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["region", "what", "bands", "score"]
    assert rows[1:10] == [
        ["whole clip", "value", "", "0.5"],
        ["whole clip", "value", "RGB", "1.5"],
        ["whole clip", "value", "IR", "0.0"],
        ["whole clip", "value", "RGB IR", "3.0"],
        ["whole clip", "alone", "RGB", "1.0"],
        ["whole clip", "alone", "IR", "-0.5"],
        ["whole clip", "shapley", "RGB", "2.0"],
        ["whole clip", "shapley", "IR", "0.5"],
        ["whole clip", "synergy", "RGB IR", "2.0"],
    ]
    assert len(rows) == 1 + 2 * 9


def test_only_what_is_known_is_written(tmp_path: Path):
    with pytest.raises(OptionError, match=r"k\.pkl: a ledger is written as \.csv, \.json, \.png"):
        kept().save(tmp_path / "k.pkl")
    assert not list(tmp_path.iterdir())


# ── the figure ───────────────────────────────────────────────────────────────────────────────────────────


def texts(found: Ledger) -> list[str]:
    sheet = ledger_figure(found)
    return [t.get_text() for part in (sheet, *sheet.axes) for t in part.texts]


def test_bars_go_from_all_filled_to_the_clip_as_it_is():
    sheet = ledger_figure(kept())
    first, second = sheet.axes
    bars = [(b.get_x(), b.get_width(), b.get_hatch()) for b in first.patches]
    assert bars == [(0.5, 1.0, None), (1.5, -0.5, None), (1.0, 2.0, "//////"), (0.5, 2.5, None)]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlim()[0] < 0.5 < 3.0 < first.get_xlim()[1]
    said = texts(kept())
    for word in (
        "unlike p=0.90 (predicted: alike p=0.95)",
        "RGB alone",
        "RGB with IR",
        "+2.00",
        "80%",
        "-20%",
    ):
        assert word in said
    assert said.count("–") == 3


def test_each_band_has_its_colour_and_a_pair_both(tmp_path: Path):
    image = np.asarray(Image.open(kept().save(tmp_path / "k.png"))).astype(int)
    assert np.array_equal(image, pixels(ledger_figure(kept())))
    ax = ledger_figure(kept()).axes[0]

    def share(colour: str, row: int) -> float:
        """Of the pixels of a bar, inside of it."""
        bar = ax.patches[row].get_window_extent()
        top, bottom = (round(image.shape[0] - y) for y in (bar.y1, bar.y0))
        inside = image[top + 3 : bottom - 3, round(bar.x0) + 8 : round(bar.x1) - 8]
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return float((abs(inside - wanted).max(axis=2) < 40).mean())

    assert share("#0072b2", 0) > 0.95
    assert share("#e69f00", 1) > 0.95
    assert share("#e69f00", 2) > 0.15  # the lines
    assert share("#8cc0dc", 2) > 0.15  # blue, lighter, between them


def test_many_bands_fit():
    names = tuple("abcdef")
    rng = np.random.default_rng(0)
    found = replace(
        kept(),
        groups=tuple((n, (n,)) for n in names),
        regions=(Region("whole clip", (0.0, 1.0), 1.0, tuple(rng.normal(size=64).tolist())),),
    )
    said = texts(found)
    assert "9 other pairs" in said
    assert sum(" with " in word and word[1:7] == " with " for word in said) == 6
    (ax,) = ledger_figure(found).axes
    region, bars = found.regions[0], ax.patches
    assert len(bars) == 6 + 6 + 1 + 1
    assert bars[-2].get_x() + bars[-2].get_width() == pytest.approx(region.values[-1])
    drawn = sorted(abs(b.get_width()) for b in bars[6:12])
    pairs = sorted(abs(region.synergy[i, j]) for i, j in itertools.combinations(range(6), 2))
    assert drawn == pytest.approx(pairs[-6:])
    coloured = ledger_figure(replace(kept(), groups=(("R", ("R",)), ("IR", ("IR",))))).axes[0].patches
    assert tuple(np.round(np.array(coloured[0].get_facecolor()[:3]) * 255)) == (0xD5, 0x5E, 0x00)
