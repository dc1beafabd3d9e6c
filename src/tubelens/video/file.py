"""Frames of a video file: their times without decoding, and only the wanted ones decoded."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, SupportsIndex

import av
from av.video.reformatter import VideoReformatter

from tubelens.errors import VideoError
from tubelens.files import sha256_of
from tubelens.video.container import (
    SEEKABLE,
    cut_off,
    formats,
    open_container,
    reason,
    regular_file,
    video_stream,
)
from tubelens.video.cursor import Cursor, hidden
from tubelens.video.display import Frame, Turn, over_black, upright
from tubelens.video.extent import is_short
from tubelens.video.moments import check_start, increasing, shown_at


@dataclass(frozen=True)
class Index:
    """Where the frames are.

    Attributes:
        pts: time stamp of every frame in the order shown, in units of the stream's time base.
        keys: numbers of the keyframes.
    """

    pts: list[int]
    keys: list[int]

    def number(self, pts: int) -> int:
        """The frame whose time stamp is nearest."""
        right = bisect_left(self.pts, pts)
        if right == len(self.pts) or (right and pts - self.pts[right - 1] < self.pts[right] - pts):
            return right - 1
        return right


class FileFrames:
    """Frames of one video file.

    Attributes:
        path: as given.
        size: height and width as displayed, rotation applied.
        rotation: counter-clockwise degrees that show a stored frame upright.
        has_audio: whether there is sound.
        decoded: frames that came out of the decoder so far.
        bands: R, G, B.
        pictures: what a displayed frame is a picture of: one thing, without a name.
        notes: what the user should know.
    """

    bands: tuple[str, ...] = ("R", "G", "B")
    pictures: tuple[str, ...] = ("",)
    notes: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = regular_file(path)
        self.path: str | None = os.fspath(path)
        self.decoded = 0
        self._known: Index | None = None
        self._reformat = VideoReformatter()
        with open_container(self.file) as container:
            stream = video_stream(container, self.file)
            names = formats(container)
            self.time_base = Fraction(stream.time_base or Fraction(1, 1000))
            self.has_audio = bool(container.streams.audio)
            self._seekable = bool(names & SEEKABLE) or ("avi" in names and stream.codec.intra_only)
            # AVI numbers packets: where frames are stored out of order, only a decoder knows which is which.
            self._counted = "avi" in names and not stream.codec.intra_only
            declared = stream.average_rate if names & (SEEKABLE | {"avi", "gif"}) else None
            fastest = float(stream.base_rate or declared or 25)
        self.origin = 0
        self._first()
        self.fps = float(declared) if declared else self._measured_rate()
        self._tolerance = 0.5 / max(self.fps, min(fastest, 240.0))

    def _first(self) -> None:
        """Decode one frame: the only sure source of size, rotation and the time stamp of the first frame."""
        with self._cursor() as cursor:
            first = next(cursor, None)
            if first is None:
                cut_off(cursor.container, cursor.stream, self.file, 0, 0.0)
                raise VideoError(f"{self.file}: no frame of it can be decoded: repair or re-encode it")
            self.origin, frame = first
            self._stored = (frame.height, frame.width)
            self._turn = Turn.of(frame)
        self.rotation = self._turn.degrees
        self.size = self._turn.size(self._stored)
        self.decoded = 0

    def _cursor(self) -> Cursor:
        return Cursor(self.file, self.origin, self._tick)

    def _tick(self) -> None:
        self.decoded += 1

    def _measured_rate(self) -> float:
        times = self.times()
        return (len(times) - 1) / times[-1] if len(times) > 1 else 25.0

    def times(self) -> list[float]:
        """Seconds of every frame in the order shown; the first is 0. Packets are read, not decoded.

        Raises:
            VideoError: the file is cut off.
        """
        index = self._index()
        return [float((pts - index.pts[0]) * self.time_base) for pts in index.pts]

    def pick(self, indices: Iterable[SupportsIndex]) -> Iterator[tuple[int, float, Frame]]:
        """Frames by number, in one pass: `(number, seconds, frame)`.

        Args:
            indices: increasing, each once.

        Raises:
            OptionError: not increasing, or a number that the video does not have.
            VideoError: a frame that cannot be decoded, or of another size than the first.
        """
        wanted = increasing(indices, len(self._index().pts), str(self.file))
        with self._cursor() as cursor:
            for number, pts, frame in self._visit(cursor, wanted):
                yield number, float((pts - self._index().pts[0]) * self.time_base), self._rgb(frame, pts)

    def _visit(self, cursor: Cursor, wanted: list[int]) -> Iterator[tuple[int, int, Any]]:
        index = self._index()
        at, held = -1, None  # number and frame that the decoder gave last
        for number in wanted:
            key = index.keys[bisect_right(index.keys, number) - 1] if self._seekable else 0
            tried = key <= at + 1
            if not tried:
                cursor.seek(index.pts[key])
                at, held = key - 1, None
            while held is None or at < number:
                held = next(cursor, None)
                if held is not None:
                    at = at + 1 if self._counted else index.number(held[0])
                if held is None or at > number:
                    if tried or at < 0:
                        raise VideoError(
                            f"{self.file}: frame {number} cannot be decoded: repair or re-encode the file"
                        )
                    # The frame did not come after a seek; it may need frames before that keyframe.
                    cursor.restart()
                    at, held, tried = -1, None, True
            yield number, index.pts[number], held[1]

    def between(self, start: float, end: float) -> Iterator[tuple[float, Frame]]:
        """Frames shown from `start` to `end` (seconds), both included within half a frame.

        Decoding begins at the keyframe before `start` and stops at the first frame after `end`.

        Raises:
            VideoError: a frame of another size than the first, or the file is cut off inside the span.
        """
        if self._counted:
            times = self.times()
            first = bisect_left(times, start - self._tolerance)
            for _, seconds, frame in self.pick(range(first, bisect_right(times, end + self._tolerance))):
                yield seconds, frame
            return
        with self._cursor() as cursor:
            for seconds, pts, frame in self._from(cursor, start - self._tolerance):
                if seconds > end + self._tolerance:
                    return
                if seconds >= start - self._tolerance:
                    yield seconds, self._rgb(frame, pts)

    def run(self, start: float = 0.0, stride: int = 1) -> Iterator[tuple[float, Frame]]:
        """Every `stride`-th frame from the one shown at `start` (seconds), streamed until the end.

        Raises:
            OptionError: the video ends before `start`.
            VideoError: a frame of another size than the first, or the file is cut off.
        """
        slack = 0.1 / self.fps  # time stamps are rounded: a frame at 66.7 ms may be stored as 67
        if self._counted:
            times = self.times()
            first = shown_at(times, start, self.fps, str(self.file))
            for _, seconds, frame in self.pick(range(first, len(times), stride)):
                yield seconds, frame
            return
        with self._cursor() as cursor:
            before, number = None, 0
            for seconds, pts, frame in self._from(cursor, start + slack):
                if seconds <= start + slack:
                    before = seconds, pts, frame
                    continue
                for at, stamp, picture in ([before] if before else []) + [(seconds, pts, frame)]:
                    if number % stride == 0:
                        yield at, self._rgb(picture, stamp)
                    number += 1
                before = None
            if before is not None:  # the video ends with the frame shown at `start`
                seconds, pts, frame = before
                check_start(start, seconds + 1 / self.fps, self.fps, str(self.file))
                yield seconds, self._rgb(frame, pts)

    def _from(self, cursor: Cursor, start: float) -> Iterator[tuple[float, int, Any]]:
        """Decode from the keyframe at or before `start`; at the end of the file, see that it is the end."""
        goal = self.origin + int(start / self.time_base)
        if self._seekable and goal > self.origin:
            cursor.seek(goal)
        for pts, frame in cursor:
            yield float((pts - self.origin) * self.time_base), pts, frame
        if is_short(self.file):
            self.times()  # counts what is there, and says so

    def _index(self) -> Index:
        if self._known is None:
            self._known = (None if self._counted else self._read_packets()) or self._read_frames()
        return self._known

    def _read_packets(self) -> Index | None:
        """The index from packets, None if their time stamps cannot be used."""
        pts: list[int] = []
        keys: list[int] = []
        count, end, usable = 0, 0.0, True
        with open_container(self.file) as container:
            stream = video_stream(container, self.file)
            vp8 = stream.codec_context.name in ("vp8", "libvpx")
            try:
                for packet in container.demux():
                    if packet.size == 0:
                        continue
                    base = packet.time_base
                    if packet.pts is not None and base is not None and not packet.is_corrupt:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * base))
                    if packet.stream_index != stream.index:
                        continue
                    count += not packet.is_corrupt
                    if packet.is_discard or (vp8 and hidden(packet)):
                        continue
                    if packet.pts is None:
                        usable = False
                    elif packet.pts >= self.origin:  # earlier ones lead a keyframe and cannot be decoded
                        pts.append(packet.pts)
                        if packet.is_keyframe:
                            keys.append(packet.pts)
            except (av.FFmpegError, OSError) as error:
                raise VideoError(f"{self.file}: cannot be read further: {reason(error)}") from error
            cut_off(container, stream, self.file, count, end)
        pts.sort()
        if not usable or not pts or len(set(pts)) < len(pts):
            return None
        place = {stamp: number for number, stamp in enumerate(pts)}
        return Index(pts, sorted({0, *(place[key] for key in keys)}))

    def _read_frames(self) -> Index:
        """The index from a decoding pass; nothing is kept but time stamps."""
        self._counted, self._seekable = True, False
        with self._cursor() as cursor:
            pts = sorted(stamp for stamp, _ in cursor)
            step = cursor.step
            cut_off(cursor.container, cursor.stream, self.file, len(pts), float(pts[-1] * self.time_base))
        if len(set(pts)) < len(pts):
            pts = [pts[0] + number * step for number in range(len(pts))]
        return Index(pts, [0])

    def _rgb(self, frame: Any, pts: int) -> Frame:
        """Stored frame to displayed RGB."""
        if (frame.height, frame.width) != self._stored:
            seconds = float((pts - self.origin) * self.time_base)
            was = "x".join(map(str, self._stored[::-1]))
            raise VideoError(
                f"{self.file}: the frame at {seconds:.2f} s is {frame.width}x{frame.height}, the first is"
                f" {was}: re-encode it to one size"
            )
        clear = any(part.is_alpha for part in frame.format.components) or frame.format.has_palette
        picture = self._reformat.reformat(frame, format="rgba" if clear else "rgb24", threads=1)
        return upright(over_black(picture.to_ndarray()), self._turn)

    def sha256(self) -> str | None:
        """Hash of the file's bytes."""
        return sha256_of(self.file)

    def close(self) -> None:
        """Nothing stays open between calls; an iterator closes its file when it ends or is dropped."""

    def __enter__(self) -> FileFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
