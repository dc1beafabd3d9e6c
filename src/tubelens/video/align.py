"""Bringing one stream to another: in time by the nearest frame, in space by a homography or by resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from tubelens.errors import InputError, OptionError, VideoError
from tubelens.video.measured_arrays import open_array
from tubelens.video.measured_files import BROKEN
from tubelens.video.streams import Stream

TIE = 1e-6
"""Seconds by which a later frame must be nearer: distances that are equal differ in their last bits."""
ROUNDING = 1e-3
"""Seconds to which some containers round time stamps."""
RATIO = 0.02
"""By so much two ratios of height and width may differ and still be meant to be the same."""
LONGEST = 1 << 20
"""Bytes of a text from which on it cannot be meant to be a matrix."""
SINGULAR = 1e9
"""Condition number, in units of the frame sizes, from which on a homography has no inverse to speak of."""

# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Times:
    """When the frames of a stream are shown.

    Attributes:
        name: of the stream, for what is told.
        seconds: of every frame, its offset included.
        step: from one frame to the next.
    """

    name: str
    seconds: tuple[float, ...]
    step: float

    @classmethod
    def of(cls, name: str, seconds: Sequence[float], fps: float, offset: float = 0.0) -> Times:
        """From a stream's own seconds; the step is the median one, which a gap does not change."""
        step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1 / fps
        return cls(name, tuple(second + offset for second in seconds), step)

    def __str__(self) -> str:
        return f"{self.name} from {self.seconds[0]:.2f} to {self.seconds[-1]:.2f} s"


@dataclass(frozen=True)
class Matched:
    """Which frames of several streams belong together.

    Attributes:
        rows: for every frame of the result its number in each stream; no column ever decreases.
        notes: which frames were left out, and where a stream has a gap.
    """

    rows: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()


def match(streams: Sequence[Times]) -> Matched:
    """For each frame of the first stream, inside what all streams cover, the nearest frame of the others.

    A stream covers the time from its first to its last frame, and at both ends half a frame of its own and
    half a frame of the first stream. Of two frames equally near the earlier is taken.

    Raises:
        VideoError: there is no time that all cover.
    """
    first, others = streams[0], streams[1:]
    shown = np.asarray(first.seconds)
    inside = np.ones(len(shown), dtype=bool)
    numbers, distances, short = [np.arange(len(shown))], [], []
    for other in others:
        seconds, reach = np.asarray(other.seconds), _reach(first, other)
        covered = (shown >= seconds[0] - reach) & (shown <= seconds[-1] + reach)
        if not covered.all():
            short.append(other.name)
        inside &= covered
        numbers.append(nearest_frames(seconds, shown))
        distances.append(np.abs(seconds[numbers[-1]] - shown))
    if not inside.any():
        raise VideoError(
            f"there is no moment that all streams show: {', '.join(map(str, streams))}: set offset= (seconds"
            f" from the first frame of {first.name} to the first of the other)"
        )
    notes = []
    if short:
        notes.append(
            f"{int((~inside).sum())} of {len(shown)} frames of {first.name} are left out:"
            f" {' and '.join(short)} {'does' if len(short) == 1 else 'do'} not cover their moments"
        )
    for other, distance in zip(others, distances, strict=True):
        far = inside & (distance > _reach(first, other))
        if far.any():
            worst = int(np.argmax(np.where(far, distance, 0.0)))
            notes.append(
                f"{other.name} has a gap: for {int(far.sum())} of {int(inside.sum())} frames its nearest is"
                f" up to {distance[worst]:.2f} s away (at {shown[worst]:.2f} s)"
            )
    rows = np.stack(numbers, axis=1)[inside]
    return Matched(tuple(tuple(int(n) for n in row) for row in rows), tuple(notes))


