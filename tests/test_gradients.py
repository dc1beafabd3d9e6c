"""Saliency, input times gradient and SmoothGrad: by hand, against captum, and what must hold exactly."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tests.test_pixels import TARGETS, by_hand, pack, wrapped
from tests.test_tubes import Small, clip
from tests.test_untouched import Counting, assert_same, state
from tubelens.clip import Clip
from tubelens.errors import LayerError, OptionError
from tubelens.fill import Mean
from tubelens.methods.gradients import InputXGradient, Saliency, SmoothGrad, contrast, over_bands
from tubelens.methods.protocol import Method, Scalable
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Passes, Run
from tubelens.target import Logit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import captum.attr

METHODS = [Saliency(), InputXGradient(), SmoothGrad(n=3)]
CLIP = clip(4, 16)


@pytest.fixture
def small() -> TorchModel:
    return wrapped(order_one(Small(), pack(clip().pixels[None])))


def reduced(values: Tensor, bands: str) -> Tensor:
    """Bands to one value, voxel by voxel."""
    out = torch.zeros(values.shape[1:])
    for place in np.ndindex(*values.shape[1:]):
        v = [float(band[place]) for band in values]
        out[place] = {"sum": sum(v), "abs": sum(map(abs, v)), "max": max(map(abs, v))}[bands]
    return out


@pytest.mark.parametrize("bands", ["sum", "abs", "max"])
def test_saliency_by_hand(small: TorchModel, bands: str):
    found = Saliency(bands=bands)(small, CLIP, TARGETS)
    for why, target in zip(found, TARGETS, strict=True):
        g = by_hand(small.module, CLIP.pixels[None], target)[0]
        torch.testing.assert_close(why.grid, reduced(g, bands), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(why.saliency, why.grid)  # each cell is a voxel
    per_band = Saliency(bands=bands).per_band(small, CLIP, TARGETS)
    torch.testing.assert_close(per_band[0], by_hand(small.module, CLIP.pixels[None], TARGETS[0])[0])


@pytest.mark.parametrize("bands", ["sum", "abs", "max"])
def test_input_x_gradient_by_hand(small: TorchModel, bands: str):
    found = InputXGradient(bands=bands)(small, CLIP, TARGETS)
    per_band = InputXGradient(bands=bands).per_band(small, CLIP, TARGETS)
    for i, target in enumerate(TARGETS):
        product = CLIP.pixels * by_hand(small.module, CLIP.pixels[None], target)[0]
        torch.testing.assert_close(found[i].grid, reduced(product, bands), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(per_band[i], product, atol=1e-6, rtol=1e-5)


def test_defaults_are_the_papers():
    assert Saliency().bands == "max"
    assert (InputXGradient().bands, InputXGradient().baseline) == ("sum", "black")
    assert (SmoothGrad().n, SmoothGrad().bands) == (50, "abs")


def test_input_x_gradient_against_a_baseline(small: TorchModel):
    """The baseline at the normalisation's mean is what the network eats times the gradient there."""
    g = by_hand(small.module, CLIP.pixels[None], Logit(1))[0]
    mean = CLIP.pixels.mean(dim=(1, 2, 3), keepdim=True)
    (why,) = InputXGradient(baseline="mean")(small, CLIP, [Logit(1)])
    torch.testing.assert_close(why.grid, ((CLIP.pixels - mean) * g).sum(0), atol=1e-5, rtol=1e-5)
    (same,) = InputXGradient(baseline=Mean())(small, CLIP, [Logit(1)])
    assert torch.equal(same.grid, why.grid)
    eaten = pack(CLIP.pixels[None]).requires_grad_()
    (g_eaten,) = torch.autograd.grad(small.module(eaten)[0, 1], eaten)
    normalised = ((CLIP.pixels - 0.4) * g).sum(0)
    torch.testing.assert_close(normalised, (eaten * g_eaten)[0].sum(0).detach(), atol=1e-5, rtol=1e-4)


def test_what_equals_its_baseline_has_no_map():
    black = Clip.from_array(np.zeros((4, 8, 8, 3), "uint8"))
    with pytest.raises(OptionError, match=r"clip is its own baseline .'black'.*choose another"):
        contrast(black, "black")
    assert float(contrast(black, "grey").mean()) == -0.5


@pytest.mark.parametrize(("ours", "theirs"), [(Saliency(), "Saliency"), (InputXGradient(), "InputXGradient")])
def test_equals_captum(small: TorchModel, ours: Saliency, theirs: str):
    x = CLIP.pixels[None].clone().requires_grad_()
    got = ours.per_band(small, CLIP, [Logit(2)])[0]
    if theirs == "Saliency":
        expected = captum.attr.Saliency(lambda c: small.module(pack(c))).attribute(x, target=2, abs=False)
    else:
        expected = captum.attr.InputXGradient(lambda c: small.module(pack(c))).attribute(x, target=2)
    torch.testing.assert_close(got, expected[0].detach(), atol=1e-6, rtol=1e-5)


