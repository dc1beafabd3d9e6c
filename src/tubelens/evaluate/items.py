"""The clips of a data set before they are read, and reading one: its frames, its truth, its class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tubelens.clip import Clip
from tubelens.errors import InputError, OptionError, TargetError
from tubelens.target import class_index
from tubelens.truth import Truth
from tubelens.truth_sources import Boxes, boxes_truth, masks_truth, planted_truth
from tubelens.video import open_video
from tubelens.video.flow import has_flow

FEW = 3  # of many faults that are named
FLOW_FILES = (".npy", ".npz")


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """One clip of a data set, not yet read.

    Attributes:
        key: what it is called in a store: unique, and the same on every reading.
        path: the video, the folder of frames, or the text of several streams (`tubelens.video.streams`); None
            for an array.
        array: frames `(t, h, w, c)`, uint8 or float in [0, 1].
        label: name or number of the class; None where nobody knows.
        start, end: seconds of the part that is meant; None: from the first frame, to the last.
        spectrum: what it was recorded in, such as `visible` or `infrared`.
        boxes: around the evidence.
        masks: of the evidence: a folder of images, or an array `(t, h, w)`.
        truth: what is known of the evidence, on all frames of the video or array.
        bands: names of an array's channels; None: those of the model.
        fps: frame rate of a folder or an array; None: 25.
        extra: further columns of a CSV.
        make: for clips that are made when they are read: called with the model's name, it gives the same item
            with its array and its truth.
        where: it is written, for errors: the line of a CSV.
    """

    key: str
    path: str | None = None
    array: np.ndarray | None = field(default=None, repr=False)
    label: str | None = None
    start: float | None = None
    end: float | None = None
    spectrum: str = ""
    boxes: Boxes | None = field(default=None, repr=False)
    masks: str | np.ndarray | None = field(default=None, repr=False)
    truth: Truth | None = field(default=None, repr=False)
    bands: tuple[str, ...] | None = None
    fps: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    make: Callable[[str], Item] | None = field(default=None, repr=False)
    where: str = ""


@dataclass(frozen=True, eq=False)
class Manifest:
    """The clips of a data set, in a fixed order; iterating reads them afresh.

    Attributes:
        source: what was given.
        items: starts a reading.
        count: of the clips; None where only reading to the end would tell.
        labels: label -> where it is first used. Empty where only reading would tell.
        skipped: what was left out because the file is missing.
    """

    source: str
    items: Callable[[], Iterator[Item]]
    count: int | None
    labels: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Item]:
        return self.items()

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"{self.source}: nobody knows how many clips it yields")
        return self.count


def read_item(
    item: Item, model: Any, sampling: str | None = None, **options: Any
) -> tuple[Clip, Truth | None]:
    """The clip as the model takes it, and its truth in the clip's voxels where there is one.

    Args:
        item: of a manifest.
        model: whose `read` decides frames, size and crop.
        sampling: as for `model.read`. A part of a video is sampled as if it were the whole.
        options: likewise.

    Raises:
        VideoError: it cannot be read.
        OptionError: it lacks a band that the model needs, or does not say how it is scaled; names its line.
        InputError: boxes or masks do not fit the video, or the array lacks a band.
    """
    item = item if item.make is None else item.make(getattr(model, "name", ""))
    if item.start is not None or item.end is not None:
        options["span"] = (item.start or 0.0, item.end)
    if item.fps is not None:
        options.setdefault("fps", item.fps)
    video = item.path if item.array is None else _ordered(item, model.spec.bands)
    if video is None:
        raise InputError(f"{item.key}: has neither a path nor an array")
    try:
        clip: Clip = model.read(video, sampling, **options)
    except OptionError as error:
        raise OptionError(f"{item.where}: {error}" if item.where else str(error)) from error
    if item.truth is None and item.boxes is None and item.masks is None:
        return clip, None
    flow = has_flow(model.spec.bands) and isinstance(video, str) and video.lower().endswith(FLOW_FILES)
    times = None if flow else _times(video, options.get("fps"))  # flow in a file: its frames are counted
    try:
        if item.truth is not None:
            if times is not None and len(item.truth.mask) != len(times):
                raise InputError(f"the truth is of {len(item.truth.mask)} frames, the video has {len(times)}")
            return clip, planted_truth(clip.source, clip.size, item.truth, times)
        if item.masks is not None:
            return clip, masks_truth(clip.source, clip.size, item.masks, times)
        assert item.boxes is not None
        return clip, boxes_truth(clip.source, clip.size, item.boxes, times)
    except InputError as error:
        raise InputError(f"{item.key}: {error}") from error


def label_index(item: Item, model: Any, classes: int | None = None) -> int | None:
    """The class that an item's label means to a model; None where it has no label.

    Args:
        item: of a manifest.
        model: whose labels count.
        classes: how many the model has, where it has no labels.

    Raises:
        TargetError: the model has no such class; names the item.
    """
    if item.label is None:
        return None
    try:
        return class_index(item.label, classes or len(model.labels or ()) or sys.maxsize, model.labels)
    except TargetError as error:
        raise TargetError(f"{item.key}: {error}") from error


def check_labels(manifest: Manifest, labels: Sequence[str] | None) -> dict[str, int]:
    """The class that each label of a manifest means to a model.

    Args:
        manifest: labels of a generator are not known before it is read: it has none here.
        labels: of the model; None: it has none, and the manifest must give numbers.

    Raises:
        TargetError: labels that the model does not know, with the nearest that it does.
    """
    found: dict[str, int] = {}
    faults: list[str] = []
    for label, where in manifest.labels.items():
        try:
            found[label] = class_index(label, len(labels or ()) or sys.maxsize, labels)
        except TargetError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise TargetError(
            f"{manifest.source}: {len(faults)} of {len(manifest.labels)} labels are none of the model's:"
            f" {few(faults)}"
        )
    return found


def _ordered(item: Item, bands: tuple[str, ...]) -> np.ndarray:
    """The array with its channels as the model has them."""
    array = item.array
    assert array is not None
    if item.bands is None or item.bands == tuple(bands):
        return array
    lacking = [band for band in bands if band not in item.bands]
    if lacking:
        raise InputError(
            f"{item.key}: has bands {', '.join(item.bands)}, but the model takes {', '.join(bands)}"
        )
    return np.ascontiguousarray(array[..., [item.bands.index(band) for band in bands]])


def _times(video: str | np.ndarray, fps: float | None) -> list[float]:
    """Seconds of every frame."""
    with open_video(video, fps) as frames:
        return frames.times()


def few(faults: Sequence[str]) -> str:
    """The first of many faults, and how many there are besides."""
    return "; ".join(faults[:FEW]) + (f"; and {len(faults) - FEW} more" if len(faults) > FEW else "")
