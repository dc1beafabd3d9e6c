"""Several spectra of one scene, brought to the times and the frame of the first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float

from tubelens.errors import OptionError
from tubelens.video.align import Placed, Times, match, placing, read_homography
from tubelens.video.display import LUMA, Frame
from tubelens.video.file import FileFrames
from tubelens.video.images import FolderFrames
from tubelens.video.measured import MeasuredFrames
from tubelens.video.moments import increasing, shown_at, shown_between
from tubelens.video.streams import Stream

One = FileFrames | FolderFrames | MeasuredFrames


class PairedFrames:
    """Frames of several streams at once, decoded in one pass through each.

    The first stream gives the times and the frame size. Of each other one, a frame has what is nearest in
    time. Frames of the first that the others do not cover are left out; those that stay keep its seconds.

    Attributes:
        path: the text that names the source.
        size: height and width of the first stream, to which the others are brought.
        fps: of the first stream.
        bands: of all streams, in their order.
        bands_of: of each stream.
        pictures: names of the streams.
        exact: yield the values of all bands, float32 in [0, 1].
        each: where not exact, yield the pictures of all streams one behind the other, `(h, w, 3 n)`, in place
            of the first's.
        rotation: of the first stream.
        has_audio: likewise.
    """

    def __init__(
        self, text: str, streams: Sequence[Stream], videos: Sequence[One], fps: float | None = None
    ) -> None:
        """Match the streams.

        Args:
            text: names the source.
            streams: what it says of each.
            videos: their frames.
            fps: rate that was given for those that have neither times nor a rate of their own.

        Raises:
            OptionError: two bands of one name; frames of another shape and nothing said about it.
            VideoError: no moment that all show.
            InputError: a homography that cannot be used.
        """
        self.streams, self.videos = _rated(streams, videos, fps), tuple(videos)
        self.path: str | None = text if self.streams == tuple(streams) else "|".join(map(str, self.streams))
        lead, first = self.streams[0], self.videos[0]
        self.size, self.fps = first.size, first.fps
        self.rotation, self.has_audio = first.rotation, first.has_audio
        named = [_bands(s, v) for s, v in zip(self.streams, self.videos, strict=True)]
        self.bands_of = tuple(named)
        self.bands = tuple(band for bands in named for band in bands)
        twice = [band for band in self.bands if self.bands.count(band) > 1]
        if twice:
            raise OptionError(f"{text}: two streams have a band {twice[0]}: name them apart (?bands=...)")
        self.pictures = tuple(stream.name for stream in self.streams)
        self.exact, self.each = False, False
        seconds = [v.times() for v in self.videos]
        self._matched = match(
            [
                Times.of(_called(s), t, v.fps, s.offset)
                for s, v, t in zip(self.streams, self.videos, seconds, strict=True)
            ]
        )
        self._unsaid = _unsaid(self.streams, self.videos)
        self._times = [seconds[0][row[0]] for row in self._matched.rows]
        self._placed = [Placed(self.size)] + [
            placing(s, v.size, _called(lead), self.size)
            for s, v in zip(self.streams[1:], self.videos[1:], strict=True)
        ]
        self._luma = [
            not isinstance(v, MeasuredFrames) and len(bands) == 1
            for v, bands in zip(self.videos, named, strict=True)
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: what could not be matched, and what each stream says."""
        shares = [
            f"{_called(s)} does not look at {1 - p.covered:.0%} of the frame: its bands are 0 there"
            for s, p in zip(self.streams, self._placed, strict=True)
            if p.covered < 1
        ]
        own = [f"{_called(s)}: {n}" for s, v in zip(self.streams, self.videos, strict=True) for n in v.notes]
        return (*self._matched.notes, *self._unsaid, *shares, *own)

    @property
    def decoded(self) -> int:
        """Frames of all streams that were decoded so far."""
        return sum(video.decoded for video in self.videos)

    def times(self) -> list[float]:
        """Seconds of every frame, counted from the first frame of the first stream."""
        return list(self._times)

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, np.ndarray]]:
        """Frames by number, in one pass: `(number, seconds, frame)`.

        Args:
            indices: of the frames that are left, increasing, each once.

        Raises:
            OptionError: not increasing, or a number that there is not.
            VideoError: a frame of one stream that cannot be decoded.
        """
        wanted = increasing(indices, len(self._times), str(self.path))
        everything = self.exact or self.each
        used = range(len(self.videos) if everything else 1)
        columns = [self._column(n, [self._matched.rows[k][n] for k in wanted]) for n in used]
        for k, *frames in zip(wanted, *columns, strict=True):
            yield k, self._times[k], frames[0] if len(frames) == 1 else np.concatenate(frames, axis=2)

    def _column(self, n: int, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames of one stream on the frame of the first; one that comes again is decoded and placed once."""
        video = self.videos[n]
        if isinstance(video, MeasuredFrames):
            video.exact = self.exact
        exact, last, frame = self.exact, -1, np.empty(0)
        picked = video.pick(sorted(set(numbers)))
        for number in numbers:
            if number != last:
                last, _, raw = next(picked)
                frame = self._values(n, raw) if exact else self._picture(n, raw)
            yield frame

    def _values(self, n: int, frame: np.ndarray) -> Float[np.ndarray, "h w c"]:
        values = frame.astype(np.float32) / 255 if frame.dtype == np.uint8 else frame.astype(np.float32)
        if self._luma[n]:
            values = (values @ np.asarray(LUMA, dtype=np.float32))[..., None]
        return self._placed[n](values)

    def _picture(self, n: int, frame: np.ndarray) -> Frame:
        placed = self._placed[n]
        if placed.grid is None and frame.shape[:2] == placed.size:
            return frame
        return np.round(placed(frame.astype(np.float32) / 255) * 255).astype(np.uint8)

    def between(self, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame."""
        for _, seconds, frame in self.pick(shown_between(self._times, start, end, self.fps)):
            yield seconds, frame

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, np.ndarray]]:
        """Every `stride`-th frame from the one shown at `start` (seconds).

        Raises:
            OptionError: the streams end before `start`.
        """
        first = shown_at(self._times, start, self.fps, str(self.path))
        for _, seconds, frame in self.pick(range(first, len(self._times), stride)):
            yield seconds, frame

    def sha256(self) -> str | None:
        """Hash of the contents of all streams and of what is said of each; None where one has none."""
        total = hashlib.sha256()
        for stream, video in zip(self.streams, self.videos, strict=True):
            content = video.sha256()
            if content is None:
                return None
            said = str(replace(stream, path="", homography=""))
            matrix = (read_homography(stream.homography) + 0.0).tobytes() if stream.homography else b""
            line = f"{said}\0{content}\0{hashlib.sha256(matrix).hexdigest()}\n"
            total.update(line.encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def close(self) -> None:
        """Close all streams."""
        for video in self.videos:
            video.close()

    def __enter__(self) -> PairedFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _called(stream: Stream) -> str:
    return stream.name or stream.path


def _bands(stream: Stream, video: One) -> tuple[str, ...]:
    """What the bands of a stream are called; a picture of no visible spectrum is one band, its luma.

    Raises:
        OptionError: names that fit neither its luma nor its colours.
    """
    if isinstance(video, MeasuredFrames):
        return video.bands
    if stream.bands:
        if len(stream.bands) not in (1, 3):
            raise OptionError(
                f"{stream.path}: pictures have three bands, or one, their luma: bands= names"
                f" {len(stream.bands)}"
            )
        return stream.bands
    return ("R", "G", "B") if stream.visible else (stream.name.upper(),)


def _rated(streams: Sequence[Stream], videos: Sequence[One], fps: float | None) -> tuple[Stream, ...]:
    """The streams with the rate that they were opened at, so that the text alone opens them alike."""
    return tuple(
        replace(stream, fps=fps)
        if fps is not None and stream.fps is None and not isinstance(video, FileFrames) and video.fps == fps
        else stream
        for stream, video in zip(streams, videos, strict=True)
    )


def _unsaid(streams: Sequence[Stream], videos: Sequence[One]) -> tuple[str, ...]:
    """Which streams are matched at a rate that neither they nor anybody states.

    Where rates and numbers of frames are equal, frame for frame belongs together: there is nothing to tell.
    """
    if len({(round(video.fps, 2), len(video.times())) for video in videos}) == 1:  # or a single stream
        return ()
    return tuple(
        f"{_called(stream)}: taken at {video.fps:g} frames a second (?fps=)"
        for stream, video in zip(streams, videos, strict=True)
        if stream.fps is None and _takes_a_rate(video)
    )


def _takes_a_rate(video: One) -> bool:
    """Whether frames have neither times nor a rate of their own."""
    if isinstance(video, MeasuredFrames):
        return not video.recording.times and video.recording.fps is None
    return isinstance(video, FolderFrames)
