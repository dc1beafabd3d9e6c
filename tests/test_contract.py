"""One contract over methods x networks: shapes, seeds, batch sizes, the model untouched, odd clips, NaN.

Effort is kept small (few masks, few channels, few steps): what a method computes has tests of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

import tubelens as tl
from tests.conftest import order_one
from tests.test_tubes import Small
from tests.test_untouched import assert_same, state
from tubelens import methods as table
from tubelens.errors import HeadError, InputError, LayerError, ScoreError
from tubelens.methods import METHODS as TABLE
from tubelens.methods import method
from tubelens.methods.protocol import FromCapture
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Run
from tubelens.target import Logit, Prob
from tubelens.zoo.bundled import bundled

ATTENTION = ("rollout", "chefer")
"""Read transformers alone: held to this contract in `tests/test_attention*.py`."""
METHODS = {name: entry for name, entry in TABLE.items() if name not in ATTENTION}
EFFORT: dict[str, dict[str, Any]] = {
    "rise": {"n": 4, "cells": (2, 3, 3)},
    "scorecam": {"channels": 4},
    "ablationcam": {"channels": 4, "signed": True},
    "sidu": {"channels": 4},
    "occlusion": {"window": (4, 16, 16), "stride": (4, 16, 16)},
    "extremal": {"steps": 2, "volumes": (0.2,)},
    "lime": {"n": 8, "supervoxels": 12},
    "shap": {"n": 10, "supervoxels": 12},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"n": 3},
    "swag": {"n": 20},
    "pyramid": {"depth": 2},
}
DRAWN = ("rise", "lime", "shap", "smoothgrad")


class Branched(nn.Module):
    """Groups, two branches joined, a shortcut, an in-place ReLU."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.BatchNorm3d(8), nn.ReLU(inplace=True))
        self.left = nn.Conv3d(8, 8, 3, 1, 1, groups=4)
        self.right = nn.Conv3d(8, 8, 1)
        self.after = nn.Sequential(nn.Conv3d(16, 8, 3, 2, 1), nn.BatchNorm3d(8))
        self.short = nn.Conv3d(8, 8, 1, 2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([self.left(x), self.right(x)], dim=1)
        y = self.relu(self.after(y) + self.short(x))
        return self.fc(y.mean(dim=(2, 3, 4)))


def clip(frames: int = 8, size: tuple[int, int] = (24, 24), seed: int = 0) -> tl.Clip:
    """Smooth coloured patches that drift: noise alone has no supervoxels."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*(np.arange(n) for n in (frames, *size)), indexing="ij")
    waves = [
        np.sin((a * y + b * x) * 4 / size[0] + c * t / 4 + d)
        for a, b, c, d in rng.uniform(-1, 1, (3, 4)) * [1, 1, 1, np.pi]
    ]
    noise = rng.random((frames, *size, 3))
    array = 0.5 + 0.35 * np.stack(waves, axis=-1) + 0.1 * (noise - 0.5)
    return tl.Clip.from_array(array.astype(np.float32))


def torchvision(name: str, frames: int, size: int) -> tuple[TorchModel, tl.Clip]:
    video = clip(frames, (size, size))
    torch.manual_seed(0)
    net = order_one(get_model(name, weights=None, num_classes=5), video.pixels[None])
    layer = "features" if name == "s3d" else "layer4"
    return TorchModel(net, pack=lambda x: x, layer=layer, name=name), video


def small(make: Callable[[], nn.Module], frozen: bool = False) -> tuple[TorchModel, tl.Clip]:
    torch.manual_seed(0)
    video = clip()
    net = order_one(make(), video.pixels[None])
    if frozen:
        net.requires_grad_(False)
    layer = "relu" if isinstance(net, Branched) else "body"
    return TorchModel(net, pack=lambda x: x, layer=layer, name="net"), video


NETS: dict[str, Callable[[], tuple[TorchModel, tl.Clip]]] = {
    "in-place": lambda: small(Small),
    "frozen": lambda: small(Small, frozen=True),
    "branched": lambda: small(Branched),
    "bundled": lambda: (bundled(), clip(8, (32, 32))),
    "r3d_18": lambda: torchvision("r3d_18", 8, 48),
    "r2plus1d_18": lambda: torchvision("r2plus1d_18", 8, 48),
    "s3d": lambda: torchvision("s3d", 16, 224),
}


@cache
def net(name: str) -> tuple[TorchModel, tl.Clip]:
    return NETS[name]()


def made(name: str, **options: Any) -> Any:
    return method(name, **(EFFORT.get(name, {}) | options))


FEW = {
    "r2plus1d_18": ("tubes", "gradcam", "ablationcam", "rise", "gated", "pyramid"),
    "s3d": ("tubes", "rise"),
}
"""On these, which are slower (the pool of s3d asks for 224 pixels), the others wait for the long run."""
CASES = [
    pytest.param(m, n, marks=[] if m in FEW.get(n, METHODS) else [pytest.mark.slow])
    for n in NETS
    for m in METHODS
]


@pytest.mark.parametrize(("name", "where"), CASES)
def test_contract(name: str, where: str) -> None:
    model, video = net(where)
    large = name == "occlusion" and where == "s3d"  # or there would be hundreds of windows
    way = made(name, **({"window": (8, 112, 112), "stride": (8, 112, 112)} if large else {}))
    before = state(model.module)
    targets = [way.explains(1), way.explains(3)]
    first, second = (way(model, video, targets, Run(batch=b)) for b in (2, 3))
    assert_same(before, state(model.module))
    for why, again, target in zip(first, second, targets, strict=True):
        p = why.provenance
        assert why.saliency.shape == video.pixels.shape[1:]
        assert bool(torch.isfinite(why.saliency).all())
        assert float(why.saliency.std()) > 0
        scale = float(why.saliency.abs().max())
        # rounding can flip a ReLU of a deep network, and with it a little of the gradient
        loose = 100 if way.needs == "gradients" and where in ("r3d_18", "r2plus1d_18", "s3d") else 1
        torch.testing.assert_close(why.saliency, again.saliency, atol=loose * 2e-4 * scale, rtol=loose * 1e-3)
        assert why.target == target
        assert p.score == pytest.approx(
            float(target(model(video.pixels[None]), model.output)), rel=1e-3, abs=1e-4
        )
        assert p.forwards + p.backwards >= 1
        assert (p.seed is None) == (name not in DRAWN) or name in ("extremal", "swag", "selective")
        assert eval(p.method, vars(tl) | vars(table)) == way
    # another class, another map: eigencam and fem do not know classes, and these classes have no probability
    if name not in ("eigencam", "fem") and (name, where) != ("sidu", "bundled"):
        assert not torch.allclose(first[0].saliency, first[1].saliency, atol=1e-6 * scale)


@pytest.mark.parametrize("name", DRAWN)
def test_the_seed_decides(name: str) -> None:
    model, video = net("in-place")
    maps = [made(name, seed=s)(model, video, [Prob(1)])[0].saliency for s in (1, 1, 2)]
    torch.testing.assert_close(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


class Breaks:
    """An `unpack` that fails in a chosen call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, scores: Tensor) -> Tensor:
        self.left -= 1
        if self.left <= 0:
            raise RuntimeError("broken inside")
        return scores


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("where", ["in-place", "frozen"])
def test_untouched_after_a_failure(name: str, at: int, where: str) -> None:
    model, video = net(where)
    way = made(name)
    before = state(model.module)
    unpack = Breaks(at)
    try:
        way(replace(model, unpack=unpack), video, [way.explains(1)], Run(batch=2))
    except InputError as error:
        failure = str(error)
    else:
        failure = ""
    assert ("broken inside" in failure) == (unpack.left <= 0)
    assert failure or at == 2  # one forward was enough
    assert_same(before, state(model.module))


