"""From explanations to a stream of drawn frames.

The source is opened again and streamed, so memory does not grow with the length of the video. Limits of the
heat are found once over the whole clip, before the first frame is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tubelens.explanation import Explanation, scaled
from tubelens.render import colour
from tubelens.render.arrange import Cell, arrange, names
from tubelens.render.caption import (
    LOW,
    Caption,
    Footing,
    caption_of,
    crowded,
    draw_bar,
    draw_strip,
    footing,
    most_rows,
    on_view,
)
from tubelens.render.heads import Head, band_rows, bands, heads
from tubelens.render.look import STYLES, Look, look
from tubelens.render.source import (
    EPSILON,
    Many,
    Moments,
    On,
    as_list,
    enlargement,
    fit_to,
    fitted,
    open_source,
    over_time,
)
from tubelens.render.spectra import EACH, layers, views
from tubelens.video import sound_file


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
            self._views = views(
                self.video, self.explanations, self._moments.indices, look.spectra, look.palette
            )
            self.look = look = look.on(self._views)
            cells = arrange(self.explanations, look.styles, look.beside)
            above = heads(self.explanations, cells) if look.caption else [[]] * len(cells)
            n = len(self._views)
            self._cells = [[(cell, v) for cell in row for v in range(n)] for row in cells]
            above = [[replace(h, start=h.start * n, stop=h.stop * n) for h in row] for row in above]
            rows, columns = len(self._cells), len(self._cells[0])
            self._layers = [layers(e, self._views) for e in self.explanations]
            self._captions = self._said(networks=any(above))
            self._column, self._footing = self._room(first.size, fit, above)
            self._bands = bands(above, columns, self._column)
            h, w = self._column
            words = sum(len(b) for b in self._bands if b is not None)
            self.size = ((h + self._footing.rows) * rows + words, w * columns)
            self.audio: tuple[str, float, float] | None = None
            if (sound := sound_file(self.video)) is not None:
                self.audio = (sound, self.times[0], self.times[-1])
            self._maps = {id(x.explanation): x.explanation for row in self._layers for x in row}
            self._over_time = {
                key: over_time(e, self.times) if look.strip else None for key, e in self._maps.items()
            }
        except BaseException:
            self.video.close()
            raise

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Seconds and drawn frame, `(h, w, 3)` or with `rgba` `(h, w, 4)`, uint8."""
        maps = [e.at(self.times, self._column) for e in self._maps.values()]
        picked = self.video.pick(self._moments.indices)
        for k, ((_, _, frame), *saliency) in enumerate(zip(picked, *maps, strict=True)):
            pictures = [fit_to(view.of(frame), self._column) for view in self._views]
            yield self.times[k], self._draw(pictures, saliency, k)

    def _room(
        self, size: tuple[int, int], fit: int | None, above: Sequence[Sequence[Head]]
    ) -> tuple[tuple[int, int], Footing]:
        """Height and width of one picture, and where its words stand.

        Below pictures that are enlarged, all of whose pixels are evidence, and below those that the words
        would hide too much of; but on them where `fit` would then leave less than two thirds of the pictures.
        """
        factor, last = enlargement(size), self.times[-1]
        rows, columns = len(self._cells), len(self._cells[0])
        taken = band_rows(above, (size[0] * factor, size[1] * factor))
        said = [c for row in self._captions for c in row] if self.look.caption else []
        if said and self.look.beside:
            said += [self._original(v) for v in range(len(self._views))]
        strip = self.look.strip and len(self.times) > 1
        column = fitted(size, columns, fit, rows, taken)
        below = crowded(said, last, column) or (factor > 1 and bool(said or strip))
        if below and fit is not None:
            less = fitted(size, columns, fit, rows, taken + rows * most_rows(column[0]))
            below = less[0] >= max(LOW, column[0] * 2 / 3)
            column = less if below else column
        return column, footing(said, last, column, strip, below and column[0] >= LOW)

    def _original(self, v: int) -> Caption:
        return on_view(Caption("original"), self._views[v].name)

    def _said(self, networks: bool) -> list[list[Caption]]:
        """The caption of each explanation on each view; the prediction stands above where `networks` do."""
        captions = [caption_of(e) for e in self.explanations]
        if networks:
            captions = [replace(c, predicted=None) for c in captions]
        titles = names(self.explanations, [c.label for c in captions], both=True)
        captions = [replace(c, label=t) for c, t in zip(captions, titles, strict=True)]
        return [
            [on_view(c, view.name, layer.said) for view, layer in row]
            for c, row in zip(
                captions, ([*zip(self._views, ls, strict=True)] for ls in self._layers), strict=True
            )
        ]

    def _draw(self, pictures: Sequence[colour.Frame], maps: Sequence[Tensor], k: int) -> np.ndarray:
        found = zip(self._maps.items(), maps, strict=True)
        heats = {key: self._heat(e, saliency, k) for (key, e), saliency in found}
        rows = [[self._cell(cell, v, pictures[v], heats, k) for cell, v in row] for row in self._cells]
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

    def _heat(self, e: Explanation, saliency: Tensor, k: int) -> np.ndarray:
        """Heat of one map, NaN where it does not speak for that moment."""
        heat: np.ndarray = scaled(saliency, *e.limits).detach().cpu().numpy()
        start, end = e.source.span
        if not start - EPSILON <= self.times[k] <= end + EPSILON:
            heat = np.full_like(heat, np.nan)  # explained on another part of the video
        return heat

    def _cell(
        self, cell: Cell | None, v: int, frame: colour.Frame, heats: dict[int, np.ndarray], k: int
    ) -> np.ndarray:
        """One picture of the grid, of view `v`."""
        if cell is None:
            empty = self._with_foot(np.zeros_like(frame))
            return _opaque(empty) if self.look.rgba else empty
        number, style = cell
        if number is None:
            picture = _opaque(frame) if self.look.rgba else frame.copy()
            return self._annotated(picture, self._original(v), None, k)
        source = self.explanations[number].source
        key = id(self._layers[number][v].explanation)
        picture = STYLES[style](frame, heats[key], self.look)
        if self.look.rgba and picture.shape[2] == 3:
            picture = _opaque(picture)
        colour.mark_crop(picture, source.box, source.size)
        return self._annotated(picture, self._captions[number][v], self._over_time[key], k)

    def _annotated(
        self, picture: np.ndarray, caption: Caption, curve: Float[np.ndarray, "n"] | None, k: int
    ) -> np.ndarray:
        """The picture with words and strip, on it in place or below it."""
        feet = self._footing
        below = len(picture) if feet.rows else None
        picture = self._with_foot(picture)
        taken = 0 if curve is None else draw_strip(picture, curve, k, self.look.colours, below)
        if self.look.caption:
            last = self.times[-1]
            draw_bar(picture, caption, self.times[k], last, taken, size=feet.size, below=below)
        return picture

    def _with_foot(self, picture: np.ndarray) -> np.ndarray:
        """The picture on black, opaque rows for what stands below it."""
        if not self._footing.rows:
            return picture
        foot = np.zeros((self._footing.rows, *picture.shape[1:]), np.uint8)
        foot[..., 3:] = 255
        return np.concatenate([picture, foot])

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
    palette: str | None = None,
    spectra: str = EACH,
) -> Iterator[tuple[float, np.ndarray]]:
    """Stream the frames of the explained span with the heat drawn on them.

    One explanation without `beside`, of a source with one picture, keeps the source's frame size and gives
    one frame for each of its frames. Frames of less than 64 pixels a side are enlarged by a whole factor, to
    240 or more. Below these, and where the caption would take more than a sixth of the height, the words and
    the strip stand under the picture, and the frame is higher by their rows.

    Args:
        explanations: one, or several of the same video, arranged as `tubelens.render.arrange` tells.
        style: `heat`, `paper` (the published overlay), `focus` or `contour`; several are columns.
        beside: the original at the left.
        caption: target, probability, predicted class and time, at the foot.
        strip: mean heat over time with a play-head, at the foot.
        colormap: name of a matplotlib colour map.
        alpha: opacity of the hottest colour, in [0, 1].
        rgba: keep the alpha channel of focus tubes: frames are `(h, w, 4)`.
        on: draw on this path, `(t, h, w, c)` array or clip, in place of the source.
        fit: shrink to at most so many pixels on the long side.
        palette: of pictures of one band: `white-hot`, `black-hot`, `inferno` or `iron`. Unless `colormap`
            says otherwise, heat is drawn in colours that stay legible on it.
        spectra: of a source of several spectra: `each` side by side, the `first`, the `overlay` of the others
            on the visible one, or the name of one. Where a map tells the bands apart, each picture carries
            that of its own bands, all in one scale.

    Yields:
        Seconds, and the frame as `(h, w, 3)` uint8.

    Raises:
        OptionError: unknown style or colour map, alpha outside [0, 1], explanations of different videos.
        VideoError: the source is gone or has changed.
    """
    drawing = Drawing(
        explanations,
        look(
            style,
            beside=beside,
            caption=caption,
            strip=strip,
            colormap=colormap,
            alpha=alpha,
            rgba=rgba,
            palette=palette,
            spectra=spectra,
        ),
        on=on,
        fit=fit,
    )

    def stream() -> Iterator[tuple[float, np.ndarray]]:
        with drawing:
            yield from drawing

    return stream()


def _opaque(frame: colour.Frame) -> colour.Rgba:
    return np.concatenate([frame, np.full((*frame.shape[:2], 1), 255, np.uint8)], axis=2)
