"""Extremal masks: the optimisation written out by hand, optima that are known, volumes that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import order_one
from tests.perturbed import Box, clip
from tubelens.errors import InputError, OptionError, ScoreError
from tubelens.fill import Blur
from tubelens.methods.extremal import Extremal
from tubelens.methods.protocol import Scalable
from tubelens.model import TorchModel
from tubelens.running import Run
from tubelens.target import Contrast, Logit, Prob, Target

SIZE = (4, 12, 12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.fc = nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.tanh(self.body(x)).flatten(2).amax(dim=2)))


def network() -> TorchModel:
    net = order_one(Net(), clip(SIZE).pixels[None])
    return TorchModel(net, pack=lambda x: x, name="net")


class Region(nn.Module):
    """Logit 0 is the mean of the clip within a region, logit 1 that of the rest."""

    def __init__(self, region: Tensor) -> None:
        super().__init__()
        self.register_buffer("region", region)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, :, self.region].mean((1, 2)), x[:, :, ~self.region].mean((1, 2))], 1)


def by_hand(model: TorchModel, method: Extremal, volume: float, target: Target) -> tuple[Tensor, float]:
    """One mask, with its own interpolation, ranking, weights and Adam."""
    x = clip(SIZE).pixels
    base = torch.stack([torch.full(SIZE, float(band.mean())) for band in x])
    with torch.no_grad():
        whole, none = target(model.module(torch.stack([x, base])))
    g = torch.Generator().manual_seed(method.seed)
    p = 0.5 + 0.01 * (torch.rand(method.cells, generator=g) * 2 - 1)
    first, second = torch.zeros_like(p), torch.zeros_like(p)
    voxels = 4 * 12 * 12
    ones = round(volume * voxels)
    for i in range(method.steps):
        p.requires_grad_()
        m = F.interpolate(p[None, None], SIZE, mode="trilinear", align_corners=False)[0, 0]
        value = target(model.module((m * x + (1 - m) * base)[None]))[0]
        ranked = m.flatten()[m.flatten().argsort()]
        volume_term = (
            (ranked[: voxels - ones] ** 2).sum() + ((ranked[voxels - ones :] - 1) ** 2).sum()
        ) / voxels
        weight = 10 * 10 ** (i / (method.steps - 1))
        (grad,) = torch.autograd.grad(weight * volume_term - value / (whole - none).abs(), p)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        unbiased = first / (1 - 0.9 ** (i + 1)), second / (1 - 0.999 ** (i + 1))
        p = (p.detach() - 0.1 * unbiased[0] / (unbiased[1].sqrt() + 1e-8)).clamp(0, 1)
    m = F.interpolate(p[None, None], SIZE, mode="trilinear", align_corners=False)[0, 0]
    with torch.no_grad():
        return m, float(target(model.module((m * x + (1 - m) * base)[None]))[0])


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_equals_the_optimisation_by_hand(batch: int | None):
    model = network()
    method = Extremal(volumes=(0.1, 0.3), steps=6, cells=(2, 4, 3), fill="mean", seed=4)
    targets = [Prob(0), Contrast(2, 1), Logit(3)]
    found = method(model, clip(SIZE), targets, Run(batch=batch))
    for why, target in zip(found, targets, strict=True):
        (a, left_a), (b, left_b) = (by_hand(model, method, v, target) for v in (0.1, 0.3))
        assert a.std() > 0.1
        torch.testing.assert_close(why.grid, (a + b) / 2, atol=1e-4, rtol=1e-3)
        facts = why.provenance.facts
        assert facts["kept_0.1"] == pytest.approx(left_a, abs=1e-4)
        assert facts["kept_0.3"] == pytest.approx(left_b, abs=1e-4)
        x = clip(SIZE).pixels
        with torch.no_grad():
            empty = model.module(x.mean((1, 2, 3), keepdim=True).expand_as(x)[None].contiguous())
        assert facts["filled"] == pytest.approx(float(target(empty)[0]), abs=1e-5)
        assert why.provenance.backwards == 3 * 2 * 6
        assert why.provenance.forwards == 2 + 6 + 3 * 2 * 6  # both ends, the masks found, and the steps
        assert why.provenance.seed == 4


@pytest.mark.parametrize("target", [Logit(0), Prob(0), Contrast(0, 1)])
def test_finds_the_region_when_the_volume_is_its_own(target: Target):
    """The optimum is known: the region. The cells tile it, so that only its rim is soft."""
    size = (8, 16, 16)
    region = torch.zeros(size, dtype=torch.bool)
    region[4:, 4:12, 8:] = True
    model = TorchModel(Region(region), pack=lambda x: x)
    (why,) = Extremal(volumes=(1 / 8,), steps=60, cells=(4, 8, 8), fill="black")(model, clip(size), [target])
    assert float(why.grid[region].mean()) > 0.75
    assert float(why.grid[~region].mean()) < 0.05
    core = F.max_pool3d((~region).float()[None], 5, 1, 2)[0] == 0
    assert float(why.grid[core].min()) > 0.85
    assert why.provenance.facts["kept_0.125"] > why.provenance.facts["filled"]


def test_masks_have_the_volume_asked_for_and_are_nearly_binary():
    for volume in (0.1, 0.4):
        (why,) = Extremal(volumes=(volume,), steps=60, cells=(2, 6, 6), fill="mean")(
            network(), clip(SIZE), [Prob(0)]
        )
        assert float(why.grid.mean()) == pytest.approx(volume, abs=0.05)
        assert float(why.grid.min()) >= 0
        assert float(why.grid.max()) <= 1 + 1e-6
        assert float(why.grid.max()) > 0.9


def test_the_map_is_the_mean_over_the_volumes():
    model = network()
    options = {"steps": 10, "cells": (2, 6, 6), "fill": "grey"}
    (both,) = Extremal(volumes=(0.1, 0.3), **options)(model, clip(SIZE), [Prob(1)])
    (one,) = Extremal(volumes=(0.1,), **options)(model, clip(SIZE), [Prob(1)])
    (two,) = Extremal(volumes=(0.3,), **options)(model, clip(SIZE), [Prob(1)])
    torch.testing.assert_close(both.grid, (one.grid + two.grid) / 2, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(both.saliency, both.grid)


def test_seed_decides_and_nothing_else():
    model = network()
    method = Extremal(steps=8, cells=(9, 4, 4))
    before = torch.get_rng_state()
    (one,) = method(model, clip(SIZE), [Prob(0)])
    (two,) = method(model, clip(SIZE), [Prob(0)], Run(seconds=1e-9, batch=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(one.grid, two.grid, atol=1e-4, rtol=1e-3)
    (other,) = Extremal(steps=8, cells=(9, 4, 4), seed=1)(model, clip(SIZE), [Prob(0)])
    assert (other.grid - one.grid).abs().max() > 1e-3


def test_a_flat_score_still_gives_a_mask():
    """Nothing to gain anywhere: the range is zero, and the volume alone decides."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x.sum((1, 2, 3, 4)), 0 * x.sum((1, 2, 3, 4))], 1)

    (why,) = Extremal(volumes=(0.2,), steps=40, cells=(2, 4, 4))(
        TorchModel(Flat(), pack=lambda x: x), clip(SIZE), [Prob(0)]
    )
    assert float(why.grid.mean()) == pytest.approx(0.2, abs=0.1)


