"""From a run to the table, the comparison of focus, and what may be said of either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from plan import BOTH, Plan
from train import Trained, known, predicted

from tubelens.evaluate.report.presets import ICPR
from tubelens.evaluate.report.read import read
from tubelens.evaluate.report.statistics import bootstrap, wilson

AREAS = {"insertion": True, "deletion": False}
"""Metrics of the table, and whether higher is better."""
RANDOM = "random order"
FEWEST = 10
"""Clips below which a bootstrap interval is too narrow to decide anything."""
FOCUS = ("energy", "sparseness", "ap", "pointing")
Values = Mapping[str, float]
Key = tuple[str, str, str, str, str]
"""Network, training, spectrum of the clips, method, metric."""


def values(run: Path) -> dict[Key, dict[str, float]]:
    """Every score of a run by what it is of, then by clip."""
    found: dict[Key, dict[str, float]] = {}
    with read(run) as results:
        for panel in results.panels:
            clips = [results.facts.clips[i].name for i in panel.clips]
            for method, row in zip(panel.methods, panel.values, strict=True):
                key = (panel.network, panel.trained, panel.spectrum, method, panel.metric.short)
                found[key] = {clip: float(v) for clip, v in zip(clips, row, strict=True) if np.isfinite(v)}
            for anchor in ("random",) if panel.metric.short in AREAS and "random" in panel.anchors else ():
                key = (panel.network, panel.trained, panel.spectrum, RANDOM, panel.metric.short)
                found[key] = dict(zip(clips, map(float, panel.anchor(anchor, 0)), strict=True))
    return found


def costs(run: Path) -> Iterator[str]:
    """Seconds that a map took on the machine that it was made on, mean over clips and networks."""
    found: dict[str, list[float]] = {}
    with read(run) as results:
        for panel in results.panels:
            if panel.metric.short == "insertion":
                for method, seconds in zip(panel.methods, panel.seconds, strict=True):
                    found.setdefault(short(method), []).append(float(seconds))
    yield "| method | seconds a map |"
    yield "|---|---|"
    for method, rows in found.items():
        yield f"| {method} | {np.mean(rows):.3f} |"


def short(method: str) -> str:
    """What the paper calls it, or the name without its options."""
    name = method.partition("(")[0].strip().lower()
    return ICPR.get(name, name)


# ── accuracy ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How often a network is right on the test clips of a spectrum.

    Attributes:
        guess, truth: classes clip by clip. `confusion`: rows are the truth.
    """

    trained: Trained
    spectrum: str
    guess: np.ndarray
    truth: np.ndarray
    classes: int

    @property
    def share(self) -> float:
        """Of the clips that it gets right."""
        return float((self.guess == self.truth).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson(int((self.guess == self.truth).sum()), len(self.truth))

    @property
    def confusion(self) -> np.ndarray:
        """Counts, row: class, column: guess."""
        flat = np.bincount(self.truth * self.classes + self.guess, minlength=self.classes**2)
        return flat.reshape(self.classes, self.classes)

    @property
    def recalls(self) -> np.ndarray:
        """Class by class; NaN for one without clips."""
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / self.confusion.sum(axis=1)

    @property
    def balanced(self) -> float:
        """Mean of the recalls."""
        return float(np.nanmean(self.recalls))

    @property
    def majority(self) -> float:
        """What saying the commonest class of the test clips would get."""
        return float(np.bincount(self.truth).max() / len(self.truth))


def accuracies(plan: Plan, networks: Sequence[Trained]) -> list[Accuracy]:
    """Of every network on all test clips of the spectra it was trained on."""
    return [
        Accuracy(
            *(trained, spectrum, predicted(trained.net, items), known(items, plan.labels)), len(plan.labels)
        )
        for trained in networks
        for spectrum in plan.trainings[trained.training]
        for items in (plan.tests(spectrum),)
    ]


def accuracy_lines(found: Sequence[Accuracy]) -> Iterator[str]:
    """A table of accuracies."""
    yield "| network | trained on | tested on | clips | accuracy | 95 % | balanced | commonest class |"
    yield "|---|---|---|---|---|---|---|---|"
    for a in found:
        low, high = a.interval
        yield (
            f"| {a.trained.network} | {a.trained.training} | {a.spectrum} | {len(a.truth)} | {a.share:.3f} |"
            f" {low:.3f} to {high:.3f} | {a.balanced:.3f} | {a.majority:.3f} |"
        )


def confusion_lines(found: Sequence[Accuracy], labels: Sequence[str]) -> Iterator[str]:
    """Who is taken for whom, and the recall of each class."""
    for a in found:
        yield f"{a.trained.network}, trained on {a.trained.training}, on {a.spectrum} (rows: what it is):"
        yield ""
        yield "| | " + " | ".join(labels) + " | recall |"
        yield "|---" * (len(labels) + 2) + "|"
        for label, row, recall in zip(labels, a.confusion, a.recalls, strict=True):
            yield f"| {label} | " + " | ".join(str(n) for n in row) + f" | {recall:.2f} |"
        yield ""


# ── the table of the paper ───────────────────────────────────────────────────────────────────────────────


def cell(scores: Sequence[float]) -> str:
    """Mean and its 95 % interval."""
    if not scores:
        return "–"
    low, high = bootstrap(np.array(scores))
    return f"{np.mean(scores):.3f} [{low:.3f}, {high:.3f}]"


def area_lines(plan: Plan, found: Mapping[Key, Values], area: str) -> Iterator[str]:
    """Methods x training spectra x networks; a network of both spectra is tested on the clips of both."""
    networks = list(dict.fromkeys(key[0] for key in found))
    methods = list(dict.fromkeys(key[3] for key in found if key[4] == area))
    columns = [(n, t) for n in networks for t in plan.trainings]
    arrow = "higher is better" if AREAS[area] else "lower is better"
    yield f"**{area}** ({arrow}), mean over clips and its 95 % interval:"
    yield ""
    yield "| | " + " | ".join(f"{n}, {t}" for n, t in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for method in methods:
        rows = []
        for network, training in columns:
            scores = [
                value
                for spectrum in plan.trainings[training]
                for value in found.get((network, training, spectrum, method, area), {}).values()
            ]
            rows.append(cell(scores))
        yield f"| {short(method)} | " + " | ".join(rows) + " |"
    yield ""


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Difference:
    """A mean difference over the same clips, and its 95 % bootstrap interval over clips.

    Attributes:
        what: the fields that it is of. `verdict`: `more`, `less` or `undecided`, by the interval alone.
    """

    what: tuple[str, ...]
    clips: int
    first: float
    second: float
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Undecided where the interval holds 0, or there are too few clips for one."""
        if self.clips < FEWEST or self.low <= 0 <= self.high:
            return "undecided"
        return "more" if self.mean > 0 else "less"


def difference(
    what: tuple[str, ...], first: Values, second: Values, only: set[str] | None = None
) -> Difference:
    """First minus second on the clips that have both (and are in `only`)."""
    clips = [c for c in first if c in second and (only is None or c in only)]
    a, b = (np.array([of[c] for c in clips], dtype=float) for of in (first, second))
    low, high = bootstrap(a - b) if clips else (np.nan, np.nan)
    means = [float(v.mean()) if clips else float("nan") for v in (a, b, a - b)]
    return Difference(what, len(clips), *means, float(low), float(high))


def focus(found: Mapping[Key, Values], right: Mapping[tuple[str, str, str], set[str]]) -> list[Difference]:
    """Joint minus single training, on the same test clips: network, method, spectrum, metric, clips.

    Args:
        found: scores.
        right: (network, training, spectrum) -> the clips that it gets right. Differences are given over all
            clips, and over those that both networks get right.
    """
    differences = []
    for (network, training, spectrum, method, metric), joint in found.items():
        single = found.get((network, spectrum, spectrum, method, metric))
        if training != BOTH or single is None or method == RANDOM:
            continue
        both = right[network, BOTH, spectrum] & right[network, spectrum, spectrum]
        for clips, only in (("all", None), ("both right", both)):
            what = (network, spectrum, short(method), metric, clips)
            differences.append(difference(what, joint, single, only))
    return differences


def contests(found: Mapping[Key, Values]) -> list[Difference]:
    """Grad-CAM minus each other method, network by training and metric; in deletion less is better."""
    differences = []
    for (network, training, spectrum, method, metric), other in found.items():
        here = [k for k in found if k[:3] == (network, training, spectrum) and k[4] == metric]
        cam = next((k for k in here if short(k[3]) == "Grad-CAM"), None)
        if cam is None or short(method) == "Grad-CAM" or metric not in (*AREAS, "energy", "ap"):
            continue
        what = (network, training, spectrum, short(method), metric)
        differences.append(difference(what, found[cam], other))
    return differences
