"""Hara's 3D-ResNets (Hara et al., "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?",
CVPR 2018) and those trained anew on larger data (Kataoka et al., "Would Mega-scale Datasets Further Enhance
Spatiotemporal 3D CNNs?", 2020). Names of parameters are those of the published checkpoints.

Two generations differ in more than their weights. `hara2018_*` (`resnet-50-kinetics.pth`) are fed 0..255 less
the mean of ActivityNet, and depths 18 and 34 have type A shortcuts: subsampling and zero channels, without
parameters. `hara2020_*` (`r3d50_K_200ep.pth`) are fed normalised 0..1, and all have type B: a strided
convolution and a batch norm. From depth 50 on both generations have the same names of parameters, so the
recipe that is asked for decides what the network is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, Literal, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import CheckpointError
from tubelens.model import InputSpec
from tubelens.zoo.recipe import Pack, Recipe, Style

Shortcut = Literal["A", "B"]
WIDTHS = (64, 128, 256, 512)


class Subsample(nn.Module):
    """Type A shortcut: every `stride`-th cell, and zeros for the channels that are new.

    The authors' code cuts the graph here, which leaves the scores as they are but loses most of the gradient
    of the clip; this one does not.
    """

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n T H W"]:
        """Cells 0, stride, 2 stride, ... of each axis."""
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.added))


class Basic(nn.Module):
    """Two 3x3x3 convolutions, the first one strided; ReLU after the sum."""

    expansion: ClassVar[int] = 1

    def __init__(self, into: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(into, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU()
        self.downsample = downsample

    @property
    def last(self) -> nn.BatchNorm3d:
        """The batch norm before the sum."""
        return self.bn2

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ n T H W"]:
        """Activations after the ReLU; a new tensor."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 (strided) and 1x1x1 convolution, four times as wide at the end; ReLU after the sum."""

    expansion: ClassVar[int] = 4

    def __init__(self, into: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv3d(into, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out)
        self.relu = nn.ReLU()
        self.downsample = downsample

    @property
    def last(self) -> nn.BatchNorm3d:
        """The batch norm before the sum."""
        return self.bn3

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ n T H W"]:
        """Activations after the ReLU; a new tensor."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + shortcut)
        return out


DEPTHS: dict[int, tuple[type[Basic] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet3D(nn.Module):
    """A ResNet with 3-D kernels, the mean over time and space, one linear layer.

    `layer4` strides by 16 in time and by 32 in height and width: 16 frames of 112 x 112 become 1 x 4 x 4
    cells, so a map at `layer4` has no time. `layer3` has 2 x 7 x 7 and `layer2` 4 x 14 x 14.

    Args:
        depth: a key of `DEPTHS`.
        shortcut: `"A"` or `"B"`, see `Subsample`; where nothing changes it is the identity.
        classes: how many.
    """

    def __init__(self, depth: int, shortcut: Shortcut, classes: int) -> None:
        super().__init__()
        block, counts = DEPTHS[depth]
        self.conv1 = nn.Conv3d(3, WIDTHS[0], 7, (1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        into = WIDTHS[0]
        for number, (width, count) in enumerate(zip(WIDTHS, counts, strict=True), start=1):
            stride, out = (1 if number == 1 else 2), width * block.expansion
            first = block(into, width, stride, _downsample(shortcut, into, out, stride))
            rest = [block(out, width, 1, None) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            into = out
        self.fc = nn.Linear(into, classes)
        self._initialise(sum(counts))

    def _initialise(self, blocks: int) -> None:
        """He et al.'s; each branch times blocks^-1/2, or random activations would grow with depth."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Basic | Bottleneck):
                nn.init.constant_(module.last.weight, blocks**-0.5)

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of prepared clips, of any length and size."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(torch.mean(x, dim=(2, 3, 4)))
        return logits


def _downsample(shortcut: Shortcut, into: int, out: int, stride: int) -> nn.Module | None:
    if stride == 1 and into == out:
        return None
    if shortcut == "A":
        return Subsample(stride, out - into)
    return nn.Sequential(nn.Conv3d(into, out, 1, stride, bias=False), nn.BatchNorm3d(out))


HARA = (
    "Hara et al., Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?, CVPR 2018",
    "Kataoka et al., Would Mega-scale Datasets Further Enhance Spatiotemporal 3D CNNs?, 2020",
)
SPEC = InputSpec(16, (112, 112), resize=112, stride=1)
PACK_2018 = Pack((114.7748, 107.7354, 99.4750), scale=255.0)
PACK_2020 = Pack((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
PARAMETERS_2018 = {18: 33_235_280, 34: 63_544_912, 50: 47_018_576, 101: 86_064_720, 152: 118_223_440}
PARAMETERS_2020 = {18: 33_563_004, 34: 63_872_636, 50: 47_633_276, 101: 86_679_420, 152: 118_838_140}


def _basic(state: Mapping[str, Tensor], shortcut: Shortcut) -> bool:
    """Whether these are parameters of a network of `Basic` blocks with this shortcut."""
    strided = "layer2.0.downsample.0.weight" in state
    return {"conv1.weight", "layer1.0.conv2.weight", "layer2.0.conv1.weight"} <= set(state) and (
        "layer1.0.conv3.weight" not in state and strided == (shortcut == "B")
    )


def _refuse(message: str, state: dict[str, Tensor]) -> NoReturn:
    raise CheckpointError(message)


def _other(depth: int, year: int) -> tuple[Style, ...]:
    """What recognises the other generation's shortcut and says which recipe it belongs to."""
    if DEPTHS[depth][0] is Bottleneck:
        return ()
    own: Shortcut
    met: Shortcut
    own, met, has, other = ("A", "B", "has", 2020) if year == 2018 else ("B", "A", "has no", 2018)
    message = (
        f"the file {has} layer2.0.downsample.0.weight, so its shortcuts are type {met}, and those of"
        f" hara{year}_resnet{depth} are type {own}: load it as hara{other}_resnet{depth}, and mind what the"
        " network was fed in training (`model.pack`)"
    )
    fits: Callable[[Mapping[str, Tensor]], bool] = partial(_basic, shortcut=met)
    return (Style(f"type {met} shortcuts", fits, partial(_refuse, message)),)


def _recipe(depth: int, year: Literal[2018, 2020]) -> Recipe:
    shortcut: Shortcut = "A" if year == 2018 and DEPTHS[depth][0] is Basic else "B"
    return Recipe(
        f"hara{year}_resnet{depth}",
        partial(ResNet3D, depth, shortcut),
        SPEC,
        PACK_2018 if year == 2018 else PACK_2020,
        layer="layer4",
        head="fc.weight",
        source=HARA[0] if year == 2018 else HARA[1],
        parameters=(PARAMETERS_2018 if year == 2018 else PARAMETERS_2020)[depth],
        classes=400 if year == 2018 else 700,
        styles=_other(depth, year),
        licence="MIT",
    )


RECIPES: tuple[Recipe, ...] = (
    *(_recipe(depth, 2018) for depth in DEPTHS),
    *(_recipe(depth, 2020) for depth in DEPTHS),
)
