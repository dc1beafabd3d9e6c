"""Explanations and runs over data sets on disk: safetensors and SQLite, never a pickle."""

from tubelens.store.cells import Cell, Failure, Prediction, Row, Unit
from tubelens.store.explanations import from_bytes, load_explanation, save_explanation, to_bytes
from tubelens.store.reading import RunReader
from tubelens.store.runs import RunStore

__all__ = [
    "Cell",
    "Failure",
    "Prediction",
    "Row",
    "RunReader",
    "RunStore",
    "Unit",
    "from_bytes",
    "load_explanation",
    "save_explanation",
    "to_bytes",
]
