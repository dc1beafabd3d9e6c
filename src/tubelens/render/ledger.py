"""A spectral ledger as a figure: a waterfall a region, from all bands filled to the clip as it is.

    unlike p=0.97
    whole clip (0.00 to 1.88 s)                      ■ RGB 47%  ■ IR 53%
    RGB alone        ▏█                                      +0.48    6%
    IR alone         ▏ █                                     +0.12    1%
    RGB with IR      ▏  ▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨▨             +7.77   93%
    sum              ▏━━━━━━━━━━━━━━━━━━━━━━━━━━             +8.37

Sizes are inches; nothing is left to a layout engine and no part touches pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tubelens.accounts import NOTHING, WRITERS, Ledger, Region, percent
from tubelens.render.paper import DPI, INK, SOFT, pixels, quiet, write
from tubelens.video import source_name, write_png

OWN = {"R": "#d55e00", "G": "#009e73", "B": "#0072b2"}
COLOURS = ("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#009e73", "#d55e00")
"""One a band, `OWN` first: told apart also by those who see fewer colours (Okabe and Ito)."""
_SUM = "#3c3c3c"
PAIRS = 6
"""Pairs that are drawn, those that change most; the others are one bar."""
_WIDTH, _SIDE, _NAMES, _NUMBERS = 8.0, 0.3, 1.55, 1.25
_HEAD, _WORDS, _ROW, _GAP, _FOOT = 0.72, 0.6, 0.23, 0.22, 0.6
_APART = 0.16  # one band's share from the next


@dataclass(frozen=True)
class _Step:
    """A bar: what it is called, how far it goes, and whose colours it has (none: of several pairs)."""

    name: str
    value: float
    colours: tuple[str, ...] = ()


def ledger_figure(ledger: Ledger) -> Figure:
    """Draw it: for each region a bar for every band alone, and hatched ones for what pairs bring together.

    Each bar begins where the one above ends; together they reach from the score with all bands filled to that
    of the clip as it is. All regions share one axis.

    Returns:
        A figure with an Agg canvas; `savefig` writes it as PNG, PDF or SVG.
    """
    drawn = [(region, _steps(ledger, region)) for region in ledger.regions]
    panels = [_WORDS + (len(steps) + 1) * _ROW for _, steps in drawn]
    height = _HEAD + sum(panels) + len(panels) * _GAP + _FOOT
    sheet = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(sheet)
    low, high = _reach(drawn)
    room = _WIDTH - 2 * _SIDE
    made = f"{ledger.made} · {source_name(ledger.video)}"
    legend = (
        "solid: what a band brings alone · hatched: what two bring only together"
        " · a band's share: alone, and half of each pair"
    )
    with quiet():
        write(sheet, ledger.title, _SIDE, 0.14, room, 12, weight="bold")
        write(sheet, made, _SIDE, 0.4, room, 7.5, color=SOFT)
        write(sheet, legend, _SIDE, height - 0.24, room, 7, color=SOFT)
        top = _HEAD
        for (region, steps), panel in zip(drawn, panels, strict=True):
            _words(sheet, ledger, region, top)
            place = (_SIDE + _NAMES, top + _WORDS, room - _NAMES - _NUMBERS, panel - _WORDS)
            box = (
                place[0] / _WIDTH,
                1 - (place[1] + place[3]) / height,
                place[2] / _WIDTH,
                place[3] / height,
            )
            _waterfall(sheet.add_axes(box), ledger, region, steps, (low, high), region is ledger.regions[-1])
            top += panel + _GAP
    return sheet


def draw_ledger(ledger: Ledger, path: Path) -> Path:
    """Write `ledger_figure` as a PNG file.

    Raises:
        OutputError: no room, no permission; nothing half-written is left.
    """
    return write_png(path, pixels(ledger_figure(ledger)))


WRITERS[".png"] = draw_ledger


def _steps(ledger: Ledger, region: Region) -> list[_Step]:
    names = ledger.players
    colours = _colours(names)
    alone = [
        _Step(f"{name} alone", float(v), (colours[name],))
        for name, v in zip(names, region.alone, strict=True)
    ]
    pairs = [
        _Step(
            f"{names[i]} with {names[j]}", float(region.synergy[i, j]), (colours[names[i]], colours[names[j]])
        )
        for i, j in combinations(range(len(names)), 2)
    ]
    strongest = sorted(pairs, key=lambda step: -abs(step.value))[:PAIRS]
    shown = [step for step in pairs if step in strongest]
    rest = [step for step in pairs if step not in strongest]
    if rest:
        shown.append(_Step(f"{len(rest)} other pairs", sum(step.value for step in rest)))
    return alone + shown


def _colours(names: Sequence[str]) -> dict[str, str]:
    left = [c for c in COLOURS if c not in [OWN.get(name) for name in names]]
    others = dict(zip([name for name in names if name not in OWN], left, strict=False))
    return {name: OWN.get(name) or others[name] for name in names}


def _reach(drawn: list[tuple[Region, list[_Step]]]) -> tuple[float, float]:
    """The lowest and the highest score that any bar touches, and a little more."""
    touched = []
    for region, steps in drawn:
        here = region.values[0]
        touched += [here, region.values[-1]]
        for step in steps:
            here += step.value
            touched.append(here)
    low, high = min(touched), max(touched)
    more = 0.03 * (high - low) or 0.5
    return low - more, high + more


def _words(sheet: Figure, ledger: Ledger, region: Region, top: float) -> None:
    """Over a waterfall: where it is, what happened to the score, each band's share where there is one."""
    room = _WIDTH - 2 * _SIDE
    write(sheet, ledger.where(region), _SIDE, top, room, 9, weight="bold")
    write(sheet, ledger.said(region), _SIDE, top + 0.2, room, 7.5, color=SOFT)
    if region.shares is None:
        return
    end = _SIDE - _APART
    for (name, colour), share in zip(_colours(ledger.players).items(), region.shares, strict=True):
        end = write(sheet, "■", end + _APART, top + 0.38, room, 8, color=colour)
        end = write(sheet, f"{name} {percent(share)}", end + 0.05, top + 0.38, _WIDTH - _SIDE - end, 8)


