"""What two models say of the same clips: how often each is right, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tubelens.evaluate.report.read import Results
from tubelens.evaluate.report.tables import Column

WHERE = (Column("model", ("model",)), Column("tested on", ("spectrum",)))
RIGHT = (
    *WHERE,
    Column("clips", ("n",), "count"),
    Column("accuracy A", ("a",), "share"),
    Column("accuracy B", ("b",), "share"),
    Column("mended", ("mended",), "count"),
    Column("broken", ("broken",), "count"),
    Column("other class", ("moved",), "count"),
    Column("p (McNemar)", ("p",), "p"),
)
FLIPS = (
    *WHERE,
    *(Column(name, (name,)) for name in ("clip", "class", "A", "B", "verdict")),
    Column("p in A", ("prob_a",), "value"),
    Column("p in B", ("prob_b",), "value"),
)


def predictions(
    first: Results, second: Results, pairs: Sequence[tuple[str, str]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of accuracy, and of clips that are predicted otherwise."""
    right, flips = [], []
    for mine, other in pairs:
        a, b = _predicted(first, mine), _predicted(second, other)
        spectrum_of = {row.name: str(row.facts.get("spectrum") or "") for row in first.facts.clips}
        shared = [clip for clip in a if clip in b]
        for spectrum in dict.fromkeys(spectrum_of[clip] for clip in shared):
            clips = [clip for clip in shared if spectrum_of[clip] == spectrum]
            at = {"model": pair(mine, other), "spectrum": spectrum}
            known = [clip for clip in clips if a[clip].right is not None and b[clip].right is not None]
            mended = sum(bool(b[c].right) and not a[c].right for c in known)
            broken = sum(bool(a[c].right) and not b[c].right for c in known)
            moved = [clip for clip in clips if a[clip].name != b[clip].name]
            right.append(
                at
                | {"n": len(clips), "mended": mended, "broken": broken, "p": mcnemar(mended, broken)}
                | {"moved": len(moved)}
                | {"a": _share([a[c].right for c in known]), "b": _share([b[c].right for c in known])}
            )
            for clip in moved:
                verdict = {(False, True): "mended", (True, False): "broken"}.get(
                    (bool(a[clip].right), bool(b[clip].right)), ""
                )
                flips.append(
                    at
                    | {"clip": clip, "class": a[clip].label, "A": a[clip].name, "B": b[clip].name}
                    | {"verdict": verdict if clip in known else ""}
                    | {"prob_a": a[clip].prob, "prob_b": b[clip].prob}
                )
    return right, flips


@dataclass(frozen=True)
class _Predicted:
    """What a model says of a clip; `right` is None where the class is not known."""

    name: str
    label: str
    prob: float
    right: bool | None


def _predicted(results: Results, model: str) -> dict[str, _Predicted]:
    m = [row.name for row in results.facts.models].index(model)
    p = results.predictions
    mine = np.flatnonzero((p["model"] == m) & (p["label"] >= 0))
    labels = {int(p["label"][i]): results.facts.label(int(p["clip"][i])) for i in mine}
    at = {row.id: i for i, row in enumerate(results.facts.clips)}
    tops = {at[clip]: detail.get("top") for clip, detail in results.store.said(results.facts.models[m].id)}
    found = {}
    for i in np.flatnonzero(p["model"] == m):
        clip, said, label = int(p["clip"][i]), int(p["predicted"][i]), int(p["label"][i])
        top = tops.get(clip)
        name = str(top[0][0]) if top else labels.get(said) or f"class {said}"
        right = None if label < 0 else said == label
        found[results.facts.clips[clip].name] = _Predicted(
            name, results.facts.label(clip), float(p["prob"][i]), right
        )
    return found


def mcnemar(mended: int, broken: int) -> float:
    """Exact two-sided McNemar test: a binomial test of one half on what changed; NaN where nothing did."""
    n = mended + broken
    if not n:
        return math.nan
    steps = np.arange(min(mended, broken) + 1)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in steps]
    return min(1.0, 2 * float(np.exp(logs).sum()))


def pair(mine: str, other: str) -> str:
    """One name, or both."""
    return mine if mine == other else f"{mine} → {other}"


def _share(right: Sequence[bool | None]) -> float:
    return sum(map(bool, right)) / len(right) if right else math.nan
