"""What is explained: a number read off the scores of a clip.

A target maps the scores `(b, k)` of a batch to one number a clip, `(b,)`. It is told what the scores are,
because a network may give logits, softmax probabilities, or sigmoids (several labels at once).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import TargetError, nearest

ScoreKind = Literal["logits", "probs", "sigmoid"]
"""What a model returns: logits, softmax probabilities (sum 1), or one sigmoid a label."""
RATHER = " rather than "
"""Between the classes of a contrast."""


@runtime_checkable
class Target(Protocol):
    """A differentiable function of the scores; a frozen dataclass, so that its repr rebuilds it."""

    def __call__(self, scores: Float[Tensor, "b k"], kind: ScoreKind = "logits") -> Float[Tensor, "b"]:
        """The number that is explained, one a clip."""
        ...

    @property
    def classes(self) -> tuple[int, ...]:
        """The class indices it reads, the main one first."""
        ...


def probabilities(scores: Float[Tensor, "b k"], kind: ScoreKind) -> Float[Tensor, "b k"]:
    """Scores as probabilities in [0, 1]: softmax of logits, anything else unchanged."""
    return scores.softmax(dim=1) if kind == "logits" else scores


def logits(scores: Float[Tensor, "b k"], kind: ScoreKind) -> Float[Tensor, "b k"]:
    """Scores as logits: log p of softmax outputs (exact up to one constant a clip), log-odds of sigmoids."""
    if kind == "logits":
        return scores
    tiny = torch.finfo(scores.dtype).tiny
    return scores.clamp_min(tiny).log() if kind == "probs" else torch.logit(scores, eps=1e-7)


@dataclass(frozen=True)
class Logit:
    """The logit of class `index`: the default of activation and gradient methods."""

    index: int

    def __call__(self, scores: Float[Tensor, "b k"], kind: ScoreKind = "logits") -> Float[Tensor, "b"]:
        """Column `index` of the logits."""
        return logits(scores, kind)[:, _checked(self.index, scores)]

    @property
    def classes(self) -> tuple[int, ...]:
        """The class index."""
        return (self.index,)


@dataclass(frozen=True)
class Prob:
    """The probability of class `index`: the default of perturbation methods and of curves."""

    index: int

    def __call__(self, scores: Float[Tensor, "b k"], kind: ScoreKind = "logits") -> Float[Tensor, "b"]:
        """Column `index` of the probabilities."""
        return probabilities(scores, kind)[:, _checked(self.index, scores)]

    @property
    def classes(self) -> tuple[int, ...]:
        """The class index."""
        return (self.index,)


@dataclass(frozen=True)
class Contrast:
    """Logit `index` minus logit `other`: why this class rather than that one."""

    index: int
    other: int

    def __call__(self, scores: Float[Tensor, "b k"], kind: ScoreKind = "logits") -> Float[Tensor, "b"]:
        """Difference of the two logits; independent of the softmax's constant."""
        z = logits(scores, kind)
        return z[:, _checked(self.index, scores)] - z[:, _checked(self.other, scores)]

    @property
    def classes(self) -> tuple[int, ...]:
        """The class that is explained, then the class it is compared with."""
        return (self.index, self.other)


def evaluate(
    targets: Sequence[Target], scores: Float[Tensor, "b k"], kind: ScoreKind
) -> Float[Tensor, "n b"]:
    """Every target on every clip; many logits at once are one indexing."""
    if kind == "logits" and all(type(target) is Logit for target in targets):
        return scores.T[[_checked(target.classes[0], scores) for target in targets]]
    return torch.stack([target(scores, kind) for target in targets])


def _checked(index: int, scores: Tensor) -> int:
    k = scores.shape[1]
    if not 0 <= index < k:
        raise TargetError(f"class {index} is out of range: the model has {k} classes, 0 to {k - 1}")
    return index


def index_of(wanted: Any) -> Any:
    """A class index of numpy or torch as an int; anything else as it is."""
    try:
        return wanted if isinstance(wanted, str) else operator.index(wanted)
    except TypeError:
        return wanted


def class_index(wanted: int | str, classes: int, labels: Sequence[str] | None) -> int:
    """The index of a class given as an index, a number in a string, or a label (case and `_`/space ignored).

    Raises:
        TargetError: index out of range, unknown label (the nearest are named), or a label shared by two
            classes.
    """
    if isinstance(wanted, str) and labels:
        key = _plain(wanted)
        hits = [i for i, name in enumerate(labels) if _plain(name) == key]
        if len(hits) == 1:
            return hits[0]
        if len(hits) > 1:
            raise TargetError(f"label {wanted!r} names classes {hits}: give the index instead")
    try:
        index = int(wanted)
    except ValueError:
        if labels:
            near = (
                nearest(str(wanted), labels) or f" (there are {len(labels)}, such as {', '.join(labels[:3])})"
            )
            raise TargetError(f"unknown label {wanted!r}{near}") from None
        raise TargetError(f"unknown label {wanted!r}: this model has no labels, give a class index") from None
    if not 0 <= index < classes:
        raise TargetError(
            f"class {index} is out of range: the model has {classes} classes, 0 to {classes - 1}"
        )
    return index


def _plain(label: str) -> str:
    return " ".join(label.lower().replace("_", " ").split())


def label_of(index: int, labels: Sequence[str] | None) -> str:
    """The class's label, or `class N` where the model has none."""
    return labels[index] if labels is not None and index < len(labels) else f"class {index}"


def describe(target: Target, labels: Sequence[str] | None) -> str:
    """A short caption: the label, or `a rather than b` for a contrast."""
    return RATHER.join(label_of(i, labels) for i in target.classes)


def begins(described: str, label: str) -> bool:
    """Whether what `describe` said, with or without the name of a band after it, begins with this class."""
    return described == label or described.startswith((label + RATHER, f"{label} · "))