def nearest_frames(seconds: Float[np.ndarray, "n"], at: Float[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
    """Numbers of the frames nearest to moments; the earlier of two that are equally near."""
    middles = (seconds[:-1] + seconds[1:]) / 2
    return np.searchsorted(middles + TIE, at, side="left")


def _reach(first: Times, other: Times) -> float:
    """How far the nearest frame of a stream without gaps can be from one of the first stream."""
    return 0.5 * (first.step + other.step) + ROUNDING


# ── space ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Placed:
    """Brings frames of one stream to the frame of the first.

    Attributes:
        size: height and width of the result.
        grid: where each of its pixels looks in the stream, as `grid_sample` counts without aligned corners;
            None where frames are only resized.
        seen: pixels that look into the stream; None: all.
    """

    size: tuple[int, int]
    grid: Float[Tensor, "1 h w 2"] | None = None
    seen: Bool[Tensor, "h w"] | None = None

    @property
    def covered(self) -> float:
        """Share of the first stream's frame that the stream looks at."""
        return 1.0 if self.seen is None else float(self.seen.double().mean())

    def __call__(self, frame: Float[np.ndarray, "a b c"]) -> Float[np.ndarray, "h w c"]:
        """One frame in [0, 1]; 0 where the stream does not look."""
        if self.grid is None and frame.shape[:2] == self.size:
            return frame
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
        if self.grid is None:
            placed = tvf.resize(pixels, list(self.size), InterpolationMode.BILINEAR, antialias=True)
        else:
            # In double precision: an unmoved frame must come out as it went in. Pixels at the border are
            # whole pixels, so what looks beyond their centres sees them and not a mixture with nothing.
            whole = grid_sample(
                pixels[None].double(), self.grid, mode="bilinear", padding_mode="border", align_corners=False
            )[0].float()
            placed = whole if self.seen is None else whole * self.seen
        return np.ascontiguousarray(placed.clamp(0, 1).permute(1, 2, 0).numpy())


def placing(stream: Stream, size: tuple[int, int], first: str, to: tuple[int, int]) -> Placed:
    """How frames of a stream are brought to the frame of the first.

    Args:
        stream: its `homography` or its `fit` decides.
        size: height and width of its frames.
        first: name of the first stream, for what is told.
        to: height and width of that one's frames.

    Raises:
        OptionError: the sizes differ in more than scale, or the homography maps nothing onto the frame.
        InputError: the homography cannot be read or inverted.
    """
    if stream.homography:
        if stream.fit == "stretch":
            raise OptionError(f"{stream.path}: homography and fit=stretch both say where it looks: give one")
        return warp(read_homography(stream.homography), size, to, stream.homography)
    (h, w), (to_h, to_w) = size, to
    if stream.fit == "same" and abs((h * to_w) / (w * to_h) - 1) > RATIO:
        raise OptionError(
            f"{stream.path}: its frames are {w}x{h}, those of {first} {to_w}x{to_h}: another ratio of width"
            " to height: give homography=FILE (3x3, from its pixels to those), or fit=stretch"
        )
    return Placed(to)


def warp(
    matrix: Float[np.ndarray, "3 3"], size: tuple[int, int], to: tuple[int, int], name: str = "homography"
) -> Placed:
    """The inverse of a homography, as places to look at.

    Args:
        matrix: maps pixels (x, y, 1) of a stream, centres at whole numbers, to those of the first.
        size: height and width of the stream's frames.
        to: likewise of the first's.
        name: for errors.

    Raises:
        InputError: it has no inverse.
        OptionError: nothing of the stream comes to lie on the frame.
    """
    # It is one up to a factor: a power of two changes no digit, and keeps what follows within all numbers.
    matrix = np.ldexp(matrix, -int(np.frexp(np.abs(matrix).max())[1]))
    units, to_units = np.diag([size[1], size[0], 1.0]), np.diag([1 / to[1], 1 / to[0], 1.0])
    with np.errstate(all="ignore"):
        condition = np.linalg.cond(to_units @ matrix @ units)
    if not condition < SINGULAR:
        raise InputError(f"{name}: the matrix is singular: it maps the plane onto a line or a point")
    # What lies behind the camera has the other sign there than the middle of the stream's frame.
    ahead = np.sign((matrix @ np.array([(size[1] - 1) / 2, (size[0] - 1) / 2, 1.0]))[2])
    if ahead == 0:
        raise InputError(
            f"{name}: its horizon goes through the middle of the stream's frame, so that either side may be"
            " ahead of the camera: check the last row of the matrix"
        )
    y, x = np.mgrid[: to[0], : to[1]].astype(np.float64)
    u, v, scale = np.tensordot(np.linalg.inv(matrix), np.stack([x, y, np.ones_like(x)]), axes=1)
    front = scale * ahead > 0
    scale = np.where(front, scale, 1.0)
    u, v = u / scale, v / scale
    edge = 0.5 + 1e-6  # half a pixel around the centres of the outermost ones
    seen = front & (u >= -edge) & (u <= size[1] - 1 + edge) & (v >= -edge) & (v <= size[0] - 1 + edge)
    if not seen.any():
        raise OptionError(
            f"{name}: maps nothing of the stream onto the frame of the first: it must map pixels (x, y, 1) of"
            " the stream to those of the first, and not the other way round"
        )
    grid = np.stack([(2 * u + 1) / size[1] - 1, (2 * v + 1) / size[0] - 1], axis=-1)
    grid[~seen] = 0.0
    return Placed(to, torch.from_numpy(grid)[None], None if seen.all() else torch.from_numpy(seen))


def read_homography(file: str) -> Float[np.ndarray, "3 3"]:
    """The matrix in a `.npy` file, or in a text of three lines of three numbers.

    Raises:
        InputError: it cannot be read, is not 3x3, or not finite.
    """
    try:
        if Path(file).suffix.lower() == ".npy":
            stored = open_array(Path(file))
            if stored.dtype.kind not in "uif":
                raise ValueError(f"its values are {stored.dtype}")
            _check_shape(file, stored.shape)
            with np.errstate(over="ignore"):  # wider floats
                matrix = np.array(stored, dtype=np.float64)
        else:
            if Path(file).stat().st_size > LONGEST:
                raise ValueError("it is too long")
            text = Path(file).read_text(encoding="utf-8-sig")
            rows = [line.partition("#")[0] for line in text.replace(",", " ").replace(";", " ").splitlines()]
            matrix = np.array([[float(n) for n in row.split()] for row in rows if row.strip()])
    except OSError as error:
        raise InputError(f"{file}: this homography cannot be read: {error.strerror or error}") from error
    except BROKEN as error:
        raise InputError(
            f"{file}: no matrix can be read from it: give 3x3 numbers as .npy, or as three lines of text"
        ) from error
    _check_shape(file, matrix.shape)
    if not np.isfinite(matrix).all():
        raise InputError(f"{file}: the matrix has values that are not finite")
    return matrix


def _check_shape(file: str, shape: tuple[int, ...]) -> None:
    if shape != (3, 3):
        said = "x".join(map(str, shape)) or "single number"
        raise InputError(f"{file}: a homography is a 3x3 matrix, this is {said}")
