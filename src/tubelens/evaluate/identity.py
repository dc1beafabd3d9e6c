"""What a clip, a model or someone's own code holds, so that a run notices when a name means something else.

Sizes and dates do not tell: files are copied and edited in place. A video is known by its size, its first and
its last 64 KB; everything that is in memory already, by all of its bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tubelens.errors import OptionError
from tubelens.evaluate.items import Item
from tubelens.model import BlackBox, Model
from tubelens.video.streams import Stream, streams

END = 1 << 16
"""Bytes of a file that are read at its beginning, and as many at its end."""
CLASSES = 32
"""Scores of a model that are kept."""
NEAR = 1e-3
"""Share of the largest score by which two machines may differ."""
LATER = ("source", "scores", "digest", "truth")
"""Facts that runs of older versions do not have."""


def content(item: Item) -> str | None:
    """SHA-256 of what a clip is read from; None where it is not there, or is made when it is read."""
    if item.array is not None:
        return _of_array(item.array)
    return None if item.path is None else _of_source(item.path)


def evidence(item: Item) -> str | None:
    """SHA-256 of what is known of the evidence; None where nothing is, or it is made when it is read."""
    if isinstance(item.masks, str):
        return _of_path(item.masks)
    if item.masks is not None:
        return _of_array(item.masks)
    if item.boxes is not None:
        at = sorted(item.boxes.at.items(), key=lambda pair: (pair[0] is not None, pair[0] or 0.0))
        said = [(p, [tuple(map(float, box)) for box in boxes]) for p, boxes in at]
        whole = (said, item.boxes.size, item.boxes.step, item.boxes.seconds)
        return hashlib.sha256(repr(whole).encode()).hexdigest()
    if item.truth is not None:
        digest = hashlib.sha256()
        for mask in (item.truth.mask, item.truth.distractor, *item.truth.events):
            digest.update(b"-" if mask is None else _of_array(mask.cpu().numpy()).encode())
        return digest.hexdigest()
    return None


def _of_array(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def _of_source(text: str) -> str | None:
    """Of one path; of several streams, all of them and what is said of each."""
    try:
        parts = streams(text)
    except OptionError:
        return None  # reading it will say what is wrong
    if parts == (Stream(text),):
        return _of_path(text)
    digest = hashlib.sha256()
    for part in parts:
        found = [_of_path(file) for file in (part.path, part.homography) if file]
        if None in found:
            return None
        digest.update(repr((str(replace(part, path="", homography="")), found)).encode())
    return digest.hexdigest()


def _of_path(path: str) -> str | None:
    """Of a file, or of a folder of frames: their names and sizes, the first one and the last."""
    digest = hashlib.sha256()
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                files = sorted((e.name, e.stat().st_size) for e in entries if e.is_file())
            digest.update(repr(files).encode(errors="surrogateescape"))
            for name, _ in (*files[:1], *files[-1:]):
                _ends(digest, os.path.join(path, name))
        elif os.path.isfile(path):
            _ends(digest, path)
        else:
            return None  # reading it will say what is wrong
    except OSError:
        return None
    return digest.hexdigest()


def _ends(digest: Any, path: str) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(str(size).encode())
        digest.update(file.read(END))
        file.seek(max(END, size - END))
        digest.update(file.read(END))


def source(given: Any, made: Any) -> str | None:
    """SHA-256 of the file of a method or metric that was written as `module:Class` or `path.py:Class`."""
    if not isinstance(given, str) or ":" not in given.partition("(")[0]:
        return None
    with suppress(OSError, TypeError):
        if (file := inspect.getsourcefile(type(made))) is not None:
            with open(file, "rb") as opened:
                return hashlib.sha256(opened.read()).hexdigest()
    return None


def scores(model: Model) -> list[float] | None:
    """What it says of one clip of noise, which shows its preprocessing too: a few classes, six digits.

    None where that cannot be told: it fails on such a clip, or does not say the same twice.
    """
    spec = model.spec
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, len(spec.bands), spec.frames, *spec.size, generator=generator)
    try:
        # Anything may stand behind a black box, also something that draws.
        said = [_few(model(clip)[0]) for _ in range(2 if isinstance(model, BlackBox) else 1)]
    except Exception:  # whatever someone's network raises; real clips will tell
        return None
    return said[0] if alike(said[0], said[-1]) else None


def _few(row: torch.Tensor) -> list[float]:
    places = torch.linspace(0, len(row) - 1, min(len(row), CLASSES)).round().long()
    return [float(f"{value:.6g}") for value in row.detach().double().cpu()[places].tolist()]


def alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether scores agree as far as the order of sums lets them."""
    largest = max((abs(value) for value in (*a, *b)), default=0.0)
    return len(a) == len(b) and all(abs(x - y) <= NEAR * largest for x, y in zip(a, b, strict=True))


def differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Facts that are no longer what they were; what nobody knew before may be told."""

    def same(key: str) -> bool:
        a, b = now.get(key), then.get(key)
        if key == "scores" and a is not None and b is not None:
            return alike(a, b)
        return a == b or (key in LATER and (key not in then or b is None or a is None))

    return [key for key in dict.fromkeys((*now, *then)) if not same(key)]
