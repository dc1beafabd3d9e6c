"""The two networks of the experiment: exact tubes, maps in their place, PAN by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import tubelens as tl
from tests.multispectral.conftest import Module


def settled(net: nn.Module, clips: torch.Tensor) -> nn.Module:
    """With running statistics of these clips, so that activations are of order one."""
    net.train()
    for _ in range(20):
        net(clips)
    return net.eval()


@pytest.mark.parametrize("network", ["3d-resnet", "pan"])
@pytest.mark.parametrize(("size", "cells"), [(32, 8), (16, 8)])
def test_tubes_are_exact(module: Module, network: str, size: int, cells: int) -> None:
    """The head is affine in the last block: the contributions of its cells and its bias make the logit."""
    networks = module("networks")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(4, 3, 16, size, size, generator=generator)
    net = settled(networks.untrained(network, 5, size, 3), networks.normalised(pixels))
    model = networks.wrapped(network, net, list("abcde"), size, network)
    clip = tl.Clip.from_array(pixels[0].permute(1, 2, 3, 0).numpy())
    why = tl.explain(model, clip, method="tubes", target=2)
    assert why.grid.shape == (8 if network == "3d-resnet" else 4, cells, cells)
    logit = net(networks.normalised(clip.pixels[None]))[0, 2]
    assert float(why.grid.sum() + net.head.bias[2]) == pytest.approx(float(logit), abs=1e-4)


@pytest.mark.parametrize("network", ["3d-resnet", "pan"])
def test_maps_lie_where_the_clip_changes(module: Module, network: str) -> None:
    """A patch that flickers in one place: the activations that it changes are drawn over it."""
    networks = module("networks")
    generator = torch.Generator().manual_seed(2)
    still = torch.full((1, 3, 16, 32, 32), 0.5)
    flicker = still.clone()
    flicker[:, :, 8:12, 18:22, 10:14] = torch.rand(1, 3, 4, 4, 4, generator=generator)
    net = networks.untrained(network, 2, 32, 0)
    settled(net, networks.normalised(torch.rand(4, 3, 16, 32, 32, generator=generator)))
    model = networks.wrapped(network, net, ["a", "b"], 32, network)
    with torch.no_grad():
        seen = []
        hook = net.blocks.register_forward_hook(lambda _, __, out: seen.append(out))
        for clip in (still, flicker):
            net(networks.normalised(clip))
        hook.remove()
    moved = (seen[1] - seen[0]).square().sum(dim=1).flatten()
    clip = tl.Clip.from_array(flicker[0].permute(1, 2, 3, 0).numpy())
    grid = tl.explain(model, clip, method="tubes", target=0).parts[0]
    for axis, (places, middle) in enumerate(zip((grid.t, grid.y, grid.x), (9.5, 19.5, 11.5), strict=True)):
        weights = moved.view(grid.values.shape).sum(dim=[i for i in range(3) if i != axis])
        mean = float((weights * torch.tensor(places)).sum() / weights.sum())
        assert mean == pytest.approx(middle, abs=2.5)


def test_persistence_is_what_moves_from_frame_to_frame(module: Module) -> None:
    """The PAN-like network, naively: four frames at a time, one by one."""
    networks = module("networks")
    generator = torch.Generator().manual_seed(4)
    clips = torch.rand(2, 3, 8, 16, 16, generator=generator) * 2 - 1
    net = settled(networks.untrained("pan", 3, 16, 1), clips)
    rows = []
    with torch.no_grad():
        for clip in clips:
            segments = []
            for start in (0, 4):
                features = [net.persistence.shallow_conv(clip[:, start + i][None])[0] for i in range(4)]
                moved = [((a - b + 1e-6) ** 2).sum(dim=0).sqrt() for a, b in pairwise(features)]
                fed = torch.cat([clip[:, start], torch.stack(moved)])
                segments.append(net.blocks(fed[None])[0].mean(dim=(1, 2)))
            rows.append(net.head((segments[0] + segments[1]) / 2))
        assert torch.allclose(net(clips), torch.stack(rows), atol=1e-5)
