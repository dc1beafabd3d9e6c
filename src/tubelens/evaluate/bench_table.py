"""The table of the test bench: means with intervals, what was excluded, and whether a pair is told apart."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tubelens.errors import OptionError
from tubelens.evaluate.bench_tasks import ANCHORS, MEASURES, PAIR
from tubelens.evaluate.report.statistics import bootstrap
from tubelens.files import replacing
from tubelens.metrics.anchors import RANDOM

RANDOM_WEIGHTS = ", random weights"
"""What the name of a row ends with whose networks have random weights."""
COSTS = ("forwards", "backwards", "seconds")
NOTHING = "–"
OTHER = "left out with the other of the pair"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Mean:
    """A mean over clips.

    Attributes:
        value: the mean; NaN where there is none.
        low, high: ends of the 95 % percentile bootstrap interval over the clips.
        n: clips.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one value a clip."""
        if not len(values):
            return cls(np.nan, np.nan, np.nan, 0)
        low, high = bootstrap(np.asarray(values, dtype=np.float64))
        return cls(float(np.mean(values)), float(low), float(high), len(values))

    def __str__(self) -> str:
        """`0.912 ± 0.021`: half of the interval's width; a dash for nothing."""
        if not self.n:
            return NOTHING
        return f"{self.value:.3f}" + (f" ± {(self.high - self.low) / 2:.3f}" if self.n > 1 else "")


@dataclass(frozen=True)
class Moves:
    """What a method says of the pair of networks on the same clips.

    Attributes:
        honest, shortcut: shares of its positive mass on the object and on the mark, means over the clips, for
            the network that follows the object and the one that follows the mark.
        moves: mean over the clips of how much of the mass on either of the two lies on the object for the
            honest network and on the mark for the other: `o / (o + m)` of the first less that of the second,
            in [-1, 1]; 0 for a map that looks at no network. A map with nothing on either counts as one half.
    """

    honest: tuple[float, float]
    shortcut: tuple[float, float]
    moves: Mean

    @property
    def told_apart(self) -> bool:
        """Whether the interval of `moves` lies above 0."""
        return self.moves.low > 0


