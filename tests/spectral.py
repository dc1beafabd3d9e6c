"""Clips with an infrared band, networks and slow formulas that tests of bands share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens.clip import Clip
from tubelens.model import TorchModel

SIZE = (4, 12, 12)
BANDS = ("R", "G", "B", "IR")
GROUPS = {"RGB": [0, 1, 2], "IR": [3]}


def clip(size: tuple[int, int, int] = SIZE, seed: int = 0) -> Clip:
    """Random pixels in four bands."""
    rng = np.random.default_rng(seed)
    return Clip.from_array(rng.random((*size, 4), dtype=np.float32), bands=BANDS)


def waves() -> Clip:
    """Smooth, so that there are supervoxels."""
    t, y, x = np.meshgrid(*(np.arange(n) for n in (4, 12, 12)), indexing="ij")
    bands = [np.sin(a * y + b * x + t / 3) for a, b in ((0.3, 0.5), (0.7, -0.2), (0.1, 0.9), (-0.6, 0.4))]
    return Clip.from_array((0.5 + 0.4 * np.stack(bands, axis=-1)).astype(np.float32), bands=BANDS)


class Net(nn.Module):
    """Not linear, all bands mixed; cells tile the clip (3 x 3 pixels, 1 frame); ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(4, 6, (1, 3, 3), (1, 3, 3))
        self.act = nn.ReLU()
        self.mix, self.fc = nn.Conv3d(6, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.mix(self.act(self.body(x)))).mean(dim=(2, 3, 4)))


def network() -> TorchModel:
    net = order_one(Net(), clip().pixels[None])
    with torch.no_grad():
        net.fc.weight.mul_(3)
    return TorchModel(net, pack=lambda x: x, layer="act", name="net")


class Linear(nn.Module):
    """Logit k is `<w_k, x>` and a constant."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("w", torch.randn(2, 4, *SIZE, generator=generator) / 20)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bcthw,kcthw->bk", x, self.w) + 0.3


def linear() -> TorchModel:
    return TorchModel(Linear(), pack=lambda x: x, name="linear")


def means(pixels: Tensor) -> Tensor:
    """Each band's mean everywhere: what the fill `mean` puts."""
    return torch.stack([torch.full_like(band, float(band.mean())) for band in pixels])


def removed(pixels: Tensor, base: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Band by band, what is left under the mask of its group; a group without one is intact."""
    out = pixels.clone()
    for group, mask in masks.items():
        for band in GROUPS[group]:
            out[band] = mask * pixels[band] + (1 - mask) * base[band]
    return out
