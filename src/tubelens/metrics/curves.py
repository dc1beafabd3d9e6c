"""Insertion and deletion (Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
Models", BMVC 2018, section 4), for several maps of a clip in one queue of forwards.

Voxels are put into the place of a fill (insertion), or replaced by one (deletion), from the most salient on;
the score is the area under the target's value over the share of the clip that was put in or replaced. Only
the order of a map matters.

Curves of one clip share their ends: the intact clip, and for each fill the clip of which nothing is left. So
M maps at S points take `3 + 2 M (S - 2)` forwards for both, and any number of targets takes no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Black, Fill, fill
from tubelens.masks import Triple
from tubelens.metrics.anchors import (
    RANDOM,
    TIME_MEAN,
    Saliency,
    between,
    common_maps,
    settled,
    time_mean,
    warnings_for,
)
from tubelens.metrics.icpr2022 import Scaled, published_order
from tubelens.metrics.options import check_seed
from tubelens.metrics.protocol import Score
from tubelens.metrics.removal import (
    Curves,
    Mode,
    Order,
    Plan,
    check_maps,
    check_steps,
    curves,
    queue,
    voxel_order,
)
from tubelens.metrics.sharing import explained, grouped
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.target import Prob, Target
from tubelens.truth import Truth

__all__ = ["Curves", "Deletion", "Insertion", "curves", "together"]
MISLEADS = (
    "deletion alone misleads on video: removing scattered voxels harms every frame and makes clips unlike any"
    " that the network was trained on, so that a random order can lower the score faster than removing the"
    " evidence does; read it beside insertion, or with coarser cells"
)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Insertion:
    """Area under the target's value as the most salient voxels are put in, first of all into a blurred clip.

    The blur is over space alone: one over time would take the motion away with the detail.

    Attributes:
        steps: points of the curve, both ends included. (On 910 clips of UCF101-24, 32 points instead of 129
            changed the area by .002.)
        fill: what is there before: a name in `tubelens.fill.FILLS`, or a fill.
        cell: voxels put in as a whole, along time, height and width; coarse cells make fewer edges.
        score: probability or logit of the target's class; a `Contrast` stays itself.
        seed: of the order of equal values, and of the random anchor.
        anchors: whether maps that look at no model are scored too; each costs as much as a map.
        parity: `"icpr2022"`: as `tubelens.metrics.icpr2022` says, which settles all of the above but the
            anchors.
        factor: with parity, by how much the clip that is there before is scaled down: 16, or 4.
        snippet: with parity, frames a segment of the segment network; None: as the model's `spec` says.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False
    mode: ClassVar[Mode] = "insertion"

    steps: int = 32
    fill: str | Fill = "blur"
    cell: Triple = (1, 1, 1)
    score: Literal["prob", "logit"] = "prob"
    seed: int = 0
    anchors: bool = True
    parity: Literal["icpr2022"] | None = None
    factor: int = 16
    snippet: int | None = None

    def __post_init__(self) -> None:
        _check_options(self)
        Scaled(self.factor)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`, which also shares forwards with deletion."""
        return together([self], model, clip, explanations, truth, run)[0]


@dataclass(frozen=True)
class Deletion:
    """Area under the target's value as the most salient voxels are replaced; lower is better.

    Never to be read without the random anchor: on 67 % of 910 clips of UCF101-24 a random order beats
    Grad-CAM (R(2+1)D, mean areas .204 and .280), because small scattered holes make clips unlike any that the
    network knows. Therefore the default fill is the mean colour of the clip. It is nearest to the zero after
    normalisation that RISE fills with, without asking for the network's statistics, and has less contrast to
    the picture than black, which is a signal of its own: in thermal video it means cold.

    Attributes:
        steps: points of the curve, both ends included.
        fill: what replaces: a name in `tubelens.fill.FILLS`, or a fill.
        cell: voxels replaced as a whole, along time, height and width; coarse cells make fewer edges.
        score: probability or logit of the target's class; a `Contrast` stays itself.
        seed: of the order of equal values, and of the random anchor.
        anchors: whether maps that look at no model are scored too; each costs as much as a map.
        parity: `"icpr2022"`: as `tubelens.metrics.icpr2022` says, which settles all of the above but the
            anchors.
        snippet: with parity, frames a segment of the segment network; None: as the model's `spec` says.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False
    mode: ClassVar[Mode] = "deletion"

    steps: int = 32
    fill: str | Fill = "mean"
    cell: Triple = (1, 1, 1)
    score: Literal["prob", "logit"] = "prob"
    seed: int = 0
    anchors: bool = True
    parity: Literal["icpr2022"] | None = None
    snippet: int | None = None

    def __post_init__(self) -> None:
        _check_options(self)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`, which also shares forwards with insertion."""
        return together([self], model, clip, explanations, truth, run)[0]


Metric = Insertion | Deletion


def together(
    metrics: Sequence[Metric],
    model: Scorer,
    clip: Clip,
    explanations: Sequence[Explanation],
    truth: Truth | None = None,
    run: Run = RUN,
) -> list[list[Score]]:
    """Scores of several explanations of one clip by several metrics, in as few queues as there can be.

    Metrics that agree in steps, cells, seed, anchors and parity share one queue, whatever their modes, fills
    and scores. Anchors that do not depend on the map are scored once. The `forwards` of the scores are equal
    parts of what their queue took, the pilot of a lower precision included.

    Returns:
        For each metric one score an explanation. `facts`: the target on the `intact` clip, at the `start` and
        the `end` of the curve; whether values are of a `logit` (1) or a probability (0); for deletion `aopc`,
        the mean drop over the points (Samek et al., "Evaluating the visualization of what a deep neural
        network has learned", TNNLS 2017).

    Raises:
        OptionError: a map or a truth of another size than the clip.
        ScoreError: NaN or infinity.
    """
    maps = [explanation.saliency for explanation in explanations]
    check_maps(maps, clip)
    if not explanations:
        return [[] for _ in metrics]
    return grouped(metrics, _shared, lambda some: _scores(some, model, clip, explanations, maps, truth, run))


def _shared(metric: Metric) -> tuple[Any, ...]:
    """What metrics must agree in to share forwards."""
    if metric.parity:
        return (metric.parity, metric.snippet, metric.seed, metric.anchors)
    return (metric.steps, metric.cell, metric.seed, metric.anchors)


def _scores(
    metrics: Sequence[Metric],
    model: Scorer,
    clip: Clip,
    explanations: Sequence[Explanation],
    maps: Sequence[Saliency],
    truth: Truth | None,
    run: Run,
) -> list[list[Score]]:
    """Of metrics that share a queue."""
    first, count = metrics[0], len(explanations)
    common = common_maps(clip.size, clip, truth, first.seed) if first.anchors else {}
    still = [time_mean(settled(m)) for m in maps] if first.anchors else []
    order = _order(first, [*maps, *still, *common.values()], model, clip)
    plans: list[Plan] = []
    targets: list[Target] = []
    for metric in metrics:
        plans += [p for p in [_plan(metric)] if p not in plans]
        targets += [t for t in dict.fromkeys(_target(e, metric) for e in explanations) if t not in targets]
    drawn = queue(model, clip, order, plans, targets, run)
    share = drawn.forwards / (len(metrics) * count)
    scores = []
    for metric in metrics:
        own = plans.index(_plan(metric))
        values, areas = drawn.values[own], drawn.areas[own]
        row = []
        for j, explanation in enumerate(explanations):
            target = targets.index(_target(explanation, metric))
            anchors, drawn_beside = {}, {}
            if metric.anchors:
                drawn_beside = {
                    name: tuple(values[target, 2 * count + k].tolist()) for k, name in enumerate(common)
                }
                anchors = {name: float(areas[target, 2 * count + k]) for k, name in enumerate(common)}
                anchors[TIME_MEAN] = float(areas[target, count + j])
            value, points = float(areas[target, j]), values[target, j].tolist()
            scaled, said = between(value, anchors, metric.higher_is_better)
            facts = {
                "intact": float(drawn.intact[target]),
                "start": points[0],
                "end": points[-1],
                "logit": float(not isinstance(targets[target], Prob)),
            }
            if metric.mode == "deletion":
                facts["aopc"] = points[0] - sum(points) / len(points)
            row.append(
                Score(
                    value=value,
                    higher_is_better=metric.higher_is_better,
                    anchors=anchors,
                    normalised=scaled,
                    curve=(tuple(drawn.places.tolist()), tuple(points)),
                    anchor_curves=drawn_beside,
                    forwards=share,
                    facts=facts,
                    notes=(*drawn.notes, *_notes(metric, value, anchors, points, maps[j]), *said),
                )
            )
        scores.append(row)
    return scores


def _order(metric: Metric, maps: Sequence[Saliency], model: Scorer, clip: Clip) -> Order:
    device = getattr(model, "device", "cpu")
    if metric.parity is None:
        return voxel_order(maps, metric.steps, metric.cell, metric.seed, device)
    known = getattr(getattr(model, "spec", None), "snippet", 1)
    return published_order(maps, metric.snippet or known, len(clip.bands), device)


def _plan(metric: Metric) -> Plan:
    if metric.parity is None:
        return metric.mode, fill(metric.fill)
    return metric.mode, Scaled(metric.factor) if isinstance(metric, Insertion) else Black()


def _target(explanation: Explanation, metric: Metric) -> Target:
    return explained(explanation.target, "prob" if metric.parity else metric.score)


def _notes(
    metric: Metric, value: float, anchors: dict[str, float], points: Sequence[float], saliency: Saliency
) -> tuple[str, ...]:
    notes = warnings_for(value, anchors, metric.higher_is_better)
    if metric.mode == "deletion" and anchors.get(RANDOM, value) < value:
        notes += (MISLEADS,)
    empty, whole = (points[0], points[-1]) if metric.mode == "insertion" else (points[-1], points[0])
    if empty >= whole:
        notes += (
            f"the target is no lower ({empty:.3f}) where nothing of the clip is left than on the clip itself"
            f" ({whole:.3f}): the area says little; try another fill",
        )
    unseen = float(saliency.isnan().float().mean())
    if unseen:
        notes += (f"{unseen:.1%} of the voxels were seen by no crop and count as least salient",)
    return notes


def _check_options(metric: Metric) -> None:
    check_steps(metric.steps, metric.cell)
    check_seed(metric.seed)
    fill(metric.fill)
    if metric.score not in ("prob", "logit"):
        raise OptionError(f"score is 'prob' or 'logit', not {metric.score!r}")
    if metric.parity not in (None, "icpr2022"):
        raise OptionError(f"parity is None or 'icpr2022', not {metric.parity!r}")
    if metric.snippet is not None and metric.snippet < 1:
        raise OptionError(f"a segment has at least one frame, not {metric.snippet}")
