"""Writing drawings: MP4, GIF, WebM, a contact sheet as PNG, a folder of frames."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tubelens.errors import OptionError
from tubelens.explanation import WRITERS, Explanation
from tubelens.render.compose import Drawing
from tubelens.render.look import look
from tubelens.render.sheet import figure, pixels
from tubelens.render.source import Many, On, as_list, enlargement
from tubelens.render.spectra import EACH
from tubelens.video import FolderSink, GifSink, VideoSink, write_png

Progress = Callable[[int, int], None]
"""Told after every frame: frames done, frames in all."""
GIF_SIDE = 480
"""Pixels of a GIF's longer side unless asked otherwise: larger ones are slow to load and to make."""


def draw(
    explanations: Many,
    path: str | os.PathLike[str],
    *,
    style: str | Sequence[str] | None = None,
    beside: bool = False,
    caption: bool = True,
    strip: bool = True,
    colormap: str | None = None,
    alpha: float | None = None,
    on: On = None,
    fps: float | None = None,
    fit: int | None = None,
    columns: int = 8,
    palette: str | None = None,
    spectra: str = EACH,
    progress: Progress | None = None,
) -> Path:
    """Draw one explanation, or several of one video side by side; the suffix decides what is written.

    - `.mp4`, `.webm`: frame size, times and sound of the source (H.264 needs even sides: an odd one grows by
      a pixel); small frames are enlarged, and several spectra stand side by side, as `frames` tells; there
      words stand below the picture. With
      `style="focus"` the heat is the alpha channel of a `.webm`; elsewhere focus is on black.
    - `.gif`: at most 480 pixels a side, but of small frames.
    - `.png`: a contact sheet, see `figure`; `beside`, `caption`, `strip`, `fps` and `fit` do not apply.
    - no suffix: a folder of PNG frames (focus: with alpha) and `info.json`.

    Args:
        explanations: one, or several of the same video.
        path: where to write; missing folders are made.
        style: `heat`, `paper` (the published overlay), `focus` or `contour`; several are columns of a video
            and rows of a sheet. Default: heat for a video, all but paper for a sheet.
        beside: the original at the left (a sheet always shows it).
        caption: target, probability, predicted class and time, at the foot.
        strip: mean heat over time with a play-head, at the foot.
        colormap: name of a matplotlib colour map.
        alpha: opacity of the hottest colour, in [0, 1].
        on: draw on this path, `(t, h, w, c)` array or clip, in place of the source.
        fps: play at this many frames a second, without sound; by default as the source.
        fit: shrink to at most so many pixels on the long side; a GIF to 480 by default.
        columns: frames that a contact sheet shows.
        palette: of pictures of one band: `white-hot`, `black-hot`, `inferno` or `iron`. Unless `colormap`
            says otherwise, heat is drawn in colours that stay legible on it.
        spectra: of a source of several spectra: `each` side by side, the `first`, the `overlay` of the others
            on the visible one, or the name of one.
        progress: called with (frames done, frames in all).

    Returns:
        The path.

    Raises:
        OptionError: a suffix that nothing draws, unknown style, colour map, palette or spectrum, `fps` or
            `fit` out of range, explanations of different videos.
        VideoError: the source is gone or has changed.
        OutputError: no room, no permission; nothing half-written is left.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(s for s in SUFFIXES if s)
        raise OptionError(f"{path}: cannot draw {suffix!r}: use one of {known}, or no suffix for a folder")
    if fps is not None and not 0 < fps < float("inf"):
        raise OptionError(f"fps must be positive, not {fps}")
    if suffix == ".png":
        sheet = figure(
            explanations,
            style=style,
            frames=columns,
            colormap=colormap,
            alpha=alpha,
            on=on,
            palette=palette,
            spectra=spectra,
        )
        return write_png(path, pixels(sheet))
    styles = style or "heat"
    clear = "focus" in ((styles,) if isinstance(styles, str) else styles) and suffix in (".webm", "")
    how = look(
        styles,
        beside=beside,
        caption=caption,
        strip=strip,
        colormap=colormap,
        alpha=alpha,
        rgba=clear,
        palette=palette,
        spectra=spectra,
    )
    if suffix == ".gif" and fit is None and enlargement(as_list(explanations)[0].source.size) == 1:
        fit = GIF_SIDE
    with Drawing(explanations, how, on=on, fit=fit) as drawing:
        rate = fps or drawing.fps
        with _sink(path, suffix, drawing, rate, clear, sound=fps is None) as sink:
            for done, (seconds, frame) in enumerate(drawing):
                sink.write(frame, seconds if fps is None else done / fps)
                if progress is not None:
                    progress(done + 1, len(drawing))
    return path


def write(
    explanation: Explanation,
    path: str | os.PathLike[str],
    *,
    with_: Sequence[Explanation] = (),
    **options: Any,
) -> Path:
    """What `Explanation.save` calls: `draw` of the explanation and of those `with_` it."""
    return draw([explanation, *with_], path, **options)


SUFFIXES = (".mp4", ".gif", ".webm", ".png", "")
WRITERS.update(dict.fromkeys(SUFFIXES, write))


def _sink(path: Path, suffix: str, drawing: Drawing, rate: float, clear: bool, sound: bool) -> Any:
    """Where the frames go."""
    if suffix == "":
        return FolderSink(path, info(drawing), count=len(drawing))
    if suffix == ".gif":
        return GifSink(path, fps=rate)
    return VideoSink(
        path, size=drawing.size, fps=rate, alpha=clear, audio_from=drawing.audio if sound else None
    )


def info(drawing: Drawing) -> dict[str, Any]:
    """What a folder of frames says about itself, ready for JSON.

    With several explanations, `explanations` holds one entry each; the first is also at the top level.
    """
    entries = [_entry(e) for e in as_list(drawing.explanations)]
    shared = {
        "video": drawing.explanations[0].source.path,
        "style": list(drawing.look.styles),
        "frames": len(drawing),
        "fps": drawing.fps,
        "times": list(drawing.times),
    }
    return {**entries[0], **shared, **({"explanations": entries} if len(entries) > 1 else {})}


def _entry(explanation: Explanation) -> dict[str, Any]:
    p, source = explanation.provenance, explanation.source
    low, high = explanation.limits
    return {
        "label": p.label,
        "p": p.prob,
        "predicted": [{"label": label, "p": prob} for label, prob in p.predicted],
        "method": p.method,
        "layer": p.layer,
        "target": repr(explanation.target),
        "limits": [low, high],
        "crop": dataclasses.asdict(source.box),
        "size": list(source.size),
        "span": list(source.span),
        "clip_times": list(source.times),
        "provenance": dataclasses.asdict(p),
        "versions": dict(p.versions),
    }
