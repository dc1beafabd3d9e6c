"""Which tables and figures a run makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tubelens.evaluate.report.cautions import FEW, OWN, Loss, called, cautions, told
from tubelens.evaluate.report.figures import (
    Curve,
    Drawn,
    curves_figure,
    means_figure,
    ranks_figure,
    slug,
    styles,
)
from tubelens.evaluate.report.panels import Metric, Panel
from tubelens.evaluate.report.read import Results
from tubelens.evaluate.report.scores import Score, rankings, scores, summary
from tubelens.evaluate.report.tables import Column, Table

NOT_WORSE = "†"
LOSES = "⚠"
SIGNS = {NOT_WORSE: "not shown to be worse than the best", LOSES: "loses to an anchor beyond chance"}
NARROW = f"Bootstrap intervals of fewer than {FEW} clips are too narrow."
PLACE = (
    Column("network", ("network",)),
    Column("trained on", ("trained",)),
    Column("tested on", ("spectrum",)),
)
FULL = (
    Column("method", ("method",)),
    *PLACE,
    Column("mean", ("mean",), "value"),
    Column("std", ("std",), "spread"),
    Column("95 % interval", ("low", "high"), "interval"),
    Column("behind the best by", ("worse",), "value", latex=False),
    Column("p (Holm)", ("holm",), "p"),
    Column("normalised", ("normalised",), "value", latex=False),
    Column("clips", ("n",), "count"),
    Column("undefined", ("undefined",), "count", latex=False),
    Column("failed", ("failed",), "count", latex=False),
    Column("p", ("p",), "p", latex=False),
    Column("forwards of the metric", ("forwards",), "count", latex=False),
    Column("seconds of the map", ("seconds",), "seconds", latex=False),
)


@dataclass(frozen=True, eq=False)
class Section:
    """All that is said of one metric.

    Attributes:
        metric: which.
        summary: methods against places; None where there is one place only.
        full: every number.
        classes: means by class; None where there are fewer than two.
        figures: means, curves, ranks, as far as there are any.
        losses: where a method does not beat an anchor. `warnings`: what the reader must be told.
    """

    metric: Metric
    summary: Table | None
    full: Table
    classes: Table | None
    figures: tuple[Drawn, ...]
    losses: tuple[Loss, ...]
    warnings: tuple[str, ...] = ()


def section(results: Results, metric: Metric, panels: Sequence[Panel], seed: int = 0) -> Section:
    """Everything about one metric."""
    look = styles([row.name for row in results.facts.methods])
    lines: dict[Panel, list[Score]] = {}
    lost: list[Loss] = []
    for panel in panels:
        lines[panel], some = scores(panel, results.failed(panel), seed)
        lost += some
    figures = []
    named = {panel.place: found for panel, found in lines.items()}
    if any(np.isfinite(s.mean) for found in lines.values() for s in found):
        figures.append(means_figure(metric, {k: _few(v) for k, v in named.items()}, look))
    best = {panel: next((s.method for s in found if s.best), "") for panel, found in lines.items()}
    if curves := curves_of(results, panels, best):
        figures.append(curves_figure(metric, curves, look))
    if (found := rankings(panels)) is not None:
        figures.append(ranks_figure(metric, found))
    return Section(
        metric,
        grid(metric, lines) if len(panels) > 1 else None,
        full_table(metric, lines),
        class_table(results, metric, panels),
        tuple(figures),
        tuple(lost),
        (*(text for panel in panels for text in cautions(panel)), *told(lost)),
    )


def curves_of(results: Results, panels: Sequence[Panel], best: Mapping[Panel, str]) -> dict[str, list[Curve]]:
    """Mean curves by place; places without one are left out. The time-mean is that of the best method."""
    found = {}
    for panel in panels:
        x, curves = results.curves(panel)
        drawn = [Curve.of(name, x, clips) for name, clips in curves.items()]
        blind = results.anchor_curves(panel, best.get(panel, "")) if curves else {}
        drawn += [
            Curve.of(OF_BEST if name == OWN else called(name), x, clips, dashed=True)
            for name, clips in blind.items()
        ]
        if any(curve.n for curve in drawn):
            found[panel.place] = [curve for curve in drawn if curve.n]
    return found


def full_table(metric: Metric, lines: Mapping[Panel, Sequence[Score]]) -> Table:
    """A line for every place and method, with all the numbers; anchors below."""
    rows = []
    for panel, found in lines.items():
        for s in found:
            row = asdict(s) | _place(panel)
            row["bold"] = ("mean", "std") if s.best else ()
            row["marks"] = {"mean": signs(s)}
            row["warning"] = f"loses to {', '.join(s.loses)}" if s.loses else ""
            rows.append(row)
    few = any(0 < s.n < FEW for found in lines.values() for s in found)
    note = f"{metric.direction.capitalize()}; values are of clips, seeds averaged. {legend(rows)}"
    note += f" {NARROW}" if few else ""
    return Table(
        f"table-{slug(metric.name)}", f"{metric.title}: all numbers", _used(FULL, rows), tuple(rows), note
    )


def grid(metric: Metric, lines: Mapping[Panel, Sequence[Score]], only: Sequence[str] = ()) -> Table:
    """Methods against places, mean and standard deviation; anchors below.

    Args:
        metric: whose values.
        lines: what `scores` found.
        only: the methods to show, in this order; all, and the anchors, if none are named.
    """
    places = list(lines)
    keys = {panel: f"{panel.place}: {{}}".format for panel in places}
    named = {
        panel: {s.method: s for s in (_few(found) if not only else found)} for panel, found in lines.items()
    }
    every = list(dict.fromkeys(name for found in named.values() for name in found))
    anchors = {s.method for found in lines.values() for s in found if s.anchor} | {OF_BEST}
    methods = list(only) or [*(n for n in every if n not in anchors), *(n for n in every if n in anchors)]
    rows = []
    for name in methods:
        row: dict[str, Any] = {"method": name, "anchor": name in anchors, "marks": {}, "bold": []}
        warnings = []
        for panel in places:
            s = named[panel].get(name)
            if s is None:
                continue
            mean, std = keys[panel]("mean"), keys[panel]("std")
            row |= {mean: s.mean, std: s.std}
            row["marks"][mean] = signs(s)
            row["bold"] += [mean] if s.best else []
            warnings += [f"{panel.place}: loses to {', '.join(s.loses)}"] if s.loses else []
        row["warning"] = "; ".join(warnings)
        rows.append(row)
    columns = [Column("method", ("method",))]
    columns += [
        Column(
            panel.spectrum or panel.trained or panel.network,
            (keys[panel]("mean"), keys[panel]("std")),
            "pair",
        )
        for panel in places
    ]
    return Table(
        f"summary-{slug(metric.name)}",
        f"{metric.title}: mean ± standard deviation",
        tuple(columns),
        tuple(rows),
        f"{metric.direction.capitalize()}. {legend(rows)}",
        headings(places),
    )


def headings(places: Sequence[Panel]) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Network, and spectrum that it was trained on, above the columns of a grid; what says nothing goes."""
    levels = []
    if any(panel.spectrum or panel.trained for panel in places):
        levels.append([(panel.network, panel.network) for panel in places])
    if any(panel.spectrum and panel.trained for panel in places):
        levels.append(
            [
                (f"trained on {panel.trained}" if panel.trained else "", f"{panel.network}\n{panel.trained}")
                for panel in places
            ]
        )
    found = []
    for level in levels:
        grouped = [list(group) for _, group in groupby(level, key=lambda pair: pair[1])]
        found.append((("", 1), *((group[0][0], len(group)) for group in grouped)))
    return tuple(found)


