"""What a panel says of each method: mean, interval, the paired test against the best, and the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tubelens.evaluate.report.cautions import ALPHA, Loss, called, complete, largest, losses
from tubelens.evaluate.report.panels import Panel
from tubelens.evaluate.report.statistics import (
    Ranking,
    bootstrap,
    holm,
    ranking,
    row_ranks,
    wilcoxon,
    wilson,
)

NAN = float("nan")


@dataclass(frozen=True)
class Score:
    """One line of the table: a method, or an anchor in its place.

    Attributes:
        method: its name; of an anchor made from a method's own map, `name of METHOD`.
        anchor: whether this is no method but what one has to beat.
        n: clips with a value. `undefined`: cells whose value is no number. `failed`: cells that failed.
        mean, std: over clips; std with n - 1. `low`, `high`: 95 % interval of the mean, by bootstrap; of hits
            and misses Wilson's.
        normalised: of the mean, NaN where the truth is not known.
        forwards, seconds: means.
        best: has the best mean of all methods.
        worse: by how much it is worse than the best, mean over the clips that both have.
        p: Wilcoxon's signed-rank test against the best. `holm`: corrected for all methods of the panel.
        effect: rank-biserial correlation of that test, above 0 where the best is better on most clips.
        loses: anchors that are better beyond chance.
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
    effect: float = NAN
    loses: tuple[str, ...] = ()

    @property
    def beaten(self) -> bool:
        """Whether the best is better than this beyond chance, by rank as by mean."""
        return self.holm < ALPHA and self.effect > 0


def scores(
    panel: Panel, failed: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[list[Score], list[Loss]]:
    """Methods, then anchors, each in the order of the run; and where a method does not beat an anchor.

    Args:
        panel: the values.
        failed: cells that failed, by method.
        seed: of the bootstrap.
    """
    best = _best(panel)
    lost = losses(panel)
    found: list[tuple[float, float, float]] = []
    for i, row in enumerate(panel.values):
        if best is None or i == best:
            found.append((NAN, NAN, NAN))
            continue
        both = np.isfinite(row) & np.isfinite(panel.values[best])
        first, second = panel.values[best][both], row[both]
        worse = panel.better(first, second)
        test = wilcoxon(worse, largest(first, second))
        found.append((float(worse.mean()), test.p, test.effect) if len(worse) else (NAN, NAN, NAN))
    corrected = holm([p for _, p, _ in found])
    hits = panel.hits
    lines = [
        Score(
            name,
            False,
            _count(row),
            int(panel.undefined[i]),
            (failed or {}).get(name, 0),
            *summary(row, seed, hits),
            float(panel.normalised[i]),
            float(panel.forwards[i]),
            float(panel.seconds[i]),
            i == best,
            *found[i][:2],
            corrected[i],
            found[i][2],
            tuple(loss.anchor for loss in lost if loss.method == name and loss.shown),
        )
        for i, (name, row) in enumerate(zip(panel.methods, panel.values, strict=True))
    ]
    for anchor, rows in panel.anchors.items():
        own = [f" of {name}" for name in panel.methods] if len(rows) == len(panel.methods) > 1 else [""]
        for of, row in zip(own, rows, strict=False):
            if np.isfinite(row).any():
                lines.append(Score(called(anchor) + of, True, _count(row), 0, 0, *summary(row, seed)))
    return lines, lost


def summary(
    values: Float[np.ndarray, "n"], seed: int = 0, hits: bool = False
) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1), and the ends of the interval; NaN where there are too few values.

    Args:
        values: NaN among them are left out.
        seed: of the bootstrap.
        hits: values are 0 and 1, and the interval is Wilson's, unless these are means of several seeds.
    """
    known = values[np.isfinite(values)]
    if hits and np.isin(known, (0, 1)).all():
        low, high = wilson(float(known.sum()), len(known))
    else:
        low, high = bootstrap(known, seed=seed)
    std = float(known.std(ddof=1)) if len(known) > 1 else NAN
    return _mean(known), std, float(low), float(high)


@dataclass(frozen=True)
class Ranked:
    """Average ranks over models.

    Attributes:
        methods: names. `found`: their ranks and the tests.
        models: whose ranks these are. `dropped`: that lack a method.
    """

    methods: tuple[str, ...]
    found: Ranking
    models: tuple[str, ...]
    dropped: tuple[str, ...]


def rankings(panels: Sequence[Panel]) -> Ranked | None:
    """Average ranks of the methods over all panels of one metric; None where nothing can be ranked.

    A clip is one witness, however many models looked at it: methods are ranked for each clip and model, and
    the ranks of a clip are averaged over the models that have a value of every method there. (Values would
    not do: the model with the widest range would decide.) Methods without a value are left out.
    """
    methods = list(
        dict.fromkeys(
            name
            for panel in panels
            for name, row in zip(panel.methods, panel.values, strict=True)
            if np.isfinite(row).any()
        )
    )
    higher = panels[0].metric.higher if panels else None
    if higher is None or not methods:
        return None
    n = max((int(panel.clips.max()) + 1 for panel in panels if len(panel.clips)), default=0)
    sums, counts = np.zeros((n, len(methods))), np.zeros(n)
    used: dict[str, bool] = {}
    for panel in panels:
        used.setdefault(panel.model, False)
        if not set(methods) <= set(panel.methods):
            continue
        rows = panel.values[[panel.methods.index(name) for name in methods]]
        whole = np.isfinite(rows).all(axis=0)
        sums[panel.clips[whole]] += row_ranks(rows[:, whole].T, higher)[0]
        counts[panel.clips[whole]] += 1
        used[panel.model] |= bool(whole.any())
    seen = counts > 0
    found = ranking(sums[seen] / counts[seen, None], False)
    models, dropped = (tuple(name for name, is_in in used.items() if is_in == want) for want in (True, False))
    return None if found is None else Ranked(tuple(methods), found, models, dropped)


def _best(panel: Panel) -> int | None:
    """The method with the best mean: of those that have nearly all clips, or where none has, on the clips
    that all have.
    """
    values = panel.values
    some = np.isfinite(values).any(axis=1)
    if panel.metric.higher is None or not some.any():
        return None
    enough = complete(panel)
    if not enough.any():
        enough = some
        common = np.isfinite(values[some]).all(axis=0)
        if not common.any():
            return None
        values = values[:, common]
    sign = 1 if panel.metric.higher else -1
    return max(np.flatnonzero(enough).tolist(), key=lambda i: sign * _mean(values[i]))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else NAN


def _count(values: np.ndarray) -> int:
    return int(np.isfinite(values).sum())
