"""Writing frames: MP4, WebM, GIF, a folder of PNGs, one PNG. Nothing half-written is left behind.

A sink is a context manager; `write` takes one frame at a time, so that memory does not grow with the video.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from tubelens.errors import OptionError, OutputError
from tubelens.files import replacing
from tubelens.video.container import reason
from tubelens.video.sound import Sound, sound_of

Pixels = UInt8[np.ndarray, "h w c"]
TICKS = 90_000
"""Time stamps a second: a multiple of the usual frame rates."""
LEAN = "rc-lookahead=2:sync-lookahead=0:bframes=1:ref=1:sliced-threads=1"
"""x264 keeps few whole frames: at 1080p its defaults hold 200 MB more, for files as large and no faster."""
X264 = {"crf": "18", "preset": "fast", "x264-params": LEAN}
CODECS = {
    ".mp4": ("libx264", "aac", X264, {"movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", "libopus", {"crf": "24", "b": "0", "cpu-used": "5", "row-mt": "1"}, {}),
}

S = TypeVar("S", bound="_Sink")


class _Sink:
    """What sinks share: the temporary path, renamed at a clean end."""

    folder = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.count = 0
        self._place: AbstractContextManager[Path] | None = None

    def __enter__(self: S) -> S:
        self._place = replacing(self.path, folder=self.folder)
        temporary = self._place.__enter__()
        try:
            with libav_errors(self.path):
                self._open(temporary)
        except BaseException as error:
            self._place.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._place is not None
        if error is None:
            try:
                if not self.count:
                    raise OutputError(f"{self.path}: there was no frame to write; nothing was left behind")
                with libav_errors(self.path):
                    self._close()
            except BaseException as failure:
                self._abandon()
                self._place.__exit__(type(failure), failure, failure.__traceback__)
                raise
            self._place.__exit__(None, None, None)
        else:
            self._abandon()
            self._place.__exit__(kind, error, trace)

    def write(self, frame: Pixels, seconds: float) -> None:
        """Add a frame that is shown at `seconds`.

        Raises:
            OutputError: no room, no permission.
            OptionError: a frame of another shape than announced.
        """
        with libav_errors(self.path):
            self._write(frame, seconds)
        self.count += 1

    def _open(self, temporary: Path) -> None:
        raise NotImplementedError

    def _write(self, frame: Pixels, seconds: float) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Let go of open files after an error."""