def test_smoothgrad_by_hand(small: TorchModel):
    """The same noise, written down again: one draw a copy, scaled by the clip's own range."""
    dim = Clip.from_array(0.3 * CLIP.pixels.permute(1, 2, 3, 0) + 0.1)
    for squared in (False, True):
        generator = torch.Generator().manual_seed(7)
        spread = 0.2 * float(dim.pixels.max() - dim.pixels.min())
        total = torch.zeros_like(dim.pixels)
        for _ in range(4):
            noisy = dim.pixels + spread * torch.randn(dim.pixels.shape, generator=generator)
            g = by_hand(small.module, noisy[None], Logit(1))[0]
            total += g**2 if squared else g
        method = SmoothGrad(n=4, sigma=0.2, seed=7, squared=squared)
        (why,) = method(small, dim, [Logit(1)])
        torch.testing.assert_close(why.grid, reduced(total / 4, "abs"), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            method.per_band(small, dim, [Logit(1)])[0], total / 4, atol=1e-5, rtol=1e-4
        )
        record = why.provenance
        assert (record.seed, record.forwards, record.backwards) == (7, 5, 4)
        assert record.facts["samples"] == 4
        assert record.notes == ()


def test_smoothgrad_without_noise_is_the_gradient(small: TorchModel):
    for targets in (TARGETS[:1], TARGETS):
        smooth = SmoothGrad(n=3, sigma=0)(small, CLIP, targets)
        assert smooth[0].provenance.backwards == 3 * len(targets)
        plain = Saliency(bands="abs")(small, CLIP, targets)
        for a, b in zip(smooth, plain, strict=True):
            torch.testing.assert_close(a.grid, b.grid, atol=1e-6, rtol=1e-5)


def test_smoothgrad_is_its_seed_and_not_its_batch(small: TorchModel):
    outside = torch.get_rng_state()
    (first,) = SmoothGrad(n=5)(small, CLIP, [Logit(1)], Run(batch=2))
    torch.manual_seed(123)
    (again,) = SmoothGrad(n=5)(small, CLIP, [Logit(1)], Run(batch=5))
    (other,) = SmoothGrad(n=5, seed=1)(small, CLIP, [Logit(1)])
    torch.testing.assert_close(first.grid, again.grid, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(first.grid, other.grid, atol=1e-3)
    torch.set_rng_state(outside)


def test_smoothgrad_stops_in_time_with_what_it_has(small: TorchModel):
    (why,) = SmoothGrad(n=6)(small, CLIP, [Logit(1)], Run(batch=2, seconds=1e-9))
    (two,) = SmoothGrad(n=2)(small, CLIP, [Logit(1)])
    torch.testing.assert_close(why.grid, two.grid, atol=1e-6, rtol=1e-5)
    assert why.provenance.notes == ("stopped by time after 2 of 6 noisy copies",)
    assert why.provenance.forwards == 3
    (whole,) = SmoothGrad(n=6)(small, CLIP, [Logit(1)], Run(batch=2, seconds=600))
    assert whole.provenance.facts["samples"] == 6


def test_smoothgrad_fits_a_budget(small: TorchModel):
    assert SmoothGrad(n=9).passes(small, CLIP) == Passes(1, 9)
    assert SmoothGrad(seed=3).afford(31, small, CLIP) == SmoothGrad(n=10, seed=3)
    assert SmoothGrad().afford(4, small, CLIP).n == 1
    with pytest.raises(OptionError, match="at least 4 forwards, not 3"):
        SmoothGrad().afford(3, small, CLIP)
    assert isinstance(SmoothGrad(), Scalable)


def test_one_forward_for_all_targets(small: TorchModel):
    calls: list[int] = []
    handle = small.module.fc.register_forward_hook(lambda m, i, o: calls.append(o.shape[0]))
    found = [Saliency()(small, CLIP, TARGETS), InputXGradient()(small, CLIP, TARGETS)]
    handle.remove()
    assert calls == [1, 1]
    for row in found:
        assert [(e.provenance.forwards, e.provenance.backwards) for e in row] == [(1, 3)] * 3


def test_a_linear_network_adds_up():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 16 * 16, 3))
    model = wrapped(order_one(net, CLIP.pixels[None]))
    (why,) = InputXGradient()(model, CLIP, [Logit(2)])
    change = model(CLIP.pixels[None])[0, 2] - model(torch.zeros_like(CLIP.pixels)[None])[0, 2]
    assert float(why.grid.sum()) == pytest.approx(float(change), rel=1e-4)


def spoilt(method: Any, **fields: Any) -> Any:
    """The method with fields that the run-time type checker of the tests would not let in."""
    made = copy.copy(method)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_reduction_is_refused_before_the_work(method: Any):
    with pytest.raises(OptionError, match="bands must be 'sum', 'abs', 'max', not 'mean'"):
        spoilt(method, bands="mean").__post_init__()


def test_reprs_rebuild_and_options_are_checked():
    for method in (*METHODS, SmoothGrad(3, 0.1, 5, True, "max"), InputXGradient("abs", "grey")):
        assert eval(repr(method)) == method
        assert isinstance(method, Method)
        assert (method.needs, method.explains) == ("gradients", Logit)
    with pytest.raises(OptionError, match="bands must be 'sum', 'abs', 'max', not 'mean'"):
        over_bands(torch.ones(1, 3, 2, 2, 2), "mean")
    with pytest.raises(OptionError, match="n >= 1"):
        SmoothGrad(n=0)
    for sigma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="sigma"):
            SmoothGrad(sigma=sigma)
    with pytest.raises(OptionError, match="no fill 'blak'"):
        InputXGradient(baseline="blak")


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_as_it_was(method: Method):
    net = Counting().train()
    before = state(net)
    method(TorchModel(net, pack=pack), CLIP, TARGETS)
    assert_same(before, state(net))
    with pytest.raises(LayerError, match="served is a black box"):
        method(BlackBox(lambda x: x.mean(dim=(2, 3, 4)), name="served"), CLIP, [Logit(0)])
