"""Files of measured values: arrays, raw files and CPTV recordings, each as a `Recording`."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from tubelens.errors import OptionError, VideoError, nearest
from tubelens.video.container import regular_file
from tubelens.video.streams import Stream

Values = Shaped[np.ndarray, "h w c"]
"""One frame as it was measured: any real type, native byte order."""
BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What numpy and zip raise for files that are not what they seem to be."""
TIMES = re.compile(r"time|stamp|seconds|(^|_)(t|ts|secs?)(_|$)")
RATE = 9.0
"""Frames a second of the cameras that write CPTV, where the file says nothing."""
UNITS = {"_ns": 1e-9, "_us": 1e-6, "_ms": 1e-3, "_s": 1.0, "_sec": 1.0, "_seconds": 1.0, "seconds": 1.0}
"""What the end of a name says about the unit of times."""


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
        raise VideoError(f"{file}: frames must be integers or floats, not {values.dtype}")
    native = values.dtype.newbyteorder("=")
    t, h, w, c = values.shape if values.ndim == 4 else (*values.shape, 1)

    def read(numbers: Sequence[int]) -> Iterator[Values]:
        for number in numbers:
            yield np.asarray(values[number]).astype(native, copy=False).reshape(h, w, c)

    finite = native.kind != "f"
    return Recording(kind, t, (h, w), c, native, read, (file,), finite=finite, at_hand=True, **more)


def array_file(stream: Stream) -> Recording:
    """The array of an `.npy` file, mapped into memory, or of an `.npz` file.

    In an `.npz` it is the array that `key` names, else the only one of rank 3 or 4. The frame times are an
    array of as many values as there are frames that increase: seconds, unless its name ends with `_ms`, `_us`
    or `_ns`.

    Raises:
        VideoError: it cannot be read, or its frames are not to be told from other arrays.
        OptionError: a key that there is not.
    """
    file = regular_file(stream.path)
    try:
        with file.open("rb") as data:
            if data.read(2) != b"PK":
                return of_array("an .npy file", file, np.load(file, mmap_mode="r", allow_pickle=False))
            data.seek(0)
            content = np.load(data, allow_pickle=False)
            arrays = {name: content[name] for name in content.files if _plain(content, name)}
    except BROKEN as error:
        raise VideoError(f"{file}: cannot be read as an array: {error}") from error
    name = _key(file, arrays, stream.key)
    frames = arrays.pop(name)
    found, notes = _frame_times(arrays, len(frames)) if frames.ndim in (3, 4) else ((), ())
    return of_array("an .npz file", file, frames, times=found, options=("key",), notes=notes)


def _plain(content: Any, name: str) -> bool:
    """Whether an array holds no pickled objects, which are never read."""
    try:
        return bool(content[name].dtype.kind != "O")
    except ValueError as error:
        if "allow_pickle" in str(error):
            return False
        raise


def _key(file: Path, arrays: Mapping[str, np.ndarray], key: str) -> str:
    if key:
        if key not in arrays:
            raise OptionError(
                f"{file}: has no array {key!r}{nearest(key, arrays)}: one of {', '.join(arrays)}"
            )
        return key
    able = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    if len(able) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no array"
        which = "say which are the frames, as in ?key=" + able[0] if able else "frames are (t, h, w[, c])"
        raise VideoError(f"{file}: holds {shapes}: {which}")
    return able[0]


def _frame_times(arrays: Mapping[str, np.ndarray], count: int) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Seconds of every frame where an array tells them, and what the user should know about it."""
    able = {n: a for n, a in arrays.items() if a.shape == (count,) and a.dtype.kind in "uifM"}
    named = {n: a for n, a in able.items() if a.dtype.kind == "M" or TIMES.search(n.lower())}
    rising = [n for n, a in able.items() if _rises(a) and (n in named or not _counts(a))]
    best = sorted(rising, key=lambda n: (n not in named, not n.lower().endswith(tuple(UNITS))))
    if not best:
        bad = next(iter(named), None) if count > 1 else None
        unused = f"{bad!r} does not increase throughout and is not used as the times of the frames"
        return (), (unused,) if bad is not None else ()
    name, moments = best[0], arrays[best[0]]
    stated = moments.dtype.kind == "M" or name.lower().endswith(tuple(UNITS))
    if moments.dtype.kind == "M":
        seconds = (moments - moments[0]) / np.timedelta64(1, "ns") * 1e-9
    else:
        unit = next((u for end, u in UNITS.items() if name.lower().endswith(end)), 1.0)
        seconds = (moments - moments[0]).astype(np.float64) * unit
    notes = () if stated else (f"the times of the frames are those of {name!r}, taken as seconds",)
    return tuple(seconds.tolist()), notes


def _rises(moments: np.ndarray) -> bool:
    finite = moments.dtype.kind != "f" or bool(np.isfinite(moments).all())
    return finite and bool((moments[1:] > moments[:-1]).all())


def _counts(numbers: np.ndarray) -> bool:
    """Whether they are numbers of frames and no times."""
    return numbers.dtype.kind in "ui" and bool((numbers[1:] - numbers[:-1] == 1).all())


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
    one = int(np.prod(rest)) * dtype.itemsize
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
        with file.open("rb") as data:
            reader = CPTVReader(data)
            frames = [frame for frame in reader if not frame.background_frame]
            reader.s.read(1)  # the reader takes a file that is cut off for one that ends
    except (*BROKEN, IndexError, TypeError) as error:
        what = str(error) or "it ends too early"
        raise VideoError(f"{file}: cannot be read as CPTV: {what}: copy or download it again") from error
    if not frames:
        raise VideoError(f"{file}: holds no frames besides the background")
    stamps = [frame.time_on.total_seconds() if frame.time_on is not None else 0.0 for frame in frames]
    times: tuple[float, ...] = tuple(round(stamp - stamps[0], 6) for stamp in stamps)
    notes: tuple[str, ...] = ()
    if not _rises(np.asarray(times)):
        times, notes = (), ("its frames have no times of their own: they are taken to follow at one rate",)
    values = np.stack([frame.pix for frame in frames])
    return of_array("a CPTV file", file, values, times=times, fps=reader.fps or RATE, notes=notes)
