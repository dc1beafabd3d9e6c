"""Values as they were measured, each file as a `Recording`: here raw files and CPTV recordings."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from tubelens.errors import OptionError, VideoError
from tubelens.video.container import regular_file
from tubelens.video.streams import Stream

Values = Shaped[np.ndarray, "h w c"]
"""One frame as it was measured: any real type, native byte order."""
BROKEN = (
    *(OSError, ValueError, TypeError, EOFError, LookupError, SyntaxError, OverflowError, MemoryError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What numpy, zip and the reader of CPTV raise for files that are not what they seem to be."""
logging.getLogger("cptv").addHandler(logging.NullHandler())  # else it prints on the user's terminal
RATE = 9.0
"""Frames a second of the cameras that write CPTV, where the file says nothing."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Values as they were measured.

    Attributes:
        kind: what holds them, in words.
        count: frames.
        size: height and width.
        channels: values a pixel.
        dtype: theirs.
        read: frames by number, increasing.
        files: whose content it is; one a frame, or one of all.
        times: seconds of every frame, the first 0; empty where the file tells none.
        fps: the rate that the file states.
        finite: whether every value is finite for sure.
        at_hand: whether they are in memory, or mapped into it, so that all may be looked at.
        options: what a stream may say about it, besides how it is scaled, `bands`, `fps` and `dead`.
        rotation, audio: see `FileFrames`; the file that has the sound.
        notes: what the user should know.
    """

    kind: str
    count: int
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    read: Callable[[Sequence[int]], Iterator[Values]]
    files: tuple[Path, ...]
    times: tuple[float, ...] = ()
    fps: float | None = None
    finite: bool = True
    at_hand: bool = False
    options: tuple[str, ...] = ()
    rotation: int = 0
    audio: str | None = None
    notes: tuple[str, ...] = ()

    def where(self, number: int) -> str:
        """What a frame is called in what is told about it."""
        if len(self.files) == self.count:
            return str(self.files[number])
        return f"{self.files[0]}, frame {number}"


def of_array(kind: str, file: Path, values: np.ndarray, **more: Any) -> Recording:
    """A recording of `(t, h, w)` or `(t, h, w, c)` values.

    Raises:
        VideoError: another rank, empty, or values that are no real numbers.
    """
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise VideoError(
            f"{file}: frames must be an array (t, h, w) or (t, h, w, c) and not empty, not {values.shape}"
        )
    if values.dtype.kind not in "uif":
        raise VideoError(f"{file}: frames must be integers or floats, not {values.dtype}: save them as such")
    native = values.dtype.newbyteorder("=")
    t, h, w, c = values.shape if values.ndim == 4 else (*values.shape, 1)

    def read(numbers: Sequence[int]) -> Iterator[Values]:
        for number in numbers:
            yield np.asarray(values[number]).astype(native, copy=False).reshape(h, w, c)

    finite = native.kind != "f"
    return Recording(kind, t, (h, w), c, native, read, (file,), finite=finite, at_hand=True, **more)


def raw_file(stream: Stream) -> Recording:
    """The frames of a file that holds nothing else but a header, mapped into memory.

    Raises:
        OptionError: shape or type missing, or a type that there is not.
        VideoError: the file is shorter or longer than they say.
    """
    file = regular_file(stream.path)
    if not stream.shape or not stream.dtype:
        raise OptionError(
            f"{file}: say what it holds: frames (0: all there are), height, width and the type of a value, as"
            " in ?shape=0,120,160&dtype=uint16"
        )
    try:
        dtype = np.dtype(stream.dtype)
    except (TypeError, ValueError, SyntaxError):
        dtype = np.dtype(object)
    if dtype.kind not in "uif":
        raise OptionError(
            f"{file}: dtype={stream.dtype} is no type of a value: uint8, uint16, >u2 (the high byte first),"
            " float32, ..."
        )
    count, *rest = stream.shape
    one = math.prod(rest) * dtype.itemsize
    room = file.stat().st_size - stream.header
    said = f"{file.stat().st_size} bytes, but shape={','.join(map(str, stream.shape))} of {dtype}"
    if stream.header:
        said += f" after {stream.header} bytes of header"
    if room < one or room % one or (count and room != count * one):
        needs = f"{stream.header + count * one}" if count else f"a multiple of {one}"
        raise VideoError(f"{file}: has {said} needs {needs}: it was cut off, or holds something else")
    shape = (count or room // one, *rest)
    values = np.memmap(file, dtype, "r", stream.header, shape)
    return of_array("a raw file", file, values, options=("shape", "dtype", "header"))


def cptv_file(stream: Stream) -> Recording:
    """A recording of the Cacophony Project's thermal cameras, in counts; background frames are left out.

    Raises:
        OptionError: the package `cptv` is missing.
        VideoError: it cannot be read, or is cut off.
    """
    file = regular_file(stream.path)
    try:
        from cptv import CPTVReader
    except ImportError:
        raise OptionError(f"{file}: reading CPTV files needs `pip install 'tubelens[cptv]'`") from None
    try:
        # It prints and warns of what it does not know.
        with file.open("rb") as data, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = CPTVReader(data)
            frames = [frame for frame in reader if not frame.background_frame]
            reader.s.read(1)  # the reader takes a file that is cut off for one that ends
    except (*BROKEN, AttributeError, ArithmeticError, AssertionError) as error:
        early = not str(error) or isinstance(error, struct.error)
        what = "it ends too early" if early else str(error)[:120]
        raise VideoError(f"{file}: cannot be read as CPTV: {what}: copy or download it again") from error
    if not frames:
        raise VideoError(f"{file}: holds no frames besides the background")
    stamps = [frame.time_on.total_seconds() if frame.time_on is not None else 0.0 for frame in frames]
    times: tuple[float, ...] = tuple(round(stamp - stamps[0], 6) for stamp in stamps)
    notes: tuple[str, ...] = ()
    if not rises(np.asarray(times)):
        times, notes = (), ("its frames have no times of their own: they are taken to follow at one rate",)
    values = np.empty((len(frames), *frames[0].pix.shape), frames[0].pix.dtype)
    for number, frame in enumerate(frames):
        values[number], frame.pix = frame.pix, None  # not all of them twice
    return of_array("a CPTV file", file, values, times=times, fps=reader.fps or RATE, notes=notes)


def rises(moments: np.ndarray) -> bool:
    """Whether numbers increase throughout, and are numbers."""
    finite = moments.dtype.kind in "ui" or bool(np.isfinite(moments).all())
    return finite and bool((moments[1:] > moments[:-1]).all())
