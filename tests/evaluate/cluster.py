"""A run on a Ray cluster of two nodes on this machine, one of which is killed; by itself, as a program.

    python -m tests.evaluate.cluster RUN CLIPS KIND

KIND is `node` (one node is killed), `actors` (every so often an actor) or `poison` (a clip kills its actor).
Prints how many clips were in hand of what died, and what the run says.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster

import tubelens as tl
from tests.evaluate.runs import LABELS, METHODS, METRICS, SIZE, Clips, Net
from tubelens.evaluate import ray_engine
from tubelens.evaluate.run import evaluate

QUICK = {
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}
DEADLY = 5


class Deadly(Net):
    """Ends its process on one clip."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = np.random.default_rng(DEADLY).random((*SIZE, 3)).astype(np.float32)
        if x.shape[2] == SIZE[0] and torch.equal(x[0].permute(1, 2, 3, 0), torch.from_numpy(first)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Slow(Net):
    """Takes its time, so that what is killed has work in hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return super().forward(x)


def main(run: Path, clips: int, kind: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": QUICK})
    second = cluster.add_node(num_cpus=1)
    lost: list[int] = []
    engines: list[ray_engine.OnRay] = []
    results, replace = ray_engine.OnRay.results, ray_engine.OnRay._lost

    def both(self: ray_engine.OnRay, tasks: Iterable[Any]) -> Iterator[Any]:
        engines.append(self)
        while len(self._slots) < 2:  # else one might have done it all before the other is there
            self._next()
        return results(self, tasks)

    def noted(self: ray_engine.OnRay, slot: Any) -> list[Any]:
        lost.append(len(slot.tasks))
        return replace(self, slot)

    def tick(done: int, total: int) -> None:
        if kind == "node" and done == 3:
            cluster.remove_node(second, allow_graceful=False)
        if kind == "actors" and done in (5, 15, 25) and engines[0]._slots:
            ray.kill(engines[0]._slots[-1].actor)

    ray_engine.OnRay.results = both  # type: ignore[method-assign]
    ray_engine.OnRay._lost = noted  # type: ignore[method-assign]
    net = Deadly() if kind == "poison" else Slow()
    network = tl.wrap(net.eval(), frames=SIZE[0], size=SIZE[1], labels=LABELS, name="net")
    try:
        found = evaluate(
            *(Clips(clips), network, METHODS, METRICS, run),
            engine="ray",
            address=cluster.address,
            threads=1,
            progress=tick,
        )
    finally:
        cluster.shutdown()
    print(f"in hand: {lost}")
    print(f"done {found.done}, failures {[str(f) for f in found.failures]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
