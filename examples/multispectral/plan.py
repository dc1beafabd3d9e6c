"""What the three data sets of the experiment have in common: spectra, trainings, lessons and test clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tubelens.evaluate.items import Item

VISIBLE, INFRARED, BOTH = "visible", "infrared", "both"
TRAININGS: dict[str, tuple[str, ...]] = {
    VISIBLE: (VISIBLE,),
    INFRARED: (INFRARED,),
    BOTH: (VISIBLE, INFRARED),
}
"""What a network is trained on, and so tested on."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one update learns from.

    Attributes:
        pixels: clips `(b, 3, t, h, w)` in [0, 1].
        goal: their target distributions `(b, k)`.
        sparse: price of the mean of the last activations, which keeps them where the evidence is.
    """

    pixels: Tensor
    goal: Tensor
    sparse: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """One data set of the experiment.

    Attributes:
        name: what it is called.
        labels: of its classes.
        size: height and width of its clips, which have 16 frames.
        trainings: those of `TRAININGS` that it has clips for.
        steps: updates of every training; a training on both spectra sees both versions of the same clips.
        peak: highest learning rate. `faster`: what it is multiplied by for the last layer.
        batches: called with the spectra, the seed and the number of updates, yields so many of them.
        tests: called with a spectrum, gives its test clips in a fixed order.
        shown: so many of these, the first ones, are explained.
        rise: masks of RISE. `points`: of the curves of insertion and deletion.
        truth: whether it is known where the evidence is.
        facts: lines for the summary: where the clips come from and how they were split.
        told: what else the weights depend on.
    """

    name: str
    labels: tuple[str, ...]
    size: int
    trainings: Mapping[str, tuple[str, ...]]
    steps: int
    batches: Callable[[Sequence[str], int, int], Iterator[Batch]]
    tests: Callable[[str], Sequence[Item]]
    shown: int
    rise: int = 300
    points: int = 16
    peak: float = 3e-3
    faster: float = 10.0
    truth: bool = False
    facts: tuple[str, ...] = ()
    told: Mapping[str, object] = field(default_factory=dict)

    @property
    def spectra(self) -> tuple[str, ...]:
        """All that it has clips of, visible light first."""
        return tuple(s for s in (VISIBLE, INFRARED) if any(s in seen for seen in self.trainings.values()))
