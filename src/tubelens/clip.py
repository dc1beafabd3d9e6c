"""The one canonical clip, where it came from, and which frames of a video make one.

A clip is `(c, t, h, w)`, float in [0, 1], before any normalisation, its bands named. Its `Source` remembers
enough to draw a map back on the original frames: their times, their size, and the box that the clip shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tubelens.errors import InputError, OptionError

Pad = Literal["clamp", "zero"]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the displayed source frame; edges, not pixel centres, may be fractional."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class Source:
    """Where a clip came from.

    Attributes:
        path: the file or folder, None for an array.
        sha256: hash of its content, None for an array.
        size: height and width of the displayed frames (rotation applied).
        fps: average frame rate.
        times: seconds of every frame of the clip. Frames added by padding carry times after `span`.
        span: seconds of the first and the last source frame that the clip stands for, both included.
        box: the part of the frame that the clip shows.
        resized: height and width that the whole frame was resized to before the crop.
        rotation: counter-clockwise degrees that were applied to show the frames upright.
        sampling: repr of the sampling plan.
        padded: frames that were added because the video was too short.
        array: the frames themselves where there is no file; never written to disk.
        notes: what the user should know about how it was read, such as dead cells that were filled.
    """

    path: str | None
    size: tuple[int, int]
    fps: float
    times: tuple[float, ...]
    span: tuple[float, float]
    box: Box
    resized: tuple[int, int]
    sha256: str | None = None
    rotation: int = 0
    sampling: str = ""
    padded: int = 0
    array: np.ndarray | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    def clip_index(self, times: Sequence[float]) -> Float64[np.ndarray, "n"]:
        """Fractional clip-frame numbers of moments of the source, held at the first and the last frame.

        A source frame that was sampled several times in a row (a short video) has the mean of its numbers;
        one that came back after others (overlapping snippets), the one of its numbers nearest to that mean,
        because between them the clip shows other frames.
        """
        moments, inverse = np.unique(np.asarray(self.times, dtype=np.float64), return_inverse=True)
        count = np.bincount(inverse)
        numbers = np.bincount(inverse, weights=np.arange(len(self.times))) / count
        last = np.zeros(len(moments), dtype=np.intp)
        last[inverse] = np.arange(len(self.times))
        for moment in np.flatnonzero(last - numbers > (count - 1) / 2):  # not in a row
            own = np.flatnonzero(inverse == moment)
            numbers[moment] = own[np.abs(own - numbers[moment]).argmin()]
        return np.interp(np.asarray(times, dtype=np.float64), moments, numbers)

    @property
    def name(self) -> str:
        """The path, or `an array`."""
        return self.path or "an array"


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip before normalisation.

    Attributes:
        pixels: `(c, t, h, w)`, float32 in [0, 1].
        bands: one name a channel, such as `("R", "G", "B")`.
        source: where it came from.
    """

    pixels: Float[Tensor, "c t h w"]
    bands: tuple[str, ...]
    source: Source

    def __post_init__(self) -> None:
        if len(self.bands) != self.pixels.shape[0]:
            raise InputError(
                f"{self.source.name}: {self.pixels.shape[0]} channels but {len(self.bands)} band names"
            )

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.pixels.shape))
        return f"<Clip {shape} {','.join(self.bands)} of {self.source.name}>"

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        _, t, h, w = self.pixels.shape
        return t, h, w

    @classmethod
    def from_array(cls, array: Any, bands: str | Sequence[str] = "RGB", fps: float = 25.0) -> Clip:
        """A clip from `(t, h, w, c)` frames: numpy or torch, uint8 in 0..255 or float in [0, 1].

        Args:
            array: the frames; kept as they are, so that maps can be drawn on them.
            bands: one letter or one name a channel.
            fps: frame rate that drawings of this clip play at.

        Raises:
            InputError: wrong rank, empty, a value outside [0, 1], NaN, or bands that do not match.
        """
        frames = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        if frames.ndim != 4 or 0 in frames.shape:
            raise InputError(f"an array must be (t, h, w, c) and not empty, got shape {frames.shape}")
        if frames.dtype == np.uint8:
            values = torch.from_numpy(frames.copy()).float() / 255
        elif np.issubdtype(frames.dtype, np.floating):
            values = torch.from_numpy(frames.astype(np.float32))
            low, high = float(values.min()), float(values.max())
            if not (low >= 0.0 and high <= 1.0):  # also catches NaN
                raise InputError(
                    f"a float array must lie in [0, 1], got {low:.4g} to {high:.4g}: divide by its full scale"
                )
        else:
            raise InputError(f"an array must be uint8 or float, got {frames.dtype}")
        t, h, w, _ = frames.shape
        source = Source(
            path=None,
            size=(h, w),
            fps=float(fps),
            times=tuple(i / fps for i in range(t)),
            span=(0.0, (t - 1) / fps),
            box=Box(0.0, 0.0, float(h), float(w)),
            resized=(h, w),
            sampling="all frames",
            array=frames,
        )
        return cls(values.permute(3, 0, 1, 2).contiguous(), tuple(bands), source)


# ── which frames ─────────────────────────────────────────────────────────────────────────────────────────


@runtime_checkable
class Plan(Protocol):
    """Chooses frames of a video of `n` frames; index -1 stands for a black frame."""

    @property
    def frames(self) -> int:
        """Length of the clip."""
        ...

    def pick(self, n: int) -> list[int]:
        """One source index a clip frame."""
        ...


