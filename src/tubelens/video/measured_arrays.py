"""Arrays that numpy saved: `.npy` files, and `.npz` files with the times of their frames."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from tubelens.errors import OptionError, VideoError, nearest
from tubelens.video.container import regular_file
from tubelens.video.measured_files import BROKEN, Recording, of_array, rises
from tubelens.video.streams import Stream

TIMES = re.compile(r"time|stamp|seconds|(^|_)(t|ts|secs?)(_|$)")
UNITS = {"_ns": 1e-9, "_us": 1e-6, "_ms": 1e-3, "_s": 1.0, "_sec": 1.0, "_seconds": 1.0, "seconds": 1.0}
"""What the end of a name says about the unit of times."""


@dataclass(frozen=True)
class Member:
    """One array of an `.npz` file, as its header tells."""

    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.shape}{' of pickled objects, which are never read' * self.dtype.hasobject}"


def array_file(stream: Stream) -> Recording:
    """The array of an `.npy` file, mapped into memory, or of an `.npz` file.

    In an `.npz` it is the array that `key` names, else the only one of rank 3 or 4; no other is read but the
    frame times. These are an array of as many values as there are frames that increase: seconds, unless its
    name ends with `_ms`, `_us` or `_ns`.

    Raises:
        VideoError: it cannot be read, or its frames are not to be told from other arrays.
        OptionError: a key that there is not.
    """
    file = regular_file(stream.path)
    try:
        with file.open("rb") as data:
            zipped = data.read(2) == b"PK"
        if not zipped:
            return of_array("an .npy file", file, open_array(file))
        with zipfile.ZipFile(file) as content:
            members = _members(content)
            name = _key(file, members, stream.key)
            if members[name].dtype.hasobject:
                raise VideoError(f"{file}: {name} is {members[name]}: save it as numbers")
            count = (*members[name].shape, 0)[0] if len(members[name].shape) in (3, 4) else 0
            rest = {n: m for n, m in members.items() if n != name and _may_be_times(n, m, count)}
            frames = _loaded(content, members[name])
            arrays = {n: _loaded(content, m) for n, m in rest.items()}
    except BROKEN as error:
        raise VideoError(f"{file}: cannot be read as an array: {_why(error)}") from error
    found, notes = _frame_times(arrays, count)
    return of_array("an .npz file", file, frames, times=found, options=("key",), notes=notes)


def open_array(file: Path) -> np.ndarray:
    """The array of an `.npy` file, mapped into memory.

    Raises:
        one of `BROKEN`: it is none, is cut off, or holds pickled objects.
    """
    with file.open("rb") as data:
        if data.read(6) != np.lib.format.MAGIC_PREFIX:
            raise ValueError("it does not begin like an .npy file")
        shape, dtype = _header(data)
        needs = data.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    if needs > file.stat().st_size:
        raise ValueError(f"it is cut off: {shape} of {dtype} needs {needs} bytes")
    values: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return values


def _header(data: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that begins at the beginning of a file."""
    data.seek(0)
    version = np.lib.format.read_magic(data)
    if version[0] == 1:
        shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    elif version[0] == 2:
        shape, _, dtype = np.lib.format.read_array_header_2_0(data)
    else:
        raise ValueError(f"it is of version {version[0]}, which is for records and not for numbers")
    if min(shape, default=1) < 0:
        raise ValueError(f"its shape is {shape}")
    return shape, dtype


def _members(content: zipfile.ZipFile) -> dict[str, Member]:
    """The arrays of an `.npz` file; what else lies in it is left alone."""
    found = {}
    for member in content.infolist():
        with content.open(member) as data:
            if data.read(6) != np.lib.format.MAGIC_PREFIX:
                continue
            shape, dtype = _header(data)
            if not dtype.hasobject and data.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                raise ValueError(f"{member.filename} is not as long as its shape {shape} of {dtype} says")
        found[member.filename.removesuffix(".npy")] = Member(member, shape, dtype)
    return found


