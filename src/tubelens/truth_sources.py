"""From boxes, masks and planted volumes on source frames to the truth of a clip.

Annotations are of displayed source frames, by number or by second. A clip shows some of these frames, resized
and cropped; a voxel is true where its centre, followed back to the source frame, lies in the box or on the
mask. Frames that nobody annotated are empty.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from PIL import Image
from torch import Tensor

from tubelens.clip import Source
from tubelens.errors import InputError, nearest
from tubelens.truth import Truth
from tubelens.video.images import SUFFIXES, natural

Size = tuple[int, int, int]
Rectangles = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Rectangles around the evidence.

    Attributes:
        at: annotated frame (or second) -> rectangles `(x, y, width, height)`, their corner being the upper
            left one; empty: nothing is there. The key None stands for all frames that have none of their own.
        size: height and width that the coordinates refer to; None: those of the displayed source frames.
        step: from one annotated frame to the next. Rectangles hold for what is nearer than half of it.
        seconds: whether `at` and `step` count seconds instead of frames, the first of which is 0.
    """

    at: Mapping[float | None, Rectangles]
    size: tuple[int, int] | None = None
    step: float = 1.0
    seconds: bool = False

    @cached_property
    def _places(self) -> list[float]:
        return sorted(place for place in self.at if place is not None)

    def near(self, place: float) -> Rectangles:
        """The rectangles that hold at a frame number (or second)."""
        after = bisect_right(self._places, place)
        near = min(self._places[max(0, after - 1) : after + 1], key=lambda p: abs(p - place), default=None)
        if near is None or abs(near - place) > self.step / 2:
            return self.at.get(None, ())
        return self.at[near]


def boxes_truth(source: Source, size: Size, boxes: Boxes, times: Sequence[float] | None = None) -> Truth:
    """The truth of a clip from rectangles on its source frames; overlapping ones are united.

    Args:
        source: of the clip.
        size: its frames, height and width.
        boxes: the rectangles.
        times: seconds of every frame of the video (`open_video(path).times()`); without them frames are
            counted at the average rate, which is wrong where the rate varies.
    """
    down, along = _centres(source, size)
    h, w = boxes.size or source.size
    mask = torch.zeros(size, dtype=torch.bool)
    for n, (number, second) in enumerate(_shown(source, times)):
        if number is not None:
            for x, y, width, height in boxes.near(second if boxes.seconds else number):
                rows = _inside(down * (h / source.size[0]), y, height)
                cols = _inside(along * (w / source.size[1]), x, width)
                mask[n] |= rows[:, None] & cols[None, :]
    return Truth(mask, kind="boxes")


def masks_truth(
    source: Source,
    size: Size,
    masks: str | Path | Sequence[Path] | np.ndarray | Tensor,
    times: Sequence[float] | None = None,
) -> Truth:
    """The truth of a clip from a mask for every source frame.

    Args:
        source: of the clip.
        size: its frames, height and width.
        masks: a folder of images, in natural order; or an array `(t, h, w)`. What is not zero is evidence; of
            JPEG images, which surround what they show with faint noise, what is above half of the range.
            They may be smaller or larger than the frames; each voxel takes the pixel that its centre is in.
        times: seconds of every frame of the video, as for `boxes_truth`.

    Raises:
        InputError: no images, one that cannot be decoded, an array of another rank, or not as many masks as
            the video has frames.
    """
    if isinstance(masks, str | Path):
        planes: Any = mask_files(masks)
        name = str(masks)
    else:
        planes, name = (masks, "the array of masks")
        if isinstance(masks, np.ndarray | Tensor) and masks.ndim != 3:
            raise InputError(f"masks must be (frames, height, width), got shape {tuple(masks.shape)}")
    if times is not None and len(planes) != len(times):
        raise InputError(
            f"{name}: {len(planes)} masks for a video of {len(times)} frames: there must be one a frame"
        )
    return Truth(_at_source(source, size, planes, times, name), kind="masks")


