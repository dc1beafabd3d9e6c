"""Between the engine and the store: what is missing of a run, and what has come."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from tubelens.errors import InputError, OutputError, TargetError
from tubelens.evaluate.identity import content, evidence
from tubelens.evaluate.items import Item, Manifest, label_index
from tubelens.evaluate.job import Job, Known, changed
from tubelens.evaluate.summary import WHOLE, Evaluation, Fault
from tubelens.evaluate.work import Done, Failed, Task, Todo
from tubelens.metrics.protocol import Score
from tubelens.model import BlackBox
from tubelens.store import Cell, Failure, RunStore, Unit
from tubelens.target import class_index

CHUNK = 5000
"""Clips entered at once."""
DEATHS = 2
"""Times running that a process may die on a clip before it is passed over."""
LEARNT = ("label", "spectrum", "digest", "truth")
"""What a clip may come to have: a column that is added later, or what older versions did not note."""


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
        self.clips, self._keys = array("l"), array("q")
        self._labels: set[str] = set()
        self._waiting: dict[int, Task] = {}
        with store.at_once():  # a call that is refused changes nothing
            self.models = self._enter("models", "model", [(k.name, k.facts) for k in known])
            self.methods = self._enter("methods", "method", [(m.name, m.facts) for m in job.methods])
            self.metrics = self._enter("metrics", "metric", [(m.name, m.facts) for m in job.metrics])
            self._enter_clips()
        then = store.in_hand
        self._deadly = then[:2] if then is not None and then[2] >= DEATHS else None

    @property
    def items(self) -> Iterator[Item]:
        """The clips, as far as they are asked for."""
        return islice(self.manifest, self.limit)

    def _enter_clips(self) -> None:
        labels = set(self.manifest.labels)
        items = self.items
        while chunk := list(islice(items, CHUNK)):
            self._labels.update(item.label for item in chunk if item.label is not None)
            for item in chunk if self.job.settings.target == "label" else ():
                if item.label is None:
                    raise TargetError(f"{item.key}: has no label, and labels are what shall be explained")
                if item.label not in labels:  # of a generator, which tells its labels only now
                    labels.add(item.label)
                    for k in self.known:
                        label_index(item, BlackBox(len, labels=k.labels))
            self.clips.extend(self._enter("clips", "clip", [(i.key, _facts(i)) for i in chunk]))
            self._keys.extend(hash(item.key) for item in chunk)

    def _enter(self, table: Any, what: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[int]:
        found = self.store.enter(table, rows)
        for (name, now), (number, then) in zip(rows, found, strict=True):
            if now == then:
                continue
            if what == "clip":
                self._compare(name, number, now, then)
            elif (error := changed(what, name, now, then)) is not None:
                raise error
        return [number for number, _ in found]

    def _compare(self, name: str, number: int, now: dict[str, Any], then: dict[str, Any]) -> None:
        """Refuse a clip that is another under an old name, unless nothing was computed of the old one."""
        if not self.store.used(number):
            self.store.revise("clips", number, now)
            return
        learnt = {k: now[k] for k in LEARNT if now.get(k) and not then.get(k)}
        left_out = {"path"}  # a data set may be moved
        both = [{k: v for k, v in (f | learnt).items() if k not in left_out} for f in (now, then)]
        if (error := changed("clip", name, *both)) is not None:
            raise error
        if learnt:
            self.store.revise("clips", number, then | learnt)

    # ── what is missing ──────────────────────────────────────────────────────────────────────────────────

    def tasks(self) -> Iterator[Task]:
        """Clips of which something is missing, read from the store as they are asked for."""
        items = self.items
        for number, (clip, key) in enumerate(zip(self.clips, self._keys, strict=True)):
            item = next(items, None)
            if item is None or hash(item.key) != key:
                raise self._other()
            found = [self._todo(clip, item, m) for m in range(len(self.models))]
            todos = tuple(todo for todo in found if todo is not None)
            self.units += len(found) - len(todos)
            if todos:
                self._waiting[number] = Task(number, item, todos)
                yield self._waiting[number]
        if next(items, None) is not None:
            raise self._other()

    def _other(self) -> InputError:
        return InputError(
            f"{self.manifest.source}: changed while it was read: run the command again (every reading must"
            " give the same clips in the same order)"
        )

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
        if (clip, model) == self._deadly:
            self._give_up(clip, item, m, len(missing))
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

    def _give_up(self, clip: int, item: Item, m: int, cells: int) -> None:
        """A clip on which the process died again and again is a failure; the next call tries it once more."""
        reason = f"{item.key}: the process died on it {DEATHS} times (out of memory, or a crash in a library)"
        failed = Failed(None, None, 0, "crash", reason)
        self.store.commit(Unit(clip, self.models[m], failures=[self._failure(failed)]))
        self.failed += cells
        self.faults.append(self._fault(item.key, m, failed))

    def begun(self, task: int, model: int) -> None:
        """A unit is in hand from now on."""
        self.store.begin(self.clips[task], self.models[model])

    def close(self) -> None:
        """Nothing is in hand: however the work ended, the process is alive."""
        with suppress(OutputError):  # has been said already
            self.store.put_back()

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
            tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        """Labels that are no classes, which is no fault where they are not what is explained."""
        for k in self.known if self.job.settings.target == "predicted" else ():
            unknown = sum(not _is_class(label, k.labels) for label in self._labels)
            if unknown:
                whose = "the model's classes" if len(self.known) == 1 else f"the classes of {k.name}"
                yield (
                    f"{unknown} of {len(self._labels)} labels are none of {whose}: no accuracy for those, and"
                    " the maps explain the model's own classes"
                )


def _is_class(label: str, labels: Sequence[str] | None) -> bool:
    try:
        class_index(label, len(labels or ()) or sys.maxsize, labels)
    except TargetError:
        return False
    return True


def _facts(item: Item) -> dict[str, Any]:
    path = item.path and os.path.abspath(item.path)  # a report may be asked for from elsewhere
    facts: dict[str, Any] = {"label": item.label, "path": path, "start": item.start, "end": item.end}
    facts |= {"digest": content(item), "truth": evidence(item)}
    return {"spectrum": item.spectrum, **{k: v for k, v in facts.items() if v is not None}}


def _may_know(item: Item) -> bool:
    """Whether the evidence may be known; of a clip that is made when it is read, only reading tells."""
    sources = (item.truth, item.boxes, item.masks, item.make)
    return any(source is not None for source in sources)
