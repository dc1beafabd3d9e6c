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
from tubelens.render.compose import STYLES, Look
from tubelens.render.source import EPSILON, Moments, fit_to
from tubelens.video import Frames

DPI = 200
INK, SOFT = "#1a1a1a", "#666666"


@dataclass(frozen=True)
class Row:
    """One row of pictures: what it is called, and whose heat it shows in which style (None: the original)."""

    name: str
    explanation: Explanation | None = None
    style: str = "original"


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
) -> list[list[np.ndarray]]:
    """Every picture of the sheet, row by row, `(h, w, 3)`."""
    maps = [e.at(shown.times, size) for e in many]
    limits = [e.limits for e in many]
    pictures: list[list[np.ndarray]] = [[] for _ in rows]
    for (_, seconds, frame), *saliency in zip(video.pick(shown.indices), *maps, strict=True):
        small = fit_to(frame, size)
        heat = {
            id(e): _within(e, seconds, scaled(s, *limit).detach().cpu().numpy())
            for e, s, limit in zip(many, saliency, limits, strict=True)
        }
        for cells, row in zip(pictures, rows, strict=True):
            if row.explanation is None:
                cells.append(small)
                continue
            picture = STYLES[row.style](small, heat[id(row.explanation)], how)
            colour.mark_crop(picture, row.explanation.source.box, row.explanation.source.size)
            cells.append(picture)
    return pictures


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


def colour_bar(sheet: Figure, ax: Axes, colours: colour.Lut, many: Sequence[Explanation]) -> None:
    """Heat from 0 to 1; with one explanation also what these stand for."""
    scale = ScalarMappable(Normalize(0, 1), ListedColormap(colours / 255))
    bar = sheet.colorbar(scale, cax=ax)
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(labelsize=7, length=2, width=0.5, colors=SOFT)
    bar.outline.set_linewidth(0.5)
    if len(many) == 1:
        low, high = many[0].limits
        bar.set_ticks([0, 0.5, 1], labels=[f"0 ({low:.2g})", "0.5", f"1 ({high:.2g})"])
    bar.ax.set_title("heat", fontsize=8, color=SOFT, pad=4)
