"""What contact sheets are made of: pictures with heat, text cut to its room, the colour bar."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from tubelens.explanation import Explanation, scaled
from tubelens.render import colour
from tubelens.render.look import STYLES, Look
from tubelens.render.source import EPSILON, Moments, enlargement, fit_to
from tubelens.render.spectra import View
from tubelens.video import Frames

DPI = 200
INK, SOFT = "#1a1a1a", "#666666"


@dataclass(frozen=True)
class Row:
    """One row of pictures.

    Attributes:
        name: what it is called.
        explanation: whose heat it shows; None: the original.
        style: in which style.
        view: number of the view it shows the heat on.
        band: it is one of the maps of single bands, which share a scale.
    """

    name: str
    explanation: Explanation | None = None
    style: str = "original"
    view: int = 0
    band: bool = False


def pixels(sheet: Figure) -> np.ndarray:
    """The figure drawn at its own resolution, `(h, w, 3)` uint8."""
    canvas = FigureCanvasAgg(sheet)
    with quiet():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def quiet() -> Iterator[None]:
    """A label may hold letters that the font lacks: they become boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def pictures_of(
    video: Frames,
    shown: Moments,
    many: Sequence[Explanation],
    rows: Sequence[Row],
    how: Look,
    size: tuple[int, int],
    views: Sequence[View] = (View(),),
) -> list[list[np.ndarray]]:
    """Every picture of the sheet, row by row, `(h, w, 3)`; small frames are enlarged to `size` or more."""
    size = _whole(video.size, size)
    every = list(
        {id(row.explanation): row.explanation for row in rows if row.explanation is not None}.values()
    )
    maps = [e.at(shown.times, size) for e in every]
    pictures: list[list[np.ndarray]] = [[] for _ in rows]
    for (_, seconds, frame), *saliency in zip(video.pick(shown.indices), *maps, strict=True):
        seen = [fit_to(view.of(frame), size) for view in views]
        heat = {
            id(e): _within(e, seconds, scaled(s, *e.limits).detach().cpu().numpy())
            for e, s in zip(every, saliency, strict=True)
        }
        for cells, row in zip(pictures, rows, strict=True):
            if row.explanation is None:
                cells.append(seen[row.view])
                continue
            picture = STYLES[row.style](seen[row.view], heat[id(row.explanation)], how)
            colour.mark_crop(picture, row.explanation.source.box, row.explanation.source.size)
            cells.append(picture)
    return pictures


def _whole(full: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size, or for small frames the next whole multiple of theirs."""
    if enlargement(full) == 1:
        return size
    factor = max(1, *(-(-n // m) for n, m in zip(size, full, strict=True)))
    return full[0] * factor, full[1] * factor


def _within(explanation: Explanation, seconds: float, heat: np.ndarray) -> np.ndarray:
    """The heat, NaN where the explanation does not speak for that moment."""
    start, end = explanation.source.span
    return heat if start - EPSILON <= seconds <= end + EPSILON else np.full_like(heat, np.nan)


def write(sheet: Figure, text: str, left: float, top: float, room: float, size: float, **look: Any) -> float:
    """Text at inches from the left and the top, cut to `room` inches; returns where it ends, in inches."""
    w, h = sheet.get_size_inches()
    look = {"color": INK, **look}
    artist = sheet.text(left / w, 1 - top / h, text, fontsize=size, va="top", parse_math=False, **look)
    while (end := artist.get_window_extent().x1 / sheet.dpi) > left + room and len(text) > 1:
        text = text[: max(1, int((len(text) - 1) * max(0.5, min(0.97, room / (end - left)))))]
        artist.set_text(text.rstrip() + "…")
    return float(end)


def upright_name(sheet: Figure, text: str, left: float, middle: float, room: float, ink: str) -> None:
    """The name of a row, upright at its left, cut to the row's height."""
    w, h = sheet.get_size_inches()
    place = ((left - 0.1) / w, 1 - middle / h)
    artist = sheet.text(
        *place, text, rotation=90, ha="right", va="center", fontsize=9, color=ink, parse_math=False
    )
    if artist.get_window_extent().height / sheet.dpi > room:  # two lines of smaller letters, then an ellipsis
        artist.set_fontsize(8)
        lines = textwrap.wrap(text, max(6, int(room / 0.075)), max_lines=2, placeholder="…")
        artist.set_text("\n".join(lines))
        while artist.get_window_extent().height / sheet.dpi > room and max(map(len, lines)) > 2:
            lines = [line if len(line) < max(map(len, lines)) else line[:-2].rstrip() + "…" for line in lines]
            artist.set_text("\n".join(lines))


def colour_bar(
    sheet: Figure, ax: Axes, colours: colour.Lut, many: Sequence[Explanation], title: str = "heat"
) -> None:
    """Heat from 0 to 1; with one explanation also what these stand for."""
    scale = ScalarMappable(Normalize(0, 1), ListedColormap(colours / 255))
    bar = sheet.colorbar(scale, cax=ax)
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(labelsize=7, length=2, width=0.5, colors=SOFT)
    bar.outline.set_linewidth(0.5)
    if len(many) == 1:
        low, high = many[0].limits
        bar.set_ticks([0, 0.5, 1], labels=[f"0 ({low:.2g})", "0.5", f"1 ({high:.2g})"])
    bar.ax.set_title(title, fontsize=8, color=SOFT, pad=4, loc="left")
