"""Max-sensitivity: captum with the same noise, the formula, and what maps that look at no model get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jaxtyping
import pytest
import torch
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from tests.conftest import order_one
from tests.metrics.test_drop import explanation, half_seen, random_map
from tests.perturbed import clip
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.methods.gradients import InputXGradient, Saliency, SmoothGrad
from tubelens.metrics.anchors import frame_difference, time_mean
from tubelens.metrics.protocol import MethodMetric, Metric
from tubelens.metrics.sensitivity import MaxSensitivity, changes, nearby
from tubelens.model import TorchModel
from tubelens.running import RUN, Run
from tubelens.target import Logit, Prob, Target

SIZE = (4, 8, 8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 6, 3, (1, 2, 2), 1), nn.Softplus())
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean(dim=(2, 3, 4)))


@pytest.fixture
def small() -> TorchModel:
    return TorchModel(order_one(Small(), clip(SIZE).pixels[None]), pack=lambda x: x, name="small")


def grey(seed: int = 0) -> Clip:
    """Pixels away from 0 and 1, where noise is not cut off."""
    return Clip.from_array((clip(SIZE, seed).pixels * 0.8 + 0.1).permute(1, 2, 3, 0))


@dataclass(frozen=True)
class Brightness:
    """A "method" whose map is the brightness, on half of the clip alone where asked to."""

    half: bool = False
    zero: bool = False
    needs: ClassVar[str] = "scorer"
    explains: ClassVar[type[Prob]] = Prob

    def __call__(self, model: Any, clip: Clip, targets: list[Target], run: Run = RUN) -> list[Explanation]:
        m = clip.pixels.sum(dim=0) * (0 if self.zero else 1)
        return [half_seen(m) if self.half else explanation(m) for _ in targets]


@pytest.mark.parametrize("method", [Saliency(), InputXGradient(), SmoothGrad(n=2, seed=1)])
def test_equals_captum_with_the_same_noise(method: Any, small: TorchModel):
    c = grey()
    metric = MaxSensitivity(n=5, radius=0.05, seed=2)
    score = metric(small, c, method, Logit(1))
    noisy = torch.stack([other.pixels for other in nearby(c, 0.05, 5, seed=2)])

    def explain(clips: Any) -> tuple[Tensor]:  # a tensor alone would be read as a tuple of clips
        clips = clips[0] if isinstance(clips, tuple) else clips
        made = [Clip.from_array(x.permute(1, 2, 3, 0)) for x in clips]
        return (torch.stack([method(small, x, [Logit(1)])[0].saliency for x in made])[:, None],)

    theirs = sensitivity_max(explain, c.pixels[None], lambda x: noisy, n_perturb_samples=5)
    assert score.value == pytest.approx(float(theirs[0]), rel=1e-5)
    given = metric(small, c, method, Logit(1), explanation=method(small, c, [Logit(1)])[0])
    assert given.value == score.value
    assert given.forwards == pytest.approx(score.forwards * 5 / 6)
    assert given.forwards == 5 * (3 + 2 * 2 if isinstance(method, SmoothGrad) else 1 + 2)


def test_the_formula_and_its_anchors(small: TorchModel):
    c = clip(SIZE)
    score = MaxSensitivity(n=4, radius=0.1)(small, c, Brightness(), Prob(0))
    first = c.pixels.sum(dim=0).double()
    found = []
    others = list(nearby(c, 0.1, 4))
    for other in others:
        moved = other.pixels.sum(dim=0).double() - first
        found.append(float(moved.pow(2).sum().sqrt() / first.pow(2).sum().sqrt()))
    assert score.value == pytest.approx(max(found), rel=1e-5)
    assert score.facts["mean"] == pytest.approx(sum(found) / 4, rel=1e-5)
    assert score.facts["sd"] == pytest.approx(float(torch.tensor(found).std(correction=0)), rel=1e-3)
    assert score.anchors["random"] == score.anchors["centre"] == 0
    for name, make in (
        ("difference", lambda x: frame_difference(x.pixels)),
        ("time_mean", lambda x: time_mean(x.pixels.sum(dim=0))),
    ):
        base = make(c)
        expected = max(float((make(o) - base).norm() / base.norm()) for o in others)
        assert score.anchors[name] == pytest.approx(expected, rel=1e-4)


def test_noise_fills_the_ball_and_stays_in_it():
    c = clip((6, 20, 20))
    made = torch.stack([other.pixels - c.pixels for other in nearby(c, 0.1, 5, seed=3)])
    assert float(made.abs().max()) <= 0.1 + 1e-6
    free = made[:, (c.pixels > 0.1) & (c.pixels < 0.9)]
    assert float(free.max()) > 0.0999
    assert float(free.min()) < -0.0999
    assert float(free.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert len(made[:, 0, 0, 0, 0].unique()) == 5
    ends = torch.stack([other.pixels for other in nearby(c, 0.5, 5)])
    assert (float(ends.min()), float(ends.max())) == (0, 1)
    again = torch.stack([other.pixels - c.pixels for other in nearby(c, 0.1, 5, seed=3)])
    assert torch.equal(made, again)
    assert not torch.equal(made[0], next(nearby(c, 0.1, 1, seed=4)).pixels - c.pixels)


def test_what_no_crop_saw_is_left_out(small: TorchModel):
    c = clip(SIZE)
    half = MaxSensitivity(n=3, radius=0.1)(small, c, Brightness(half=True), Prob(0))
    first = c.pixels.sum(dim=0)[:, 4:]
    found = [(o.pixels.sum(dim=0)[:, 4:] - first).norm() / first.norm() for o in nearby(c, 0.1, 3)]
    assert half.value == pytest.approx(float(max(found)), rel=1e-4)


def test_a_map_of_zeros_has_no_sensitivity(small: TorchModel):
    score = MaxSensitivity(n=2)(small, clip(SIZE), Brightness(zero=True), Prob(0))
    assert math.isnan(score.value)
    assert "zero throughout" in score.notes[0]
    assert changes(torch.zeros(SIZE), [random_map(0)]).isnan().all()


def test_a_time_limit_does_not_cut_the_maps(small: TorchModel):
    """Two maps cut short at different samples would differ for that alone."""
    c, seen = clip(SIZE), []

    @dataclass(frozen=True)
    class Watched(Brightness):
        def __call__(
            self, model: Any, clip: Clip, targets: list[Target], run: Run = RUN
        ) -> list[Explanation]:
            seen.append(run)
            return super().__call__(model, clip, targets, run)

    told: list[tuple[int, int]] = []
    run = Run(seconds=1e-9, batch=3, progress=lambda done, total: told.append((done, total)))
    MaxSensitivity(n=2)(small, c, Watched(), Prob(0), run)
    assert seen == [Run(batch=3)] * 3
    assert told == [(1, 2), (2, 2)]
    method = SmoothGrad(n=8, seed=1)
    whole = MaxSensitivity(n=2)(small, c, method, Logit(1))
    limited = MaxSensitivity(n=2)(small, c, method, Logit(1), Run(seconds=1e-9))
    assert limited.forwards == whole.forwards == 3 * (1 + 3 * 8)
    assert limited.value == pytest.approx(whole.value, rel=1e-4)


def test_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    metric = MaxSensitivity(n=3, radius=0.1, seed=2)
    assert eval(repr(metric)) == metric
    assert isinstance(metric, Metric)
    assert metric.kind == "method"
    assert "explanation" in MethodMetric.__call__.__annotations__
    for wrong in ({"n": 0}, {"radius": 0.0}, {"radius": 1.0}):
        with pytest.raises(OptionError):
            MaxSensitivity(**wrong)  # type: ignore[arg-type]
