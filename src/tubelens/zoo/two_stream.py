"""Two-stream networks: one on frames, one on optical flow, their scores averaged (Simonyan & Zisserman,
"Two-Stream Convolutional Networks for Action Recognition in Videos", NeurIPS 2014; with I3D as streams,
Carreira & Zisserman, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tubelens.errors import OptionError
from tubelens.model import TorchModel, frozen_part
from tubelens.target import logits, probabilities

Average = Literal["logits", "probs"]
STREAMS = ("rgb", "flow")


class Streams(nn.Module):
    """Both networks, and the weighted mean of their scores.

    Attributes:
        rgb, flow: the networks, under whose names their layers are found: `rgb.layer4`, `flow.layer4`.
    """

    def __init__(self, rgb: TorchModel, flow: TorchModel, weights: tuple[float, float], average: Average):
        super().__init__()
        self.rgb, self.flow = rgb.module, flow.module
        self._models = (rgb, flow)
        self._weights, self._average = weights, average

    def forward(self, packed: tuple[Any, Any]) -> Float[Tensor, "_ k"]:
        """Logits, or probabilities, of what the two networks are fed."""
        kind = logits if self._average == "logits" else probabilities
        both = [
            kind(model.unpack(model.module(fed)), model.output)
            for model, fed in zip(self._models, packed, strict=True)
        ]
        a, b = (w / sum(self._weights) for w in self._weights)
        return a * both[0] + b * both[1]


@dataclass(frozen=True)
class Both:
    """What the two networks are fed.

    Attributes:
        rgb, flow: their own packs.
        bands: of the first; the rest are the second's.
    """

    rgb: Callable[[Tensor], Any]
    flow: Callable[[Tensor], Any]
    bands: int

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> tuple[Any, Any]:
        """The inputs of both."""
        return self.rgb(clips[:, : self.bands]), self.flow(clips[:, self.bands :])

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Both:
        """With the statistics of these intact clips, where either takes any."""
        halves = clips[:, : self.bands], clips[:, self.bands :]
        rgb, flow = (frozen_part(p, c) for p, c in zip((self.rgb, self.flow), halves, strict=True))
        return replace(self, rgb=rgb, flow=flow)


def two_stream(
    rgb: TorchModel,
    flow: TorchModel,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    average: Average = "probs",
    name: str | None = None,
) -> TorchModel:
    """A network on frames and one on optical flow as one model, on clips with the bands of both.

    Args:
        rgb: on bands R, G, B.
        flow: on bands U, V (see `tubelens.video.flow`), of the same frames and size.
        weights: of the two in the mean.
        average: what is averaged: softmax probabilities, as published, or logits, for which tubes of either
            stream are exact.
        name: for captions and records.

    Returns:
        A model whose layers are those of the two networks, as `rgb.LAYER` and `flow.LAYER`. The default is
        that of `rgb`; methods that fuse layers take both.

    Raises:
        OptionError: other bands, frames or labels that do not go together, or weights that do not add up to
            more than zero.
    """
    if flow.spec.bands != ("U", "V") or set(rgb.spec.bands) & {"U", "V"}:
        raise OptionError(
            f"the streams must take frames and flow (U, V), not {', '.join(rgb.spec.bands)} and"
            f" {', '.join(flow.spec.bands)}"
        )
    ours, theirs = ((m.spec.frames, m.spec.size) for m in (rgb, flow))
    if ours != theirs:
        raise OptionError(f"the streams must take clips of one size, not {ours} and {theirs}")
    if rgb.labels is not None and flow.labels is not None and list(rgb.labels) != list(flow.labels):
        raise OptionError("the streams must have the same labels in the same order")
    if not (min(weights) >= 0 and sum(weights) > 0):  # also catches NaN
        raise OptionError(f"the weights of the streams must be positive, not {weights}")
    if average not in get_args(Average):
        raise OptionError(f"what is averaged is 'probs' or 'logits', not {average!r}")
    if average == "probs" and rgb.output != flow.output and "sigmoid" in (rgb.output, flow.output):
        raise OptionError("one stream gives sigmoids and the other does not: average='logits'")
    ours_, theirs_ = (_classes(m) for m in (rgb, flow))
    if ours_ != theirs_:
        raise OptionError(f"the streams must have the same classes, not {ours_} and {theirs_}")
    return TorchModel(
        module=Streams(rgb, flow, weights, average),
        pack=Both(rgb.pack, flow.pack, len(rgb.spec.bands)),
        spec=replace(rgb.spec, bands=(*rgb.spec.bands, *flow.spec.bands)),
        output=rgb.output if average == "probs" and rgb.output == "sigmoid" else average,
        labels=rgb.labels if rgb.labels is not None else flow.labels,
        layer=None if rgb.layer is None else f"rgb.{rgb.layer}",
        layouts={
            f"{s}.{k}": v for s, m in zip(STREAMS, (rgb, flow), strict=True) for k, v in m.layouts.items()
        },
        find=_find(rgb, flow),
        walk=lambda: [
            (f"{s}.{k}", v) for s, m in zip(STREAMS, (rgb, flow), strict=True) for k, v in m.submodules()
        ],
        tubes="the softmax of each stream follows its logits; average='logits' has none"
        if average == "probs"
        else "",
        name=name or f"{rgb.name} + {flow.name}",
        weights=f"{rgb.weights}; {flow.weights}",
        verified=rgb.verified and flow.verified,
    )


def _classes(model: TorchModel) -> int:
    spec = model.spec
    return int(model(torch.zeros(1, len(spec.bands), spec.frames, *spec.size)).shape[1])


def _find(rgb: TorchModel, flow: TorchModel) -> Callable[[str], nn.Module]:
    def find(layer: str) -> nn.Module:
        stream, _, rest = layer.partition(".")
        return {"rgb": rgb, "flow": flow}[stream].submodule(rest)

    return find
