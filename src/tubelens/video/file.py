"""Frames of a video file: their times without decoding, and only the wanted ones decoded."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from tubelens.errors import OptionError, VideoError
from tubelens.video.container import (
    SEEKABLE,
    cut_off,
    formats,
    open_container,
    reason,
    regular_file,
    video_stream,
)
from tubelens.video.orient import Turn, upright

Frame = UInt8[np.ndarray, "h w c"]
THREADS = max(1, min(4, os.cpu_count() or 1))
"""Decoder threads: each holds frames of its own, and a long 1080p video must fit in little memory."""


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


class Cursor:
    """One pass of a decoder over a file: `for pts, frame in cursor`, with `seek` in between.

    Frames come in the order shown. A packet that cannot be decoded is skipped: the reader notices when a
    frame that it wants does not come.
    """

    def __init__(self, frames: FileFrames) -> None:
        self.frames = frames
        self.container = open_container(frames.file)
        self.stream = video_stream(self.container, frames.file)
        self.decoder = _decoder(self.stream)
        self.last: int | None = None
        self._packets: Iterator[Any] = self.container.demux(self.stream)
        self._ready: list[Any] = []
        self._step = max(1, round(1 / (float(self.stream.average_rate or 25) * float(frames.time_base))))

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        self._packets = iter(())
        self._ready = []
        self.container.close()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        while not self._ready:
            try:
                packet = next(self._packets)
            except (av.FFmpegError, OSError) as error:
                raise VideoError(f"{self.frames.file}: cannot be read further: {reason(error)}") from error
            try:
                self._ready = self.decoder.decode(packet)[::-1]
            except av.FFmpegError:
                continue
        frame = self._ready.pop()
        self.frames.decoded += 1
        pts = frame.pts
        if pts is None:
            pts = 0 if self.last is None else self.last + self._step
        self.last = pts
        return pts, frame

    def seek(self, pts: int) -> None:
        """Go to a keyframe shown at or before `pts`.

        Where a seek lands is checked, because an index may count in decoding time; if it lands too late, an
        earlier place is tried, and at last the start of the file.
        """
        for back in (0, 2, 10):
            goal = pts - round(back / self.frames.time_base)
            if goal <= self.frames.origin:
                break
            self._jump(goal)
            if self._packets_begin_by(pts):
                return
        self.restart()

    def restart(self) -> None:
        """Go back to the first frame, by opening the file again: not every format can seek there."""
        self.container.close()
        self.container = open_container(self.frames.file)
        self.stream = video_stream(self.container, self.frames.file)
        self.decoder = _decoder(self.stream)
        self._packets, self._ready = self.container.demux(self.stream), []

    def _jump(self, goal: int) -> None:
        self._ready = []
        try:
            self.container.seek(goal, stream=self.stream, backward=True)
        except (av.FFmpegError, OSError):
            self._packets = iter(())
            return
        self.decoder.flush_buffers()
        self._packets = self.container.demux(self.stream)

    def _packets_begin_by(self, pts: int) -> bool:
        first = next(self._packets, None)
        if first is None or first.pts is None or first.pts > pts or not first.is_keyframe:
            return False
        rest = self._packets
        self._packets = iter(_chain(first, rest))
        return True


class FileFrames:
    """Frames of one video file.

    Attributes:
        path: as given.
        size: height and width as displayed, rotation applied.
        rotation: counter-clockwise degrees that show a stored frame upright.
        has_audio: whether there is sound.
        decoded: frames that came out of the decoder so far.
    """

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
            # AVI numbers packets, not frames: where frames are stored out of order, only a decoder knows which
            # packet is which frame.
            self._counted = "avi" in names and not stream.codec.intra_only
            declared = stream.average_rate if names & (SEEKABLE | {"avi", "gif"}) else None
            fastest = float(stream.base_rate or declared or 25)
        self.origin = 0
        self._first()
        self.fps = float(declared) if declared else self._measured_rate()
        self._tolerance = 0.5 / max(self.fps, min(fastest, 240.0))

    def _first(self) -> None:
        """Decode one frame: the only sure source of size, rotation and the time stamp of the first frame."""
        with Cursor(self) as cursor:
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

    def pick(self, indices: Iterable[int]) -> Iterator[tuple[int, float, Frame]]:
        """Frames by number, in one pass: `(number, seconds, frame)`.

        Args:
            indices: increasing, each once.

        Raises:
            OptionError: not increasing, or a number that the video does not have.
            VideoError: a frame that cannot be decoded, or of another size than the first.
        """
        wanted = increasing(indices, len(self._index().pts), str(self.file))
        with Cursor(self) as cursor:
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
        with Cursor(self) as cursor:
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
        with Cursor(self) as cursor:
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
        end = float(((cursor.last or 0) + 1) * self.time_base)
        cut_off(cursor.container, cursor.stream, self.file, 0, end)

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
                for packet in container.demux(stream, *container.streams.audio[:1]):
                    if packet.size == 0:
                        continue
                    base = packet.time_base
                    if packet.pts is not None and base is not None:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * base))
                    if packet.stream_index != stream.index:
                        continue
                    count += 1
                    if packet.is_discard or (vp8 and _hidden(packet)):
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
        with Cursor(self) as cursor:
            pts = sorted(stamp for stamp, _ in cursor)
            cut_off(
                cursor.container, cursor.stream, self.file, len(pts), float((pts[-1] + 1) * self.time_base)
            )
            step = cursor._step
        if len(set(pts)) < len(pts):
            pts = [pts[0] + number * step for number in range(len(pts))]
        return Index(pts, [0])

    def _rgb(self, frame: Any, pts: int) -> Frame:
        """Stored frame to displayed RGB."""
        if (frame.height, frame.width) != self._stored:
            seconds = float((pts - self.origin) * self.time_base)
            was = "x".join(map(str, self._stored[::-1]))
            raise VideoError(
                f"{self.file}: the frame at {seconds:.2f} s is {frame.width}x{frame.height}, the first is {was}"
                ": re-encode it to one size"
            )
        clear = any(part.is_alpha for part in frame.format.components) or frame.format.has_palette
        picture = self._reformat.reformat(frame, format="rgba" if clear else "rgb24", threads=1)
        return upright(over_black(picture.to_ndarray()), self._turn)

    def sha256(self) -> str | None:
        """Hash of the file's bytes."""
        with self.file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()

    def close(self) -> None:
        """Nothing stays open between calls; an iterator closes its file when it ends or is dropped."""

    def __enter__(self) -> FileFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def over_black(frame: UInt8[np.ndarray, "h w c"]) -> Frame:
    """RGB, with transparent parts laid over black."""
    if frame.shape[2] == 3:
        return frame
    colour, alpha = frame[..., :3].astype(np.uint16), frame[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def increasing(indices: Iterable[int], count: int, name: str) -> list[int]:
    """The frame numbers, if they increase and exist.

    Raises:
        OptionError: otherwise.
    """
    wanted = [int(i) for i in indices]
    if any(b <= a for a, b in pairwise(wanted)):
        raise OptionError(f"{name}: frame numbers must increase, each once")
    if wanted and not (wanted[0] >= 0 and wanted[-1] < count):
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise OptionError(f"{name}: there is no frame {bad}: the video has {count} frames")
    return wanted


def shown_at(times: list[float], start: float, fps: float, name: str) -> int:
    """Number of the frame on screen at `start`.

    Raises:
        OptionError: the video has ended by then.
    """
    check_start(start, times[-1] + 1 / fps, fps, name)
    return max(0, bisect_right(times, start + 0.1 / fps) - 1)


def check_start(start: float, end: float, fps: float, name: str) -> None:
    """Raise OptionError when `start` is past the end (seconds)."""
    if start >= end - 0.1 / fps:
        raise OptionError(f"{name}: start {start:g} s is past the end: the video lasts {end:.2f} s")


def _decoder(stream: Any) -> Any:
    """The decoder of a stream. libav's own VP8 and VP9 decoders drop the alpha plane; libvpx keeps it."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name and stream.metadata.get("alpha_mode") == "1" and name in av.codecs_available:
        decoder: Any = av.CodecContext.create(name, "r")
        decoder.extradata = stream.codec_context.extradata
    else:
        decoder = stream.codec_context
        decoder.thread_type = "AUTO"
    decoder.thread_count = THREADS
    return decoder


def _hidden(packet: Any) -> bool:
    """Whether a VP8 packet only updates a reference: bit 4 of its first byte is `show_frame`."""
    return not bytes(packet)[0] >> 4 & 1


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
