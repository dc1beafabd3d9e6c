"""From maps to explanations: the provenance that every method writes, in one place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.explanation import Explanation, Provenance, Scale
from tubelens.layout import Grid
from tubelens.model import Scorer
from tubelens.target import Target, describe, evaluate, label_of, probabilities
from tubelens.upsample import Align

PREDICTED = 5


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Versions of the libraries that an explanation depends on."""
    found = []
    for name in ("tubelens", "torch", "torchvision", "numpy", "av"):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "unknown"))
    return tuple(found)


def predictions(
    model: Scorer, scores: Float[Tensor, "b k"], n: int = PREDICTED
) -> tuple[tuple[str, float], ...]:
    """The `n` strongest classes by mean probability over the batch: (label, probability)."""
    p = probabilities(scores.detach(), model.output).mean(dim=0)
    top = p.topk(min(n, p.numel()))
    indices: Sequence[int] = top.indices.tolist()
    labels = getattr(model, "labels", None)
    return tuple((label_of(i, labels), float(v)) for i, v in zip(indices, top.values, strict=True))


@dataclass
class Recorder:
    """What is known of one run of a method on one clip; `write` turns its maps into explanations.

    Attributes:
        method: repr of it goes into the record.
        model: a network or a black box.
        scores: of the intact clip.
        layer, seed, precision, forwards, backwards, notes: see `Provenance`.
        start: `time.perf_counter()` when the work began.
    """

    method: object
    model: Scorer
    scores: Float[Tensor, "1 k"]
    layer: str | None = None
    seed: int | None = None
    precision: str = "fp32"
    forwards: float = 1
    backwards: float = 0
    notes: tuple[str, ...] = ()
    start: float = field(default_factory=time.perf_counter)

    def write(
        self,
        grids: Sequence[Grid | tuple[Grid, ...]],
        clip: Clip,
        targets: Sequence[Target],
        facts: Sequence[dict[str, float]] | None = None,
        align: Align = "centres",
        scale: Scale = "positive",
        by_band: Sequence[Sequence[tuple[str, Grid]]] | None = None,
    ) -> list[Explanation]:
        """One explanation a target.

        Args:
            grids: a grid a target (or a tuple of parts); maps are small and go to the CPU.
            clip: what was explained.
            targets: what about it.
            facts: numbers that the method reports, one dictionary a target.
            align: how drawings place the cells.
            scale: what drawings call cold and hot.
            by_band: where the bands were told apart, names and grids of each target's; they sum to its grid
                unless the method reduces bands otherwise (to the largest, say).
        """
        scores = self.scores.detach()
        values: list[float] = evaluate(targets, scores, self.model.output)[:, 0].tolist()
        probs: list[float] = probabilities(scores, self.model.output)[0].tolist()
        labels: Sequence[str] | None = getattr(self.model, "labels", None)
        shared: dict[str, Any] = {
            "method": repr(self.method),
            "model": getattr(self.model, "name", type(self.model).__name__),
            "weights": getattr(self.model, "weights", "as given"),
            "layer": self.layer,
            "predicted": predictions(self.model, scores),
            "seed": self.seed,
            "precision": self.precision,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "device": str(getattr(self.model, "device", torch.device("cpu"))),
            "notes": (*clip.source.notes, *self.notes),
            "seconds": time.perf_counter() - self.start,
        }
        return [
            Explanation(
                tuple(part.cpu() for part in (grid if isinstance(grid, tuple) else (grid,))),
                clip.size,
                clip.source,
                target,
                Provenance(
                    label=describe(target, labels),
                    score=value,
                    prob=probs[target.classes[0]],
                    versions=dict(versions()),
                    facts=facts[i] if facts else {},
                    **shared,
                ),
                align,
                scale,
                tuple((name, part.cpu()) for name, part in by_band[i]) if by_band else (),
            )
            for i, (grid, target, value) in enumerate(zip(grids, targets, values, strict=True))
        ]


def voxels(values: Float[Tensor, "t h w"]) -> Grid:
    """A map with one value a voxel of the clip, as a grid: each cell looks at its own pixel."""
    t, y, x = (tuple(float(i) for i in range(n)) for n in values.shape)
    return Grid(values.detach(), t, y, x, (0, values.shape[0]))