def planted_truth(source: Source, size: Size, truth: Truth, times: Sequence[float] | None = None) -> Truth:
    """A truth that is known on all source frames, as a clip of them shows it.

    Args:
        source: of the clip.
        size: its frames, height and width.
        truth: its masks are of the source frames.
        times: seconds of every frame of the video, as for `boxes_truth`.
    """

    def at(mask: Bool[Tensor, "t h w"]) -> Bool[Tensor, "T H W"]:
        return _at_source(source, size, mask, times, "the truth")

    return replace(
        truth,
        mask=at(truth.mask),
        distractor=None if truth.distractor is None else at(truth.distractor),
        events=tuple(map(at, truth.events)),
    )


# ── boxes as they are written ────────────────────────────────────────────────────────────────────────────


def read_boxes(written: str | Path) -> Boxes:
    """Boxes from a JSON file, from an entry of one (`FILE#KEY`), or from JSON itself.

    Two layouts are known:

    - `{"size": [240, 320], "0": [[x, y, w, h], ...], "1": [...]}`: rectangles by frame number from 0. `size`
      is the height and width that the coordinates refer to, by default those of the video; also optional are
      `step`, frames from one annotation to the next, and `unit`, `"frames"` or `"seconds"`. A bare list
      `[[x, y, w, h], ...]` holds for every frame.
    - `{"frame_size_hw": [240, 320], "tubes": [{"sf": 63, "ef": 111, "boxes_xywh": [[x, y, w, h], ...]}]}`, as
      tubes of UCF101-24 are kept: one rectangle for each frame from `sf` up to but not including `ef`.

    Raises:
        InputError: it cannot be read, is of neither layout, or holds a rectangle that is none.
    """
    text = str(written).strip()
    if text.startswith(("{", "[")):
        try:
            return parse_boxes(json.loads(text), "boxes")
        except ValueError as error:
            raise InputError(f"boxes: not JSON: {error}") from error
    file, key = _entry(text)
    found = _json(file)
    if key:
        if not isinstance(found, dict) or key not in found:
            near = nearest(key, found if isinstance(found, dict) else ())
            raise InputError(f"{file}: has no entry {key!r}{near}")
        found = found[key]
    return parse_boxes(found, text)


def _entry(text: str) -> tuple[str, str]:
    """File and key of `FILE#KEY`; either may hold a `#`: the longest that is a file counts."""
    marks = [len(text), *(i for i in range(len(text) - 1, -1, -1) if text[i] == "#")]
    at = next((i for i in marks if os.path.isfile(text[:i])), marks[-1])
    return text[:at], text[at + 1 :]


def parse_boxes(found: Any, name: str) -> Boxes:
    """Boxes from what JSON holds; see `read_boxes`.

    Raises:
        InputError: as there.
    """
    try:
        if isinstance(found, list):
            return Boxes({None: _rectangles(found, name)})
        if "tubes" in found:
            return _tubes(found, name)
        told = {"size", "step", "unit"}
        unit, step = found.get("unit", "frames"), float(found.get("step", 1.0))
        if unit not in ("frames", "seconds") or not 0 < step < float("inf"):
            raise InputError(f"{name}: unit must be frames or seconds, and step positive")
        at: dict[float | None, Rectangles] = {
            float(place): _rectangles(rows, f"{name}: {place}")
            for place, rows in found.items()
            if place not in told
        }
        if not all(place is None or np.isfinite(place) for place in at):
            raise InputError(f"{name}: frame numbers (or seconds) must be finite")
        return Boxes(at, _pair(found.get("size"), name), step, unit == "seconds")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{name}: these are no boxes ({type(error).__name__}: {error}): write"
            ' {"size": [height, width], "frame number": [[x, y, w, h]]}'
        ) from error


def _tubes(found: dict[str, Any], name: str) -> Boxes:
    at: dict[float | None, Rectangles] = {}
    for tube in found["tubes"]:
        rows = _rectangles(tube["boxes_xywh"], name)
        start, stop = int(tube["sf"]), int(tube["ef"])
        if len(rows) != stop - start:
            raise InputError(f"{name}: {len(rows)} boxes for the frames {start} to {stop - 1}")
        for number, row in enumerate(rows, start):
            at[number] = (*at.get(number, ()), row)
    return Boxes(at, _pair(found.get("frame_size_hw"), name))


def _rectangles(rows: Any, name: str) -> Rectangles:
    made = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in rows)
    for row in made:
        if not (np.isfinite(row).all() and row[2] > 0 and row[3] > 0):
            raise InputError(f"{name}: {list(row)} is no box [x, y, width, height]")
    return made


