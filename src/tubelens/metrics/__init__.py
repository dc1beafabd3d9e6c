"""Measures of how far a map can be trusted, by name; no metric imports a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tubelens.metrics.against_truth import (
    AveragePrecision,
    DistractorMass,
    EnergyInTube,
    PointingGame,
    TemporalIoU,
    TubeIoU,
)
from tubelens.metrics.bands import BandShare
from tubelens.metrics.complexity import Complexity, Sparseness
from tubelens.metrics.curves import Deletion, Insertion
from tubelens.metrics.drop import AverageDrop, AverageGain, AverageIncrease
from tubelens.metrics.infidelity import Infidelity
from tubelens.metrics.protocol import Score
from tubelens.metrics.road import ROAD, ROADLeRF
from tubelens.metrics.sanity import EfficientRandomisation, LabelRandomisation, ParameterRandomisation
from tubelens.metrics.sensitivity import MaxSensitivity
from tubelens.metrics.split import Split
from tubelens.metrics.stability import Forwards, SeedStability
from tubelens.metrics.temporal import TemporalEdit, Windows
from tubelens.specs import Named

__all__ = [
    "METRICS",
    "ROAD",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "AveragePrecision",
    "BandShare",
    "Complexity",
    "Deletion",
    "DistractorMass",
    "EfficientRandomisation",
    "EnergyInTube",
    "Entry",
    "Forwards",
    "Infidelity",
    "Insertion",
    "LabelRandomisation",
    "MaxSensitivity",
    "ParameterRandomisation",
    "PointingGame",
    "ROADLeRF",
    "Score",
    "SeedStability",
    "Sparseness",
    "Split",
    "TemporalEdit",
    "TemporalIoU",
    "TubeIoU",
    "Windows",
    "metric",
    "short_name",
]


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        make: the class.
        cost: forwards F for M maps of a clip, anchors not counted; R runs of the method.
        source: the paper, or what it is.
    """

    make: Callable[..., Any]
    cost: str
    source: str

    @property
    def kind(self) -> str:
        """What it looks at: a map, altered clips (curve), or the method run again."""
        return str(self.make.kind)  # type: ignore[attr-defined]

    @property
    def better(self) -> str:
        """`higher`, `lower`, or `-` where neither is: with the default options, where all have one."""
        try:
            up = self.make().higher_is_better
        except TypeError:
            up = self.make.higher_is_better  # type: ignore[attr-defined]
        return "-" if up is None else "higher" if up else "lower"

    @property
    def needs_truth(self) -> bool:
        """Whether it must be known where the evidence lies."""
        return bool(self.make.needs_truth)  # type: ignore[attr-defined]


METRICS: dict[str, Entry] = {
    # the score as evidence comes and goes
    "insertion": Entry(Insertion, "(2 + M (steps - 2)) F", "Petsiuk et al., RISE, BMVC 2018"),
    "deletion": Entry(Deletion, "(2 + M (steps - 2)) F", "Petsiuk et al., RISE, BMVC 2018"),
    "road": Entry(ROAD, "(1 + 9 M) F", "Rong et al., ICML 2022, imputing in space and time"),
    "road_lerf": Entry(ROADLeRF, "(1 + 9 M) F", "the same, least relevant first"),
    "average_drop": Entry(AverageDrop, "(1 + M) F", "Chattopadhyay et al., WACV 2018"),
    "average_increase": Entry(AverageIncrease, "(1 + M) F", "Chattopadhyay et al., WACV 2018"),
    "average_gain": Entry(AverageGain, "(1 + M) F", "Zhang et al., Opti-CAM, 2024"),
    "infidelity": Entry(Infidelity, "(1 + n) F", "Yeh et al., NeurIPS 2019"),
    # against known evidence
    "pointing": Entry(PointingGame, "-", "Zhang et al., IJCV 2018; in space, or space and time"),
    "energy": Entry(EnergyInTube, "-", "Wang et al., Score-CAM, CVPRW 2020; relevance mass"),
    "ap": Entry(AveragePrecision, "-", "average precision of the map as a detector of true voxels"),
    "tube_iou": Entry(TubeIoU, "-", "of the strongest voxels, as many as are true"),
    "temporal_iou": Entry(TemporalIoU, "-", "of the strongest frames, as many as are true"),
    "distractor": Entry(DistractorMass, "-", "share of the mass on what decides nothing"),
    # the map alone
    "sparseness": Entry(Sparseness, "-", "Gini index: Chalasani et al., ICML 2020"),
    "complexity": Entry(Complexity, "-", "entropy: Bhatt et al., IJCAI 2020"),
    "forwards": Entry(Forwards, "-", "what the map cost"),
    # time and bands
    "split": Entry(Split, "(31 + 11 M) F at 16 frames", "what, where, when, order"),
    "temporal": Entry(TemporalEdit, "(1 + n M) F", "freeze, shuffle, reverse in or outside the tube"),
    "windows": Entry(Windows, "(2 T - n + 2) F at T frames", "single frames and windows of frames"),
    "bands": Entry(BandShare, "(1 + M (2^bands - 1)) F", "Shapley values of the bands in the tube"),
    # the method
    "max_sensitivity": Entry(MaxSensitivity, "n R", "Yeh et al., NeurIPS 2019"),
    "seed_stability": Entry(SeedStability, "n R", "rank correlation from seed to seed"),
    "mprt": Entry(ParameterRandomisation, "(steps x draws) R", "Adebayo et al., NeurIPS 2018"),
    "emprt": Entry(EfficientRandomisation, "draws R", "Hedstroem et al., 2024"),
    "label_randomisation": Entry(LabelRandomisation, "1 R", "Adebayo et al., NeurIPS 2018"),
}

_NAMED = Named("metric", {name: entry.make for name, entry in METRICS.items()}, "metrics")


def metric(name: str, **options: Any) -> Any:
    """The metric of that name with its options, which may also stand in it: `"insertion(steps=16)"`.

    The name is one of `METRICS`, one that another package offers (entry point `tubelens.metrics`), or
    `module:Class` or `path.py:Class` of one's own.

    Raises:
        OptionError: unknown name or option.
    """
    return _NAMED.make(name, **options)


def short_name(written: str) -> str:
    """The name in the table of a metric's repr (`PointingGame(tolerance=2)` is `pointing`)."""
    return _NAMED.short(written)
