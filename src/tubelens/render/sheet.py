"""The contact sheet: an explanation as one figure, for papers and notebooks.

Sizes are inches, worked out from the shape of the frames; nothing is left to a layout engine, so that the
pictures keep their exact proportions. No part of it touches pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.methods import brief, short_name
from tubelens.render import colour
from tubelens.render.arrange import names, network_of
from tubelens.render.caption import caption_of, probability
from tubelens.render.comparison import comparison
from tubelens.render.look import look
from tubelens.render.paper import (
    DPI,
    INK,
    SOFT,
    Row,
    colour_bar,
    pictures_of,
    pixels,
    quiet,
    upright_name,
    write,
)
from tubelens.render.source import Many, Moments, On, as_list, open_source, over_time
from tubelens.render.spectra import EACH, View, band_rows
from tubelens.render.spectra import views as views_of
from tubelens.video import source_name

__all__ = ["DPI", "figure", "pixels"]

_LINES = ("#1b6ca8", "#d1495b", "#2a9d5c", "#8f5bb0", "#c97b12", "#3c3c3c")
HEATED = ("heat", "paper", "contour")
"""Styles that a colour bar explains."""
LEGEND = len(_LINES)
"""So many curves have a legend; of more, the names of the rows have the curves' colours."""
_LEFT, _RIGHT, _GAP = 0.42, 0.78, 0.045
_HEAD, _CURVE, _FOOT = 0.82, 0.85, 0.42
_BAR_TITLE = 0.3


