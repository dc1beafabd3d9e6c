"""How measured values become 0 to 1: once for a whole recording, never frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from tubelens.errors import OptionError, VideoError
from tubelens.video.dead import Survey
from tubelens.video.measured_files import Recording, Values
from tubelens.video.streams import Stream

EXACT = 50_000_000
"""Values up to which percentiles are of all of them."""
MOST = 0.9
"""Share of values that a range cuts off from which on it is told."""


@dataclass(frozen=True)
class Scale:
    """`low` becomes 0, `high` becomes 1.

    Attributes:
        low, high: in the unit of the values.
        bits: of the sensor: a value beyond is a mistake; None: it is cut off.
    """

    low: float
    high: float
    bits: int | None = None

    def __call__(self, frame: Values, where: str) -> Float32[np.ndarray, "h w c"]:
        """A frame without dead values as float32 in [0, 1].

        Raises:
            VideoError: a value beyond the sensor's bits; `where` names the frame.
        """
        values = frame.astype(np.float64)
        self.check(float(values.min()), float(values.max()), where)
        inside = values.clip(self.low, self.high)  # first: far values less `low` may be beyond all numbers
        return ((inside - self.low) / (self.high - self.low)).astype(np.float32)

    def check(self, least: float, most: float, where: str) -> None:
        """Raise VideoError where values are beyond the sensor's bits."""
        if self.bits is not None and not (least >= self.low and most <= self.high):
            beyond = most if most > self.high else least
            raise VideoError(
                f"{where}: has the value {beyond:.6g}, beyond {self.bits} bits (0 to {self.high:.0f}):"
                " give the sensor's bits, or ?range="
            )


def scale_of(recording: Recording, stream: Stream, seen: Survey | None) -> Scale:
    """The scale that a stream states, or that its type has.

    Without a stated one: 8 bits have 255; 16 bits have 65535 if the values need them all; floats have 1 if
    they lie in [0, 1]. Nothing else has a scale of its own.

    Args:
        recording: the values.
        stream: what is said of them.
        seen: what they are like, where all were looked at.

    Raises:
        OptionError: no scale is stated and it cannot be told; more bits than the values have; a range that
            cuts off every value; percentiles that are equal.
        VideoError: floats outside [0, 1], or wide or signed integers, without a stated scale.
    """
    if stream.bits is not None:
        own = 8 * recording.dtype.itemsize - (recording.dtype.kind == "i")
        if recording.dtype.kind != "f" and stream.bits > own:
            raise OptionError(
                f"{recording.files[0]}: bits={stream.bits}, but its values have {own} bits: give the sensor's"
                " bits, or ?range="
            )
        full = Scale(0.0, float(2**stream.bits - 1), stream.bits)
        if seen is not None:
            full.check(seen.low, seen.high, str(recording.files[0]))
        return full
    if stream.percentile is not None:
        return _between(recording, stream.percentile)
    if stream.range is not None:
        low, high = stream.range
        if seen is not None:
            _check_range(recording, low, high, seen.low, seen.high)
        return Scale(low, high)
    return _own(recording, seen)


def cut_off(recording: Recording, stream: Stream) -> tuple[str, ...]:
    """A note where a range cuts off most values of a few frames that are spread over the recording.

    Raises:
        OptionError: it cuts off every value; only where those few frames look so are all others looked at.
    """
    if stream.range is None:
        return ()
    low, high = stream.range
    some = sorted({0, recording.count // 2, recording.count - 1})
    frames = [frame[np.isfinite(frame)] for frame in recording.read(some)]
    beyond = sum(int(((live < low) | (live > high)).sum()) for live in frames)
    total = sum(live.size for live in frames)
    if beyond == total:
        least, most = np.inf, -np.inf
        for frame in recording.read(range(recording.count)):
            live = frame[np.isfinite(frame)]
            least, most = min(least, float(live.min())), max(most, float(live.max()))
            if most >= low and least <= high:
                break
        _check_range(recording, low, high, least, most)
    if beyond <= MOST * total:
        return ()
    share = "all" if beyond == total else f"{min(99.9, 100 * beyond / total):.1f} %"
    looked = "1 frame that was" if len(some) == 1 else f"{len(some)} frames that were"
    return (f"range={low:g}:{high:g} cuts off {share} of the values in the {looked} looked at",)


def _check_range(recording: Recording, low: float, high: float, least: float, most: float) -> None:
    if most < low or least > high:
        raise OptionError(
            f"{recording.files[0]}: range={low:g}:{high:g} cuts off every value: they lie from"
            f" {least:.6g} to {most:.6g}"
        )


def _own(recording: Recording, seen: Survey | None) -> Scale:
    dtype = recording.dtype
    if dtype == np.uint8:
        return Scale(0.0, 255.0)
    if dtype == np.uint16:
        return _sixteen(recording, seen)
    if dtype.kind != "f":
        which = f"{'signed ' if dtype.itemsize < 4 else ''}{dtype.itemsize * 8}-bit"
        raise VideoError(
            f"{recording.where(0)}: {which} values have no known full scale: say how they are scaled, as in"
            " ?range=0:4095 or ?percentile=1:99"
        )
    if seen is not None and seen.outside is not None:
        raise VideoError(
            f"{recording.where(seen.outside)}: float values must lie in [0, 1], and these go from"
            f" {seen.low:.6g} to {seen.high:.6g}: say how they are scaled, as in{_ways(seen.low, seen.high)}"
        )
    return Scale(0.0, 1.0)


def _sixteen(recording: Recording, seen: Survey | None) -> Scale:
    """The full 16 bits, if a value needs the highest of them."""
    low, high = 65535.0, 0.0
    if seen is not None:
        low, high = seen.low, seen.high
    else:
        for frame in recording.read(range(recording.count)):
            low, high = min(low, float(frame.min())), max(high, float(frame.max()))
            if high >= 1 << 15:
                break
    if high >= 1 << 15:
        return Scale(0.0, 65535.0)
    raise OptionError(
        f"{recording.files[0]}: 16-bit values, but the largest is {high:.0f}: say how they are scaled, as in"
        f" ?bits={max(1, int(high).bit_length())} (what the sensor gives),{_ways(low, high)}"
    )


def _ways(low: float, high: float) -> str:
    """Two scales that would do; a constant recording has no percentiles to go by."""
    if low == high:
        return f" ?range=0:{max(1.0, high):.6g}" if high > 0 else " ?range=0:1"
    return f" ?range={low:.6g}:{high:.6g} or ?percentile=1:99"


def _between(recording: Recording, shares: tuple[float, float]) -> Scale:
    """Percentiles of all values of the recording, whichever frames are wanted of it.

    Up to `EXACT` values they are exact; beyond, they are those of every k-th frame, so that about so many are
    looked at.
    """
    h, w = recording.size
    step = -(-recording.count * h * w * recording.channels // EXACT)
    frames = recording.read(range(0, recording.count, step))
    values = np.concatenate([frame[np.isfinite(frame)] for frame in frames])
    with np.errstate(over="ignore", invalid="ignore"):  # values as far apart as numbers go
        low, high = (float(value) for value in np.percentile(values, shares))
    if not high - low < np.inf:
        raise OptionError(
            f"{recording.files[0]}: percentile={shares[0]:g}:{shares[1]:g} are {low:.6g} and {high:.6g}: too"
            " far apart: give ?range="
        )
    if not low < high:
        raise OptionError(
            f"{recording.files[0]}: percentile={shares[0]:g}:{shares[1]:g} are both {low:.6g}, so that"
            " nothing can be told apart: give wider ones, or ?range= or ?bits="
        )
    return Scale(low, high)
