"""Selective relevance: the Sobel kernel by hand and by scipy, and the two parts of a map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from tests.conftest import order_one
from tests.test_gradients import spoilt
from tests.test_pixels import TARGETS, pack, wrapped
from tests.test_tubes import Small, clip
from tests.test_untouched import Counting, assert_same, state
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.methods.gradients import InputXGradient, SmoothGrad
from tubelens.methods.protocol import Method
from tubelens.methods.selective import Selective, in_motion, over_time
from tubelens.methods.tubes import Tubes
from tubelens.model import TorchModel
from tubelens.running import Passes
from tubelens.target import Logit

CLIP = clip(4, 16)


@pytest.fixture
def small() -> TorchModel:
    return wrapped(order_one(Small(), pack(clip().pixels[None])), layer="body")


def random_map(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def test_the_kernel_by_hand():
    r = random_map(4, 5, 6)
    got = over_time(r)
    for t in range(4):
        for y in range(5):
            for x in range(6):
                total = 0.0
                for dt, a in ((-1, -1), (1, 1)):
                    for dy, b in ((-1, 1), (0, 2), (1, 1)):
                        for dx, c in ((-1, 1), (0, 2), (1, 1)):
                            at = [
                                min(max(i, 0), n - 1)
                                for i, n in zip((t + dt, y + dy, x + dx), r.shape, strict=True)
                            ]
                            total += a * b * c * float(r[tuple(at)])
                assert float(got[t, y, x]) == pytest.approx(total, abs=1e-4)


def test_the_kernel_is_scipys():
    r = random_map(6, 7, 8).double()
    np.testing.assert_allclose(
        over_time(r).numpy(), scipy.ndimage.sobel(r.numpy(), axis=0, mode="nearest"), atol=1e-10
    )


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.5])
def test_the_rule(small: TorchModel, sigma: float):
    """R where |D| > sigma std|D|."""
    base = InputXGradient("abs", "mean")
    motion = Selective(base, "motion", sigma)(small, CLIP, TARGETS)
    appearance = Selective(base, "appearance", sigma)(small, CLIP, TARGETS)
    for m, a, b in zip(motion, appearance, base(small, CLIP, TARGETS), strict=True):
        r = b.saliency
        d = np.abs(scipy.ndimage.sobel(r.numpy(), axis=0, mode="nearest"))
        mask = torch.from_numpy(d > sigma * d.std())
        torch.testing.assert_close(m.saliency, r * mask)
        torch.testing.assert_close(m.grid + a.grid, r)  # the two parts are the whole
        share = float(r[mask].abs().sum() / r.abs().sum())
        for part in (m, a):
            assert part.provenance.facts["motion_share"] == pytest.approx(share, rel=1e-4)
        assert 0 < share < 1 or sigma == 0


def test_a_base_on_a_coarse_grid_is_split_at_the_clips_resolution(small: TorchModel):
    (base,) = Tubes(parity="paper")(small, CLIP, [Logit(1)])
    (m,) = Selective(Tubes(parity="paper"))(small, CLIP, [Logit(1)])
    (a,) = Selective(Tubes(parity="paper"), "appearance")(small, CLIP, [Logit(1)])
    torch.testing.assert_close(m.saliency + a.saliency, base.saliency)
    assert m.grid.shape == CLIP.size
    assert (base.align, m.align) == ("endpoints", "centres")
    assert m.provenance.method == repr(Selective(Tubes(parity="paper")))
    assert (m.provenance.layer, m.provenance.forwards) == ("body", base.provenance.forwards)
    assert m.provenance.facts["constant"] == base.provenance.facts["constant"]


def test_a_still_map_has_no_motion_and_one_that_changes_has():
    still = random_map(1, 6, 6).expand(5, 6, 6)
    assert not in_motion(still, 0.0).any()
    rounded = still * (1 + 1e-7 * random_map(5, 6, 6))  # as after upsampling
    assert not in_motion(rounded, 1.0).any()
    moved = still.clone()
    moved[3:, 2, 2] += 9
    where = in_motion(moved, 1.0).nonzero()
    assert {int(t) for t in where[:, 0]} == {2, 3}  # the change, and not the first or the last frame
    assert {(int(y), int(x)) for _, y, x in where} <= {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}


def test_it_needs_and_explains_what_its_base_does(small: TorchModel):
    assert Selective().base == InputXGradient()
    assert (Selective().needs, Selective(Tubes()).needs) == ("gradients", "layers")
    assert Selective().explains is Logit


def test_it_costs_what_its_base_does(small: TorchModel):
    assert Selective(SmoothGrad(n=9)).passes(small, CLIP) == Passes(1, 9)
    assert Selective(Tubes()).passes(small, CLIP) == Passes(1)
    assert Selective().passes(small, CLIP) == Passes(0, 1)
    method = Selective(SmoothGrad(), "appearance", 2.0)
    assert method.afford(31, small, CLIP) == replace(method, base=SmoothGrad(n=10))
    assert Selective(Tubes()).afford(31, small, CLIP) == Selective(Tubes())


def test_repr_rebuilds_and_options_are_checked():
    for method in (Selective(), Selective(SmoothGrad(n=3), "appearance", 2.0)):
        assert eval(repr(method)) == method
        assert isinstance(method, Method)
    with pytest.raises(OptionError, match="needs a method as its base"):
        Selective(base="tubes")
    with pytest.raises(OptionError, match="'motion' or 'appearance', not 'both'"):
        spoilt(Selective(), part="both").__post_init__()
    for sigma in (-1.0, float("nan")):
        with pytest.raises(OptionError, match="standard deviations"):
            Selective(sigma=sigma)


def test_the_model_is_as_it_was_and_several_targets_are_each_as_alone():
    net = Counting().train()
    before = state(net)
    model = TorchModel(net, pack=pack)
    found = Selective()(model, CLIP, TARGETS)
    assert_same(before, state(net))
    for target, why in zip(TARGETS, found, strict=True):
        (alone,) = Selective()(model, CLIP, [target])
        torch.testing.assert_close(alone.grid, why.grid)
    black = Clip.from_array(np.full((4, 16, 16, 3), 255, "uint8"))
    assert Selective()(model, black, [Logit(0)])[0].grid.shape == (4, 16, 16)
