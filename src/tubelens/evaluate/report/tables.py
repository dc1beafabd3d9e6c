"""Tables as values: what CSV, LaTeX and the page are written from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["text", "count", "value", "spread", "interval", "pair", "p", "share", "seconds"]
NOTHING = "–"
SETTLED = ("metric", "model", "network", "trained", "spectrum", "n")
"""Fields that may stand in the title where all lines have the same."""


@dataclass(frozen=True)
class Column:
    """A column: its heading, the fields of a row that it shows, and how.

    Attributes:
        title: heading.
        fields: keys of a row; an interval and a pair (mean and std) have two, all else one. In CSV each is a
            column of its own.
        kind: how it is written.
        latex: whether LaTeX has it: a page of a paper is narrow.
    """

    title: str
    fields: tuple[str, ...]
    kind: Kind = "text"
    latex: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        name: of its files. `title`: above it. `note`: below it.
        columns: what is shown.
        rows: field -> value. Further keys: `anchor` for lines that are no methods, `bold`: the fields that
            are the best of their column, `marks`: field -> signs behind it, `warning`: what is wrong with
            the line, in words.
        above: levels of headings over several columns, each (text, number of columns) from left to right.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    note: str = ""
    above: tuple[tuple[tuple[str, int], ...], ...] = ()


def number(value: float, digits: int = 3) -> str:
    """Three decimals where the size is that of a score, else four figures; a dash for what is no number."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.4g}"


def shown(row: Mapping[str, Any], column: Column) -> str:
    """What stands in the cell."""
    values = [row.get(key) for key in column.fields]
    first = values[0]
    if first is None or first == "" or (isinstance(first, float) and not math.isfinite(first)):
        return NOTHING if column.kind != "text" else ""
    match column.kind:
        case "text":
            return str(first)
        case "count":
            return f"{first:,.0f}" if float(first).is_integer() else f"{first:,.1f}"
        case "interval":
            return f"[{number(float(first))}, {number(_float(values[1]))}]"
        case "pair":
            return number(float(first)) + (
                f" ± {number(second)}" if (second := _float(values[1])) >= 0 else ""
            )
        case "spread":
            return f"± {number(float(first))}"
        case "p":
            return "< .001" if first < 0.001 else f"{first:.3f}"
        case "share":
            return f"{first:.1%}"
        case "seconds":
            return f"{first:.2f}" if first < 100 else f"{first:.0f}"
        case _:
            return number(float(first))


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def marks(row: Mapping[str, Any], column: Column) -> str:
    """Signs behind the cell."""
    return str(row.get("marks", {}).get(column.fields[0], ""))


def is_bold(row: Mapping[str, Any], column: Column) -> bool:
    """Whether the cell is the best of its column."""
    return column.fields[0] in row.get("bold", ())


def to_csv(table: Table) -> str:
    """All fields in full precision; empty where there is nothing."""
    fields = [key for column in table.columns for key in column.fields]
    extra = [
        key
        for key in ("anchor", "best", "marks", "warning")
        if any(_told(row).get(key) for row in table.rows)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*fields, *extra])
    for row in table.rows:
        writer.writerow(
            [_plain(row.get(key)) for key in fields] + [_plain(_told(row).get(key)) for key in extra]
        )
    return text.getvalue()


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says beside its numbers: the fields that are the best, and signs, where there are any."""
    signs = [f"{key} {text}" for key, text in row.get("marks", {}).items() if text]
    return {
        "anchor": bool(row.get("anchor")),
        "best": "; ".join(field for field in row.get("bold", ()) if field != "std"),
        "marks": "; ".join(signs),
        "warning": row.get("warning", ""),
    }


def to_json(table: Table) -> list[dict[str, Any]]:
    """Lines ready for JSON: what is no number is null, and what a line has besides only where it has it."""
    return [
        {key: _json(row.get(key)) for column in table.columns for key in column.fields}
        | {key: value for key, value in _told(row).items() if value}
        for row in table.rows
    ]


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slim(table: Table) -> Table:
    """Without columns that say the same in every line: that goes into the title."""
    said, kept = [], []
    for column in table.columns:
        values = {shown(row, column) for row in table.rows}
        if column.fields[0] in SETTLED and len(values) == 1 and not table.above:
            if text := values.pop():
                plain = column.fields[0] in ("model", "network", "metric")
                said.append(
                    text
                    if plain
                    else f"{text} {column.title}"
                    if column.kind == "count"
                    else f"{column.title} {text}"
                )
        else:
            kept.append(column)
    title = f"{table.title} ({', '.join(said)})" if said else table.title
    return replace(table, title=title, columns=tuple(kept))


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value  # a spreadsheet would take it for a formula
    return repr(value) if isinstance(value, float) else value


SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "±": r"\ensuremath{\pm}",
    "↑": r"\ensuremath{\uparrow}",
    "↓": r"\ensuremath{\downarrow}",
    "→": r"\ensuremath{\rightarrow}",
    "×": r"\ensuremath{\times}",
    "–": "--",
    "…": r"\ldots{}",
    "≥": r"\ensuremath{\geq}",
    "≤": r"\ensuremath{\leq}",
    "⚠": r"\textsuperscript{!}",
    "†": r"\textsuperscript{\dag}",
}


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def to_latex(table: Table) -> str:
    """A `table` with `booktabs` rules; the best is bold, anchors are below a rule and in italics."""
    columns = [column for column in table.columns if column.latex]
    align = "".join("l" if column.kind == "text" else "r" for column in columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(table.title)}{'. ' + escaped(table.note) if table.note else ''}}}",
        rf"\label{{tab:{''.join(c if c.isalnum() else '-' for c in table.name)}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
    ]
    for level in table.above:
        lines += _above(level)
    lines += [" & ".join(escaped(column.title) for column in columns) + r" \\", r"\midrule"]
    before = False
    for row in table.rows:
        if before != bool(row.get("anchor")):
            before = not before
            lines.append(r"\midrule")
        lines.append(" & ".join(_cell(row, column) for column in columns) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _above(headings: Sequence[tuple[str, int]]) -> list[str]:
    """A level of headings, and the rules below them."""
    cells, rules, at = [], [], 1
    for text, wide in headings:
        cells.append(rf"\multicolumn{{{wide}}}{{c}}{{{escaped(text)}}}" if text else " & ".join([""] * wide))
        if text:
            rules.append(rf"\cmidrule(lr){{{at}-{at + wide - 1}}}")
        at += wide
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _cell(row: Mapping[str, Any], column: Column) -> str:
    text = escaped(shown(row, column))
    if column.fields[0] == "method":
        return rf"\textit{{{text}}}" if row.get("anchor") else text
    return (rf"\textbf{{{text}}}" if is_bold(row, column) else text) + escaped(marks(row, column))
