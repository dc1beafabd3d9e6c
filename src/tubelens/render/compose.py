"""From explanations to a stream of drawn frames.

The source is opened again and streamed, so memory does not grow with the length of the video. Limits of the
heat are found once over the whole clip, before the first frame is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError, nearest
from tubelens.explanation import scaled
from tubelens.render import colour
from tubelens.render.arrange import Cell, arrange, names
from tubelens.render.caption import Caption, caption_of, draw_bar, draw_strip
from tubelens.render.heads import band_rows, bands, heads
from tubelens.render.source import EPSILON, Many, Moments, On, as_list, fit_to, fitted, open_source, over_time


@dataclass(frozen=True)
class Look:
    """How frames are drawn; made by `look`, which checks it.

    Attributes:
        styles: what each explanation is drawn as; several are columns.
        beside: the original is the first column.
        caption: label, probability, predicted class and time at the bottom.
        strip: mean heat over time at the very bottom.
        colours: table of the colour map. `own`: the user chose it, so that it also replaces the paper's jet.
        alpha: opacity of the hottest colour.
        rgba: frames keep an alpha channel (focus).
    """

    styles: tuple[str, ...]
    beside: bool
    caption: bool
    strip: bool
    colours: colour.Lut
    own: bool
    alpha: float
    rgba: bool


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
) -> Look:
    """The drawing options, checked.

    Raises:
        OptionError: unknown style or colour map (the nearest are named), alpha outside [0, 1].
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
    return Look(styles, beside, caption, strip, table, colormap is not None, opacity, rgba)


