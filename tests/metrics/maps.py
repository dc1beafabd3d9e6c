"""Explanations made of a given map, for metrics that read nothing else of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from tubelens.clip import Clip
from tubelens.explanation import Explanation, Provenance
from tubelens.layout import Grid
from tubelens.metrics.protocol import Score
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


def coarse(values: torch.Tensor, size: tuple[int, int, int] = (16, 16, 16)) -> Explanation:
    """An explanation of a coarse grid, whose cells lie evenly in the clip."""
    axes = [
        tuple((i + 0.5) * n / cells - 0.5 for i in range(cells))
        for cells, n in zip(values.shape, size, strict=True)
    ]
    whole = explanation_of(torch.zeros(size))
    return replace(whole, parts=(Grid(values, *axes, (0, size[0])),))


def flat() -> Explanation:
    """Flat but for rounding, once it has the size of its clip."""
    found = coarse(torch.full((4, 4, 4), 0.3))
    assert 0 < float(found.saliency.max() - found.saliency.min()) < 1e-6
    return found


def standing(seed: int = 0) -> Explanation:
    """The same in all frames but for rounding."""
    grid = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(seed)).expand(4, 4, 4).contiguous()
    found = coarse(grid)
    change = float((found.saliency - found.saliency[:1]).abs().max())
    assert 0 < change < 1e-6
    return found


def between_anchors(score: Score) -> float | None:
    """What a score should be normalised to: nothing where the truth hardly wins over a random order."""
    low, high = score.anchors["random"], score.anchors["oracle"]
    gain = high - low if score.higher_is_better else low - high
    if gain <= 1e-3 or gain <= 0.01 * max(abs(low), abs(high)):
        return None
    return (score.value - low) / (high - low)
