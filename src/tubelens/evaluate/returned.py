"""What someone's method or metric returned, looked at before it is stored: one that errs must cost itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tubelens.errors import ScoreError, WorkError
from tubelens.explanation import Explanation
from tubelens.metrics.protocol import Score
from tubelens.store import to_bytes


def checked_map(row: Any, name: str) -> Explanation:
    """The one explanation that a method returned for one target, if it can be scored and stored.

    Raises:
        ScoreError: its values are not finite.
        WorkError: it is something else, or cannot be stored.
    """
    if not isinstance(row, list | tuple) or len(row) != 1:
        count = f"{len(row)} explanations" if isinstance(row, list | tuple) else type(row).__name__
        raise WorkError(f"method {name} returned {count} for one target, not a list of one")
    e = row[0]
    if not isinstance(e, Explanation):
        raise WorkError(f"method {name} returned {type(e).__name__}, not tubelens.Explanation")
    if not all(bool(torch.isfinite(part.values).all()) for part in e.parts):
        raise ScoreError(f"method {name} returned a map with NaN or infinity")
    try:
        to_bytes(e)
    except Exception as error:  # whatever cannot be written as tensors and JSON
        said = " ".join(str(error).split())[:200]
        raise WorkError(
            f"method {name} returned what cannot be stored: {type(error).__name__}: {said}"
        ) from error
    return e


def checked_score(score: Any, name: str, higher_is_better: bool | None) -> Score:
    """The score that a metric returned, in plain numbers; a bare number counts as one.

    Raises:
        ScoreError: it is infinite.
        WorkError: it is something else.
    """
    if not isinstance(score, Score):
        if not _is_number(score):
            raise WorkError(f"metric {name} returned {type(score).__name__}, not tubelens.Score")
        score = Score(float(score), higher_is_better)
    try:
        plain: Score = replace(
            score,
            value=float(score.value),
            normalised=None if score.normalised is None else float(score.normalised),
            forwards=float(score.forwards),
            anchors=_numbers(score.anchors),
            curve=None if score.curve is None else _curve(score.curve),
            facts={str(key): _plain(value) for key, value in score.facts.items()},
            notes=tuple(map(str, score.notes)),
            anchor_curves={str(k): tuple(map(float, v)) for k, v in score.anchor_curves.items()},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise WorkError(f"metric {name} returned a score that holds no plain numbers: {error}") from error
    if math.isinf(plain.value) or (plain.normalised is not None and math.isinf(plain.normalised)):
        raise ScoreError(f"metric {name} returned infinity")
    return plain


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, int | float | np.number)


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    return {str(key): float(value) for key, value in given.items()}


def _curve(given: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    places, values = (tuple(map(float, axis)) for axis in given)
    if len(places) != len(values):
        raise ValueError(f"a curve of {len(places)} places and {len(values)} values")
    return places, values


def _plain(value: Any) -> Any:
    """As it is, if JSON knows it."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return float(value)
    return value
