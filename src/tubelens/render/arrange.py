"""Which picture stands where when several explanations of one video are drawn together.

Several targets of one method are columns. Several methods of one target fill a grid that is about square.
Several methods of several targets are a table: a row a method, a column a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

from tubelens.explanation import Explanation
from tubelens.methods import short_name

Cell = tuple[int | None, str]
"""Number of the explanation and the style; None: the original."""
IN_A_ROW = 3
"""So many methods still stand in one row."""


def arrange(many: Sequence[Explanation], styles: Sequence[str], beside: bool) -> list[list[Cell | None]]:
    """Rows of cells, all of one length; None is an empty place."""
    original: list[Cell] = [(None, "original")] if beside else []
    cells: list[Cell] = [(i, style) for i in range(len(many)) for style in styles]
    per_method: dict[str, list[Cell]] = {}
    for cell in cells:
        per_method.setdefault(many[cell[0] or 0].provenance.method, []).append(cell)
    targets = {e.provenance.label for e in many}  # one method explains its logit, another its probability
    if len(per_method) == 1:
        return [[*original, *cells]]
    if len(targets) > 1:
        width = max(map(len, per_method.values()))
        return [[*original, *row, *[None] * (width - len(row))] for row in per_method.values()]
    every: list[Cell | None] = [*original, *cells]
    width = len(every) if len(every) <= IN_A_ROW else ceil(sqrt(len(every)))
    rows = [every[i : i + width] for i in range(0, len(every), width)]
    rows[-1] += [None] * (width - len(rows[-1]))
    return rows


def names(many: Sequence[Explanation], labels: Sequence[str], both: bool = False) -> list[str]:
    """What tells the explanations apart: the label, the method's name, or both.

    Two methods of one name and different options are numbered.

    Args:
        many: explanations.
        labels: of their targets.
        both: with several methods, also the label that all of them share.
    """
    methods = list(dict.fromkeys(e.provenance.method for e in many))
    if len(methods) == 1:
        return list(labels)
    short = {m: short_name(m) for m in methods}
    for m in methods:
        twins = [n for n in methods if short_name(n) == short_name(m)]
        if len(twins) > 1:
            short[m] = f"{short_name(m)} {twins.index(m) + 1}"
    several = both or len(set(labels)) > 1
    return [
        f"{short[e.provenance.method]}: {label}" if several else short[e.provenance.method]
        for e, label in zip(many, labels, strict=True)
    ]