def figure(
    explanations: Many,
    *,
    style: str | Sequence[str] | None = None,
    frames: int = 8,
    colormap: str | None = None,
    alpha: float | None = None,
    on: On = None,
    width: float = 12.0,
    palette: str | None = None,
    spectra: str = EACH,
) -> Figure:
    """A contact sheet: frames spread over the explained span, the heat on them, and the heat over time.

    Several networks are a table, a row a network and a column a target, with a few of the frames in each.
    Several spectra are a row each; where a map tells the bands apart, the map of each band follows in a row
    of its own, on the spectrum it belongs to, all in one scale.

    Args:
        explanations: one, or several of one video.
        style: rows below the original; by default heat, focus and contour for one explanation, and heat for
            each of several, on several spectra, or of several bands.
        frames: columns.
        colormap: name of a matplotlib colour map.
        alpha: opacity of the hottest colour, in [0, 1].
        on: draw on this path, `(t, h, w, c)` array or clip, in place of the source.
        width: inches.
        palette: of pictures of one band: `white-hot`, `black-hot`, `inferno` or `iron`.
        spectra: of a source of several spectra: `each`, the `first`, the `overlay`, or the name of one.

    Returns:
        A figure with an Agg canvas; `savefig` writes it as PNG, PDF or SVG.

    Raises:
        OptionError: unknown style, colour map, palette or spectrum, explanations of different videos, fewer
            than one frame.
        VideoError: the source is gone or has changed.
    """
    many = as_list(explanations)
    if frames < 1:
        raise OptionError(f"a contact sheet needs at least one frame, not {frames}")
    how = look(style or "heat", colormap=colormap, alpha=alpha, palette=palette, spectra=spectra)
    if len({network_of(e) for e in many}) > 1:
        return comparison(many, how, frames, on, width)
    with open_source(many[0].source, on) as video:
        moments = Moments.of(video, many)
        views = views_of(video, many, moments.indices, spectra, palette)
        how = how.on(views)
        if style is None and len(many) == len(views) == 1 and not many[0].by_band:
            how = replace(how, styles=("heat", "focus", "contour"))
        rows = _rows(many, how.styles, views)
        shown = moments.spread(frames)
        columns = len(shown.times)
        cell_w = min((width - _LEFT - _RIGHT) / columns - _GAP, 3.2)
        h, w = many[0].source.size
        cell_h = cell_w * h / w
        size = (max(1, round(cell_h * DPI)), max(1, round(cell_w * DPI)))
        pictures = pictures_of(video, shown, many, rows, how, size, views)
    pictures_h = len(rows) * (cell_h + _GAP)
    curve_h = _CURVE if len(moments.times) > 1 else 0.0
    total_w = _LEFT + columns * (cell_w + _GAP) + _RIGHT
    total_h = _HEAD + pictures_h + (curve_h + _FOOT + 0.3 if curve_h else 0.1)
    sheet = Figure(figsize=(total_w, total_h), dpi=DPI, facecolor="white")
    FigureCanvasAgg(sheet)

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        return sheet.add_axes((left / total_w, 1 - (top + high) / total_h, wide / total_w, high / total_h))

    path = many[0].source.path
    with quiet():
        _title(sheet, many, source_name(path) if path else "")
    unnamed = len(many) > LEGEND
    lines = dict(zip(map(id, many), _line_colours(len(many)), strict=True))
    bars = _bars(rows)
    for r, row in enumerate(rows):
        for c, seconds in enumerate(shown.times):
            ax = axes(_LEFT + c * (cell_w + _GAP), _HEAD + r * (cell_h + _GAP), cell_w, cell_h)
            ax.imshow(pictures[r][c], aspect="auto", interpolation="antialiased")
            ax.set_axis_off()
            if r == 0:
                ax.set_title(f"{seconds:.2f} s", fontsize=8, color=SOFT, pad=3)
        with quiet():
            ink = lines[id(row.explanation)] if unnamed and row.explanation is not None else INK
            upright_name(sheet, row.name, _LEFT, _HEAD + r * (cell_h + _GAP) + cell_h / 2, cell_h, ink)
        if r in bars:
            jet = row.style == "paper" and not how.own and all(rows[b].style == "paper" for b in bars)
            title = _BAR_TITLE if len(bars) > 1 else 0.0  # the one above would be written over
            place = (_LEFT + columns * (cell_w + _GAP) + 0.06, _HEAD + r * (cell_h + _GAP) + title)
            whose = [row.explanation] if len(many) == 1 and row.explanation is not None else many
            bar = axes(*place, 0.11, max(cell_h - 1.2 * title, 0.5 - title))
            colour_bar(sheet, bar, colour.published_jet() if jet else how.colours, whose, bars[r])
    if curve_h:
        wide = columns * (cell_w + _GAP) - _GAP
        ax = axes(_LEFT, _HEAD + pictures_h + 0.26, wide, curve_h)
        _curves(ax, many, moments.spread(600).times, shown.times, wide)
    return sheet


def _rows(many: Sequence[Explanation], styles: Sequence[str], views: Sequence[View]) -> list[Row]:
    """The originals; each explanation in each style on each view; below it, the maps of its bands."""
    several = len(many) > 1
    titles = names(many, [caption_of(e).label for e in many])
    rows = [Row(view.name or "original", view=v) for v, view in enumerate(views)]
    for e, title in zip(many, titles, strict=True):
        for style in styles:
            name = title + (f" ({style})" if len(styles) > 1 else "") if several else style
            for v, view in enumerate(views):
                rows.append(Row(f"{name}, {view.name}" if view.name else name, e, style, v))
        if e.by_band:
            for band, own, v in band_rows(e, views):
                rows.append(
                    Row(
                        f"{title}, heat of {band}" if several else f"heat of {band}",
                        own,
                        styles[0],
                        v,
                        band=True,
                    )
                )
    return rows


def _bars(rows: Sequence[Row]) -> dict[int, str]:
    """Rows that have a colour bar, and what stands above it: the first with heat, the first of a band."""
    bars: dict[int, str] = {}
    for title, band in (("heat", False), ("one band's\nheat", True)):
        heated = [r for r, row in enumerate(rows) if row.style in HEATED and row.band is band]
        if heated:
            bars[heated[0]] = title
    return bars


# ── around the pictures ──────────────────────────────────────────────────────────────────────────────────


