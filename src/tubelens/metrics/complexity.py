"""How few voxels a map points at. Neither number says whether they are the right ones.

Both are read off the map at the clip's resolution, so that methods with grids of different size compare;
voxels that are NaN, because no crop looked there, count as zero. A random order of voxels is no reference
here, because neither depends on where values are: the anchor `random` is a map whose values are as many
different ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.explanation import Explanation
from tubelens.metrics.anchors import anchor_maps
from tubelens.metrics.protocol import Score
from tubelens.truth import Truth

Saliency = Float[Tensor, "T H W"]
ZERO = "the map is zero everywhere"


def gini(saliency: Saliency) -> float:
    """The Gini index of the absolute values, `1 - 2 sum_k c_k / sum(c) (n - k + 1/2) / n`, `c` increasing.

    Hurley & Rickard, "Comparing measures of sparsity" (IEEE Trans. Inf. Theory 2009), used for maps by
    Chalasani et al., "Concise explanations of neural networks using adversarial training" (ICML 2020).

    Returns:
        0 where all are equal, `1 - 1/n` where a single one of `n` is not zero; NaN for a map of zeros.
    """
    values = _absolute(saliency).sort().values
    total = float(values.sum())
    if total == 0:
        return float("nan")
    n = len(values)
    behind = n - torch.arange(1, n + 1, dtype=torch.double, device=values.device) + 0.5
    return 1 - 2 * float(values @ behind) / (total * n)


def complexity(saliency: Saliency) -> float:
    """Entropy in nats of the shares that the voxels have of the absolute values: `-sum_i p_i ln p_i`.

    Bhatt et al., "Evaluating and aggregating feature-based model explanations" (IJCAI 2020).

    Returns:
        0 where a single voxel has everything, `ln n` where all `n` have the same; NaN for a map of zeros.
    """
    values = _absolute(saliency)
    total = float(values.sum())
    if total == 0:
        return float("nan")
    return float(torch.special.entr(values / total).sum())


@dataclass(frozen=True)
class Sparseness:
    """`gini` of the upsampled map."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN for a map of zeros.

        Raises:
            OptionError: a clip or a truth of another size than the map.
        """
        return _score(gini, explanation, clip, truth, self.higher_is_better)


@dataclass(frozen=True)
class Complexity:
    """`complexity` of the upsampled map; the fact `share` is that of the largest possible, `ln n`."""

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score beside its anchors; NaN for a map of zeros.

        Raises:
            OptionError: a clip or a truth of another size than the map.
        """
        largest = math.log(math.prod(explanation.size)) or 1.0
        return _score(complexity, explanation, clip, truth, self.higher_is_better, largest)


def _score(
    measure: Callable[[Saliency], float],
    explanation: Explanation,
    clip: Clip | None,
    truth: Truth | None,
    better: bool,
    largest: float | None = None,
) -> Score:
    """Not normalised, and without a warning: a map need not be more concise than the truth or the centre."""
    saliency = explanation.saliency.cpu()
    value = measure(saliency)
    return Score(
        value,
        better,
        {name: measure(m) for name, m in anchor_maps(saliency, clip, truth).items()},
        facts={} if largest is None else {"share": value / largest},
        notes=(ZERO,) if math.isnan(value) else (),
    )


def _absolute(saliency: Saliency) -> Float[Tensor, "n"]:
    return saliency.double().flatten().nan_to_num(0.0).abs()
