"""One pass of a decoder over a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av

from tubelens.errors import VideoError
from tubelens.video.container import open_container, reason, video_stream

THREADS = max(1, min(4, os.cpu_count() or 1))
"""Decoder threads: each holds frames of its own, and a long 1080p video must fit in little memory."""


class Cursor:
    """One pass of a decoder over a file: `for pts, frame in cursor`, with `seek` in between.

    Frames come in the order shown. A packet that cannot be decoded is skipped: the reader notices when a
    frame that it wants does not come.

    Args:
        file: what to decode.
        origin: time stamp of its first frame.
        tick: called for every frame that comes out of the decoder.
    """

    def __init__(self, file: Path, origin: int, tick: Callable[[], None]) -> None:
        self.file, self.origin, self._tick = file, origin, tick
        self.container = open_container(file)
        self.stream = video_stream(self.container, file)
        self.time_base = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.decoder = _decoder(self.stream)
        self.last: int | None = None
        self._packets: Iterator[Any] = self.container.demux(self.stream)
        self._ready: list[Any] = []
        self.step = max(1, round(1 / (float(self.stream.average_rate or 25) * float(self.time_base))))

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
                raise VideoError(f"{self.file}: cannot be read further: {reason(error)}") from error
            try:
                self._ready = self.decoder.decode(packet)[::-1]
            except av.FFmpegError:
                continue
        frame = self._ready.pop()
        self._tick()
        pts = frame.pts
        if pts is None:
            pts = 0 if self.last is None else self.last + self.step
        self.last = pts
        return pts, frame

    def seek(self, pts: int) -> None:
        """Go to a keyframe shown at or before `pts`.

        Where a seek lands is checked, because an index may count in decoding time; if it lands too late, an
        earlier place is tried, and at last the start of the file.
        """
        for back in (0, 2, 10):
            goal = pts - round(back / self.time_base)
            if goal <= self.origin:
                break
            self._jump(goal)
            if self._packets_begin_by(pts):
                return
        self.restart()

    def restart(self) -> None:
        """Go back to the first frame, by opening the file again: not every format can seek there."""
        self.container.close()
        self.container = open_container(self.file)
        self.stream = video_stream(self.container, self.file)
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
        self._packets = chain([first], rest)
        return True


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


def hidden(packet: Any) -> bool:
    """Whether a VP8 packet only updates a reference: bit 4 of its first byte is `show_frame`."""
    return not bytes(packet)[0] >> 4 & 1