class Drawing:
    """Explanations of one video, drawn frame by frame; a context manager, iterated once.

    Attributes:
        explanations: what is drawn.
        times: seconds of every frame that will come.
        fps: of the source.
        size: height and width of the drawn frames, all columns together.
        audio: the file, and the seconds of the first and the last frame, for the sound between them; None
            where there is none.
    """

    def __init__(
        self,
        explanations: Many,
        look: Look,
        *,
        on: On = None,
        fit: int | None = None,
        most: int | None = None,
    ) -> None:
        """Open the source and scale the heat.

        Args:
            explanations: one or several of the same video.
            look: made by the function of that name.
            on: what to draw on: a path, `(t, h, w, c)` frames, or a clip; None: the explanation's own source.
            fit: shrink to at most so many pixels on the long side of the drawn frames.
            most: at most so many frames; of more, every second, third, ... is drawn.

        Raises:
            OptionError: no explanation, or explanations of different videos; `fit` below 16.
            VideoError: the source is gone, has changed, or has another frame size.
        """
        self.explanations = as_list(explanations)
        self.look = look
        first = self.explanations[0].source
        self.video = open_source(first, on)
        try:
            moments = Moments.of(self.video, self.explanations)
            every = 1 if most is None else -(-len(moments.times) // most)
            self._moments = moments.every(every)
            self.times = self._moments.times
            self.fps = self.video.fps / every
            self._cells = arrange(self.explanations, look.styles, look.beside)
            rows, columns = len(self._cells), len(self._cells[0])
            above = heads(self.explanations, self._cells) if look.caption else [[]] * rows
            self._column = fitted(first.size, columns, fit, rows, band_rows(above, first.size))
            self._bands = bands(above, columns, self._column)
            h, w = self._column
            self.size = (h * rows + sum(len(b) for b in self._bands if b is not None), w * columns)
            captions = [caption_of(e) for e in self.explanations]
            if any(above):  # the network's prediction stands above
                captions = [replace(c, predicted=None) for c in captions]
            titles = names(self.explanations, [c.label for c in captions], both=True)
            self._captions = [replace(c, label=t) for c, t in zip(captions, titles, strict=True)]
            self.audio: tuple[str, float, float] | None = None
            if self.video.has_audio and self.video.path is not None:
                self.audio = (self.video.path, self.times[0], self.times[-1])
            self._limits = [e.limits for e in self.explanations]
            self._over_time = [over_time(e, self.times) if look.strip else None for e in self.explanations]
        except BaseException:
            self.video.close()
            raise

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Seconds and drawn frame, `(h, w, 3)` or with `rgba` `(h, w, 4)`, uint8."""
        maps = [e.at(self.times, self._column) for e in self.explanations]
        picked = self.video.pick(self._moments.indices)
        for k, ((_, _, frame), *heat) in enumerate(zip(picked, *maps, strict=True)):
            yield self.times[k], self._draw(fit_to(frame, self._column), heat, k)

    def _draw(self, frame: colour.Frame, maps: Sequence[Tensor], k: int) -> np.ndarray:
        heats = [self._heat(number, saliency, k) for number, saliency in enumerate(maps)]
        rows = [[self._cell(cell, frame, heats, k) for cell in row] for row in self._cells]
        if len(rows) == len(rows[0]) == 1:
            return rows[0][0]
        line = max(1, round(colour.line_width(*self._column)))
        white = 255 if rows[0][0].shape[2] == 3 else (255, 255, 255, 255)
        for r, row in enumerate(rows):
            for c, picture in enumerate(row):
                if c:
                    picture[:, :line] = white
                if r and self._bands[r] is None:
                    picture[:line] = white
        strips: list[np.ndarray] = []
        for row, band in zip(rows, self._bands, strict=True):
            if band is not None:
                strips.append(_opaque(band) if self.look.rgba else band)
            strips.append(np.concatenate(row, axis=1))
        return np.concatenate(strips, axis=0)

    def _heat(self, number: int, saliency: Tensor, k: int) -> np.ndarray:
        """Heat of one explanation, NaN where it does not speak for that moment."""
        heat: np.ndarray = scaled(saliency, *self._limits[number]).detach().cpu().numpy()
        start, end = self.explanations[number].source.span
        if not start - EPSILON <= self.times[k] <= end + EPSILON:
            heat = np.full_like(heat, np.nan)  # explained on another part of the video
        return heat

    def _cell(self, cell: Cell | None, frame: colour.Frame, heats: list[np.ndarray], k: int) -> np.ndarray:
        """One picture of the grid."""
        if cell is None:
            empty = np.zeros_like(frame)
            return _opaque(empty) if self.look.rgba else empty
        number, style = cell
        if number is None:
            picture = _opaque(frame) if self.look.rgba else frame.copy()
            self._annotate(picture, Caption("original"), None, k)
            return picture
        source = self.explanations[number].source
        picture = STYLES[style](frame, heats[number], self.look)
        if self.look.rgba and picture.shape[2] == 3:
            picture = _opaque(picture)
        colour.mark_crop(picture, source.box, source.size)
        self._annotate(picture, self._captions[number], self._over_time[number], k)
        return picture

    def _annotate(
        self, column: np.ndarray, caption: Caption, curve: Float[np.ndarray, "n"] | None, k: int
    ) -> None:
        taken = 0 if curve is None else draw_strip(column, curve, k, self.look.colours)
        if self.look.caption:
            draw_bar(column, caption, self.times[k], last=self.times[-1], bottom=taken)

    def close(self) -> None:
        """Close the source."""
        self.video.close()

    def __enter__(self) -> Drawing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def frames(
    explanations: Many,
    style: str | Sequence[str] = "heat",
    *,
    beside: bool = False,
    caption: bool = True,
    strip: bool = True,
    colormap: str | None = None,
    alpha: float | None = None,
    rgba: bool = False,
    on: On = None,
    fit: int | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Stream the frames of the explained span with the heat drawn on them.

    One explanation without `beside` keeps the source's frame size and gives one frame for each of its frames.

    Args:
        explanations: one, or several of the same video, arranged as `tubelens.render.arrange` tells.
        style: `heat`, `paper` (the published overlay), `focus` or `contour`; several are columns.
        beside: the original at the left.
        caption: target, probability, predicted class and time, inside the frame.
        strip: mean heat over time with a play-head, inside the frame.
        colormap: name of a matplotlib colour map.
        alpha: opacity of the hottest colour, in [0, 1].
        rgba: keep the alpha channel of focus tubes: frames are `(h, w, 4)`.
        on: draw on this path, `(t, h, w, c)` array or clip, in place of the source.
        fit: shrink to at most so many pixels on the long side.

    Yields:
        Seconds, and the frame as `(h, w, 3)` uint8.

    Raises:
        OptionError: unknown style or colour map, alpha outside [0, 1], explanations of different videos.
        VideoError: the source is gone or has changed.
    """
    drawing = Drawing(
        explanations,
        look(style, beside=beside, caption=caption, strip=strip, colormap=colormap, alpha=alpha, rgba=rgba),
        on=on,
        fit=fit,
    )

    def stream() -> Iterator[tuple[float, np.ndarray]]:
        with drawing:
            yield from drawing

    return stream()


def _opaque(frame: colour.Frame) -> colour.Rgba:
    return np.concatenate([frame, np.full((*frame.shape[:2], 1), 255, np.uint8)], axis=2)
