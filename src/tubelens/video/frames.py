"""One way to frames, wherever they are: a file, a folder of images, measured values, an array, or several
spectra of one scene.
"""

from __future__ import annotations

import os

import numpy as np
from torch import Tensor

from tubelens.errors import OptionError, VideoError
from tubelens.video.arrays import ArrayFrames
from tubelens.video.file import FileFrames
from tubelens.video.images import ROUNDED, FolderFrames
from tubelens.video.measured import SCALES, MeasuredFrames, check_options, is_measured, measured_file
from tubelens.video.measured_images import holds_values, image_folder, one_band
from tubelens.video.paired import PairedFrames
from tubelens.video.streams import FASTEST, SLOWEST, Stream, streams

__all__ = ["ArrayFrames", "Frames", "exactly", "open_stream", "open_video", "sound_file"]

Frames = FileFrames | FolderFrames | ArrayFrames | MeasuredFrames | PairedFrames


def open_video(source: str | os.PathLike[str] | np.ndarray | Tensor, fps: float | None = None) -> Frames:
    """Frames of a source: a path, the text of one (see `tubelens.video.streams`), or an array.

    Args:
        source: a video file, a folder of images, a file of measured values, several spectra of one scene
            (`visible=a.mp4|lwir=b/`), or an array `(t, h, w, c)` (uint8, or float in [0, 1]).
        fps: frame rate of what has no times of its own, 25 by default. A video file has its own.

    Raises:
        VideoError: it cannot be read.
        OptionError: a rate that is not positive, or one for a file.
        InputError: an array of another rank, type or range.
    """
    if fps is not None and not SLOWEST <= fps <= FASTEST:
        raise OptionError(f"fps must be positive, {SLOWEST:g} to {FASTEST:g}, not {fps}")
    if not isinstance(source, str | os.PathLike):
        return ArrayFrames(source, fps or 25.0)
    parts = streams(source)
    videos = [open_stream(part, fps) for part in parts]
    if len(parts) == 1 and (isinstance(videos[0], MeasuredFrames) or not (parts[0].name or parts[0].bands)):
        return videos[0]
    return PairedFrames(os.fspath(source), parts, videos, fps)  # also one stream whose bands have names


def open_stream(stream: Stream, fps: float | None = None) -> FileFrames | FolderFrames | MeasuredFrames:
    """Frames of one stream.

    Args:
        stream: which.
        fps: where the stream itself does not say, of what has no times of its own.

    Raises:
        VideoError: it cannot be read.
        OptionError: an option that means nothing to what is there.
    """
    if is_measured(stream):
        return MeasuredFrames(stream, measured_file(stream), fps)
    pictures: FileFrames | FolderFrames
    if os.path.isdir(stream.path):
        if holds_values(stream.path):
            return MeasuredFrames(stream, image_folder(stream), fps)
        pictures = FolderFrames(stream.path, stream.fps or fps or 25.0)
    else:
        if stream.fps is not None or (fps is not None and not stream.name):
            raise OptionError(f"{stream.path}: fps is for folders and arrays; a file has its own times")
        pictures = FileFrames(stream.path)
    scaled = [option for option in SCALES if option in stream.given()]
    if pictures.notes and (scaled or stream.palette or stream.bands or not stream.visible):
        raise VideoError(f"{stream.path}: {ROUNDED}")  # measured values, which must not lose their low bits
    if stream.palette or (scaled and (len(stream.bands) == 1 or not stream.visible)):
        return MeasuredFrames(stream, one_band(stream, pictures), fps)
    if scaled:
        raise OptionError(
            f"{stream.path}: {scaled[0]}= scales one grey band: name it, as in ?bands=LWIR&{scaled[0]}=..."
        )
    check_options(stream, "pictures", ("bands", "fps", "palette", *SCALES))
    return pictures


def exactly(video: Frames) -> Frames:
    """The same, yielding the values of each band in place of a picture to look at, where it has such."""
    if isinstance(video, ArrayFrames | MeasuredFrames | PairedFrames):
        video.exact = True
    return video


def sound_file(video: Frames) -> str | None:
    """The file that has the sound of a video, None where there is none; of several streams, the first's."""
    if isinstance(video, PairedFrames):
        return sound_file(video.videos[0])
    if isinstance(video, MeasuredFrames):
        return video.audio_path
    return video.path if video.has_audio else None
