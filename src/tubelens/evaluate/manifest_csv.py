"""The lines of a CSV manifest, one in memory at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from typing import Literal, NoReturn

from tubelens.errors import InputError, nearest
from tubelens.evaluate.items import Item, Manifest, few
from tubelens.truth_sources import Boxes, read_boxes
from tubelens.video.streams import absent as lacking
from tubelens.video.streams import beneath, is_plain, named

Missing = Literal["error", "skip"]
NEEDED = ("path", "label")
KNOWN = (*NEEDED, "start", "end", "boxes", "masks", "spectrum", "id")
STREAM = "path:"
"""Beginning of the names of columns that hold one spectrum each, in place of the column path."""


class Rows:
    """`(line, known columns, other columns)` of every line; cells are stripped, blank lines left out.

    Columns are separated by commas, semicolons or tabs, whichever the first line has most of; their names do
    not mind capitals. A byte order mark is left out.

    Raises:
        InputError: it cannot be read, is empty or not UTF-8, a column is missing or comes twice, or a line
            has too many or too few cells.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._between = ","
        self.header = self._header()

    def _header(self) -> list[str]:
        try:
            with open(self.name, encoding="utf-8-sig", newline="") as data:
                first = data.readline()
        except UnicodeDecodeError:
            self._complain_of_bytes()
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        if not first.strip():
            raise InputError(
                f"{self.name}: is empty, or begins with an empty line: its first line must name the columns"
                f" {', '.join(KNOWN)}"
            )
        self._between = max(",;\t", key=first.count)
        header = [cell.strip().lower() for cell in next(csv.reader([first], delimiter=self._between))]
        twice = [column for column in header if column and header.count(column) > 1]
        if twice:
            raise InputError(f"{self.name}, line 1: the column {twice[0]!r} comes twice")
        streams = [column for column in header if column.startswith(STREAM)]
        if streams and "path" in header:
            raise InputError(f"{self.name}, line 1: columns path and {streams[0]}: give one way")
        for column in streams:
            if named(f"{column.removeprefix(STREAM)}=x") is None:
                raise InputError(
                    f"{self.name}, line 1: {column!r} names no spectrum: it is path:NAME, as in path:lwir"
                )
        for column in NEEDED[1:] if streams else NEEDED:
            if column not in header:
                empty = "; its cells may be empty" if column == "label" else ""
                raise InputError(
                    f"{self.name}: has no column {column!r}{nearest(column, header)}: its first line, which"
                    f" must name the columns, is: {', '.join(header)[:200]}{empty}"
                )
        return header

    def __iter__(self) -> Iterator[tuple[int, dict[str, str], Mapping[str, str]]]:
        header = self.header
        others = [c for c in header if c and c not in KNOWN and not c.startswith(STREAM)]
        line = 1
        try:
            with open(self.name, encoding="utf-8-sig", newline="") as data:
                reader = csv.reader(data, delimiter=self._between)
                next(reader)
                for cells in reader:
                    line = reader.line_num
                    if not any(map(str.strip, cells)):
                        continue
                    if len(cells) != len(header):
                        raise InputError(
                            f"{self.name}, line {line}: {len(cells)} cells, but the header has {len(header)}:"
                            " put cells that hold a comma in double quotes"
                        )
                    row = dict(zip(header, map(str.strip, cells), strict=True))
                    yield line, row, {name: row[name] for name in others}
        except UnicodeDecodeError:
            self._complain_of_bytes()
        except csv.Error as error:
            raise InputError(
                f"{self.name}, line {line + 1}: cannot be read as CSV: {error}: put long boxes into a file"
            ) from error
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read: {error.strerror or error}") from error

    def seconds(self, cells: Mapping[str, str], column: str, line: int) -> float | None:
        """A cell that holds seconds, None where it is empty.

        Raises:
            InputError: it is no number, negative, or not finite.
        """
        written = cells.get(column)
        if not written:
            return None
        try:
            value = float(written)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise InputError(f"{self.name}, line {line}: {column} must be seconds from 0, not {written!r}")
        return value

    def _complain_of_bytes(self) -> NoReturn:
        with open(self.name, "rb") as data:
            for line, content in enumerate(data, 1):
                try:
                    content.decode("utf-8")
                except UnicodeDecodeError:
                    raise InputError(
                        f"{self.name}, line {line}: is not UTF-8: save it as CSV in UTF-8"
                    ) from None
        raise InputError(f"{self.name}: is not UTF-8: save it as CSV in UTF-8")


