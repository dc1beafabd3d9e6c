"""The second network of a comparison: given, made by a function, or by one in a file or module."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from torch import nn

from tubelens.clip import Clip
from tubelens.errors import OptionError, TubelensError
from tubelens.model import Scorer, is_out_of_memory
from tubelens.plugins import imported


def other_model(other: Any) -> Scorer:
    """The model that `other` is, that it makes, or that the function makes which it names.

    What `"path.py:function"` and `"module:function"` make is kept, and made again where the file has changed.

    Raises:
        OptionError: it is no model and makes none, or its function fails.
    """
    if not isinstance(other, str):
        return _made(other, "")
    file = os.path.abspath(other.rpartition(":")[0])
    try:
        state = os.stat(file) if file.endswith(".py") else None
    except OSError:
        state = None  # the import says that there is no such file
    return _imported(other, file, (state.st_mtime_ns, state.st_size) if state else ())


def check_classes(model: Scorer, other: Scorer, clip: Clip) -> int:
    """That two models have as many classes, by their labels, or by the scores of a clip.

    Returns:
        Forwards that it took.

    Raises:
        OptionError: they have not.
    """
    counts, forwards = [], 0
    for each in (model, other):
        labels = getattr(each, "labels", None)
        forwards += not labels
        counts.append(len(labels or each(clip.pixels[None])[0]))
    if counts[0] != counts[1]:
        raise OptionError(
            f"label randomisation needs a model of the same classes as `other`: it has {counts[1]} of them,"
            f" the explained one {counts[0]}"
        )
    return forwards


@lru_cache(maxsize=2)
def _imported(spec: str, file: str, state: tuple[int, ...]) -> Scorer:
    return _made(imported(spec), f"{spec}: ")


def _made(other: Any, name: str) -> Scorer:
    """`name` begins the messages."""
    if callable(other) and not isinstance(other, nn.Module) and not hasattr(other, "output"):
        try:
            other = other()
        except Exception as error:  # whatever the user's function does
            if isinstance(error, TubelensError) or is_out_of_memory(error):
                raise
            raise OptionError(
                f"{name}label randomisation could not make its other model: {type(error).__name__}: {error}"
            ) from error
    if isinstance(other, nn.Module):
        raise OptionError(
            f"{name}label randomisation was given a bare {type(other).__name__} as its other model: wrap it"
            " first (`tubelens.wrap`)"
        )
    if not isinstance(other, Scorer):
        raise OptionError(
            f"{name}label randomisation needs a model trained on random labels as `other`, or a function that"
            f" makes it, not {type(other).__name__}"
        )
    return other
