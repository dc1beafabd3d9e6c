"""Measured values in pictures: TIFF files of many pages, folders of deep images, one band of a video."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from tifffile import PHOTOMETRIC, TiffFile, TiffFileError

from tubelens.errors import OptionError, VideoError, nearest
from tubelens.video.container import regular_file
from tubelens.video.display import LUMA
from tubelens.video.file import FileFrames
from tubelens.video.images import ROUNDED, SWAPPED, FolderFrames, broken, image_files, loses_bits
from tubelens.video.measured_files import Recording, Values, of_array
from tubelens.video.streams import Stream

TIFF = (".tif", ".tiff")
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, ZeroDivisionError),
    *(AttributeError, RuntimeError, struct.error, TiffFileError, UnidentifiedImageError),
    Image.DecompressionBombError,
)
"""What the two readers raise for files that are damaged."""
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it prints on the user's terminal


@dataclass(frozen=True)
class Head:
    """What the beginning of an image file tells: height and width as displayed, channels, type."""

    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        several = f", {self.channels} channels" if self.channels > 1 else ""
        return f"{self.size[1]}x{self.size[0]}{several}, {self.dtype}"


# ── TIFF ─────────────────────────────────────────────────────────────────────────────────────────────────


def tiff_file(stream: Stream) -> Recording:
    """The pages of a TIFF file.

    Raises:
        VideoError: it cannot be read, or its pages differ in size or type.
    """
    file = regular_file(stream.path)
    return of_array("a TIFF file", file, _pages(file))


def _pages(file: Path) -> Shaped[np.ndarray, "t h w c"]:
    """All pages, in their order, as displayed: upright; 8 bits with the palette and the white they stand for.

    Deeper values stay as they are stored: they are measured, and a range means them. What is neither
    compressed nor scattered is mapped into memory.
    """
    try:
        with TiffFile(file) as tiff:
            stacks = [_stack(file, tiff, series) for series in tiff.series]
    except BROKEN as error:
        raise VideoError(
            f"{file}: cannot be read as TIFF ({error}): copy it again, or save it anew"
        ) from error
    page = 0
    for stack in stacks:
        if stack.shape[1:] != stacks[0].shape[1:] or stack.dtype != stacks[0].dtype:
            heads = [Head(s.shape[1:3], s.shape[3], s.dtype) for s in (stack, stacks[0])]
            raise VideoError(
                f"{file}: page {page} is {heads[0]}, but the first is {heads[1]}: save pages of one size and"
                " type into a file of their own"
            )
        page += len(stack)
    return np.concatenate(stacks) if len(stacks) > 1 else stacks[0]


def _stack(file: Path, tiff: TiffFile, series: Any) -> Shaped[np.ndarray, "t h w c"]:
    """Pages that belong together; those in a compression that only Pillow knows are read by it."""
    page, axes, shape = series.keyframe, series.axes, series.shape
    y, x, channel = axes.find("Y"), axes.find("X"), axes.find("S")
    if channel < 0 and len(axes) > 3:
        channel = axes.find("C")
    times = [i for i in range(len(axes)) if i not in (y, x, channel)]
    if min(y, x) < 0:
        raise ValueError(f"its pages are no pictures (axes {axes})")
    if sum(shape[i] > 1 for i in times) > 1:
        raise ValueError(f"it has {len(shape)} dimensions ({axes}), and only one of them can be time")
    try:
        if series.dataoffset is None:
            values = series.asarray()
        else:
            dtype = np.dtype(series.dtype).newbyteorder("<" if tiff.byteorder == "<" else ">")
            values = np.memmap(file, dtype, "r", series.dataoffset, shape)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _by_pillow(file, series)
    values = values.reshape(shape).transpose(*times, y, x, *([channel] if channel >= 0 else []))
    frames: Shaped[np.ndarray, "t h w c"] = values.reshape(
        -1, shape[y], shape[x], shape[channel] if channel >= 0 else 1
    )
    if page.photometric == PHOTOMETRIC.PALETTE:
        if frames.dtype != np.uint8:
            raise ValueError("its values are places in a palette: save what they stand for")
        frames = (page.colormap >> 8).astype(np.uint8).T[frames[..., 0]]
    elif page.photometric == PHOTOMETRIC.MINISWHITE and frames.dtype == np.uint8:
        frames = 255 - frames
    return _upright(frames, int(page.tags.valueof("Orientation") or 1))


def _by_pillow(file: Path, series: Any) -> Shaped[np.ndarray, "t h w c"]:
    """Pages as Pillow displays them, where it keeps their type: it drops the lower half of 16-bit colours."""
    page = series.keyframe
    several = sum(n > 1 for n in page.shape) > 2 and not page.axes.endswith("S")
    with Image.open(file) as image:
        frames = np.stack([_at(image, one.index) for one in series.pages])
    whole = math.prod(series.shape) * (3 if page.photometric == PHOTOMETRIC.PALETTE else 1)
    if several or frames.size != whole or frames.dtype != page.dtype:
        raise ValueError(
            f"its values, {page.dtype} in {page.compression.name} compression, cannot be read exactly: save"
            " it uncompressed, or install imagecodecs"
        )
    return frames


def _at(image: Image.Image, number: int) -> Shaped[np.ndarray, "h w c"]:
    image.seek(number)
    image.load()  # turns it
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return values if values.ndim == 3 else values[..., None]


def _upright(frames: Shaped[np.ndarray, "t h w c"], orientation: int) -> Shaped[np.ndarray, "t H W c"]:
    """Frames as displayed, by their EXIF orientation."""
    if orientation in SWAPPED:
        frames = frames.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        frames = frames[:, ::-1]
    if orientation in (2, 3, 6, 7):
        frames = frames[:, :, ::-1]
    return frames


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────


def holds_values(folder: str) -> bool:
    """Whether a folder's images have more than 8 bits, or other channels than pictures have.

    Raises:
        VideoError: it has no images, or the first one cannot be read.
    """
    return _deep(_head(image_files(folder)[0]))


def _deep(head: Head) -> bool:
    return head.dtype not in (np.uint8, np.bool_)


def image_folder(stream: Stream) -> Recording:
    """The images of one folder, in natural order; each in its own byte order.

    Raises:
        VideoError: an image that cannot be decoded, or of another size or type than the first.
    """
    files = image_files(stream.path)
    first = _head(files[0])
    for file in files:
        if loses_bits(file):
            raise VideoError(f"{file}: {ROUNDED}")
        head = _head(file)
        if head != first:
            raise VideoError(
                f"{file}: is {head}, but {files[0].name} is {first}: bring all frames to one size and type"
            )
    finite = first.dtype.kind != "f"

    def read(numbers: Sequence[int]) -> Iterator[Values]:
        for number in numbers:
            yield _values(files[number], first)

    kind = "a folder of images"
    return Recording(
        kind, len(files), first.size, first.channels, first.dtype, read, tuple(files), finite=finite
    )


def _head(file: Path) -> Head:
    try:
        if file.suffix.lower() in TIFF:
            with TiffFile(file) as tiff:
                page: Any = tiff.pages[0]
                size = (page.imagelength, page.imagewidth)
                head = Head(size, page.samplesperpixel, np.dtype(page.dtype).newbyteorder("="))
                if len(tiff.pages) > 1 and tiff.pages[1].shape == page.shape:
                    raise VideoError(
                        f"{file}: has {len(tiff.pages)} pages: give the file itself, or one page a file"
                    )
                swapped = page.tags.valueof("Orientation") in SWAPPED
                return Head(size[::-1], head.channels, head.dtype) if swapped else head
        with Image.open(file) as image:
            deep = image.mode.startswith("I")
            swapped = deep and "exif" in image.info and image.getexif().get(0x0112) in SWAPPED
            size = image.size if swapped else image.size[::-1]
            return Head(size, 1 if deep else len(image.getbands()), np.dtype(np.uint16 if deep else np.uint8))
    except BROKEN as error:
        raise broken(file, error) from error


def _values(file: Path, head: Head) -> Values:
    """One image; its type is as its head said."""
    if file.suffix.lower() in TIFF:
        return np.asarray(_pages(file)[0]).astype(head.dtype, copy=False)
    try:
        with Image.open(file) as image:
            image.load()
            picture: Image.Image = ImageOps.exif_transpose(image)
            values: Values = np.asarray(picture)[..., None].astype(head.dtype, copy=False)
            return values
    except BROKEN as error:
        raise broken(file, error) from error


# ── one band of pictures ─────────────────────────────────────────────────────────────────────────────────


def one_band(stream: Stream, video: FileFrames | FolderFrames) -> Recording:
    """The luma of pictures, 0 to 255; of false-colour pictures, whose palette is named, what it stood for,
    0 to 1.

    Raises:
        OptionError: a palette that there is not, or that has one colour for several values.
    """
    undo = FalseColour(stream.palette) if stream.palette else None
    film = isinstance(video, FileFrames)
    times = tuple(video.times())
    notes = video.notes
    if undo is not None:
        (first,) = (frame for _, _, frame in video.pick([0]))
        apart = undo.apart(first)
        if apart > FAR:
            notes = (*notes, f"its colours are {apart:.0f} of 255 levels from those of {stream.palette}")

    def read(numbers: Sequence[int]) -> Iterator[Values]:
        for _, _, frame in video.pick(numbers):
            yield undo(frame) if undo is not None else _luma(frame)

    return Recording(
        kind="a video" if film else "a folder of pictures",
        count=len(times),
        size=video.size,
        channels=1,
        dtype=np.dtype(np.float32 if undo else np.uint8),
        read=read,
        files=(video.file,) if isinstance(video, FileFrames) else tuple(video.files),
        times=times if film else (),
        fps=video.fps,
        options=("palette",),
        rotation=video.rotation,
        audio=str(video.file) if isinstance(video, FileFrames) and video.has_audio else None,
        notes=notes,
    )


def _luma(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 1"]:
    """Grey of a picture; exactly its own where it is grey."""
    if (frame == frame[..., :1]).all():
        return frame[..., :1].astype(np.float32)
    return (frame.astype(np.float32) @ np.asarray(LUMA, dtype=np.float32))[..., None]


FAR = 24
"""Levels from the nearest colour, on average, from which on a palette is doubted."""


class FalseColour:
    """What the colours of a palette stood for: the place of the nearest one, 0 to 1.

    Every colour is looked up once: compressed video has thousands, not millions.
    """

    def __init__(self, name: str) -> None:
        if name not in matplotlib.colormaps:
            raise OptionError(
                f"there is no palette {name!r}{nearest(name, matplotlib.colormaps)}: give the name of one of"
                " matplotlib's colour maps, such as inferno"
            )
        found = matplotlib.colormaps[name]
        self.colours = np.round(found(np.arange(found.N))[:, :3] * 255).astype(np.float32)
        _, which, counts = np.unique(self.colours, axis=0, return_inverse=True, return_counts=True)
        twice = np.flatnonzero(counts > 1)
        spread = max((int(np.ptp(np.flatnonzero(which.ravel() == one))) for one in twice), default=0)
        if spread > 0.02 * found.N or found.N < 32:
            raise OptionError(
                f"palette {name} cannot be undone: it has one colour for several values, or only {found.N}"
            )
        self._place = np.full(1 << 24, -1, dtype=np.int16)

    def __call__(self, frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 1"]:
        """The values of one picture."""
        return (self._nearest(frame).astype(np.float32) / (len(self.colours) - 1))[..., None]

    def apart(self, frame: UInt8[np.ndarray, "h w 3"]) -> float:
        """Mean distance of a picture's colours from the palette, in levels."""
        meant = self.colours[self._nearest(frame)]
        return float(np.linalg.norm(frame.astype(np.float32) - meant, axis=-1).mean())

    def _nearest(self, frame: UInt8[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "h w"]:
        r, g, b = (frame[..., i].astype(np.int32) for i in range(3))
        codes = r << 16 | g << 8 | b
        new = np.unique(codes[self._place[codes] < 0])
        for at in range(0, len(new), 4096):
            some = new[at : at + 4096]
            colours = np.stack([some >> 16, some >> 8 & 255, some & 255], axis=1).astype(np.float32)
            squares = ((colours[:, None] - self.colours[None]) ** 2).sum(axis=2)
            self._place[some] = squares.argmin(axis=1)
        places: Shaped[np.ndarray, "h w"] = self._place[codes]
        return places
