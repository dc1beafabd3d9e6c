"""Infidelity: captum on the same perturbations, maps that are exactly right, and the drawing of boxes."""

from __future__ import annotations

import math

import jaxtyping
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from scipy.optimize import nnls
from torch import Tensor

from tests.metrics.test_drop import FP32, SIZE, explanation, half_seen, linear, random_map, tube, white
from tests.perturbed import Box, clip
from tubelens.errors import OptionError
from tubelens.fill import Black, Mean
from tubelens.metrics.anchors import anchor_maps
from tubelens.metrics.infidelity import Infidelity, NoisyFill, infidelity, random_tubes
from tubelens.metrics.protocol import Metric
from tubelens.model import BlackBox
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob
from tubelens.truth import Truth


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("perturbation", ["tubes", "noise"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_equals_captum_with_the_same_perturbations(perturbation: str, scaled: bool):
    # of the sign for which captum's factor is positive; ours is never negative
    model, c, m = Box(SIZE), clip(SIZE), random_map(2) * (-1 if perturbation == "noise" else 1)
    metric = Infidelity(
        n=12, perturbation=perturbation, cells=(2, 4, 3), scaled=scaled, score="logit", seed=4
    )
    (score,) = metric(model, c, [explanation(m, Logit(2))], run=FP32)
    if perturbation == "tubes":
        masks = random_tubes(SIZE, (2, 4, 3), 12, seed=4).batch(0, 12)[:, None]
        left = masks * c.pixels + (1 - masks) * c.pixels.mean(dim=(1, 2, 3), keepdim=True)
        taken = (1 - masks).expand(-1, 3, -1, -1, -1) / 3  # three bands of a third each: one value a voxel
    else:
        left = NoisyFill(Mean(), 0.2, 12, seed=4).over(c.pixels)(0, 12)[0]
        taken = c.pixels - left
    found = captum_infidelity(
        lambda x: model(x)[:, 2],
        lambda x: (taken, left),
        c.pixels[None],
        m.expand(1, 3, *SIZE).contiguous(),
        n_perturb_samples=12,
        normalize=scaled,
    )
    assert score.value == pytest.approx(float(found[0]), rel=1e-5, abs=1e-5)
    assert score.forwards == 13
    if scaled:
        assert score.facts["beta"] != pytest.approx(1, abs=0.5)
    else:
        assert score.facts["beta"] == 1


def test_one_perturbation_after_the_other():
    """The definition, slowly, with the best factor by least squares, none of them negative."""
    model, c = Box(SIZE), clip(SIZE)
    maps = [random_map(3), random_map(4)]
    metric = Infidelity(n=9, cells=(2, 3, 4), fill="black", seed=1)
    truth = Truth(tube())
    given = [explanation(m, t) for m, t in zip(maps, (Prob(0), Contrast(1, 2)), strict=True)]
    scores = metric(model, c, given, truth, FP32)
    masks = random_tubes(SIZE, (2, 3, 4), 9, seed=1).batch(0, 9)
    for score, m, e in zip(scores, maps, given, strict=True):
        falls = []
        for mask in masks:
            a, b = model(c.pixels[None])[0], model((c.pixels * mask)[None])[0]
            if e.target == Prob(0):
                falls.append(float(a.softmax(0)[0] - b.softmax(0)[0]))
            else:
                falls.append(float((a[1] - a[2]) - (b[1] - b[2])))
        f = torch.tensor(falls).double()

        def error(saliency: Tensor, f: Tensor = f) -> float:
            d = torch.stack([saliency[mask == 0].double().sum() for mask in masks])
            return float(nnls(d[:, None].numpy(), f.numpy())[1]) ** 2 / 9

        assert score.value == pytest.approx(error(m), abs=1e-5, rel=1e-4)
        for name, anchor in anchor_maps(m, c, truth, 1).items():
            assert score.anchors[name] == pytest.approx(error(anchor), abs=1e-5, rel=1e-4)
        d = torch.stack([m[mask == 0].double().sum() for mask in masks])
        assert score.facts["correlation"] == pytest.approx(float(torch.corrcoef(torch.stack([d, f]))[0, 1]))
        assert score.facts["error"] == pytest.approx(score.value / float(f.pow(2).mean()))
        assert score.forwards == 5


def test_the_truth_of_a_linear_score_is_without_error():
    """Where the score is the brightness of a tube, the tube as a map predicts every fall, at any scale."""
    model = linear(0.1, 0.8)
    exact = tube().float() * 0.8 / float(tube().sum())
    given = [explanation(exact), explanation(7 * exact), explanation(random_map(0))]
    metric = Infidelity(n=30, fill="black", scaled=False)
    bare = metric(model, white(), given, Truth(tube()), FP32)
    assert bare[0].value == pytest.approx(0, abs=1e-10)
    assert bare[0].facts["correlation"] == pytest.approx(1)
    assert bare[1].value > 0.1
    scaled = Infidelity(n=30, fill="black")(model, white(), given, Truth(tube()), FP32)
    assert scaled[1].value == pytest.approx(0, abs=1e-10)
    assert scaled[1].facts["beta"] == pytest.approx(1 / 7, rel=1e-4)
    assert scaled[0].normalised == pytest.approx(1)
    assert scaled[0].facts["error"] == pytest.approx(0, abs=1e-8)
    assert scaled[2].facts["error"] > 0.5
    assert any("worse than" in note for note in scaled[2].notes)
    assert scaled[2].normalised == pytest.approx(-1.2252, abs=1e-3)
    for score in bare:  # in units of its own: compared with nothing
        assert score.normalised is None
        assert score.notes == ()
        assert score.anchors


def test_a_map_of_the_wrong_sign_predicts_nothing():
    """As a factor of -1 would make it the truth, the factor stops at 0."""
    exact = tube().float()
    given = [explanation(exact), explanation(-exact), explanation(torch.zeros(SIZE))]
    metric = Infidelity(n=30, fill="black")
    right, wrong, none = metric(linear(0.1, 0.8), white(), given, Truth(tube()), FP32)
    assert right.value == pytest.approx(0, abs=1e-10)
    assert wrong.value == none.value > 0.03
    assert wrong.facts["beta"] == 0
    assert wrong.facts["error"] == pytest.approx(1)
    assert wrong.facts["correlation"] == pytest.approx(-1)
    assert wrong.normalised is not None
    assert wrong.normalised < 0
    d, f = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 0.25]).double()
    assert infidelity(-d, f, scaled=True)[0] == pytest.approx((0.25 + 0.0625) / 2)


