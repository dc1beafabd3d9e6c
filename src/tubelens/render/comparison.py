"""The contact sheet of several networks: a row a network, a column a target, in each cell a few frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tubelens.explanation import Explanation
from tubelens.methods import brief, short_name
from tubelens.render import colour
from tubelens.render.arrange import Cell, grouped, names, network_names, network_of
from tubelens.render.caption import caption_of
from tubelens.render.heads import Head, heads
from tubelens.render.look import Look
from tubelens.render.paper import DPI, INK, SOFT, Row, colour_bar, pictures_of, quiet, write
from tubelens.render.source import Moments, On, open_source, over_time
from tubelens.render.spectra import views as views_of
from tubelens.video import source_name

_LEFT, _RIGHT, _GAP, _BETWEEN = 0.12, 0.72, 0.03, 0.16
_TOP, _HEAD, _NAME, _CURVE, _REST = 0.78, 0.24, 0.19, 0.2, 0.16
_HEAT = "#1b6ca8"
NOT_SEEN = "not seen"
_NOT_SEEN: dict[str, Any] = {"fontsize": 7, "color": "white", "bbox": {"color": "#00000099", "pad": 2}}


def comparison(
    many: Sequence[Explanation], how: Look, frames: int, on: On = None, width: float = 12.0
) -> Figure:
    """Several networks on one video, as one figure.

    The first row is the video; below, a row a network (and method): what it predicted and how its maps agree,
    then in each cell the target, a few frames with the heat, and the mean heat over time (of its highest).

    Args:
        many: explanations of one video by several networks.
        how: styles and colours; several styles are further cells.
        frames: of the video, in a row: they are shared among the columns, three in each at least.
        on: what to draw on, in place of the source.
        width: inches.
    """
    cells: list[Cell] = [(i, style) for i in range(len(many)) for style in how.styles]
    bare = grouped(many, cells)
    titles = _titles(many)
    first = many[0].source
    with open_source(first, on) as video:
        moments = Moments.of(video, many)
        views = views_of(video, many, moments.indices, how.spectra, how.palette)
        how = how.on(views)
        table = [[(cell, v) for cell in row for v in range(len(views))] for row in bare]
        columns = max(map(len, table))
        shown = moments.spread(max(3, frames // columns) if frames > 2 else frames)
        n = len(shown.times)
        cell_w = min((width - _LEFT - _RIGHT - (columns - 1) * _BETWEEN) / columns, n * 2.6)
        w = cell_w / n - _GAP
        h = w * first.size[0] / first.size[1]
        every = [Row("original", view=v) for v in range(len(views))]
        spread = [(cell, v) for cell in cells for v in range(len(views))]
        every += [Row(style, many[i or 0], style, v) for (i, style), v in spread]
        size = (max(1, round(h * DPI)), max(1, round(w * DPI)))
        drawn = pictures_of(video, shown, many, every, how, size, views)
    pictures = dict(zip(spread, drawn[len(views) :], strict=True))
    curve = _CURVE if len(moments.times) > 1 else 0.0
    row_h = _HEAD + _NAME + h + curve + _REST
    sizes = (
        _LEFT + columns * cell_w + (columns - 1) * _BETWEEN + _RIGHT,
        _TOP + h + 0.22 + len(table) * row_h + (0.12 if curve else 0.0),
    )
    sheet = Figure(figsize=sizes, dpi=DPI, facecolor="white")
    FigureCanvasAgg(sheet)

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        w, h = sizes
        return sheet.add_axes((left / w, 1 - (top + high) / h, wide / w, high / h))

    def strip(column: int, top: float, frames: Sequence[np.ndarray]) -> list[Axes]:
        left = _LEFT + column * (cell_w + _BETWEEN)
        found = [axes(left + i * (w + _GAP), top, w, h) for i in range(n)]
        for ax, picture in zip(found, frames, strict=True):
            ax.imshow(picture, aspect="auto", interpolation="antialiased")
            ax.set_axis_off()
        return found

    with quiet():
        _title(sheet, many)
    for c in range(columns):
        for ax, seconds in zip(strip(c, _TOP, drawn[c % len(views)]), shown.times, strict=True):
            ax.set_title(f"{seconds:.2f} s", fontsize=7 if w < 0.8 else 8, color=SOFT, pad=2.5)
    span = moments.spread(300).times
    for r, (row, (head,)) in enumerate(zip(table, heads(many, bare), strict=True)):
        top = _TOP + h + 0.22 + r * row_h
        with quiet():
            _write_head(sheet, head, top, sizes[0] - _LEFT - 0.1)
        for c, ((i, style), v) in enumerate(row):
            e = many[i or 0]
            left = _LEFT + c * (cell_w + _BETWEEN)
            name = titles[i or 0] + (f" ({style})" if len(how.styles) > 1 else "")
            name += f", {views[v].name}" if views[v].name else ""
            with quiet():
                _write_cell(sheet, e, name, left, top + _HEAD, cell_w)
            for ax, seconds in zip(
                strip(c, top + _HEAD + _NAME, pictures[(i, style), v]), shown.times, strict=True
            ):
                if not saw(e, seconds):
                    ax.text(0.5, 0.5, NOT_SEEN, transform=ax.transAxes, ha="center", va="center", **_NOT_SEEN)
            if curve:
                ax = axes(left, top + _HEAD + _NAME + h + 0.03, cell_w - _GAP, curve - 0.03)
                _curve(ax, over_time(e, span), span, shown.times, last=r == len(table) - 1)
    if any(style in ("heat", "paper", "contour") for style in how.styles):
        left = _LEFT + columns * cell_w + (columns - 1) * _BETWEEN + 0.06
        table_of_colours = colour.published_jet() if how.styles == ("paper",) and not how.own else how.colours
        bar = axes(left, _TOP + h + 0.22 + _HEAD + _NAME, 0.11, max(h, 0.5))
        colour_bar(sheet, bar, table_of_colours, many)
    return sheet


def saw(e: Explanation, seconds: float) -> bool:
    """Whether the frame shown at that moment lies within what the network was given."""
    (start, end), half = e.source.span, 0.5 / e.source.fps
    return start - half <= seconds <= end + half


def _titles(many: Sequence[Explanation]) -> list[str]:
    return names(many, [caption_of(e).label for e in many], both=True)


def _title(sheet: Figure, many: Sequence[Explanation]) -> None:
    """What is compared on which video."""
    wide = sheet.get_figwidth() - _LEFT - 0.1
    labels = ", ".join(dict.fromkeys(caption_of(e).label for e in many))
    write(sheet, labels, _LEFT, 0.12, wide, size=13, weight="bold")
    written = list(dict.fromkeys(e.provenance.method for e in many))
    networks = list(dict.fromkeys(map(network_of, many)))
    path = many[0].source.path
    parts = [
        ", ".join(map(brief if len(written) == 1 else short_name, written)),
        ", ".join(
            f"{name} ({weights})" if "(" not in name else name
            for name, (_, weights) in zip(network_names(networks), networks, strict=True)
        ),
        source_name(path) if path else "",
    ]
    write(sheet, " · ".join(part for part in parts if part), _LEFT, 0.38, wide, size=8, color=SOFT)


def _write_head(sheet: Figure, head: Head, top: float, wide: float) -> None:
    end = write(sheet, head.name, _LEFT, top + 0.03, wide, size=10.5, weight="bold")
    for text, ink in [(head.predicted, INK), *((text, SOFT) for text in head.agreements)]:
        room = _LEFT + wide - end - 0.2
        if text and room > 0.6:
            end = write(sheet, text, end + 0.2, top + 0.045, room, size=9, color=ink)


def _write_cell(sheet: Figure, e: Explanation, name: str, left: float, top: float, wide: float) -> None:
    """The target and its probability."""
    said = caption_of(e)
    value = f"{said.value}{' · predicted' if said.top else ''}"
    end = write(sheet, name, left, top + 0.02, wide * 0.7, size=8.5, weight="bold")
    if value:
        write(sheet, value, end + 0.08, top + 0.02, left + wide - end - 0.08, size=8.5)


def _curve(ax: Axes, values: np.ndarray, times: Sequence[float], shown: Sequence[float], last: bool) -> None:
    """Mean heat over time, and where the shown frames are."""
    ax.fill_between(times, 0, values, color=_HEAT, alpha=0.35, linewidth=0)
    for seconds in shown:
        ax.axvline(seconds, color=SOFT, linewidth=0.6)
    ax.set_xlim(times[0], times[-1])
    ax.set_ylim(0, float(values.max()) * 1.05 or 1)
    ax.set_yticks([])
    ax.set_xticks([])
    if last:
        ax.set_xlabel("mean heat over time", fontsize=7, color=SOFT, labelpad=2)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_linewidth(0.5)
