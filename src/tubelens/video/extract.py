"""The frames of a video as PNG files."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from tubelens.errors import OptionError
from tubelens.files import replacing
from tubelens.video.frames import open_video


def extract_frames(
    path: str | os.PathLike[str], out_dir: str | os.PathLike[str], every: int = 1, max: int | None = None
) -> list[Path]:
    """Write every `every`-th frame as a PNG named by its number in the source.

    Args:
        path: a video file or a folder of frames.
        out_dir: the folder to write; one that exists is replaced, if it holds frames only.
        every: 1 for all frames.
        max: at most so many, None for no limit.

    Returns:
        The files, in order.

    Raises:
        VideoError: the source cannot be read.
        OutputError: no room, no permission; nothing is left behind.
        OptionError: `every` or `max` below 1.
    """
    if every < 1 or (max is not None and max < 1):
        raise OptionError(f"every and max must be at least 1, got {every} and {max}")
    names = []
    with open_video(path) as video:
        count = len(video.times())
        wanted = range(0, count, every)[:max]
        digits = len(str(count - 1))
        with replacing(out_dir, folder=True) as temporary:
            for number, _, frame in video.pick(wanted):
                names.append(f"{number:0{digits}d}.png")
                Image.fromarray(frame).save(temporary / names[-1])
    return [Path(out_dir) / name for name in names]
