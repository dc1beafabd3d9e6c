"""The clips on which a method does best and worst, each as one picture with its heat."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tubelens.errors import TubelensError
from tubelens.evaluate.report.panels import Panel
from tubelens.evaluate.report.read import Results
from tubelens.evaluate.report.scores import scores
from tubelens.evaluate.report.tables import Column, Table
from tubelens.evaluate.report.videos import frames_of
from tubelens.explanation import Explanation
from tubelens.render.look import look
from tubelens.render.paper import Row, pictures_of
from tubelens.render.source import Moments, fitted
from tubelens.video import Frames

SIDE = 240
"""Pixels of the longer side of a picture."""
MOST = 6
"""Of so many places, pictures are shown."""


@dataclass(frozen=True)
class Extreme:
    """A clip at one end.

    Attributes:
        clip: its position. `name`: in the run. `label`: its class.
        method: the best of its panel, whose value this is.
        worst: at which end.
        picture: data URI of a JPEG; empty where there is none, and then `why` says why.
    """

    panel: Panel
    clip: int
    name: str
    label: str
    method: str
    value: float
    worst: bool
    picture: str = ""
    why: str = ""


def extremes(
    results: Results, panel: Panel, each: int, pictures: bool, data: str | Path | None = None
) -> list[Extreme]:
    """The best and the worst clips of the panel's best method, best first.

    Args:
        results: the run, open.
        panel: its values.
        each: how many at either end.
        pictures: whether to draw them.
        data: folder where videos are looked for that are not where they were.
    """
    if panel.metric.higher is None:
        return []
    best = [i for i, s in enumerate(scores(panel)[0]) if s.best]
    if not best or not each:
        return []
    values = panel.values[best[0]]
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known] * (-1 if panel.metric.higher else 1), kind="stable")]
    top = order[: min(each, (len(order) + 1) // 2)]
    bottom = order[max(len(top), len(order) - each) :]
    found = []
    for at, worst in [*((i, False) for i in top), *((i, True) for i in bottom)]:
        clip, method = int(panel.clips[at]), panel.methods[best[0]]
        picture, why = _picture(results, clip, panel.model, method, data) if pictures else ("", "")
        row = results.facts.clips[clip]
        label = results.facts.label(clip)
        found.append(Extreme(panel, clip, row.name, label, method, float(values[at]), worst, picture, why))
    return found


def extreme_table(found: Sequence[Extreme]) -> Table:
    """The same as a table."""
    columns = (
        *(
            Column(name, (name,))
            for name in ("metric", "network", "trained", "spectrum", "method", "end", "clip", "class")
        ),
        Column("value", ("value",), "value"),
    )
    rows = tuple(
        {
            "metric": e.panel.metric.name,
            "network": e.panel.network,
            "trained": e.panel.trained,
            "spectrum": e.panel.spectrum,
            "method": e.method,
            "end": "worst" if e.worst else "best",
            "clip": e.name,
            "class": e.label,
            "value": e.value,
        }
        for e in found
    )
    return Table("extremes", "Best and worst clips", columns, rows, "Of the method with the best mean.")


def _picture(
    results: Results, clip: int, model: str, method: str, data: str | Path | None
) -> tuple[str, str]:
    """Data URI, or why there is none."""
    try:
        explanation = results.explanation(clip, model, method)
        if explanation is None:
            return "", "no map was stored"
        row, out = results.facts.clips[clip], io.BytesIO()
        video = frames_of(row.name, explanation.source, row.facts.get("path"), data)
        Image.fromarray(middle(explanation, video)).save(out, "JPEG", quality=85)
    except TubelensError as error:  # gone, moved or changed: the page shows without it
        return "", f"not drawn: {error}"
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii"), ""


def middle(explanation: Explanation, video: Frames) -> np.ndarray:
    """The frame in the middle of the explained span with its heat, `(h, w, 3)` uint8; closes the video."""
    size = fitted(explanation.source.size, 1, SIDE)
    with video:
        shown = Moments.of(video, [explanation]).spread(1)
        drawn = pictures_of(
            video, shown, [explanation], [Row("heat", explanation, "heat")], look("heat"), size
        )
    return drawn[0][0]
