"""Video files for tests, made with PyAV. Every frame carries its number in its pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

BITS = 12
REAL = Path(__file__).parents[2] / "shared" / "realdata"


def coded(number: int, size: tuple[int, int] = (48, 64), low: int = 30, high: int = 220) -> np.ndarray:
    """An RGB frame whose 3x4 blocks spell `number` in binary, block 0 (top left) the lowest bit."""
    bits = np.array([number >> b & 1 for b in range(BITS)]).reshape(3, 4)
    rows = np.arange(size[0]) * 3 // size[0]
    cols = np.arange(size[1]) * 4 // size[1]
    grey = np.where(bits[rows][:, cols], high, low).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def read_code(frame: np.ndarray) -> int:
    """The number that a frame `(h, w, c)` carries; uint8 or float."""
    h, w = frame.shape[:2]
    grey = frame[..., :3].astype(float).mean(axis=2)
    threshold = 0.49 if grey.max() <= 1 else 125
    number = 0
    for b in range(BITS):
        r, c = divmod(b, 4)
        block = grey[r * h // 3 : (r + 1) * h // 3, c * w // 4 : (c + 1) * w // 4]
        inner = block[
            block.shape[0] // 4 : -(block.shape[0] // 4), block.shape[1] // 4 : -(block.shape[1] // 4)
        ]
        number |= int(inner.mean() > threshold) << b
    return number


def clip_codes(pixels: Any) -> list[int]:
    """The numbers of the frames of clip pixels `(c, t, h, w)`."""
    return [read_code(frame) for frame in pixels.permute(1, 2, 3, 0).numpy()]


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    fps: int | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    seconds: Sequence[float] | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    rotation: int = 0,
    hflip: bool = False,
    colorspace: int | None = None,
    full_range: bool = False,
    source_format: str = "rgb24",
    tone: float | None = None,
    tone_from: float = 0.0,
    silent_until: float = 0.0,
) -> Path:
    """Write frames; `seconds` gives each its time; `tone` adds a sine of that frequency in Hz as sound,
    heard from `tone_from` on; before `silent_until` (seconds) there is no sound at all."""
    defaults = {"libx264": {"crf": "12", "preset": "ultrafast"}, "libx265": {"x265-params": "log-level=none"}}
    with av.open(str(path), "w", container_options=muxing or {}) as out:
        stream: Any = None
        sound: Any = (
            out.add_stream("pcm_s16le" if path.suffix in (".mkv", ".avi") else "aac", rate=48000)
            if tone
            else None
        )
        count = 0
        for number, frame in enumerate(frames):
            if stream is None:
                settings = defaults.get(codec, {}) | (options or {})
                stream = out.add_stream(codec, rate=fps, options=settings)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pix_fmt
                stream.gop_size = gop
                stream.thread_count = 1
                if seconds is not None:
                    stream.codec_context.time_base = Fraction(1, 12000)
                if colorspace is not None:
                    for name in ("colorspace", "color_primaries", "color_trc"):
                        setattr(stream.codec_context, name, colorspace)
                    stream.codec_context.color_range = 1
                if full_range:
                    stream.codec_context.color_range = 2
                if rotation or hflip:
                    stream.set_display_rotation(rotation, hflip=hflip)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=source_format)
            if picture.format.name != pix_fmt:
                picture = picture.reformat(
                    format=pix_fmt,
                    dst_colorspace=1 if colorspace == 1 else 5,
                    dst_color_range=2 if full_range else 1,
                )
            if seconds is not None:
                picture.pts, picture.time_base = round(seconds[number] * 12000), Fraction(1, 12000)
            else:
                picture.pts, picture.time_base = number, 1 / Fraction(fps)
            out.mux(stream.encode(picture))
            count += 1
        if sound is not None:
            write_tone(out, sound, tone, tone_from, count / float(fps), silent_until)
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


def write_tone(out: Any, sound: Any, hertz: float, begin: float, end: float, absent: float = 0.0) -> None:
    """No sound until `absent`, silence until `begin`, then a sine until `end` (seconds)."""
    moments = np.arange(round(end * 48000)) / 48000
    wave = (np.sin(2 * np.pi * hertz * moments) * 12000 * (moments >= begin)).astype(np.int16)
    for at in range(round(absent * 48000), len(wave), 1024):
        block = np.repeat(wave[None, at : at + 1024], 2, axis=1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
        for ready in av.AudioResampler(sound.format.name, "stereo", 48000).resample(frame):
            out.mux(sound.encode(ready))


def coded_video(path: Path, count: int = 40, size: tuple[int, int] = (48, 64), **options: Any) -> Path:
    """A video of `count` coded frames."""
    return write_video(path, (coded(i, size) for i in range(count)), **options)


def flat(colour: tuple[int, ...], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A frame of one colour."""
    return np.full((*size, len(colour)), colour, np.uint8)


def real(*parts: str) -> Path:
    """A real file; the test is skipped where the collection is absent."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real videos are not here: {'/'.join(parts)}")
    return path
