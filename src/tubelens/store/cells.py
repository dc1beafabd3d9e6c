"""What a run over a data set consists of: its tables, and their rows as Python sees them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tubelens.errors import InputError, OutputError
from tubelens.explanation import Explanation

FORMAT = "tubelens run 1"
FILE = "run.sqlite"
Table = Literal["clips", "models", "methods", "metrics"]
ANCHORS = ("random", "centre", "difference", "time_mean", "oracle")
"""Anchors with a column of their own; others are in the detail."""
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE clips (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, facts TEXT NOT NULL);
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, facts TEXT NOT NULL);
CREATE TABLE methods (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, facts TEXT NOT NULL);
CREATE TABLE metrics (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, facts TEXT NOT NULL);
CREATE TABLE cells (
  clip INTEGER NOT NULL, model INTEGER NOT NULL, method INTEGER NOT NULL, metric INTEGER NOT NULL,
  seed INTEGER NOT NULL, value REAL, normalised REAL, forwards REAL NOT NULL,
  {", ".join(f"{name} REAL" for name in ANCHORS)},
  curve BLOB, detail TEXT NOT NULL,
  PRIMARY KEY (clip, model, method, metric, seed)
) WITHOUT ROWID;
CREATE TABLE maps (
  clip INTEGER NOT NULL, model INTEGER NOT NULL, method INTEGER NOT NULL, seed INTEGER NOT NULL,
  seconds REAL NOT NULL, data BLOB NOT NULL, UNIQUE (clip, model, method, seed)
);
CREATE TABLE predictions (
  clip INTEGER NOT NULL, model INTEGER NOT NULL, label INTEGER, predicted INTEGER NOT NULL,
  prob REAL NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (clip, model)
) WITHOUT ROWID;
CREATE TABLE failures (
  clip INTEGER NOT NULL, model INTEGER NOT NULL, method INTEGER NOT NULL, metric INTEGER NOT NULL,
  seed INTEGER NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL,
  PRIMARY KEY (clip, model, method, metric, seed)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """A line of one of the name tables: a clip, a model, a method or a metric."""

    id: int
    name: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One score; ids are those of the store (`RunStore.id`).

    Attributes:
        value, normalised: NaN or None where they have no meaning.
        forwards: NaN, where nobody knows, is stored as 0.
        curve: places and values.
        anchors: by name.
        detail: facts and notes, as JSON.
    """

    method: int
    metric: int
    seed: int
    value: float
    normalised: float | None = None
    forwards: float = 0.0
    anchors: dict[str, float] = field(default_factory=dict)
    curve: tuple[Sequence[float], Sequence[float]] | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """What could not be done; 0 as method or metric: none of them."""

    method: int
    metric: int
    seed: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Prediction:
    """What the model says of a clip: class indices; `label` is None where the manifest gives none."""

    label: int | None
    predicted: int
    prob: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """What is committed at once: all that was new about one clip and one model."""

    clip: int
    model: int
    cells: Sequence[Cell] = ()
    maps: Sequence[tuple[int, int, Explanation]] = ()
    """(method, seed, explanation)."""
    prediction: Prediction | None = None
    failures: Sequence[Failure] = ()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Errors of SQLite in one line."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputError(
            f"{folder / FILE}: cannot be written: {error}; what was committed before is kept"
        ) from error
    except sqlite3.IntegrityError as error:
        raise InputError(f"{folder / FILE}: a value that must be there is missing: {error}") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{folder / FILE}: damaged, or not a run: {error}") from error
