"""A run over a data set: one SQLite file for scores, records and native maps.

A cell is one score: of a clip, a model, a method, its seed, and a metric. Cells are committed together with
the map that they judge, in one transaction, so that whatever kills the process leaves whole units and nothing
else. What all cells share (sampling, precision, targets) is the run's settings, fixed when it is made; a
method's and a metric's own options are part of their names.

One process writes at a time (`RunStore.write` holds a lock that dies with it); others may read meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tubelens.errors import OptionError, OutputError
from tubelens.store.cells import ANCHORS, FILE, FORMAT, SCHEMA, Cell, Table, Unit, explained
from tubelens.store.explanations import to_bytes
from tubelens.store.reading import RunReader, reading

LOCK = "lock"
IN_HAND = "in hand"
TOGETHER = 5000
"""Names that are looked up in one query."""


class RunStore(RunReader):
    """A run, open for writing (`RunStore.write`); `RunStore.read` opens one for reading."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self._ids: dict[tuple[str, str], int] = {}

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    @contextmanager
    def write(cls, path: str | Path, settings: dict[str, Any]) -> Iterator[RunStore]:
        """Open for writing, made if it is not there; locked against other writers until the block ends.

        Raises:
            OptionError: made with other settings, written by another process now, or a folder of other files.
            InputError: a damaged file.
            OutputError: no permission, no room.
        """
        folder = Path(path)
        file = folder / FILE
        try:
            if folder.exists() and not folder.is_dir():
                raise OptionError(f"{folder}: a run is a folder, and this is a file: give another --out")
            if folder.is_dir() and not file.exists() and any(p.name != LOCK for p in folder.iterdir()):
                raise OptionError(f"{folder}: holds other files and no run: give a new folder")
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                who = os.read(lock, 100).decode(errors="replace").strip()
                raise OptionError(
                    f"{folder}: another process is writing this run{f' ({who})' if who else ''}: wait for it,"
                    " or give another --out"
                ) from None
            with suppress(OSError):  # no room: SQLite will say so
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
            with explained(folder):
                connection = sqlite3.connect(file, isolation_level=None)
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=FULL")
                    store = cls(folder, connection)
                    store._begin(settings)
                    yield store
                finally:
                    connection.close()
        finally:
            os.close(lock)
            if made and not file.exists():
                with suppress(OSError):
                    (folder / LOCK).unlink(missing_ok=True)
                    folder.rmdir()

    read = staticmethod(reading)

    def _begin(self, settings: dict[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True)
        with self._transaction():
            tables = [name for (name,) in self._db.execute("SELECT name FROM sqlite_master")]
            if not tables:
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                date = datetime.now(UTC).isoformat(timespec="seconds")
                made = {"date": date, "version": version("tubelens")}
                rows = [("format", FORMAT), ("settings", text), ("made", json.dumps(made))]
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                return
        self._known()
        if self.meta["settings"] != settings:
            old, new = self.meta["settings"], json.loads(text)
            differ = [k for k in {**old, **new} if old.get(k) != new.get(k)]
            said = ", ".join(f"{k} {old.get(k)!r} and now {new.get(k)!r}" for k in sorted(differ)[:3])
            raise OptionError(
                f"{self.path}: this run was made with other settings ({said}): use those, or another --out"
            )

    def told(self, **facts: Any) -> None:
        """Keep how the run came about (`made`), such as its manifest; what was told before stays."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO meta VALUES ('made', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (json.dumps(facts | self.made, sort_keys=True),),
            )

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────

    def id(self, table: Table, name: str, facts: dict[str, Any] | None = None) -> int:
        """The number of a clip, model, method or metric; entered if it is new. Facts of an old one stay."""
        known = self._ids.get((table, name))
        if known is None:
            with self._transaction():
                self._db.execute(
                    f"INSERT INTO {table} (name, facts) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                    (name, json.dumps(facts or {}, sort_keys=True)),
                )
                found = self._db.execute(f"SELECT id FROM {table} WHERE name = ?", (name,)).fetchone()
            known = self._ids[table, name] = int(found[0])
        return known

    def enter(
        self, table: Table, rows: Iterable[tuple[str, dict[str, Any]]]
    ) -> list[tuple[int, dict[str, Any]]]:
        """Many at once, in one transaction; those that are there stay as they are.

        Returns:
            The number of each, and the facts that are stored.
        """
        found = []
        waiting = iter(rows)
        with self._transaction():
            while some := list(islice(waiting, TOGETHER)):
                there = self._named(table, [name for name, _ in some])
                new = [(name, json.dumps(f, sort_keys=True)) for name, f in some if name not in there]
                self._db.executemany(
                    f"INSERT INTO {table} (name, facts) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", new
                )
                there |= self._named(table, [name for name, _ in new])
                found += [there[name] for name, _ in some]
        return [(number, json.loads(text)) for number, text in found]

    def _named(self, table: Table, names: list[str]) -> dict[str, tuple[int, str]]:
        marks = ", ".join("?" * len(names))
        rows = self._db.execute(f"SELECT name, id, facts FROM {table} WHERE name IN ({marks})", names)
        return {name: (int(number), text) for name, number, text in rows}

    def revise(self, table: Table, number: int, facts: dict[str, Any]) -> None:
        """Put other facts in the place of those that are stored."""
        with self._transaction():
            text = json.dumps(facts, sort_keys=True)
            self._db.execute(f"UPDATE {table} SET facts = ? WHERE id = ?", (text, number))

    def used(self, clip: int) -> bool:
        """Whether anything was computed of a clip."""
        query = "SELECT EXISTS (SELECT 1 FROM predictions WHERE clip = ?)"
        return bool(self._db.execute(query, (clip,)).fetchone()[0])

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """All that is written in the block, or, after an error, nothing of it."""
        with explained(self.path), self._transaction():
            yield

    # ── what is in hand ──────────────────────────────────────────────────────────────────────────────────

    @property
    def in_hand(self) -> tuple[int, int, int] | None:
        """Clip and model that were begun and neither committed nor put back, and how often running."""
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (IN_HAND,)).fetchone()
        if found is None:
            return None
        clip, model, times = json.loads(found[0])
        return clip, model, times

    def begin(self, clip: int, model: int) -> None:
        """Note that a clip is in hand, which the process may not survive; `commit` ends it."""
        then = self.in_hand
        times = then[2] + 1 if then is not None and then[:2] == (clip, model) else 1
        with explained(self.path):
            self._db.execute("PRAGMA synchronous=NORMAL")  # a process that dies takes no page with it
            try:
                self._db.execute(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)", (IN_HAND, json.dumps([clip, model, times]))
                )
            finally:
                self._db.execute("PRAGMA synchronous=FULL")

    def put_back(self) -> None:
        """Nothing is in hand: the work was ended by somebody, not by what it was on."""
        with explained(self.path):
            self._db.execute("DELETE FROM meta WHERE key = ?", (IN_HAND,))

    def commit(self, unit: Unit) -> None:
        """All of it or nothing. What is there already stays; what succeeds is no failure any more.

        Raises:
            OutputError: no room, no permission; nothing of the unit was written.
        """
        at = (unit.clip, unit.model)
        with explained(self.path), self._transaction():
            self._db.execute("DELETE FROM meta WHERE key = ?", (IN_HAND,))
            self._db.executemany(
                f"INSERT INTO cells VALUES ({', '.join('?' * (10 + len(ANCHORS)))})"
                " ON CONFLICT (clip, model, method, metric, seed) DO NOTHING",
                [(*at, *_columns(cell)) for cell in unit.cells],
            )
            self._db.executemany(
                "INSERT INTO maps VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (clip, model, method, seed) DO NOTHING",
                [(*at, method, seed, e.provenance.seconds, to_bytes(e)) for method, seed, e in unit.maps],
            )
            if unit.prediction is not None:
                p = unit.prediction
                self._db.execute(
                    "INSERT INTO predictions VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (clip, model) DO NOTHING",
                    (*at, p.label, p.predicted, p.prob, json.dumps(p.detail, sort_keys=True)),
                )
            self._forgive(unit)
            self._db.executemany(
                "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET"
                " attempts = attempts + 1, kind = excluded.kind, reason = excluded.reason",
                [(*at, f.method, f.metric, f.seed, f.kind, f.reason) for f in unit.failures],
            )

    def _forgive(self, unit: Unit) -> None:
        """Remove the failures that this unit makes good; those that it repeats stay, to be counted up."""
        again = {(f.method, f.metric, f.seed) for f in unit.failures}
        good = {(c.method, c.metric, c.seed) for c in unit.cells}
        good |= {(method, 0, seed) for method, seed, _ in unit.maps}
        query = "SELECT model, method, metric, seed FROM failures WHERE clip = ? AND model IN (0, ?)"
        for model, *key in self._db.execute(query, (unit.clip, unit.model)).fetchall():
            whole = model != unit.model or key[0] == 0  # what stopped all of it did not stop this
            if (whole or tuple(key) in good) and not (model == unit.model and tuple(key) in again):
                self._db.execute(
                    "DELETE FROM failures WHERE clip = ? AND model = ? AND method = ? AND metric = ?"
                    " AND seed = ?",
                    (unit.clip, model, *key),
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._db.in_transaction:  # of `at_once`
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # SQLite rolls back by itself where the disk is full
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _columns(cell: Cell) -> tuple[Any, ...]:
    curve = None if cell.curve is None else np.array(cell.curve, dtype="<f4").tobytes()
    others = {k: v for k, v in cell.anchors.items() if k not in ANCHORS}
    detail = cell.detail | ({"anchors": others} if others else {})
    return (
        *(cell.method, cell.metric, cell.seed, cell.value, cell.normalised),
        0.0 if math.isnan(cell.forwards) else cell.forwards,
        *(cell.anchors.get(name) for name in ANCHORS),
        curve,
        json.dumps(detail, sort_keys=True),
    )