def csv_manifest(name: str, missing: Missing) -> Manifest:
    """A CSV, checked once from beginning to end.

    Lines whose files are missing are remembered, so that every reading leaves out the same.

    Raises:
        InputError: a fault in it, with its line.
    """
    rows = Rows(name)
    count, known = 0, set[int]()
    labels: dict[str, str] = {}
    absent: list[str] = []
    left_out: set[int] = set()
    for item, line in _csv_items(rows):
        place = hash(item.key)
        if place in known:
            _complain_of_twins(rows, item.key, line)
        known.add(place)
        masks = item.masks if isinstance(item.masks, str) and not os.path.exists(item.masks) else None
        gone = lacking(item.path or "") or masks
        if gone is not None:
            absent.append(f"line {line}: {gone}")
            left_out.add(line)
            continue
        count += 1
        if item.label is not None and item.label not in labels:
            labels[item.label] = f"line {line}"
    if absent and (missing == "error" or not count):
        raise InputError(
            f"{name}: {len(absent)} of {count + len(absent)} files are missing ({few(absent)}): paths are"
            f" relative to {os.path.dirname(name) or 'the current folder'}"
        )
    if not count:
        raise InputError(f"{name}: holds no clips, only a header: add a line for every clip")

    def items() -> Iterator[Item]:
        return (item for item, line in _csv_items(rows) if line not in left_out)

    return Manifest(name, items, count, labels, tuple(absent))


def _csv_items(rows: Rows) -> Iterator[tuple[Item, int]]:
    """Items with their lines. A key is the path as it is written, and the part of it that is meant."""
    base = os.path.dirname(rows.name)
    for line, cells, extra in rows:
        try:
            written, path = _source(cells, base)
        except InputError as error:
            raise InputError(f"{rows.name}, line {line}: {error}") from error
        start, end = (rows.seconds(cells, column, line) for column in ("start", "end"))
        if end is not None and not (start or 0.0) < end:
            raise InputError(f"{rows.name}, line {line}: start must be before end, not {start} and {end}")
        part = "" if start is None and end is None else f"@{start or 0.0}-{'' if end is None else end}"
        boxes, masks = cells.get("boxes"), cells.get("masks")
        if boxes and masks:
            raise InputError(f"{rows.name}, line {line}: boxes and masks: give one of them")
        yield (
            Item(
                cells.get("id") or written + part,
                path,
                label=cells["label"] or None,
                start=start,
                end=end,
                spectrum=cells.get("spectrum", ""),
                boxes=_boxes(rows.name, base, boxes, line) if boxes else None,
                masks=os.path.join(base, masks) if masks else None,
                extra=extra,
                where=f"{rows.name}, line {line}{_empty(cells)}",
            ),
            line,
        )


def _source(cells: Mapping[str, str], base: str) -> tuple[str, str]:
    """The video of a line: what it is called, and where it is. An empty cell is a spectrum that it lacks.

    Raises:
        InputError: there is none, or it cannot be read as streams.
    """
    given = [(c.removeprefix(STREAM), cell) for c, cell in cells.items() if c.startswith(STREAM) and cell]
    text = cells.get("path") or "|".join(f"{name}={cell}" for name, cell in given)
    if not text:
        raise InputError("no path")
    if is_plain(text) or os.path.exists(os.path.join(base, text)):
        return os.path.normpath(text), os.path.join(base, os.path.normpath(text))
    return beneath(text, ""), beneath(text, base)


def _empty(cells: Mapping[str, str]) -> str:
    """Which spectra a line lacks, in brackets."""
    empty = [column for column, cell in cells.items() if column.startswith(STREAM) and not cell]
    return f" ({', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty)" if empty else ""


def _boxes(name: str, base: str, written: str, line: int) -> Boxes:
    try:
        return read_boxes(written if written.startswith(("{", "[")) else os.path.join(base, written))
    except InputError as error:
        raise InputError(f"{name}, line {line}: {error}") from error


def _complain_of_twins(rows: Rows, key: str, line: int) -> None:
    """Raise InputError if a line before this one has the same key, and not only the same hash."""
    for item, first in _csv_items(rows):
        if first == line:
            return
        if item.key == key:
            raise InputError(
                f"{rows.name}, line {line}: the same clip as line {first} ({key}): remove one, or give each"
                " an id of its own (column id)"
            )
