"""From the cells of a run to matrices: one panel a metric, model and spectrum of the clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tubelens.store.cells import ANCHORS, Row

Rows = Sequence[Row]
SAME = 1e-5
"""An anchor is shared by all methods where it differs among them by no more, relative to its size."""


@dataclass(frozen=True)
class Metric:
    """What is measured.

    Attributes:
        name: in the run.
        higher: which way is better; None where neither is.
        contest: whether a map should beat those that look at no model. What is said of a map alone
            (sparseness, cost) is no contest.
        score: what a curve is of, `probability` or `logit`.
    """

    name: str
    higher: bool | None
    contest: bool = True
    score: str = "probability"

    @property
    def short(self) -> str:
        """What stands before the options."""
        return self.name.partition("(")[0].strip().lower()

    @property
    def arrow(self) -> str:
        """`↑` where higher is better, `↓` where lower is, else nothing."""
        return {True: "↑", False: "↓", None: ""}[self.higher]

    @property
    def title(self) -> str:
        """`deletion ↓`."""
        return f"{self.name} {self.arrow}".strip()

    @property
    def direction(self) -> str:
        """In words."""
        words = {True: "higher is better", False: "lower is better", None: "neither way is better"}
        return words[self.higher]

    @classmethod
    def of(cls, row: Row) -> Metric:
        """What the run says of it."""
        higher, made = row.facts.get("higher_is_better"), str(row.facts.get("repr", row.name))
        alone = row.facts.get("kind") == "map" and row.facts.get("needs_truth") is False
        score = "logit" if "score='logit'" in made or "score=logit" in made else "probability"
        return cls(row.name, None if higher is None else bool(higher), not alone, score)


@dataclass(frozen=True, eq=False)
class Panel:
    """Values of one metric for one model on the clips of one spectrum, seeds averaged.

    Attributes:
        metric: what is measured.
        model: name of the model. `network`: that without the spectrum, where this still tells which it is.
        trained: spectrum that it was trained on, empty where unknown. `spectrum`: that of the clips.
        methods: names, in the order of the run.
        clips: positions of the clips in the run's list.
        values: NaN where a clip has none.
        normalised: of the means of each method, on the clips that have both anchors; NaN where there is none,
            or the truth does not beat a random order.
        forwards, seconds: means of each method.
        undefined: cells of each method whose value is no number.
        anchors: name -> values; one row where the anchor is the same for every method, else a row a method.
        apart: whether the truth beats a random order; None where nobody knows.
    """

    metric: Metric
    model: str
    network: str
    trained: str
    spectrum: str
    methods: tuple[str, ...]
    clips: Int[np.ndarray, "n"]
    values: Float[np.ndarray, "m n"]
    normalised: Float[np.ndarray, "m"]
    forwards: Float[np.ndarray, "m"]
    seconds: Float[np.ndarray, "m"]
    undefined: Int[np.ndarray, "m"]
    anchors: Mapping[str, Float[np.ndarray, "_ n"]] = field(default_factory=dict)
    apart: bool | None = None

    def anchor(self, name: str, method: int) -> Float[np.ndarray, "n"]:
        """An anchor's values for the method at a position."""
        rows = self.anchors[name]
        return np.asarray(rows[method] if len(rows) == len(self.methods) else rows[0])

    @property
    def hits(self) -> bool:
        """Whether values are hits and misses."""
        seen = set(np.unique(self.values[np.isfinite(self.values)]).tolist())
        return {0.0, 1.0} == seen or (
            self.metric.short == "pointing" and len(seen) > 0 and seen <= {0.0, 1.0}
        )

    @property
    def place(self) -> str:
        """Model and spectra in a few words."""
        return place(self.network, self.trained, self.spectrum)

    def better(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """By how much `a` is better than `b`; where neither way is better, by how much it is higher."""
        return np.asarray(b - a if self.metric.higher is False else a - b)


def place(network: str, trained: str, spectrum: str) -> str:
    """`r3d_18, IR on RGB`: the network, what it was trained on, what it was tested on."""
    if trained and spectrum:
        return f"{network}, {trained} on {spectrum}"
    return ", ".join(part for part in (network, trained or spectrum) if part)


@dataclass(frozen=True)
class Facts:
    """What a run holds besides its values, in the order of the run."""

    clips: Rows
    models: Rows
    methods: Rows
    metrics: Rows

    def spectrum(self, clip: int) -> str:
        """Spectrum of the clip at a position, empty where unknown."""
        return str(self.clips[clip].facts.get("spectrum") or "")

    def network(self, model: int) -> str:
        """What the model at a position is called in a table that also tells what it was trained on: its
        network; or its whole name where it was given one, or several are of that network and that spectrum.
        """
        row = self.models[model]
        network, weights = (str(row.facts.get(key) or "") for key in ("network", "weights"))
        usual = [network, *(f"{network} {w}" for w in (weights, Path(weights).name))]
        named = row.name not in usual if weights else not f"{row.name} ".startswith(f"{network} ")
        if not network or (named and ":" not in row.name):
            return row.name
        kinds = [(other.facts.get("network"), other.facts.get("trained")) for other in self.models]
        return network if kinds.count(kinds[model]) == 1 else row.name

    def trained(self, model: int) -> str:
        """Spectrum that it was trained on, empty where unknown."""
        return str(self.models[model].facts.get("trained") or "")

    def label(self, clip: int) -> str:
        """Its class, likewise."""
        label = self.clips[clip].facts.get("label")
        return "" if label is None else str(label)


def panels(facts: Facts, cells: Mapping[str, np.ndarray]) -> Iterator[Panel]:
    """Sort the cells into panels: by metric, model and spectrum, in the order of the run.

    Args:
        facts: what the numbers in the columns stand for.
        cells: columns as `RunReader.cells` gives them, `seconds` included.
    """
    spectra = list(dict.fromkeys(facts.spectrum(i) for i in range(len(facts.clips))))
    spectrum_of = np.array([spectra.index(facts.spectrum(i)) for i in range(len(facts.clips))], dtype=int)
    clip, model, method, metric = (
        positions(cells[name], rows)
        for name, rows in (
            ("clip", facts.clips),
            ("model", facts.models),
            ("method", facts.methods),
            ("metric", facts.metrics),
        )
    )
    for g, row in enumerate(facts.metrics):
        mine = np.flatnonzero(metric == g)
        if not len(mine):
            continue
        part = model[mine].astype(np.int64) * len(spectra) + spectrum_of[clip[mine]]
        for code in np.unique(part):
            here = np.flatnonzero(part == code)
            rows = mine[here]
            net = int(code) // len(spectra)
            clips, c = np.unique(clip[rows], return_inverse=True)
            methods, m = np.unique(method[rows], return_inverse=True)
            table = _Means(m, c, len(methods), len(clips))
            value = cells["value"][rows]
            anchors = {
                name: _shared(table(cells[name][rows]))
                for name in ANCHORS
                if np.isfinite(cells[name][rows]).any()
            }
            measured = Metric.of(row)
            blind = np.isfinite(value) & ~np.isfinite(cells["random"][rows])
            if row.facts.get("truth_directs") and blind.any():  # nobody knows what is better there
                measured = replace(measured, higher=None)
            scaled, apart = _scaled(
                measured.higher, table(value), anchors, table.of_methods(cells["normalised"][rows])
            )
            yield Panel(
                measured,
                facts.models[net].name,
                facts.network(net),
                facts.trained(net),
                spectra[int(code) % len(spectra)],
                tuple(facts.methods[i].name for i in methods),
                clips,
                table(value),
                scaled,
                table.of_methods(cells["forwards"][rows]),
                table.of_methods(cells["seconds"][rows]),
                undefined=np.bincount(m[~np.isfinite(value)], minlength=len(methods)),
                anchors=anchors,
                apart=apart,
            )


def with_failed(
    found: Iterable[Panel], facts: Facts, failed: Iterable[tuple[int, int, int, int]]
) -> list[Panel]:
    """The panels, with a line for methods that failed on every clip; a panel of its own where all did.

    Args:
        found: in the order of the run.
        facts: of the run.
        failed: positions of clip, model, method and metric; -1 as metric: all of them.
    """
    lost: dict[tuple[str, str, str], tuple[set[int], set[str]]] = {}
    for clip, model, method, metric in failed:
        for g in range(len(facts.metrics)) if metric < 0 else (metric,):
            key = (facts.metrics[g].name, facts.models[model].name, facts.spectrum(clip))
            clips, methods = lost.setdefault(key, (set(), set()))
            clips.add(clip)
            methods.add(facts.methods[method].name)
    order = {row.name: i for i, row in enumerate(facts.methods)}
    panels = []
    for panel in found:
        _, methods = lost.pop((panel.metric.name, panel.model, panel.spectrum), (set(), set()))
        names = tuple(sorted({*panel.methods, *methods}, key=order.__getitem__))
        panels.append(panel if len(names) == len(panel.methods) else _spread(panel, names))
    metrics, models = ({row.name: i for i, row in enumerate(r)} for r in (facts.metrics, facts.models))
    for (measured, net, spectrum), (clips, methods) in lost.items():
        names = tuple(sorted(methods, key=order.__getitem__))
        m, n = len(names), len(clips)
        gone = np.full(m, np.nan)
        where = (net, facts.network(models[net]), facts.trained(models[net]), spectrum)
        at = np.array(sorted(clips))
        made = Metric.of(facts.metrics[metrics[measured]])
        panels.append(
            Panel(made, *where, names, at, np.full((m, n), np.nan), gone, gone, gone, np.zeros(m, dtype=int))
        )
    return sorted(panels, key=lambda p: (metrics[p.metric.name], models[p.model]))


def _spread(panel: Panel, names: tuple[str, ...]) -> Panel:
    """With rows of NaN for the names that it lacks."""
    at = [names.index(name) for name in panel.methods]

    def wider(rows: np.ndarray, empty: float = np.nan) -> np.ndarray:
        out = np.full((len(names), *rows.shape[1:]), empty, dtype=rows.dtype)
        out[at] = rows
        return out

    return replace(
        panel,
        methods=names,
        values=wider(panel.values),
        normalised=wider(panel.normalised),
        forwards=wider(panel.forwards),
        seconds=wider(panel.seconds),
        undefined=wider(panel.undefined, 0),
        anchors={
            name: wider(rows) if len(rows) == len(panel.methods) > 1 else rows
            for name, rows in panel.anchors.items()
        },
    )


def _scaled(
    higher: bool | None, values: np.ndarray, anchors: Mapping[str, np.ndarray], given: np.ndarray
) -> tuple[np.ndarray, bool | None]:
    """`(mean value - mean random) / (mean oracle - mean random)` of every method over the clips that have all
    three, and whether the truth beats a random order.

    A mean of the ratios of single clips would be ruled by those where the two anchors nearly agree. NaN where
    the metric itself normalises nothing, and where the truth is not better by .001 and by 1 %.
    """
    found = np.full(len(values), np.nan)
    if higher is None or not {"random", "oracle"} <= set(anchors):
        return found, None
    random, oracle = (np.broadcast_to(anchors[name], values.shape) for name in ("random", "oracle"))
    both = np.isfinite(random) & np.isfinite(oracle)
    if not both.any():
        return found, None
    apart = _better(float(random[both].mean()), float(oracle[both].mean()), higher)
    for i, row in enumerate(values):
        use = both[i] & np.isfinite(row)
        if not use.any() or np.isnan(given[i]):
            continue
        low, high, mean = (float(v[use].mean()) for v in (random[i], oracle[i], row))
        if _better(low, high, higher):
            found[i] = (mean - low) / (high - low)
    return found, apart


def _better(random: float, oracle: float, higher: bool) -> bool:
    gap = (oracle - random) * (1 if higher else -1)
    return gap > max(1e-3, 0.01 * max(abs(random), abs(oracle)))


def positions(ids: np.ndarray, rows: Rows) -> np.ndarray:
    """Where in `rows` each id stands."""
    table = np.full(max([row.id for row in rows], default=0) + 1, -1, dtype=np.int32)
    for i, row in enumerate(rows):
        table[row.id] = i
    return np.asarray(table[ids])


class _Means:
    """Means of cells that fall together (seeds), leaving out what is no number."""

    def __init__(self, row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> None:
        self.row, self.shape = row, (rows, columns)
        self.at = row.astype(np.int64) * columns + column

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """`(rows, columns)`, NaN where there is nothing."""
        return _mean(self.at, values, self.shape[0] * self.shape[1]).reshape(self.shape)

    def of_methods(self, values: np.ndarray) -> np.ndarray:
        """`(rows,)`."""
        return _mean(self.row, values, self.shape[0])


def _mean(at: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    good = np.isfinite(values)
    counts = np.bincount(at[good], minlength=size)
    sums = np.bincount(at[good], weights=values[good], minlength=size)
    return np.asarray(np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0))


def _shared(values: np.ndarray) -> np.ndarray:
    """One row where all rows agree wherever they have a value."""
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(axis=0)
    high = np.where(known, values, -np.inf).max(axis=0)
    some = known.any(axis=0)
    size = float(np.abs(values[known]).max()) if known.any() else 0.0
    if (high[some] - low[some] > SAME * max(1.0, size)).any():
        return values
    return np.where(some, low, np.nan)[None]
