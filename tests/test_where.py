"""Where cells look: the followed axes against evidence put at one place, on every model, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from tests.conftest import order_one
from tubelens.capture import capturing
from tubelens.layout import Layout
from tubelens.model import TorchModel
from tubelens.where import Where


def follow(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Layout | None:
    where = Where()
    clips = torch.rand(shape)
    with torch.no_grad(), where:
        where.start(clips)
        out = function(clips)
    return where.layout(out)


def centres(layout: Layout | None, axis: str) -> list[float]:
    assert layout is not None
    return list(layout.centres[axis])


def test_strides_and_padding_add_up():
    net = nn.Sequential(nn.Conv3d(3, 4, 7, (1, 2, 2), 3), nn.MaxPool3d(3, 2, 1), nn.Conv3d(4, 5, 3, 2, 1))
    layout = follow(net, (1, 3, 16, 64, 64))
    assert centres(layout, "t") == [0, 4, 8, 12]
    assert centres(layout, "h") == [0, 8, 16, 24, 32, 40, 48, 56]


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Conv3d(3, 4, 3, 2), [1, 3, 5]),  # valid
        (nn.Conv3d(3, 4, 2, 2), [0.5, 2.5, 4.5, 6.5]),  # even kernel
        (nn.Conv3d(3, 4, 3, 1, 0, dilation=2), [2, 3, 4, 5]),
        (nn.AvgPool3d(4, 2), [1.5, 3.5, 5.5]),
        (nn.MaxPool3d(2), [0.5, 2.5, 4.5, 6.5]),
        (nn.AdaptiveAvgPool3d(2), [1.5, 5.5]),
        (nn.ConstantPad3d((0, 1) * 3, 0.0), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (nn.Sequential(nn.ConstantPad3d((1, 0) * 3, 0.0), nn.MaxPool3d(3, 3)), [0, 3, 6]),
    ],
)
def test_one_operation(net: nn.Module, expected: list[float]):
    layout = follow(net, (2, 3, 8, 8, 8))
    for axis in "thw":
        assert centres(layout, axis) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("function", "pattern"),
    [
        (lambda x: x.permute(0, 2, 3, 4, 1), "b t h w c"),
        (lambda x: x.flatten(2), "b c (t h w)"),
        (lambda x: x.flatten(2).transpose(1, 2), "b (t h w) c"),
        (lambda x: x.permute(0, 3, 4, 2, 1).flatten(1, 3), "b (h w t) c"),
        (lambda x: x.transpose(1, 2).flatten(0, 1), "(b t) c h w"),
        (lambda x: x.transpose(1, 2).reshape(-1, 3, 5, 6).unflatten(0, (2, 4)), "b t c h w"),
        (lambda x: torch.stack([x, x], 2)[:, :, 0], "b c t h w"),
        (lambda x: torch.cat([x[:, :, :2], x[:, :, 2:]], 2), "b c t h w"),
        (lambda x: F.linear(x.permute(0, 2, 3, 4, 1), torch.ones(7, 3)), "b t h w c"),
        (lambda x: x + x.mean(dim=(2, 3, 4), keepdim=True), "b c t h w"),
    ],
)
def test_order_is_read_off(function: Callable[[Tensor], Tensor], pattern: str):
    """The pattern that is found turns the tensor back into the very clip (or what it became)."""
    clips = torch.rand(2, 3, 4, 5, 6)
    where = Where()
    with torch.no_grad(), where:
        where.start(clips)
        out = function(clips)
    layout = where.layout(out)
    assert layout is not None
    assert layout.pattern == pattern
    grid = layout.to_grid(out)
    assert grid.shape[-3:] == (4, 5, 6)
    if out.numel() == clips.numel() and pattern != "b c t h w":
        assert torch.equal(grid, clips)


def test_pack_geometry_is_included():
    layout = follow(lambda x: x.flip(4)[:, :, ::2], (1, 3, 8, 5, 6))
    assert centres(layout, "t") == [0, 2, 4, 6]
    assert centres(layout, "w") == [5, 4, 3, 2, 1, 0]
    rotated = follow(lambda x: x.rot90(1, (3, 4)), (1, 3, 8, 5, 6))
    assert rotated is not None
    assert rotated.pattern == "b c t w h"
    assert centres(rotated, "w") == [5, 4, 3, 2, 1, 0]
    gathered = follow(lambda x: x.index_select(2, torch.tensor([1, 4, 7])), (1, 3, 8, 5, 6))
    assert centres(gathered, "t") == [1, 4, 7]


def test_joined_channels_count_by_their_number():
    """Three channels from every even frame and one from the odd ones: three parts of four from the even."""
    layout = follow(lambda x: torch.cat([x[:, :, ::2], x[:, :1, 1::2]], 1), (1, 3, 8, 5, 6))
    assert centres(layout, "t") == pytest.approx([0.25, 2.25, 4.25, 6.25])
    assert centres(layout, "h") == [0, 1, 2, 3, 4]


def test_beyond_picked_frames_it_goes_on_in_their_steps():
    def every_third(x: Tensor) -> Tensor:
        return F.pad(x.index_select(2, torch.tensor([1, 4, 7])), (0, 0, 0, 0, 1, 1))

    assert centres(follow(every_third, (1, 3, 8, 5, 6)), "t") == [-2, 1, 4, 7, 10]


def test_what_mixes_all_places_has_no_layout():
    assert follow(lambda x: x.mean(dim=(3, 4)), (1, 3, 4, 5, 6)) is None
    assert follow(lambda x: x.flatten(2) @ torch.ones(120, 120), (1, 3, 4, 5, 6)) is None


GEOMETRY = [
    ("r3d_18", (64, 112, 112), "layer4"),
    ("r3d_18", (21, 90, 104), "layer2"),
    ("mc3_18", (16, 112, 112), "layer4"),
    ("r2plus1d_18", (64, 112, 112), "layer4"),
    ("s3d", (48, 224, 224), "features"),
    ("swin3d_t", (16, 96, 96), "features.2"),
]


@pytest.mark.parametrize(("name", "size", "layer"), GEOMETRY)
def test_registration_within_a_quarter_stride(name: str, size: tuple[int, int, int], layer: str):
    """Noise put at one place: the centroid of how much each cell changes is that place, in t, y and x.

    Nothing but the network itself says here where its cells look. Clips are long enough that the receptive
    field of the place fits in; activations are of order one, so that evidence and not bias moves the cells.
    """
    generator = torch.Generator().manual_seed(3)
    base = torch.rand((1, 3, *size), generator=generator)
    net = order_one(get_model(name, weights=None, num_classes=4), base)
    model = TorchModel(net, pack=lambda x: x, layer=layer, name=name)
    with capturing(model, base) as capture:
        before = capture.activations[0]
        grid = capture.grid(torch.zeros(before.shape[1:]))
    places = (grid.t, grid.y, grid.x)
    strides = [c[1] - c[0] for c in places]
    middle = [min(c, key=lambda v, n=n: abs(v - (n - 1) / 2)) for c, n in zip(places, size, strict=True)]
    changed = base.clone()
    block = tuple(
        slice(max(0, int(m - s / 2)), int(m + s / 2) + 1) for m, s in zip(middle, strides, strict=True)
    )
    patch = changed[(slice(None), slice(None), *block)]
    changed[(slice(None), slice(None), *block)] = torch.rand(patch.shape, generator=generator) * 4 - 1.5
    # where the change really is: slices are whole pixels
    truth = [(b.start + b.stop - 1) / 2 for b in block]
    with capturing(model, changed) as capture:
        moved = (capture.activations[0] - before).pow(2).sum(0)
    for axis, (cells, at, stride) in enumerate(zip(places, truth, strides, strict=True)):
        mass = moved.sum(dim=[a for a in range(3) if a != axis])
        centroid = float((mass * torch.tensor(cells)).sum() / mass.sum())
        assert abs(centroid - at) <= stride / 4, (
            f"{name} {layer}, axis {'tyx'[axis]}: {centroid:.2f} instead of {at}, stride {stride}"
        )


def test_r3d_18_looks_where_the_design_says():
    net = order_one(get_model("r3d_18", weights=None, num_classes=4), torch.rand(2, 3, 16, 112, 112))
    with capturing(TorchModel(net, pack=lambda x: x), torch.rand(1, 3, 16, 112, 112)) as capture:
        assert capture.layer == "layer4"
        assert capture.layout.centres["w"] == (0, 16, 32, 48, 64, 80, 96)
        assert capture.layout.centres["t"] == (0, 8)
