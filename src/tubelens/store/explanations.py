"""Explanations on disk: one safetensors file, the numbers as tensors and everything else as JSON in its
header. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from tubelens.clip import Box, Source
from tubelens.errors import InputError
from tubelens.explanation import WRITERS, Explanation, Provenance
from tubelens.files import replacing
from tubelens.layout import Grid
from tubelens.target import Contrast, Logit, Prob, Target

FORMAT = "tubelens explanation 1"
TARGETS: dict[str, Callable[..., Target]] = {"Logit": Logit, "Prob": Prob, "Contrast": Contrast}


def save_explanation(explanation: Explanation, path: str | Path, **options: Any) -> Path:
    """Write the grids, the saliency at clip resolution, and the record.

    Args:
        explanation: what to write. Pixels that came from an array are not stored.
        path: ending in `.safetensors`.
        options: drawing options, without meaning here.

    Raises:
        OutputError: it could not be written.
    """
    path = Path(path)
    tensors, header = _packed(explanation)
    tensors["saliency"] = explanation.saliency.contiguous().cpu()
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, header)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return path


def load_explanation(path: str | Path) -> Explanation:
    """Read what `save_explanation` wrote.

    Raises:
        InputError: no such file, or not an explanation.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call, unused-ignore]
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise InputError(f"{path}: a safetensors file, but not a saved explanation")
            header = json.loads(meta["explanation"])
            tensors = {key: file.get_tensor(key) for key in file.keys() if key != "saliency"}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a saved explanation: {error}") from error
    return _unpacked(tensors, header)


def to_bytes(explanation: Explanation) -> bytes:
    """The same as a safetensors file in memory, at native resolution only."""
    data: bytes = save(*_packed(explanation))
    return data


def from_bytes(data: bytes) -> Explanation:
    """What `to_bytes` made.

    Raises:
        InputError: it is something else.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + length])["__metadata__"]
        return _unpacked(load(data), json.loads(meta["explanation"]))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"these bytes are no saved explanation: {error}") from error


def _packed(explanation: Explanation) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file."""
    tensors = {}
    # the maps of bands have keys of their own: a reader that knows of none must not stitch them to the parts
    bands = [grid for _, grid in explanation.by_band]
    for what, grids in (("part", explanation.parts), ("band", bands)):
        for i, grid in enumerate(grids):
            tensors[f"{what}{i}.values"] = grid.values.contiguous().cpu()
            for axis in ("t", "y", "x"):
                tensors[f"{what}{i}.{axis}"] = torch.tensor(getattr(grid, axis), dtype=torch.float64)
    source = {k: v for k, v in asdict(_without_array(explanation.source)).items() if k != "array"}
    header = {
        "parts": [_place(part) for part in explanation.parts],
        "bands": [{"name": name, **_place(grid)} for name, grid in explanation.by_band],
        "size": explanation.size,
        "source": source,
        "target": {"kind": type(explanation.target).__name__, "classes": explanation.target.classes},
        "provenance": asdict(explanation.provenance),
        "align": explanation.align,
        "scale": explanation.scale,
    }
    return tensors, {"format": FORMAT, "explanation": json.dumps(header)}


def _unpacked(tensors: dict[str, Tensor], header: dict[str, Any]) -> Explanation:
    size, target = header["size"], header["target"]
    bands = header.get("bands", ())
    return Explanation(
        tuple(_grid(tensors, f"part{i}", place) for i, place in enumerate(header["parts"])),
        (size[0], size[1], size[2]),
        _source(header["source"]),
        TARGETS[target["kind"]](*target["classes"]),
        _provenance(header["provenance"]),
        header["align"],
        header.get("scale", "range"),
        tuple((place["name"], _grid(tensors, f"band{i}", place)) for i, place in enumerate(bands)),
    )


def _place(grid: Grid) -> dict[str, Any]:
    return {"span": grid.span, "weight": grid.weight, "area": grid.area}


def _grid(tensors: dict[str, Tensor], key: str, place: dict[str, Any]) -> Grid:
    return Grid(
        tensors[f"{key}.values"],
        tuple(tensors[f"{key}.t"].tolist()),
        tuple(tensors[f"{key}.y"].tolist()),
        tuple(tensors[f"{key}.x"].tolist()),
        span=(place["span"][0], place["span"][1]),
        weight=place["weight"],
        area=None if place.get("area") is None else tuple(place["area"]),
    )


def _without_array(source: Source) -> Source:
    return Source(**{**source.__dict__, "array": None})


def _source(fields: dict[str, Any]) -> Source:
    pairs = {key: tuple(fields[key]) for key in ("size", "times", "span", "resized")}
    pairs["notes"] = tuple(fields.get("notes", ()))
    return Source(**{**fields, **pairs, "box": Box(**fields["box"])})


def _provenance(fields: dict[str, Any]) -> Provenance:
    predicted = tuple((label, p) for label, p in fields["predicted"])
    return Provenance(**{**fields, "predicted": predicted, "notes": tuple(fields["notes"])})


WRITERS[".safetensors"] = save_explanation
