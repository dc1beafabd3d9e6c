"""The provenance that every method writes, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from jaxtyping import Float
from torch import Tensor

from tubelens.capture import Capture
from tubelens.explanation import Provenance
from tubelens.model import TorchModel
from tubelens.target import Target, describe, label_of, probabilities

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
    model: TorchModel, scores: Float[Tensor, "b k"], n: int = PREDICTED
) -> tuple[tuple[str, float], ...]:
    """The `n` strongest classes by mean probability over the batch: (label, probability)."""
    p = probabilities(scores.detach(), model.output).mean(dim=0)
    top = p.topk(min(n, p.numel()))
    indices: Sequence[int] = top.indices.tolist()
    return tuple((label_of(i, model.labels), float(v)) for i, v in zip(indices, top.values, strict=True))


class Recorder:
    """Writes the provenance of explanations read off one capture; what they share is done once."""

    def __init__(self, method: object, capture: Capture, seed: int | None = None) -> None:
        model, scores = capture.model, capture.scores.detach()
        self.labels = model.labels
        self.probs: list[float] = probabilities(scores, model.output)[0].tolist()
        self.shared = Provenance(
            method=repr(method),
            model=model.name,
            weights=model.weights,
            layer=capture.layer,
            label="",
            score=0.0,
            prob=0.0,
            predicted=predictions(model, scores),
            seed=seed,
            forwards=capture.forwards,
            backwards=capture.backwards,
            device=str(model.device),
            versions=dict(versions()),
        )

    def __call__(
        self, target: Target, score: float, seconds: float, facts: dict[str, float] | None = None
    ) -> Provenance:
        """The provenance of one target's explanation."""
        return replace(
            self.shared,
            label=describe(target, self.labels),
            score=score,
            prob=self.probs[target.classes[0]],
            seconds=seconds,
            facts=facts or {},
        )
