"""What tests of single architectures share: recipes as models, and where a layer's cells really look."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens import zoo
from tubelens.capture import capturing
from tubelens.clip import Clip
from tubelens.model import TorchModel
from tubelens.zoo import Recipe


def loaded(recipe: Recipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> TorchModel:
    """The recipe with the weights of a file, as users load it."""
    monkeypatch.setitem(zoo.MODELS, recipe.name, recipe)
    return zoo.load(recipe.name, file)


def varied(net: nn.Module, clips: Tensor, seed: int = 0) -> nn.Module:
    """With activations of order one, and batch norms of which every parameter matters."""
    net = order_one(net, clips, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def around(value: Tensor, low: float, high: float) -> None:
        noise = torch.rand(value.shape, generator=generator)
        value.mul_(low + (high - low) * noise)

    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm3d):
                around(m.weight, 0.7, 1.3)
                m.bias.copy_(torch.randn(m.bias.shape, generator=generator) / 5)
                around(m.running_mean, 0.8, 1.2)  # type: ignore[arg-type]
                around(m.running_var, 0.8, 1.2)  # type: ignore[arg-type]
    return net


def clip_of(pixels: Tensor, bands: str = "RGB") -> Clip:
    """A clip of pixels `(c, t, h, w)`."""
    return Clip.from_array(pixels.permute(1, 2, 3, 0).numpy(), bands=tuple(bands))


def misplaced(model: TorchModel, base: Tensor, layer: str) -> dict[str, float]:
    """How far the layout is off, in strides, along t, y and x.

    Noise is put on the cell nearest to the middle of the clip; the centroid of how much each cell changes,
    by the layout, is compared with where the noise was.
    """
    generator = torch.Generator().manual_seed(3)
    size = base.shape[2:]
    with capturing(model, base, layer) as capture:
        before = capture.activations[0]
        grid = capture.grid(torch.zeros(before.shape[1:]))
    places = (grid.t, grid.y, grid.x)
    block = []
    for cells, n in zip(places, size, strict=True):
        at, half = min(cells, key=lambda v, n=n: abs(v - (n - 1) / 2)), (cells[1] - cells[0]) / 2
        block.append(slice(max(0, int(at - half)), int(at + half) + 1))
    changed = base.clone()
    patch = changed[(slice(None), slice(None), *block)]
    patch.copy_(torch.rand(patch.shape, generator=generator) * 4 - 1.5)
    with capturing(model, changed, layer) as capture:
        moved = (capture.activations[0] - before).pow(2).sum(0)
    off = {}
    for axis, (cells, noise) in enumerate(zip(places, block, strict=True)):
        mass = moved.sum(dim=[a for a in range(3) if a != axis])
        centroid = float((mass * torch.tensor(cells)).sum() / mass.sum())
        truth = (noise.start + min(noise.stop, size[axis]) - 1) / 2
        off["tyx"[axis]] = abs(centroid - truth) / (cells[1] - cells[0])
    return off
