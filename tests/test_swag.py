"""SWAG: each supervoxel has the mean of what the gradient does inside it."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import order_one
from tests.test_gradients import spoilt
from tests.test_pixels import TARGETS, by_hand, pack, wrapped
from tests.test_tubes import Small, clip
from tests.test_untouched import Counting, assert_same, state
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.masks import supervoxels
from tubelens.methods.guided import GuidedBackprop
from tubelens.methods.protocol import Method
from tubelens.methods.swag import SWAG, averaged
from tubelens.model import TorchModel
from tubelens.target import Logit


def blocks() -> Clip:
    """Blocks of colour that change over time: noise has no regions."""
    colours = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    return Clip.from_array(colours.repeat_interleave(2, 0).repeat_interleave(4, 1).repeat_interleave(4, 2))


CLIP = blocks()


@pytest.fixture
def small() -> TorchModel:
    return wrapped(order_one(Small(), pack(clip().pixels[None])))


def test_averages_region_by_region():
    values = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([3, 3, 7, 0, 0, 0, 0, 3, 9, 9, 9, 9] * 2).view(2, 3, 4)
    got = averaged(values, regions)
    for n in range(2):
        for r in (0, 3, 7, 9):
            inside = [float(v) for v, k in zip(values[n].flatten(), regions.flatten(), strict=True) if k == r]
            torch.testing.assert_close(
                got[n][regions == r], torch.full((len(inside),), sum(inside) / len(inside))
            )


@pytest.mark.parametrize("of", ["gradient", "guided", "input x gradient"])
@pytest.mark.parametrize("signed", [False, True])
def test_swag_by_hand(small: TorchModel, of: str, signed: bool):
    found = SWAG(n=20, of=of, signed=signed)(small, CLIP, TARGETS)  # type: ignore[arg-type]
    regions = supervoxels(CLIP.pixels, 20)
    assert regions.unique().numel() > 5
    for why, target in zip(found, TARGETS, strict=True):
        g = by_hand(small.module, CLIP.pixels[None], target)[0]
        if of == "guided":
            g = GuidedBackprop().per_band(small, CLIP, [target])[0]
        if of == "input x gradient":
            g = g * CLIP.pixels
        v = g.sum(0) if signed else g.abs().amax(0)
        expected = torch.zeros_like(v)
        for r in regions.unique():
            expected[regions == r] = v[regions == r].mean()
        torch.testing.assert_close(why.grid, expected, atol=1e-6, rtol=1e-4)
        assert why.provenance.facts == {"supervoxels": float(regions.unique().numel())}
        assert (why.provenance.forwards, why.provenance.backwards) == (1, 3)


def test_one_region_a_voxel_is_the_map_itself():
    values = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(averaged(values, torch.arange(18).view(2, 3, 3)), values)


def test_repr_rebuilds_and_options_are_checked():
    for method in (SWAG(), SWAG(9, "guided", True)):
        assert eval(repr(method)) == method
        assert isinstance(method, Method)
        assert (method.needs, method.explains) == ("gradients", Logit)
    with pytest.raises(OptionError, match="n >= 1 supervoxels, not 0"):
        SWAG(n=0)
    with pytest.raises(OptionError, match="averages 'gradient', 'guided' or 'input x gradient', not 'x'"):
        spoilt(SWAG(), of="x").__post_init__()


def test_the_model_is_as_it_was():
    net = Counting().train()
    before = state(net)
    SWAG(n=8, of="guided")(TorchModel(net, pack=pack), CLIP, TARGETS)
    assert_same(before, state(net))