def _title(sheet: Figure, many: Sequence[Explanation], video: str) -> None:
    """Two lines at the top left: the target with its probability, and how the map was made."""
    p = many[0].provenance
    wide = sheet.get_figwidth() - _LEFT - 0.1
    captions = [caption_of(e) for e in many]
    if len({c.label for c in captions}) == 1:
        name, after = captions[0].label, captions[0].line[len(captions[0].label) :].strip(" ·")
    else:
        name = ", ".join(dict.fromkeys(c.label for c in captions))
        after = f"predicted: {p.predicted[0][0]} {probability(p.predicted[0][1])}" if p.predicted else ""
    title = write(sheet, name, _LEFT, 0.14, wide * (0.55 if after else 1), size=13, weight="bold")
    if after:
        write(sheet, after, title + 0.16, 0.175, wide + _LEFT - title - 0.16, size=10.5, color=SOFT)
    written = list(dict.fromkeys(e.provenance.method for e in many))
    methods = ", ".join(map(brief if len(written) == 1 else short_name, written))
    layers = ", ".join(dict.fromkeys(f"layer {e.provenance.layer}" for e in many if e.provenance.layer))
    made = " · ".join(part for part in (methods, f"{p.model} ({p.weights})", layers, video) if part)
    write(sheet, made, _LEFT, 0.40, wide, size=8, color=SOFT)


def _line_colours(n: int) -> list[str]:
    if n <= LEGEND:
        return list(_LINES[:n])
    colours = (colormaps["turbo"](0.05 + 0.9 * i / (n - 1)) for i in range(n))
    return [to_hex((0.75 * r, 0.75 * g, 0.75 * b)) for r, g, b, _ in colours]  # dark enough on white


def _curves(
    ax: Axes, many: Sequence[Explanation], times: Sequence[float], shown: Sequence[float], wide: float
) -> None:
    """Mean heat over time, and where the shown frames are; the axes are `wide` inches wide."""
    top = 0.0
    letters = max(8, int(wide / len(many) / 0.08) - 12)
    titles = names(many, [caption_of(e).label for e in many])
    lines = _line_colours(len(many))
    one_target = len({e.provenance.label for e in many}) == 1 < len(many)
    for number, (e, title) in enumerate(zip(many, titles, strict=True)):
        values = over_time(e, times)
        if one_target and values.max() > 0:
            values = values / values.max()  # mean heats of different methods do not compare
        top = max(top, float(values.max()))
        line = lines[number]
        name = title if len(title) <= letters else title[: letters - 1].rstrip() + "…"
        name = name if one_target else f"{name} {caption_of(e).value}"
        ax.plot(times, values, color=line, linewidth=1.3, label=name, zorder=3)
        if len(many) == 1:
            ax.fill_between(times, 0, values, color=line, alpha=0.15, linewidth=0, zorder=2)
        dots = np.interp(shown, times, values)
        ax.plot(shown, dots, "o", color=line, markersize=3.5, zorder=4, clip_on=False)
    for seconds in shown:
        ax.axvline(seconds, color="#b5b5b5", linewidth=0.7, zorder=1)
    ax.set_xlim(times[0], times[-1])
    ax.set_ylim(0, top * 1.15 or 1)
    ax.set_xlabel("seconds", fontsize=8, color=SOFT, labelpad=2)
    ax.set_title(
        "mean heat, each of its highest" if one_target else "mean heat",
        loc="left",
        fontsize=8,
        color=SOFT,
        pad=3,
    )
    ax.tick_params(labelsize=7, colors=SOFT, length=2, width=0.5)
    ax.locator_params(axis="y", nbins=3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_linewidth(0.5)
    if 1 < len(many) <= LEGEND:
        plain: dict[str, Any] = {"frameon": False, "handlelength": 1.2, "borderpad": 0, "borderaxespad": 0.3}
        key = ax.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=len(many), fontsize=8, **plain)
        for text in key.get_texts():
            text.set_parse_math(False)