def test_small_falls_are_normalised_as_shares_and_next_to_none_not_at_all():
    given = [explanation(tube().float())]
    small, none = (
        Infidelity(n=30, fill="black")(linear(0.1, high), white(), given, Truth(tube()), FP32)[0]
        for high in (0.01, 1e-4)
    )
    assert small.anchors["random"] < 1e-4
    assert small.normalised == pytest.approx(1, abs=1e-3)
    assert none.normalised is None
    assert "nothing to predict" in none.notes[-1]


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_any_seed_will_do(seed: int):
    for perturbation in ("tubes", "noise"):
        metric = Infidelity(n=2, perturbation=perturbation, seed=seed)
        assert metric(Box(SIZE), clip(SIZE), [explanation(random_map(0))], run=FP32)[0].value > 0


def test_gradients_predict_small_noise():
    """With noise on the clip itself, a linear score falls by exactly the gradient times what was taken."""
    exact = tube().float() * 0.8 / (3 * float(tube().sum()))
    metric = Infidelity(n=20, perturbation="noise", sigma=0.05, fill="black", scaled=False)
    (score,) = metric(linear(0.1, 0.8), white(), [explanation(exact)], run=FP32)
    assert score.value == pytest.approx(0, abs=1e-9)


def test_what_no_crop_saw_predicts_nothing():
    zero, why = random_map(6), half_seen(random_map(6))
    zero[:, :4] = 0.0
    a, b = Infidelity(n=8)(Box(SIZE), clip(SIZE), [explanation(zero), why], run=FP32)
    assert why.saliency[:, :4].isnan().all()
    assert a.value == pytest.approx(b.value, rel=1e-5)


