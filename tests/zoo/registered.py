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


def randomise_norms(module: nn.Module) -> None:
    """Scales and shifts that are not all ones and zeros."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm3d):
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
                norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) * 0.3)


def assert_registered(net: nn.Module, layer: str, size: tuple[int, int, int]) -> None:
    """Noise at the middle cell: the centroid of change in the layer is that place, within 1/4 stride."""
    generator = torch.Generator().manual_seed(3)
    base = torch.rand((1, 3, *size), generator=generator)
    model = TorchModel(order_one(net, base), pack=lambda x: x, layer=layer)
    with capturing(model, base) as capture:
        before = capture.activations[0]
        cells = [
            capture.layout.place(axis, n, extent)
            for axis, n, extent in zip("thw", before.shape[1:], size, strict=True)
        ]
    strides = [c[1] - c[0] for c in cells]
    middles = [c[len(c) // 2] for c in cells]
    block = [slice(max(0, int(m - s / 2)), int(m + s / 2) + 1) for m, s in zip(middles, strides, strict=True)]
    changed = base.clone()
    patch = changed[(slice(None), slice(None), *block)]
    patch.copy_(torch.rand(patch.shape, generator=generator) * 4 - 1.5)
    with capturing(model, changed) as capture:
        moved = (capture.activations[0] - before).double().square().sum(dim=0)
    for axis in range(3):
        mass = moved.sum(dim=[a for a in range(3) if a != axis])
        centroid = float((mass * torch.tensor(cells[axis])).sum() / mass.sum())
        place = (block[axis].start + block[axis].stop - 1) / 2
        assert abs(centroid - place) <= strides[axis] / 4, f"axis {'thw'[axis]}: {centroid:.2f}, not {place}"


def kept_outputs(net: nn.Module, clip: Tensor, once: bool = False) -> dict[str, Tensor]:
    """What every module gave in a forward, which must still be what it was when it was given.

    `once`: and each must have been called a single time.
    """
    kept: list[tuple[str, Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: kept.append((name, o, o.clone())))
        for name, module in net.named_modules()
    ]
    with torch.no_grad():
        net(clip)
    for handle in handles:
        handle.remove()
    assert {name for name, _, _ in kept} == {name for name, _ in net.named_modules()}
    assert not once or len(kept) == len(handles)
    for name, output, copy in kept:
        assert torch.equal(output, copy), name
    return {name: output for name, output, _ in kept}