def signs(s: Score) -> str:
    """What stands behind a value."""
    tied = NOT_WORSE if not (s.best or s.anchor or s.beaten or np.isnan(s.holm)) else ""
    return tied + (LOSES if s.loses else "")


def legend(rows: Sequence[Mapping[str, Any]]) -> str:
    """What bold type and signs mean, as far as there are any."""
    there = "".join(text for row in rows for text in row.get("marks", {}).values())
    said = ["Bold: best"] if any(row.get("bold") for row in rows) else []
    said += [f"{sign}: {words}" for sign, words in SIGNS.items() if sign in there]
    return "".join(f"{text}. " for text in said).strip()


OF_BEST = "time-mean of the best"


def _few(found: Sequence[Score]) -> list[Score]:
    """Of anchors that every method has of its own, that of the best method alone."""
    own = [s for s in found if s.anchor and " of " in s.method]
    best = next((s.method for s in found if s.best), None)
    kept = [s for s in found if s not in own]
    mine = [Score(**{**asdict(s), "method": OF_BEST}) for s in own if s.method.endswith(f" of {best}")]
    oracle = [s for s in kept if s.method == "the truth"]
    return [*(s for s in kept if s not in oracle), *mine, *oracle]


def class_table(results: Results, metric: Metric, panels: Sequence[Panel]) -> Table | None:
    """Mean of every method on the clips of every class; None where there are fewer than two classes."""
    labels = np.array([results.facts.label(i) for i in range(len(results.facts.clips))])
    methods = list(dict.fromkeys(name for panel in panels for name in panel.methods))
    if len(np.unique(labels)) < 2:
        return None
    rows = []
    for panel in panels:
        of = labels[panel.clips]
        right = results.right(panel)
        for label in np.unique(of):
            mine = of == label
            row: dict[str, Any] = {"label": label or "(none)", "n": int(mine.sum())} | _place(panel)
            row["right"] = _mean(right[mine])
            means = {n: _mean(v[mine]) for n, v in zip(panel.methods, panel.values, strict=True)}
            known = {n: v for n, v in means.items() if np.isfinite(v)}
            if known and metric.higher is not None:
                row["bold"] = (max(known, key=lambda n: known[n] if metric.higher else -known[n]),)
            rows.append(row | means)
    columns = (
        *PLACE,
        Column("class", ("label",)),
        Column("clips", ("n",), "count"),
        Column("model right", ("right",), "share"),
        *(Column(name, (name,), "value") for name in methods),
    )
    return Table(
        f"classes-{slug(metric.name)}",
        f"{metric.title}: means by class",
        _used(columns, rows),
        tuple(rows),
        f"{metric.direction.capitalize()}. Bold: best of the class.",
    )


