"""Heat on one frame: pure functions of a picture and of its heat.

A frame is `(h, w, 3)` uint8 RGB. Heat is `(h, w)` float in [0, 1], already scaled once over the whole clip;
where it is NaN the model did not look, and the picture stays as it was.

The heat is cut to 256 levels, so that every style is a table look-up; the blending itself is Pillow's, which
is the fastest there is on one core without further dependencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image

from tubelens.clip import Box
from tubelens.errors import OptionError, nearest

Frame = UInt8[np.ndarray, "h w 3"]
Rgba = UInt8[np.ndarray, "h w 4"]
Heat = Float[np.ndarray, "h w"]
Lut = UInt8[np.ndarray, "256 3"]

COLORMAP = "turbo"
ALPHA = 0.65
LEVELS = (0.4, 0.6, 0.8)
FLOOR = 20
"""Lowest alpha of a focus tube, as published: what is cold stays just visible."""


def lut(name: str) -> Lut:
    """A matplotlib colour map as 256 RGB colours.

    Raises:
        OptionError: no colour map of that name; the nearest are named.
    """
    return _lut(name).copy()


@lru_cache(maxsize=32)
def _lut(name: str) -> Lut:
    if name not in colormaps:
        raise OptionError(f"unknown colour map {name!r}{nearest(name, list(colormaps))}")
    rgba: np.ndarray = colormaps[name](np.arange(256), bytes=True)
    table: np.ndarray = rgba[:, :3].copy()
    return table


def published_jet() -> Lut:
    """The jet of the published overlays (OpenCV's): `383 - |4 i - 255 k|` cut to 0..255, k = 3, 2, 1.

    Matplotlib's jet has other break points and is up to 34 of 255 away.
    """
    i = np.arange(256)[:, None]
    table: np.ndarray = np.clip(383 - np.abs(4 * i - 255 * np.array([3, 2, 1])), 0, 255).astype(np.uint8)
    return table


def levels(heat: Heat) -> UInt8[np.ndarray, "h w"]:
    """`floor(255 heat)`, the index into a table of 256 colours; 0 where heat is NaN."""
    index: np.ndarray = (np.nan_to_num(heat) * 255).astype(np.uint8)
    return index


def weights(alpha: float) -> UInt8[np.ndarray, "256"]:
    """Opacity (0..255) of each of the 256 levels of a heat tube: nothing when cold, `alpha` when hot.

    Opacity rises as a smooth step from heat 0.2 to 0.8: what is cold stays as it was filmed, and of a signed
    map, whose zero usually lies in the lower middle, the background is hardly tinted.

    Raises:
        OptionError: alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha must be in [0, 1], not {alpha}")
    u = np.clip((np.arange(256) / 255 - 0.2) / 0.6, 0, 1)
    return np.round(255 * alpha * u * u * (3 - 2 * u)).astype(np.uint8)


def heat_tube(frame: Frame, heat: Heat, colours: Lut, alpha: float = ALPHA) -> Frame:
    """The picture under colours whose opacity grows with heat (see `weights`)."""
    index = levels(heat)
    mask = weights(alpha)[index]
    mask[np.isnan(heat)] = 0
    painted = _painted(index, colours)
    return _picture(Image.composite(painted, Image.fromarray(frame), Image.fromarray(mask)))


def paper_tube(frame: Frame, heat: Heat, colours: Lut | None = None) -> Frame:
    """The published overlay: `jet // 2 + frame // 2`, everywhere."""
    table = (published_jet() if colours is None else colours) >> 1
    half = _picture(_painted(levels(heat), table))
    np.add(half, frame >> 1, out=half)
    outside = np.isnan(heat)
    if outside.any():
        half[outside] = frame[outside]
    return half


def focus_tube(frame: Frame, heat: Heat) -> Rgba:
    """The picture with heat as its alpha channel: `round(20 + 235 heat)`; 20 where the model did not look.

    As published, with the heat scaled over the clip instead of frame by frame.
    """
    alpha = np.floor(np.nan_to_num(heat) * (255 - FLOOR) + (FLOOR + 0.5)).astype(np.uint8)
    out = np.empty((*frame.shape[:2], 4), dtype=np.uint8)
    out[..., :3] = frame
    out[..., 3] = alpha
    return out


def over_black(frame: Rgba) -> Frame:
    """A picture with alpha laid on black: for containers that carry no alpha."""
    h, w, _ = frame.shape
    black = Image.new("RGB", (w, h))
    picture = Image.fromarray(np.ascontiguousarray(frame[..., :3]))
    return _picture(Image.composite(picture, black, Image.fromarray(np.ascontiguousarray(frame[..., 3]))))


def contour_tube(frame: Frame, heat: Heat, colours: Lut, at: Sequence[float] = LEVELS) -> Frame:
    """Lines of equal heat at the levels `at`, in their colours, in a thin dark casing.

    A pixel's distance from the line is `|heat - level| / |gradient|`, worked out only near the places where
    the heat crosses the level. Lines are anti-aliased, but opaque over their whole width: half of a blue line
    over orange would be grey.

    Raises:
        OptionError: a level outside (0, 1).
    """
    if not all(0 < level < 1 for level in at):
        raise OptionError(f"contour levels must lie between 0 and 1, got {list(at)}")
    width = line_width(frame.shape[0], frame.shape[1])
    out = frame.copy()
    for level in sorted(at):
        y, x, distance = _near(heat, level, reach=int(np.ceil(width / 2)) + 2)
        if len(y):
            casing = np.clip(width / 2 + 1.5 - distance, 0, 1)[:, None] * 0.5
            line = np.clip(width / 2 + 1 - distance, 0, 1)[:, None]
            pixels = out[y, x] * (1 - casing)
            out[y, x] = np.round(pixels * (1 - line) + colours[int(level * 255)] * line).astype(np.uint8)
    return out


def line_width(h: int, w: int) -> float:
    """Pixels of a line that looks alike on small and on large frames: 1 up to 360 lines, 3 at 1080."""
    return max(1.0, min(h, w) / 360)


def _near(heat: Heat, level: float, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels within `reach` of where heat crosses `level`, and their distance from the line in pixels."""
    hot = heat >= level  # False outside the crop, so its edge must not count as a crossing
    seen = ~np.isnan(heat)
    cross = np.zeros_like(hot)
    cross[:, :-1] |= (hot[:, 1:] != hot[:, :-1]) & seen[:, 1:] & seen[:, :-1]
    cross[:-1] |= (hot[1:] != hot[:-1]) & seen[1:] & seen[:-1]
    for _ in range(reach):
        grown = cross.copy()
        grown[1:] |= cross[:-1]
        grown[:-1] |= cross[1:]
        grown[:, 1:] |= cross[:, :-1]
        grown[:, :-1] |= cross[:, 1:]
        cross = grown
    y, x = np.nonzero(cross & seen)
    steep = np.maximum(np.hypot(_slope(heat, y, x, 1, 0), _slope(heat, y, x, 0, 1)), 1e-6)
    return y, x, np.abs(heat[y, x] - level) / steep


def _slope(heat: Heat, y: np.ndarray, x: np.ndarray, down: int, across: int) -> np.ndarray:
    """Heat a pixel along one axis; at an edge of the frame or of the crop from the one side that is there."""
    h, w = heat.shape
    here = heat[y, x]
    before = heat[np.maximum(y - down, 0), np.maximum(x - across, 0)]
    after = heat[np.minimum(y + down, h - 1), np.minimum(x + across, w - 1)]
    ahead, behind = after - here, here - before
    sides = np.stack([ahead, behind])
    there = np.isfinite(sides) & np.stack(
        [np.where(down, y < h - 1, x < w - 1), np.where(down, y > 0, x > 0)]
    )
    slope: np.ndarray = np.where(there, sides, 0).sum(0) / np.maximum(there.sum(0), 1)
    return slope


def mark_crop(frame: np.ndarray, box: Box, size: tuple[int, int]) -> None:
    """Outline, in place, the part of the frame that the model saw; edges that are the frame's are left out.

    The line lies just outside the part, so that nothing the model saw is hidden: light, 1 pixel (3 on 1080
    lines), with a dark neighbour that keeps it visible on a bright picture.

    Args:
        frame: RGB or RGBA.
        box: the part, in pixels of the displayed source frame.
        size: height and width of that source frame.
    """
    h, w, channels = frame.shape
    # as in Explanation.at, a pixel belongs to the part when its centre lies in it
    top, bottom = ceil(box.top * h / size[0] - 0.5), floor((box.top + box.height) * h / size[0] + 0.5)
    left, right = ceil(box.left * w / size[1] - 0.5), floor((box.left + box.width) * w / size[1] + 0.5)
    line = max(1, round(line_width(h, w)))

    def ring(near: int, far: int) -> list[tuple[slice, slice]]:
        """The four sides of a frame around the part, from `near` to `far` pixels off; may be empty."""
        t0, t1, b0, b1 = (min(max(y, 0), h) for y in (top - far, top - near, bottom + near, bottom + far))
        l0, l1, r0, r1 = (min(max(x, 0), w) for x in (left - far, left - near, right + near, right + far))
        return [
            (slice(t0, t1), slice(l0, r1)),
            (slice(b0, b1), slice(l0, r1)),
            (slice(t1, b0), slice(l0, l1)),
            (slice(t1, b0), slice(r0, r1)),
        ]

    for sides, value, share in ((ring(0, line), 255, 0.8), (ring(line, 2 * line), 0, 0.45)):
        for side in sides:
            part = frame[side]
            part[..., :3] = np.round(part[..., :3] * (1 - share) + value * share).astype(np.uint8)
            if channels == 4:
                part[..., 3] = np.maximum(part[..., 3], round(255 * share))


def _painted(index: UInt8[np.ndarray, "h w"], colours: Lut) -> Image.Image:
    """A table look-up in C: an indexed picture, turned to RGB."""
    picture = Image.fromarray(np.ascontiguousarray(index))
    picture.putpalette(colours.tobytes())  # turns it from grey to indexed
    return picture.convert("RGB")


def painted(index: UInt8[np.ndarray, "h w"], colours: Lut) -> Frame:
    """The colours of a table at `index`."""
    return _picture(_painted(index, colours))


def _picture(image: Image.Image) -> Frame:
    """A writable array of a Pillow picture."""
    return np.array(image)
