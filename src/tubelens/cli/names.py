"""Names of files and of videos, as the verbs read and write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tubelens.cli.options import numbered
from tubelens.errors import OptionError
from tubelens.video import source_stem


def joined(names: Sequence[str], what: str) -> str:
    """`a-b`, or how many there are."""
    unique = list(dict.fromkeys(names))
    return "-".join(unique) if len(unique) <= 4 else f"{len(unique)}-{what}"


def is_film(name: str) -> bool:
    """Whether it is a file or a folder that could be a video."""
    path = Path(name)
    return path.is_dir() or path.suffix.lower() in (".mp4", ".mkv", ".avi", ".webm", ".gif", ".mov", ".mpg")


def views_of(text: str | None) -> dict[str, int]:
    """Clips and crops of `10x3`."""
    if text is None:
        return {}
    found = re.fullmatch(r"([1-9]\d*)\s*x\s*([1-9]\d*)", text)
    if found is None:
        raise OptionError(f"--views {text}: write clips and crops, as in 10x3")
    return {"clips": int(found[1]), "crops": int(found[2])}


def slug(label: str) -> str:
    """A label as part of a file name."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in label) or "target"


def stems(videos: tuple[str, ...]) -> list[str]:
    """One file name stem a video; equal ones are numbered, so that nothing is overwritten."""
    return numbered([source_stem(video) for video in videos])
