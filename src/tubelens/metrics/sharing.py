"""What metrics have in common whose maps and relatives share forwards."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, TypeVar

from tubelens.metrics.protocol import Score
from tubelens.target import Logit, Prob, Target

M = TypeVar("M")


def explained(target: Target, score: Literal["prob", "logit"] = "prob") -> Target:
    """What is read off the scores: the probability or the logit of the class; a `Contrast` stays itself."""
    if len(target.classes) > 1:
        return target
    return (Logit if score == "logit" else Prob)(target.classes[0])


def grouped(
    metrics: Sequence[M], key: Callable[[M], Hashable], scores: Callable[[list[M]], list[list[Score]]]
) -> list[list[Score]]:
    """The scores of each metric, those that agree in `key` having been scored together.

    Args:
        metrics: in any order.
        key: what metrics must agree in to share forwards.
        scores: of some that do, a row each.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, metric in enumerate(metrics):
        groups.setdefault(key(metric), []).append(i)
    rows: dict[int, list[Score]] = {}
    for members in groups.values():
        rows.update(zip(members, scores([metrics[i] for i in members]), strict=True))
    return [rows[i] for i in range(len(metrics))]
