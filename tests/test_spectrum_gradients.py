"""Gradient methods band by band: exact on a linear score, the signed values by hand on one that is not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import tubelens as tl
from tests.spectral import GROUPS, SIZE, clip, linear, network, waves
from tubelens.masks import supervoxels
from tubelens.methods.protocol import Method
from tubelens.model import TorchModel
from tubelens.target import Contrast, Logit

RULES = {
    "sum": lambda v: v.sum(dim=0),
    "abs": lambda v: v.abs().sum(dim=0),
    "max": lambda v: v.abs().max(dim=0).values,
}


@cache
def net() -> TorchModel:
    return network()


def gradient(k: int) -> Tensor:
    """Of logit k at the pixels."""
    x = clip().pixels[None].clone().requires_grad_()
    (found,) = torch.autograd.grad(net().module(x)[0, k], x)
    return found[0]


def at_bands(why: Any, values: Tensor, reduce: Any) -> None:
    """Every group's map is its bands' values, reduced."""
    assert why.bands == ("RGB", "IR")
    for name, channels in GROUPS.items():
        torch.testing.assert_close(why.band(name).grid, reduce(values[channels]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_and_its_product(rule: Any) -> None:
    reduce, x = RULES[rule], clip().pixels
    (a, b) = tl.Saliency(rule, spectrum="each")(net(), clip(), [Logit(0), Logit(3)])
    at_bands(a, gradient(0), reduce)
    at_bands(b, gradient(3), reduce)
    (c,) = tl.InputXGradient(rule, "mean", spectrum="each")(net(), clip(), [Logit(2)])
    at_bands(c, gradient(2) * (x - x.mean(dim=(1, 2, 3), keepdim=True)), reduce)
    (d,) = tl.InputXGradient(rule, "mean")(net(), clip(), [Logit(2)])
    assert torch.equal(c.grid, d.grid)  # telling the bands apart changes no map
    assert d.bands == ()
    whole = sum(c.band(name).grid for name in c.bands)
    if rule != "max":
        torch.testing.assert_close(whole, c.grid, atol=1e-6, rtol=1e-5)
    else:
        assert torch.equal(torch.maximum(c.band("RGB").grid, c.band("IR").grid), c.grid)
        assert (whole - c.grid).abs().max() > 1e-4


@pytest.mark.parametrize("made", [tl.IntegratedGradients(steps=4), tl.SmoothGrad(n=3), tl.GuidedBackprop()])
@pytest.mark.parametrize("rule", RULES)
def test_others_reduce_what_they_give_per_band(made: Any, rule: str) -> None:
    """`per_band` has tests of its own against the formulas."""
    targets = [Logit(0), Contrast(1, 2)]
    made = replace(made, bands=rule)
    joint = made(net(), clip(), targets)
    each = replace(made, spectrum="each")(net(), clip(), targets)
    for why, plain, values in zip(each, joint, made.per_band(net(), clip(), targets), strict=True):
        at_bands(why, values, RULES[rule])
        assert torch.equal(why.grid, plain.grid)
        assert why.provenance.forwards == plain.provenance.forwards
        assert why.provenance.backwards == plain.provenance.backwards
        assert why.provenance.facts == plain.provenance.facts


def test_bands_of_integrated_gradients_add_up_to_what_the_clip_adds() -> None:
    (why,) = tl.IntegratedGradients(steps=64, baseline="grey", spectrum="each")(net(), clip(), [Logit(1)])
    ends = net()(torch.stack([clip().pixels, torch.full_like(clip().pixels, 0.5)]))[:, 1]
    sums = sum(float(why.band(name).grid.double().sum()) for name in why.bands)
    assert sums == pytest.approx(float(ends[0] - ends[1]), rel=0.02)


def test_a_layers_map_gates_every_band() -> None:
    x = clip().pixels
    (why,) = tl.Gated(spectrum="each")(net(), clip(), [Logit(0)])
    product = (gradient(0) * (x - x.mean(dim=(1, 2, 3), keepdim=True))).abs()
    gate = why.grid / product.sum(dim=0)
    assert float(gate.max()) > 0.5
    at_bands(why, product * gate, RULES["sum"])
    torch.testing.assert_close(why.band("RGB").grid + why.band("IR").grid, why.grid)
    guided = tl.GuidedBackprop().per_band(net(), clip(), [Logit(0)])[0]
    (why,) = tl.GuidedGradCAM(bands="abs", spectrum="each")(net(), clip(), [Logit(0)])
    (cam,) = tl.GuidedGradCAM(bands="abs")(net(), clip(), [Logit(0)])
    assert torch.equal(why.grid, cam.grid)
    gate = (cam.grid / guided.abs().sum(dim=0)).nan_to_num(0.0)
    assert float(gate.max()) > 0
    at_bands(why, guided * gate, RULES["abs"])


@pytest.mark.parametrize("signed", [False, True])
def test_supervoxels_of_every_band(signed: bool) -> None:
    video = waves()
    (why,) = tl.SWAG(n=8, signed=signed, spectrum="each")(net(), video, [Logit(0)])
    x = video.pixels[None].clone().requires_grad_()
    (g,) = torch.autograd.grad(net().module(x)[0, 0], x)
    regions = supervoxels(video.pixels, 8)
    assert int(regions.max()) > 2
    for name, channels in GROUPS.items():
        values, expected = RULES["sum" if signed else "max"](g[0, channels]), torch.zeros(SIZE)
        for region in range(int(regions.max()) + 1):
            expected[regions == region] = values[regions == region].mean()
        torch.testing.assert_close(why.band(name).grid, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "made",
    [
        tl.IntegratedGradients(steps=2, spectrum="each"),
        tl.InputXGradient(spectrum="each"),
        tl.SmoothGrad(n=2, bands="sum", spectrum="each"),
    ],
)
def test_exact_where_the_score_is_linear(made: Method) -> None:
    """Of `<w, x>` each band's part is known: `w x`, and its gradient is w wherever noise may take it."""
    model = linear()
    w = model.module.w[0] - model.module.w[1]
    expected = w if isinstance(made, tl.SmoothGrad) else w * clip().pixels
    (why,) = made(model, clip(), [Contrast(0, 1)])
    at_bands(why, expected, RULES["sum"])
    model.module.w[:, :3] = 0
    (why,) = made(model, clip(), [Logit(0)])
    assert not why.band("RGB").grid.any()
    assert torch.equal(why.band("IR").grid, why.grid)
