"""The test bench: any method on every planted task, beside maps that look at no network.

    bench(["tubes", "rise(n=500)", "mine.py:Mine"], ["dir", "order"], clips=12).text()

Clips come from fresh seeds and count only if the network is known to look at their evidence (`verify`); the
others are excluded and counted. One explanation is one piece of work, so that several processes share them
evenly, and its scores are one line of a file, so that an interrupted table goes on where it was.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

import torch

from tubelens.api import explain
from tubelens.errors import OptionError, OutputError, TubelensError, WorkError, nearest
from tubelens.evaluate import bench_tasks as columns
from tubelens.evaluate.bench_table import RANDOM_WEIGHTS, Table
from tubelens.evaluate.bench_tasks import ANCHORS, PAIR, TASKS, WHITEBOX
from tubelens.evaluate.verify import class_of, verify
from tubelens.methods import method
from tubelens.running import Run

FIRST = 5_000_000
"""Clip seeds from here on chose nothing: no network, no method and no default was made with them."""
APART = 10_000
"""Clips that one seed of the bench has to itself."""
PATIENCE = 5
"""Of so many clips for each that is wanted, enough must be kept."""
RUN = Run(batch=8, precision="fp32", steady=True)
Record = dict[str, Any]
"""A line of the file: what was asked (`KEYS`), and what came out."""
KEYS = ("kind", "task", "seed", "network", "method", "randomised")
BEGINS = '{"kind": "'
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def bench(
    methods: Sequence[str] | Mapping[str, str],
    tasks: Sequence[str] = TASKS,
    clips: int = 12,
    seed: int = 0,
    *,
    randomised: bool = False,
    networks: int | None = None,
    jobs: int = 1,
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """Scores of methods on planted tasks.

    Args:
        methods: as `tubelens.methods.method` takes them: names with options, `module:Class`, `path.py:Class`;
            or names of rows, and the method of each.
        tasks: of `TASKS`.
        clips: verified clips a task.
        seed: of the clips; each has clips of its own.
        randomised: every method also on the same networks with random weights.
        networks: seed of networks that are trained where they are not there yet; None: those in the package.
        jobs: processes; each computes with one thread where there are several.
        keep: file of results, one JSON line each. What it holds is not computed again, unless the method is
            written differently or the network has other weights.
        progress: told what is done.

    Raises:
        OptionError: an unknown method or task, a number that means nothing, a file of something else.
        WorkError: a process was killed; with `keep`, the same call goes on.
        OutputError: the file cannot be written.
    """
    rows = dict(methods) if isinstance(methods, Mapping) else {written: written for written in methods}
    tasks = tuple(dict.fromkeys(tasks))
    _check(rows, tasks, clips, seed, jobs)
    tell = progress or (lambda what, done, total: None)
    with _Desk.open(keep, jobs, networks, tell) as desk:
        known = {task: columns.fingerprint(task, networks, tell) for task in tasks}
        kept, checks = {}, {}
        for group in _groups(tasks):
            chosen, tried = _select(group, known, FIRST + seed * APART, clips, desk)
            for task in group:
                kept[task] = chosen
                checks[task] = [desk.done[_check_of(task, at, known[task])] for at in tried]
        works = {
            (row, task): [
                (kind, task, at, known[task] if kind == "map" else "", written, random) for at in kept[task]
            ]
            for task in tasks
            for row, kind, written, random in _rows(rows, randomised and task != WHITEBOX)
        }
        desk.do("explaining", _explained, [work for some in works.values() for work in some])
        cells = {where: [desk.done[work] for work in some] for where, some in works.items()}
    return Table(tuple(rows), tasks, cells, checks)


def _rows(rows: Mapping[str, str], randomised: bool) -> Iterator[tuple[str, str, str, bool]]:
    """Name, kind, method, and whether on random weights."""
    yield from ((name, "map", written, False) for name, written in rows.items())
    if randomised:
        yield from ((name + RANDOM_WEIGHTS, "map", written, True) for name, written in rows.items())
    yield from ((name, "anchor", name, False) for name in ANCHORS)


def _check(rows: Mapping[str, str], tasks: Sequence[str], clips: int, seed: int, jobs: int) -> None:
    for name, written in rows.items():
        method(written)
        if name in ANCHORS:
            raise OptionError(f"a row cannot be called {name!r}: that is what an anchor is called")
    for task in tasks:
        if task not in TASKS:
            raise OptionError(f"unknown task {task!r}{nearest(task, TASKS)}: one of {', '.join(TASKS)}")
    if not rows or not tasks:
        raise OptionError("a bench needs a method and a task")
    if clips < 1 or jobs < 1 or seed < 0:
        raise OptionError(f"needs clips >= 1, jobs >= 1 and seed >= 0, not {clips}, {jobs} and {seed}")
    if clips * PATIENCE > APART:
        raise OptionError(f"at most {APART // PATIENCE} clips a task, not {clips}")


# ── which clips ──────────────────────────────────────────────────────────────────────────────────────────

Work = tuple[str, str, int, str, str, bool]
"""The values of `KEYS`."""


def _groups(tasks: Sequence[str]) -> list[tuple[str, ...]]:
    """Tasks that share their clips: the pair, where both are asked for."""
    pair = tuple(task for task in PAIR if task in tasks)
    return [*((task,) for task in tasks if task not in pair), *([pair] if pair else [])]


def _select(
    group: tuple[str, ...], known: Mapping[str, str], first: int, clips: int, desk: _Desk
) -> tuple[list[int], range]:
    """The first seeds that every network of the group is verified on, and all that were tried for them."""
    kept: list[int] = []
    at, last = first, first + clips * PATIENCE
    while len(kept) < clips and at < last:
        seeds = range(at, min(last, at + clips - len(kept)))
        works = {(task, i): _check_of(task, i, known[task]) for task in group for i in seeds}
        desk.do(f"verifying {' and '.join(group)}", _verified, list(works.values()))
        kept += [i for i in seeds if all(desk.done[works[task, i]]["reason"] is None for task in group)]
        at = seeds.stop
    return kept, range(first, at)


def _check_of(task: str, seed: int, network: str) -> Work:
    return ("check", task, seed, network, "", False)


# ── one piece of work ────────────────────────────────────────────────────────────────────────────────────


def _verified(work: Work, networks: int | None) -> Record:
    _, task, seed, *_ = work
    planted = columns.drawn(task, seed)
    check = verify(columns.network(task, planted, networks), planted, RUN)
    return dict(zip(KEYS, work, strict=True)) | asdict(check) | {"reason": check.reason}


def _explained(work: Work, networks: int | None) -> Record:
    """Scores of one map of one clip; where the method failed, why."""
    kind, task, seed, _, written, random = work
    record: Record = dict(zip(KEYS, work, strict=True))
    planted = columns.drawn(task, seed)
    try:
        if kind == "anchor":
            saliency, cost = columns.anchor(written, planted, seed), (0.0, 0.0, 0.0)
        else:
            model = columns.network(task, planted, networks)
            wanted = columns.target(task, class_of(model, planted))
            with columns.weights(model, random, seed) as used:
                why = explain(used, planted.clip(), method(written), wanted, run=RUN)
            made = why.provenance
            record |= columns.band_share(model, planted, why, RUN)
            saliency, cost = why.saliency.cpu(), (made.forwards, made.backwards, made.seconds)
        record |= columns.measured(saliency, planted.known())
        if task in PAIR:
            record |= dict(zip(("object", "mark"), columns.masses(saliency, seed), strict=True))
        return record | dict(zip(("forwards", "backwards", "seconds"), cost, strict=True))
    except TubelensError as error:
        return record | {"error": str(error)}
    except Exception as error:  # whatever someone's method does: the others go on
        return record | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


# ── doing and keeping it ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Desk:
    """Where work is done, and what came of it.

    Attributes:
        done: work -> record.
        file: that new records are appended to.
        jobs: processes; 1: this one.
        networks: see `bench`.
        tell: likewise.
    """

    file: TextIO | None
    jobs: int
    networks: int | None
    tell: Progress
    done: dict[Work, Record]
    pool: ProcessPoolExecutor | None = None

    @classmethod
    @contextmanager
    def open(
        cls, keep: str | Path | None, jobs: int, networks: int | None, tell: Progress
    ) -> Iterator[_Desk]:
        """A desk with what the file holds."""
        done, file = ({}, None) if keep is None else _opened(Path(keep))
        desk = cls(file, jobs, networks, tell, done)
        try:
            yield desk
        finally:
            if desk.pool is not None:
                desk.pool.shutdown(cancel_futures=True)
            if file is not None:
                file.close()

    def do(self, what: str, how: Callable[..., Record], works: Sequence[Work]) -> None:
        """What is not done yet; each record is written as it comes.

        Raises:
            WorkError: a process was killed.
            OutputError: the file cannot be written.
        """
        missing = [work for work in dict.fromkeys(works) if work not in self.done]
        before = len(works) - len(missing)
        for n, record in enumerate(self._results(partial(how, networks=self.networks), missing), 1):
            self.done[tuple(record[key] for key in KEYS)] = record
            if self.file is not None and "error" not in record:  # what failed is tried again another time
                try:
                    self.file.write(json.dumps(record) + "\n")
                    self.file.flush()
                except OSError as error:
                    raise OutputError(f"{self.file.name}: cannot be written: {error.strerror}") from error
            self.tell(what, before + n, len(works))

    def _results(self, how: Callable[[Work], Record], works: Sequence[Work]) -> Iterator[Record]:
        if self.jobs == 1 or len(works) < self.jobs:
            yield from map(how, works)
            return
        if self.pool is None:
            self.pool = ProcessPoolExecutor(self.jobs, get_context("spawn"), _begin)
        try:
            for future in as_completed([self.pool.submit(how, work) for work in works]):
                yield future.result()
        except BrokenProcessPool as error:
            raise WorkError(
                "a process of the bench was killed, perhaps for want of memory: use fewer jobs; with a file"
                " to keep results in, the same command goes on"
            ) from error


def _begin() -> None:
    """What a process does first: one thread; an interruption is the parent's to handle, its end is ours."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # killed: nobody is left to tell

    Thread(target=follow, daemon=True).start()


def _opened(path: Path) -> tuple[dict[Work, Record], TextIO]:
    """What a file of results holds, and the file, to append to.

    A last line that a kill cut short is dropped, and its work is done again.

    Raises:
        OptionError: a file of something else; it is left as it is.
        OutputError: it cannot be opened.
    """
    done: dict[Work, Record] = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8", errors="replace", newline="\n")
        file.seek(0)
        whole, newline, rest = file.read().rpartition("\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be opened: {error.strerror}") from error
    line = ""
    try:
        for line in filter(None, whole.split("\n")):
            record = json.loads(line)
            done[tuple(record[key] for key in KEYS)] = record
        line = rest
        if not rest.startswith(BEGINS[: len(rest)]):
            raise ValueError(rest)
    except (ValueError, KeyError, TypeError) as error:
        file.close()
        raise OptionError(
            f"{path}: holds no results of a bench ({line[:40]!r}): give another name"
        ) from error
    file.truncate(len((whole + newline).encode()))
    return done, file
