"""Whole models in files and folders: which loader takes which.

`trust` is for pickled weights: code in a Keras file is never run, and an ONNX file holds none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tubelens.model import Model

Loader = Callable[..., Model]
HUB = "hf:"


def kind(name: str | Path) -> Loader | None:
    """The loader for a model file, a `transformers` folder or hub name; None for everything else."""
    text, path = str(name), Path(name)
    if text.startswith(HUB) or (path / "config.json").is_file():
        return _transformers
    suffix = path.suffix.lower()
    if suffix in (".keras", ".h5", ".hdf5", ".json"):
        return _keras
    return _onnx if suffix == ".onnx" else None


def _transformers(name: str | Path, weights: Any, **options: Any) -> Model:
    from tubelens.zoo import transformers_video

    return transformers_video.load(name, weights, **options)


def _keras(name: str | Path, weights: Any, trust: bool = False, **options: Any) -> Model:
    from tubelens.zoo import keras_files

    return keras_files.load(name, weights, **options)


def _onnx(name: str | Path, weights: Any, trust: bool = False, **options: Any) -> Model:
    from tubelens.zoo import onnx_files

    return onnx_files.load(name, weights, **options)
