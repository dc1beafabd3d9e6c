"""Which picture stands where when several explanations of one video are drawn together.

Several targets of one method are columns. Several methods of one target fill a grid that is about square.
Several methods of several targets are a table: a row a method, a column a target. Several networks are a
table too: a row a network (and method), a column a target; with one target a column a method; and with one
picture each they fill a square.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import ceil, isfinite, sqrt
from pathlib import Path

from tubelens.agreement import agreement
from tubelens.explanation import Explanation
from tubelens.methods import short_name

Cell = tuple[int | None, str]
"""Number of the explanation and the style; None: the original."""
IN_A_ROW = 3
"""So many methods still stand in one row."""


def network_of(e: Explanation) -> tuple[str, str]:
    """What tells networks apart: name and weights."""
    return e.provenance.model, e.provenance.weights


def arrange(many: Sequence[Explanation], styles: Sequence[str], beside: bool) -> list[list[Cell | None]]:
    """Rows of cells, all of one length; None is an empty place."""
    original: list[Cell] = [(None, "original")] if beside else []
    cells: list[Cell] = [(i, style) for i in range(len(many)) for style in styles]
    rows = grouped(many, cells)
    networks = {network_of(e) for e in many}
    targets = {e.provenance.label for e in many}  # one method explains its logit, another its probability
    width = max(map(len, rows))
    if len(rows) == 1:
        return [[*original, *cells]]
    if len(targets) > 1 if len(networks) == 1 else width > 1:
        return [[*original, *row, *[None] * (width - len(row))] for row in rows]
    every: list[Cell | None] = [*original, *cells]
    width = len(every) if len(every) <= IN_A_ROW else ceil(sqrt(len(every)))
    square = [every[i : i + width] for i in range(0, len(every), width)]
    square[-1] += [None] * (width - len(square[-1]))
    return square


def grouped(many: Sequence[Explanation], cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that belong in one row: those of a network and a method; of a network, if each has one target."""
    single = all(len(row) == 1 for row in table(many).values())
    per_row: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        e = many[cell[0] or 0]
        several = len({network_of(other) for other in many}) > 1
        key = network_of(e) if several and single else (network_of(e), e.provenance.method)
        per_row.setdefault(key, []).append(cell)
    return list(per_row.values())


def table(many: Sequence[Explanation]) -> dict[tuple[tuple[str, str], str], list[Explanation]]:
    """The explanations of each network and method, in the order of their targets."""
    found: dict[tuple[tuple[str, str], str], list[Explanation]] = {}
    for e in many:
        found.setdefault((network_of(e), e.provenance.method), []).append(e)
    return found


def names(many: Sequence[Explanation], labels: Sequence[str], both: bool = False) -> list[str]:
    """What tells the explanations of a network apart: the label, the method's name, or both.

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


def network_names(networks: Sequence[tuple[str, str]]) -> list[str]:
    """What tells networks apart: their names, with the weights where two have one name.

    Args:
        networks: name and weights of each.
    """
    every = list(dict.fromkeys(networks))
    twice = {name for name, weights in every if sum(other == name for other, _ in every) > 1}
    return [f"{name} ({_brief(weights)})" if name in twice else name for name, weights in networks]


def _brief(weights: str) -> str:
    """`nets.py:make` of `as nets.py:make made them`, `random, seed 3`, and of a path its last part."""
    if weights.startswith("as ") and weights.endswith(" made them"):
        weights = weights.removeprefix("as ").removesuffix(" made them")
    if weights.startswith("random (") and weights.endswith(")"):
        return f"random, {weights[8:-1]}"
    return Path(weights).name or weights


def with_first(many: Sequence[Explanation]) -> dict[tuple[tuple[str, str], str], list[float]]:
    """Rank correlation of each map with that of the first network by the same method, target by target.

    Only networks but the first have any; NaN where the first has no such map.
    """
    rows = table(many)
    first = network_of(many[0])
    found: dict[tuple[tuple[str, str], str], list[float]] = {}
    for (network, method), row in rows.items():
        base = rows.get((first, method), [])
        if network != first and base:
            pairs = [agreement(a, b) for a, b in zip(base, row, strict=False)]
            found[network, method] = pairs + [float("nan")] * (len(row) - len(pairs))
    return found


def correlation(r: float) -> str:
    """`.63`, `-.05`, `1`; `–` where there is none."""
    if not isfinite(r):
        return "–"
    text = f"{r:.2f}"
    return {"1.00": "1", "-1.00": "-1", "-0.00": ".00"}.get(text, text.replace("0.", ".", 1))
