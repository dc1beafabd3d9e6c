"""How far two maps of one video agree, whatever their grids, crops and clip lengths are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from tubelens.explanation import Explanation

MOMENTS, SIDE = 16, 32
"""The lattice: so many moments of the time that both explain, so many rows and columns of the frame."""
EQUAL = 1e-5
"""Values that differ by less than this share of the largest are equal: interpolation rounds."""


def agreement(a: Explanation, b: Explanation) -> float:
    """Spearman's rank correlation of two maps of one video, in [-1, 1].

    Both are read at the same places: 16 moments, evenly over the seconds that both clips stand for, and
    32 x 32 places, evenly over the source frame; those outside either crop are left out. Ranks do not mind
    what the maps are measured in, so that maps of different networks and methods compare. Neighbouring places
    are not independent: the number says how alike two maps are, not how surely.

    Args:
        a: an explanation.
        b: another one of the same video.

    Returns:
        1: the same order, 0: none in common, -1: the reverse; NaN where one of the maps is the same
        everywhere, or the two have no second or no pixel in common.
    """
    start = max(a.source.span[0], b.source.span[0])
    end = min(a.source.span[1], b.source.span[1])
    if start > end:
        return float("nan")
    times = np.linspace(start, end, MOMENTS).tolist()
    first, second = _read(a, times), _read(b, times)
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return float("nan")
    x, y = ranks(_rounded(first[both])), ranks(_rounded(second[both]))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def ranks(values: Float[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Ranks from 1 to n; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: np.ndarray = (last - (counts - 1) / 2)[inverse]
    return shared


def _rounded(values: Float[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    unit = EQUAL * float(np.abs(values).max())
    above = values.astype(np.float64) - float(values.min())
    whole: np.ndarray = np.round(above / unit) if unit > 0 else above
    return whole


def _read(e: Explanation, times: list[float]) -> Float[np.ndarray, "n"]:
    """The map on the lattice, NaN outside the crop."""
    maps = [frame.detach().cpu().numpy() for frame in e.at(times, (SIDE, SIDE))]
    return np.stack(maps).ravel()
