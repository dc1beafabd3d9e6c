"""Two-stream networks: one on frames, one on optical flow, their scores averaged (Simonyan & Zisserman,
"Two-Stream Convolutional Networks for Action Recognition in Videos", NeurIPS 2014; with I3D as streams,
Carreira & Zisserman, CVPR 2017).
"""

from __future__ import annotations

from tubelens.errors import OptionError
from tubelens.model import TorchModel
from tubelens.zoo.fusion import Average, late_fusion


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
    return late_fusion({"rgb": rgb, "flow": flow}, weights=weights, average=average, name=name)
