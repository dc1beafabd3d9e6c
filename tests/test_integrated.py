"""Integrated gradients: the integral by hand, completeness, captum's with the same rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_gradients import spoilt
from tests.test_pixels import TARGETS, by_hand, pack, wrapped
from tests.test_tubes import Small, clip
from tests.test_untouched import Counting, assert_same, state
from tubelens.clip import Clip
from tubelens.errors import LayerError, OptionError
from tubelens.fill import Blur
from tubelens.methods.gradients import InputXGradient
from tubelens.methods.integrated import IntegratedGradients, nodes
from tubelens.methods.protocol import Method, Scalable
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Passes, Run
from tubelens.target import Logit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import captum.attr

CLIP = clip(4, 16)


class Smooth(nn.Module):
    """No kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 4, 3, 2, 1), nn.Conv3d(4, 6, 3, 1, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.b(torch.tanh(self.a(x)))).mean(dim=(2, 3, 4)))


@pytest.fixture
def smooth() -> TorchModel:
    return wrapped(order_one(Smooth(), pack(CLIP.pixels[None])))


@pytest.fixture
def small() -> TorchModel:
    return wrapped(order_one(Small(), pack(clip().pixels[None])))


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "grey": lambda x: torch.full_like(x, 0.5),
    "mean": lambda x: x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x),
}


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_riemann_sum_of_the_paper(small: TorchModel, baseline: str):
    """Equation 3: (x - b) / m times the sum over k = 1..m of the gradient at b + k/m (x - b)."""
    x, b, m = CLIP.pixels, BASELINES[baseline](CLIP.pixels), 5
    found = IntegratedGradients(m, baseline, "right")(small, CLIP, TARGETS)
    for why, target in zip(found, TARGETS, strict=True):
        total = torch.zeros_like(x)
        for k in range(1, m + 1):
            total += by_hand(small.module, (b + k / m * (x - b))[None], target)[0]
        expected = ((x - b) * total / m).sum(0)
        torch.testing.assert_close(why.grid, expected, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            ends = [float(target(small.module(pack(p[None])))) for p in (x, b)]
        facts = why.provenance.facts
        assert facts["baseline_score"] == pytest.approx(ends[1], abs=1e-5)
        assert (why.provenance.forwards, why.provenance.backwards) == (2 + m, 3 * m)
        off = abs(float(expected.sum()) - (ends[0] - ends[1])) / abs(ends[0] - ends[1])
        assert facts["completeness_error"] == pytest.approx(off, abs=2e-3)
        assert why.provenance.score == pytest.approx(ends[0], abs=1e-5)


def test_rules_integrate_what_they_should():
    for rule, degree in (("gauss", 5), ("midpoint", 1), ("right", 0)):
        places, weights = nodes(3, rule)
        for power in range(degree + 2):
            got = sum(w * p**power for p, w in zip(places, weights, strict=True))
            exact = got == pytest.approx(1 / (power + 1), abs=1e-12)
            assert exact == (power <= degree)
    assert nodes(4, "midpoint")[0] == [0.125, 0.375, 0.625, 0.875]
    assert nodes(4, "right")[0] == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(OptionError, match=r"unknown rule 'gaus'.*'gauss'"):
        nodes(3, "gaus")


def test_one_step_to_the_right_is_input_times_gradient(small: TorchModel):
    for baseline in ("black", "mean"):
        for bands in ("sum", "abs", "max"):
            one = IntegratedGradients(1, baseline, "right", bands)(small, CLIP, TARGETS)  # type: ignore[arg-type]
            product = InputXGradient(bands, baseline)(small, CLIP, TARGETS)  # type: ignore[arg-type]
            for a, b in zip(one, product, strict=True):
                torch.testing.assert_close(a.grid, b.grid, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rule", ["gauss", "midpoint", "right"])
def test_on_a_linear_network_every_rule_is_input_times_gradient(rule: str):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 16 * 16, 3))
    model = wrapped(order_one(net, CLIP.pixels[None]))
    (why,) = IntegratedGradients(3, rule=rule)(model, CLIP, [Logit(1)])  # type: ignore[arg-type]
    (product,) = InputXGradient()(model, CLIP, [Logit(1)])
    torch.testing.assert_close(why.grid, product.grid, atol=1e-5, rtol=1e-4)
    assert why.provenance.facts["completeness_error"] < 1e-4


