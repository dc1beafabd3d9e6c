"""How a drawing looks: its styles, its colours, and what stands beside and below the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tubelens.errors import OptionError, nearest
from tubelens.render import colour, palettes
from tubelens.render.spectra import EACH, View, heat_colours


@dataclass(frozen=True)
class Look:
    """How frames are drawn; made by `look`, which checks it.

    Attributes:
        styles: what each explanation is drawn as; several are columns.
        beside: the original is the first column.
        caption: label, probability, predicted class and time at the bottom.
        strip: mean heat over time at the very bottom.
        colours: table of the colour map. `own`: the user chose it, so that it also replaces the paper's jet,
            and holds on every palette.
        alpha: opacity of the hottest colour.
        rgba: frames keep an alpha channel (focus).
        palette: of pictures of one band; None: not chosen.
        spectra: which pictures of a source of several spectra are drawn.
    """

    styles: tuple[str, ...]
    beside: bool
    caption: bool
    strip: bool
    colours: colour.Lut
    own: bool
    alpha: float
    rgba: bool
    palette: str | None = None
    spectra: str = EACH

    def on(self, shown: Sequence[View]) -> Look:
        """The same, heat in colours that stay legible on these views."""
        if self.own:
            return self
        return replace(self, colours=heat_colours(shown, self.palette, self.spectra))


def _heat(frame: colour.Frame, heat: colour.Heat, look: Look) -> np.ndarray:
    return colour.heat_tube(frame, heat, look.colours, look.alpha)


def _paper(frame: colour.Frame, heat: colour.Heat, look: Look) -> np.ndarray:
    return colour.paper_tube(frame, heat, look.colours if look.own else None)


def _focus(frame: colour.Frame, heat: colour.Heat, look: Look) -> np.ndarray:
    tube = colour.focus_tube(frame, heat)
    return tube if look.rgba else colour.over_black(tube)


def _contour(frame: colour.Frame, heat: colour.Heat, look: Look) -> np.ndarray:
    return colour.contour_tube(frame, heat, look.colours)


STYLES: dict[str, Callable[[colour.Frame, colour.Heat, Look], np.ndarray]] = {
    "heat": _heat,
    "paper": _paper,
    "focus": _focus,
    "contour": _contour,
}
"""Name of a style -> how it draws heat on a frame."""


def look(
    style: str | Sequence[str] = "heat",
    *,
    beside: bool = False,
    caption: bool = True,
    strip: bool = True,
    colormap: str | None = None,
    alpha: float | None = None,
    rgba: bool = False,
    palette: str | None = None,
    spectra: str = EACH,
) -> Look:
    """The drawing options, checked; `spectra` is checked when the source is open.

    Raises:
        OptionError: unknown style, colour map or palette (the nearest are named), alpha outside [0, 1].
    """
    styles = (style,) if isinstance(style, str) else tuple(style)
    for name in styles:
        if name not in STYLES:
            raise OptionError(f"unknown style {name!r}{nearest(name, STYLES)}: one of {', '.join(STYLES)}")
    if not styles:
        raise OptionError(f"no style given: one of {', '.join(STYLES)}")
    opacity = colour.ALPHA if alpha is None else float(alpha)
    colour.weights(opacity)  # checks it
    table = colour.lut(colormap or colour.COLORMAP)
    if palette is not None:
        palettes.palette(palette)  # checks it
    own = colormap is not None
    return Look(styles, beside, caption, strip, table, own, opacity, rgba, palette, spectra)
