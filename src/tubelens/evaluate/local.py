"""The local engine: clips are decoded ahead while the models compute, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

import torch

from tubelens.evaluate.decode import Decoders, Feed, Read
from tubelens.evaluate.job import Job, Known, known
from tubelens.evaluate.work import Done, Task, Unit, unread
from tubelens.model import Model

Reading = dict[Feed, Future[Read]]


class Local:
    """Everything in this process but decoding.

    Args:
        job: what is run.
        workers: decoders; see `Decoders`.

    Attributes:
        begun: told (task, model) before each unit, which the process may not survive.
    """

    begun: Callable[[int, int], None] | None = None

    def __init__(self, job: Job, workers: int) -> None:
        self.job, self.workers = job, workers
        self.models: list[Model] = [network.load() for network in job.networks]

    @property
    def known(self) -> list[Known]:
        """What the models are."""
        pairs = zip(self.job.networks, self.models, strict=True)
        return [known(network, model, self.job.settings) for network, model in pairs]

    def results(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """What comes of the tasks, in their order; the number of CPU threads is the run's meanwhile."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.job.settings.threads)
        try:
            with Decoders(self.workers) as decoders:
                waiting: deque[tuple[Task, Reading]] = deque()
                for task in tasks:
                    reading = {f: decoders.submit(task.item, f) for f in feeds(self.job, self.models, task)}
                    waiting.append((task, reading))
                    if len(waiting) > 2 * max(1, self.workers):  # that bounds the memory
                        yield from self._done(*waiting.popleft())
                while waiting:
                    yield from self._done(*waiting.popleft())
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Nothing is left running."""

    def _done(self, task: Task, reading: Reading) -> Iterator[Done]:
        yield from finished(self.job, self.models, task, reading, self.begun)


def feeds(job: Job, models: Sequence[Model], task: Task) -> list[Feed]:
    """What clips a task needs: one for all models that are fed alike."""
    return list(dict.fromkeys(_feed(job, models[todo.model], task) for todo in task.todos))


def _feed(job: Job, model: Model, task: Task) -> Feed:
    return Feed(job.settings.spec(model), "" if task.item.make is None else model.name)


def finished(
    job: Job,
    models: Sequence[Model],
    task: Task,
    reading: Reading,
    begun: Callable[[int, int], None] | None = None,
) -> Iterator[Done]:
    """Every unit of a task, given its clips as they become ready."""
    read: dict[Feed, Read] = {}
    errors: dict[Feed, Exception] = {}
    for feed, future in reading.items():
        try:
            read[feed] = future.result()
        except Exception as error:  # whatever a generator or a codec raises
            errors[feed] = error
    if not read:
        yield from unread(task, next(iter(errors.values())))
        return
    for todo in task.todos:
        model = models[todo.model]
        feed = _feed(job, model, task)
        if feed in errors:
            yield from unread(task, errors[feed], [todo.model])
            continue
        clip, truth = read[feed]
        if begun is not None:
            begun(task.number, todo.model)
        yield Unit(job, model, task.item.label, clip, truth).work(task.number, todo)
