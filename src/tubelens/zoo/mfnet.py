"""MFNet-3D (Chen et al., "Multi-Fiber Networks for Video Recognition", ECCV 2018).

A residual network whose wide convolutions are split into 16 parallel fibers (groups); two 1x1x1 convolutions
before them, the multiplexer, pass information between the fibers. Names of parameters are those of the
published checkpoints.

The authors normalise by (v - [124, 117, 104]) 0.0167 with v in 0..255. The code of Saliency Tubes (Stergiou
et al., ICIP 2019) feeds this network with the standard deviations 0.229, 0.224, 0.225 instead. Files of both
have the same names, so the authors' are assumed; for the others, replace the model's `pack`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.model import InputSpec
from tubelens.zoo.recipe import Pack, Recipe

Triple = tuple[int, int, int]
FIBERS = 16
STEM = 16
STAGES: tuple[tuple[str, int, int, Triple], ...] = (  # name, units, channels, stride of the first unit
    ("conv2", 3, 96, (2, 1, 1)),
    ("conv3", 4, 192, (1, 2, 2)),
    ("conv4", 6, 384, (1, 2, 2)),
    ("conv5", 3, 768, (1, 2, 2)),
)
MEAN = (124 / 255, 117 / 255, 104 / 255)
STD = (1 / (0.0167 * 255),) * 3


class Activated(nn.Sequential):
    """Batch norm, ReLU, convolution: "pre-activation". Padding keeps the size at stride 1.

    Args:
        into, out: channels.
        kernel, stride: odd kernel, per axis (t, h, w).
        groups: fibers.
    """

    def __init__(
        self, into: int, out: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1), groups: int = 1
    ) -> None:
        t, h, w = (k // 2 for k in kernel)
        conv = nn.Conv3d(into, out, kernel, stride, padding=(t, h, w), groups=groups, bias=False)
        super().__init__(OrderedDict(bn=nn.BatchNorm3d(into), relu=nn.ReLU(), conv=conv))


class MultiFiberUnit(nn.Module):
    """`m2(m1(x + i2(i1(x)))) + shortcut(x)`: multiplexer, two fibered convolutions, residual (Fig. 2e).

    The first unit of a stage changes stride and width, so its shortcut is a convolution too, of the unit's
    input and not of the multiplexed one, and its `m2` mixes the fibers (1x1x1, one group). In the others `m2`
    is 1x3x3 in fibers. The sum passes no ReLU: every convolution has its own before it.

    Args:
        into, out: channels.
        stride: of `m1` and of the shortcut.
        first: whether it is the first unit of its stage.
    """

    def __init__(self, into: int, out: int, stride: Triple = (1, 1, 1), first: bool = False) -> None:
        super().__init__()
        self.conv_i1 = Activated(into, out // 4)
        self.conv_i2 = Activated(out // 4, into)
        self.conv_m1 = Activated(into, out, (3, 3, 3), stride, FIBERS)
        self.conv_m2 = Activated(out, out) if first else Activated(out, out, (1, 3, 3), groups=FIBERS)
        self.conv_w1 = Activated(into, out, stride=stride) if first else None

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ n T H W"]:
        """Activations before the ReLU of the next unit."""
        mixed = x + self.conv_i2(self.conv_i1(x))
        residual: Tensor = self.conv_m2(self.conv_m1(mixed))
        return residual + (x if self.conv_w1 is None else self.conv_w1(x))


class MFNet3D(nn.Module):
    """Stem, four stages of multi-fiber units, `tail` (batch norm and ReLU), mean, one linear layer.

    Strides add up to 2 in time and 32 in height and width: 16 frames of 224 x 224 become 8 x 7 x 7 cells of
    768 channels. Other lengths and sizes are averaged over whatever cells they give; the published code takes
    16 frames and pools 8 x 7 x 7 only.
    """

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv=nn.Conv3d(3, STEM, (3, 5, 5), (1, 2, 2), padding=(1, 2, 2), bias=False),
                bn=nn.BatchNorm3d(STEM),
                relu=nn.ReLU(),
            )
        )
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        into = STEM
        for name, units, out, stride in STAGES:
            stage = nn.Sequential()
            stage.add_module("B01", MultiFiberUnit(into, out, stride, first=True))
            for i in range(2, units + 1):
                stage.add_module(f"B{i:02d}", MultiFiberUnit(out, out))
            self.add_module(name, stage)
            into = out
        self.tail = nn.Sequential(OrderedDict(bn=nn.BatchNorm3d(into), relu=nn.ReLU()))
        self.classifier = nn.Linear(into, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of normalised clips."""
        x = self.maxpool(self.conv1(clips))
        for name, *_ in STAGES:
            x = self.get_submodule(name)(x)
        x = self.tail(x)
        logits: Tensor = self.classifier(torch.mean(x, dim=(2, 3, 4)))
        return logits


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "mfnet3d",
        MFNet3D,
        # the authors stretch frames to 256 x 256 with unfiltered bilinear interpolation
        InputSpec(16, (224, 224), resize=(256, 256), stride=2, antialias=False),
        Pack(MEAN, STD),
        layer="tail",
        head="classifier.weight",
        source="Chen et al., Multi-Fiber Networks for Video Recognition, ECCV 2018",
        parameters=7_996_368,
        classes=400,
        licence="MIT",
    ),
)
