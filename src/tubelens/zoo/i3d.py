"""I3D on Inception-v1 (Carreira & Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics
Dataset", CVPR 2017), for RGB and for optical flow. Names of parameters are those of the converted weights
that are most in use (`rgb_imagenet.pt`, `flow_charades.pt`); two other ways of naming them are known.

The authors' TensorFlow network pads by what the input's size needs ("SAME", any odd pixel at the end). Of
the conversions to torch one pads all sizes like 224, the other gives one score a time step, and maps of
scores beyond 224 pixels; here clips of any size from 9 frames of 193 x 193 run as in TensorFlow.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.model import InputSpec
from tubelens.zoo.recipe import Pack, Recipe, Style
from tubelens.zoo.sized import at_least

Triple = tuple[int, int, int]
MIXED: dict[str, tuple[int, int, int, int, int, int]] = {  # features of b0, b1a, b1b, b2a, b2b, b3b
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLED: dict[str, tuple[str, Triple, Triple]] = {  # the pool before a block: name, kernel, stride
    "Mixed_3b": ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
}
WINDOW: Triple = (2, 7, 7)  # of the mean before the classifier, slid by one
LEAST: Triple = (9, 193, 193)  # frames and pixels that give as many cells, at strides of 8, 32 and 32


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What TensorFlow puts before and after an axis, so that windows start at every `stride`-th cell.

    >>> same_padding(224, 7, 2), same_padding(225, 7, 2)
    ((2, 3), (3, 3))
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def padded(x: Float[Tensor, "b c t h w"], kernel: Triple, stride: Triple) -> Float[Tensor, "b c T H W"]:
    """With zeros around, as TensorFlow's SAME."""
    widths = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [n for pair in reversed(widths) for n in pair])


