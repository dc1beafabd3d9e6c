"""The table of metrics says what they cost and which way is better; both are counted and asked here."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.metrics.maps import clip_of, explanation_of
from tests.perturbed import Box
from tubelens.metrics import METRICS, metric
from tubelens.model import BlackBox
from tubelens.running import Run

SIZE = (16, 8, 8)
OPTIONS: dict[str, dict[str, Any]] = {
    "insertion": {"anchors": False},
    "deletion": {"anchors": False},
    "road": {"anchors": False},
    "road_lerf": {"anchors": False},
    "average_drop": {"anchors": False},
    "average_increase": {"anchors": False},
    "average_gain": {"anchors": False},
    "infidelity": {},
    "split": {"anchors": False},
    "temporal": {"anchors": False},
    "windows": {},
    "bands": {"anchors": False},
}


def formula(name: str, maps: int) -> int:
    """The forwards that the table tells, as a number."""
    made, cost = metric(name), METRICS[name].cost
    names = {"M": maps, "T": SIZE[0], "bands": 3, "n": getattr(made, "n", 0), "steps": 32}
    written = cost.partition(" F")[0].replace("^", "**")
    written = re.sub(r"(?<=[\dMT]) (?=[\w(])", " * ", written)
    written = re.sub(r"\bn (?=M)", "n * ", written)
    return int(eval(written, names))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("maps", [1, 2])
def test_forwards_are_as_told(name: str, maps: int):
    calls: list[int] = []
    inner = Box(SIZE)

    def score(clips: Tensor) -> Tensor:
        calls.append(len(clips))
        return inner(clips)

    # tubes on several frames, and no two alike
    given = [
        explanation_of(torch.rand(SIZE, generator=torch.Generator().manual_seed(s))) for s in range(maps)
    ]
    scores = metric(name, **OPTIONS[name])(
        BlackBox(score), clip_of(SIZE), given, run=Run(precision="fp32", batch=64)
    )
    assert sum(calls) == formula(name, maps) == pytest.approx(sum(s.forwards for s in scores))


def test_every_curve_is_counted():
    assert set(OPTIONS) == {name for name, entry in METRICS.items() if entry.kind == "curve"}


def test_directions_are_those_of_the_default():
    up = {name for name, entry in METRICS.items() if entry.better == "higher"}
    down = {name for name, entry in METRICS.items() if entry.better == "lower"}
    assert up | down == set(METRICS)
    assert {"insertion", "split", "temporal", "windows", "bands", "emprt"} <= up
    assert {"deletion", "road", "infidelity", "mprt", "label_randomisation"} <= down