@pytest.mark.parametrize("name", METHODS)
def test_odd_sizes_and_a_single_frame(name: str) -> None:
    model, _ = net("branched")
    way = made(name)
    for video in (clip(7, (25, 31)), clip(1, (24, 24))):
        (why,) = way(model, video, [way.explains(2)])
        assert why.saliency.shape == video.pixels.shape[1:]
        assert bool(torch.isfinite(why.saliency).all())


@pytest.mark.parametrize("name", METHODS)
def test_clips_that_the_pool_forbids_are_refused_in_one_line(name: str) -> None:
    model, _ = net("s3d")
    way = made(name)
    with pytest.raises(InputError, match="does not accept a clip batch of"):
        way(model, clip(8, (32, 32)), [way.explains(2)])


@pytest.mark.parametrize("name", METHODS)
def test_nan_is_an_error(name: str) -> None:
    model, video = net("in-place")
    way = made(name)
    with pytest.raises(ScoreError, match="NaN or infinity"):
        way(replace(model, unpack=lambda scores: scores * torch.nan), video, [way.explains(1)])


@pytest.mark.parametrize("name", METHODS)
def test_a_black_box_is_explained_or_refused(name: str) -> None:
    model, video = net("in-place")
    box = BlackBox(lambda clips: model(clips).numpy(), name="box")
    way = made(name)
    if METHODS[name].needs == "scorer":
        own, same = (tl.explain(m, video, way, 1, run=Run(batch=2)) for m in (box, model))
        torch.testing.assert_close(own.saliency, same.saliency, atol=1e-5, rtol=1e-4)
        assert own.provenance.model == "box"
    else:
        with pytest.raises(InputError, match="box"):
            tl.explain(box, video, way, 1)


