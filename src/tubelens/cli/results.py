"""What `tubelens explain` tells: results, and how far the maps of several networks and targets agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

from tubelens.agreement import agreement
from tubelens.cli.show import print_table
from tubelens.explanation import Explanation
from tubelens.render.arrange import correlation
from tubelens.video import source_name

MANY = 8
"""Of so many targets, the first, the maps are compared."""


@dataclass(eq=False)
class Shown:
    """An explanation, and where it stands among those of a video.

    Attributes:
        network: what the network is called.
        method: likewise.
        column: number of the target as asked for.
    """

    network: str
    method: str
    column: int
    explanation: Explanation


def compare(every: Sequence[Shown]) -> dict[Shown, list[tuple[Shown, float | None]]]:
    """For each map those of the same target by other networks, and of other targets by the same network.

    Maps by different methods are not compared; nor are those of targets after the eighth.

    Returns:
        Pairs of a map and its rank correlation, None where there is none.
    """
    found: dict[Shown, list[tuple[Shown, float | None]]] = {shown: [] for shown in every}
    for a, b in combinations([s for s in every if s.column < MANY], 2):
        if a.method == b.method and (a.network == b.network) != (a.column == b.column):
            r = agreement(a.explanation, b.explanation)
            value = r if isfinite(r) else None
            found[a].append((b, value))
            found[b].append((a, value))
    return found


def agreement_rows(video: str, compared: dict[Shown, list[tuple[Shown, float | None]]]) -> list[list[str]]:
    """Lines of the table of agreement: networks for each target, then targets for each network."""
    number = {shown: i for i, shown in enumerate(compared)}
    networks, targets = [], []
    for a, others in compared.items():
        mine = a.explanation.provenance.label
        for b, value in others:
            if number[b] < number[a]:
                continue
            other = b.explanation.provenance.label
            said = "–" if value is None else correlation(value)
            if a.network == b.network:
                targets.append([source_name(video), a.method, f"{mine}, {other}", a.network, said])
            else:
                of = mine if mine == other else f"{mine} | {other}"
                networks.append([source_name(video), a.method, f"{a.network}, {b.network}", of, said])
    return networks + targets


def result(
    shown: Shown, video: str, paths: list[str], others: list[tuple[Shown, float | None]]
) -> dict[str, Any]:
    """What is told of one explanation, ready for JSON."""
    e = shown.explanation
    p = e.provenance
    return {
        "video": video,
        "model": shown.network,
        "weights": p.weights,
        "method": shown.method,
        "target": p.label,
        "score": p.score,
        "prob": p.prob,
        "predicted": [{"label": label, "prob": prob} for label, prob in p.predicted],
        "layer": p.layer,
        "grid": list(e.grid.shape),
        "padded": e.source.padded,
        "facts": p.facts,
        "forwards": p.forwards,
        "backwards": p.backwards,
        "precision": p.precision,
        "seed": p.seed,
        "notes": list(p.notes),
        "seconds": p.seconds,
        "agreement": [
            {"model": other.network, "target": other.explanation.provenance.label, "rank_correlation": r}
            for other, r in others
        ],
        "out": paths,
    }


def report(
    title: str, several: bool, results: Sequence[dict[str, Any]], compared: Sequence[Sequence[str]]
) -> None:
    """The tables: what was found and written, and how the maps agree.

    Args:
        title: of the first table.
        several: networks, so that each line names its own.
        results: as in JSON.
        compared: lines of the second table, which is left out where there are none.
    """
    rows = [
        [
            source_name(r["video"]),
            *([r["model"]] if several else []),
            r["method"],
            r["target"],
            f"{r['prob']:.3f}",
            f"{r['predicted'][0]['label']} ({r['predicted'][0]['prob']:.3f})",
            f"{r['forwards']:g} F" + (f" + {r['backwards']:g} B" if r["backwards"] else ""),
            "\n".join(r["out"]),
        ]
        for r in results
    ]
    columns = ["video", *(["network"] if several else []), "method", "target", "p", "predicted", "cost"]
    print_table(title, [*columns, "written"], rows)
    if compared:
        title = "How far the maps agree: Spearman's rank correlation, where both looked"
        print_table(title, ["video", "method", "maps", "of", "rank correlation"], compared)
