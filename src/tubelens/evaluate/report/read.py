"""A run as the report needs it. The only file of the report that opens a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tubelens.evaluate.report.cautions import OWN
from tubelens.evaluate.report.panels import Facts, Panel, panels, positions, with_failed
from tubelens.explanation import Explanation
from tubelens.store.cells import Failure
from tubelens.store.reading import RunReader, reading

Curves = tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]
"""Positions of clip, model and method of every curve; places and values, `(n, S)`."""


@dataclass(frozen=True)
class Failed:
    """One thing that could not be done; empty strings: all of them."""

    clip: str
    model: str
    method: str
    metric: str
    kind: str
    reason: str
    attempts: int
    spectrum: str


@dataclass(frozen=True, eq=False)
class Results:
    """All that was found in a run.

    Attributes:
        path: folder of the run. `settings`: what its cells share.
        facts: clips, models, methods, metrics. `panels`: the values.
        cells: how many scores there are.
        predictions: columns as the store gives them, ids turned into positions.
        failures: what could not be done.
        seeds: of every method, by its name. `made`: how the run came about, as far as it was told.
    """

    path: Path
    settings: Mapping[str, Any]
    facts: Facts
    panels: Sequence[Panel]
    cells: int
    predictions: Mapping[str, np.ndarray]
    failures: Sequence[Failed]
    seeds: Mapping[str, Sequence[int]]
    made: Mapping[str, Any]
    store: RunReader

    def of_metric(self) -> dict[str, list[Panel]]:
        """Panels under the name of their metric."""
        found: dict[str, list[Panel]] = {}
        for panel in self.panels:
            found.setdefault(panel.metric.name, []).append(panel)
        return found

    def failed(self, panel: Panel) -> dict[str, int]:
        """How many cells of a panel failed, by method; what failed as a whole counts for every method."""
        counts: Counter[str] = Counter()
        for f in self.failures:
            here = f.spectrum == panel.spectrum and f.model in ("", panel.model)
            if here and f.metric in ("", panel.metric.name):
                counts.update([f.method] if f.method else panel.methods)
        return dict(counts)

    def curves(self, panel: Panel) -> tuple[Float[np.ndarray, "s"], dict[str, Float[np.ndarray, "n s"]]]:
        """Places, and the curves of every method on the clips of a panel, seeds averaged; both empty
        where the metric has none.
        """
        (clip, model, method), x, y = self._curves(panel.metric.name)
        if not len(y):
            return np.empty(0), {}
        names = [row.name for row in self.facts.models]
        inside = np.zeros(len(self.facts.clips), dtype=bool)
        inside[panel.clips] = True
        here = np.flatnonzero((model == names.index(panel.model)) & inside[clip])
        found = {}
        for i, row in enumerate(self.facts.methods):
            mine = here[method[here] == i]
            if len(mine):
                found[row.name] = _over_seeds(clip[mine], y[mine])
        return np.asarray(x[here[0]] if len(here) else np.empty(0)), found

    def anchor_curves(self, panel: Panel, method: str = "") -> dict[str, Float[np.ndarray, "n s"]]:
        """Curves of anchors on the clips of a panel, where cells keep them: `anchor_curves` in their detail,
        name -> values at the places of the cell's own curve. Empty where they do not.

        Args:
            panel: whose clips.
            method: whose time-mean; that of no method without.
        """
        model = next(row.id for row in self.facts.models if row.name == panel.model)
        own = next((row.id for row in self.facts.methods if row.name == method), 0)
        clips = {self.facts.clips[i].id for i in panel.clips}
        points = len(self.curves(panel)[0])
        found: dict[str, dict[int, np.ndarray]] = {}
        for (clip, of, name, whose), values in self._blind(panel.metric.name).items():
            if of == model and clip in clips and whose in (0, own) and len(values) == points:
                found.setdefault(name, {})[clip] = values
        return {name: np.array(list(rows.values()), dtype=np.float64) for name, rows in found.items()}

    def _blind(self, metric: str) -> dict[tuple[int, int, str, int], np.ndarray]:
        """(clip, model, anchor, method) -> a curve; method 0 where it is that of all methods."""
        if metric not in self._anchors:
            self._anchors.clear()
            kept = self._anchors[metric] = {}
            row = next(row for row in self.facts.metrics if row.name == metric)
            for (clip, model, method, *_), detail in self.store.details(row.id, "anchor_curves"):
                for name, values in detail["anchor_curves"].items():
                    key = (clip, model, name, method if name == OWN else 0)
                    kept.setdefault(key, np.asarray(values, dtype=np.float32))
        return self._anchors[metric]

    def right(self, panel: Panel) -> Float[np.ndarray, "n"]:
        """Whether the model is right on each clip of the panel, 1 or 0; NaN where nobody knows."""
        names = [row.name for row in self.facts.models]
        p = self.predictions
        known = (p["model"] == names.index(panel.model)) & (p["label"] >= 0)
        found = np.full(len(self.facts.clips), np.nan)
        found[p["clip"][known]] = (p["label"] == p["predicted"])[known]
        return np.asarray(found[panel.clips])

    def _curves(self, metric: str) -> Curves:
        if metric not in self._kept:
            self._kept.clear()  # those of one metric at a time
            row = next(row for row in self.facts.metrics if row.name == metric)
            ids: dict[str, np.ndarray] = dict.fromkeys(("clip", "model", "method"), np.empty(0, int))
            x = y = np.empty((0, 0))
            if row.facts.get("kind", "curve") == "curve":  # looking for them takes a while
                with suppress(ValueError):  # where there is not a single one
                    ids, x, y = self.store.curves(row.id)
            facts = self.facts
            at = (
                positions(ids["clip"], facts.clips),
                positions(ids["model"], facts.models),
                positions(ids["method"], facts.methods),
            )
            self._kept[metric] = at, x, y
        return self._kept[metric]

    def explanation(self, clip: int, model: str, method: str) -> Explanation | None:
        """The stored map of a clip (its position), the first of its seeds; None where there is none."""
        c = self.facts.clips[clip].id
        m = next(row.id for row in self.facts.models if row.name == model)
        k = next(row.id for row in self.facts.methods if row.name == method)
        return self.store.explanation(c, m, k, None)

    def __post_init__(self) -> None:
        self._kept: dict[str, Curves]
        self._anchors: dict[str, dict[tuple[int, int, str, int], np.ndarray]]
        object.__setattr__(self, "_kept", {})
        object.__setattr__(self, "_anchors", {})


@contextmanager
def read(run: str | Path) -> Iterator[Results]:
    """Open a run; its curves and maps can be read until the block ends.

    Raises:
        InputError: no run there, or a damaged one.
    """
    with reading(run) as store:
        facts = Facts(*(store.names(table) for table in ("clips", "models", "methods", "metrics")))
        cells = store.cells(seconds=True)
        failures = list(store.failures())
        found = with_failed(panels(facts, cells), facts, _positions(failures, facts))
        count = len(cells.pop("value"))
        seeds = {
            row.name: np.unique(cells["seed"][cells["method"] == row.id]).tolist() for row in facts.methods
        }
        cells.clear()  # the panels hold all of it that is needed
        predictions = store.predictions()
        predictions |= {
            "clip": positions(predictions["clip"], facts.clips),
            "model": positions(predictions["model"], facts.models),
        }
        yield Results(
            Path(run),
            store.meta["settings"],
            facts,
            found,
            count,
            predictions,
            _failures(failures, facts),
            seeds,
            store.made,
            store,
        )


Lost = Sequence[tuple[int, int, Failure, int]]


def _positions(failures: Lost, facts: Facts) -> Iterator[tuple[int, int, int, int]]:
    """Clip, model, method and metric of failures of a method; -1: all metrics."""
    clips, models, methods, metrics = (
        {row.id: i for i, row in enumerate(rows)}
        for rows in (facts.clips, facts.models, facts.methods, facts.metrics)
    )
    for clip, model, what, _ in failures:
        if what.method in methods and model in models and clip in clips:
            yield clips[clip], models[model], methods[what.method], metrics.get(what.metric, -1)


def _failures(failures: Lost, facts: Facts) -> list[Failed]:
    clips, models, methods, metrics = (
        {row.id: row for row in rows} for rows in (facts.clips, facts.models, facts.methods, facts.metrics)
    )
    found = []
    for clip, model, what, attempts in failures:
        row = clips.get(clip)
        found.append(
            Failed(
                row.name if row else str(clip),
                models[model].name if model in models else "",
                methods[what.method].name if what.method in methods else "",
                metrics[what.metric].name if what.metric in metrics else "",
                what.kind,
                what.reason,
                attempts,
                str(row.facts.get("spectrum") or "") if row else "",
            )
        )
    return found


def _over_seeds(clip: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One curve a clip."""
    clips, at, counts = np.unique(clip, return_inverse=True, return_counts=True)
    if len(clips) == len(clip):
        return np.asarray(y, dtype=np.float64)
    sums = np.zeros((len(clips), y.shape[1]))
    np.add.at(sums, at, y)
    return np.asarray(sums / counts[:, None])
