"""The figures: curves with bands, means with intervals, the critical-difference diagram.

Every figure is drawn once and written as PNG, as SVG, and as SVG inside the page, where the greys give way to
the page's own ink so that they show on dark and light.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tubelens.evaluate.report.panels import Metric
from tubelens.evaluate.report.scores import Ranked, Score
from tubelens.evaluate.report.statistics import bootstrap
from tubelens.render.paper import INK, SOFT, quiet

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a0522d")
"""Okabe and Ito's palette, which people with colour blindness can tell apart, and two more."""
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)))
"""Lines when the colours are used up."""
DPI = 160
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tubelens",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "text.parse_math": False,  # a label may hold a dollar sign
}


@dataclass(frozen=True, eq=False)
class Curve:
    """A mean curve and its band.

    Attributes:
        name: method or anchor. `n`: clips.
        x, mean, low, high: S points; the band is the 95 % bootstrap interval of the mean, point by point.
        dashed: an anchor.
    """

    name: str
    n: int
    x: Float[np.ndarray, "s"]
    mean: Float[np.ndarray, "s"]
    low: Float[np.ndarray, "s"]
    high: Float[np.ndarray, "s"]
    dashed: bool = False

    @classmethod
    def of(cls, name: str, x: np.ndarray, clips: Float[np.ndarray, "n s"], **how: Any) -> Curve:
        """The mean over clips; those with a point that is no number are left out."""
        whole = clips[np.isfinite(clips).all(axis=1)]
        low, high = bootstrap(whole, resamples=1000)
        mean = whole.mean(axis=0) if len(whole) else np.full(len(x), np.nan)
        return cls(name, len(whole), np.asarray(x, dtype=np.float64), mean, low, high, **how)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure and its words.

    Attributes:
        name: of its files. `title`: above it. `note`: below it.
        figure: Agg canvas, no pyplot.
    """

    name: str
    title: str
    note: str
    figure: Figure

    def png(self) -> bytes:
        """On white."""
        return self._written("png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 4})

    @cached_property
    def svg(self) -> str:
        """A file by itself, on white."""
        return self._written("svg", metadata={"Date": None}).decode()

    def inline(self) -> str:
        """For the page: no background, the page's ink, as wide as there is room."""
        text = self.svg[self.svg.index("<svg") :].replace(INK, "var(--ink)").replace(SOFT, "var(--soft)")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.S)  # the background
        wide = self.figure.get_figwidth() * 96
        start = text.index(">")
        head = re.sub(r' (width|height)="[^"]*pt"', "", text[:start])
        # ids are those of the figure alone, and a page has several
        body = re.sub(r'((?:id=|href=)"#?|url\(#)', rf"\1{self.name}-", text[start:])
        return (
            f'{head} role="img" style="width:100%;min-width:{0.6 * wide:.0f}px;max-width:{wide:.0f}px"{body}'
        )

    def _written(self, suffix: str, **how: Any) -> bytes:
        out = io.BytesIO()
        with rc_context(SETTINGS), quiet():
            self.figure.savefig(out, format=suffix, facecolor="white", **how)
        return out.getvalue()


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, and when these are used up a dash, for every method: the same in all figures of a report."""
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
        }
        for i, name in enumerate(names)
    }


def _sheet(make: Callable[[], Figure]) -> Figure:
    with rc_context(SETTINGS), quiet():
        sheet = make()
        FigureCanvasAgg(sheet)
    return sheet


def wide(text: str, size: float = 9) -> float:
    """Inches that a text takes, near enough to leave room: measuring it would take longer than drawing."""
    return 0.0083 * size * len(text)


def shortened(names: Sequence[str], letters: int = 34) -> dict[str, str]:
    """Names with many options, cut in the middle so that they leave room for the figure; longer where two
    would look alike.
    """
    names = list(dict.fromkeys(names))
    found = {
        n: n if len(n) <= letters else f"{n[: letters - letters // 2 - 1]}…{n[-(letters // 2) :]}"
        for n in names
    }
    return found if len(set(found.values())) == len(names) else shortened(names, letters + 6)


class _Room:
    """Axes in rows and columns, placed in inches: a layout engine would draw everything several times."""

    def __init__(
        self,
        n: int,
        across: int,
        size: tuple[float, float],
        left: float,
        bottom: float,
        gaps: tuple[float, float],
    ) -> None:
        self.n, self.across, self.down = n, across, -(-n // across)
        (w, h), (gap_x, gap_y) = size, gaps
        total_w = left + across * w + (across - 1) * gap_x + 0.15
        total_h = 0.32 + self.down * h + (self.down - 1) * gap_y + bottom
        self.sheet = Figure(figsize=(total_w, total_h))
        self.axes = []
        for i in range(n):
            row, column = divmod(i, across)
            x, y = left + column * (w + gap_x), 0.32 + row * (h + gap_y)
            box = (x / total_w, 1 - (y + h) / total_h, w / total_w, h / total_h)
            self.axes.append(self.sheet.add_axes(box))

    def lowest(self, i: int) -> bool:
        """Nothing stands below it."""
        return i + self.across >= self.n

    def first(self, i: int) -> bool:
        """It is at the left."""
        return i % self.across == 0


def curves_figure(
    metric: Metric, places: Mapping[str, Sequence[Curve]], look: Mapping[str, Mapping[str, Any]]
) -> Drawn:
    """One panel a place, one line a method with its band; anchors are grey and dashed.

    Args:
        metric: whose curves.
        places: model and spectra -> curves.
        look: from `styles`.
    """
    across = 2 if len(places) == 4 else min(3, len(places))
    marks: tuple[Any, ...] = (":", (0, (4, 2)), (0, (9, 1.5)), (0, (6, 2, 1, 2)))
    names = list(dict.fromkeys(curve.name for curves in places.values() for curve in curves))
    size = ((4.6, 2.9), (3.5, 2.3), (3.0, 2.1))[across - 1]
    width = 0.75 + across * size[0] + (across - 1) * 0.35 + 0.15
    brief = shortened(names)
    columns = max(1, min(len(names), int(width / (0.55 + max(wide(brief[n], 8) for n in names)))))
    below = 0.55 + 0.19 * -(-len(names) // columns)

    def make() -> Figure:
        room = _Room(len(places), across, size, 0.75, below, (0.35, 0.5))
        drawn: dict[str, Any] = {}
        for i, (ax, (where, curves)) in enumerate(zip(room.axes, places.items(), strict=True)):
            greys = 0
            for curve in curves:
                own: dict[str, Any] = dict(look.get(curve.name, {"color": SOFT}))
                if curve.dashed:
                    own = {"color": SOFT, "linestyle": marks[greys % len(marks)]}
                    greys += 1
                (line,) = ax.plot(curve.x, curve.mean, linewidth=1.5, **own)
                alpha = 0.07 if curve.dashed else 0.18
                ax.fill_between(curve.x, curve.low, curve.high, color=own["color"], alpha=alpha, linewidth=0)
                drawn.setdefault(curve.name, line)
            ax.set_title(where, fontsize=9, loc="left")
            ax.set_xlim(0, 1)
            ax.tick_params(labelleft=room.first(i), labelbottom=room.lowest(i))
            if room.first(i):
                ax.set_ylabel(f"{metric.score} lost" if metric.short == "windows" else metric.score)
            if room.lowest(i):
                verb = {"insertion": "inserted", "deletion": "removed", "windows": "of the time"}
                ax.set_xlabel(f"share {verb.get(metric.short, 'of the clip')}")
        low = min(ax.get_ylim()[0] for ax in room.axes)
        high = max(ax.get_ylim()[1] for ax in room.axes)
        for ax in room.axes:
            ax.set_ylim(low, high)
        labels = [brief[name] for name in drawn]
        room.sheet.legend(drawn.values(), labels, loc="lower center", ncols=columns, fontsize=8)
        return room.sheet

    counts = sorted({curve.n for curves in places.values() for curve in curves})
    clips = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))
    return Drawn(
        f"curves-{slug(metric.name)}",
        f"{metric.title}: mean curves",
        f"Means over {clips} clips; bands: 95 % bootstrap interval of the mean, point by point."
        + (" Dashed: anchors." if any(c.dashed for curves in places.values() for c in curves) else ""),
        _sheet(make),
    )


def means_figure(
    metric: Metric, places: Mapping[str, Sequence[Score]], look: Mapping[str, Mapping[str, Any]]
) -> Drawn:
    """A dot and its interval for each method and anchor; the place of the best is marked by a line."""
    names = list(dict.fromkeys(s.method for lines in places.values() for s in lines))
    anchors = {s.method for lines in places.values() for s in lines if s.anchor}
    names = [*(n for n in names if n not in anchors), *(n for n in names if n in anchors)]
    across = min(4, len(places))
    down = -(-len(places) // across)
    brief = shortened(names)
    left = 0.2 + max(wide(text) for text in brief.values())
    w = (8.2 - 0.25 * (across - 1)) / across if across > 2 else 3.4
    h = 0.21 * len(names)
    size = (left + across * (w + 0.25), 0.1 + down * (h + 0.75))
    values = [v for lines in places.values() for s in lines for v in (s.mean, s.low, s.high)]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    edge = 0.04 * (high - low) or 0.05
    marks = [v for v in MaxNLocator(4).tick_values(low, high) if low - edge <= v <= high + edge]

    def make() -> Figure:
        sheet = Figure(figsize=size)
        ax = sheet.add_axes((0, 0, 1, 1))  # one for all in inches: axes of their own take far longer
        ax.set_xlim(0, size[0])
        ax.set_ylim(size[1], 0)
        ax.set_axis_off()
        rules, bars, colours, bests = [], [], [], []
        dots: list[tuple[float, float]] = []
        inside = []
        for i, (where, lines) in enumerate(places.items()):
            row, column = divmod(i, across)
            x, y = left + column * (w + 0.25), 0.35 + row * (h + 0.75)

            def at(value: float, x: float = x) -> float:
                return x + w * (value - low + edge) / (high - low + 2 * edge)

            ax.text(x, y - 0.12, where)
            rules += [[(x, y), (x, y + h), (x + w, y + h)]]
            for value in marks:
                rules += [[(at(value), y + h), (at(value), y + h + 0.04)]]
                ax.text(at(value), y + h + 0.17, f"{value:g}", ha="center", color=SOFT, fontsize=8)
            if i + across >= len(places):
                ax.text(x + w / 2, y + h + 0.34, metric.title, ha="center")
            for k, name in enumerate(names if column == 0 else []):
                ax.text(x - 0.08, y + 0.21 * (k + 0.5), brief[name], ha="right", va="center")
            for line in lines:
                level = y + 0.21 * (names.index(line.method) + 0.5)
                colour = SOFT if line.anchor else look.get(line.method, {"color": INK})["color"]
                colours.append(colour)
                inside.append("none" if line.anchor else colour)
                dots.append((at(line.mean), level))
                bars.append([(at(line.low), level), (at(line.high), level)])
                bests += [[(at(line.mean), y), (at(line.mean), y + h)]] if line.best else []
        ax.add_collection(LineCollection(rules, colors=SOFT, linewidths=0.7))
        ax.add_collection(LineCollection(bests, colors=SOFT, linewidths=0.7, linestyles=":"))
        ax.add_collection(LineCollection(bars, colors=colours, linewidths=2.6, alpha=0.5))
        x, y = np.array(dots).T
        ax.scatter(x, y, s=13, facecolors=inside, edgecolors=colours, linewidths=0.9)
        return sheet

    return Drawn(
        f"means-{slug(metric.name)}",
        f"{metric.title}: means",
        f"Dots: means, {metric.direction}; bars: 95 % bootstrap intervals; dotted line: the best method."
        + (" Hollow: anchors." if anchors else ""),
        _sheet(make),
    )


def ranks_figure(metric: Metric, ranked: Ranked) -> Drawn:
    """The critical-difference diagram (Demsar 2006, figure 1): average ranks on a line, the best at the left;
    bars join methods that Nemenyi's test does not part.
    """
    methods, found = ranked.methods, ranked.found
    order = np.argsort(found.ranks, kind="stable")
    k = len(order)
    half = -(-k // 2)
    brief = shortened(methods)
    side = 0.75 + max(wide(text) for text in brief.values())
    axis, whole = 3.2, 2 * side + 3.2 + 0.6
    top = 0.72 + 0.14 * len(found.alike)
    high = top + 0.24 * half + 0.15

    def at(rank: float) -> float:
        return side + 0.3 + (rank - 1) / (k - 1) * axis

    def make() -> Figure:
        sheet = Figure(figsize=(whole, high))
        ax = sheet.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, whole)
        ax.set_ylim(high, 0)
        ax.set_axis_off()
        line = 0.62
        ticks = [((at(rank), line - 0.06), (at(rank), line)) for rank in range(1, k + 1)]
        end = min(at(1 + found.distance), whole - 0.1)
        bar = [((x, 0.2), (x, 0.28)) for x in (at(1), end)] + [((at(1), 0.24), (end, 0.24))]
        groups = []
        for i, (first, last) in enumerate(found.alike):
            ends = (at(found.ranks[order[first]]) - 0.05, at(found.ranks[order[last]]) + 0.05)
            groups.append([(x, line + 0.12 + 0.14 * i) for x in ends])
        leads = []
        for rank in range(1, k + 1):
            ax.text(at(rank), line - 0.1, str(rank), ha="center", va="bottom", fontsize=8, color=SOFT)
        ax.text((at(1) + end) / 2, 0.17, f"CD = {found.distance:.3g}", ha="center", va="bottom", fontsize=8)
        for i, j in enumerate(order):
            left = i < half
            y = top + 0.12 + 0.24 * (i if left else k - 1 - i)
            x, edge = at(found.ranks[j]), side if left else whole - side
            leads.append([(x, line), (x, y), (edge, y)])
            texts = [brief[methods[j]], f"{found.ranks[j]:.2f}"]
            name = "  ".join(texts if left else texts[::-1])
            ax.text(edge + (-0.06 if left else 0.06), y, name, ha="right" if left else "left", va="center")
        ax.add_collection(LineCollection(leads, colors=SOFT, linewidths=0.8))
        rule = [((at(1), line), (at(k), line)), *ticks, *bar]
        ax.add_collection(LineCollection(rule, colors=INK, linewidths=1))
        ax.add_collection(LineCollection(groups, colors=COLOURS[1], linewidths=3.2))
        return sheet

    verdict = "at least one differs" if found.p < 0.05 else "no difference shown"
    p = "p < .001" if found.p < 0.001 else f"p = {found.p:.3f}"
    over = (
        f" Ranks of a clip are means over the models {', '.join(ranked.models)}."
        if len(ranked.models) > 1
        else ""
    )
    if ranked.dropped:
        over += f" Left out, as they have no clip with a value of every method: {', '.join(ranked.dropped)}."
    return Drawn(
        f"ranks-{slug(metric.name)}",
        f"{metric.title}: average ranks",
        f"Friedman chi2({k - 1}) = {found.chi2:.4g}, {p}, over {found.n:,} clips: {verdict}."
        f" Methods under a bar are closer than Nemenyi's critical difference (CD) at .05.{over}",
        _sheet(make),
    )


def slug(text: str) -> str:
    """A name for files and ids: itself where it can be, else what is left of it and a hash of it all."""
    if re.fullmatch(r"[a-z0-9_-]{1,60}", text):
        return text
    left = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:50].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{left}-{digest}" if left else digest
