"""Runs for tests, made through the store as an evaluation would make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tubelens as tl
from tests.videos import write_video
from tubelens.explanation import Explanation, Provenance
from tubelens.layout import Grid
from tubelens.store.cells import Cell, Failure, Prediction, Unit
from tubelens.store.runs import RunStore
from tubelens.target import Prob

MODELS = (("net RGB", {"network": "net", "trained": "RGB"}),)
METRICS = (
    ("insertion", {"higher_is_better": True, "kind": "curve"}),
    ("deletion", {"higher_is_better": False, "kind": "curve"}),
)
METHODS = ("gradcam", "rise", "sidu")
Value = Callable[[int, str, str, str, int], float | None]
"""Clip, model, method, metric, seed -> the value; None: no such cell."""


def usual(clip: int, model: str, method: str, metric: str, seed: int) -> float:
    """Rise is best at both, and nothing is even."""
    skill = {"gradcam": 0.5, "rise": 0.6, "sidu": 0.3}.get(method, 0.4)
    noise = np.random.default_rng([clip, len(method), len(metric), seed]).normal(0, 0.05)
    return float(skill + noise if metric == "insertion" else 1 - skill + noise)


def make(
    path: Path,
    value: Value = usual,
    *,
    clips: int = 12,
    labels: Sequence[str] = ("run", "walk"),
    spectra: Sequence[str] = ("RGB",),
    models: Iterable[tuple[str, dict[str, Any]]] = MODELS,
    methods: Sequence[str] = METHODS,
    metrics: Sequence[tuple[str, dict[str, Any]]] = METRICS,
    seeds: Sequence[int] = (0,),
    anchors: Callable[[int, str, str], Mapping[str, float]] = lambda clip, method, metric: {},
    detail: Callable[[int, str], dict[str, Any]] = lambda clip, metric: {},
    right: Callable[[int, str], bool] = lambda clip, model: True,
    failures: Sequence[tuple[int, int, Failure]] = (),
    names: Callable[[int], str] = lambda i: f"clip{i:02d}.mp4",
    maps: Callable[[int], Explanation] | None = None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A run in the folder `path`."""
    with RunStore.write(path, settings or {"frames": 8}) as store:
        clip_ids = [
            store.id(
                "clips",
                names(i),
                {"label": labels[i % len(labels)], "spectrum": spectra[i // len(labels) % len(spectra)]},
            )
            for i in range(clips)
        ]
        model_ids = [(store.id("models", name, facts), name) for name, facts in models]
        method_ids = [(store.id("methods", name, {}), name) for name in methods]
        metric_ids = [(store.id("metrics", name, facts), name, facts) for name, facts in metrics]
        for i, clip in enumerate(clip_ids):
            for model, model_name in model_ids:
                cells = []
                for method, method_name in method_ids:
                    for metric, metric_name, facts in metric_ids:
                        for seed in seeds:
                            found = value(i, model_name, method_name, metric_name, seed)
                            if found is None:
                                continue
                            curve = None
                            if facts.get("kind") == "curve":
                                x = np.linspace(0, 1, 5)
                                curve = (x.tolist(), (found + 0 * x).tolist())
                            cells.append(
                                Cell(
                                    method,
                                    metric,
                                    seed,
                                    found,
                                    anchors=dict(anchors(i, method_name, metric_name)),
                                    curve=curve,
                                    forwards=10.0,
                                    detail=detail(i, metric_name),
                                )
                            )
                label = i % len(labels)
                said = label if right(i, model_name) else (label + 1) % max(2, len(labels))
                kept = [(m, 0, maps(i)) for m, _ in method_ids] if maps else []
                store.commit(Unit(clip, model, cells, kept, Prediction(label, said, 0.8)))
        for clip, model, failure in failures:
            store.commit(Unit(clip, model, failures=[failure]))
    return path


def explained(folder: Path, number: int) -> Explanation:
    """A grey video of 8 frames and a map of it whose only hot cell is at the top left."""
    file = folder / f"clip{number:02d}.mp4"
    if not file.exists():
        write_video(file, [np.full((48, 64, 3), 90, np.uint8)] * 8)
    clip = tl.read_clip(file, frames=8, size=(48, 64))
    values = torch.zeros(1, 2, 2)
    values[0, 0, 0] = 1.0
    grid = Grid(values, (3.5,), (11.5, 35.5), (15.5, 47.5), (0, 8))
    record = Provenance("GradCAM()", "net", "random", None, "run", 0.5, 0.5, (("run", 0.5),))
    return Explanation((grid,), (8, 48, 64), clip.source, Prob(0), record)
