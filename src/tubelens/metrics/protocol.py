"""What a metric is. Frozen dataclasses that fit one of three shapes; there is no base class.

A metric says which (`kind`), whether more is better (`higher_is_better`), and yields a `Score`: the value,
and beside it what maps that look at no model get (`anchors`), because a bare value misleads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from tubelens.clip import Clip
from tubelens.explanation import Explanation
from tubelens.running import RUN, Run
from tubelens.target import Target
from tubelens.truth import Truth

Kind = Literal["map", "curve", "method"]


@dataclass(frozen=True)
class Score:
    """One number, and what it needs to be read.

    Attributes:
        value: of the map or the method. NaN where it has no meaning on this clip; the notes say why.
        higher_is_better: direction; None where neither is better.
        anchors: the same metric for maps that look at no model (`random`, `centre`, `difference`,
            `time_mean`; where the truth is known, `oracle`).
        normalised: `(value - random) / (oracle - random)`, None where no truth is known, or where it is no
            better than a random order.
        curve: places in [0, 1] and values of a curve metric, else None.
        forwards: passes that this score took; several that share passes have equal parts of them.
        facts: further numbers by name.
        notes: what the reader should know, one sentence each.
        anchor_curves: values of the curves of anchors at the places of `curve`, by name.
    """

    value: float
    higher_is_better: bool | None
    anchors: dict[str, float] = field(default_factory=dict)
    normalised: float | None = None
    curve: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    forwards: float = 0
    facts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    anchor_curves: dict[str, tuple[float, ...]] = field(default_factory=dict)


@runtime_checkable
class Metric(Protocol):
    """What all metrics say of themselves."""

    kind: ClassVar[Any]
    higher_is_better: ClassVar[Any]
    needs_truth: ClassVar[bool]


class MapMetric(Metric, Protocol):
    """Reads a map (and the truth, or the clip, where it needs them)."""

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The score of one explanation. Without the clip there is no `difference` anchor."""
        ...


class CurveMetric(Metric, Protocol):
    """Scores altered clips; several maps of one clip share its forwards."""

    def __call__(
        self,
        model: Any,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation."""
        ...


class MethodMetric(Metric, Protocol):
    """Runs the method again: on altered clips, with other seeds, on altered networks."""

    def __call__(
        self,
        model: Any,
        clip: Clip,
        method: Any,
        target: Target,
        run: Run = RUN,
        explanation: Explanation | None = None,
    ) -> Score:
        """The score of a method on one clip; `explanation` is its own on it, where there is one already."""
        ...


def normalised(value: float, random: float, oracle: float, higher_is_better: bool) -> float | None:
    """`(value - random) / (oracle - random)`: 0 as good as a random order, 1 as good as the truth.

    None where the value is NaN, or the truth is not better than a random order, by .001 and by 1 % of the
    larger of the two: where it is worse the sign would turn, and where they agree anything would come out.
    """
    gap = (oracle - random) * (1 if higher_is_better else -1)
    if not gap > max(1e-3, 0.01 * max(abs(oracle), abs(random))) or value != value:
        return None
    return (value - random) / (oracle - random)
