"""Bands above the pictures of several networks: which network, what it predicted, how its maps agree.

┌──────────────────────────────────────────────────────────────────┐
│ net   predicted: washing p=0.62   rank correlation with net2: .63 │
├──────────────────────────────┬───────────────────────────────────┤
│           picture            │             picture               │
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from PIL import Image, ImageDraw

from tubelens.agreement import agreement
from tubelens.explanation import Explanation
from tubelens.methods import short_name
from tubelens.render.arrange import Cell, correlation, network_names, network_of, table, with_first
from tubelens.render.caption import SMALLEST, line_step, padding, probability, shortened, typeface

_INK, _SOFT, _PAPER = (255, 255, 255), (190, 190, 190), (24, 24, 24)
_GAP = "   "


@dataclass(frozen=True)
class Head:
    """What stands above the pictures of one network.

    Attributes:
        start, stop: the columns it spans.
        name: of the network; of the method too, where there are several and this row is of one.
        predicted: the network's strongest class and its probability.
        agreements: rank correlations of the maps below, the most telling first.
    """

    start: int
    stop: int
    name: str
    predicted: str
    agreements: tuple[str, ...]


def heads(many: Sequence[Explanation], rows: Sequence[Sequence[Cell | None]]) -> list[list[Head]]:
    """The heads above each row of an arrangement; none where there is one network only."""
    if len({network_of(e) for e in many}) == 1:
        return [[] for _ in rows]
    shown = [[(c, many[i]) for c, i in _numbers(row)] for row in rows]
    titles = dict(zip(map(network_of, many), network_names([network_of(e) for e in many]), strict=True))
    correlations = _correlations(many, titles)
    if all(len({network_of(e) for _, e in row}) == 1 for row in shown):
        return [
            [_head(0, len(row), [e for _, e in here], many, titles, correlations)]
            for row, here in zip(rows, shown, strict=True)
        ]
    return [[_head(c, c + 1, [e], many, titles, correlations) for c, e in here] for here in shown]


def _numbers(row: Sequence[Cell | None]) -> list[tuple[int, int]]:
    """Column and number of the explanations of a row."""
    return [(c, cell[0]) for c, cell in enumerate(row) if cell is not None and cell[0] is not None]


def _correlations(
    many: Sequence[Explanation], titles: dict[tuple[str, str], str]
) -> Callable[[Sequence[Explanation]], tuple[str, ...]]:
    """What the heads say of the maps below: how they agree with the first network's, and with each other."""
    first = with_first(many)
    of = {id(e): r for key, row in table(many).items() for e, r in zip(row, first.get(key, ()), strict=False)}
    base = titles[network_of(many[0])]

    def said(here: Sequence[Explanation]) -> tuple[str, ...]:
        unique = list({id(e): e for e in here}.values())  # several styles show one map several times
        found = []
        if any(isfinite(of.get(id(e), float("nan"))) for e in unique):
            values = " ".join(correlation(of.get(id(e), float("nan"))) for e in unique)
            found.append(f"rank correlation with {base}: {values}")
        if len(unique) > 1 and len({e.provenance.method for e in unique}) == 1:
            values = " ".join(correlation(agreement(unique[0], e)) for e in unique[1:])
            what = "with" if found else "rank correlation with"
            found.append(f"{what} {unique[0].provenance.label}: {values}")
        return tuple(found)

    return said


def _head(
    start: int,
    stop: int,
    here: Sequence[Explanation],
    many: Sequence[Explanation],
    titles: dict[tuple[str, str], str],
    correlations: Callable[[Sequence[Explanation]], tuple[str, ...]],
) -> Head:
    p = here[0].provenance
    name = titles[network_of(here[0])]
    mine = {e.provenance.method for e in here}
    if len(mine) == 1 and stop - start > 1 and len({e.provenance.method for e in many}) > 1:
        name = f"{name}, {short_name(p.method)}"
    predicted = f"predicted: {p.predicted[0][0]} {probability(p.predicted[0][1])}" if p.predicted else ""
    return Head(start, stop, name, predicted, correlations(here))


