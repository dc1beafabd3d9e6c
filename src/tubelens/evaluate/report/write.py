"""The report of a run: a page, tables as CSV and LaTeX, figures as PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tubelens.evaluate.report.figures import Drawn, slug
from tubelens.evaluate.report.folder import whole
from tubelens.evaluate.report.page import (
    clips,
    figure,
    folded,
    head,
    html_table,
    metric_section,
    page,
    warning_box,
)
from tubelens.evaluate.report.presets import Preset, preset
from tubelens.evaluate.report.provenance import provenance_table
from tubelens.evaluate.report.read import Results, read
from tubelens.evaluate.report.sections import Section, accuracy_table, failure_table, reason_table, section
from tubelens.evaluate.report.tables import Table, to_csv, to_json, to_latex
from tubelens.evaluate.report.thumbnails import Extreme, extreme_table, extremes

MOST = 500
"""So many failures are in the page and in JSON; the CSV has all."""
PLACES = 6
"""Of so many places, pictures of clips are shown."""
READING = (
    "A value belongs to a clip: seeds are averaged first, and intervals, tests and ranks draw clips."
    " Intervals: 95 %, percentile bootstrap of the mean, 10,000 resamples (1,000 for curves), seeded;"
    " Wilson's for hits and misses. A bootstrap interval of fewer than 10 clips is too narrow. p:"
    " Wilcoxon's signed-rank test against the best method on the clips that both have, two-sided, exact"
    " up to 50 differences; Holm's correction over the methods of a model and a spectrum. Differences of"
    " a millionth of the values are none. A method is called worse, or beaten, only where its mean and"
    " the ranks of the differences agree; the best has the best mean of the methods with at least 95 %"
    " of the clips. Normalised: the means put on a line from a random order (0) to the truth (1). Ranks:"
    " Friedman's test and Nemenyi's critical difference, of ranks within a clip and a model, over clips"
    " that have every method. Anchors look at no model (the time-mean has the method's own places, not"
    " its times); the truth is what is there to be found. A large p shows nothing: it does not show that"
    " two methods are alike."
)
NOTHING = "There are no scores in this run yet."


@dataclass(frozen=True, eq=False)
class Report:
    """What was made of a run.

    Attributes:
        out: the folder. `files`: in it, the page first.
        tables: every table. `figures`: every figure.
        warnings: methods that lose to an anchor; what a preset misses; what else is to be read with care.
        cells, clips, failures: counts.
    """

    out: Path
    files: tuple[Path, ...]
    tables: tuple[Table, ...]
    figures: tuple[Drawn, ...]
    warnings: tuple[str, ...]
    cells: int
    clips: int
    failures: int

    def summary(self) -> dict[str, Any]:
        """Ready for JSON; what is no number is null."""
        return {
            "out": str(self.out),
            "files": [str(path) for path in self.files],
            "cells": self.cells,
            "clips": self.clips,
            "failures": self.failures,
            "warnings": list(self.warnings),
            "tables": {table.name: to_json(_capped(table)) for table in self.tables},
        }


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    layout: str | None = None,
    thumbnails: int = 4,
    data: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Write the report of a run; it takes the place of an earlier one when it is complete.

    Args:
        run: folder of the run; it may still be running.
        out: folder to make, by default `report` in that of the run.
        layout: name of a preset, such as `icpr2022`, whose tables come first.
        thumbnails: how many of the best and of the worst clips to show, of each model and spectrum.
        data: folder where videos are looked for that are not where they were.
        seed: of the bootstrap.
        progress: called with (metrics done, metrics).

    Raises:
        InputError: no run there, or a damaged one.
        OptionError: unknown preset, or a folder of other files in the place of the report.
        OutputError: it cannot be written.
    """
    make = preset(layout) if layout else None
    target = Path(out) if out is not None else Path(run) / "report"
    with read(run) as results, whole(target) as folder:
        first = make(results, seed) if make else None
        found: list[Section] = []
        groups = results.of_metric()
        for done, panels in enumerate(groups.values()):
            found.append(section(results, panels[0].metric, panels, seed))
            progress(done + 1, len(groups))
        ends = _extremes(results, thumbnails, data)
        tables, figures = _all(results, found, first, ends)
        files = [folder / "report.html"]
        files[0].write_text(_page(results, found, first, ends), encoding="utf-8")
        for table in tables:
            files += [_write(folder / "tables" / f"{table.name}.csv", to_csv(table).encode())]
            files += [_write(folder / "tables" / f"{table.name}.tex", to_latex(table).encode())]
        for drawn in figures:
            files += [_write(folder / "figures" / f"{drawn.name}.png", drawn.png())]
            files += [_write(folder / "figures" / f"{drawn.name}.svg", drawn.svg.encode())]
        shown = [str(loss) for s in found for loss in s.losses if loss.shown]
        rest = [text for s in found for text in s.warnings if text not in shown]
        warnings = [*shown, *(first.missing if first else ()), *rest]
        report = Report(
            target,
            tuple(target / path.relative_to(folder) for path in files),
            tuple(tables),
            tuple(figures),
            tuple(warnings),
            results.cells,
            len(results.facts.clips),
            len(results.failures),
        )
        text = json.dumps(report.summary(), indent=1, ensure_ascii=False)
        _write(folder / "report.json", text.encode())
    return report


