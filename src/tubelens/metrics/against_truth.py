"""Metrics that compare a map with known evidence: the scores of `localisation`, each beside its anchors.

What a random order gets is not drawn but computed, as the mean over all orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.metrics.anchors import RANDOM, anchor_maps, between, settled, warnings_for
from tubelens.metrics.localisation import (
    average_precision,
    average_precision_by_chance,
    check_tolerance,
    distractor_mass,
    energy_in_tube,
    pointing,
    spatial_pointing,
    temporal_iou,
    tube_iou,
)
from tubelens.metrics.protocol import Score
from tubelens.truth import Truth

Saliency = Float[Tensor, "T H W"]
Mask = Bool[Tensor, "T H W"]


@dataclass(frozen=True)
class AveragePrecision:
    """`average_precision` of the upsampled map."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN where the clip shows no true voxel.

        Raises:
            OptionError: no truth, or a clip or a truth of another size than the map.
        """

        def by_chance(_: Saliency, mask: Mask) -> float:
            return average_precision_by_chance(mask.numel(), int(mask.sum()))

        return _score(average_precision, explanation, clip, _given(truth, self), by_chance=by_chance)


@dataclass(frozen=True)
class EnergyInTube:
    """`energy_in_tube` of the upsampled map; `event_1`, ... of the facts are the shares on each event."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN where the clip shows no true voxel.

        Raises:
            OptionError: no truth, or a clip or a truth of another size than the map.
        """
        truth = _given(truth, self)
        return _score(energy_in_tube, explanation, clip, truth, events=truth.events, mass=True)


@dataclass(frozen=True)
class DistractorMass:
    """`distractor_mass` of the upsampled map; the oracle, which marks the evidence alone, has none."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN where no distractor is known, or the clip shows none.

        Raises:
            OptionError: no truth, or a clip or a truth of another size than the map.
        """
        truth = _given(truth, self)
        other = torch.zeros_like(truth.mask) if truth.distractor is None else truth.distractor
        missing = "the clip shows no distractor" if truth.distractor is not None else "no distractor is known"
        return _score(
            distractor_mass, explanation, clip, truth, mask=other, missing=missing, better=False, mass=True
        )


@dataclass(frozen=True)
class PointingGame:
    """`pointing` (`over="clip"`, in time and space) or `spatial_pointing` (`over="frame"`).

    Attributes:
        over: one highest voxel in the whole clip, or one in each frame that holds truth.
        tolerance: pixels of the clip by which it may miss.
    """

    over: Literal["clip", "frame"] = "clip"
    tolerance: float = 0.0
    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.over not in ("clip", "frame"):
            raise OptionError(f"the pointing game is played over the clip or the frame, not {self.over!r}")
        check_tolerance(self.tolerance)

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN where the clip shows no true voxel.

        Raises:
            OptionError: no truth, or a clip or a truth of another size than the map.
        """
        play = pointing if self.over == "clip" else spatial_pointing

        def hit(saliency: Saliency, mask: Mask) -> float:
            return play(saliency, mask, self.tolerance)

        return _score(hit, explanation, clip, _given(truth, self))


@dataclass(frozen=True)
class TubeIoU:
    """`tube_iou` of the upsampled map."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN where the clip shows no true voxel.

        Raises:
            OptionError: no truth, or a clip or a truth of another size than the map.
        """
        return _score(tube_iou, explanation, clip, _given(truth, self))


@dataclass(frozen=True)
class TemporalIoU:
    """`temporal_iou` of the upsampled map."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN where no frame is true, or all are.

        Raises:
            OptionError: no truth, or a clip or a truth of another size than the map.
        """
        truth = _given(truth, self)
        score = _score(temporal_iou, explanation, clip, truth, mass=True)
        if not bool(truth.mask.any(dim=2).any(dim=1).all()):
            return score
        said = "the truth is on every frame, so that every map finds its frames"
        return Score(float("nan"), self.higher_is_better, notes=(said,))


Measure = Callable[[Saliency, Mask], float]


def _score(
    measure: Measure,
    explanation: Explanation,
    clip: Clip | None,
    truth: Truth,
    *,
    mask: Mask | None = None,
    events: tuple[Mask, ...] = (),
    by_chance: Measure | None = None,
    missing: str = "the clip shows no true voxel",
    better: bool = True,
    mass: bool = False,
) -> Score:
    """What the map gets, and what its anchors get.

    Args:
        measure: the score, of a map and a mask.
        explanation: whose map is scored.
        clip: for the frame difference.
        truth: the evidence, and the oracle.
        mask: what is looked for, where that is not the evidence.
        events: parts of the evidence whose values become facts.
        by_chance: what a random order gets on average; None: what a flat map gets, which is the same where
            voxels of equal value share their credit.
        missing: said where there is nothing to look for.
        better: whether more is better.
        mass: whether negative values count as nothing.
    """
    saliency, evidence = settled(explanation.saliency.cpu()), truth.mask.cpu()
    maps = anchor_maps(saliency, clip, truth)
    looked_for = evidence if mask is None else mask.cpu()
    if not bool(looked_for.any()):
        return Score(float("nan"), better, notes=(missing,))
    value = measure(saliency, looked_for)
    flat = torch.ones_like(saliency)
    anchors = {name: measure(settled(m), looked_for) for name, m in maps.items() if name != RANDOM}
    anchors = {RANDOM: (by_chance or measure)(flat, looked_for)} | anchors
    notes = warnings_for(value, anchors, better)
    scale, said = between(value, anchors, better)
    if mass and not bool((saliency > 0).any()):
        notes = ("nothing in the map is positive", *notes)
    return Score(
        value,
        better,
        anchors,
        scale,
        facts={f"event_{i}": measure(saliency, event.cpu()) for i, event in enumerate(events, 1)},
        notes=notes + said,
    )


def _given(truth: Truth | None, metric: object) -> Truth:
    if truth is None:
        raise OptionError(
            f"{type(metric).__name__} needs to know where the evidence is: give boxes, masks or planted clips"
        )
    return truth
