"""The verbs `report` and `compare`: what a run over a data set showed, and what changed between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from tubelens.cli.show import note, print_json, print_table, progress
from tubelens.errors import OptionError
from tubelens.evaluate.report import compare_runs, write_report
from tubelens.evaluate.report.presets import PRESETS
from tubelens.evaluate.report.tables import Table, is_bold, marks, shown, slim

WARNINGS = 5
"""So many warnings are printed; all of them are in the page."""
LINES = 30
"""So many lines of a table are printed."""


@dataclass
class Report:
    """Write the report of a run: a page, tables (CSV, LaTeX), curves and other figures (PNG, SVG).

    Example: tubelens report runs/first

    Example: tubelens report runs/infrared --preset icpr2022 --out report

    Cost: seconds, also for a million scores; no network runs. Pictures need the videos.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder that `tubelens evaluate` made; it may still be running."""
    out: str | None = None
    """Folder to make; RUN/report if not given."""
    preset: str | None = None
    """Tables in the layout of a paper, first in the page: icpr2022."""
    data: str | None = None
    """Folder where videos are looked for, by name, that are not where they were."""
    thumbnails: int = 4
    """How many of the best and of the worst clips are shown of each model and spectrum; 0: none."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Write it, and print the main table of every metric."""
        if self.preset is not None and self.preset not in PRESETS:
            raise OptionError(f"unknown --preset {self.preset!r}: one of {', '.join(PRESETS)}")
        for option, value in (("--thumbnails", self.thumbnails), ("--seed", self.seed)):
            if value < 0:
                raise OptionError(f"{option} must be at least 0, not {value}")
        if self.data is not None and not Path(self.data).is_dir():
            raise OptionError(f"--data {self.data}: no such folder")
        with progress("report") as tick:
            made = write_report(
                self.run_folder,
                self.out,
                layout=self.preset,
                thumbnails=self.thumbnails,
                data=self.data,
                seed=self.seed,
                progress=tick,
            )
        if self.json:
            print_json(made.summary())
            return 0
        summaries = {t.name.partition("-")[2] for t in made.tables if t.name.startswith("summary-")}
        for table in made.tables:
            kind, _, metric = table.name.partition("-")
            if kind in ("icpr2022", "summary") or (kind == "table" and metric not in summaries):
                show(table)
        for warning in made.warnings[:WARNINGS]:
            note(warning)
        if len(made.warnings) > WARNINGS:
            note(f"{len(made.warnings) - WARNINGS} more warnings are in the page")
        if made.failures:
            note(f"{made.failures} failures are listed in the page")
        more = len(made.files) - 1
        print(f"{made.cells:,} scores of {made.clips:,} clips: {made.files[0]} and {more} more files")
        return 0


@dataclass
class Compare:
    """Tell what changed between two runs: two models, two versions, two settings.

    Example: tubelens compare runs/before runs/after

    Example: tubelens compare runs/a runs/b --models r3d_18 mc3_18 --out changes.html

    Cost: seconds.
    """

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_A")]
    """Folder of the first run."""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_B")]
    """Folder of the second."""
    models: tuple[str, str] | None = None
    """The model of A and that of B, where names do not tell which belong together."""
    out: str | None = None
    """Also write it: .html, or .csv with the table of changes."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Print the tables."""
        if self.out is not None and not self.out.lower().endswith((".html", ".csv")):
            raise OptionError(f"--out {self.out}: a comparison is written as .html or .csv")
        if self.seed < 0:
            raise OptionError(f"--seed must be at least 0, not {self.seed}")
        found = compare_runs(self.a, self.b, self.models, self.seed)
        path = None if self.out is None else found.write(self.out)
        if self.json:
            print_json(found.summary() | {"out": None if path is None else str(path)})
            return 0
        print(f"A: {self.a}\nB: {self.b}\n{found.clips:,} clips in both")
        for line in found.only:
            note(line)
        for table in found.tables:
            many = table is found.changes and len(table.rows) > LINES
            rows = (
                sorted(table.rows, key=lambda row: row["holm"]) if many else table.rows
            )  # what changed first
            show(replace(table, rows=tuple(rows)))
        if not found.changes.rows:
            note("no score to compare: the runs share no clip with the same method and metric")
        if path is not None:
            print(f"written: {path}")
        return 0


def show(table: Table) -> None:
    """Print a table; of a long one its first lines. What is the same in all stands in the title."""
    table = slim(table)
    named = [title for level in table.above for title, n in level for _ in range(n)]
    levels = [named[i : i + len(table.columns)] for i in range(0, len(named), len(table.columns))]
    heads = [
        "\n".join([*(level[i] for level in levels if level[i]), column.title])
        for i, column in enumerate(table.columns)
    ]
    rows: list[Sequence[str]] = [
        [
            ("*" if is_bold(row, column) and column.kind != "spread" else "")
            + shown(row, column)
            + marks(row, column)
            for column in table.columns
        ]
        for row in table.rows[:LINES]
    ]
    print_table(table.title, heads, rows)
    if len(table.rows) > LINES:
        print(f"and {len(table.rows) - LINES:,} more lines")
    if table.note:
        print(table.note.replace("Bold:", "*:"), end="\n\n")
