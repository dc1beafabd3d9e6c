"""Two runs side by side: what changed between two models or versions, on the clips that both have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelens.errors import OptionError, nearest
from tubelens.evaluate.report.cautions import ALPHA, largest
from tubelens.evaluate.report.flips import FLIPS, RIGHT, WHERE, pair, predictions
from tubelens.evaluate.report.page import head, html_table, page
from tubelens.evaluate.report.panels import Metric, Panel
from tubelens.evaluate.report.read import Results, read
from tubelens.evaluate.report.statistics import FLAT, bootstrap, holm, wilcoxon
from tubelens.evaluate.report.tables import Column, Table, to_csv
from tubelens.files import replacing

LARGEST = 10
"""Of so many clips of each metric, the changes are listed."""
CHANGES = (
    Column("metric", ("metric",)),
    *WHERE,
    Column("method", ("method",)),
    Column("clips", ("n",), "count"),
    Column("A", ("a",), "value"),
    Column("B", ("b",), "value"),
    Column("B - A", ("difference",), "value"),
    Column("verdict", ("verdict",)),
    Column("95 % interval", ("low", "high"), "interval"),
    Column("p (Holm)", ("holm",), "p"),
    Column("p", ("p",), "p"),
)
MOST = (
    Column("metric", ("metric",)),
    *WHERE,
    Column("method", ("method",)),
    Column("clip", ("clip",)),
    Column("A", ("a",), "value"),
    Column("B", ("b",), "value"),
    Column("B - A", ("difference",), "value"),
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What changed from run A to run B.

    Attributes:
        a, b: the folders.
        clips: that both have.
        only: what one of the two alone has, or was made otherwise; one sentence each.
        changes: every metric and method that both have. `right`: accuracy. `flips`: clips that are predicted
            otherwise. `largest`: the largest changes of each metric.
    """

    a: Path
    b: Path
    clips: int
    only: tuple[str, ...]
    changes: Table
    right: Table
    flips: Table
    largest: Table

    @property
    def tables(self) -> tuple[Table, ...]:
        """All with a line."""
        return tuple(t for t in (self.changes, self.right, self.flips, self.largest) if t.rows)

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        found: dict[str, Any] = {
            "a": str(self.a),
            "b": str(self.b),
            "clips": self.clips,
            "only": list(self.only),
        }
        for table in (self.changes, self.right, self.flips, self.largest):
            keys = [key for column in table.columns for key in column.fields]
            found[table.name] = [{key: _json(row.get(key)) for key in keys} for row in table.rows]
        return found

    def write(self, path: str | Path) -> Path:
        """As a page (`.html`), or the table of changes as `.csv`.

        Raises:
            OptionError: another suffix.
            OutputError: it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".csv"):
            raise OptionError(f"--out {path}: a comparison is written as .html or .csv")
        text = to_csv(self.changes)
        if path.suffix.lower() == ".html":
            title = f"{self.a.resolve().name} against {self.b.resolve().name}"
            said = f"A is {self.a}, B is {self.b}: {self.clips:,} clips that both have."
            notes = "".join(f"<p>{_escape(line)}</p>" for line in self.only)
            text = page(title, [head(title, said, (), ()), notes, *map(html_table, self.tables)])
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path


def compare_runs(
    a: str | Path, b: str | Path, models: Sequence[str] | None = None, seed: int = 0
) -> Comparison:
    """Compare two runs on the clips, methods and metrics that both have.

    Clips are the same by name, methods and metrics too. Models are compared with those of the same name;
    where no name is in both and each run has one model, these two are compared.

    Args:
        a: folder of the first run.
        b: of the second.
        models: the model of A and that of B to compare, where names do not tell.
        seed: of the bootstrap.

    Raises:
        InputError: no run there, or a damaged one.
        OptionError: it is not clear which models to compare, or there is no such model.
    """
    with read(a) as first, read(b) as second:
        pairs = _pairs(first, second, models)
        shared = set(_names(first)) & set(_names(second))
        rows: list[dict[str, Any]] = []
        largest: list[dict[str, Any]] = []
        for (metric, spectrum, name), one, other in _panels(first, second, pairs):
            some, most = _changes(first, second, one, other, metric, spectrum, name, seed, shared)
            rows += some
            largest += most
        right, flips = predictions(first, second, pairs)
        return Comparison(
            Path(a),
            Path(b),
            len(shared),
            (*_only(first, second, shared), *_otherwise(first, second, pairs), *_gaps(rows)),
            Table("changes", "What changed", CHANGES, tuple(_corrected(rows)), NOTE),
            Table("right", "How often the models are right", RIGHT, tuple(right), RIGHT_NOTE),
            Table("flips", "Clips that are predicted otherwise", FLIPS, tuple(flips)),
            Table(
                "largest",
                "The largest changes",
                MOST,
                tuple(_largest(largest)),
                "At most ten of each metric.",
            ),
        )


NOTE = (
    "Means over the clips that both have; interval of the mean difference: 95 % bootstrap; p: Wilcoxon's"
    " signed-rank test, corrected by Holm within a metric. Mixed: mean and ranks changed in opposite ways."
)
RIGHT_NOTE = "Mended: wrong in A, right in B; broken: the other way round; p: exact McNemar test of the two."


def _pairs(first: Results, second: Results, models: Sequence[str] | None) -> list[tuple[str, str]]:
    mine, theirs = ([row.name for row in r.facts.models] for r in (first, second))
    if models is not None:
        if len(models) != 2:
            raise OptionError(f"--models takes two names, that of A and that of B, not {len(models)}")
        for name, known, run in zip(models, (mine, theirs), (first, second), strict=True):
            if name not in known:
                near = nearest(name, known)
                raise OptionError(
                    f"--models: no model {name!r}{near} in {run.path}: it has {', '.join(known)}"
                )
        return [(models[0], models[1])]
    both = [(name, name) for name in mine if name in theirs]
    if both or not mine or not theirs:
        return both
    if len(mine) == len(theirs) == 1:
        return [(mine[0], theirs[0])]
    raise OptionError(
        f"no model is in both runs (A has {', '.join(mine)}; B has {', '.join(theirs)}):"
        " name one of each with --models"
    )


def _panels(
    first: Results, second: Results, pairs: Sequence[tuple[str, str]]
) -> list[tuple[tuple[Metric, str, str], Panel, Panel]]:
    """Panels of the same metric, spectrum and pair of models."""
    theirs = {(p.metric.name, p.model, p.spectrum): p for p in second.panels}
    found = []
    for one in first.panels:
        for mine, other in pairs:
            if one.model == mine and (match := theirs.get((one.metric.name, other, one.spectrum))):
                found.append(((one.metric, one.spectrum, pair(mine, other)), one, match))
    return found


def _changes(
    first: Results,
    second: Results,
    one: Panel,
    other: Panel,
    metric: Metric,
    spectrum: str,
    name: str,
    seed: int,
    shared: set[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    here = {first.facts.clips[c].name: i for i, c in enumerate(one.clips)}
    there = {second.facts.clips[c].name: i for i, c in enumerate(other.clips)}
    names = [clip for clip in dict.fromkeys([*here, *there]) if clip in shared]
    rows, most = [], []
    for method in one.methods:
        if method not in other.methods:
            continue
        a = _picked(one.values[one.methods.index(method)], here, names)
        b = _picked(other.values[other.methods.index(method)], there, names)
        both = np.isfinite(a) & np.isfinite(b)
        change = (b - a)[both]
        at_clip = {"metric": metric.title, "model": name, "spectrum": spectrum, "method": method}
        low, high = bootstrap(change, seed=seed)
        row: dict[str, Any] = {"n": len(change), "a": _mean(a[both]), "b": _mean(b[both])}
        row |= {"difference": _mean(change), "low": float(low), "high": float(high)}
        size = largest(a[both], b[both])
        test = wilcoxon(change, size)
        row |= {"p": test.p if len(change) else math.nan, "better": metric.higher, "effect": test.effect}
        row |= {
            "lost": (
                int((np.isfinite(b) & ~np.isfinite(a)).sum()),
                int((np.isfinite(a) & ~np.isfinite(b)).sum()),
            )
        }
        rows.append(at_clip | row)
        order = np.argsort(-np.abs(change), kind="stable")[:LARGEST]
        kept = np.flatnonzero(both)
        most += [
            at_clip
            | {
                "clip": names[kept[i]],
                "a": float(a[both][i]),
                "b": float(b[both][i]),
                "difference": float(change[i]),
            }
            for i in order
            if abs(change[i]) > FLAT * size
        ]
    return rows, most


def _picked(values: np.ndarray, at: Mapping[str, int], names: Sequence[str]) -> np.ndarray:
    """Values of these clips, NaN where there is none."""
    return np.array([values[at[name]] if name in at else np.nan for name in names], dtype=np.float64)


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holm's correction within a metric, and what it says."""
    found = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        mine = [row for row in rows if row["metric"] == metric]
        for row, p in zip(mine, holm([row["p"] for row in mine]), strict=True):
            higher, effect, verdict = row["better"], row["effect"], ""
            if p < ALPHA:
                up = row["difference"] > 0
                verdict = (
                    ("higher" if up else "lower") if higher is None else "better" if up == higher else "worse"
                )
                if row["difference"] * effect <= 0:  # a few large differences against many small ones
                    verdict = "mixed"
            found.append(row | {"holm": p, "verdict": verdict})
    return found


