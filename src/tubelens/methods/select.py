"""Which features of a layer an activation map keeps.

A map of few features is easier to read, and answers "what do the strongest features say?". It is no longer
the whole decision: what is dropped was part of the logit, and many weak features together can outweigh the
strong ones, so global information is lost. Look at the full map first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError

By = Literal["weight", "activation", "contribution"]


@runtime_checkable
class Selection(Protocol):
    """A weight in [0, 1] for each feature."""

    def __call__(self, weights: Float[Tensor, "c"], activations: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
        """From the class weight and the mean activation of each feature."""
        ...


@dataclass(frozen=True)
class Strongest:
    """The `k` features of largest class weight, mean activation, or contribution (weight x activation)."""

    k: int
    by: By = "contribution"

    def __call__(self, weights: Float[Tensor, "c"], activations: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
        """1 for the k strongest, 0 for the others."""
        if self.k < 1:
            raise OptionError(f"Strongest needs k >= 1, got {self.k}")
        strength = _strength(self.by, weights, activations)
        kept = torch.zeros_like(strength)
        kept[strength.topk(min(self.k, len(strength))).indices] = 1.0
        return kept


@dataclass(frozen=True)
class AtLeast:
    """Features whose strength, scaled over the features to [0, 1], reaches `threshold`."""

    threshold: float
    by: By = "weight"

    def __call__(self, weights: Float[Tensor, "c"], activations: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
        """1 where the scaled strength is at least the threshold, else 0."""
        return (_unit(_strength(self.by, weights, activations)) >= self.threshold).to(weights)


@dataclass(frozen=True)
class Soft:
    """A sigmoid of the strength: `1 / (1 + exp(-slope (s - threshold)))`, s scaled to [0, 1]."""

    threshold: float
    slope: float = 20.0
    by: By = "weight"

    def __call__(self, weights: Float[Tensor, "c"], activations: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
        """Between 0 and 1 for every feature: a soft `AtLeast`."""
        s = _unit(_strength(self.by, weights, activations))
        return torch.sigmoid(self.slope * (s - self.threshold))


def _strength(by: By, weights: Tensor, activations: Tensor) -> Tensor:
    match by:
        case "weight":
            return weights
        case "activation":
            return activations
        case "contribution":
            return weights * activations
    raise OptionError(f"a selection goes by weight, activation or contribution, not {by!r}")


def _unit(strength: Tensor) -> Tensor:
    low, high = strength.min(), strength.max()
    return (strength - low) / (high - low).clamp_min(torch.finfo(strength.dtype).tiny)