def _all(
    results: Results, found: Sequence[Section], first: Preset | None, ends: Sequence[Extreme]
) -> tuple[list[Table], list[Drawn]]:
    tables = [
        *(first.tables if first else ()),
        *(t for s in found for t in (s.summary, s.full, s.classes) if t is not None),
        accuracy_table(results),
        extreme_table(ends),
        failure_table(results),
        provenance_table(results),
    ]
    figures = [*(first.figures if first else ()), *(d for s in found for d in s.figures)]
    return [
        table for table in tables if table.rows and not (table.name == "provenance" and not found)
    ], figures


def _capped(table: Table) -> Table:
    return replace(table, rows=table.rows[:MOST]) if table.name == "failures" else table


def _extremes(results: Results, each: int, data: str | Path | None) -> list[Extreme]:
    """Ends of the metric that most people look at: insertion, or else the first."""
    groups = results.of_metric()
    if not groups:
        return []
    chosen = next(
        (name for name, some in groups.items() if some[0].metric.short == "insertion"), next(iter(groups))
    )
    return [
        e for i, panel in enumerate(groups[chosen]) for e in extremes(results, panel, each, i < PLACES, data)
    ]


def _page(results: Results, found: Sequence[Section], first: Preset | None, ends: Sequence[Extreme]) -> str:
    facts, accuracy, failures = results.facts, accuracy_table(results), failure_table(results)
    tiles = [
        (word, f"{n:,}")
        for word, n in (
            ("scores", results.cells),
            ("clips", len(facts.clips)),
            ("models", len(facts.models)),
            ("methods", len(facts.methods)),
            ("metrics", len(facts.metrics)),
            ("failures", len(results.failures)),
        )
    ]
    links = [(first.title, "preset")] if first else []
    links += [(s.metric.title, slug(s.metric.name)) for s in found]
    links += [("models", "models")] if accuracy.rows else []
    links += [("clips", "clips")] if ends else []
    links += [("failures", "failures")] if failures.rows else []
    links += [("how to read this", "reading")]
    name = results.path.resolve().name
    lost = sum(loss.shown for s in found for loss in s.losses)
    times = "Once a method loses" if lost == 1 else f"{lost} times a method loses"
    worst = f"{times} to an anchor beyond chance; each is told at its metric" if lost else ""
    parts = [
        head(
            f"Tubelens: {name}",
            "Where and when video classifiers looked, and how far that was why.",
            tiles,
            links,
        ),
        "" if found else f"<p>{NOTHING}</p>",
        f'<div class="warn"><b>⚠ {worst}.</b></div>' if worst else "",
    ]
    if first:
        parts.append(f'<h2 id="preset">{first.title}</h2>')
        parts.append(warning_box(first.missing, "Not all of it is in this run"))
        parts += [html_table(table) for table in first.tables] + [figure(d) for d in first.figures]
    parts += [metric_section(s) for s in found]
    if accuracy.rows:
        parts += ['<h2 id="models">Models</h2>', html_table(accuracy)]
    if ends:
        parts += ['<h2 id="clips">Best and worst clips</h2>', clips(ends)]
    if failures.rows:
        n, many = len(failures.rows), len(failures.rows) > 20
        inside = html_table(_capped(failures))
        cut = (
            f"The first {MOST} of {n:,}; all are in tables/failures.csv" if n > MOST else f"All {n} failures"
        )
        parts += ['<h2 id="failures">Failures</h2>', html_table(_first(reason_table(failures)))]
        parts += [folded(cut, inside) if many else inside]
    settings = json.dumps(results.settings, indent=1, ensure_ascii=False)
    parts += [
        f'<h2 id="reading">How to read this</h2><p>{READING}</p>',
        folded("How the run came about", html_table(provenance_table(results))),
        folded("Settings of the run", f"<pre>{_escape(settings)}</pre>"),
    ]
    return page(f"Tubelens: {name}", parts)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _first(table: Table, n: int = 30) -> Table:
    more = len(table.rows) - n
    return replace(table, rows=table.rows[:n], note=f"And {more:,} more." if more > 0 else table.note)
