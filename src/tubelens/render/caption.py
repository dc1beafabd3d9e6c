"""Words and the heat-over-time strip, drawn inside a frame at its bottom, or below a picture of few pixels.

    ┌────────────────────────────┐
    │          picture           │
    │ surfing water p=0.62 0.48 s│   bar: the target, its probability, the predicted class, the time
    │▂▃▅▇▇▆▄▃|▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁│   strip: mean heat of every frame, and a play-head
    └────────────────────────────┘

Sizes follow the frame's height, and all pictures of a drawing have letters of one size. What does not fit is
left out, least important first; a frame too small for legible letters gets none. Where the words would hide
much of the picture they stand below it, and the frame is higher by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from tubelens.explanation import Explanation
from tubelens.render.colour import Lut, line_width
from tubelens.target import begins

SMALLEST = 8
"""Pixels of the smallest letters that can be read."""
LOW = 48
"""Pictures of fewer lines are thumbnails: they have no strip, and no words below them."""
SHARE = 1 / 6
"""Of the height of a picture with few lines that words may hide."""
FEW = 200
"""Pictures of as many lines or more keep their size: the words lie on them, as on any video."""
_WHITE, _GREY = (255, 255, 255, 255), (205, 205, 205, 255)
_BAR = (0, 0, 0, 150)

Run = tuple[str, bool, tuple[int, int, int, int]]
"""Text, bold, colour."""


@dataclass(frozen=True)
class Caption:
    """What a column says about itself.

    Attributes:
        label: the target.
        prob: probability of its class; None: not shown.
        predicted: the strongest class and its probability where that is another one.
        top: the target is the strongest class.
        note: what else should be known, before the predicted class.
    """

    label: str
    prob: float | None = None
    predicted: tuple[str, float] | None = None
    top: bool = False
    note: str = ""

    @property
    def value(self) -> str:
        """`p=0.62`, or nothing."""
        return "" if self.prob is None or not isfinite(self.prob) else probability(self.prob)

    @property
    def other(self) -> str:
        """The note, and the predicted class or a word that it is this one; may be empty."""
        return self._after(self.note)

    @property
    def brief(self) -> str:
        """The same with the first part of the note only."""
        return self._after(self.note.partition(" · ")[0])

    def _after(self, note: str) -> str:
        said = "predicted" if self.top else ""
        if self.predicted is not None:
            said = f"predicted: {self.predicted[0]} {probability(self.predicted[1])}"
        return " · ".join(part for part in (note, said) if part)

    @property
    def line(self) -> str:
        """All of it: `surfing water  p=0.62 · predicted: kayaking p=0.31`."""
        words = f"{self.label}  {self.value}".rstrip()
        return f"{words} · {self.other}" if self.other else words


def caption_of(explanation: Explanation) -> Caption:
    """The caption of an explanation, from its provenance."""
    p = explanation.provenance
    label = " ".join(p.label.split())
    first = p.predicted[0] if p.predicted else None
    top = first is not None and begins(label, " ".join(first[0].split()))
    return Caption(label, p.prob, None if top else first, top)


def on_view(caption: Caption, name: str, note: str = "") -> Caption:
    """The caption on one of several pictures: its name comes first, so that it is never what is cut off."""
    return replace(caption, label=f"{name} · {caption.label}" if name else caption.label, note=note)


def probability(p: float) -> str:
    """`p=0.62`; never a rounded 0 or 1 that it is not."""
    if 0 < p < 0.005:
        return "p<0.01"
    if 0.995 <= p < 1:
        return "p>0.99"
    return f"p={p:.2f}"


def clock(seconds: float) -> str:
    """`0.48 s`, from a minute on `1:05.20`."""
    if abs(seconds) < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(abs(seconds) * 100), 6000)
    return f"{'-' if seconds < 0 else ''}{minutes}:{rest / 100:05.2f}"


# ── the bar ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Footing:
    """Where the words of all pictures of a drawing stand, and in letters of which size.

    Attributes:
        size: of the letters, in pixels; None where no caption has room for legible ones.
        bar: rows for captions below each picture.
        strip: rows for the strip below those; with no row for either, both lie on the picture.
    """

    size: int | None = None
    bar: int = 0
    strip: int = 0

    @property
    def rows(self) -> int:
        """Rows by which a frame is higher than its picture."""
        return self.bar + self.strip


def crowded(captions: Sequence[Caption], last: float, picture: tuple[int, int]) -> bool:
    """Whether a picture of that height and width is too low to have all that captions say on it."""
    h, w = picture
    return h < FEW and any(
        _bar_rows(_arranged(c, clock(last), w, h, below=True)) > SHARE * h for c in captions
    )


def footing(
    captions: Sequence[Caption], last: float, picture: tuple[int, int], strip: bool, below: bool
) -> Footing:
    """Where the words and the strip of pictures stand that are drawn together.

    Args:
        captions: of all of them; none are drawn where there are none.
        last: the latest time that will be shown.
        picture: height and width of each.
        strip: whether there is one.
        below: they stand below the pictures.
    """
    (h, w), time = picture, clock(last)
    found = [_arranged(c, time, w, h, below=below) for c in captions]
    size = min((form[0] for form in found if form is not None), default=None)
    if not below:
        return Footing(size)
    rows = max((_bar_rows(_arranged(c, time, w, h, size, below=True)) for c in captions), default=0)
    return Footing(size, rows, strip_rows(h) if strip else 0)


def most_rows(height: int) -> int:
    """Rows that a footing below pictures of that height, or of a lesser one, takes at most."""
    letters = max(SMALLEST, round(6.5 + 0.025 * height))
    return 2 * line_step(letters) + padding(letters) + strip_rows(height)


def draw_bar(
    frame: np.ndarray,
    caption: Caption,
    seconds: float,
    last: float | None = None,
    bottom: int = 0,
    *,
    size: int | None = None,
    below: int | None = None,
) -> int:
    """Draw the caption on a half-transparent bar, in place.

    Args:
        frame: `(h, w, 3)` RGB or `(h, w, 4)` RGBA, uint8.
        caption: what it says.
        seconds: the time shown at the right.
        last: the latest time that will be shown; with it the arrangement is the same on all frames.
        bottom: rows at the foot of the frame that are taken (the strip).
        size: of the letters; None: the largest that fit.
        below: rows of the picture that the bar stands below; None: it lies on the picture.

    Returns:
        Rows that the bar took; 0 where no legible text fits.
    """
    h, w, _ = frame.shape
    time = clock(seconds if last is None else last)
    found = _arranged(caption, time, w, h if below is None else below, size, below is not None)
    if found is None:
        return 0
    size, lines, timed = found
    pad, step = padding(size), line_step(size)
    rows = _bar_rows(found)
    overlay = Image.new("RGBA", (w, rows), _BAR)
    pen = ImageDraw.Draw(overlay)
    for number, runs in enumerate(lines):
        base = pad // 2 + number * step + size
        x = float(pad)
        for text, bold, colour in runs:
            pen.text((x, base), text, font=typeface(size, bold), fill=colour, anchor="ls")
            x += typeface(size, bold).getlength(text)
    if timed:
        pen.text(
            (w - pad, pad // 2 + size), clock(seconds), font=typeface(size, False), fill=_GREY, anchor="rs"
        )
    _lay(frame, overlay, h - bottom - rows if below is None else below)
    return rows


def padding(size: int) -> int:
    """Pixels around letters of that size."""
    return max(3, round(size * 0.5))


def line_step(size: int) -> int:
    """Pixels from one line of letters of that size to the next."""
    return round(size * 1.35)


Form = tuple[int, list[list[Run]], bool]
"""Size of the letters, lines, whether the time is shown."""


def _bar_rows(form: Form | None) -> int:
    return 0 if form is None else line_step(form[0]) * len(form[1]) + padding(form[0])


@lru_cache(maxsize=64)
def _arranged(
    caption: Caption, time: str, width: int, height: int, only: int | None = None, below: bool = False
) -> Form | None:
    """The fullest form that fits, in letters of the size `only`; None if none is legible."""
    full = only or max(SMALLEST, round(6.5 + 0.025 * height))
    small = only or max(SMALLEST, round(full * 0.85))
    for size, two, other, value, right, least in _forms(full, small, time, bool(caption.other)):
        if only not in (None, size):
            continue
        rows = 2 if two else 1
        if line_step(size) * rows + padding(size) > 0.25 * height and not below:
            continue
        font, bold = typeface(size, False), typeface(size, True)
        room = float(width - 2 * padding(size))
        after = f"  {caption.value}" if value and caption.value else ""
        tail = f" · {caption.other}" if other and caption.other and not two else ""
        gap = font.getlength("   " + right) if right else 0.0
        space = room - gap - font.getlength(after) - font.getlength(tail)
        label = shortened(caption.label, bold, space, least)
        whole = caption.other if font.getlength(caption.other) <= room else caption.brief
        second = shortened(whole, font, room, 16) if two else ""
        if label is None or second is None:
            continue
        lines: list[list[Run]] = [[(label, True, _WHITE), (after, False, _WHITE), (tail, False, _GREY)]]
        if two:
            lines.append([(second, False, _GREY)])
        return size, lines, bool(right)
    return None


def _forms(
    full: int, small: int, time: str, other: bool
) -> Iterator[tuple[int, bool, bool, bool, str, int | None]]:
    """Ways to say it, fullest first: size, two lines, predicted, value, time, letters that may remain of the
    label (None: all of them).
    """
    for size in (full, small):
        yield size, False, True, True, time, None
    if other:
        for least in (None, 8):
            for size in (full, small, SMALLEST):
                yield size, True, True, True, time, least
    for right, value in ((time, True), ("", True)):
        for size in (full, small, SMALLEST):
            yield size, False, False, value, right, None
    yield SMALLEST, False, False, True, "", 6
    yield SMALLEST, False, False, False, "", 4


def shortened(text: str, font: ImageFont.FreeTypeFont, room: float, least: int | None) -> str | None:
    """The text, cut with an ellipsis to `room` pixels but not below `least` letters; None if it cannot be."""
    if font.getlength(text) <= room:
        return text
    if least is None:
        return None
    for letters in range(len(text) - 1, least - 1, -1):
        cut = text[:letters].rstrip() + "…"
        if font.getlength(cut) <= room:
            return cut
    return None


@lru_cache(maxsize=64)
def typeface(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it, so that drawings look alike everywhere."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


# ── the strip ────────────────────────────────────────────────────────────────────────────────────────────


def strip_rows(height: int) -> int:
    """Rows that the strip takes of a frame of that height; 0 for frames under 48."""
    return 0 if height < LOW else max(5, round(height * 0.04))


def draw_strip(
    frame: np.ndarray, over_time: Float[np.ndarray, "n"], now: int, colours: Lut, below: int | None = None
) -> int:
    """Draw mean heat over time as a coloured area with a play-head, in place, at the foot of the frame.

    The height is a share of the highest value, counted from zero; the colour is that of the value itself, as
    on the picture.

    Args:
        frame: RGB or RGBA, uint8.
        over_time: mean heat, in [0, 1], of every frame that is drawn.
        now: the frame that is shown.
        colours: the table of the colour map.
        below: rows of the picture, where the strip does not lie on it.

    Returns:
        Rows taken; 0 where the frame is too low, or there is one frame only.
    """
    h, w, _ = frame.shape
    rows, n = strip_rows(h if below is None else below), len(over_time)
    if rows == 0 or n < 2:
        return 0
    overlay = _area(tuple(np.asarray(over_time, dtype=float).tolist()), w, rows, colours.tobytes()).copy()
    line = max(1, round(line_width(h, w)))
    x = round(now * (w - line) / (n - 1))
    overlay[:, max(0, x - line) : x + 2 * line] = (0, 0, 0, 220)
    overlay[:, x : x + line] = (255, 255, 255, 255)
    _lay(frame, Image.fromarray(overlay), h - rows)
    return rows


@lru_cache(maxsize=16)
def _area(values: Sequence[float], width: int, rows: int, colours: bytes) -> np.ndarray:
    """The strip without its play-head, `(rows, width, 4)`: the same for every frame, so kept."""
    table = np.frombuffer(colours, dtype=np.uint8).reshape(256, 3)
    highest = max(max(values), 1e-12)
    value = np.interp(np.linspace(0, len(values) - 1, width), np.arange(len(values)), values)
    level = value / highest * (rows - 1)  # one row stays dark above the highest
    fill = np.clip(level[None, :] - np.arange(rows)[::-1, None], 0, 1)[..., None]
    colour = table[np.clip(value * 255, 0, 255).astype(int)][None].astype(float)
    out = np.empty((rows, width, 4), dtype=np.uint8)
    opaque = fill + (1 - fill) * _BAR[3] / 255  # the area over the black bar
    out[..., :3] = np.round(fill * colour / opaque)
    out[..., 3] = np.round(255 * opaque[..., 0])
    return out


def _lay(frame: np.ndarray, overlay: Image.Image, top: int) -> None:
    """Lay an RGBA picture as wide as the frame over its rows from `top` on, in place."""
    rows = slice(top, top + overlay.height)
    under = Image.fromarray(np.ascontiguousarray(frame[rows]))
    both = Image.alpha_composite(under.convert("RGBA"), overlay)
    frame[rows] = np.asarray(both.convert(under.mode))