@dataclass(frozen=True)
class Table:
    """Scores of rows (methods and anchors) on tasks.

    Attributes:
        methods: names of the rows that were asked for.
        tasks: the columns.
        cells: (row, task) -> a record a clip: scores, cost, or an error.
        checks: task -> a record for every clip that was tried.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    cells: Mapping[tuple[str, str], Sequence[Record]]
    checks: Mapping[str, Sequence[Record]]

    @property
    def rows(self) -> tuple[str, ...]:
        """All rows: methods, the same on random weights, anchors."""
        return tuple(dict.fromkeys(row for row, _ in self.cells))

    def values(self, row: str, task: str, measure: str) -> list[float]:
        """One number a clip, without those on which the method failed or the score means nothing."""
        return [r[measure] for r in self.cells.get((row, task), ()) if measure in r]

    def mean(self, row: str, task: str, measure: str) -> Mean:
        """One cell of the table."""
        return Mean.of(self.values(row, task, measure))

    def overall(self, row: str, measure: str) -> float:
        """Mean over the tasks on which the method works; NaN where it works on none."""
        every = [self.values(row, task, measure) for task in self.tasks]
        means = [np.mean(values) for values in every if values]
        return float(np.mean(means)) if means else np.nan

    def excluded(self, task: str) -> dict[str, int]:
        """How many of the clips that were tried do not count, by reason; a pair shares what counts."""
        found = Counter(r["reason"] for r in self.checks[task] if r["reason"] is not None)
        if task in PAIR:
            kept = len(self.cells[RANDOM, task])
            found[OTHER] = len(self.checks[task]) - found.total() - kept
        return {reason: count for reason, count in found.items() if count}

    def errors(self, row: str, task: str) -> list[str]:
        """What went wrong, one line a clip on which the method failed."""
        return [r["error"] for r in self.cells.get((row, task), ()) if "error" in r]

    def pair(self) -> dict[str, Moves]:
        """Row -> what it says of the two networks; empty where not both were asked for."""
        if not set(PAIR) <= set(self.tasks):
            return {}
        found = {}
        for row in self.rows:
            both = [{r["seed"]: r for r in self.cells.get((row, task), ()) if "mark" in r} for task in PAIR]
            seeds = sorted(set(both[0]) & set(both[1]))
            if seeds:
                masses = np.array([[(by[s]["object"], by[s]["mark"]) for s in seeds] for by in both])
                total = masses.sum(axis=2)
                share = np.where(total > 0, masses[..., 0] / np.where(total > 0, total, 1), 0.5)
                (a, b), (c, d) = masses.mean(axis=1).tolist()
                found[row] = Moves((a, b), (c, d), Mean.of((share[0] - share[1]).tolist()))
        return found

    def notes(self) -> list[str]:
        """What a reader should know: clips that do not count, failures, rows that do not look at weights."""
        said = []
        for task in self.tasks:
            tried, out = len(self.checks[task]), self.excluded(task)
            reasons = ", ".join(f"{n} {reason}" for reason, n in out.items())
            if out:
                said.append(f"{task}: {sum(out.values())} of {tried} clips do not count ({reasons})")
            if not self.cells[(RANDOM, task)]:
                said.append(f"{task}: no clip counts, so there is nothing to compare with")
        for row in self.rows:
            failed: dict[str, list[str]] = {}
            for task in self.tasks:
                for error in self.errors(row, task)[:1]:
                    failed.setdefault(error, []).append(task)
            said += [f"{row}: failed on {', '.join(tasks)}: {error}" for error, tasks in failed.items()]
            if row.endswith(RANDOM_WEIGHTS):
                said += self._insensitive(row)
        return said

    def _insensitive(self, row: str) -> list[str]:
        chance = {task: self.mean(RANDOM, task, "ap") for task in self.tasks}
        above = []
        for task in self.tasks:
            mean = self.mean(row, task, "ap")
            if mean.n > 1 and mean.low > chance[task].high:
                above.append(f"{task} ({mean.value:.2f}, chance {chance[task].value:.2f})")
        return [f"{row}: AP stays above chance on {', '.join(above)}"] if above else []

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────

    def grid(self, measure: str) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of one score, best row first, anchors last; `all` is the mean over the tasks."""
        methods = [row for row in self.rows if row not in ANCHORS]
        order = sorted(methods, key=lambda row: self._rank(row, measure))
        # a score that only some of the tasks have, has no other columns
        tasks = [t for t in self.tasks if any(self.values(row, t, measure) for row in self.rows)]
        columns = [MEASURES[measure].title, *tasks]
        rows = []
        anchors = [a for a in ANCHORS if any(self.values(a, task, measure) for task in tasks)]
        for row in [*order, *anchors]:
            means = [str(self.mean(row, task, measure)) for task in tasks]
            if len(tasks) > 1:
                works = sum(mean != NOTHING for mean in means)
                few = f" ({works} of {len(tasks)})" if works < len(tasks) else ""
                means.append(f"{self.overall(row, measure):.3f}{few}" if works else NOTHING)
            rows.append([row, *means])
        return [*columns, *(["all"] if len(tasks) > 1 else [])], rows

    def _rank(self, row: str, measure: str) -> float:
        value = self.overall(row, measure)
        if np.isnan(value):
            return np.inf  # last
        return -value if MEASURES[measure].higher_is_better else value

    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Means over the tasks on which a row works, and passes; best AP first, anchors last."""
        measures = [m for m in MEASURES if any(not np.isnan(self.overall(row, m)) for row in self.rows)]
        ordered = [row for row, *_ in self.grid("ap")[1]]
        columns = ["means over tasks", "tasks", *(MEASURES[m].title for m in measures), *COSTS[:2]]
        rows = []
        for row in ordered:
            scores = [self.overall(row, m) for m in measures]
            passes = [self.overall(row, cost) for cost in COSTS[:2]]
            works = str(sum(bool(self.values(row, task, "ap")) for task in self.tasks))
            rows.append([row, works, *(_number(v, 3) for v in scores), *(_number(v, 0) for v in passes)])
        return columns, rows

    def part(self, random_weights: bool) -> Table:
        """The rows with random weights, or those without, and the anchors."""
        cells = {
            (row, task): records
            for (row, task), records in self.cells.items()
            if row in ANCHORS or row.endswith(RANDOM_WEIGHTS) == random_weights
        }
        return replace(self, cells=cells)

    def costs(self) -> tuple[list[str], list[list[str]]]:
        """Mean passes and seconds a clip, over all tasks."""
        rows = []
        for row in self.rows:
            if row not in ANCHORS:
                means = [self.overall(row, cost) for cost in COSTS]
                rows.append([row, *(_number(m, d) for m, d in zip(means, (0, 0, 2), strict=True))])
        return ["cost", *COSTS], rows

    def pairs(self) -> tuple[list[str], list[list[str]]]:
        """The pair as columns and rows, the surest first."""
        columns = ["pair", "honest: object", "mark", "shortcut: object", "mark", "moves", "told apart"]
        rows = [
            [
                row,
                *(f"{mass:.3f}" for mass in (*found.honest, *found.shortcut)),
                str(found.moves),
                "yes" if found.told_apart else "no",
            ]
            for row, found in sorted(self.pair().items(), key=lambda item: -item[1].moves.value)
        ]
        return columns, rows

    def markdown(self, measures: Sequence[str] = tuple(MEASURES)) -> str:
        """Tables of these scores, of the pair, of the costs, and the notes."""
        tables = [self.grid(measure) for measure in measures]
        tables += [self.pairs()] if self.pair() else []
        parts = [as_markdown(*table) for table in [*tables, self.costs()]]
        notes = "\n".join(f"- {note}" for note in self.notes())
        return "\n\n".join([*parts, *([notes] if notes else [])]) + "\n"

    def csv(self, measures: Sequence[str] = tuple(MEASURES)) -> str:
        """One line a row, task and score (or cost)."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "task", "score", "mean", "low", "high", "clips", "failed"])
        for row in self.rows:
            for task in self.tasks:
                failed = len(self.errors(row, task))
                for name in (*measures, *COSTS):
                    mean = self.mean(row, task, name)
                    numbers = ["" if np.isnan(v) else f"{v:.6g}" for v in (mean.value, mean.low, mean.high)]
                    writer.writerow([row, task, name, *numbers, mean.n, failed])
        return out.getvalue()

    def facts(self, measures: Sequence[str] = tuple(MEASURES)) -> dict[str, Any]:
        """All of it, ready for JSON; None where there is no number."""

        def number(value: float) -> float | None:
            return None if np.isnan(value) else value

        def facts(mean: Mean) -> dict[str, Any]:
            numbers = {"mean": mean.value, "low": mean.low, "high": mean.high}
            return {name: number(value) for name, value in numbers.items()} | {"clips": mean.n}

        return {
            "scores": [
                {"row": row, "task": task, "failed": len(self.errors(row, task))}
                | {name: facts(self.mean(row, task, name)) for name in measures}
                | {name: number(self.mean(row, task, name).value) for name in COSTS}
                for row in self.rows
                for task in self.tasks
            ],
            "pair": {
                row: {
                    "honest": dict(zip(("object", "mark"), found.honest, strict=True)),
                    "shortcut": dict(zip(("object", "mark"), found.shortcut, strict=True)),
                    "moves": facts(found.moves),
                    "told_apart": found.told_apart,
                }
                for row, found in self.pair().items()
            },
            "tried": {task: len(self.checks[task]) for task in self.tasks},
            "excluded": {task: self.excluded(task) for task in self.tasks},
            "notes": self.notes(),
        }

    def write(self, path: str | Path, measures: Sequence[str] = tuple(MEASURES)) -> None:
        """As Markdown, CSV or JSON, by the suffix.

        Raises:
            OptionError: another suffix.
            OutputError: the file cannot be written.
        """
        kind = written_as(path)
        text = {
            ".md": lambda: self.markdown(measures),
            ".csv": lambda: self.csv(measures),
            ".json": lambda: json.dumps(self.facts(measures), indent=2) + "\n",
        }[kind]()
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def written_as(path: str | Path) -> str:
    """The suffix that says how a table is written.

    Raises:
        OptionError: another one.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".md", ".csv", ".json"):
        raise OptionError(f"{path}: a table is written as .md, .csv or .json")
    return kind


def _number(value: float, digits: int) -> str:
    return NOTHING if np.isnan(value) else f"{value:.{digits}f}"


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; rows of anchors are slanted."""
    lines = [columns, ["---"] * len(columns)]
    for name, *cells in rows:
        lines.append([f"*{name}*" if name in ANCHORS else name.replace("|", "\\|"), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