def accuracy_table(results: Results) -> Table:
    """How often each model is right."""
    rows: list[dict[str, Any]] = []
    p = results.predictions
    spectra = np.array([results.facts.spectrum(i) for i in range(len(results.facts.clips))])
    of = spectra[p["clip"]] if len(p["clip"]) else spectra[:0]
    for m in range(len(results.facts.models)):
        for spectrum in dict.fromkeys(of[p["model"] == m].tolist()):
            mine = (p["model"] == m) & (of == spectrum)
            known = mine & (p["label"] >= 0)
            mean, _, low, high = summary((p["label"] == p["predicted"])[known].astype(float), hits=True)
            rows.append(
                {
                    "network": results.facts.network(m),
                    "trained": results.facts.trained(m),
                    "spectrum": spectrum,
                    **{"n": int(mine.sum()), "accuracy": mean, "low": low, "high": high},
                    "prob": _mean(p["prob"][mine]),
                }
            )
    columns = (
        *PLACE,
        Column("clips", ("n",), "count"),
        Column("accuracy", ("accuracy",), "share"),
        Column("95 % interval", ("low", "high"), "interval"),
        Column("mean probability", ("prob",), "value"),
    )
    note = "Of clips whose class is known; Wilson's interval; the probability is that of the predicted class."
    return Table("accuracy", "Accuracy of the models", _used(columns, rows), tuple(rows), note)


FAILURES = (
    *(Column(name, (name,)) for name in ("clip", "model", "method", "metric", "kind", "reason")),
    Column("attempts", ("attempts",), "count"),
)
REASONS = (
    *(Column(name, (name,)) for name in ("reason", "kind", "model", "method", "metric")),
    Column("clips", ("n",), "count"),
    Column("such as", ("clip",)),
)


def reason_table(failures: Table) -> Table:
    """The same, a line for each reason."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    clips: dict[tuple[str, ...], set[str]] = {}
    for row in failures.rows:
        reason = str(row["reason"]).replace(str(row["clip"]), "CLIP")
        key = (reason, *(str(row[name]) for name in ("kind", "model", "method", "metric")))
        rows.setdefault(key, {**row, "reason": reason})
        clips.setdefault(key, set()).add(str(row["clip"]))
    lines = [row | {"n": len(clips[key])} for key, row in rows.items()]
    lines.sort(key=lambda row: -row["n"])
    return Table("reasons", "Reasons", REASONS, tuple(lines))


def failure_table(results: Results) -> Table:
    """What could not be done, and why."""
    columns = FAILURES
    rows = tuple(
        asdict(f) | {key: getattr(f, key) or "all" for key in ("model", "method", "metric")}
        for f in results.failures
    )
    return Table("failures", "Failures", columns, rows, "The rest of the run went on without them.")


def _place(panel: Panel) -> dict[str, Any]:
    return {"network": panel.network, "trained": panel.trained, "spectrum": panel.spectrum}


def _used(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Without columns that say nothing in any row: unknown spectra, counts of nothing, tests not made."""

    def says(column: Column) -> bool:
        first = [row.get(column.fields[0]) for row in rows]
        if column.kind == "text" or column.fields[0] in ("undefined", "failed"):
            return any(first)
        return any(v is not None and np.isfinite(v) for v in first)

    always = ("method", "label", "mean", "n", "accuracy")
    return tuple(c for c in columns if c.fields[0] in always or says(c))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