def bands(every: Sequence[Sequence[Head]], columns: int, size: tuple[int, int]) -> list[np.ndarray | None]:
    """A picture `(h, w, 3)` of the heads above each row, all of one height; None where there are no heads.

    What does not fit is left out: first the rank correlations, which get a second line where that helps.

    Args:
        every: heads of each row.
        columns: of the arrangement.
        size: height and width of one cell.
    """
    letters, lines = _fitting(every, size)
    if not lines:
        return [None for _ in every]
    return [_band(row, columns * size[1], size[1], letters, lines) if row else None for row in every]


def band_rows(every: Sequence[Sequence[Head]], size: tuple[int, int]) -> int:
    """Pixels that all bands take together at most, for cells of that size or smaller."""
    letters, lines = _fitting(every, size)
    return sum(_height(letters, 2) for row in every if row) if lines else 0


def _fitting(every: Sequence[Sequence[Head]], size: tuple[int, int]) -> tuple[int, int]:
    """Size of the letters and number of lines; no line where there are no heads or none is legible."""
    letters = max(SMALLEST, round(6.5 + 0.025 * size[0]))
    flat = [head for row in every for head in row]
    if not flat or _height(letters, 1) > 0.25 * size[0]:
        return letters, 0
    for head in flat:
        room = (head.stop - head.start) * size[1] - 2 * padding(letters)
        if head.agreements and _length(_line(head, all_of_it=True), letters) > room:
            return letters, 2 if _height(letters, 2) <= 0.25 * size[0] else 1
    return letters, 1


def _height(letters: int, lines: int) -> int:
    return line_step(letters) * lines + padding(letters)


Words = list[tuple[str, bool, tuple[int, int, int]]]


def _line(head: Head, all_of_it: bool) -> Words:
    words: Words = [(head.name, True, _INK)]
    if head.predicted:
        words.append((_GAP + head.predicted, False, _INK))
    if all_of_it:
        words += [(_GAP + text, False, _SOFT) for text in head.agreements]
    return words


def _length(words: Words, letters: int) -> float:
    return sum(typeface(letters, bold).getlength(text) for text, bold, _ in words)


def _written(head: Head, room: float, letters: int, lines: int) -> list[Words]:
    """The head's lines, cut to what fits."""
    plain = typeface(letters, False)
    whole = _line(head, all_of_it=lines == 1)
    while lines == 1 and len(whole) > 2 and _length(whole, letters) > room:
        whole.pop()  # half a number would mislead
    while len(whole) > 1 and _length(whole, letters) > room:
        text, bold, ink = whole.pop()
        left = room - _length(whole, letters)
        if (cut := shortened(text, plain, left, 10)) is not None:
            whole.append((cut, bold, ink))
            break
    if _length(whole, letters) > room:
        whole = [(shortened(head.name, typeface(letters, True), room, 1) or "", True, _INK)]
    second: Words = []
    for text in head.agreements if lines == 2 else ():
        words = [*second, (_GAP * bool(second) + text, False, _SOFT)]
        if _length(words, letters) <= room:
            second = words
    return [whole, second] if lines == 2 else [whole]


def _band(row: Sequence[Head], width: int, cell: int, letters: int, lines: int) -> np.ndarray:
    pad, step = padding(letters), line_step(letters)
    picture = Image.new("RGB", (width, _height(letters, lines)), _PAPER)
    pen = ImageDraw.Draw(picture)
    for head in row:
        room = float((head.stop - head.start) * cell - 2 * pad)
        for number, words in enumerate(_written(head, room, letters, lines)):
            x = float(head.start * cell + pad)
            for text, bold, ink in words:
                pen.text(
                    (x, pad // 2 + number * step + letters),
                    text,
                    font=typeface(letters, bold),
                    fill=ink,
                    anchor="ls",
                )
                x += typeface(letters, bold).getlength(text)
    return np.array(picture)
