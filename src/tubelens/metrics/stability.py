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
    `seed` among them gives the same map each time. Of what is no dataclass nothing is known.
    """
    if isinstance(method, tuple | list):
        return tuple(seed for item in method for seed in seeds_of(item))
    if not is_dataclass(method) or isinstance(method, type):
        return ()
    found: tuple[int, ...] = ()
    for field in fields(method):
        value = getattr(method, field.name)
        found += (value,) if _is_seed(field.name, value) else seeds_of(value)
    return found


def reseeded(method: Any, by: int) -> Any:
    """The same method with all its seeds (`seeds_of`) moved up."""
    if isinstance(method, tuple | list):
        items = [reseeded(item, by) if seeds_of(item) else item for item in method]
        return type(method)(*items) if hasattr(method, "_fields") else type(method)(items)
    changed: dict[str, Any] = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if _is_seed(field.name, value):
            changed[field.name] = value + by
        elif seeds_of(value):
            changed[field.name] = reseeded(value, by)
    return replace(method, **changed)


def _is_seed(name: str, value: Any) -> bool:
    return name == "seed" and isinstance(value, int)


def _opaque(method: Any) -> bool:
    """Whether it is, or holds, something callable that does not show its options."""
    if isinstance(method, tuple | list):
        return any(map(_opaque, method))
    if is_dataclass(method) and not isinstance(method, type):
        return any(_opaque(getattr(method, field.name)) for field in fields(method))
    return callable(method)


def _same(a: Explanation, b: Explanation) -> bool:
    """Bit for bit, NaN being equal to NaN."""
    maps = [[part.values for part in e.parts] for e in (a, b)]
    return [m.shape for m in maps[0]] == [m.shape for m in maps[1]] and all(
        bool(((x == y) | (x.isnan() & y.isnan())).all()) for x, y in zip(*maps, strict=True)
    )


@dataclass(frozen=True)
class SeedStability:
    """Mean rank correlation of the maps that a method gives with different seeds, all else equal.

    A method that draws nothing scores 1, without being run: it gives the same map each time. A note says so,
    lest that be taken for a merit of the map. One that does not show its options (no dataclass) is run twice;
    where its maps differ it draws from a seed that nobody can set, and the value is NaN.

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
        run = replace(run, progress=None, seconds=None)  # maps cut short would differ for that alone
        if not seeds_of(method):
            return self._unseeded(model, clip, method, target, run)
        found = [] if explanation is None else [explanation]
        made = [reseeded(method, by)(model, clip, [target], run)[0] for by in range(len(found), self.n)]
        found += made
        pairs = [agreement(a, b) for a, b in combinations(found, 2)]
        value = rank_stability(found)
        notes = ("a map that is the same everywhere has no ranks to compare",) if value != value else ()
        facts = {"seeds": float(self.n), "least": min(pairs)}
        return Score(value, self.higher_is_better, forwards=sum(map(cost, made)), facts=facts, notes=notes)

    def _unseeded(self, model: Scorer, clip: Clip, method: Any, target: Target, run: Run) -> Score:
        name, value = type(method).__name__, 1.0
        note = f"{name} draws nothing: it gives the same map each time"
        made: list[Explanation] = []
        if _opaque(method):
            made = [method(model, clip, [target], run)[0] for _ in range(2)]
            note = f"{name} has no seed, and gave the same map twice"
            if not _same(*made):
                value, note = float("nan"), f"{name} gives another map each time, and has no seed to set"
        return Score(
            value, self.higher_is_better, forwards=sum(map(cost, made)), facts={"seeds": 0.0}, notes=(note,)
        )


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