def test_the_network_is_as_it_was_also_after_an_error_in_the_middle():
    model = network()
    net = model.module.train()
    net.body.weight.requires_grad_(False)
    calls: list[int] = []

    def breaks(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        calls.append(len(output))
        return output * float("nan") if len(calls) > 3 else output

    handle = net.fc.register_forward_hook(breaks)
    with pytest.raises(ScoreError):
        Extremal(steps=9)(model, clip(SIZE), [Prob(0)])
    handle.remove()
    assert calls == [2, 3, 3, 3]
    with torch.no_grad():
        Extremal(steps=2)(model, clip(SIZE), [Prob(0)])
        assert not torch.is_grad_enabled()
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())


def test_progress_is_told_and_reaches_the_end():
    told: list[tuple[int, int]] = []
    run = Run(batch=2, progress=lambda done, total: told.append((done, total)))
    Extremal(volumes=(0.1, 0.2, 0.3), steps=4)(network(), clip(SIZE), [Prob(0)], run)
    assert told == [(n, 12) for n in (2, 4, 6, 8, 9, 10, 11, 12)]


def test_budget():
    model = network()
    method = Extremal(volumes=(0.1, 0.2), seed=3)
    assert isinstance(method, Scalable)
    passes = Extremal(volumes=(0.1, 0.2), steps=30).passes(model, clip(SIZE))
    assert (passes.forwards, passes.backwards) == (4, 60)
    bought = method.afford(400, model, clip(SIZE))
    assert bought == Extremal(volumes=(0.1, 0.2), steps=66, seed=3)
    cost = bought.passes(model, clip(SIZE))
    assert cost.forwards + 3 * cost.backwards == 400
    assert method.afford(124, model, clip(SIZE)).steps == 20
    with pytest.raises(OptionError, match=r"2 extremal masks need at least 124 forwards.*budget is 123"):
        method.afford(123, model, clip(SIZE))


@pytest.mark.parametrize(
    "options",
    [
        {"volumes": ()},
        {"volumes": (0.0,)},
        {"volumes": (1.0,)},
        {"steps": 0},
        {"cells": (0, 1, 1)},
        {"fill": "x"},
    ],
)
def test_senseless_options(options):
    with pytest.raises(OptionError):
        Extremal(**options)


def test_a_black_box_is_refused():
    with pytest.raises(InputError, match="black box"):
        Extremal()(Box(SIZE), clip(SIZE), [Prob(0)])


def test_repr_rebuilds():
    method = Extremal((0.1,), 7, (1, 2, 3), Blur(2.0), 5)
    assert eval(repr(method)) == method
    assert np.isclose(sum(method.volumes), 0.1)
