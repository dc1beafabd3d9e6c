"""What the tests of data-set runs share: a small network, clips that are made, a run as plain values."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

import tubelens as tl
from tubelens.evaluate.items import Item
from tubelens.evaluate.run import evaluate
from tubelens.evaluate.summary import Evaluation
from tubelens.metrics.complexity import Sparseness
from tubelens.metrics.curves import Deletion, Insertion
from tubelens.metrics.protocol import Score
from tubelens.store import RunStore
from tubelens.truth import Truth

LABELS = ("left", "middle", "right")
SIZE = (4, 12, 12)
LONGEST = 300


class Net(nn.Module):
    """Counts the clips it scores."""

    def __init__(self, pool: str = "mean", seed: int = 1) -> None:
        super().__init__()
        self.pool, self.seen = pool, 0
        self.body = nn.Sequential(nn.Conv3d(3, 6, 3, (1, 2, 2), padding=1), nn.ReLU())
        self.head = nn.Linear(6, 3)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        cells = self.body(x).flatten(2)
        return self.head(cells.mean(2) if self.pool == "mean" else cells.max(2).values)


def model(pool: str = "mean", seed: int = 1, name: str = "net") -> tl.TorchModel:
    return tl.wrap(Net(pool, seed).eval(), frames=SIZE[0], size=SIZE[1], labels=LABELS, name=name)


def item(number: int) -> Item:
    generator = np.random.default_rng(number)
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[1:3, 3:7, 4:9] = True
    return Item(
        f"clip{number}",
        array=generator.random((*SIZE, 3)).astype(np.float32),
        label=LABELS[number % 3],
        truth=Truth(mask) if number % 4 else None,
        spectrum="visible" if number % 2 else "ir",
    )


@dataclass(frozen=True)
class Clips:
    """A manifest of so many clips."""

    n: int
    __name__: ClassVar[str] = "clips"

    def __call__(self) -> Iterator[Item]:
        return (item(i) for i in range(self.n))


@dataclass(frozen=True)
class Energy:
    """Share of the positive map within the truth, and nothing else."""

    kind: ClassVar[str] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = True

    def __call__(self, explanation: Any, clip: Any = None, truth: Any = None) -> Score:
        positive = explanation.saliency.clamp_min(0)
        return Score(float(positive[truth.mask].sum() / positive.sum()), True, {"random": truth.volume})


@dataclass(frozen=True)
class Again:
    """A method metric: how much of the clip's halves' maps is in the first half."""

    kind: ClassVar[str] = "method"
    higher_is_better: ClassVar[bool | None] = None
    needs_truth: ClassVar[bool] = False

    def __call__(
        self, model: Any, clip: Any, method: Any, target: Any, run: Any, explanation: Any = None
    ) -> Score:
        found = method(model, clip, [target], run)[0].saliency.abs()
        return Score(float(found[:2].sum() / found.sum()), None, facts={"seen": float(found.mean())})


METHODS = ("gradcam", "tubes", "saliency", "rise(n=8)")
CURVES = (Insertion(steps=4), Deletion(steps=4))
METRICS = (*CURVES, Sparseness(), Energy(), Again())


def small(out: Path, n: int = 4, **options: Any) -> Evaluation:
    """A run over `n` clips in this process."""
    given = {"model": model(), "method": METHODS, "metric": METRICS, "workers": 0, "threads": 1}
    return evaluate(Clips(n), out=out, **(given | options))


def contents(run: Path) -> dict[str, list[Any]]:
    """All tables as values, without seconds and numbers of attempts; maps as their bytes."""
    with RunStore.read(run) as store:
        found: dict[str, list[Any]] = {"meta": [store.meta]}
        for table, key in (
            ("clips", "id"),
            ("models", "id"),
            ("methods", "id"),
            ("metrics", "id"),
            ("cells", "clip, model, method, metric, seed"),
            ("predictions", "clip, model"),
        ):
            found[table] = store._db.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()
        query = "SELECT clip, model, method, seed, data FROM maps ORDER BY clip, model, method, seed"
        found["maps"] = [(*row, *timeless(data)) for *row, data in store._db.execute(query)]
        query = "SELECT clip, model, method, metric, seed, kind, reason FROM failures ORDER BY 1, 2, 3, 4, 5"
        found["failures"] = store._db.execute(query).fetchall()
    return found


def cells(run: Path, *columns: str) -> set[tuple[Any, ...]]:
    """Named cells: (clip, model, method, metric, seed)."""
    with RunStore.read(run) as store:
        names = {t: {r.id: r.name for r in store.names(t)} for t in ("clips", "models", "methods", "metrics")}
        found = store.cells()
        return {
            (
                names["clips"][c],
                names["models"][m],
                names["methods"][k],
                names["metrics"][g].split(":")[-1],
                s,
            )
            for c, m, k, g, s in zip(
                *(found[n].tolist() for n in ("clip", "model", "method", "metric", "seed")), strict=True
            )
        }


def timeless(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A stored map: its header without the seconds, and its numbers."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    record = json.loads(header["__metadata__"].pop("explanation"))
    assert record["provenance"].pop("seconds") >= 0
    return {"record": record, **header}, data[8 + length :]


def forked(work: Callable[[], Any]) -> int:
    """Run in a child of this process, which has imported everything; gives its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which only wait here
        child = os.fork()
    if child:
        return child
    signal.alarm(LONGEST)  # whatever hangs ends
    code = 1
    try:
        torch.set_num_threads(1)  # threads do not survive a fork
        work()
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, negative the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> int:
    """End it at once, if it has not ended; its exit code."""
    os.kill(child, signal.SIGKILL)
    return ended(child)
