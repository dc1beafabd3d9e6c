"""How an explanation shows itself in a notebook: a small video inside the page."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from pathlib import Path

from tubelens.explanation import REPRS, Explanation
from tubelens.methods import brief
from tubelens.render.caption import caption_of
from tubelens.render.compose import Drawing
from tubelens.render.look import look
from tubelens.video import VideoSink

WIDTH = 320
MOST = 240
"""Frames of the embedded video: of a longer one every second, third, ... is shown."""


def html(explanation: Explanation) -> str:
    """A video of at most 320 pixels as a data URI, and one line of text; the text alone where that fails."""
    try:
        line = escape(caption_of(explanation).line)
        method = escape(brief(explanation.provenance.method))
    except Exception:
        return f"<pre>{escape(object.__repr__(explanation))}</pre>"
    words = f'<div style="font:13px sans-serif">{line} <span style="color:#777">{method}</span></div>'
    try:
        data, (h, w) = _video(explanation)
    except Exception as error:  # a page must show, whatever became of the video
        return f'{words}<div style="font:12px sans-serif;color:#777">not drawn: {escape(str(error))}</div>'
    uri = base64.b64encode(data).decode("ascii")
    return (
        f'<video width="{w}" height="{h}" controls loop muted autoplay playsinline'
        f' src="data:video/mp4;base64,{uri}"></video>{words}'
    )


def _video(explanation: Explanation) -> tuple[bytes, tuple[int, int]]:
    """An H.264 file in memory, its height and width."""
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "tube.mp4"
        with (
            Drawing(explanation, look("heat", caption=False), fit=WIDTH, most=MOST) as drawing,
            VideoSink(path, size=drawing.size, fps=drawing.fps) as sink,
        ):
            for seconds, frame in drawing:
                sink.write(frame, seconds)
        return path.read_bytes(), drawing.size


REPRS["text/html"] = html
