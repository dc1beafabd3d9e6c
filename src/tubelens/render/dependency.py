"""The pyramid of a class as a figure: layers from the clip to the class, kernels, links, tubes.

Sizes are inches, as in the contact sheet; nothing is left to a layout engine and no part touches pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from tubelens.errors import OptionError
from tubelens.explanation import Explanation, scaled
from tubelens.methods.pyramid_graph import Dependency, Step
from tubelens.render.caption import probability
from tubelens.render.look import STYLES, Look, look
from tubelens.render.sheet import DPI, pixels
from tubelens.render.source import Moments, On, fit_to, open_source
from tubelens.video import source_name, write_png

_INK, _SOFT, _DOT, _LINE = "#1a1a1a", "#666666", "#1b6ca8", "#d1495b"
_THUMB, _PITCH, _ROW = 1.25, 1.7, 0.3  # width of a picture, from column to column, between cards
_NAME, _GAP, _STEP = 0.34, 0.1, 0.115  # height of a name, picture to dots, dot to dot
_HEAD, _FOOT, _SIDE = 0.75, 0.42, 0.3
_LETTERS = 25  # of a layer's name: its end tells more than its beginning


@dataclass(frozen=True)
class _Card:
    """One layer in the figure: its left and top in inches, and where its dots are."""

    step: Step
    left: float
    top: float
    picture: float
    shown: tuple[int, ...]  # kernels, strongest first

    def dot(self, place: int) -> tuple[float, float]:
        return self.left + _THUMB / 2, self.top + _NAME + self.picture + _GAP + (place + 0.5) * _STEP


def dependency_figure(
    dependency: Dependency,
    *,
    columns: int = 10,
    rows: int = 4,
    kernels: int = 8,
    links: int = 200,
    colormap: str | None = None,
    on: On = None,
) -> Figure:
    """Draw what a class depends on.

    Layers stand left of those that read them. Each shows its tube on the frame where it is strongest, and its
    strongest kernels as dots (larger is stronger). Lines join the kernels that select each other, the
    strongest links only. At the right is the map of all layers fused.

    Args:
        dependency: what `Pyramid.graph` gives.
        columns: layers one behind the other, from the class back.
        rows: layers of one column, those with the most kernels.
        kernels: dots of a layer.
        links: lines in all.
        colormap: name of a matplotlib colour map, for the heat.
        on: draw on this path, `(t, h, w, c)` array or clip, in place of the source.

    Returns:
        A figure with an Agg canvas.

    Raises:
        OptionError: a count below one, an unknown colour map.
        VideoError: the source is gone or has changed.
    """
    for name, value in (("columns", columns), ("rows", rows), ("kernels", kernels), ("links", links)):
        if value < 1:
            raise OptionError(f"a figure of the pyramid needs {name} of at least 1, not {value}")
    how = look("heat", colormap=colormap)
    h, w = dependency.explanation.source.size
    picture = _THUMB * min(h / w, 1.4)
    levels, left_out = _levels(dependency, columns, rows)
    each = _NAME + picture + _GAP + kernels * _STEP + _ROW  # the same for all, so that pictures stand in rows
    tall = max(map(len, levels)) * each - _ROW
    total_w = 2 * _SIDE + (len(levels) - 1) * _PITCH + _THUMB
    total_w = max(total_w, 4.6)  # room for the title
    total_h = _HEAD + tall + _FOOT
    sheet = Figure(figsize=(total_w, total_h), dpi=DPI, facecolor="white")
    FigureCanvasAgg(sheet)
    ground = sheet.add_axes((0, 0, 1, 1))
    ground.set(xlim=(0, total_w), ylim=(total_h, 0))
    ground.set_axis_off()

    cards: dict[str, _Card] = {}
    for back, level in enumerate(levels):
        left = total_w - _SIDE - _THUMB - back * _PITCH
        top = _HEAD + (tall + _ROW - len(level) * each) / 2
        for step in level:
            strongest = step.strengths.sort(descending=True, stable=True).indices[:kernels]
            shown = tuple(step.kernels[strongest].tolist())
            has = step.explanation is not None or step.back == 0
            cards[step.layer] = _Card(step, left, top, picture if has else 0.0, shown)
            top += each
    _lines(ground, dependency, cards, links)
    images = _pictures(dependency, cards, how, on, (round(picture * DPI), round(_THUMB * DPI)))
    for card in cards.values():
        _draw(sheet, ground, dependency, card, images.get(card.step.layer))
    _words(sheet, ground, dependency, left_out, total_w, total_h)
    return sheet


def draw_dependency(dependency: Dependency, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write `dependency_figure` as a PNG file; options are its own.

    Raises:
        OutputError: no room, no permission; nothing half-written is left.
    """
    return write_png(Path(path), pixels(dependency_figure(dependency, **options)))