class VideoSink(_Sink):
    """H.264 in `.mp4` or VP9 in `.webm`, with the real time stamps and the sound of the source's span.

    Args:
        path: its suffix decides.
        size: height and width of the frames. An odd side grows by one repeated row or column in MP4.
        fps: average rate; the last frame is shown for 1 / fps.
        alpha: frames are RGBA (WebM only).
        audio_from: a source file and the span (seconds after its first frame) whose sound is added; frames
            must then be written with their seconds in that source. No sound there: none is added.

    Raises:
        OptionError: another suffix, or alpha in MP4.
        OutputError: no room, no permission, no encoder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        fps: float,
        alpha: bool = False,
        audio_from: tuple[str | os.PathLike[str], float, float] | None = None,
    ) -> None:
        super().__init__(path)
        suffix = self.path.suffix.lower()
        if suffix not in CODECS:
            raise OptionError(f"{self.path}: cannot write {suffix!r}: use {' or '.join(CODECS)}")
        if alpha and suffix != ".webm":
            raise OptionError(f"{self.path}: only .webm keeps transparency: use that suffix")
        if not 0 < fps < float("inf"):
            raise OptionError(f"fps must be positive, not {fps}")
        self.size, self.fps, self.alpha, self.audio_from = size, float(fps), alpha, audio_from
        self._codecs = CODECS[suffix]
        self._even = suffix == ".mp4"
        self._first = 0.0
        self._last = -1
        self._sound: Sound | None = None
        self._reformat = VideoReformatter()
        self._container: Any = None

    def _open(self, temporary: Path) -> None:
        video, audio, options, container_options = self._codecs
        if video not in av.codecs_available:
            raise OutputError(
                f"{self.path}: this build of PyAV lacks the encoder {video}: install another build"
            )
        self._container = av.open(f"file:{temporary}", "w", container_options=dict(container_options))
        rate = Fraction(self.fps).limit_denominator(100_000)
        self._stream: Any = self._container.add_stream(video, rate=rate, options=dict(options))
        h, w = self.size
        self._stream.height, self._stream.width = (h + h % 2, w + w % 2) if self._even else (h, w)
        self._stream.pix_fmt = "yuva420p" if self.alpha else "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = Fraction(1, TICKS)
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = int(ColorRange.MPEG)
        context.thread_count = min(4, os.cpu_count() or 1)
        if self.audio_from is not None and sound_of(self.audio_from[0]):
            source, start, end = self.audio_from
            self._sound = Sound(self._container, audio, source, start, end + 1 / self.fps)

    def _write(self, frame: Pixels, seconds: float) -> None:
        channels = 4 if self.alpha else 3
        if frame.shape != (*self.size, channels) or frame.dtype != np.uint8:
            raise OptionError(
                f"{self.path}: a frame must be uint8 of shape {(*self.size, channels)},"
                f" got {frame.dtype} of {frame.shape}"
            )
        if self._last < 0:
            self._first = seconds
        if self._even:
            frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgba" if self.alpha else "rgb24")
        picture = self._reformat.reformat(
            picture,
            format=self._stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        self._last = max(round((seconds - self._first) * TICKS), self._last + 1)
        picture.pts, picture.time_base = self._last, Fraction(1, TICKS)
        picture.duration = round(TICKS / self.fps)
        self._container.mux(self._stream.encode(picture))
        if self._sound is not None:
            self._sound.pump(self._first, seconds)

    def _close(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish(self._first)
        self._container.close()

    def _abandon(self) -> None:
        if self._container is not None:
            with suppress(av.FFmpegError, OSError):  # the first error is the one to report
                self._container.close()


class GifSink(_Sink):
    """A GIF that loops: a palette for each frame, real delays in hundredths of a second.

    Frames less than two hundredths after the one before are left out, because viewers slow such delays down.

    Args:
        path: the file.
        fps: the last frame is shown for 1 / fps.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        super().__init__(path)
        self.fps = float(fps)
        self._frames: list[Image.Image] = []
        self._at: list[int] = []

    def _open(self, temporary: Path) -> None:
        self._temporary = temporary

    def _write(self, frame: Pixels, seconds: float) -> None:
        at = round(seconds * 100)
        if self._at and at - self._at[-1] < 2:
            return
        # One byte a pixel is all that is kept.
        self._frames.append(Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT))
        self._at.append(at)

    def _close(self) -> None:
        delays = [b - a for a, b in zip(self._at, self._at[1:], strict=False)] + [
            max(2, round(100 / self.fps))
        ]
        self._frames[0].save(
            self._temporary,
            format="GIF",
            save_all=True,
            append_images=self._frames[1:],
            duration=[10 * delay for delay in delays],
            loop=0,
        )


class FolderSink(_Sink):
    """A folder of PNGs, `000.png` on, and `info.json`.

    Args:
        path: the folder; one that exists is replaced.
        info: what `info.json` holds; may still be filled until the sink closes. None: no such file.
        count: how many frames will come, for the number of digits (at least 3).
    """

    folder = True

    def __init__(
        self, path: str | os.PathLike[str], info: Mapping[str, Any] | None = None, count: int = 0
    ) -> None:
        super().__init__(path)
        self.info = info
        self._digits = max(3, len(str(max(0, count - 1))))

    def _open(self, temporary: Path) -> None:
        self._temporary = temporary

    def _write(self, frame: Pixels, seconds: float) -> None:
        Image.fromarray(frame).save(self._temporary / f"{self.count:0{self._digits}d}.png")

    def _close(self) -> None:
        if self.info is not None:
            text = json.dumps(self.info, indent=2, ensure_ascii=False) + "\n"
            (self._temporary / "info.json").write_text(text, encoding="utf-8")


def write_png(path: str | os.PathLike[str], frame: UInt8[np.ndarray, "..."]) -> Path:
    """Write one frame, `(h, w)`, `(h, w, 3)` or `(h, w, 4)`, as PNG.

    Raises:
        OutputError: no room, no permission; nothing is left behind.
    """
    with replacing(path) as temporary:
        Image.fromarray(frame).save(temporary, format="PNG")
    return Path(path)


@contextmanager
def libav_errors(path: Path) -> Iterator[None]:
    """Turn errors of libav (disk full, ...) and of the system into OutputError."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise OutputError(f"{path}: cannot be written: {reason(error)}; nothing was left behind") from error