def _largest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        mine = [row for row in rows if row["metric"] == metric]
        found += sorted(mine, key=lambda row: -abs(row["difference"]))[:LARGEST]
    return found


def _only(first: Results, second: Results, shared: set[str]) -> list[str]:
    """What cannot be compared."""
    said = []
    for word, run, others in (("A", first, second), ("B", second, first)):
        clips = len(run.facts.clips) - len(shared)
        if clips:
            said.append(f"{clips:,} clips are in {word} alone.")
        for kind in ("methods", "metrics"):
            theirs = {row.name for row in getattr(others.facts, kind)}
            alone = [row.name for row in getattr(run.facts, kind) if row.name not in theirs]
            if alone:
                said.append(f"{kind} in {word} alone: {', '.join(alone)}.")
    keys = dict.fromkeys([*first.settings, *second.settings])
    differ = [k for k in keys if first.settings.get(k) != second.settings.get(k)]
    if differ:
        told = ", ".join(f"{k} ({first.settings.get(k)!r}, {second.settings.get(k)!r})" for k in differ[:4])
        said.append(f"The runs were made with other settings: {told}.")
    return said


def _otherwise(first: Results, second: Results, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What has the same name in both and is not the same; what failed."""
    said = []
    for kind, keys in (
        ("models", ("hash", "input", "output", "layer")),
        ("methods", ("repr",)),
        ("metrics", ("repr",)),
    ):
        theirs = {row.name: row.facts for row in getattr(second.facts, kind)}
        for row in getattr(first.facts, kind):
            if kind == "models" and (row.name, row.name) not in pairs:
                continue
            facts = theirs.get(row.name, row.facts)
            for key in keys:
                a, b = (str(f.get(key) or "") for f in (row.facts, facts))
                if a != b and key == "hash":
                    said.append(f"{row.name}: the weights are others in B (SHA-256 {a[:8]}…, {b[:8]}…).")
                elif a != b:
                    said.append(f"{row.name}: its {key} is {a} in A and {b} in B.")
    for word, run in (("A", first), ("B", second)):
        if run.failures:
            reason = Counter(f.reason for f in run.failures).most_common(1)[0][0]
            said.append(f"{len(run.failures):,} failures in {word}, most often: {reason}.")
    return said


def _gaps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Clips of both runs that have a value in one alone."""
    gaps = []
    for row in rows:
        for word, n in zip("AB", row["lost"], strict=True):
            if n:
                gaps.append(f"{row['method']} has no value of {n:,} clips in {word} alone ({row['metric']})")
    more = f"; and {len(gaps) - 6} more" if len(gaps) > 6 else ""
    return [f"Left out: {'; '.join(gaps[:6])}{more}."] if gaps else []


def _names(results: Results) -> list[str]:
    return [row.name for row in results.facts.clips]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
