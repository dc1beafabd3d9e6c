"""Whether a network really looks at the planted evidence, clip by clip; the rest is excluded and counted.

A map can only be blamed for missing evidence that the network uses. So the true class must win, replacing the
true tube must lower its probability by at least `NEEDED`, and replacing the distractors by at most `ALLOWED`.
What is replaced is repainted as if it had never been there (`tubelens.planted`): nothing is cut or filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.scoring import score_variants
from tubelens.target import Prob, class_index
from tubelens.truth import Truth
from tubelens.variants import Made

NEEDED = 0.5
"""By how much the probability must fall without the evidence, at least."""
ALLOWED = 0.05
"""By how much it may fall without the distractors, at most. It may rise: there was less to distract."""
Reason = Literal["out of view", "misclassified", "evidence not used", "distractors used"]


@runtime_checkable
class Planted(Protocol):
    """A clip with known evidence, that can be painted again without it."""

    @property
    def name(self) -> str:
        """The true class."""
        ...

    @property
    def label(self) -> int:
        """Its index, for models without labels."""
        ...

    def clip(self) -> Clip:
        """What models and methods take."""
        ...

    def known(self) -> Truth:
        """Where the evidence lies."""
        ...

    def without_truth(self) -> Any:
        """The same scene without the evidence."""
        ...

    def without_distractors(self) -> Any:
        """The same scene without what decides nothing."""
        ...


P = TypeVar("P", bound=Planted)


@dataclass(frozen=True)
class Check:
    """What a network made of one planted clip.

    Attributes:
        prob: of the true class, on the intact clip.
        bare: the same without the evidence.
        alone: the same without the distractors.
        right: whether the true class has the highest score.
        volume: share of the voxels that are evidence; 0 where it left the frame.
    """

    prob: float
    bare: float
    alone: float
    right: bool
    volume: float

    @property
    def reason(self) -> Reason | None:
        """Why the clip is excluded, the first that holds; None where it is kept."""
        if self.volume == 0:
            return "out of view"
        if not self.right:
            return "misclassified"
        if self.prob - self.bare < NEEDED:
            return "evidence not used"
        return "distractors used" if self.prob - self.alone > ALLOWED else None


@dataclass(frozen=True)
class Verified(Generic[P]):
    """Planted clips on which a network is known to look at the evidence.

    Attributes:
        kept: these clips, in their order.
        excluded: how many of the others for which reason; without those that never happened.
        checks: of all clips, in their order.
    """

    kept: tuple[P, ...]
    excluded: dict[str, int]
    checks: tuple[Check, ...]


def verify(model: Scorer, planted: Planted, run: Run = RUN) -> Check:
    """Three forwards: the clip, the clip without its evidence, and without its distractors.

    Raises:
        OptionError: a repainted clip has another size.
        TargetError: the model does not know the clip's class.
        ScoreError: NaN or infinity.
    """
    clip = planted.clip()
    others = [planted.without_truth().clip().pixels, planted.without_distractors().clip().pixels]
    if any(pixels.shape != clip.pixels.shape for pixels in others):
        raise OptionError("a planted clip without its evidence must have the size that it has with it")
    label = class_of(model, planted)
    run = replace(run, precision="fp32", seconds=None)
    scored = score_variants(
        model, clip, Made([partial(_other, other) for other in others]), [Prob(label)], run
    )
    prob, bare, alone = torch.cat([scored.intact, *(part.values[0] for part in scored)]).tolist()
    right = int(scored.scores[0].argmax()) == label
    return Check(prob, bare, alone, right, planted.known().volume)


def class_of(model: Scorer, planted: Planted) -> int:
    """The index of the clip's true class: by its name where the model has labels.

    Raises:
        TargetError: the model has no class of that name.
    """
    labels = getattr(model, "labels", None)
    return class_index(planted.name, len(labels), labels) if labels else planted.label


def verified(model: Scorer, clips: Iterable[P], run: Run = RUN) -> Verified[P]:
    """Which of these clips count for this model, and why the others do not.

    Raises:
        OptionError, TargetError, ScoreError: see `verify`.
    """
    every = [(planted, verify(model, planted, run)) for planted in clips]
    kept = tuple(planted for planted, check in every if check.reason is None)
    reasons: Counter[str] = Counter(check.reason for _, check in every if check.reason is not None)
    return Verified(kept, dict(reasons), tuple(check for _, check in every))


def _other(other: Tensor, pixels: Tensor) -> Tensor:
    return other.to(pixels)
