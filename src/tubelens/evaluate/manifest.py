"""Which clips a data set has: a CSV, a folder for every class, a function that yields clips, or planted ones.

A manifest is read in a stream: it is checked once from beginning to end when it is opened, and read again
whenever it is iterated, so that its clips are never all in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tubelens.errors import InputError, OptionError, TubelensError, nearest
from tubelens.evaluate.items import Item, Manifest, check_labels, label_index, read_item
from tubelens.evaluate.manifest_csv import Missing, csv_manifest
from tubelens.evaluate.msad import PREFIX, msad_manifest
from tubelens.planted import BENCHMARK, generate, labels
from tubelens.plugins import imported
from tubelens.video.images import SUFFIXES as IMAGES
from tubelens.video.images import natural
from tubelens.video.streams import read_options

__all__ = ["Item", "Manifest", "check_labels", "label_index", "read_item", "read_manifest"]

VIDEOS = frozenset(
    (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)

MEASURED = (".npy", ".npz", ".tif", ".tiff", ".cptv")
"""Suffixes of measured values that may be read without options."""


def read_manifest(
    source: str | os.PathLike[str] | Iterable[Any] | Callable[[], Iterable[Any]], missing: Missing = "error"
) -> Manifest:
    """The manifest of a data set.

    Args:
        source: one of

            - a CSV in UTF-8 whose first line names its columns: `path` (relative to the CSV; or the text of
              several streams; or in its place a column for each, `path:visible`, `path:lwir`, ...) and
              `label`; optional `start`, `end` (seconds), `boxes` (JSON, a file of it, or `FILE#KEY`; see
              `truth_sources.read_boxes`), `masks` (a folder), `spectrum`, `id` (in place of the path as the
              clip's key); other columns are kept;
            - a folder with a folder for every class, which holds videos or folders of frames, or else files
              of measured values;
            - `planted:TASK?n=40&seed=0`: clips with planted evidence (`tubelens.planted`), of as many seeds
              from the first one; `frames` and `size` likewise;
            - `msad:FOLDER?spectrum=IRTV`: the Multispectral Action Dataset (`tubelens.evaluate.msad`);
            - `package.module:function` or `path.py:function`: called without arguments, it yields `Item`s, or
              pairs of a video (a path, or frames `(t, h, w, c)`) and a label;
            - such a function, or a list of such items or pairs.
        missing: what to do about files that are not there: complain, or leave their clips out.

    Raises:
        InputError: it cannot be read, is empty, or holds something that cannot be meant; the message names
            the line.
    """
    if missing not in ("error", "skip"):
        raise OptionError(f"missing must be error or skip, not {missing!r}")
    if not isinstance(source, str | os.PathLike):
        return _from_python(source)
    name = os.fspath(source)
    if name.startswith("planted:"):
        return _planted(name)
    if name.startswith(PREFIX):
        return msad_manifest(name, _clips)
    if os.path.isdir(name):
        return _folder(name)
    if not os.path.exists(name):
        if ":" in name:
            return replace(_from_python(imported(name)), source=name)
        raise InputError(f"{name}: no such file or folder: give a CSV, or a folder with one for every class")
    if not os.path.isfile(name):
        raise InputError(
            f"{name}: is a pipe or a device, and a manifest is read several times: save it to a file"
        )
    if os.path.splitext(name)[1].lower() in VIDEOS:
        raise InputError(f"{name}: is a video, not a list of them: give a CSV with columns path and label")
    return csv_manifest(name, missing)


# ── a folder for every class ─────────────────────────────────────────────────────────────────────────────


def _folder(name: str) -> Manifest:
    classes = [(entry, _clips(entry)) for entry in _listed(name) if entry.is_dir()]
    classes = [(entry, clips) for entry, clips in classes if clips]
    if not classes:
        raise InputError(
            f"{name}: no folder in it holds videos ({', '.join(sorted(s[1:] for s in VIDEOS))}), folders of"
            f" frames or measured values ({', '.join(s[1:] for s in MEASURED)}): put the clips of each class"
            " into a folder of its name, or give a CSV"
        )

    def items() -> Iterator[Item]:
        for entry, clips in classes:
            for clip in clips:
                yield Item(f"{entry.name}/{clip}", str(entry / clip), label=entry.name)

    labels = {entry.name: f"folder {entry.name}" for entry, _ in classes}
    return Manifest(name, items, sum(len(clips) for _, clips in classes), labels)


def _clips(folder: Path) -> list[str]:
    """Names of the videos and of the folders of frames in a folder, in natural order.

    Where there are none, of the files of measured values, which beside videos are something else: masks, say.
    """
    entries = _listed(folder)
    clips = [
        entry.name
        for entry in entries
        if entry.suffix.lower() in VIDEOS
        or (os.path.isdir(entry) and any(e.suffix.lower() in IMAGES for e in _listed(entry)))
    ]
    return clips or [entry.name for entry in entries if entry.suffix.lower() in MEASURED]


def _listed(folder: str | Path) -> list[Path]:
    try:
        entries = [entry for entry in Path(folder).iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    for entry in entries:
        _utf8(entry.name, f"{folder}: the name ")
    return sorted(entries, key=natural)


def _utf8(name: str, what: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what}{name!r} is not UTF-8: rename it") from None


# ── generators and planted clips ─────────────────────────────────────────────────────────────────────────


def _from_python(given: Any) -> Manifest:
    if isinstance(given, Manifest):
        return given
    name = getattr(given, "__name__", type(given).__name__)
    if isinstance(given, Iterator):
        raise OptionError(
            f"{name}: can be read only once, and a manifest is read several times: give a list, or the"
            " function that makes it"
        )
    if callable(given):
        return Manifest(name, lambda: _yielded(given, name), None)
    if not isinstance(given, Sequence):
        raise InputError(f"{name} is no manifest: give a CSV, a folder, or a list of items")
    used: dict[str, str] = {}
    for number, item in enumerate(_yielded(lambda: given, name)):
        if item.label is not None:
            used.setdefault(item.label, f"item {number}")
    return Manifest(name, lambda: _yielded(lambda: given, name), len(given), used)


def _yielded(call: Callable[[], Iterable[Any]], name: str) -> Iterator[Item]:
    keys: set[str] = set()
    number = -1
    try:
        for number, given in enumerate(call()):
            item = _item(given, number)
            _utf8(item.key, "the key ")
            _utf8(item.path or "", "the path ")
            if item.key in keys:
                raise InputError(f"the key {item.key!r} comes twice")
            keys.add(item.key)
            yield item
    except TubelensError as error:
        raise InputError(f"{name}, item {max(0, number)}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever someone's function raises
        where = f"after item {number}" if number >= 0 else "before its first item"
        raise InputError(f"{name}, {where}: {type(error).__name__}: {error}") from error
    if number < 0:
        raise InputError(f"{name}: yields no clips")


def _item(given: Any, number: int) -> Item:
    if isinstance(given, Item):
        return given
    if not isinstance(given, tuple) or len(given) != 2:
        raise InputError(f"must be an Item, or a pair of a video and a label, not {type(given).__name__}")
    video, label = given
    label = None if label is None else str(label)
    if isinstance(video, str | os.PathLike):
        return Item(os.fspath(video), os.fspath(video), label=label)
    if isinstance(video, Tensor):
        video = video.detach().cpu().numpy()
    if not isinstance(video, np.ndarray):
        raise InputError(f"a video is a path or frames (t, h, w, c), not {type(video).__name__}")
    return Item(f"{number:06d}", array=video, label=label)


PLANTED = {"n": 40, "seed": 0, "frames": None, "size": None}


def _planted(name: str) -> Manifest:
    """`planted:TASK?n=40&seed=0`; clips are painted when they are read, and once more for their labels."""
    task, _, query = name.removeprefix("planted:").partition("?")
    if task not in BENCHMARK:
        raise OptionError(
            f"{name}: unknown task {task!r}{nearest(task, BENCHMARK)}: one of {', '.join(BENCHMARK)}"
        )
    given = dict(PLANTED)
    for key, value in read_options(query, name):
        if key not in PLANTED:
            raise OptionError(
                f"{name}: no option {key!r}{nearest(key, PLANTED)}: it has {', '.join(PLANTED)}"
            )
        if not value.isdecimal():
            raise OptionError(f"{name}: {key} must be a whole number, not {value!r}")
        given[key] = int(value)
    n, first = given.pop("n"), given.pop("seed")
    assert n is not None
    assert first is not None
    if n < 1:
        raise OptionError(f"{name}: n must be at least 1")
    shape: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    generate(first, task, **shape)  # complains of what cannot be

    def items() -> Iterator[Item]:
        for seed in range(first, first + n):
            whole = _planted_item(task, seed, shape, "")
            yield replace(whole, array=None, truth=None, make=partial(_planted_item, task, seed, shape))

    return Manifest(name, items, n, dict.fromkeys(labels(task), f"task {task}"))


def _planted_item(task: Any, seed: int, shape: dict[str, Any], model: str) -> Item:
    """One clip, and its evidence for the model of that name. The label is always that of the object."""
    clip = generate(seed, task, **shape)
    said = "".join(f",{key}={value}" for key, value in shape.items())
    return Item(
        f"planted:{task}{said}#{seed}",
        array=clip.pixels.permute(1, 2, 3, 0).numpy(),
        label=clip.name,
        truth=clip.evidence_for(model).known(),
        bands=clip.bands,
        fps=8.0,
    )
