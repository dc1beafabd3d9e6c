"""Finding the frames of a clip again: where its file was, in a folder that is given, or painted anew."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from tubelens.clip import Source
from tubelens.errors import OptionError, TubelensError, VideoError
from tubelens.planted import generate
from tubelens.render.source import open_source
from tubelens.video import Frames, exists, streams
from tubelens.video.streams import beneath

PLANTED = re.compile(r"planted:(?P<task>[a-z_]+)(?P<options>(?:,[a-z]+=\d+)*)#(?P<seed>\d+)")
"""The key of a clip with planted evidence: from it, the same pixels are painted again."""


def frames_of(name: str, source: Source, stored: str | None = None, data: str | Path | None = None) -> Frames:
    """The frames that a stored map is drawn on.

    Args:
        name: the clip's key in the run.
        source: of the map.
        stored: the clip's path as the run keeps it, where it does.
        data: folder where videos are looked for by name.

    Raises:
        VideoError: there are none, or not those that were explained.
    """
    if planted := PLANTED.fullmatch(name):
        pairs = (text.split("=") for text in planted["options"].split(",")[1:])
        options: dict[str, Any] = {key: int(value) for key, value in pairs}
        clip = generate(int(planted["seed"]), cast(Any, planted["task"]), **options)
        return open_source(source, clip.pixels.permute(1, 2, 3, 0).numpy())
    if source.path is None:
        raise VideoError("the clip came as an array, which a run does not keep")
    refused: TubelensError | None = None
    for path in _places(name, source.path, stored, data):
        try:
            if exists(path):
                return open_source(replace(source, path=path))
        except TubelensError as error:
            refused = error
    if refused is not None:
        raise refused
    where = f"nor in {data}" if data is not None else "give the folder of the videos with --data"
    raise VideoError(
        f"the video is not where it was ({source.path}){', ' if data is not None else ': '}{where}"
    )


def _places(name: str, path: str, stored: str | None, data: str | Path | None) -> Iterator[str]:
    yield path
    if stored is not None:
        yield stored
    if data is not None:
        for tail in dict.fromkeys((path, name)):
            if not os.path.isabs(tail):
                with suppress(OptionError):  # a name that looks like options, and is none
                    yield beneath(tail, str(data))
        one, *others = streams(path)
        for found in _named(str(data)).get(Path(one.path).name, ()) if not others else ():
            yield str(replace(one, path=str(found)))


@lru_cache(maxsize=2)
def _named(folder: str) -> dict[str, list[Path]]:
    """Files and folders of a folder by their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).rglob("*")):
        found.setdefault(path.name, []).append(path)
    return found
