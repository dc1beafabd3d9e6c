"""Reading a run: scores as columns of numbers, curves as matrices, maps as explanations."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from tubelens.errors import InputError
from tubelens.explanation import Explanation
from tubelens.store.cells import ANCHORS, FILE, FORMAT, Failure, Prediction, Row, Table, explained
from tubelens.store.explanations import from_bytes

PIECE = 50_000  # rows that are read at once
GONE = -1.7976931348623157e308  # stands for NULL


class RunReader:
    """An open run; made by `RunStore.read`, also while another process writes it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._db = path, connection

    def _known(self) -> None:
        try:
            rows = dict(self._db.execute("SELECT key, value FROM meta"))
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            rows = {}
        if rows.get("format") != FORMAT:
            raise InputError(f"{self.path / FILE}: a SQLite file, but not a run of this version ({FORMAT})")

    @property
    def meta(self) -> dict[str, Any]:
        """`settings`, and what else is known of the whole run."""
        rows = dict(self._db.execute("SELECT key, value FROM meta"))
        return {"format": rows["format"], "settings": json.loads(rows["settings"])}

    @property
    def made(self) -> dict[str, Any]:
        """How the run came about, as far as it was told: `date`, `version`, `manifest`."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'made'").fetchone()
        return {} if found is None else dict(json.loads(found[0]))

    def names(self, table: Table) -> list[Row]:
        """Its lines, by id."""
        found = self._db.execute(f"SELECT id, name, facts FROM {table} ORDER BY id")
        return [Row(i, name, json.loads(facts)) for i, name, facts in found]

    def ids(self, table: Table) -> dict[str, int]:
        """Numbers by name."""
        return {name: int(i) for i, name in self._db.execute(f"SELECT id, name FROM {table}")}

    def count(self, table: str = "cells") -> int:
        """Rows of a table."""
        return int(self._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])

    def cells(self, metric: int | None = None, seconds: bool = False) -> dict[str, np.ndarray]:
        """Scores as columns: ids int32 (`clip`, `model`, `method`, `metric`, `seed`), and float64 `value`,
        `normalised`, `forwards` and the anchors, NaN where there is none.

        Args:
            metric: only of this one.
            seconds: also what the map of each took.
        """
        ids = ("clip", "model", "method", "metric", "seed")
        numbers = ("value", "normalised", "forwards", *ANCHORS)
        names = ", ".join(f"cells.{name}" for name in (*ids, *numbers))
        joined = " LEFT JOIN maps USING (clip, model, method, seed)" if seconds else ""
        query = f"SELECT {names}{', maps.seconds' if seconds else ''} FROM cells{joined}"
        columns = (*ids, *numbers, *(("seconds",) if seconds else ()))
        kinds = [np.int32] * len(ids) + [np.float64] * (len(columns) - len(ids))
        return self._columns(query, columns, kinds, metric)

    def curves(self, metric: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Curves of a metric: ids as columns, places `(n, S)` and values `(n, S)`, float32.

        Only those of the commonest number of points.
        """
        ids = ("clip", "model", "method", "seed")
        query = f"SELECT {', '.join(ids)}, curve FROM cells WHERE metric = ? AND curve IS NOT NULL"
        rows: list[tuple[int, ...]] = []
        blobs: list[bytes] = []
        for *row, blob in self._db.execute(query, (metric,)):
            rows.append(tuple(row))
            blobs.append(blob)
        lengths = np.array([len(blob) for blob in blobs], dtype=np.int64)
        usual = int(np.bincount(lengths).argmax()) if len(lengths) else 0
        keep = np.flatnonzero(lengths == usual)
        found = np.frombuffer(b"".join(blobs[i] for i in keep), dtype="<f4").reshape(len(keep), 2, usual // 8)
        numbers = np.array(rows, dtype=np.int32).reshape(-1, len(ids))[keep]
        return dict(zip(ids, numbers.T, strict=True)), found[:, 0], found[:, 1]

    def details(
        self, metric: int | None = None, key: str = ""
    ) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        """Facts and notes of every cell, streamed: (clip, model, method, metric, seed) and the detail.

        Args:
            metric: only of this one.
            key: only of cells whose detail has this key.
        """
        where = " WHERE metric = COALESCE(?, metric) AND instr(detail, ?)"
        given = (metric, f'"{key}"' if key else "{")
        query = f"SELECT clip, model, method, metric, seed, detail FROM cells{where}"
        for *cell, text in self._db.execute(query, given):
            yield tuple(cell), json.loads(text)

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns `clip`, `model`, `label` (-1 where none), `predicted` and `prob`."""
        query = "SELECT clip, model, COALESCE(label, -1) AS label, predicted, prob FROM predictions"
        columns = ("clip", "model", "label", "predicted", "prob")
        return self._columns(query, columns, [np.int32] * 4 + [np.float64])

    def failures(self) -> list[tuple[int, int, Failure, int]]:
        """(clip, model, what, attempts); model 0: none of them."""
        found = self._db.execute("SELECT * FROM failures ORDER BY clip, model, method, metric, seed")
        return [(c, m, Failure(*rest), attempts) for c, m, *rest, attempts in found]

    def done(self, clip: int, model: int) -> set[tuple[int, int, int]]:
        """(method, metric, seed) of the cells that are there."""
        query = "SELECT method, metric, seed FROM cells WHERE clip = ? AND model = ?"
        return set(self._db.execute(query, (clip, model)))

    def mapped(self, clip: int, model: int) -> set[tuple[int, int]]:
        """(method, seed) of the maps that are there."""
        query = "SELECT method, seed FROM maps WHERE clip = ? AND model = ?"
        return set(self._db.execute(query, (clip, model)))

    def failed(self, clip: int, model: int) -> set[tuple[int, int, int]]:
        """(method, metric, seed) of what failed, 0 for all of them; a clip that could not be read counts."""
        query = "SELECT method, metric, seed FROM failures WHERE clip = ? AND model IN (0, ?)"
        return set(self._db.execute(query, (clip, model)))

    def said(self, model: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Clip and detail of every prediction of a model, streamed."""
        query = "SELECT clip, detail FROM predictions WHERE model = ? ORDER BY clip"
        for clip, text in self._db.execute(query, (model,)):
            yield clip, json.loads(text)

    def prediction(self, clip: int, model: int) -> Prediction | None:
        """What the model said of the clip."""
        query = "SELECT label, predicted, prob, detail FROM predictions WHERE clip = ? AND model = ?"
        found = self._db.execute(query, (clip, model)).fetchone()
        if found is None:
            return None
        label, predicted, prob, detail = found
        return Prediction(label, predicted, prob, json.loads(detail))

    def explanation(self, clip: int, model: int, method: int, seed: int | None = 0) -> Explanation | None:
        """The stored map, None where there is none; without a seed the one of the smallest."""
        query = (
            "SELECT data FROM maps WHERE clip = ? AND model = ? AND method = ? AND seed = COALESCE(?, seed)"
        )
        query += " ORDER BY seed LIMIT 1"
        found = self._db.execute(query, (clip, model, method, seed)).fetchone()
        return None if found is None else from_bytes(found[0])

    def _columns(
        self, query: str, columns: Sequence[str], kinds: Sequence[Any], metric: int | None = None
    ) -> dict[str, np.ndarray]:
        """A query as arrays, read piece by piece: rows of Python objects would take ten times the room."""
        where, given = ("", ()) if metric is None else (" WHERE metric = ?", (metric,))
        known = ", ".join(f"COALESCE({name}, {GONE!r})" for name in columns)  # numbers alone are read fast
        cursor = self._db.execute(f"SELECT {known} FROM ({query}{where})", given)
        pieces: list[list[np.ndarray]] = [[] for _ in columns]
        while len(flat := np.fromiter(chain.from_iterable(islice(cursor, PIECE)), np.float64)):
            for piece, column, kind in zip(pieces, flat.reshape(-1, len(columns)).T, kinds, strict=True):
                piece.append(column.astype(kind))
        found = {
            name: np.concatenate(piece) if piece else np.empty(0, kind)
            for name, piece, kind in zip(columns, pieces, kinds, strict=True)
        }
        for column in found.values():
            if column.dtype == np.float64:
                column[column == GONE] = np.nan
        return found


@contextmanager
def reading(path: str | Path) -> Iterator[RunReader]:
    """A run, open for reading, as it was at that moment: what is committed meanwhile is not seen.

    Raises:
        InputError: no run there, a damaged one, or one whose folder must be copied before it can be read.
    """
    folder = Path(path)
    file = folder / FILE
    if not os.path.isfile(file):  # also where the way there is barred, which is no error
        raise InputError(f"{folder}: no run there ({FILE} is missing): `tubelens evaluate` makes one")
    with explained(folder):
        connection = _readable(file)
        try:
            connection.execute("BEGIN")  # names and cells of one moment, though the run is still written
            store = RunReader(folder, connection)
            store._known()
            yield store
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.close()


def _readable(file: Path) -> sqlite3.Connection:
    """A connection that writes nothing; without shared memory where the folder cannot be written."""
    log = file.with_name(f"{file.name}-wal")
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        if "immutable" in mode and log.exists() and log.stat().st_size:  # it would not look into it
            raise InputError(
                f"{file.parent}: cannot be written, and its last scores are in {log.name}, which is read only"
                " where it can: copy the folder to a place that can be written"
            )
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?{mode}", uri=True)
        try:
            connection.execute("SELECT COUNT(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            connection.close()
            continue
        return connection
    raise InputError(f"{file}: cannot be opened")
