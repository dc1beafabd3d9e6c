"""The sound of a span of a source file, encoded again beside new pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler
from av.container import OutputContainer

from tubelens.errors import VideoError
from tubelens.video.container import open_container
from tubelens.video.file import FileFrames

RATE = 48_000
"""Samples a second: the one rate that Opus and AAC share."""


class Sound:
    """Feeds the sound of a source into an output, in step with its pictures.

    Args:
        output: where it is muxed; the stream is added here, before anything is written.
        codec: of the output.
        path: the source. `start`, `end`: seconds after its first picture.
    """

    def __init__(
        self, output: OutputContainer, codec: str, path: str | os.PathLike[str], start: float, end: float
    ) -> None:
        frames = FileFrames(path)
        self.start, self.end = start, end
        self._file = frames.file
        self._zero = float(frames.origin * frames.time_base)
        with open_container(self._file) as source:
            mono = source.streams.audio[0].codec_context.channels == 1
        self._layout = "mono" if mono else "stereo"
        self._output = output
        self._stream: Any = output.add_stream(codec, rate=RATE, layout=self._layout)
        context: Any = self._stream.codec_context
        self._form = "fltp" if "fltp" in [f.name for f in context.codec.audio_formats] else "flt"
        context.format = self._form
        self._fifo = AudioFifo()
        self._written = 0
        self._pieces: Iterator[np.ndarray] | None = None
        self._done = False

    def pump(self, first: float, until: float) -> None:
        """Encode what sounds before `until`; the output begins with second `first` of the source."""
        if self._pieces is None:
            self._pieces = self._samples(first)
        while not self._done and self._written / RATE < until - first:
            piece = next(self._pieces, None)
            if piece is None:
                self._done = True
                break
            self._push(piece)

    def finish(self, first: float) -> None:
        """Encode the rest."""
        self.pump(first, float("inf"))
        if rest := self._fifo.read(0, partial=True):
            self._output.mux(self._stream.encode(rest))
        self._output.mux(self._stream.encode(None))

    def _push(self, piece: np.ndarray) -> None:
        samples = piece if self._form == "fltp" else piece.T.reshape(1, -1)  # planes, or interleaved
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), self._form, self._layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._written, Fraction(1, RATE)
        self._written += piece.shape[1]
        self._fifo.write(frame)
        size = self._stream.codec_context.frame_size or 1024
        while (block := self._fifo.read(size)) is not None:
            self._output.mux(self._stream.encode(block))

    def _samples(self, first: float) -> Iterator[np.ndarray]:
        """Planar float samples of the span without gaps: `(channels, n)`, beginning at second `first`."""
        begin, stop = round((self.start - first) * RATE), round((self.end - first) * RATE)
        at = 0
        for place, samples in self._decoded(max(self.start, first)):
            place -= round(first * RATE)
            skip = max(0, max(at, begin) - place)
            samples = samples[:, skip : max(skip, stop - place)]
            if not samples.shape[1]:
                if place >= stop:
                    return
                continue
            gap = place + skip - at
            if gap > 0:  # the sound begins later than the pictures, or pauses
                yield np.zeros((samples.shape[0], gap), np.float32)
            yield samples
            at = place + skip + samples.shape[1]

    def _decoded(self, start: float) -> Iterator[tuple[int, np.ndarray]]:
        """Decoded sound from `start` on: sample number after the first picture, and samples."""
        with open_container(self._file) as source:
            stream = source.streams.audio[0]
            goal = start + self._zero
            if goal > 1 and stream.time_base is not None:
                try:
                    source.seek(int((goal - 1) / stream.time_base), stream=stream)
                except (av.FFmpegError, OSError):
                    return
            resampler = AudioResampler("fltp", self._layout, RATE)
            place: int | None = None
            for packet in source.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue
                for frame in frames:
                    if frame.pts is not None and frame.time_base is not None:
                        here = round((float(frame.pts * frame.time_base) - self._zero) * RATE)
                        # Rounding of time stamps must not open gaps of a few samples.
                        if place is None or abs(here - place) > RATE // 50:
                            place = here
                    frame.pts = None
                    for ready in resampler.resample(frame):
                        samples = ready.to_ndarray()
                        yield place or 0, samples
                        place = (place or 0) + samples.shape[1]


def sound_of(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file with sound."""
    if not Path(path).is_file():
        return False
    try:
        return FileFrames(path).has_audio
    except VideoError:
        return False
