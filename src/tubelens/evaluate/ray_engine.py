"""The Ray engine: actors that each hold the models, on one machine or many; the store stays with the driver.

A clip is the unit of dispatch: an actor decodes it and runs all its models, methods and metrics. Nothing is
committed but by the driver, so an actor or a node that is lost costs the clips that it had in hand; they are
given to others. A clip on which several actors died is given up, as a failure.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from tubelens.errors import OptionError, TubelensError, WorkError
from tubelens.evaluate.decode import decoded, portable
from tubelens.evaluate.items import Item
from tubelens.evaluate.job import Job, Known, known
from tubelens.evaluate.local import Reading, feeds, finished
from tubelens.evaluate.work import Done, Failed, Task
from tubelens.zoo.extras import need

ATTEMPTS = 3
"""Actors that may die on a clip before it is given up."""
IN_HAND = 2
"""Clips that an actor has at once: it decodes one while its models are at work on the other."""
PATIENCE = 600.0
"""Seconds without any actor after which a cluster is taken to have no room for one."""
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is reported to anybody, and nothing warned of that is not the user's to mend."""


class Actor:
    """Models and a job, in a process of Ray's."""

    def load(self, sent: bytes, folder: str, paths: list[str]) -> list[Known]:
        """Make ready. Its own method and no constructor, so that what goes wrong comes back as it was."""
        if os.path.isdir(folder):  # relative paths mean there what they mean here
            os.chdir(folder)
        sys.path += [path for path in paths if path not in sys.path]
        warnings.simplefilter("ignore")
        job: Job = pickle.loads(sent)  # only now: what it holds may lie on these paths
        self.job, self.lock = job, threading.Lock()
        torch.set_num_threads(job.settings.threads)
        self.models = [network.load() for network in job.networks]
        return [known(n, m, job.settings) for n, m in zip(job.networks, self.models, strict=True)]

    def work(self, task: Task) -> list[Done]:
        """All units of a clip. Calls overlap in decoding alone."""
        reading: Reading = {}
        for feed in feeds(self.job, self.models, task):
            future = reading[feed] = Future()
            try:
                future.set_result(decoded(task.item, feed))
            except Exception as error:  # whatever a generator or a codec raises
                future.set_exception(error)
        with self.lock:
            torch.set_num_threads(self.job.settings.threads)  # each thread of the actor has its own
            return list(finished(self.job, self.models, task, reading))


@dataclass(eq=False)
class Slot:
    """An actor and the clips that it has in hand; one that may have killed another is given alone."""

    actor: Any
    tasks: dict[Any, Task] = field(default_factory=dict)
    alone: bool = False

    @property
    def free(self) -> bool:
        """Whether it takes another clip."""
        return not self.alone and len(self.tasks) < IN_HAND


