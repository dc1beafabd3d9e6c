"""How much of a map is chance, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, Literal

from tubelens.agreement import agreement
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.metrics.protocol import Score
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.target import Target
from tubelens.truth import Truth

BACKWARD = 2.0
"""Forwards that one backward counts as, the forward that it needs not counted (both together: 2.9 to 3.4)."""


def cost(explanation: Explanation, backward: float = BACKWARD) -> float:
    """Forwards, and backwards counted as so many forwards, that an explanation took."""
    record = explanation.provenance
    return record.forwards + backward * record.backwards


def rank_stability(explanations: Sequence[Explanation]) -> float:
    """Mean rank correlation (`tubelens.agreement`) over all pairs of maps.

    Returns:
        In [-1, 1], 1 where all rank alike; NaN for fewer than two maps, or where one is the same everywhere.
    """
    pairs = [agreement(a, b) for a, b in combinations(explanations, 2)]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def seeds_of(method: Any) -> tuple[int, ...]:
    """The seeds of a method: its own, and those of methods and fills that it holds. Empty: it draws nothing.

    A method draws from its options alone, and never from a global generator, so that a method without a
    `seed` among them gives the same map each time.
    """
    if not is_dataclass(method) or isinstance(method, type):
        return ()
    found: tuple[int, ...] = ()
    for field in fields(method):
        value = getattr(method, field.name)
        found += (value,) if field.name == "seed" and isinstance(value, int) else seeds_of(value)
    return found


def reseeded(method: Any, by: int) -> Any:
    """The same method with all its seeds (`seeds_of`) moved up."""
    changed: dict[str, Any] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name == "seed" and isinstance(value, int):
            changed["seed"] = value + by
        elif seeds_of(value):
            changed[field.name] = reseeded(value, by)
    return replace(method, **changed)


@dataclass(frozen=True)
class SeedStability:
    """Mean rank correlation of the maps that a method gives with different seeds, all else equal.

    A method that draws nothing scores 1, without being run: it gives the same map each time. A note says so,
    lest that be taken for a merit of the map.

    Attributes:
        n: seeds: the method's own and those after it.
    """

    kind: ClassVar[Literal["method"]] = "method"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    n: int = 3

    def __post_init__(self) -> None:
        if self.n < 2:
            raise OptionError(f"seed-to-seed correlation needs at least 2 seeds, not {self.n}")

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        method: Any,
        target: Target,
        run: Run = RUN,
        explanation: Explanation | None = None,
    ) -> Score:
        """The score of a method on one clip; `explanation` stands for that of the method's own seed."""
        if not seeds_of(method):
            note = f"{type(method).__name__} draws nothing: it gives the same map each time"
            return Score(1.0, self.higher_is_better, facts={"seeds": 0.0}, notes=(note,))
        run = replace(run, progress=None)
        found = [] if explanation is None else [explanation]
        made = [reseeded(method, by)(model, clip, [target], run)[0] for by in range(len(found), self.n)]
        found += made
        pairs = [agreement(a, b) for a, b in combinations(found, 2)]
        value = rank_stability(found)
        notes = ("a map that is the same everywhere has no ranks to compare",) if value != value else ()
        facts = {"seeds": float(self.n), "least": min(pairs)}
        return Score(value, self.higher_is_better, forwards=sum(map(cost, made)), facts=facts, notes=notes)


@dataclass(frozen=True)
class Forwards:
    """What the explanation cost: forwards, and backwards counted as so many forwards.

    As recorded in its provenance: the forward that a backward needs is one of the forwards, and a backward
    through the head alone counts as a backward.

    Attributes:
        backward: forwards that a backward counts as.
    """

    kind: ClassVar[Literal["map"]] = "map"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    backward: float = BACKWARD

    def __post_init__(self) -> None:
        if not 0 <= self.backward < float("inf"):
            raise OptionError(f"a backward counts as 0 or more forwards, not {self.backward}")

    def __call__(
        self, explanation: Explanation, clip: Clip | None = None, truth: Truth | None = None
    ) -> Score:
        """The count; the facts tell forwards from backwards."""
        record = explanation.provenance
        facts = {"forwards": record.forwards, "backwards": record.backwards}
        return Score(cost(explanation, self.backward), self.higher_is_better, facts=facts)