def _levels(dependency: Dependency, columns: int, rows: int) -> tuple[list[list[Step]], int]:
    """The steps in columns from the class back, and how many layers are not drawn.

    By the longest way from the class, so that a layer always stands left of all that read it.
    """
    place = {step.layer: 0 for step in dependency.steps}
    for link in dependency.links:  # readers come before what they read
        place[link.source] = max(place[link.source], place[link.reader] + 1)
    levels = []
    for column in range(min(max(place.values()), columns) + 1):
        here = [step for step in dependency.steps if place[step.layer] == column]
        kept = sorted(here, key=lambda step: -len(step.kernels))[:rows]
        levels.append([step for step in here if step in kept])
    return levels, len(dependency.steps) - sum(map(len, levels))


# ── the parts of the picture ─────────────────────────────────────────────────────────────────────────────


def _lines(ground: Axes, dependency: Dependency, cards: dict[str, _Card], most: int) -> None:
    """Curves between dots; the strongest links of each pair of layers first, so that none is left bare."""
    found: list[tuple[int, float, Curve]] = []
    for link in dependency.links:
        if link.reader not in cards or link.source not in cards:
            continue
        reader, source = cards[link.reader], cards[link.source]
        here = []
        for (k, j), weight in zip(link.pairs.tolist(), link.weights.tolist(), strict=True):
            if k in reader.shown and j in source.shown:
                x0, y0 = source.dot(source.shown.index(j))
                x1, y1 = reader.dot(reader.shown.index(k))
                bend = min(0.75, (x1 - x0) / 2)
                points = [(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
                here.append((weight, Curve(points, [Curve.MOVETO, *[Curve.CURVE4] * 3])))
        here.sort(key=lambda pair: -pair[0])
        found += [(rank, weight, curve) for rank, (weight, curve) in enumerate(here)]
    found.sort(key=lambda entry: entry[0])
    kept = found[:most]
    strong = np.array([weight for _, weight, _ in kept])
    low, high = (strong.min(), strong.max()) if len(strong) else (0.0, 1.0)
    share = (strong - low) / (high - low) if high > low else np.ones_like(strong)
    curves = PathCollection(
        [curve for *_, curve in kept],
        facecolors="none",
        edgecolors=[(*_rgb(_LINE), 0.12 + 0.5 * float(s)) for s in share],
        linewidths=0.35 + 0.7 * share,
        zorder=1,
    )
    ground.add_collection(curves, autolim=False)


def _rgb(colour: str) -> tuple[float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b


def _draw(sheet: Figure, ground: Axes, dependency: Dependency, card: _Card, image: np.ndarray | None) -> None:
    """One card: two lines of text, the picture, the dots with their numbers."""
    total_w, total_h = sheet.get_size_inches()
    step = card.step
    name = step.layer if len(step.layer) <= _LETTERS else "…" + step.layer[1 - _LETTERS :]
    many = f"{len(step.kernels)} of {step.size} kernels" if step.back else "all layers fused"
    plain: dict[str, Any] = {"parse_math": False, "va": "top", "zorder": 4}
    for text, down, size, colour in ((name, 0.0, 7.5, _INK), (many, 0.155, 6.5, _SOFT)):
        words = ground.text(card.left, card.top + down, text, fontsize=size, color=colour, **plain)
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    if image is not None:
        place = (card.left, card.top + _NAME, _THUMB, card.picture)
        ax = sheet.add_axes(
            (place[0] / total_w, 1 - (place[1] + place[3]) / total_h, place[2] / total_w, place[3] / total_h)
        )
        ax.imshow(image, aspect="auto", interpolation="antialiased")
        ax.set_axis_off()
    strength = dict(zip(step.kernels.tolist(), step.strengths.tolist(), strict=True))
    for place_, kernel in enumerate(card.shown):
        x, y = card.dot(place_)
        size = 5 + 22 * strength[kernel]
        ground.scatter([x], [y], s=size, color=_DOT, edgecolors="white", linewidths=0.4, zorder=3)
        label = f"{kernel}" if step.back else _class_name(dependency, kernel)
        words = ground.text(x + 0.075, y, label, fontsize=5.5, color=_SOFT, va="center", zorder=4)
        words.set_parse_math(False)
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def _class_name(dependency: Dependency, kernel: int) -> str:
    classes = dependency.explanation.target.classes
    names = dependency.label.split(" rather than ")
    if kernel in classes and len(names) == len(classes):
        name = names[classes.index(kernel)]
        return name if len(name) <= 14 else name[:13] + "…"
    return str(kernel)


def _words(
    sheet: Figure, ground: Axes, dependency: Dependency, left_out: int, total_w: float, total_h: float
) -> None:
    p = dependency.explanation.provenance
    title = f"{dependency.label} {probability(p.prob)}"
    video = dependency.explanation.source.path
    made = [
        dependency.method,
        f"{dependency.model} ({dependency.weights})",
        source_name(video) if video else "",
    ]
    note = "dots: the strongest kernels of a layer · lines: which kernels select which"
    note += " · pictures: the layer's tube where it is strongest"
    if left_out:
        note = f"{left_out} more layers are not drawn · " + note
    _cut(sheet, ground, title, _SIDE, 0.14, total_w - 2 * _SIDE, 12, _INK, weight="bold")
    _cut(sheet, ground, " · ".join(filter(None, made)), _SIDE, 0.4, total_w - 2 * _SIDE, 7.5, _SOFT)
    _cut(sheet, ground, note, _SIDE, total_h - 0.24, total_w - 2 * _SIDE, 7, _SOFT)


def _cut(
    sheet: Figure,
    ground: Axes,
    text: str,
    left: float,
    top: float,
    room: float,
    size: float,
    colour: str,
    weight: str = "normal",
) -> None:
    """Text, cut to `room` inches."""
    artist = ground.text(left, top, text, fontsize=size, color=colour, va="top", weight=weight, zorder=4)
    artist.set_parse_math(False)
    while artist.get_window_extent().width / sheet.dpi > room and len(text) > 4:
        text = text[:-4]
        artist.set_text(text.rstrip(" ·") + "…")


# ── the tubes ────────────────────────────────────────────────────────────────────────────────────────────


def _pictures(
    dependency: Dependency, cards: dict[str, _Card], how: Look, on: On, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """For each layer its tube on the frame where it is strongest; for the first the fused map."""
    maps = {
        name: dependency.explanation if card.step.back == 0 else card.step.explanation
        for name, card in cards.items()
    }
    shown = {name: e for name, e in maps.items() if e is not None}
    found: dict[str, np.ndarray] = {}
    with open_source(dependency.explanation.source, on) as video:
        moments = Moments.of(video, [dependency.explanation])
        at = {name: _strongest(e, moments.times) for name, e in shown.items()}
        wanted = sorted(set(at.values()))
        frames = zip(wanted, video.pick([moments.indices[i] for i in wanted]), strict=True)
        for i, (_, seconds, frame) in frames:
            small = fit_to(frame, size)
            for name in (n for n, place in at.items() if place == i):
                (map_,) = shown[name].at([seconds], size)
                heat = scaled(map_, *shown[name].limits).nan_to_num(0.0).cpu().numpy()
                found[name] = STYLES["heat"](small, heat, how)
    return found


def _strongest(explanation: Explanation, times: Sequence[float]) -> int:
    """Which of the moments is nearest to the cell with the highest value."""
    part = max(explanation.parts, key=lambda p: float(p.values.max()))
    cell = int(part.values.flatten(1).amax(dim=1).argmax())
    frame = explanation.source.clip_index(times)
    return int(np.abs(frame - part.t[cell]).argmin())