class Pool(nn.MaxPool3d):
    """Maximum with zeros around: after ReLU they change nothing, but TensorFlow has them."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__(kernel, stride)
        self.window, self.step = kernel, stride

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c T H W"]:
        """One cell for every `stride` cells, the last one also where fewer are left."""
        maximum: Tensor = super().forward(padded(x, self.window, self.step))
        return maximum


class Unit(nn.Module):
    """Convolution; then, but in the classifier, batch norm and ReLU.

    Where it does not stride, padding does not depend on the size, and the convolution does it itself.
    """

    def __init__(self, into: int, out: int, kernel: int = 1, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(into, out, kernel, stride, padding, bias=not norm)
        self.bn = nn.BatchNorm3d(out, eps=1e-3, momentum=0.01) if norm else None
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n T H W"]:
        """One cell for every `stride` cells, the last one also where fewer are left."""
        if self.stride > 1:
            x = padded(x, (self.kernel,) * 3, (self.stride,) * 3)
        y: Tensor = self.conv3d(x)
        return y if self.bn is None else self.relu(self.bn(y))


class Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3, twice; maximum and 1x1x1."""

    def __init__(self, into: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(into, b0)
        self.b1a, self.b1b = Unit(into, b1a), Unit(b1a, b1b, kernel=3)
        self.b2a, self.b2b = Unit(into, b2a), Unit(b2a, b2b, kernel=3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(into, b3b)
        self.width = b0 + b1b + b2b + b3b

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n t h w"]:
        """The branches' features in this order; a new tensor."""
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


class I3D(nn.Sequential):
    """Inception-v1 in 3-D; means over 2 x 7 x 7 cells of `Mixed_5c`, a classifier on each, their mean.

    64 frames of 224 x 224 become 8 x 7 x 7 cells. The means slide by one cell, so cells at the ends of an
    axis are in fewer of them: at 224 pixels the first and the last time step weigh half. The head is affine
    all the same, and tubes are exact.

    Args:
        classes: how many.
        bands: 3 for RGB, 2 for flow.
    """

    def __init__(self, classes: int = 400, bands: int = 3) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            Conv3d_1a_7x7=Unit(bands, 64, kernel=7, stride=2),
            MaxPool3d_2a_3x3=Pool((1, 3, 3), (1, 2, 2)),
            Conv3d_2b_1x1=Unit(64, 64),
            Conv3d_2c_3x3=Unit(64, 192, kernel=3),
        )
        width = 192
        for name, widths in MIXED.items():
            if name in POOLED:
                pool, kernel, stride = POOLED[name]
                parts[pool] = Pool(kernel, stride)
            parts[name] = block = Mixed(width, widths)
            width = block.width
        parts["avg_pool"] = nn.AvgPool3d(WINDOW, stride=1)
        parts["dropout"] = nn.Dropout(0.5)
        parts["logits"] = Unit(width, classes, norm=False)
        super().__init__(parts)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of clips in [-1, 1].

        Raises:
            InputError: too short or too small a clip.
        """
        at_least(clips, LEAST, "I3D")
        x = clips
        for module in self:
            x = module(x)
        return x.mean(dim=(2, 3, 4))


def _of_hassony2(state: Mapping[str, Tensor]) -> bool:
    return "conv3d_1a_7x7.conv3d.weight" in state


BRANCHES = {  # branch and position within it
    ("0", "0"): "b0",
    ("1", "0"): "b1a",
    ("1", "1"): "b1b",
    ("2", "0"): "b2a",
    ("2", "1"): "b2b",
    ("3", "1"): "b3b",
}


def _from_hassony2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`mixed_3b.branch_1.0.batch3d.bias` to `Mixed_3b.b1a.bn.bias`."""

    def name(key: str) -> str:
        key = re.sub(r"^conv3d_0c_1x1\.", "logits.", key)
        key = re.sub(r"^(conv3d|mixed)_", lambda m: m[0].capitalize(), key).replace(".batch3d.", ".bn.")
        return re.sub(
            r"\.branch_(\d)(?:\.(\d))?\.(?=conv3d|bn)",
            lambda m: f".{BRANCHES.get((m[1], m[2] or '0'), m[0])}.",
            key,
        )

    return {name(key): value for key, value in state.items()}


def _of_tensorflow(state: Mapping[str, Tensor]) -> bool:
    return any("inception_i3d/" in key for key in state)


UNITS = {  # within a block; in Mixed_5b the authors wrote 0a where the other blocks have 0b
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_2/Conv3d_0a_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}
VARIABLES = {
    "conv_3d/w": "conv3d.weight",
    "conv_3d/b": "conv3d.bias",
    "batch_norm/beta": "bn.bias",
    "batch_norm/moving_mean": "bn.running_mean",
    "batch_norm/moving_variance": "bn.running_var",
}


def _from_tensorflow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`RGB/inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w` to `Mixed_3b.b1b.conv3d.weight`.

    Kernels come as (t, h, w, in, out), statistics with dimensions of length 1, and batch norms have no scale.
    """
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        path = key.partition("inception_i3d/")[2].removesuffix(":0").split("/")
        block, unit, variable = path[0], "/".join(path[1:-2]), VARIABLES.get("/".join(path[-2:]))
        if unit == "Conv3d_0c_1x1" and block == "Logits":
            place = "logits"
        else:
            place = block if not unit else f"{block}.{UNITS.get(unit, '?')}"
        if variable is None or "?" in place:
            ours[key] = value  # reported as unexpected
        elif variable == "conv3d.weight":
            ours[f"{place}.{variable}"] = value.permute(4, 3, 0, 1, 2).contiguous()
        else:
            ours[f"{place}.{variable}"] = value.flatten()
            if variable == "bn.bias":
                ours[f"{place}.bn.weight"] = torch.ones_like(value).flatten()
    return ours


SOURCE = "Carreira & Zisserman, Quo Vadis, Action Recognition?, CVPR 2017"
STYLES = (
    Style("hassony2/kinetics_i3d_pytorch", _of_hassony2, _from_hassony2),
    Style("variables of deepmind/kinetics-i3d", _of_tensorflow, _from_tensorflow),
)


def _recipe(name: str, bands: tuple[str, ...], parameters: int) -> Recipe:
    n = len(bands)
    return Recipe(
        name,
        partial(I3D, bands=n),
        InputSpec(64, (224, 224), resize=256, rate=25.0, bands=bands),
        Pack(mean=(1.0,) * n, scale=2.0),
        layer="Mixed_5c",
        head="logits.conv3d.weight",
        source=SOURCE,
        parameters=parameters,
        classes=400,
        styles=STYLES,
        licence="Apache-2.0",
    )


RECIPES: tuple[Recipe, ...] = (
    _recipe("i3d_rgb", ("R", "G", "B"), 12_697_264),
    # flow in pixels a frame, clipped to -20..20 and mapped to [0, 1], so that the network gets [-1, 1]
    _recipe("i3d_flow", ("U", "V"), 12_675_312),
)