def _waterfall(
    ax: Axes, ledger: Ledger, region: Region, steps: list[_Step], reach: tuple[float, float], last: bool
) -> None:
    rows = len(steps) + 1
    ax.set(xlim=reach, ylim=(rows - 0.5, -0.5), yticks=[])
    ax.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set(color=SOFT, linewidth=0.5)
    ax.tick_params(axis="x", labelsize=7, length=2, width=0.5, colors=SOFT, labelbottom=last)
    if last:
        ax.set_xlabel(ledger.score, fontsize=7.5, color=SOFT, labelpad=2)
    low, high = region.values[0], region.values[-1]
    for place in (low, high):
        ax.axvline(place, color=SOFT, linewidth=0.6, linestyle=(0, (3, 3)), zorder=1)
    here = low
    for row, step in enumerate(steps):
        ax.barh(row, step.value, 0.66, here, zorder=3, **_paint(step))
        here += step.value
        ax.plot([here, here], [row, row + 1], color=SOFT, linewidth=0.5, zorder=2)
        share = percent(step.value / region.total) if region.evidence else NOTHING
        _numbers(ax, row, step.name, ledger.amount(step.value), share, INK)
    ax.barh(rows - 1, high - low, 0.28, low, color=_SUM, zorder=3)
    _numbers(ax, rows - 1, "sum", ledger.amount(region.total), "", INK, weight="bold")


def _paint(step: _Step) -> dict[str, Any]:
    """Solid for a band; a pair has one colour behind lines of the other."""
    if len(step.colours) == 1:
        return {"color": step.colours[0]}
    behind, lines = step.colours or (SOFT, SOFT)
    light = tuple(1 - 0.45 * (1 - c) for c in to_rgb(behind))
    return {"facecolor": light, "edgecolor": lines, "hatch": "//////", "linewidth": 0.0}


def _numbers(ax: Axes, row: int, name: str, value: str, share: str, ink: str, **look: Any) -> None:
    """The name at the left of a bar; its score and its part of the total at the right of the axes."""
    wide = ax.get_position().width * _WIDTH
    across: dict[str, Any] = {
        "transform": ax.get_yaxis_transform(),
        "va": "center",
        "fontsize": 8,
        "color": ink,
        "parse_math": False,
        **look,
    }
    shown = name if len(name) <= 22 else name[:21] + "…"
    ax.text(-0.1 / wide, row, shown, ha="right", **across)
    ax.text(1 + 0.72 / wide, row, value, ha="right", **across)
    ax.text(1 + _NUMBERS / wide, row, share, ha="right", **across)
