"""What a run tells when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubelens.evaluate.work import Kind
from tubelens.store import RunStore

WHOLE = "-"
"""In place of a model, method or metric: all of them."""


@dataclass(frozen=True)
class Fault:
    """What could not be done, by names; `-` where all models, methods or metrics are meant."""

    clip: str
    model: str
    method: str
    metric: str
    seed: int
    kind: Kind
    reason: str

    def __str__(self) -> str:
        what = [part for part in (self.model, self.method, self.metric) if part != WHOLE]
        said = "" if self.clip in self.reason else f"{self.clip}: "
        return f"{said}{', '.join(what)}{': ' if what else ''}{self.reason}"


@dataclass(frozen=True)
class Line:
    """Mean score of a method by a metric over `n` clips, seeds averaged; NaN where no clip has one."""

    model: str
    method: str
    metric: str
    n: int
    mean: float
    std: float


@dataclass(frozen=True)
class Evaluation:
    """A run over a data set, when it has ended.

    Attributes:
        path: of the run.
        clips: in the manifest.
        done: scores that are new. `skipped`: that were there already. `failed`: that could not be had.
        without_truth: that need to know where the evidence is, on clips where nobody knows.
        maps: new ones.
        passed_over: units left alone because they had failed before (`skip_failed`).
        missing: clips left out because their file is missing.
        failures: what failed in this call.
        seconds: that it took.
        notes: what the reader should know, one sentence each.
    """

    path: Path
    clips: int
    done: int
    skipped: int
    failed: int
    without_truth: int
    maps: int
    passed_over: int
    missing: int
    failures: tuple[Fault, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether anything is there to look at, or nothing had to be done."""
        return self.done + self.skipped + self.maps > 0 or not self.failures

    def reasons(self) -> list[tuple[str, int]]:
        """Failures summed up: what is said of them, and how often, the commonest first."""
        counts: dict[str, int] = {}
        for fault in self.failures:
            key = str(fault) if fault.kind in ("clip", "crash") else f"{fault.method}: {fault.reason}"
            key = fault.reason if fault.method == WHOLE and fault.kind not in ("clip", "crash") else key
            counts[key] = counts.get(key, 0) + 1
        return sorted(counts.items(), key=lambda pair: -pair[1])

    def table(self) -> list[Line]:
        """Means over all clips of the run, those scored before included; seeds are averaged first."""
        with RunStore.read(self.path) as store:
            columns = store.cells()
            models, methods, metrics = (store.names(t) for t in ("models", "methods", "metrics"))
        found = []
        for metric in metrics:
            for model in models:
                for method in methods:
                    here = (
                        (columns["metric"] == metric.id)
                        & (columns["model"] == model.id)
                        & (columns["method"] == method.id)
                    )
                    values = columns["value"][here]
                    if here.any():
                        values = _by_clip(columns["clip"][here], values)
                        n = len(values)
                        mean = float(values.mean()) if n else float("nan")
                        std = float(values.std(ddof=1)) if n > 1 else float("nan")
                        found.append(Line(model.name, method.name, metric.name, n, mean, std))
        return found

    def __str__(self) -> str:
        parts = [f"{self.done:,} scores", f"{self.skipped:,} there before"]
        if self.failed or self.failures:
            parts.append(f"{self.failed:,} failed")
        if self.without_truth:
            parts.append(f"{self.without_truth:,} need a truth that is not known")
        return f"{self.path}: {', '.join(parts)}"


def _by_clip(clips: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of what is a number of each clip; clips without are left out."""
    known = np.isfinite(values)
    _, at, counts = np.unique(clips[known], return_inverse=True, return_counts=True)
    return np.asarray(np.bincount(at, weights=values[known], minlength=len(counts)) / counts)
