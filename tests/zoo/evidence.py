"""Where cells look, found out by painting one place: what the tests of geometry share."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor, nn

from tests.conftest import order_one
from tubelens.capture import capturing
from tubelens.layout import Centres, Grid
from tubelens.model import TorchModel

NORMS = (nn.BatchNorm3d,)


def focused(net: nn.Module, packed: Any, fall: float = 0.3, seed: int = 0) -> nn.Module:
    """Random weights, each kernel a bump around its middle, so that evidence stays in place.

    Where the middle of a kernel is nobody has to know but torch; what strides, padding, pooling and token
    order make of it is the network's. Activations are of order one.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = (lambda: list(packed)) if isinstance(packed, list) else (lambda: packed)
    net = order_one(net, fresh(), seed)
    for m in net.modules():
        if isinstance(m, nn.Conv3d):
            window = torch.ones(1)
            for k in m.kernel_size:
                taps = fall ** (torch.arange(k) - (k - 1) / 2).abs()
                window = window[..., None] * taps
            with torch.no_grad():
                spread = (2 / (m.weight[0, :, 0, 0, 0].numel() * window.pow(2).sum())).sqrt()
                channels = torch.randn((*m.weight.shape[:2], 1, 1, 1), generator=generator)
                m.weight.copy_(channels * window[0] * spread)
    norms = [m for m in net.modules() if isinstance(m, NORMS)]
    for m in norms:
        m.reset_running_stats()
        m.momentum, m.training = None, True
    with torch.no_grad():
        net(fresh())
    return net.eval()


def misplaced(
    model: TorchModel, layers: Sequence[str], base: Tensor, at: tuple[float, float, float]
) -> dict[str, list[float]]:
    """How far the centroid of what changes is from where the evidence was put, in strides, along t, y, x.

    Args:
        model: with weights of order one.
        layers: whose cells are looked at; one cell of the first is filled.
        base: a clip, as a batch of one.
        at: which cell, as a share of the cells along t, y and x, from 0 to 1.
    """
    before, grids = _captured(model, layers, base)
    block = []
    for cells, share, n in zip(_places(grids[0]), at, base.shape[2:], strict=True):
        middle, reach = cells[round(share * (len(cells) - 1))], (_stride(cells) - 1) / 2
        block.append(slice(max(0, ceil(middle - reach)), min(n, floor(middle + reach) + 1)))
    changed = base.clone()
    # one colour: noise would move its own centre of mass
    changed[(slice(None), slice(None), *block)] = torch.tensor([3.0, -2.0, 1.5]).view(3, 1, 1, 1)
    after, _ = _captured(model, layers, changed)
    found = {}
    for layer, old, new, grid in zip(layers, before, after, grids, strict=True):
        moved = (new - old).pow(2).sum(0)
        found[layer] = []
        for axis, (cells, b) in enumerate(zip(_places(grid), block, strict=True)):
            mass = moved.sum(dim=[a for a in range(3) if a != axis])
            centroid = float((mass * torch.tensor(cells)).sum() / mass.sum())
            found[layer].append((centroid - (b.start + b.stop - 1) / 2) / _stride(cells))
    return found


def _captured(model: TorchModel, layers: Sequence[str], clip: Tensor) -> tuple[list[Tensor], list[Grid]]:
    with capturing(model, clip, list(layers)) as capture:
        at = [capture.at(name) for name in layers]
        return [c.activations[0] for c in at], [c.grid(c.activations[0, 0]) for c in at]


def _places(grid: Grid) -> tuple[Centres, Centres, Centres]:
    return grid.t, grid.y, grid.x


def _stride(cells: Centres) -> float:
    return (cells[-1] - cells[0]) / (len(cells) - 1)
