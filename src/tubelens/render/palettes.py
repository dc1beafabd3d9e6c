"""Palettes for pictures of one band, and colours of heat that stay legible on them.

A palette turns the grey of a picture into colours, as thermal cameras do. Lightness never falls along one (it
never rises along `black-hot`), so that what is warmer also looks brighter, in print and to colour-blind eyes.

Heat in the usual map, turbo, stands out on greys, but not on the oranges and reds of `inferno` and `iron`:
there an orange spot is a warm hand as well as a hot cell. On these, heat is drawn in `GLACIER`, light blue to
cyan to green: neither of them has cyan or green, and the blue of `iron` is a dark one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from tubelens.errors import OptionError, nearest
from tubelens.render import colour

PALETTES = ("white-hot", "black-hot", "inferno", "iron")
"""Names of palettes; the first leaves a picture as it is."""
IRON = (
    (0.00, (0, 0, 0)),
    (0.12, (0, 0, 150)),
    (0.28, (110, 0, 200)),
    (0.40, (205, 15, 90)),
    (0.50, (245, 80, 0)),
    (0.65, (255, 145, 0)),
    (0.80, (255, 205, 10)),
    (0.90, (255, 240, 110)),
    (1.00, (255, 255, 255)),
)
"""Black, deep blue, violet, red, orange, yellow, white: the ironbow of thermal cameras, bluer than inferno in
the cold, and orange from the middle on."""
GLACIER = (
    (0.00, (0, 60, 170)),
    (0.40, (0, 140, 235)),
    (0.60, (0, 180, 240)),
    (0.80, (0, 215, 220)),
    (1.00, (0, 255, 130)),
)
"""Heat on inferno and iron."""

Stops = Sequence[tuple[float, tuple[int, int, int]]]


def palette(name: str) -> colour.Lut:
    """A palette as 256 RGB colours.

    Raises:
        OptionError: no palette of that name; the nearest is named.
    """
    if name not in PALETTES:
        raise OptionError(f"unknown palette {name!r}{nearest(name, PALETTES)}: one of {', '.join(PALETTES)}")
    if name == "inferno":
        return colour.lut("inferno")
    if name == "iron":
        return _table(IRON).copy()
    grey = np.arange(256, dtype=np.uint8)
    return np.stack([grey if name == "white-hot" else 255 - grey] * 3, axis=1)


def heat_on(name: str) -> colour.Lut:
    """The colours of heat on pictures in that palette, unless the user chooses others.

    Hot (0.8 to 1) over any level of its palette, each differs from the bare palette by a CIEDE2000 of more
    than 20, some nine just noticeable differences: no grey or warm colour is taken for heat. Turbo, which
    keeps this on greys, comes down to 1.5 on inferno.
    """
    return _table(GLACIER).copy() if name in ("inferno", "iron") else colour.lut(colour.COLORMAP)


def luma(picture: colour.Frame) -> np.ndarray:
    """Brightness of every pixel, `(h, w)` uint8 (BT.601); that of a grey picture is its grey."""
    return np.array(Image.fromarray(picture).convert("L"))


def tinted(picture: colour.Frame, table: colour.Lut) -> colour.Frame:
    """The brightness of a picture in the colours of a palette."""
    return colour.painted(luma(picture), table)


def overlaid(below: colour.Frame, above: colour.Frame) -> colour.Frame:
    """One picture laid over the brightness of another, half of each: `(grey + above + 1) // 2`."""
    total = above.astype(np.uint16) + luma(below)[..., None] + 1
    half: np.ndarray = (total >> 1).astype(np.uint8)
    return half


@lru_cache(maxsize=4)
def _table(stops: Stops) -> colour.Lut:
    """256 colours, linear between the stops."""
    places, colours = [place for place, _ in stops], np.array([rgb for _, rgb in stops], dtype=float)
    share = np.arange(256) / 255
    channels = [np.interp(share, places, colours[:, c]) for c in range(3)]
    table: np.ndarray = np.round(np.stack(channels, axis=1)).astype(np.uint8)
    return table
