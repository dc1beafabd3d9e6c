"""What a panel says of each method: mean, interval, the paired test against the best, and the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tubelens.evaluate.report.panels import Panel
from tubelens.evaluate.report.statistics import Ranking, bootstrap, holm, ranking, wilcoxon

ALPHA = 0.05
NAN = float("nan")
WORDS = {
    "random": "random order",
    "centre": "centre prior",
    "difference": "frame difference",
    "time_mean": "time-mean",
    "oracle": "the truth",
}
"""How anchors are called in tables."""
ORACLE = "oracle"
"""The anchor that no method can be expected to beat."""


@dataclass(frozen=True)
class Score:
    """One line of the table: a method, or an anchor in its place.

    Attributes:
        method: its name; of an anchor made from a method's own map, `name of METHOD`.
        anchor: whether this is no method but what one has to beat.
        n: clips with a value. `undefined`: cells whose value is no number. `failed`: cells that failed.
        mean, std: over clips; std with n - 1. `low`, `high`: 95 % bootstrap interval of the mean.
        normalised: mean normalised score, NaN where the truth is not known.
        forwards, seconds: means.
        best: has the best mean of all methods.
        worse: by how much it is worse than the best, mean over the clips that both have.
        p: Wilcoxon's signed-rank test against the best. `holm`: corrected for all methods of the panel.
        loses: anchors whose mean is better on the clips that both have.
    """

    method: str
    anchor: bool
    n: int
    undefined: int
    failed: int
    mean: float
    std: float
    low: float
    high: float
    normalised: float = NAN
    forwards: float = NAN
    seconds: float = NAN
    best: bool = False
    worse: float = NAN
    p: float = NAN
    holm: float = NAN
    loses: tuple[str, ...] = ()

    @property
    def beaten(self) -> bool:
        """Whether the best is better than this beyond chance."""
        return self.holm < ALPHA


@dataclass(frozen=True)
class Loss:
    """A method that an anchor beats.

    Attributes:
        panel: where. `method`, `anchor`: which.
        mean, other: means of the method and of the anchor on the `n` clips that both have.
        share: of these clips, on how many the anchor is better.
        p: Wilcoxon's signed-rank test.
    """

    panel: Panel
    method: str
    anchor: str
    n: int
    mean: float
    other: float
    share: float
    p: float

    def __str__(self) -> str:
        m = self.panel.metric
        return (
            f"{self.method} loses to {self.anchor} at {m.title} ({self.panel.place}): "
            f"{self.mean:.3f} against {self.other:.3f}, worse on {self.share:.0%} of {self.n} clips"
            f" ({p_text(self.p)})"
        )


def p_text(p: float) -> str:
    """`p = .031`, `p < .001`."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def called(anchor: str) -> str:
    """The anchor in words."""
    return WORDS.get(anchor, anchor.replace("_", " "))


def scores(
    panel: Panel, failed: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[list[Score], list[Loss]]:
    """Methods, then anchors, each in the order of the run; and where a method loses to an anchor.

    Args:
        panel: the values.
        failed: cells that failed, by method.
        seed: of the bootstrap.
    """
    means = [_mean(row) for row in panel.values]
    best = _best(panel, means)
    lost = losses(panel)
    found: list[tuple[float, float]] = []
    for i, row in enumerate(panel.values):
        if best is None or i == best:
            found.append((NAN, NAN))
            continue
        both = np.isfinite(row) & np.isfinite(panel.values[best])
        worse = panel.better(panel.values[best][both], row[both])
        found.append((float(worse.mean()), wilcoxon(worse).p) if len(worse) else (NAN, NAN))
    corrected = holm([p for _, p in found])
    lines = [
        Score(
            name,
            False,
            _count(row),
            int(panel.undefined[i]),
            (failed or {}).get(name, 0),
            *summary(row, seed),
            float(panel.normalised[i]),
            float(panel.forwards[i]),
            float(panel.seconds[i]),
            i == best,
            *found[i],
            corrected[i],
            tuple(loss.anchor for loss in lost if loss.method == name),
        )
        for i, (name, row) in enumerate(zip(panel.methods, panel.values, strict=True))
    ]
    for anchor, rows in panel.anchors.items():
        own = [f" of {name}" for name in panel.methods] if len(rows) == len(panel.methods) > 1 else [""]
        for of, row in zip(own, rows, strict=False):
            if np.isfinite(row).any():
                lines.append(Score(called(anchor) + of, True, _count(row), 0, 0, *summary(row, seed)))
    return lines, lost


def losses(panel: Panel) -> list[Loss]:
    """Where an anchor has the better mean, on the clips that it and the method have."""
    found: list[Loss] = []
    if panel.metric.higher is None:
        return found
    for anchor, rows in panel.anchors.items():
        if anchor == ORACLE:
            continue
        for i, (name, row) in enumerate(zip(panel.methods, panel.values, strict=True)):
            other = rows[i] if len(rows) == len(panel.methods) else rows[0]
            both = np.isfinite(row) & np.isfinite(other)
            ahead = panel.better(row[both], other[both])
            if len(ahead) and ahead.mean() < 0:
                found.append(
                    Loss(
                        panel,
                        name,
                        called(anchor),
                        len(ahead),
                        float(row[both].mean()),
                        float(other[both].mean()),
                        float((ahead < 0).mean()),
                        wilcoxon(ahead).p,
                    )
                )
    return found


def summary(values: Float[np.ndarray, "n"], seed: int = 0) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1), and the ends of the interval; NaN where there are too few values."""
    known = values[np.isfinite(values)]
    low, high = bootstrap(known, seed=seed)
    std = float(known.std(ddof=1)) if len(known) > 1 else NAN
    return _mean(known), std, float(low), float(high)


def rankings(panels: Sequence[Panel]) -> list[tuple[tuple[str, ...], Ranking]]:
    """Average ranks of the methods over all panels of one metric: at most one entry.

    A clip is one witness, however many models looked at it: its values are averaged over the models for which
    every method has one. Methods without a value are left out.
    """
    methods = list(
        dict.fromkeys(
            name
            for panel in panels
            for name, row in zip(panel.methods, panel.values, strict=True)
            if np.isfinite(row).any()
        )
    )
    n = max((int(panel.clips.max()) + 1 for panel in panels if len(panel.clips)), default=0)
    sums, counts = np.zeros((n, len(methods))), np.zeros(n)
    for panel in panels:
        if not set(methods) <= set(panel.methods):
            continue
        rows = panel.values[[panel.methods.index(name) for name in methods]]
        whole = np.isfinite(rows).all(axis=0)
        sums[panel.clips[whole]] += rows[:, whole].T
        counts[panel.clips[whole]] += 1
    seen = counts > 0
    higher = panels[0].metric.higher if panels else None
    found = None if higher is None else ranking(sums[seen] / counts[seen, None], higher)
    return [] if found is None else [(tuple(methods), found)]


def _best(panel: Panel, means: Sequence[float]) -> int | None:
    known = [i for i, mean in enumerate(means) if np.isfinite(mean)]
    if panel.metric.higher is None:
        return None
    sign = 1 if panel.metric.higher else -1
    return max(known, key=lambda i: sign * means[i]) if known else None


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else NAN


def _count(values: np.ndarray) -> int:
    return int(np.isfinite(values).sum())
