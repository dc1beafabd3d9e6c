"""What an operation between two convolutions does to the channels: pairs of (channel, kernel) by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_tracing import ANY, Pairs, layer, same, sources, traced


class Chain(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 4, 1), nn.Conv3d(width, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x))).mean(dim=(2, 3, 4))


def shifted(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2, 1:] = x[:, :2, :-1]
    out[:, 2:] = x[:, 2:]
    return out


def filled(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape)
    out[:, :2] = x[:, :2]
    return out


SAME, FLIPPED = same(4), {(i, -1 - i) for i in range(4)}
BETWEEN: dict[str, tuple[Callable[[Tensor], Tensor], int, Pairs]] = {
    "pointwise": (lambda x: F.gelu(x).sigmoid() + 1, 4, SAME),
    "twice": (lambda x: x + x.clone(), 4, SAME),
    "negated": (lambda x: -x, 4, FLIPPED),
    "one minus": (lambda x: 1 - x, 4, FLIPPED),
    "minus one": (lambda x: x - 1, 4, SAME),
    "subtracted": (lambda x: torch.ones_like(x).detach().double().float() * 0 - x, 4, SAME | FLIPPED),
    "times -2": (lambda x: x * -2, 4, FLIPPED),
    "over -2": (lambda x: x / -2.0, 4, FLIPPED),
    "scaled by channel": (
        lambda x: torch.tensor([1.0, -1, 0, 2]).view(4, 1, 1, 1) * x,
        4,
        {(0, 0), (1, -2), (3, 3)},
    ),
    "pooled": (lambda x: F.avg_pool3d(x, 2), 4, SAME),
    "interpolated": (lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear"), 4, SAME),
    "gate": (lambda x: x * x.mean(dim=(2, 3, 4), keepdim=True).sigmoid(), 4, SAME),
    "flipped": (lambda x: x.flip(1), 4, {(i, 3 - i) for i in range(4)}),
    "rolled": (lambda x: x.roll(1, 1), 4, {(i, (i - 1) % 4) for i in range(4)}),
    "picked": (lambda x: x[:, [2, 0, 2, 1]], 4, {(0, 2), (1, 0), (2, 2), (3, 1)}),
    "sliced": (lambda x: x[:, 1:3], 2, {(0, 1), (1, 2)}),
    "halves": (lambda x: torch.add(*x.chunk(2, 1)), 2, {(0, 0), (0, 2), (1, 1), (1, 3)}),
    "unbound": (lambda x: torch.stack(x.unbind(1)[::-1], 1), 4, {(i, 3 - i) for i in range(4)}),
    "beside zeros": (lambda x: torch.cat([x.new_zeros(1, 2, *x.shape[2:]), x], 1), 6, same(4, 2)),
    "sum beside": (
        lambda x: torch.cat([x + x.flip(1), x], 1),
        8,
        SAME | {(i, 3 - i) for i in range(4)} | same(4, 4),
    ),
    "layer norm without a scale": (lambda x: F.layer_norm(x, x.shape[2:]), 4, SAME),
    "many added up": (
        lambda x: sum((x[:, list(order)] for order in islice(permutations(range(4)), 9)), x * 0),
        4,
        {(i, ANY) for i in range(4)},
    ),
    "kernel of activations": (
        lambda x: F.conv3d(x, x.mean(dim=(2, 3, 4)).view(1, 4, 1, 1, 1)),
        1,
        {(0, ANY)},
    ),
    "padded": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 2)), 7, same(4, 1)),
    "padded by reflection": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"), 4, SAME),
    "shifted in time": (shifted, 4, SAME),
    "delayed": (lambda x: torch.cat([torch.zeros_like(x)[:, :, :1] * 0, x[:, :, :-1]], 2), 4, SAME),
    "written in part": (filled, 4, {(i, ANY) for i in range(4)}),
    "attention": (
        lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).softmax(-1).unsqueeze(-1).unsqueeze(-1),
        4,
        {(i, ANY) for i in range(4)},
    ),
    "sum of channels": (lambda x: x.sum(1, keepdim=True), 1, {(0, k) for k in range(4)}),
    "group norm": (
        lambda x: F.group_norm(x, 2, torch.tensor([1.0, -1, 1, -1])),
        4,
        {(0, 0), (1, -2), (2, 2), (3, -4)},
    ),
    "layer norm": (
        lambda x: F.layer_norm(x.movedim(1, -1), (4,), torch.tensor([1.0, 1, -1, 1])).movedim(-1, 1),
        4,
        {(0, 0), (1, 1), (2, -3), (3, 3)},
    ),
    "instance norm": (F.instance_norm, 4, SAME),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)), 4, SAME | {(i, 3 - i) for i in range(4)}),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_lies_between_two_convolutions(name: str):
    between, width, expected = BETWEEN[name]
    found = traced(Chain(between, width))
    got = sources(found, "second")["first"]
    assert got == expected
    by = {"attention": "bmm", "kernel of activations": "convolution"}.get(name)
    note = f"the channels of first cannot be told apart after {by}: all of them count there"
    assert found.notes == ((note,) if by else ())
    if name == "gate":  # its own input, and not also what was pooled on the way
        assert len(layer(found, "second").feeding("site")) == 1