def _pair(size: Any, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    h, w = (int(side) for side in size)
    if h < 1 or w < 1:
        raise InputError(f"{name}: the size must be [height, width] in pixels, not {size}")
    return h, w


@lru_cache(maxsize=4)  # one file may hold the boxes of a whole data set
def _loaded(file: str, _: tuple[int, int]) -> Any:
    with open(file, encoding="utf-8") as data:
        return json.load(data)


def _json(file: str) -> Any:
    """What a file holds; read again only where it has changed."""
    try:
        state = os.stat(file)
        return _loaded(file, (state.st_mtime_ns, state.st_size))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file}: is not JSON: {error}") from error


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────


def mask_files(folder: str | Path) -> list[Path]:
    """The images of a folder in natural order.

    Raises:
        InputError: it cannot be listed, or holds none.
    """
    try:
        files = [p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    if not files:
        raise InputError(f"{folder}: holds no masks (images such as 00000.png)")
    return sorted(files, key=natural)


def _plane(stored: Any) -> Bool[np.ndarray, "h w"]:
    """One mask: what is not zero; of a palette the numbers count, of colours any, transparency never.

    A JPEG rings around edges: there it is what lies above half of the range.
    """
    if not isinstance(stored, Path):
        values = np.asarray(stored.cpu() if isinstance(stored, Tensor) else stored)
        return np.asarray(values != 0)
    try:
        with Image.open(stored) as image:
            lossy = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
            plain = image.mode in ("L", "RGB") or (not lossy and image.mode not in ("RGBA", "LA", "PA"))
            values = np.asarray(image if plain else image.convert("RGB"))
            values = values > 127 if lossy else values
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{stored}: this mask cannot be decoded ({error}): replace it") from error
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)


def _at_source(
    source: Source, size: Size, planes: Any, times: Sequence[float] | None, name: str
) -> Bool[Tensor, "T H W"]:
    down, along = _centres(source, size)
    mask = np.zeros(size, dtype=bool)
    for n, (number, _) in enumerate(_shown(source, times)):
        if number is None:
            continue
        if number >= len(planes):
            raise InputError(f"{name}: the clip shows frame {number}, but there are {len(planes)} masks")
        plane = _plane(planes[number])
        (h, w), (full_h, full_w) = plane.shape, source.size
        rows, cols = (_pixels(c * n / full, n) for c, n, full in ((down, h, full_h), (along, w, full_w)))
        mask[n] = plane[rows][:, cols]
    return torch.from_numpy(mask)


# ── where a clip looks ───────────────────────────────────────────────────────────────────────────────────


def _centres(source: Source, size: Size) -> tuple[Float64[np.ndarray, "H"], Float64[np.ndarray, "W"]]:
    """Centres of the clip's rows and columns in pixels of the displayed source frame."""
    _, h, w = size
    box = source.box
    return (
        box.top + (np.arange(h) + 0.5) * (box.height / h),
        box.left + (np.arange(w) + 0.5) * (box.width / w),
    )


def _shown(source: Source, times: Sequence[float] | None) -> list[tuple[int | None, float]]:
    """Number and second of the source frame that each clip frame shows; no number for a black one.

    Padding repeats the last frame of the span, unless it is black.
    """
    black = "pad='zero'" in source.sampling
    slack = 0.1 / source.fps
    found: list[tuple[int | None, float]] = []
    for second in source.times:
        padding = second > source.span[1] + slack
        shown = source.span[1] if padding else second
        if padding and black:
            number = None
        elif times is None:
            number = round(shown * source.fps)
        else:
            number = max(0, bisect_right(times, shown + slack) - 1)
        found.append((number, shown))
    return found


def _inside(centres: Float64[np.ndarray, "n"], start: float, extent: float) -> Bool[Tensor, "n"]:
    return torch.from_numpy((centres >= start) & (centres < start + extent))


def _pixels(centres: Float64[np.ndarray, "n"], n: int) -> Any:
    """The pixel that each place is in; rounding must not lead past the last."""
    return np.clip(np.floor(centres).astype(np.int64), 0, n - 1)
