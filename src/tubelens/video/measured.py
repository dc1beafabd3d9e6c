"""Frames of measured values: degrees or counts, of array, TIFF, CPTV and raw files and of folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from tubelens.errors import OptionError, VideoError
from tubelens.files import sha256_of
from tubelens.video.arrays import unnamed
from tubelens.video.dead import filled, survey
from tubelens.video.display import shown
from tubelens.video.images import hash_of
from tubelens.video.measured_arrays import array_file
from tubelens.video.measured_files import Recording, cptv_file, raw_file
from tubelens.video.measured_images import tiff_file
from tubelens.video.moments import increasing, shown_at, shown_between
from tubelens.video.scaling import cut_off, scale_of
from tubelens.video.streams import FASTEST, SLOWEST, Stream, is_visible

LOADERS: Mapping[str, Callable[[Stream], Recording]] = {
    ".npy": array_file,
    ".npz": array_file,
    ".tif": tiff_file,
    ".tiff": tiff_file,
    ".cptv": cptv_file,
    ".raw": raw_file,
    ".bin": raw_file,
}
PAIRING = ("offset", "homography", "fit")
"""Options that are about several streams, not about what one holds."""
SCALES = ("range", "percentile", "bits")


def is_measured(stream: Stream) -> bool:
    """Whether a stream is a file of measured values, going by its suffix."""
    return Path(stream.path).suffix.lower() in LOADERS and not os.path.isdir(stream.path)


def measured_file(stream: Stream) -> Recording:
    """The values of a file.

    Raises:
        VideoError: it cannot be read.
        OptionError: an option of the stream that it needs is missing or means nothing.
    """
    return LOADERS[Path(stream.path).suffix.lower()](stream)


class MeasuredFrames:
    """Frames of measured values, scaled once for the whole recording.

    Attributes:
        path: the text that names the source, and opens it alike.
        size: height and width.
        fps: average frame rate.
        bands: names of its channels.
        exact: yield the scaled values of each band, float32 in [0, 1], in place of a picture to look at.
        decoded: frames read so far.
        rotation, has_audio: see `FileFrames`.
        audio_path: the file that has the sound.
        scale: what becomes 0 and 1.
        notes: what the user should know.
    """

    pictures = ("",)

    def __init__(self, stream: Stream, recording: Recording, fps: float | None = None) -> None:
        """Look at the values, as far as their scale and dead cells need it.

        Args:
            stream: what is said of them.
            recording: the values.
            fps: rate of what has no times and no rate of its own, where the stream says none.

        Raises:
            VideoError: values that no scale fits, or too many dead ones.
            OptionError: an option that means nothing to them, or a scale that is missing or does not fit.
        """
        known = (*SCALES, "bands", "fps", "dead", *recording.options)
        check_options(stream, recording.kind, known)
        self.bands = _bands(stream, recording)
        self.stream, self.recording = stream, recording
        self.size, self.rotation = recording.size, recording.rotation
        self.audio_path, self.has_audio = recording.audio, recording.audio is not None
        self.exact, self.decoded = False, 0
        self._times, self.fps = _moments(stream, recording, fps)
        plain = not (stream.given() or stream.name) and os.path.isdir(stream.path)  # opened with its rate
        rated = fps is not None and stream.fps is None and not recording.times and not plain
        self.path: str | None = str(replace(stream, fps=fps) if rated else stream)
        looked = recording.at_hand or not recording.finite
        seen = survey(recording, stream.dead == "error") if looked else None
        self.scale = scale_of(recording, stream, seen)
        self.notes: tuple[str, ...] = (
            *recording.notes,
            *(seen.notes if seen is not None else ()),
            *cut_off(recording, stream),
        )

    def times(self) -> list[float]:
        """Seconds of every frame; the first is 0."""
        return list(self._times)

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, np.ndarray]]:
        """Frames by number: `(number, seconds, frame)`; one channel is shown as grey.

        Args:
            indices: increasing, each once.

        Raises:
            OptionError: not increasing, or a number that there is not.
            VideoError: a frame that cannot be read, or a value beyond the sensor's bits.
        """
        wanted = increasing(indices, self.recording.count, str(self.path))
        for number, values in zip(wanted, self.recording.read(wanted), strict=True):
            self.decoded += 1
            whole = values if self.recording.finite else filled(values)
            frame = self.scale(whole, self.recording.where(number))
            yield number, self._times[number], frame if self.exact else shown(frame)

    def between(self, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame."""
        for _, seconds, frame in self.pick(shown_between(self._times, start, end, self.fps)):
            yield seconds, frame

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, np.ndarray]]:
        """Every `stride`-th frame from the one shown at `start` (seconds).

        Raises:
            OptionError: the recording ends before `start`.
        """
        first = shown_at(self.times(), start, self.fps, str(self.path))
        for _, seconds, frame in self.pick(range(first, self.recording.count, stride)):
            yield seconds, frame

    def sha256(self) -> str | None:
        """Hash of the content of the file; of a folder, of the names and contents in order."""
        files = self.recording.files
        if os.path.isdir(self.stream.path):
            return hash_of(files)
        return sha256_of(files[0])

    def close(self) -> None:
        """Nothing stays open between calls."""

    def __enter__(self) -> MeasuredFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_options(stream: Stream, kind: str, known: Iterable[str]) -> None:
    """Raise OptionError for an option that means nothing to what is there."""
    able = sorted(known)
    for option in stream.given():
        if option not in able and option not in PAIRING:
            raise OptionError(f"{stream.path}: {option}= means nothing to {kind}: it takes {', '.join(able)}")


def bands_of(name: str, channels: int) -> tuple[str, ...]:
    """What the channels of a stream of that name are called: `lwir` has LWIR, `visible` R, G, B."""
    if is_visible(name) and channels == 3:
        return unnamed(3)
    if not name:
        return unnamed(channels)
    return (name.upper(),) if channels == 1 else tuple(f"{name.upper()}{i}" for i in range(channels))


def _bands(stream: Stream, recording: Recording) -> tuple[str, ...]:
    if stream.bands and len(stream.bands) != recording.channels:
        raise OptionError(
            f"{stream.path}: bands={','.join(stream.bands)} names {len(stream.bands)}, but a pixel has"
            f" {recording.channels} {'value' if recording.channels == 1 else 'values'}"
        )
    return stream.bands or bands_of(stream.name, recording.channels)


def _moments(stream: Stream, recording: Recording, fps: float | None) -> tuple[tuple[float, ...], float]:
    """Seconds of every frame, and the average rate."""
    own = recording.times
    if own:
        if stream.fps is not None or (fps is not None and not stream.name):
            raise OptionError(
                f"{stream.path}: fps is for what has no times: the frames of {recording.kind} have their own"
            )
        if len(own) < 2:
            return own, recording.fps or 25.0
        average = (len(own) - 1) / own[-1]
        if not SLOWEST <= average <= FASTEST:
            raise VideoError(
                f"{stream.path}: {len(own)} frames in {own[-1]:g} seconds cannot be meant: check its times,"
                " and that their name ends with their unit (_s, _ms, _us, _ns)"
            )
        return own, average
    rate = stream.fps or fps or recording.fps or 25.0
    return tuple(number / rate for number in range(recording.count)), rate