@dataclass(frozen=True)
class Uniform:
    """`frames` frames spread over the whole video, first and last included (the published sampling)."""

    frames: int = 16

    def pick(self, n: int) -> list[int]:
        """`linspace(0, n - 1, frames)`, cut to whole numbers; frames repeat where the video has fewer."""
        return [int(i) for i in np.linspace(0, n - 1, self.frames).astype(np.int64)]


@dataclass(frozen=True)
class Segments:
    """The video in equal segments, `snippet` consecutive frames from the middle of each (segment networks).

    Attributes:
        frames: of all segments together, a multiple of `snippet`.
        snippet: consecutive frames in each segment.
    """

    frames: int = 8
    snippet: int = 1

    def __post_init__(self) -> None:
        if self.snippet < 1 or self.frames % self.snippet:
            raise OptionError(
                f"segments of {self.snippet} consecutive frames cannot make a clip of {self.frames}:"
                f" give a multiple of {self.snippet}"
            )

    def pick(self, n: int) -> list[int]:
        """Snippet i starts at `floor((i + 1/2) (n - snippet + 1) / segments)`, at 0 where that is negative.

        The last frame is taken again where a snippet runs past the end.
        """
        return self.pick_views(n, 1)[0]

    def pick_views(self, n: int, clips: int) -> list[list[int]]:
        """The frames of `clips` clips, spread evenly within the segments; those of one clip are `pick`'s.

        Snippet i of clip k starts at `floor((i + (k + 1/2) / clips) (n - snippet + 1) / segments)`.
        """
        segments, room = self.frames // self.snippet, n - self.snippet + 1
        starts = [
            [max(0, (2 * (clips * i + k) + 1) * room // (2 * clips * segments)) for i in range(segments)]
            for k in range(clips)
        ]
        return [[min(s + j, n - 1) for s in row for j in range(self.snippet)] for row in starts]


@dataclass(frozen=True)
class Dense:
    """`frames` frames, every `stride`-th, from `start` seconds on; too short a video is padded."""

    frames: int = 16
    start: float = 0.0
    stride: int = 1
    pad: Pad = "clamp"

    def pick(self, n: int) -> list[int]:
        """Indices counted from the frame shown at `start`."""
        return padded_run(n, 0, self.frames, self.stride, self.pad)


@dataclass(frozen=True)
class Random:
    """A dense run at a random place, drawn from `seed`; too short a video is padded."""

    frames: int = 16
    stride: int = 1
    seed: int = 0
    pad: Pad = "clamp"

    def pick(self, n: int) -> list[int]:
        """The first index is uniform over every place where the run fits."""
        room = max(0, n - ((self.frames - 1) * self.stride + 1))
        first = int(np.random.default_rng(self.seed).integers(room + 1))
        return padded_run(n, first, self.frames, self.stride, self.pad)


@dataclass(frozen=True)
class Windows:
    """The whole video in overlapping dense runs of `frames` frames, each explained by itself."""

    frames: int = 16
    stride: int = 1
    overlap: float = 0.5
    pad: Pad = "clamp"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise OptionError(f"overlap must be in [0, 1), not {self.overlap}")

    @property
    def hop(self) -> int:
        """Sampled frames from one window's start to the next."""
        return max(1, round(self.frames * (1 - self.overlap)))

    def pick(self, n: int) -> list[int]:
        """Every `stride`-th frame: what all windows together see."""
        return list(range(0, n, self.stride))


def padded_run(n: int, first: int, frames: int, stride: int, pad: Pad) -> list[int]:
    """`first, first + stride, ...`; past the end of `n` frames the last one taken again, or -1 for black."""
    run = [first + i * stride for i in range(frames)]
    inside = [i for i in run if i < n]
    if not inside:
        raise OptionError(f"frame {first} is past the end: the video has {n} frames")
    return inside + [inside[-1] if pad == "clamp" else -1] * (frames - len(inside))


SAMPLINGS = ("uniform", "dense", "segments", "random", "windows")


def plan(
    name: str,
    frames: int,
    *,
    stride: int = 1,
    start: float = 0.0,
    seed: int = 0,
    overlap: float = 0.5,
    pad: Pad = "clamp",
    snippet: int = 1,
) -> Uniform | Dense | Segments | Random | Windows:
    """The sampling plan of that name; of the options it takes those that it knows.

    Raises:
        OptionError: unknown name, fewer than one frame, a stride below one, a negative or infinite start,
            frames that do not divide into snippets.
    """
    if frames < 1 or stride < 1:
        raise OptionError(f"frames and stride must be at least 1, got {frames} and {stride}")
    if not 0 <= start < float("inf"):
        raise OptionError(f"start must be finite and not negative, got {start} s")
    match name:
        case "uniform":
            return Uniform(frames)
        case "dense":
            return Dense(frames, start, stride, pad)
        case "segments":
            return Segments(frames, snippet)
        case "random":
            return Random(frames, stride, seed, pad)
        case "windows":
            return Windows(frames, stride, overlap, pad)
    raise OptionError(f"unknown sampling {name!r}: one of {', '.join(SAMPLINGS)}")


READERS: dict[str, Callable[..., Any]] = {}
"""Filled by `tubelens.video`: `"clip"` reads one clip, `"windows"` and `"views"` stream several. A model
reads through this table, so that it need not import an edge."""
