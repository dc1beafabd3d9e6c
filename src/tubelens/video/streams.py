"""The text that names a source: a path; how what is measured in it is scaled; several spectra of one scene.

    walk.mp4                                      a video, a folder of images, a file of measured values
    night.npz?range=15:35                         15 to 35 (degrees, counts: its own unit) become 0 to 1
    raw.tif?bits=14                               0 to 2^14 - 1 become 0 to 1
    visible=walk.mp4|lwir=frames/?percentile=1:99&offset=0.25

So wherever a path is taken, so is such a text: by `read_clip`, `model.read`, the command line and manifests;
and a saved explanation can be drawn again from it alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from tubelens.errors import OptionError, nearest

VISIBLE = ("visible", "vis", "rgb", "tv", "colour", "color")
"""Names of streams whose bands are R, G and B, where they have three."""
NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)", re.S)
SLOWEST, FASTEST = 1e-5, 1e6
"""Frames a second between which a rate is believed: a frame in 28 hours, a frame in a microsecond."""


@dataclass(frozen=True)
class Stream:
    """One spectrum of a source, or all of it.

    Attributes:
        path: file or folder.
        name: of the spectrum, such as `visible` or `lwir`; empty where there is only one.
        range: values that become 0 and 1; what lies beyond is cut off.
        percentile: the same as percentiles over all frames of the recording.
        bits: the sensor's: 0 to `2^bits - 1` become 0 to 1.
        bands: names of its channels, in place of those that its name or its kind tells.
        fps: frames a second, of what has no times of its own.
        offset: seconds from the first frame of the first stream to the first of this one.
        homography: file of a 3x3 matrix (`.npy`, or text) that maps pixels (x, y, 1) of this stream to those
            of the first.
        fit: what is done with another frame size than the first stream's: `same` resizes where height and
            width have the same ratio and complains where they do not; `stretch` resizes in any case.
        shape: `(t, h, w)` or `(t, h, w, c)` of a raw file; t may be 0: as many as there are.
        dtype: of a raw file, as numpy names it: `uint16`, `>u2`, `float32`, ...
        header: bytes to skip at the beginning of a raw file.
        key: name of the array in an `.npz`.
        palette: of false-colour video, undone: one band, by the nearest colour of that matplotlib map.
        dead: what is done about values that are not finite: `fill` takes the mean of the live neighbours,
            `error` complains.
    """

    path: str
    name: str = ""
    range: tuple[float, float] | None = None
    percentile: tuple[float, float] | None = None
    bits: int | None = None
    bands: tuple[str, ...] = ()
    fps: float | None = None
    offset: float = 0.0
    homography: str = ""
    fit: str = "same"
    shape: tuple[int, ...] = ()
    dtype: str = ""
    header: int = 0
    key: str = ""
    palette: str = ""
    dead: str = "fill"

    @property
    def visible(self) -> bool:
        """Whether its name, if it has one, is that of visible light."""
        return not self.name or is_visible(self.name)

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        known = [f for f in fields(self) if f.name not in ("path", "name")]
        return {f.name: getattr(self, f.name) for f in known if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        said = "&".join(
            f"{key}={quote(_text(value), safe=',:/>.-', errors='surrogateescape')}"
            for key, value in self.given().items()
        )
        path = self.path
        if not self.name and NAMED.fullmatch(path):  # would be read as NAME=PATH
            path = os.path.join(os.curdir, path)
        return (f"{self.name}=" if self.name else "") + path + (f"?{said}" if said else "")


def is_visible(name: str) -> bool:
    """Whether a spectrum of that name is visible light, in three bands where there are three."""
    return name.lower() in VISIBLE


def streams(source: str | os.PathLike[str]) -> tuple[Stream, ...]:
    """The streams that a source names: one, without a name, for a plain path.

    Raises:
        OptionError: an option that there is not or that cannot be read, or names missing or given twice.
    """
    text = os.fspath(source)
    if is_plain(text) or _there(text):
        return (Stream(text),)
    parts = [_stream(part) for part in ([text] if _there(_split(text)[0]) else text.split("|"))]
    names = [part.name for part in parts]
    if len(parts) > 1 and ("" in names or len({name.lower() for name in names}) < len(names)):
        gone = "no such file or folder, and " if not any(names) else ""
        raise OptionError(
            f"{text}: {gone}several streams need names of their own, as in visible=a.mp4|lwir=b/"
        )
    for option in ("offset", "homography", "fit"):
        if option in parts[0].given():
            raise OptionError(
                f"{parts[0].path}: {option}= brings a stream to the first one, and this is the first: give it"
                " to another"
            )
    return tuple(parts)


def is_plain(text: str) -> bool:
    """Whether a text can be nothing but a path."""
    return not {"=", "?", "|"} & set(text)


def exists(source: str | os.PathLike[str]) -> bool:
    """Whether the files of all its streams are there."""
    return absent(source) is None


def absent(source: str | os.PathLike[str]) -> str | None:
    """The first file of a source that is not there, None where all are."""
    files = (file for stream in streams(source) for file in (stream.path, stream.homography) if file)
    return next((file for file in files if not _there(file)), None)


def beneath(source: str, folder: str) -> str:
    """The text with the relative paths of all its files taken from a folder."""
    if is_plain(source) or _there(os.path.join(folder, source)):
        return os.path.join(folder, os.path.normpath(source))
    path, options = _split(source)
    if ("|" in path or NAMED.fullmatch(path)) and _there(os.path.join(folder, path)):
        return f"{os.path.join(folder, os.path.normpath(path))}?{options}"
    moved = [
        replace(s, path=_beneath(s.path, folder), homography=_beneath(s.homography, folder))
        for s in streams(source)
    ]
    return "|".join(map(str, moved))


def source_name(source: str | os.PathLike[str]) -> str:
    """What a source is called in titles: `walk.mp4`, or `visible + lwir: walk.mp4, frames`."""
    parts = _told(source)
    names, files = [part.name for part in parts if part.name], [_last(part.path) for part in parts]
    said = "" if names == files else ", ".join(files)
    return ": ".join(filter(None, (" + ".join(names), said)))


def source_stem(source: str | os.PathLike[str]) -> str:
    """What files made of a source are named after: `walk`, or `visible+lwir_walk`."""
    parts = _told(source)
    last = Path(_last(parts[0].path))
    own = (last.stem if os.path.isfile(parts[0].path) else last.name) or "video"
    names = "+".join(part.name for part in parts)
    return f"{names}_{own}" if names else own


def paired(*streams: Stream | str | os.PathLike[str], **named: Stream | str | os.PathLike[str]) -> str:
    """The text of several spectra of one scene: `paired(visible="a.mp4", lwir="frames/?bits=14")`.

    The first gives the times and the frame size that the others are brought to.

    Raises:
        OptionError: a path with a `|`, which parts the streams.
    """
    parts = [_unnamed(s) for s in streams]
    parts += [f"{name}={_unnamed(s)}" for name, s in named.items()]
    for part in parts:
        if "|" in part:
            raise OptionError(f"{part}: a | parts streams, so none of their paths can have one: rename it")
    return "|".join(parts)


def named(text: str, known: Sequence[str] = ()) -> tuple[str, str] | None:
    """Name and rest of `NAME=PATH?...`; None for a plain path, or where the name is one of `known`."""
    found = NAMED.fullmatch(text)
    if found is None or _there(text) or found[1] in known:
        return None
    return found[1], found[2]


# ── reading the text ─────────────────────────────────────────────────────────────────────────────────────


def _stream(part: str) -> Stream:
    part = part.strip()
    name, rest = (not _there(_split(part)[0]) and named(part)) or ("", part)
    path, options = (rest, "") if _there(rest) else _split(rest)
    known = {f.name for f in fields(Stream)} - {"path", "name"}
    made: dict[str, Any] = {}
    for key, value in read_options(options.replace("+", "%2B"), path):
        if key not in known:
            raise OptionError(
                f"{path}: unknown option {key!r}{nearest(key, known)}: one of {', '.join(sorted(known))}"
            )
        try:
            made[key] = _READ.get(key, str)(value)
        except ValueError:
            raise OptionError(f"{path}: {key}={value} cannot be read: {_HOW.get(key, 'a number')}") from None
    stream = Stream(path, name, **made)
    _check(stream)
    return stream


def read_options(query: str, name: str) -> list[tuple[str, str]]:
    """Keys and values of `key=value&key=value`; `name` is that of what they are said about.

    Raises:
        OptionError: a key that is given twice.
    """
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise OptionError(f"{name}: {twice}= is given twice: give it once")
    return pairs


def _split(rest: str) -> tuple[str, str]:
    """Path and options. A `?` may belong to the path: only what looks like options is taken for them."""
    path, mark, options = rest.rpartition("?")
    return (path, options) if mark and re.match(r"[a-z]+=", options) else (rest, "")


def _check(stream: Stream) -> None:
    ways = [way for way in ("range", "percentile", "bits") if getattr(stream, way) is not None]
    if len(ways) > 1:
        raise OptionError(f"{stream.path}: {' and '.join(ways)} are ways to scale the same values: give one")
    if stream.fit not in ("same", "stretch"):
        raise OptionError(f"{stream.path}: fit is same or stretch, not {stream.fit!r}")
    if stream.dead not in ("fill", "error"):
        raise OptionError(f"{stream.path}: dead is fill or error, not {stream.dead!r}")


def _told(source: str | os.PathLike[str]) -> tuple[Stream, ...]:
    """The streams; of a text that cannot be read, which is told elsewhere, one with all of it as its path."""
    try:
        return streams(source)
    except OptionError:
        return (Stream(os.fspath(source)),)


def _beneath(path: str, folder: str) -> str:
    return os.path.join(folder, os.path.normpath(path)) if path else ""


def _last(path: str) -> str:
    """The last part of a path; of `.` and the like, that of where it leads."""
    return Path(path).name or Path(path).resolve().name


def _there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or a zero byte
        return False


def _unnamed(stream: Stream | str | os.PathLike[str]) -> str:
    return str(stream) if isinstance(stream, Stream) else os.fspath(stream)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return (":" if isinstance(value[0], float) else ",").join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _pair(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(":"))
    if not (low < high and high - low < float("inf")):  # not finite, too, where both are far off
        raise ValueError
    return low, high


def _percentile(text: str) -> tuple[float, float]:
    low, high = _pair(text)
    if not (low >= 0 and high <= 100):
        raise ValueError
    return low, high


def _bits(text: str) -> int:
    bits = int(text)
    if not 1 <= bits <= 32:
        raise ValueError
    return bits


def _rate(text: str) -> float:
    rate = float(text)
    if not SLOWEST <= rate <= FASTEST:
        raise ValueError
    return rate


def _seconds(text: str) -> float:
    seconds = float(text)
    if not abs(seconds) < float("inf"):
        raise ValueError
    return seconds


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in re.split(r"[,x]", text))
    if len(sizes) not in (3, 4) or min(sizes[1:]) < 1 or sizes[0] < 0:
        raise ValueError
    return sizes


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError
    return count


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise ValueError
    return names


_READ: Mapping[str, Callable[[str], Any]] = {
    "range": _pair,
    "percentile": _percentile,
    "bits": _bits,
    "bands": _names,
    "fps": _rate,
    "offset": _seconds,
    "shape": _shape,
    "header": _count,
}
_HOW = {
    "range": "give the values that become 0 and 1, as in range=15:35",
    "percentile": "give two percentiles, as in percentile=1:99",
    "bits": "give the sensor's bits, 1 to 32, as in bits=14",
    "bands": "give names, each once, as in bands=LWIR or bands=R,G,B",
    "fps": f"give frames a second, {SLOWEST:g} to {FASTEST:g}",
    "offset": "give seconds",
    "shape": "give frames, height, width and, if there are several, channels, as in shape=0,120,160",
    "header": "give a number of bytes",
}
