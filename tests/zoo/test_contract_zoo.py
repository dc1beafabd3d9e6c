"""The contract of the methods over one network of every family: untouched, repeatable, batch-independent."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import tubelens as tl
from tests.conftest import order_one
from tests.perturbed import clip
from tests.test_contract import Breaks
from tests.test_untouched import assert_same, state
from tubelens import zoo
from tubelens.errors import HeadError, InputError
from tubelens.methods import method
from tubelens.model import TorchModel
from tubelens.running import Run
from tubelens.zoo import extras

SIZES = {  # name -> frames, height, width of a small clip that the network takes
    "mfnet3d": (8, 48, 48),
    "hara2018_resnet18": (16, 48, 48),
    "hara2018_densenet121": (16, 96, 96),
    "i3d_rgb": (9, 193, 193),
    "c3d": (16, 112, 112),
    "tsm_r50": (8, 48, 48),
    "pan_lite_r50": (16, 48, 48),
    "pan_full_r50": (16, 48, 48),
    "swin3d_t": (4, 32, 32),
    "x3d_xs": (4, 129, 129),
}
NAMES = [n for n in SIZES if zoo.MODELS[n].extra is None or extras.installed(zoo.MODELS[n].extra or "")]
METHODS = ("tubes", "gradcam(pool='hw', signed=True)", "saliency", "rise(n=2)")
LARGE = ("i3d_rgb", "c3d")  # on which a backward down to the pixels takes too long for the daily tests


def settled(module: nn.Module, fed: Any) -> nn.Module:
    """With activations of order one, also in 2-D networks."""
    order_one(module, fed)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.reset_running_stats()
        m.momentum, m.training = None, True
    with torch.no_grad():
        module(fed)
    return module.eval()


@cache
def family(name: str) -> tuple[TorchModel, tl.Clip]:
    recipe = zoo.MODELS[name]
    video = clip(SIZES[name])
    torch.manual_seed(0)
    module = settled(recipe.build(5), recipe.pack(video.pixels[None]))
    return replace(
        zoo.load("bundled"),
        module=module,
        pack=recipe.pack,
        unpack=recipe.unpack,
        **{
            "spec": recipe.spec,
            "labels": None,
            "layer": recipe.layer,
            "layouts": recipe.layouts,
            "name": name,
            "tubes": "" if recipe.tubes == "exact" else recipe.tubes,
        },
    ), video


def ways(model: TorchModel) -> list[Any]:
    chosen = METHODS[:2] if model.name in LARGE else METHODS
    return [method(m) for m in chosen if not (m == "tubes" and model.tubes)]


@pytest.mark.parametrize("name", NAMES)
def test_untouched_repeatable_and_signed(name: str):
    model, video = family(name)
    before = state(model.module)
    for way in ways(model):
        first, again = (tl.explain(model, video, way, tl.Logit(1), run=Run(batch=b)) for b in (2, 3))
        scale = float(first.saliency.abs().max())
        assert scale > 0, way
        torch.testing.assert_close(first.saliency, again.saliency, atol=0.02 * scale, rtol=0.02)
        other = tl.explain(model, video, way, tl.Logit(3))
        assert not torch.allclose(first.saliency, other.saliency, atol=1e-5 * scale)
    assert_same(before, state(model.module))


@pytest.mark.parametrize("name", NAMES)
def test_untouched_after_a_failure_and_frozen(name: str):
    model, video = family(name)
    before = state(model.module)
    for way in ("gradcam", "saliency", "rise(n=2)")[: 1 if name in LARGE else 3]:
        with pytest.raises(InputError, match="broken inside"):
            tl.explain(replace(model, unpack=Breaks(1)), video, way, 1)
    assert_same(before, state(model.module))
    trained = [p.requires_grad for p in model.module.parameters()]
    want = tl.explain(model, video, "gradcam", 2).saliency
    model.module.requires_grad_(False)
    try:
        torch.testing.assert_close(tl.explain(model, video, "gradcam", 2).saliency, want)
        assert not any(p.requires_grad for p in model.module.parameters())
    finally:
        for p, flag in zip(model.module.parameters(), trained, strict=True):
            p.requires_grad_(flag)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_scores_the_same_alone_and_in_a_batch(name: str):
    model, video = family(name)
    pair = torch.stack([video.pixels, video.pixels.flip(1)])
    both = model(pair)
    alone = torch.cat([model(pair[:1]), model(pair[1:])])
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-3 * float(both.abs().max()))
    assert not torch.allclose(both[0], both[1], rtol=1e-2)


@pytest.mark.parametrize("name", [n for n in NAMES if zoo.MODELS[n].tubes == "exact"])
def test_contributions_and_the_constant_are_the_logit(name: str):
    model, video = family(name)
    for k in (0, 4):
        why = tl.explain(model, video, "tubes", k)
        logit, constant = why.provenance.score, why.provenance.facts["constant"]
        assert float(why.grid.sum()) + constant == pytest.approx(logit, abs=1e-4 * abs(logit - constant))
        assert abs(logit - constant) > 1e-2  # the activations matter, not the bias alone
        bias = [v for k2, v in model.module.state_dict().items() if k2.endswith("bias") and v.shape == (5,)]
        assert constant == pytest.approx(float(bias[-1][k]), abs=1e-3 * max(1.0, abs(logit)))


@pytest.mark.parametrize("name", [n for n in NAMES if zoo.MODELS[n].tubes != "exact"])
def test_where_tubes_do_not_apply_the_reason_and_what_does_are_named(name: str):
    model, video = family(name)
    with pytest.raises(HeadError) as error:
        tl.explain(model, video, "tubes", 0)
    assert zoo.MODELS[name].tubes in str(error.value)
    assert "gradcam" in str(error.value)