def test_a_score_that_nothing_changes():
    model = BlackBox(lambda clips: torch.tensor([[0.4, 0.6]]).expand(len(clips), 2), output="probs")
    (score,) = Infidelity(n=4)(model, clip(SIZE), [explanation(random_map(0))], run=FP32)
    assert score.value == 0
    assert math.isnan(score.facts["error"])
    assert "nothing to predict" in score.notes[-1]


def test_boxes_are_drawn_evenly():
    """Every size up to half of the cells, in time all, at every place equally often; whole cells."""
    cells = (4, 6, 5)
    masks = random_tubes((8, 12, 13), cells, 4000, seed=0)
    removed = 1 - masks.batch(0, 4000)
    for axis, (count, voxels) in enumerate(zip(cells, (8, 12, 13), strict=True)):
        others = tuple(a for a in (1, 2, 3) if a != axis + 1)
        along = removed.amax(dim=others)  # (n, voxels)
        edges = [(i * voxels + count - 1) // count for i in range(count)]
        by_cell = along[:, edges]
        labels = [i * count // voxels for i in range(voxels)]
        assert torch.equal(by_cell[:, labels], along)
        lengths = by_cell.sum(dim=1)
        longest = count if axis == 0 else math.ceil(count / 2)
        expected = dict.fromkeys(range(1, longest + 1), 4000 / longest)
        for n, often in expected.items():
            mine = lengths == n
            assert float(mine.sum()) == pytest.approx(often, rel=0.1)
            firsts = by_cell[mine].argmax(dim=1).bincount(minlength=count - n + 1)
            assert len(firsts) == count - n + 1
            assert firsts.min() > 0.75 * often / (count - n + 1)
        assert (by_cell.diff(dim=1).clamp_min(0).sum(dim=1) + by_cell[:, 0] == 1).all()  # in one piece
    volume = removed.sum(dim=(1, 2, 3))
    pieces = [removed.amax(dim=tuple({1, 2, 3} - {a})).sum(dim=1) for a in (1, 2, 3)]
    assert torch.equal(volume, pieces[0] * pieces[1] * pieces[2])


def test_the_batch_does_not_matter():
    given = [explanation(random_map(0))]
    for perturbation in ("tubes", "noise"):
        metric = Infidelity(n=7, perturbation=perturbation)
        values = [
            metric(Box(SIZE), clip(SIZE), given, run=Run(batch=b, precision="fp32"))[0].value
            for b in (1, 3, 7)
        ]
        assert values == pytest.approx([values[0]] * 3, rel=1e-5)
        assert metric(Box(SIZE), clip(SIZE), [], run=FP32) == []
    other = Infidelity(n=7, seed=1)(Box(SIZE), clip(SIZE), given, run=FP32)[0].value
    assert other != pytest.approx(values[0], rel=1e-3)


def test_each_version_has_a_noise_of_its_own_on_the_fill():
    pixels = clip(SIZE).pixels
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    made, masks = NoisyFill(Mean(), 0.1, 3, seed=2).over(pixels)(0, 3)
    assert masks is None
    noise = (made - mean).flatten(1)
    assert noise.mean(dim=1).tolist() == pytest.approx([0] * 3, abs=0.02)
    assert noise.std(dim=1).tolist() == pytest.approx([0.1] * 3, rel=0.1)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.15
    other = NoisyFill(Mean(), 0.1, 3, seed=3).over(pixels)(0, 1)[0]
    assert not torch.allclose(other, made[:1], atol=1e-3)


def test_a_map_of_zeros_has_no_factor():
    values, beta = infidelity(torch.zeros(2, 3).double(), torch.ones(2, 3).double(), scaled=True)
    assert beta.tolist() == [0, 0]
    assert values.tolist() == [1, 1]


def test_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    metric = Infidelity(n=3, fill=Black(), cells=(1, 2, 3))
    assert eval(repr(metric), {"Infidelity": Infidelity, "Black": Black}) == metric
    assert isinstance(metric, Metric)
    wrong = {
        "n": 1,
        "perturbation": "squares",
        "cells": (4, 8),
        "seed": 2**63,
        "sigma": -1.0,
        "score": "p",
        "fill": "blck",
    }
    for option, value in wrong.items():
        with pytest.raises(OptionError):
            Infidelity(**{option: value})  # type: ignore[arg-type]
