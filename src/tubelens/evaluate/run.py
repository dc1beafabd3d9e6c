"""`tubelens.evaluate`: models x methods x metrics x clips, committed clip by clip, to be continued."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from tubelens.errors import InputError, OptionError
from tubelens.evaluate.decode import Feed, decoded, default_workers
from tubelens.evaluate.items import Manifest, check_labels
from tubelens.evaluate.job import Job, Known, Network, Settings, TargetRule, asked
from tubelens.evaluate.keeper import Keeper
from tubelens.evaluate.local import Local
from tubelens.evaluate.manifest import VIDEOS, read_manifest
from tubelens.evaluate.manifest_csv import Missing
from tubelens.evaluate.planted_models import own_networks
from tubelens.evaluate.summary import Evaluation
from tubelens.evaluate.work import Done, Task
from tubelens.model import BlackBox, TorchModel
from tubelens.running import Precision, Progress
from tubelens.store import RunStore
from tubelens.store.cells import FILE

Engine = Literal["local", "ray"]


class Runs(Protocol):
    """An engine."""

    @property
    def known(self) -> list[Known]:
        """What the models are, in the order of the job."""
        ...

    def results(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """What comes of the tasks, in any order."""
        ...

    def close(self) -> None:
        """End whatever it started."""
        ...


def evaluate(
    manifest: Any,
    model: Any = None,
    method: Any = "tubes",
    metric: Any = (),
    out: str | Path = "run",
    *,
    weights: str | None = None,
    target: TargetRule = "predicted",
    seeds: Sequence[int] = (0,),
    sampling: str | None = None,
    frames: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    missing: Missing = "error",
    precision: Precision = "fp32",
    batch: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    engine: Engine = "local",
    workers: int | None = None,
    address: str | None = None,
    slots: int | None = None,
    skip_failed: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Run methods and metrics over a data set, into a run that can be continued.

    A clip and a model are the unit: their maps and scores are committed together. Whatever ends the process,
    the same call goes on with the units that are missing; they give the same bits as if nothing had happened.
    More methods, metrics, models, seeds or clips can be asked for later: what is there is not done again.

    Args:
        manifest: a CSV, a folder for every class, `planted:TASK`, a function that yields clips, or a list
            (`read_manifest`).
        model: a name, a model, or a `Network` that says how it is loaded; several of them; or what the run
            shall call them -> models. None: those that learned the clips of `planted:TASK`; else the bundled
            network.
        method: one or several, by name or as objects.
        metric: likewise; none: only maps are made.
        out: the run, a folder.
        weights: of models given by name.
        target: what is explained: the strongest class of each clip, or the label of the manifest.
        seeds: each gives maps of its own by methods that draw.
        sampling: which frames make a clip, where that is not the network's own recipe.
        frames: clip length, likewise.
        stride: frames from one sampled frame to the next, likewise.
        limit: only so many clips, the first ones.
        missing: what to do about files that are not there.
        precision: of scoring; see `Run`. The default gives the same bits on the same machine.
        batch: clips in one forward, 8 unless told.
        threads: of the CPU; by default those of the run so far. Sums depend on them.
        device: of models given by name.
        engine: `local`, or `ray` for several machines (extra `ray`).
        workers: processes that decode ahead; 0: none, a thread of this process.
        address: of a Ray cluster; default: one on this machine.
        slots: Ray actors, each with its own copies of the models; default: as many as there are GPUs or CPUs.
        skip_failed: leave alone what failed before; by default it is tried again.
        progress: told (done, total) in units as they are committed.

    Returns:
        How much was done, what failed, and where the run is. What fails is recorded with its reason, and the
        rest goes on.

    Raises:
        InputError: a manifest, model, method or metric that cannot be meant; a run that was made with other
            settings, by another model of the same name, or that is being written now.
        OutputError: the run cannot be written (no permission, disk full); what was committed is kept.
    """
    began = time.perf_counter()
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, not {limit}")
    if workers is not None and workers < 0:
        raise OptionError(f"workers must be 0 or more, not {workers}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError("seeds must be one or more different numbers")
    if engine not in ("local", "ray"):
        raise OptionError(f"engine must be local or ray, not {engine!r}")
    networks = _networks(own_networks(manifest) if model is None else model, weights, device)
    job = Job(
        networks,
        tuple(asked("method", given, seeds) for given in _several(method)),
        tuple(asked("metric", given) for given in _several(metric)),
        Settings(
            target=target,
            sampling=sampling,
            frames=frames,
            stride=stride,
            precision=precision,
            batch=batch,
            threads=threads or _threads(out, 1 if engine == "ray" else torch.get_num_threads()),
            device=_device(networks),
        ),
    )
    opened = manifest if isinstance(manifest, Manifest) else read_manifest(manifest, missing)
    runs: Runs
    if engine == "ray":
        from tubelens.evaluate.ray_engine import OnRay

        runs = OnRay(job, address, slots)
    else:
        runs = Local(job, default_workers() if workers is None else workers)
    with closing(runs):
        known = runs.known
        _check(job, known, opened)
        if isinstance(runs, Local):
            _look(job, runs, opened)
        with (
            RunStore.write(out, job.settings.shared) as store,
            closing(Keeper(store, job, known, opened, limit, skip_failed)) as keeper,
        ):
            store.told(manifest=str(opened.source))
            total = len(keeper.clips) * len(networks)
            if isinstance(runs, Local):  # actors may die without it
                runs.begun = keeper.begun
            with closing(runs.results(keeper.tasks())) as results:  # type: ignore[type-var]
                for done in results:
                    keeper.keep(done)
                    if progress is not None:
                        progress(keeper.units, total)
        if progress is not None:
            progress(total, total)
    return keeper.summary(time.perf_counter() - began)


# ── what is asked for ────────────────────────────────────────────────────────────────────────────────────


def _several(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _networks(model: Any, weights: str | None, device: str) -> tuple[Network, ...]:
    named = model.items() if isinstance(model, Mapping) else [("", m) for m in _several(model)]
    found = []
    for name, given in named:
        if isinstance(given, Network):
            found.append(given)
        elif isinstance(given, str):
            found.append(Network(model=given, weights=weights, name=name, device=device))
        elif isinstance(given, TorchModel | BlackBox):
            found.append(Network(model=given, name=name))
        else:
            raise OptionError(
                "a model is a name, or comes from load_model, wrap or wrap_scorer, not"
                f" {type(given).__name__}"
            )
    return tuple(found)


def _device(networks: Sequence[Network]) -> str:
    kinds = {
        torch.device(n.device if isinstance(n.model, str) else getattr(n.model, "device", "cpu")).type
        for n in networks
    }
    return "+".join(sorted(kinds))


def _threads(out: str | Path, default: int) -> int:
    """Those of the run so far."""
    if not os.path.isfile(Path(out) / FILE):
        return default
    try:
        with RunStore.read(out) as store:
            return int(store.meta["settings"].get("threads", default))
    except InputError:  # a run that was killed while it was made; of others, writing says what is wrong
        return default


def _look(job: Job, runs: Local, manifest: Manifest) -> None:
    """Read the first clip, before anything is written: a band that is missing, or values of which nobody says
    how they are scaled, are most likely so in all. What is wrong with this file alone is found in its turn.

    Raises:
        OptionError: of a clip that is read from a file that is not just a video.
    """
    first = None if manifest.count is None else next(iter(manifest), None)  # generators may be dear
    if first is None or first.path is None or os.path.splitext(first.path)[1].lower() in VIDEOS:
        return
    for spec in dict.fromkeys(job.settings.spec(model) for model in runs.models):
        try:
            decoded(first, Feed(spec))
        except OptionError:
            raise
        except Exception:  # whatever is wrong with one file, or its boxes
            continue


def _check(job: Job, known: Sequence[Known], manifest: Manifest) -> None:
    names = [k.name for k in known]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"two models are called {name!r}: give each a name of its own")
    if job.settings.target == "label":
        for k in known:
            check_labels(manifest, k.labels)
