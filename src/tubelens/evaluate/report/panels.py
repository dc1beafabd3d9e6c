"""From the cells of a run to matrices: one panel a metric, model and spectrum of the clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from tubelens.store.cells import ANCHORS, Row

Rows = Sequence[Row]
SAME = 1e-6
"""An anchor is shared by all methods where it differs among them by no more, relative to its size."""


@dataclass(frozen=True)
class Metric:
    """What is measured: its name, and which way is better; None where neither is."""

    name: str
    higher: bool | None

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
        higher = row.facts.get("higher_is_better")
        return cls(row.name, None if higher is None else bool(higher))


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
        normalised: mean normalised score of each method; NaN where there is none.
        forwards, seconds: means of each method.
        undefined: cells of each method whose value is no number.
        anchors: name -> values; one row where the anchor is the same for every method, else a row a method.
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
        network, or its whole name where several are of that network and that spectrum.
        """
        kinds = [(row.facts.get("network") or row.name, row.facts.get("trained")) for row in self.models]
        return str(kinds[model][0]) if kinds.count(kinds[model]) == 1 else self.models[model].name

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
            yield Panel(
                Metric.of(row),
                facts.models[net].name,
                facts.network(net),
                facts.trained(net),
                spectra[int(code) % len(spectra)],
                tuple(facts.methods[i].name for i in methods),
                clips,
                table(value),
                table.of_methods(cells["normalised"][rows]),
                table.of_methods(cells["forwards"][rows]),
                table.of_methods(cells["seconds"][rows]),
                undefined=np.bincount(m[~np.isfinite(value)], minlength=len(methods)),
                anchors={
                    name: _shared(table(cells[name][rows]))
                    for name in ANCHORS
                    if np.isfinite(cells[name][rows]).any()
                },
            )


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
