"""Explanations made of a given map, for metrics that read nothing else of them."""

from __future__ import annotations

import torch

from tubelens.clip import Clip
from tubelens.explanation import Explanation, Provenance
from tubelens.layout import Grid
from tubelens.target import Logit


def clip_of(size: tuple[int, int, int], seed: int = 0, bands: str = "RGB") -> Clip:
    """Noise in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return Clip.from_array(torch.rand((*size, len(bands)), generator=generator), bands=bands)


def explanation_of(saliency: torch.Tensor, clip: Clip | None = None) -> Explanation:
    """An explanation whose map at the clip's resolution is `saliency`, NaN included."""
    t, h, w = saliency.shape
    grid = Grid(saliency, *(tuple(map(float, range(n))) for n in (t, h, w)), (0, t))
    source = (clip or clip_of((t, h, w))).source
    provenance = Provenance("Given()", "none", "none", None, "a class", 0.0, 0.0, ())
    return Explanation((grid,), (t, h, w), source, Logit(0), provenance)