def test_completeness_at_the_defaults(smooth: TorchModel):
    for why in IntegratedGradients()(smooth, CLIP, TARGETS):
        facts = why.provenance.facts
        change = why.provenance.score - facts["baseline_score"]
        assert abs(change) > 1e-3
        assert abs(float(why.grid.sum()) - change) < 1e-3 * abs(change)
        assert facts["completeness_error"] < 1e-3
        assert why.provenance.notes == ()


def test_too_few_steps_are_told(smooth: TorchModel):
    found = IntegratedGradients(steps=1, rule="right")(smooth, CLIP, TARGETS)
    off = [e.provenance.facts["completeness_error"] for e in found]
    assert max(off) > 0.01
    for why, error in zip(found, off, strict=True):
        note = f"(off by {error:.1%}): use more steps"
        assert [n.endswith(note) for n in why.provenance.notes] == ([True] if error > 0.01 else [])


@pytest.mark.parametrize(("rule", "theirs"), [("gauss", "gausslegendre"), ("midpoint", "riemann_middle")])
def test_equals_captum(small: TorchModel, rule: str, theirs: str):
    method = IntegratedGradients(6, "grey", rule)  # type: ignore[arg-type]
    x = CLIP.pixels[None]
    reference = captum.attr.IntegratedGradients(lambda c: small.module(pack(c)))
    expected = reference.attribute(x, torch.full_like(x, 0.5), target=3, n_steps=6, method=theirs)
    got = method.per_band(small, CLIP, [Logit(3)])[0]
    torch.testing.assert_close(got, expected[0].detach().float(), atol=1e-6, rtol=1e-4)


def test_does_not_depend_on_the_batch_and_counts_its_passes(small: TorchModel):
    calls: list[int] = []
    handle = small.module.fc.register_forward_hook(lambda m, i, o: calls.append(o.shape[0]))
    (one,) = IntegratedGradients(7)(small, CLIP, [Logit(1)], Run(batch=3))
    handle.remove()
    assert calls == [1, 1, 3, 3, 1]
    (other,) = IntegratedGradients(7)(small, CLIP, [Logit(1)])
    torch.testing.assert_close(one.grid, other.grid, atol=1e-6, rtol=1e-5)
    assert (one.provenance.forwards, one.provenance.backwards) == (9, 7)
    assert IntegratedGradients(7).passes(small, CLIP) == Passes(2, 7)


def test_fits_a_budget(small: TorchModel):
    assert IntegratedGradients(baseline="mean").afford(50, small, CLIP) == IntegratedGradients(16, "mean")
    assert IntegratedGradients().afford(5, small, CLIP).steps == 1
    with pytest.raises(OptionError, match="at least 5 forwards, not 4"):
        IntegratedGradients().afford(4, small, CLIP)
    assert isinstance(IntegratedGradients(), Scalable)


def test_repr_rebuilds_and_options_are_checked(small: TorchModel):
    for method in (IntegratedGradients(), IntegratedGradients(4, "mean", "midpoint", "abs")):
        assert eval(repr(method)) == method
        assert isinstance(method, Method)
    assert eval(repr(IntegratedGradients(baseline=Blur(2.0)))) == IntegratedGradients(baseline=Blur(2.0))
    for options, message in (
        ({"steps": 0}, "at least 1 step, not 0"),
        ({"baseline": "blak"}, "no fill 'blak'"),
    ):
        with pytest.raises(OptionError, match=message):
            IntegratedGradients(**options)  # type: ignore[arg-type]
    for fields in ({"bands": "mean"}, {"rule": "left"}):
        with pytest.raises(OptionError, match=r"bands must be|unknown rule 'left'"):
            spoilt(IntegratedGradients(), **fields).__post_init__()
    with pytest.raises(OptionError, match="own baseline"):
        IntegratedGradients()(small, Clip.from_array(np.zeros((4, 16, 16, 3), "uint8")), [Logit(0)])


def test_the_model_is_as_it_was():
    net = Counting().train()
    before = state(net)
    IntegratedGradients(3)(TorchModel(net, pack=pack), CLIP, TARGETS)
    assert_same(before, state(net))
    with pytest.raises(LayerError, match="served is a black box"):
        IntegratedGradients(3)(BlackBox(lambda x: x.mean(dim=(2, 3, 4)), name="served"), CLIP, [Logit(0)])
