"""What a reader must be told of a panel: who does not beat an anchor, which means do not compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from tubelens.evaluate.report.panels import Panel
from tubelens.evaluate.report.statistics import holm, wilcoxon

ALPHA = 0.05
ORACLE, OWN = "oracle", "time_mean"
"""The anchor that no method can be expected to beat, and that which is made from the method's own map."""
WORDS = {
    "random": "random order",
    "centre": "centre prior",
    "difference": "frame difference",
    OWN: "time-mean",
    ORACLE: "the truth",
}
"""How anchors are called in tables."""
ENOUGH = 0.95
"""A method with a smaller share of the clips is not called the best."""
LEAST = 6
"""Of fewer clips, the signed-rank test cannot reach .05."""
FEW = 10
"""Of fewer clips, a bootstrap interval is too narrow."""


def called(anchor: str) -> str:
    """The anchor in words."""
    return WORDS.get(anchor, anchor.replace("_", " "))


def p_text(p: float) -> str:
    """`p = .031`, `p < .001`."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


@dataclass(frozen=True)
class Loss:
    """A method that does not beat an anchor.

    Attributes:
        panel: where. `method`, `anchor`: which. `own`: whether the anchor is the map's own mean over time.
        mean, other: means of the method and of the anchor on the `n` clips that both have.
        share: of these clips, on how many the anchor is better.
        p: Wilcoxon's signed-rank test. `holm`: corrected for all anchors of the method.
        shown: the anchor is better beyond chance, by mean and by rank; else neither is.
    """

    panel: Panel
    method: str
    anchor: str
    n: int
    mean: float
    other: float
    share: float
    p: float
    holm: float
    shown: bool
    own: bool = False

    def __str__(self) -> str:
        m = self.panel.metric
        which = f"its own {self.anchor}" if self.own else self.anchor
        verb = f"loses to {which}" if self.shown else f"is not shown to beat {which}"
        numbers = f"{self.mean:.3f} against {self.other:.3f}, worse on {self.share:.0%} of {self.n} clips"
        meaning = ": when it looked is wrong rather than right" if self.own and self.shown else ""
        where = f"{m.title} ({self.panel.place})"
        return f"{self.method} {verb} at {where}: {numbers} ({p_text(self.holm)}){meaning}"


def losses(panel: Panel) -> list[Loss]:
    """Where a method does not beat an anchor, on the clips that both have: those shown to lose, and those not
    shown to win. None of metrics that a map need not be good at (`Metric.contest`).
    """
    found: list[Loss] = []
    if panel.metric.higher is None or not panel.metric.contest:
        return found
    names = [name for name in panel.anchors if name != ORACLE]
    for i, (method, row) in enumerate(zip(panel.methods, panel.values, strict=True)):
        others = [panel.anchor(name, i) for name in names]
        both = [np.isfinite(row) & np.isfinite(other) for other in others]
        ahead = [panel.better(row[b], o[b]) for o, b in zip(others, both, strict=True)]
        tests = [wilcoxon(a, largest(row[b], o[b])) for a, o, b in zip(ahead, others, both, strict=True)]
        corrected = holm([t.p if len(a) else np.nan for t, a in zip(tests, ahead, strict=True)])
        for name, other, b, a, test, p in zip(names, others, both, ahead, tests, corrected, strict=True):
            if not len(a) or (p < ALPHA and test.effect > 0 and a.mean() > 0):
                continue
            found.append(
                Loss(
                    *(panel, method, called(name), len(a), float(row[b].mean()), float(other[b].mean())),
                    *(float((a < 0).mean()), test.p, p),
                    shown=bool(p < ALPHA and test.effect < 0 and a.mean() < 0),
                    own=name == OWN,
                )
            )
    return found


def told(lost: list[Loss]) -> list[str]:
    """Sentences: one for every loss that is shown, one a method for all anchors it is not shown to beat; none
    of the latter where there are too few clips to show anything.
    """
    said = [str(loss) for loss in lost if loss.shown]
    unshown: dict[tuple[Panel, str], list[Loss]] = {}
    for loss in lost:
        if not loss.shown and loss.n >= LEAST:
            unshown.setdefault((loss.panel, loss.method), []).append(loss)
    for (panel, method), some in unshown.items():
        if len(some) == 1:
            said.append(str(some[0]))
            continue
        names = ", ".join(f"its own {x.anchor}" if x.own else x.anchor for x in some)
        n = max(x.n for x in some)
        said.append(
            f"{method} is not shown to beat {names} at {panel.metric.title} ({panel.place}, {n} clips)"
        )
    return said


def cautions(panel: Panel) -> list[str]:
    """Where the numbers of a panel do not say what they seem to."""
    said = []
    where = f"{panel.metric.title} ({panel.place})"
    if panel.apart is False:
        said.append(
            f"{where}: the truth does not beat a random order here: this metric does not tell maps apart"
        )
    total = int(known(panel).sum())
    if 0 < total < LEAST and len(panel.methods) + len(panel.anchors) > 1 and panel.metric.higher is not None:
        said.append(f"{where}: {total} clip{'s'[: total > 1]} are too few for a test to show anything")
    counts = np.isfinite(panel.values).sum(axis=1)
    if len(set(counts.tolist())) > 1:
        fewer = [f"{name} {n}" for name, n in zip(panel.methods, counts, strict=True) if n < total]
        rest = f" and {len(fewer) - 4} more" if len(fewer) > 4 else ""
        left = "; with less than 95 % of them a method is not called the best" if unequal(panel) else ""
        said.append(f"{where}: means are not over the same {total} clips: {', '.join(fewer[:4])}{rest}{left}")
    return said


def unequal(panel: Panel) -> bool:
    """Whether some methods have enough clips to be the best, and others have not."""
    enough = complete(panel)
    return bool(enough.any() and not enough.all())


def known(panel: Panel) -> Bool[np.ndarray, "n"]:
    """Clips of which any method has a value."""
    return np.asarray(np.isfinite(panel.values).any(axis=0))


def complete(panel: Panel) -> Bool[np.ndarray, "m"]:
    """Methods that have enough of these clips."""
    counts = np.isfinite(panel.values).sum(axis=1)
    return np.asarray((counts > 0) & (counts >= ENOUGH * known(panel).sum()))


def largest(*values: Float[np.ndarray, "_"]) -> float:
    """The largest size of any value."""
    return max((float(np.abs(v).max()) for v in values if len(v)), default=0.0)
