"""What replaces removed evidence: each fill voxel by voxel, from its definition."""

from __future__ import annotations

import pytest
import scipy.ndimage
import torch
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.fill import BLUR, FILLS, Black, Blur, Fill, Freeze, Grey, Mean, Noise, fill


@pytest.fixture
def pixels() -> Tensor:
    x = torch.rand(3, 5, 11, 14, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([0.3, 0.6, 1.0])[:, None, None, None]


@pytest.fixture
def masks() -> Tensor:
    m = torch.rand(4, 5, 11, 14, generator=torch.Generator().manual_seed(1))
    m[1] = (m[1] > 0.5).float()
    m[2], m[3] = 0.0, 1.0
    return m


def base_of(wanted: Fill, pixels: Tensor) -> Tensor:
    return wanted.over(pixels)(torch.zeros(1, *pixels.shape[1:]))[0]


@pytest.mark.parametrize("wanted", [f for name, f in FILLS.items() if name != "freeze"], ids=repr)
def test_mixes_linearly_and_keeps_exactly(wanted: Fill, pixels: Tensor, masks: Tensor):
    base = base_of(wanted, pixels).expand_as(pixels)
    out = wanted.over(pixels)(masks)
    for b in range(4):
        for c in range(3):
            torch.testing.assert_close(out[b, c], pixels[c] * masks[b] + base[c] * (1 - masks[b]))
    assert torch.equal(out[3], pixels)  # a mask that keeps all changes no bit
    assert torch.equal(out[1][:, masks[1] == 1], pixels[:, masks[1] == 1])
    assert torch.equal(out[1][:, masks[1] == 0], base[:, masks[1] == 0])


def test_constant_bases(pixels: Tensor):
    assert torch.equal(base_of(Black(), pixels), torch.zeros_like(pixels))
    assert torch.equal(base_of(Grey(), pixels), torch.full_like(pixels, 0.5))
    mean = base_of(Mean(), pixels)
    for c in range(3):
        torch.testing.assert_close(mean[c], torch.full_like(mean[c], pixels[c].sum() / pixels[c].numel()))


@pytest.mark.parametrize(("wanted", "sigma"), [(Blur(1.7), 1.7), (Blur(), 11 * BLUR)])
def test_blur_is_a_gaussian_over_space_only(wanted: Blur, sigma: float, pixels: Tensor):
    got = base_of(wanted, pixels)

    def smooth(x):  # type: ignore[no-untyped-def]
        return scipy.ndimage.gaussian_filter(x, sigma, mode="constant", truncate=20)

    ones = smooth(torch.ones(11, 14).double().numpy())
    for c in range(3):
        for t in range(5):  # each frame by itself, divided by what of the Gaussian lies within the frame
            wanted_frame = smooth(pixels[c, t].double().numpy()) / ones
            torch.testing.assert_close(got[c, t].double(), torch.from_numpy(wanted_frame), atol=1e-5, rtol=0)


def test_noise_has_the_bands_statistics_and_a_seed(pixels: Tensor):
    big = torch.rand(3, 8, 40, 40) * torch.tensor([0.1, 0.2, 0.3])[:, None, None, None] + 0.4
    noise = base_of(Noise(3), big)
    torch.testing.assert_close(noise.mean(dim=(1, 2, 3)), big.mean(dim=(1, 2, 3)), atol=0.005, rtol=0)
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), big.std(dim=(1, 2, 3)), atol=0.005, rtol=0)
    assert torch.equal(noise, base_of(Noise(3), big))
    assert not torch.allclose(noise, base_of(Noise(4), big))
    out = base_of(Noise(0), pixels)
    assert out.min() == 0
    assert out.max() <= 1
    state = torch.get_rng_state()
    base_of(Noise(5), pixels)
    assert torch.equal(state, torch.get_rng_state())


def test_freeze_is_its_recurrence(pixels: Tensor, masks: Tensor):
    out = Freeze().over(pixels)(masks)
    frames = pixels.shape[1]
    for b in range(4):
        for c in range(3):
            for y, x in [(0, 0), (3, 7), (10, 13)]:
                m, v = masks[b, :, y, x], pixels[c, :, y, x]
                held = float(v.mean())
                for t in range(frames - 1, -1, -1):
                    held = float(m[t] * v[t] + (1 - m[t]) * held)
                for t in range(frames):
                    held = float(m[t] * v[t] + (1 - m[t]) * held)
                    assert float(out[b, c, t, y, x]) == pytest.approx(held, abs=1e-6)
    assert torch.equal(out[3], pixels)
    torch.testing.assert_close(out[2], pixels.mean(1, keepdim=True).expand_as(pixels))


def test_freeze_holds_the_last_kept_value_and_starts_from_the_next(pixels: Tensor):
    m = torch.zeros(1, 5, 11, 14)
    m[:, [1, 3]] = 1
    out = Freeze().over(pixels)(m)[0]
    for t, held in enumerate([1, 1, 1, 3, 3]):
        assert torch.equal(out[:, t], pixels[:, held])


def test_by_name():
    assert fill("mean") == Mean()
    assert fill(Blur(2.0)) == Blur(2.0)
    with pytest.raises(OptionError, match=r"no fill 'blurr' \(did you mean 'blur'"):
        fill("blurr")
    with pytest.raises(OptionError, match="sigma > 0"):
        Blur(0)
    for name, wanted in FILLS.items():
        assert eval(repr(wanted)) == wanted
        assert fill(name) is wanted
