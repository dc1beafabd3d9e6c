"""Hara's 3D-DenseNet-121: the densely connected network of Huang et al. (CVPR 2017) with 3-D kernels, as
trained in Hara et al., "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?", CVPR 2018.
Names of parameters are those of the authors' present code.

As with the 3D-ResNets, `hara2018_*` is fed 0..255 less the mean of ActivityNet, `hara2020_*` normalised 0..1.
Files of 2018 have other names (`features.conv0`, `denselayer1.norm.1`); they are renamed, and such a file is
fed as in 2018 whichever recipe loads it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.model import InputSpec
from tubelens.zoo.hara_resnet import HARA, PACK_2018, PACK_2020
from tubelens.zoo.recipe import Recipe, Style
from tubelens.zoo.sized import at_least

STEM, GROWTH, BOTTLENECK = 64, 32, 4 * 32
BLOCKS = (6, 12, 24, 16)
LEAST = (15, 29, 29)  # frames, rows and columns that leave one cell after the last halving


class DenseLayer(nn.Module):
    """Adds `GROWTH` features to those it is given: BN, ReLU, 1x1x1, BN, ReLU, 3x3x3."""

    def __init__(self, into: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(into)
        self.conv1 = nn.Conv3d(into, BOTTLENECK, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(BOTTLENECK)
        self.conv2 = nn.Conv3d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n t h w"]:
        """What it was given, then the new features; a new tensor."""
        squeezed = self.conv1(self.relu(self.norm1(x)))
        added = self.conv2(self.relu(self.norm2(squeezed)))
        return torch.cat([x, added], dim=1)


def _transition(into: int) -> nn.Sequential:
    """Half the features, half the cells along each axis."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm3d(into),
            relu=nn.ReLU(),
            conv=nn.Conv3d(into, into // 2, 1, bias=False),
            pool=nn.AvgPool3d(2),
        )
    )


class DenseNet121(nn.Module):
    """Four dense blocks, the mean over time and space, one linear layer.

    The output of `features` is what the mean reads: the last batch norm followed by ReLU. It strides by 16 in
    time and by 32 in height and width: 16 frames of 112 x 112 become 1 x 3 x 3 cells, so a map there has no
    time. `features.denseblock3` has 2 x 7 x 7 and `features.denseblock2` 4 x 14 x 14.

    Args:
        classes: how many.
    """

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv3d(3, STEM, 7, (1, 2, 2), padding=3, bias=False),
            norm1=nn.BatchNorm3d(STEM),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool3d(3, 2, 1),
        )
        width = STEM
        for number, count in enumerate(BLOCKS, start=1):
            if number > 1:
                parts[f"transition{number - 1}"] = _transition(width)
                width //= 2
            layers = {f"denselayer{i + 1}": DenseLayer(width + i * GROWTH) for i in range(count)}
            parts[f"denseblock{number}"] = nn.Sequential(OrderedDict(layers))
            width += count * GROWTH
        parts |= {"norm5": nn.BatchNorm3d(width), "relu5": nn.ReLU()}
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of prepared clips.

        Raises:
            InputError: too short or too small a clip.
        """
        at_least(clips, LEAST, "3D-DenseNet-121")
        logits: Tensor = self.classifier(self.features(clips).mean(dim=(2, 3, 4)))
        return logits


def _named_as_in_2018(state: Mapping[str, Tensor]) -> bool:
    return "features.conv0.weight" in state or "features.denseblock1.denselayer1.norm.1.weight" in state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`features.conv0` to `features.conv1`, `denselayer1.norm.1` to `denselayer1.norm1`."""

    def name(key: str) -> str:
        key = re.sub(r"^features\.(conv|norm)0\.", r"features.\g<1>1.", key)
        return re.sub(r"\.(denselayer\d+)\.(norm|conv)\.([12])\.", r".\1.\2\3.", key)

    return {name(key): value for key, value in state.items()}


SPEC = InputSpec(16, (112, 112), resize=112, stride=1)
STYLES = (Style("names of 2018", _named_as_in_2018, _renamed, PACK_2018),)

RECIPES: tuple[Recipe, ...] = tuple(
    Recipe(
        f"hara{year}_densenet121",
        DenseNet121,
        SPEC,
        pack,
        layer="features",
        head="classifier.weight",
        source=source,
        parameters=parameters,
        classes=classes,
        styles=STYLES,
        licence="MIT",
    )
    for year, pack, source, parameters, classes in (
        (2018, PACK_2018, HARA[0], 11_696_528, 400),
        (2020, PACK_2020, HARA[1], 12_004_028, 700),
    )
)
