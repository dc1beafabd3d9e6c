"""Seed-to-seed correlation against scipy, and what an explanation cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch

from tests.conftest import order_one
from tests.metrics.test_drop import SIZE, explanation, random_map
from tests.metrics.test_sensitivity import Brightness, Small
from tests.perturbed import Box, clip
from tubelens.agreement import agreement
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Noise
from tubelens.methods.gradients import Saliency, SmoothGrad
from tubelens.methods.rise import RISE
from tubelens.methods.selective import Selective
from tubelens.metrics.protocol import Metric
from tubelens.metrics.stability import (
    Forwards,
    SeedStability,
    cost,
    rank_stability,
    reseeded,
    seeds_of,
)
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Run
from tubelens.target import Logit, Prob

FP32 = Run(precision="fp32")


def test_the_mean_over_pairs_of_seeds():
    model, c = Box(SIZE), clip(SIZE)
    method = RISE(n=20, cells=(2, 2, 2), seed=7)
    score = SeedStability(n=4)(model, c, method, Prob(1), FP32)
    maps = [RISE(n=20, cells=(2, 2, 2), seed=s)(model, c, [Prob(1)], FP32)[0] for s in (7, 8, 9, 10)]
    found = [agreement(a, b) for a, b in combinations(maps, 2)]
    assert len(found) == 6
    assert score.value == pytest.approx(sum(found) / 6, abs=1e-9)
    assert score.facts == {"seeds": 4.0, "least": min(found)}
    assert score.forwards == 4 * 21
    assert rank_stability(maps) == pytest.approx(score.value)
    given = SeedStability(n=4)(model, c, method, Prob(1), FP32, explanation=maps[0])
    assert given.value == score.value
    assert given.forwards == 3 * 21


def test_more_masks_are_steadier():
    values = [
        SeedStability(n=3)(Box(SIZE), clip(SIZE), RISE(n=n, cells=(2, 2, 2)), Prob(1), FP32).value
        for n in (10, 1000)
    ]
    assert values[0] < 0.8 < values[1]


def test_a_method_that_draws_nothing_is_not_run():
    def refuse(clips: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it was run")

    score = SeedStability()(BlackBox(refuse), clip(SIZE), Saliency(), Logit(0))
    assert score.value == 1
    assert score.forwards == 0
    assert score.notes == ("Saliency draws nothing: it gives the same map each time",)


def test_seeds_within_a_method_are_found():
    """Of the method that another one filters, and of the noise that it fills with."""
    inner = SmoothGrad(n=2, seed=5)
    assert seeds_of(RISE(fill=Noise(seed=3), seed=4)) == (3, 4)
    assert reseeded(RISE(fill=Noise(seed=3), seed=4), 10) == RISE(fill=Noise(seed=13), seed=14)
    assert seeds_of(Selective(base=inner)) == (5,)
    assert reseeded(Selective(base=inner), 1) == Selective(base=replace(inner, seed=6))
    for none in (Saliency(), Selective(base=Saliency()), Saliency, "rise", None, Brightness()):
        assert seeds_of(none) == ()
    c = clip((6, 12, 12))
    net = TorchModel(order_one(Small(), c.pixels[None]), pack=lambda x: x)
    assert SeedStability(n=2)(net, c, Selective(base=inner), Logit(0)).value < 0.999


def test_seeds_in_tuples_and_lists_are_found():
    @dataclass(frozen=True)
    class Several:
        methods: tuple[Any, ...] = (RISE(seed=3), Saliency(), (SmoothGrad(seed=5),))
        fills: Any = None
        pair: Any = None

    several = Several(fills=[Noise(seed=7), "blur"], pair=Pair(1, Noise(seed=9)))
    assert seeds_of(several) == (3, 5, 7, 9)
    assert reseeded(several, 2) == Several(
        (RISE(seed=5), Saliency(), (SmoothGrad(seed=7),)), [Noise(seed=9), "blur"], Pair(1, Noise(seed=11))
    )
    assert isinstance(reseeded(several, 2).pair, Pair)


class Pair(NamedTuple):
    """Made of its fields, not of one sequence."""

    first: Any
    second: Any


@pytest.mark.parametrize("within", [False, True])
def test_a_method_that_does_not_show_its_options_is_run_twice(within: bool):
    """By itself, or within one that does."""
    generator = torch.Generator().manual_seed(0)

    class Draws:
        needs = "scorer"
        explains = Prob

        def __init__(self, random: bool) -> None:
            self.random, self.runs = random, 0

        def __call__(self, model: Any, clip: Any, targets: Any, run: Run = FP32) -> list[Explanation]:
            self.runs += 1
            m = torch.rand(SIZE, generator=generator) if self.random else random_map(0)
            m[0, 0, 0] = 0 if within else torch.nan  # NaN is as good as NaN
            return [explanation(m) for _ in targets]

    for random in (True, False):
        inner = Draws(random)
        method = Selective(base=inner) if within else inner
        name = type(method).__name__
        found = SeedStability()(BlackBox(Box(SIZE)), clip(SIZE), method, Prob(1), FP32)
        assert inner.runs == 2
        assert found.forwards == 2 * cost(explanation(random_map(0)))
        if random:
            assert math.isnan(found.value)
            assert found.notes == (f"{name} gives another map each time, and has no seed to set",)
        else:
            assert found.value == 1
            assert found.notes == (f"{name} has no seed, and gave the same map twice",)


def test_a_time_limit_does_not_cut_the_maps():
    method = RISE(n=60, cells=(2, 2, 2))
    limited = replace(FP32, seconds=1e-9)
    whole = SeedStability(n=2)(Box(SIZE), clip(SIZE), method, Prob(1), FP32)
    found = SeedStability(n=2)(Box(SIZE), clip(SIZE), method, Prob(1), limited)
    assert found.forwards == whole.forwards == 2 * 61
    assert found.value == pytest.approx(whole.value, abs=1e-4)


def test_flat_maps_have_no_ranks():
    flat = explanation(torch.zeros(SIZE))
    assert math.isnan(rank_stability([flat, flat]))
    assert math.isnan(rank_stability([flat]))
    score = SeedStability(n=2)(Box(SIZE, scale=0), clip(SIZE), RISE(n=20), Prob(1), FP32)
    assert math.isnan(score.value)
    assert "the same everywhere" in score.notes[0]


def test_forwards():
    made = explanation(random_map(0))
    why = replace(made, provenance=replace(made.provenance, forwards=5, backwards=2, seconds=1.5))
    score = Forwards()(why)
    assert score.value == 5 + 2 * 2 == cost(why)
    assert score.facts == {"forwards": 5, "backwards": 2}
    assert score.higher_is_better is False
    assert Forwards(backward=3)(why).value == 11
    assert Forwards.kind == "map"


def test_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    for metric in (SeedStability(n=5), Forwards(backward=2.0)):
        assert eval(repr(metric)) == metric
        assert isinstance(metric, Metric)
    with pytest.raises(OptionError, match="2 seeds"):
        SeedStability(n=1)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(OptionError, match="backward"):
            Forwards(backward=wrong)
