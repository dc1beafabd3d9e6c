"""One clip and one model: maps by all methods that are missing, then the metrics of all maps.

What is computed depends on what is asked for and on nothing else (not on what was done before in the same
process), so that a unit that is done again after a crash gives the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from tubelens.api import explain_all
from tubelens.clip import Clip
from tubelens.errors import OutputError, ScoreError, TargetError, TubelensError, WorkError
from tubelens.evaluate.job import Job
from tubelens.evaluate.returned import checked_map, checked_score
from tubelens.explanation import Explanation
from tubelens.methods.protocol import FromCapture
from tubelens.metrics.protocol import Score
from tubelens.model import Model, TorchModel, is_out_of_memory
from tubelens.store import Prediction
from tubelens.target import class_index, label_of, probabilities
from tubelens.truth import Truth

Kind = Literal["clip", "model", "method", "metric", "memory", "scores", "crash"]
"""What failed: reading the clip, the model on it, a method or a metric; or: memory ran out, scores are NaN,
the process died."""
TOP = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Todo:
    """What is missing of one clip and model; positions are those in the job's lists.

    Attributes:
        model: which.
        cells: (method, seed, metric) of the scores.
        maps: (method, seed) of maps to make.
        stored: maps that were made before.
        explained: class that was explained then, None where nothing was done yet.
    """

    model: int
    cells: tuple[tuple[int, int, int], ...]
    maps: tuple[tuple[int, int], ...]
    stored: tuple[tuple[int, int, Explanation], ...] = ()
    explained: int | None = None


@dataclass(frozen=True)
class Failed:
    """What could not be done, and why; None: not one method or metric but all of them."""

    method: int | None
    metric: int | None
    seed: int
    kind: Kind
    reason: str


@dataclass
class Done:
    """What came of a unit.

    Attributes:
        task: number of the clip in the run.
        model: position, None where the clip could not be read.
        cells: (method, seed, metric, score).
        maps: (method, seed, explanation), new ones.
        blind: cells that need to know where the evidence is, and it turned out that nobody does.
    """

    task: int
    model: int | None
    prediction: Prediction | None = None
    cells: list[tuple[int, int, int, Score]] = field(default_factory=list)
    maps: list[tuple[int, int, Explanation]] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    blind: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """A clip, and what is missing of it; `item` is a line of the manifest."""

    number: int
    item: Any
    todos: tuple[Todo, ...]


def unread(task: Task, error: BaseException, models: Sequence[int | None] = (None,)) -> list[Done]:
    """A clip that could not be read: one failure, or one for each of some models."""
    kind, reason = told(error, "clip")
    failure = Failed(None, None, 0, kind, reason)
    return [Done(task.number, model, failures=[failure]) for model in models]


def told(error: BaseException, kind: Kind) -> tuple[Kind, str]:
    """Kind and reason of a failure, in one line."""
    said = " ".join(str(error).split())
    if is_out_of_memory(error):
        return "memory", f"out of memory ({said[:200]})" if said else "out of memory"
    if isinstance(error, TubelensError):
        kind = "scores" if isinstance(error, ScoreError) else kind
        return ("memory" if said.startswith("out of memory") else kind), said
    return kind, f"{type(error).__name__}: {said[:300]}"


class Unit:
    """One clip seen by one model."""

    def __init__(self, job: Job, model: Model, label: str | None, clip: Clip, truth: Truth | None) -> None:
        self.job, self.model, self.label, self.clip, self.truth = job, model, label, clip, truth
        self.run = job.settings.run

    def work(self, task: int, todo: Todo) -> Done:
        """All that is missing."""
        self.out = out = Done(task, todo.model)
        explained = todo.explained
        if explained is None:
            found = self._try("model", None, None, 0, self._predict)
            if found is None:
                return out
            out.prediction, explained = found
        self.maps = {(i, seed): e for i, seed, e in todo.stored}
        self._explain(todo.maps, explained)
        out.maps = [(i, seed, _bare(self.maps[i, seed])) for i, seed in todo.maps if (i, seed) in self.maps]
        metrics = self.job.metrics
        if self.truth is None:
            out.blind = [cell for cell in todo.cells if metrics[cell[2]].made.needs_truth]
        self._measure([cell for cell in todo.cells if cell[:2] in self.maps and cell not in out.blind])
        order = {cell: n for n, cell in enumerate(todo.cells)}
        out.cells.sort(key=lambda cell: order[cell[:3]])
        return out

    # ── maps ─────────────────────────────────────────────────────────────────────────────────────────────

    def _predict(self) -> tuple[Prediction, int]:
        """What the model says, and the class that is explained."""
        scores = self.model(self.clip.pixels[None])
        p = probabilities(scores, self.model.output)[0]
        k, labels = len(p), self.model.labels
        predicted = int(p.argmax())
        try:
            label = None if self.label is None else class_index(self.label, k, labels)
        except TargetError:
            if self.job.settings.target == "label":
                raise
            label = None  # only the accuracy would have needed it
        if self.job.settings.target == "label" and label is None:
            raise TargetError("the manifest gives no label, and labels are what shall be explained")
        explained = label if self.job.settings.target == "label" and label is not None else predicted
        strongest = p.argsort(descending=True, stable=True)[:TOP].tolist()
        detail = {"explained": explained, "top": [[label_of(i, labels), float(p[i])] for i in strongest]}
        return Prediction(label, predicted, float(p[predicted]), detail), explained

    def _explain(self, wanted: Sequence[tuple[int, int]], explained: int) -> None:
        """Methods that read one forward together; all others by themselves."""
        methods = {key: self.job.methods[key[0]].at(key[1]) for key in wanted}
        network = isinstance(self.model, TorchModel)
        sharing = [key for key in wanted if network and isinstance(methods[key], FromCapture)]

        def run(keys: Sequence[tuple[int, int]]) -> list[Explanation]:
            made = explain_all(self.model, self.clip, [methods[k] for k in keys], explained, run=self.run)
            names = [self.job.methods[i].name for i, _ in keys]
            return [checked_map(row, name) for row, name in zip(made, names, strict=True)]

        if len(sharing) > 1:
            try:
                self.maps.update(zip(sharing, run(sharing), strict=True))
            except (Exception, SystemExit):
                good = [key for key in sharing if self._method(key, partial(run, [key])) is not None]
                if len(good) > 1:  # together after all: the bits must not depend on who failed beside them
                    self.maps.update(zip(good, run(good), strict=True))
                elif good:
                    self.maps[good[0]] = run(good)[0]
            wanted = [key for key in wanted if key not in sharing]
        for key in wanted:
            found = self._method(key, partial(run, [key]))
            if found is not None:
                self.maps[key] = found[0]

    def _method(self, key: tuple[int, int], work: Callable[[], T]) -> T | None:
        return self._try("method", key[0], None, key[1], work)

    # ── scores ───────────────────────────────────────────────────────────────────────────────────────────

    def _measure(self, wanted: Sequence[tuple[int, int, int]]) -> None:
        """Map by map; or all maps at once, and all metrics of a family at once."""
        families: dict[Any, list[int]] = {}
        for j in dict.fromkeys(j for *_, j in wanted):
            metric = self.job.metrics[j].made
            together = getattr(sys.modules[type(metric).__module__], "together", None)
            shares = metric.kind == "curve" and together is not None
            families.setdefault(together if shares else j, []).append(j)
        for together, members in families.items():
            cells = [cell for cell in wanted if cell[2] in members]
            kind = self.job.metrics[members[0]].made.kind
            if kind == "curve":
                self._curves(together if callable(together) else None, cells)
            else:
                for cell in cells:
                    self._score(cell, partial(self._one, cell, kind))

    def _one(self, cell: tuple[int, int, int], kind: str) -> Score:
        i, seed, j = cell
        metric, e = self.job.metrics[j].made, self.maps[i, seed]
        if kind == "map":
            found = metric(e, self.clip, self.truth)
        else:
            method = self.job.methods[i].at(seed)
            found = metric(self.model, self.clip, method, e.target, self.run, e)
        return checked_score(found, self.job.metrics[j].name, metric.higher_is_better)

    def _curves(self, together: Callable[..., Any] | None, cells: Sequence[tuple[int, int, int]]) -> None:
        """Curve metrics in as few queues as can be; map by map where that fails."""
        metrics = list(dict.fromkeys(j for *_, j in cells))
        asked = {j: [cell[:2] for cell in cells if cell[2] == j] for j in metrics}
        same: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for j, missing in asked.items():  # those that are missing for the same maps go together
            same.setdefault(tuple(missing), []).append(j)

        def run(js: Sequence[int], keys: Sequence[tuple[int, int]]) -> list[list[Score]]:
            made = [self.job.metrics[j].made for j in js]
            maps = [self.maps[key] for key in keys]
            if together is not None:
                found = together(made, self.model, self.clip, maps, self.truth, self.run)
            else:
                found = [metric(self.model, self.clip, maps, self.truth, self.run) for metric in made]
            return [self._row(j, row, len(keys)) for j, row in zip(js, found, strict=True)]

        def one(j: int, key: tuple[int, int]) -> Score:
            return run([j], [key])[0][0]

        for keys, js in same.items():
            try:
                rows = run(js, keys)
            except OutputError:
                raise
            except (Exception, SystemExit):
                for j in js:
                    for key in keys:
                        self._score((*key, j), partial(one, j, key))
                continue
            self.out.cells += [
                (*key, j, score)
                for j, row in zip(js, rows, strict=True)
                for key, score in zip(keys, row, strict=True)
            ]

    def _row(self, j: int, row: Any, n: int) -> list[Score]:
        asked = self.job.metrics[j]
        if not isinstance(row, list | tuple) or len(row) != n:
            count = f"{len(row)} scores" if isinstance(row, list | tuple) else type(row).__name__
            raise WorkError(f"metric {asked.name} returned {count} for {n} maps, not a list of one for each")
        return [checked_score(score, asked.name, asked.made.higher_is_better) for score in row]

    def _score(self, cell: tuple[int, int, int], work: Callable[[], Score]) -> None:
        i, seed, j = cell
        score = self._try("metric", i, j, seed, work)
        if score is not None:
            self.out.cells.append((i, seed, j, score))

    def _try(
        self, kind: Kind, method: int | None, metric: int | None, seed: int, work: Callable[[], T]
    ) -> T | None:
        """The result, or None, and a failure noted."""
        try:
            return work()
        except OutputError:
            raise
        except (Exception, SystemExit) as error:  # whatever someone's network, method or metric raises
            self.out.failures.append(Failed(method, metric, seed, *told(error, kind)))
        return None


def _bare(e: Explanation) -> Explanation:
    """Without the pixels of a clip that came from an array: they are not stored, and need not travel."""
    return replace(e, source=replace(e.source, array=None)) if e.source.array is not None else e
