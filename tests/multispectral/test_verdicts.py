"""What is said of the scores: paired differences, and verdicts by their intervals."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from torch import nn

from tests.multispectral.conftest import Module


def test_differences_are_paired_and_judged_by_their_interval(module: Module) -> None:
    table = module("table")
    rng = np.random.default_rng(0)
    level = rng.normal(0, 5, 40)  # between clips much larger than between networks
    first = {str(i): float(v + 0.5 + rng.normal(0, 0.3)) for i, v in enumerate(level)}
    second = {str(i): float(v) for i, v in enumerate(level)} | {"other": 1e9}
    d = table.difference(("x",), first, second)
    assert (d.clips, d.verdict) == (40, "more")
    assert d.mean == pytest.approx(np.mean([first[str(i)] - second[str(i)] for i in range(40)]))
    assert d.low < 0.5 < d.high < 0.7
    assert table.difference(("x",), second, first).verdict == "less"
    noise = {k: v + (1 if int(k) % 2 else -1) for k, v in list(second.items())[:40]}
    assert table.difference(("x",), noise, second).verdict == "undecided"
    few = table.difference(("x",), first, second, {"1", "2", "3"})
    assert (few.clips, few.verdict) == (3, "undecided")  # though all three say more
    assert few.low > 0
    assert table.difference(("x",), first, {}).verdict == "undecided"
    assert table.difference(("x",), {"1": 3.0}, {"1": 1.0}).verdict == "undecided"


def test_joint_is_compared_with_the_network_of_the_same_clips(module: Module) -> None:
    table = module("table")
    clips = [str(i) for i in range(12)]

    def scores(value: float) -> dict[str, float]:
        return {clip: value + 0.01 * int(clip) for clip in clips}

    found = {
        ("net", "both", "visible", "gradcam", "energy"): scores(0.5),
        ("net", "visible", "visible", "gradcam", "energy"): scores(0.3),
        ("net", "infrared", "infrared", "gradcam", "energy"): scores(0.9),
        ("net", "both", "infrared", "gradcam", "energy"): scores(0.8),
        ("net", "both", "infrared", "random order", "insertion"): scores(0.1),
    }
    every = set(clips)
    right = {
        ("net", "both", "visible"): every - {"1"},
        ("net", "visible", "visible"): every - {"2", "3"},
        ("net", "both", "infrared"): every,
        ("net", "infrared", "infrared"): every,
    }
    rows = {d.what: d for d in table.focus(found, right)}
    assert set(rows) == {
        ("net", s, "Grad-CAM", "energy", which)
        for s in ("visible", "infrared")
        for which in ("all", "both right")
    }
    visible = rows["net", "visible", "Grad-CAM", "energy", "all"]
    assert (visible.clips, visible.verdict) == (12, "more")
    assert visible.mean == pytest.approx(0.2)
    assert rows["net", "visible", "Grad-CAM", "energy", "both right"].clips == 9
    assert rows["net", "infrared", "Grad-CAM", "energy", "all"].mean == pytest.approx(-0.1)


def test_less_is_better_in_deletion_alone(module: Module) -> None:
    table, summary = module("table"), module("summary")
    low = {str(i): 0.1 + 0.001 * i for i in range(12)}
    high = {str(i): 0.4 + 0.002 * i for i in range(12)}
    found = {("net", "visible", "visible", m, a): low if m == "gradcam" else high
             for m in ("gradcam", "rise(n=3)", "gated") for a in ("insertion", "deletion")}  # fmt: skip
    rows = table.contests(found)
    assert {(d.what[3], d.what[4]): summary._better(d, d.what[4]) for d in rows} == {
        ("RISE", "insertion"): "worse",
        ("RISE", "deletion"): "better",
        ("gated", "insertion"): "worse",
        ("gated", "deletion"): "better",
    }
    text = "\n".join(summary._grad_cam(rows))
    assert "Against RISE, by insertion and deletion: better in 1, worse in 1, undecided in 0" in text
    assert "Against gated (no competitor in the paper)" in text
    assert "against both competitors: **Mixed" in text


@pytest.mark.parametrize(
    ("better", "worse", "undecided", "says"),
    [
        (3, 0, 0, "**Agrees** throughout."),
        (3, 0, 2, "**Agrees**, where it can be told."),
        (0, 2, 0, "**Disagrees** throughout."),
        (0, 2, 1, "**Disagrees**, where it can be told."),
        (0, 0, 4, "**Undecided.**"),
        (2, 1, 3, "**Mixed"),
    ],
)
def test_verdicts_follow_from_counts(
    module: Module, better: int, worse: int, undecided: int, says: str
) -> None:
    counts = Counter({"better": better, "worse": worse, "undecided": undecided})
    assert module("summary")._verdict(counts).startswith(says)


def test_accuracy_is_told_class_by_class(module: Module) -> None:
    table, train = module("table"), module("train")
    trained = train.Trained("net", "infrared", nn.Identity(), 1.0)
    a = table.Accuracy(trained, "infrared", np.array([0, 0, 1, 1, 0, 2]), np.array([0, 0, 0, 1, 1, 2]), 3)
    assert a.share == pytest.approx(4 / 6)
    assert a.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert a.balanced == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert a.majority == pytest.approx(0.5)
    assert a.interval[0] < a.share < a.interval[1]
