"""TSM: a 2-D ResNet whose residual branches see the neighbouring segments (Lin et al., TSM: Temporal Shift
Module for Efficient Video Understanding, ICCV 2019).

A clip is a few segments of one frame each. Before the first convolution of a residual branch an eighth of
the channels comes from the segment after, another eighth from the segment before, and zeros come in at both
ends. Scores are the mean over segments of a linear layer on pooled features: affine, so tubes are exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet50, resnet101

from tubelens.model import InputSpec
from tubelens.zoo.recipe import Pack, Recipe, Style

LIN = "Lin et al., TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRACTION = 8  # one part in so many of the channels moves each way
SPEC = InputSpec(8, (224, 224), resize=256, stride=8, sampling="segments")
pack = Pack(MEAN, STD, axes="b (t c) h w")


class Shift(nn.Module):
    """A layer that is fed features of which some come from the segments before and after.

    Attributes:
        net: the layer.
        segments: of each clip, set by the network before its forward.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.segments = 1

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        """The layer on shifted features; the segments of a clip follow each other in the batch."""
        out: Tensor = self.net(shifted(x, self.segments))
        return out


def shifted(x: Float[Tensor, "n c h w"], segments: int) -> Float[Tensor, "n c h w"]:
    """Features with the first eighth of the channels one segment early, the second one late, zeros beyond.

    Args:
        x: features, `n` being clips times segments.
        segments: of each clip.
    """
    out: Tensor = x.unflatten(0, (-1, segments)).clone()
    part = x.shape[1] // FRACTION
    # a copy is written to, and not put together from parts: it keeps each cell at its own segment
    moving = F.pad(out[:, :, : 2 * part], (0,) * 6 + (1, 1))
    out[:, :, :part] = moving[:, 2:, :part]
    out[:, :, part : 2 * part] = moving[:, :-2, part:]
    return out.flatten(0, 1)


def trunk(depth: int, channels: int = 3) -> Any:
    """A ResNet of 50 or 101 layers, shifting where the published ones do; its classifier does nothing.

    The deeper one shifts in every second block of each stage, from the first on.
    """
    net = {50: resnet50, 101: resnet101}[depth](weights=None)
    every = 2 if depth == 101 else 1
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage[::every]:
            block.conv1 = Shift(block.conv1)
    if channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    net.fc = nn.Dropout(0.5)
    return net


def features(net: Any, x: Float[Tensor, "n c h w"], segments: int) -> Float[Tensor, "n d i j"]:
    """What the last stage of a `trunk` gives; the segments of a clip follow each other in the batch."""
    for module in net.modules():
        if isinstance(module, Shift):
            module.segments = segments
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    seen: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    return seen


class TSM(nn.Module):
    """ResNet-50 or 101 with shifts.

    Takes any number of segments: trained ones expect 8 (or 16).
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.base_model = trunk(depth)
        self.new_fc = nn.Linear(2048, classes)

    def forward(self, frames: Float[Tensor, "b tc h w"]) -> Float[Tensor, "_ k"]:  # a hook may add rows
        """Logits of normalised frames `(segment, band)`, stacked along the channels."""
        bands = self.base_model.conv1.in_channels
        segments = frames.shape[1] // bands
        x = features(self.base_model, frames.reshape(-1, bands, *frames.shape[2:]), segments)
        return consensus(self.base_model, self.new_fc, x, segments)


def consensus(
    net: Any, classifier: nn.Module, x: Float[Tensor, "n d i j"], segments: int
) -> Float[Tensor, "_ k"]:
    """Logits of each segment's pooled features, their mean over the segments."""
    scores = classifier(net.fc(net.avgpool(x).flatten(1)))
    logits: Tensor = scores.unflatten(0, (-1, segments)).mean(dim=1)
    return logits


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────


def _is_mmaction(state: Mapping[str, Tensor]) -> bool:
    return "backbone.layer1.0.conv1.conv.net.weight" in state and "cls_head.fc_cls.weight" in state


RENAMES = (
    (r"^cls_head\.fc_cls\.", "new_fc."),
    (r"^backbone\.", "base_model."),
    (r"\.conv(\d)\.bn\.", r".bn\1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
)


def _from_mmaction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the original code for those of mmaction2, whose layers are pairs of convolution and norm."""
    renamed = {}
    for key, value in state.items():
        if not key.startswith("data_preprocessor."):
            for pattern, replacement in RENAMES:
                key = re.sub(pattern, replacement, key)
            renamed[key] = value
    return renamed


MMACTION = Style("mmaction2", _is_mmaction, _from_mmaction)


def _recipe(depth: int, parameters: int) -> Recipe:
    return Recipe(
        f"tsm_r{depth}",
        partial(TSM, depth),
        SPEC,
        pack,
        layer="base_model.layer4",
        head="new_fc.weight",
        source=LIN,
        parameters=parameters,
        classes=400,
        styles=(MMACTION,),
        licence="MIT (code)",
    )


RECIPES: tuple[Recipe, ...] = (_recipe(50, 24_327_632), _recipe(101, 43_319_760))
