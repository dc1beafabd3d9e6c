"""Between the engine and the store: what is missing of a run, and what has come."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from tubelens.errors import TargetError
from tubelens.evaluate.items import Item, Manifest, label_index
from tubelens.evaluate.job import Job, Known, changed
from tubelens.evaluate.summary import WHOLE, Evaluation, Fault
from tubelens.evaluate.work import Done, Failed, Task, Todo
from tubelens.metrics.protocol import Score
from tubelens.model import BlackBox
from tubelens.store import Cell, Failure, RunStore, Unit

CHUNK = 5000
"""Clips entered in one transaction."""


class Keeper:
    """Tells an engine what to do, and commits what it gives.

    Attributes:
        clips: numbers in the store, in the order of the manifest.
        units: clips x models that are settled.
    """

    def __init__(
        self,
        store: RunStore,
        job: Job,
        known: Sequence[Known],
        manifest: Manifest,
        limit: int | None,
        skip_failed: bool,
    ) -> None:
        self.store, self.job, self.known, self.skip_failed = store, job, known, skip_failed
        self.manifest, self.limit = manifest, limit
        self.units = self.done = self.skipped = self.failed = self.without = self.maps = self.passed = 0
        self.faults: list[Fault] = []
        self.clips = array("l")
        self._waiting: dict[int, Task] = {}
        self._enter_clips()
        self.models = self._enter("models", "model", [(k.name, k.facts) for k in known])
        self.methods = self._enter("methods", "method", [(m.name, m.facts) for m in job.methods])
        self.metrics = self._enter("metrics", "metric", [(m.name, m.facts) for m in job.metrics])

    @property
    def items(self) -> Iterator[Item]:
        """The clips, as far as they are asked for."""
        return islice(self.manifest, self.limit)

    def _enter_clips(self) -> None:
        labels = set(self.manifest.labels)
        items = self.items
        while chunk := list(islice(items, CHUNK)):
            for item in chunk if self.job.settings.target == "label" else ():
                if item.label is None:
                    raise TargetError(f"{item.key}: has no label, and labels are what shall be explained")
                if item.label not in labels:  # of a generator, which tells its labels only now
                    labels.add(item.label)
                    for k in self.known:
                        label_index(item, BlackBox(len, labels=k.labels))
            self.clips.extend(self._enter("clips", "clip", [(i.key, _facts(i)) for i in chunk]))

    def _enter(self, table: Any, what: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[int]:
        found = self.store.enter(table, rows)
        for (name, now), (_, then) in zip(rows, found, strict=True):
            given = {k: v for k, v in now.items() if k != "path"}  # a data set may be moved
            if now != then and (error := changed(what, name, given, then)) is not None:
                raise error
        return [number for number, _ in found]

    # ── what is missing ──────────────────────────────────────────────────────────────────────────────────

    def tasks(self) -> Iterator[Task]:
        """Clips of which something is missing, read from the store as they are asked for."""
        for number, (clip, item) in enumerate(zip(self.clips, self.items, strict=True)):
            found = [self._todo(clip, item, m) for m in range(len(self.models))]
            todos = tuple(todo for todo in found if todo is not None)
            self.units += len(found) - len(todos)
            if todos:
                self._waiting[number] = Task(number, item, todos)
                yield self._waiting[number]

    def _todo(self, clip: int, item: Item, m: int) -> Todo | None:
        job, store, model = self.job, self.store, self.models[m]
        wanted = job.cells(truth=_may_know(item))
        there = store.done(clip, model)
        missing = [c for c in wanted if self._key(*c) not in there]
        self.skipped += len(wanted) - len(missing)
        self.without += len(job.cells(truth=True)) - len(wanted)
        needed = list(dict.fromkeys(c[:2] for c in missing)) if job.metrics else job.maps
        if not needed:
            return None
        if self.skip_failed and (failed := store.failed(clip, model)):
            whole = any(method == 0 for method, *_ in failed)
            ids = self.methods
            needed = [(i, s) for i, s in needed if not whole and (ids[i], 0, s) not in failed]
            missing = [c for c in missing if c[:2] in needed and self._key(*c) not in failed]
            needed = [key for key in needed if not job.metrics or any(c[:2] == key for c in missing)]
            if not needed:
                self.passed += 1
                return None
        mapped = store.mapped(clip, model)
        stored = [(i, s) for i, s in needed if (self.methods[i], s) in mapped]
        make = tuple(key for key in needed if key not in stored)
        if not make and not missing:
            return None
        maps = [(i, s, store.explanation(clip, model, self.methods[i], s)) for i, s in stored]
        said = store.prediction(clip, model)
        return Todo(
            m,
            tuple(missing),
            make,
            tuple((i, s, e) for i, s, e in maps if e is not None),
            None if said is None else int(said.detail["explained"]),
        )

    def _key(self, i: int, seed: int, j: int) -> tuple[int, int, int]:
        """A cell as the store numbers it."""
        return self.methods[i], self.metrics[j], seed

    # ── what has come ────────────────────────────────────────────────────────────────────────────────────

    def keep(self, done: Done) -> None:
        """Commit a unit."""
        task = self._waiting[done.task]
        mine = [todo for todo in task.todos if done.model in (None, todo.model)]
        clip = self.clips[done.task]
        self.store.commit(
            Unit(
                clip,
                0 if done.model is None else self.models[done.model],
                [self._cell(*cell) for cell in done.cells],
                [(self.methods[i], seed, e) for i, seed, e in done.maps],
                done.prediction,
                [self._failure(f) for f in done.failures],
            )
        )
        self.units += len(mine)
        self.done += len(done.cells)
        self.maps += len(done.maps)
        self.without += len(done.blind)
        self.failed += sum(len(todo.cells) for todo in mine) - len(done.cells) - len(done.blind)
        self.faults += [self._fault(task.item.key, done.model, f) for f in done.failures]
        left = tuple(todo for todo in task.todos if todo not in mine)
        if left:
            self._waiting[done.task] = Task(task.number, task.item, left)
        else:
            del self._waiting[done.task]

    def _cell(self, i: int, seed: int, j: int, score: Score) -> Cell:
        detail: dict[str, Any] = {"facts": score.facts} if score.facts else {}
        if score.notes:
            detail["notes"] = list(score.notes)
        if score.anchor_curves:  # to be drawn: four digits do
            curves = score.anchor_curves.items()
            detail["anchor_curves"] = {name: [round(y, 4) for y in ys] for name, ys in curves}
        return Cell(
            self.methods[i],
            self.metrics[j],
            seed,
            score.value,
            score.normalised,
            score.forwards,
            score.anchors,
            score.curve,
            detail,
        )

    def _failure(self, f: Failed) -> Failure:
        method = 0 if f.method is None else self.methods[f.method]
        return Failure(method, 0 if f.metric is None else self.metrics[f.metric], f.seed, f.kind, f.reason)

    def _fault(self, clip: str, model: int | None, f: Failed) -> Fault:
        return Fault(
            clip,
            WHOLE if model is None else self.known[model].name,
            WHOLE if f.method is None else self.job.methods[f.method].name,
            WHOLE if f.metric is None else self.job.metrics[f.metric].name,
            f.seed,
            f.kind,
            f.reason,
        )

    def summary(self, seconds: float) -> Evaluation:
        """What it came to."""
        return Evaluation(
            self.store.path,
            len(self.clips),
            self.done,
            self.skipped,
            self.failed,
            self.without,
            self.maps,
            self.passed,
            len(self.manifest.skipped),
            tuple(self.faults),
            seconds,
        )


def _facts(item: Item) -> dict[str, Any]:
    facts = {"label": item.label, "path": item.path, "start": item.start, "end": item.end}
    return {"spectrum": item.spectrum, **{k: v for k, v in facts.items() if v is not None}}


def _may_know(item: Item) -> bool:
    """Whether the evidence may be known; of a clip that is made when it is read, only reading tells."""
    sources = (item.truth, item.boxes, item.masks, item.make)
    return any(source is not None for source in sources)