class OnRay:
    """A pool of actors.

    Args:
        job: what is run.
        address: of a cluster; None: the one that is there, else one on this machine.
        slots: actors; None: one a GPU where the models are on GPUs, else one a CPU.

    Raises:
        OptionError: Ray is not installed, or no cluster is there.
    """

    def __init__(self, job: Job, address: str | None = None, slots: int | None = None) -> None:
        if slots is not None and slots < 1:
            raise OptionError(f"slots must be at least 1, not {slots}")
        os.environ |= {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
        self._ray = need("ray", "ray", "the engine ray")
        self._job = job
        self._slots: list[Slot] = []
        self._loading: dict[Any, Any] = {}
        self._found: list[Known] | None = None
        self._died: dict[int, int] = {}
        self._again: deque[Task] = deque()
        self._started = not self._ray.is_initialized()
        try:
            if self._started:
                self._connect(address)
            gpus = "cuda" in job.settings.device
            self._sent = self._put(job)
            options = {"num_gpus": 1} if gpus else {"num_cpus": job.settings.threads}
            made = self._ray.remote(Actor)
            self._made = made.options(
                max_restarts=0, max_concurrency=IN_HAND, scheduling_strategy="SPREAD", **options
            )
            for _ in range(slots or self._room(gpus)):
                self._start()
        except BaseException:
            self.close()
            raise

    # ── actors ───────────────────────────────────────────────────────────────────────────────────────────

    def _connect(self, address: str | None) -> None:
        options = {} if address else {"include_dashboard": False}
        try:
            with _quiet():
                self._ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise OptionError(f"no Ray cluster at {address or 'this machine'}: {said}") from error

    def _room(self, gpus: bool) -> int:
        there = self._ray.cluster_resources()
        if gpus and not there.get("GPU"):
            raise OptionError("this Ray cluster has no GPU: use --device cpu")
        return max(1, int(there["GPU"] if gpus else there.get("CPU", 1) // self._job.settings.threads))

    def _put(self, job: Job) -> Any:
        """The job in Ray's store: models that were given as objects go with it."""
        try:
            return self._ray.put(self._ray.cloudpickle.dumps(job))
        except Exception as error:  # whatever cannot be pickled
            said = " ".join(str(error).split())[:150]
            raise OptionError(
                f"a model, method or metric cannot be sent to other processes ({said}): give it by name, as"
                " in --model path.py:factory"
            ) from error

    def _start(self) -> None:
        with _quiet():
            actor = self._made.remote()
            paths = [path for path in sys.path if path]
            self._loading[actor.load.remote(self._sent, os.getcwd(), paths)] = actor

    @property
    def known(self) -> list[Known]:
        """What the models are, as the first actor says that is ready."""
        while self._found is None:
            self._next()
        return self._found

    def _admit(self, ready: Any) -> None:
        """An actor has loaded its models, or failed to."""
        actor, errors = self._loading.pop(ready), self._ray.exceptions
        try:
            found: list[Known] = self._ray.get(ready)
        except errors.RayTaskError as error:
            raise _own(error, "an actor could not load the models") from error
        except _deaths(errors):
            self._start()  # waits for room, where its node is gone
            return
        if self._found is None:
            self._found = found
        for mine, other in zip(self._found, found, strict=True):
            if mine.facts["hash"] != other.facts["hash"]:
                raise WorkError(f"{mine.name}: the machines of this cluster have different weights for it")
        self._slots.append(Slot(actor))

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────

    def results(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """What comes of the tasks, as it comes; each actor has few in hand, which bounds the memory."""
        queue = iter(tasks)
        drained = False
        while True:
            while (slot := self._free()) is not None:
                suspect = bool(self._again)
                task = self._again.popleft() if suspect else next(queue, None)
                if task is None:
                    drained = True
                    break
                slot.alone = suspect
                sent = replace(task, item=self._sendable(task))
                slot.tasks[slot.actor.work.remote(sent)] = task
            if drained and not self._again and not any(slot.tasks for slot in self._slots):
                return
            yield from self._next()

    def _sendable(self, task: Task) -> Item:
        """A clip that is yet to be made is made here where other machines may lack the function."""
        make = task.item.make
        if make is None or getattr(make, "func", make).__module__.startswith("tubelens."):
            return portable(task.item)
        names = {self.known[todo.model].facts["network"] for todo in task.todos}
        items = {name: portable(make(name)) for name in sorted(names)}
        return replace(portable(task.item), make=partial(_ready, items))

    def _free(self) -> Slot | None:
        """An actor for the next clip; for one that may have killed another, one with nothing in hand."""
        if self._again:
            return next((slot for slot in self._slots if not slot.tasks), None)
        free = [slot for slot in self._slots if slot.free]
        return min(free, key=lambda slot: len(slot.tasks), default=None)

    def _next(self) -> list[Done]:
        """Wait until an actor is ready or done."""
        ray = self._ray
        working = {ref: slot for slot in self._slots for ref in slot.tasks}
        patience = None if self._slots else PATIENCE
        ready, _ = ray.wait([*working, *self._loading], num_returns=1, timeout=patience)
        if not ready:
            raise WorkError(
                f"no actor could be started in {PATIENCE / 60:.0f} minutes: has the cluster room?"
            )
        ref = ready[0]
        if ref in self._loading:
            self._admit(ref)
            return []
        slot = working[ref]
        try:
            found: list[Done] = ray.get(ref)
        except ray.exceptions.RayTaskError as error:  # first: it may be one of the others as well
            raise _own(error, f"an actor failed on {slot.tasks[ref].item.key}") from error
        except _deaths(ray.exceptions):
            return self._lost(slot)
        del slot.tasks[ref]
        slot.alone = False
        return found

    def _lost(self, slot: Slot) -> list[Done]:
        """Put another actor in the place of one that died, and its clips back; or give them up."""
        self._slots.remove(slot)
        self._start()
        given_up = []
        for task in slot.tasks.values():
            died = self._died[task.number] = self._died.get(task.number, 0) + 1
            if died < ATTEMPTS:
                self._again.append(task)
                continue
            reason = f"{task.item.key}: {ATTEMPTS} workers died on it"
            given_up.append(Done(task.number, None, failures=[Failed(None, None, 0, "crash", reason)]))
        return given_up

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        if not self._ray.is_initialized():
            return
        with _quiet():
            for actor in [*(slot.actor for slot in self._slots), *self._loading.values()]:
                self._ray.kill(actor)
            self._slots, self._loading = [], {}
            if self._started:
                self._ray.shutdown()


DEATHS = (
    *("RayActorError", "ObjectLostError", "OutOfMemoryError", "NodeDiedError", "WorkerCrashedError"),
    "LocalRayletDiedError",
)


def _deaths(errors: Any) -> tuple[type[Exception], ...]:
    """What Ray raises where an actor, its machine or what it returned is gone; some are of later versions."""
    return tuple(getattr(errors, name) for name in DEATHS if hasattr(errors, name))


def _ready(items: dict[str, Item], name: str) -> Item:
    return items[name]


def _own(error: Any, what: str) -> TubelensError:
    """The error that was raised in an actor, if it is one of ours, else one that says the same."""
    cause = error.cause
    if isinstance(cause, TubelensError):
        return type(cause)(str(cause))
    said = " ".join(str(cause).split())[-200:]
    return WorkError(f"{what}: {type(cause).__name__}: {said}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns of its own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