ZERO = {"layers", "gradients"}


@pytest.mark.parametrize("name", [m for m in METHODS if METHODS[m].needs in ZERO])
def test_a_layer_without_gradient_is_an_error(name: str) -> None:
    """Scores that do not depend on the clip."""

    class Deaf(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pool(self.body(self.stem(x)) * 0))

    video = clip()
    torch.manual_seed(0)
    model = TorchModel(Deaf().eval(), pack=lambda x: x, layer="body", name="deaf")
    way = made(name)
    if name in ("eigencam", "fem", "scorecam", "sidu", "extremal", "pyramid"):
        pytest.skip("asks no gradient of the layer")
    if name == "guided_backprop":  # what its ReLUs stop need not be nothing: it says so and goes on
        (why,) = way(model, video, [way.explains(1)])
        assert "the map is zero" in why.provenance.notes[-1]
        return
    with pytest.raises((LayerError, HeadError, InputError), match=r"deaf|gradient|depend"):
        way(model, video, [way.explains(1)])


def test_several_methods_share_one_forward() -> None:
    model, video = net("branched")
    one_pass = [m for m in METHODS if isinstance(made(m), FromCapture) and m != "ablationcam"]
    calls: list[int] = []
    counted = replace(model, unpack=lambda scores: (calls.append(1), scores)[1])
    found = tl.explain_all(counted, video, [made(m) for m in one_pass], [0, 4])
    assert len(calls) == 1
    for name, row in zip(one_pass, found, strict=True):
        alone = made(name)(model, video, [Logit(0), Logit(4)])
        for why, own in zip(row, alone, strict=True):
            torch.testing.assert_close(why.saliency, own.saliency, atol=1e-5, rtol=1e-4)


def test_methods_at_several_layers_share_one_forward() -> None:
    model, video = net("branched")
    ways = [method("gradcam", layer=n) for n in ("stem", "left", "right", "relu")]
    ways += [method("tubes"), method("layercam", layer=("stem", "relu"))]
    calls: list[int] = []
    counted = replace(model, unpack=lambda scores: (calls.append(1), scores)[1])
    found = tl.explain_all(counted, video, ways, 2)
    assert len(calls) == 1
    for way, (why,) in zip(ways, found, strict=True):
        (own,) = way(model, video, [Logit(2)])
        torch.testing.assert_close(why.saliency, own.saliency, atol=1e-5, rtol=1e-4)
