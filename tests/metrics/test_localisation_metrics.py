"""Localisation metrics: their anchors, what is normalised, what is said where nothing can be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.metrics.maps import between_anchors, clip_of, explanation_of, flat, standing
from tubelens.errors import OptionError
from tubelens.metrics import localisation
from tubelens.metrics.against_truth import (
    AveragePrecision,
    DistractorMass,
    EnergyInTube,
    PointingGame,
    TemporalIoU,
    TubeIoU,
)
from tubelens.metrics.anchors import centre_prior, frame_difference, random_order, settled
from tubelens.metrics.protocol import Metric
from tubelens.planted import generate
from tubelens.truth import Truth

SIZE = (6, 8, 10)
METRICS: list[Any] = [
    AveragePrecision(),
    EnergyInTube(),
    PointingGame(),
    PointingGame(over="frame"),
    PointingGame(tolerance=1.5),
    TubeIoU(),
    TemporalIoU(),
    DistractorMass(),
]
MEASURES = {
    "AveragePrecision()": localisation.average_precision,
    "EnergyInTube()": localisation.energy_in_tube,
    "PointingGame(over='clip', tolerance=0.0)": localisation.pointing,
    "PointingGame(over='frame', tolerance=0.0)": localisation.spatial_pointing,
    "PointingGame(over='clip', tolerance=1.5)": lambda s, m: localisation.pointing(s, m, 1.5),
    "TubeIoU()": localisation.tube_iou,
    "TemporalIoU()": localisation.temporal_iou,
    "DistractorMass()": localisation.distractor_mass,
}
ids = repr


def truth_of(size: tuple[int, int, int] = SIZE) -> Truth:
    """A tube on frames 2 and 3 at the upper left, a distractor that crosses all frames on the right."""
    tube, other = (torch.zeros(size, dtype=torch.bool) for _ in range(2))
    tube[2:4, 1:4, 1:5] = True
    other[:, 5:8, 6:9] = True
    first = tube.clone()
    first[3] = False
    return Truth(tube, other, events=(first, tube & ~first))


def looked_for(metric: Any, truth: Truth) -> torch.Tensor:
    if isinstance(metric, DistractorMass):
        assert truth.distractor is not None
        return truth.distractor
    return truth.mask


@pytest.mark.parametrize("metric", METRICS, ids=ids)
def test_value_and_anchors_are_the_measure_of_the_map_and_of_the_anchor_maps(metric: Any) -> None:
    assert isinstance(metric, Metric)
    assert eval(repr(metric), vars(__import__("tubelens.metrics.against_truth", fromlist=["x"]))) == metric
    assert (metric.kind, metric.needs_truth) == ("map", True)
    truth, clip = truth_of(), clip_of(SIZE)
    saliency = torch.randn(SIZE, generator=torch.Generator().manual_seed(1)) + truth.mask
    score = metric(explanation_of(saliency, clip), clip, truth)
    measure, mask = MEASURES[repr(metric)], looked_for(metric, truth)
    maps = {
        "centre": centre_prior(SIZE),
        "difference": frame_difference(clip.pixels),
        "time_mean": saliency.mean(dim=0).expand(SIZE),
        "oracle": truth.mask.float(),
    }
    assert score.value == pytest.approx(measure(saliency, mask), abs=1e-6)
    assert set(score.anchors) == {"random", *maps}
    for name, m in maps.items():
        assert score.anchors[name] == pytest.approx(measure(settled(m), mask), abs=1e-6), name
    drawn = [measure(random_order(SIZE, seed), mask) for seed in range(600)]
    assert score.anchors["random"] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 600**0.5 + 1e-9)
    assert score.normalised == pytest.approx(between_anchors(score), abs=1e-9)
    assert score.higher_is_better is not isinstance(metric, DistractorMass)
    assert score.forwards == 0


def test_random_is_at_prevalence_where_that_is_the_mean() -> None:
    truth = truth_of()
    e = explanation_of(torch.randn(SIZE, generator=torch.Generator().manual_seed(2)))
    volume = truth.volume
    for metric in (EnergyInTube(), PointingGame()):
        assert metric(e, None, truth).anchors["random"] == pytest.approx(volume, abs=1e-12)
    assert AveragePrecision()(e, None, truth).anchors["random"] == pytest.approx(volume, abs=0.02)
    assert "difference" not in EnergyInTube()(e, None, truth).anchors


@pytest.mark.parametrize("metric", METRICS, ids=ids)
@pytest.mark.parametrize("task", ["key", "dir", "transient", "order"])
def test_the_truth_itself_gets_all_there_is_on_planted_clips(metric: Any, task: Any) -> None:
    clip = generate(11, task, size=32)
    truth = clip.known()
    score = metric(explanation_of(truth.mask.float(), clip.clip()), clip.clip(), truth)
    if isinstance(metric, TemporalIoU) and truth.mask.flatten(1).any(dim=1).all():
        assert math.isnan(score.value)
        return
    best = 0.0 if isinstance(metric, DistractorMass) else 1.0
    assert score.value == pytest.approx(best, abs=1e-6)
    assert score.normalised == pytest.approx(1.0, abs=1e-6)
    assert score.anchors["oracle"] == pytest.approx(best, abs=1e-6)
    assert not score.notes


@pytest.mark.parametrize("metric", [m for m in METRICS if not isinstance(m, TemporalIoU)], ids=ids)
def test_a_map_at_the_wrong_place_is_told_that_it_loses(metric: Any) -> None:
    truth = truth_of()
    assert truth.distractor is not None
    score = metric(explanation_of(truth.distractor.float() + 1e-3 * random_order(SIZE)), None, truth)
    assert any("does worse than a random order" in note for note in score.notes)
    assert score.normalised is not None
    assert score.normalised < 0


def test_energy_of_each_event_is_a_fact() -> None:
    truth = truth_of()
    saliency = torch.zeros(SIZE)
    saliency[2, 1, 1], saliency[3, 1, 1], saliency[0, 0, 0] = 3.0, 1.0, 4.0
    score = EnergyInTube()(explanation_of(saliency), None, truth)
    assert score.value == pytest.approx(0.5, abs=1e-5)
    assert score.facts == {
        "event_1": pytest.approx(3 / 8, abs=1e-5),
        "event_2": pytest.approx(1 / 8, abs=1e-5),
    }


def test_what_has_no_meaning_is_nan_and_says_why() -> None:
    e = explanation_of(torch.rand(SIZE, generator=torch.Generator().manual_seed(3)))
    nothing = Truth(torch.zeros(SIZE, dtype=torch.bool))
    for metric in METRICS:
        score = metric(e, None, nothing)
        assert math.isnan(score.value)
        assert len(score.notes) == 1
        assert score.normalised is None
    assert DistractorMass()(e, None, nothing).notes == ("no distractor is known",)
    assert DistractorMass()(e, None, replace(nothing, distractor=nothing.mask)).notes == (
        "the clip shows no distractor",
    )
    always = torch.zeros(SIZE, dtype=torch.bool)
    always[:, 2, 3] = True
    score = TemporalIoU()(e, None, Truth(always))
    assert math.isnan(score.value)
    assert "every frame" in score.notes[0]
    # distractors without evidence: a score, but the truth is no oracle then
    assert truth_of().distractor is not None
    score = DistractorMass()(e, None, replace(nothing, distractor=truth_of().distractor))
    assert 0 < score.value < 1
    assert "oracle" not in score.anchors
    assert score.normalised is None


def test_a_map_without_positive_values_says_so_where_mass_counts() -> None:
    truth = truth_of()
    e = explanation_of(-torch.rand(SIZE, generator=torch.Generator().manual_seed(4)) - 0.1)
    for metric in (EnergyInTube(), DistractorMass(), TemporalIoU()):
        assert "nothing in the map is positive" in metric(e, None, truth).notes
    assert not any("positive" in note for note in TubeIoU()(e, None, truth).notes)


def test_places_that_no_crop_saw_count_as_least() -> None:
    truth = truth_of()
    saliency = torch.rand(SIZE, generator=torch.Generator().manual_seed(6)) + 1
    whole = explanation_of(saliency)
    left = replace(whole.parts[0], values=saliency[:, :, :4], x=(0.0, 1.0, 2.0, 3.0), area=(0, 0, 8, 4))
    half = replace(whole, parts=(left, left))
    assert half.saliency[:, :, 4:].isnan().all()
    seen = saliency.clone()
    seen[:, :, 4:] = 0
    for metric in METRICS:
        expected = MEASURES[repr(metric)](seen, looked_for(metric, truth))
        score = metric(half, clip_of(SIZE), truth)
        assert score.value == pytest.approx(expected, abs=1e-6)
        assert all(math.isfinite(value) for value in score.anchors.values())


def test_errors_are_one_line() -> None:
    e = explanation_of(torch.zeros(SIZE))
    for metric in METRICS:
        with pytest.raises(OptionError, match="where the evidence is"):
            metric(e)
        with pytest.raises(OptionError, match="6x8x10"):
            metric(e, None, Truth(torch.ones(2, 8, 10, dtype=torch.bool)))
    with pytest.raises(OptionError, match="tolerance"):
        PointingGame(tolerance=-1.0)
    with pytest.raises(Exception, match="over"):
        PointingGame(over="pixel")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [m for m in METRICS if not isinstance(m, DistractorMass)], ids=ids)
def test_rounding_is_no_evidence(metric: Any) -> None:
    """A coarse grid that is flat scores exactly chance, one that stands still as its mean over time."""
    mask = torch.zeros(16, 16, 16, dtype=torch.bool)
    mask[5:9, 5:9, 5:9] = True
    by_chance = MEASURES[repr(metric)](torch.ones(16, 16, 16), mask)
    assert metric(flat(), None, Truth(mask)).value == pytest.approx(by_chance, abs=1e-12)
    for seed in range(5):
        score = metric(standing(seed), None, Truth(mask))
        assert score.value == pytest.approx(score.anchors["time_mean"], abs=1e-7)
        assert not any("own mean" in note for note in score.notes)
        if isinstance(metric, TemporalIoU):
            assert score.value == pytest.approx(score.anchors["random"], abs=1e-12)


def test_a_truth_of_the_whole_clip_is_no_oracle() -> None:
    e = explanation_of(torch.rand(SIZE, generator=torch.Generator().manual_seed(3)))
    score = AveragePrecision()(e, None, Truth(torch.ones(SIZE, dtype=torch.bool)))
    assert score.value == 1
    assert "oracle" not in score.anchors
    assert score.normalised is None
