"""Opening a video file, and saying in one line what is wrong with one that cannot be read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from tubelens.errors import VideoError
from tubelens.video.extent import is_short, lacks_moov

if av.logging.get_level() is not None:  # libav would print its own warnings on the user's terminal
    av.logging.set_level(None)

SEEKABLE = {"mov", "mp4", "matroska", "webm"}
"""Formats whose seeks land on a keyframe that is where it says; others are decoded from their start."""

LISTS = {"concat", "hls", "dash", "sdp", "rtsp", "imf"}
"""Formats that only name other files."""


def regular_file(path: str | os.PathLike[str]) -> Path:
    """The path, if it names a file that can be read.

    Raises:
        VideoError: missing, not a file, empty, or no permission.
    """
    file = Path(path)
    try:
        kind = file.stat()
    except FileNotFoundError:
        raise VideoError(f"{file}: no such file or folder: check the path") from None
    except OSError as error:
        raise VideoError(f"{file}: cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(kind.st_mode):
        raise VideoError(
            f"{file}: not a file but a pipe, a socket or a device: save the video to a file first"
        )
    if kind.st_size == 0:
        raise VideoError(f"{file}: is empty (0 bytes): copy or download it again")
    if not os.access(file, os.R_OK):
        raise VideoError(f"{file}: no permission to read it: change its mode or owner")
    return file


def open_container(file: Path) -> InputContainer:
    """The opened file; local files only, so that a playlist cannot make libav fetch something else.

    Raises:
        VideoError: not a container, or one that is cut off before its index.
    """
    try:
        container = av.open(
            f"file:{file}", "r", container_options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, PermissionError):
            raise VideoError(f"{file}: no permission to read it: change its mode or owner") from error
        if lacks_moov(file):
            raise VideoError(
                f"{file}: cut off: its index (moov) is missing, so nothing can be read; copy it again"
            ) from error
        raise VideoError(
            f"{file}: not a video that can be read ({reason(error)}): check the file, or re-encode it as MP4"
        ) from error
    if formats(container) & LISTS:
        container.close()
        raise VideoError(f"{file}: a list of other files, not a video: give the video itself")
    return container


def video_stream(container: InputContainer, file: Path) -> VideoStream:
    """The stream to show: not a cover picture.

    Raises:
        VideoError: there is none, or nothing can decode it.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        what = "sound but no pictures" if container.streams.audio else "no pictures"
        raise VideoError(f"{file}: has {what}: give a file with a video stream")
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{file}: nothing here decodes its video: re-encode it as H.264 in MP4")
    return stream


def reason(error: BaseException) -> str:
    """The short cause that an error of libav or of the system carries."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def formats(container: InputContainer) -> set[str]:
    """The names of the container's format, such as `{"mov", "mp4", ...}`."""
    return set(container.format.name.split(","))


def cut_off(container: InputContainer, stream: VideoStream, file: Path, got: int, end: float) -> None:
    """Compare what a file promises with what was read up to its end.

    Args:
        container: the file, read to its end.
        stream: the video of it.
        file: named in the error.
        got: whole frames that were read.
        end: seconds, on the container's clock, at which the last whole packet of any stream ended.

    Raises:
        VideoError: the file is shorter than it says, and frames are missing.
    """
    if not is_short(file):
        return
    size = file.stat().st_size
    entries = (
        [(entry.pos, entry.size) for entry in stream.index_entries] if "mov" in formats(container) else []
    )
    if entries and stream.frames:
        got = sum(at + length <= size for at, length in entries)
        total: int | None = len(entries)
    elif stream.frames:
        total = stream.frames
    elif container.duration is not None and container.duration > 0 and "mov" not in formats(container):
        rate, last = float(stream.average_rate or 25), container.duration / av.time_base
        total = max(got + 1, round(last * rate)) if end < last - 1.5 / rate else got
    else:
        total = None
    if total is None or got < total:
        of = "the first" if total is None else f"{got} of"
        count = got if total is None else total
        raise VideoError(f"{file}: cut off: {of} {count} frames can be read; repair or re-encode it")