def _loaded(content: zipfile.ZipFile, member: Member) -> np.ndarray:
    with content.open(member.member) as data:
        values: np.ndarray = np.lib.format.read_array(data, allow_pickle=False)
        data.read(1)  # at its end the checksum is looked at
    return values


def _why(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return str(error)[:120] or type(error).__name__


def _key(file: Path, arrays: Mapping[str, Member], key: str) -> str:
    if key:
        if key not in arrays:
            raise OptionError(
                f"{file}: has no array {key!r}{nearest(key, arrays)}: one of {', '.join(arrays)}"
            )
        return key
    able = [name for name, a in arrays.items() if len(a.shape) in (3, 4) and not a.dtype.hasobject]
    if len(able) != 1:
        shapes = ", ".join(f"{name} {array}" for name, array in arrays.items()) or "no array"
        which = "say which are the frames, as in ?key=" + able[0] if able else "frames are (t, h, w[, c])"
        raise VideoError(f"{file}: holds {shapes}: {which}")
    return able[0]


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────


def _may_be_times(name: str, member: Member, count: int) -> bool:
    """Whether an array is looked at: it is called like times, or there is a value a frame."""
    numbers = member.dtype.kind in "uifmM" and member.shape in ((count,), (count, 1))
    row = math.prod(member.shape) == max(member.shape, default=0) > 1 and not member.dtype.hasobject
    return numbers or (row and _called_times(name))


def _called_times(name: str) -> bool:
    return TIMES.search(name.lower()) is not None


def _frame_times(arrays: Mapping[str, np.ndarray], count: int) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Seconds of every frame where an array tells them, and what the user should know about it."""
    read = {name: _seconds(name, array, count) for name, array in arrays.items()}
    named = {n for n, a in arrays.items() if a.dtype.kind in "mM" or _called_times(n)}
    told = {n: s for n, s in read.items() if not isinstance(s, str)}
    able = {n: s for n, s in told.items() if n in named or not _counts(arrays[n])}
    best = sorted(able, key=lambda n: (n not in named, not n.lower().endswith(tuple(UNITS))))
    unused = [n for n in arrays if n in named and isinstance(read[n], str) and count > 1]
    notes = [f"{n!r} {read[n]} and is not used as the times of the frames" for n in unused]
    if not best:
        return (), tuple(notes)
    name = best[0]
    if name in named:
        notes = []
    if arrays[name].dtype.kind not in "mM" and not name.lower().endswith(tuple(UNITS)):
        notes.append(f"the times of the frames are those of {name!r}, taken as seconds")
    return tuple(able[name].tolist()), tuple(notes)


def _seconds(name: str, array: np.ndarray, count: int) -> Float[np.ndarray, "t"] | str:
    """Seconds from the first frame, or why an array does not tell them."""
    kind = array.dtype.kind
    if array.shape not in ((count,), (count, 1)):
        return f"is {array.shape} for {count} frames"
    if kind not in "uifmM":
        return f"holds {array.dtype}"
    moments: Shaped[np.ndarray, "t"] = array.ravel()
    if not rises(moments):
        return "does not increase throughout"
    if kind in "mM":
        unit = np.datetime_data(moments.dtype)[0]
        if unit == "generic" or (kind == "m" and unit in "YM"):
            return f"holds {array.dtype}, which is no number of seconds"
        if unit in "YM":
            moments = moments.astype("M8[s]")
        seconds = (moments - moments[0]) / np.timedelta64(1, "s")
    else:
        unit_s = next((u for end, u in UNITS.items() if name.lower().endswith(end)), 1.0)
        with np.errstate(over="ignore"):
            seconds = (moments - moments[0]).astype(np.float64) * unit_s
    return seconds if rises(seconds) else "goes beyond what numbers can tell apart"


def _counts(numbers: np.ndarray) -> bool:
    """Whether they are numbers of frames and no times."""
    return numbers.dtype.kind in "ui" and bool((np.diff(numbers.ravel()) == 1).all())
