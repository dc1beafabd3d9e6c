"""Average drop, increase and gain: what is left of the score when the clip is seen through the map.

Chattopadhyay et al., "Grad-CAM++" (WACV 2018), section 4: average drop and increase in confidence; Zhang et
al., "Opti-CAM" (2023, arXiv 2301.07002): average gain. With y the score of the clip I and o that of the clip
dimmed by the map, `h I + (1 - h) fill`, h the map's heat in [0, 1]:

    drop = max(0, y - o) / y        increase = [o > y]        gain = max(0, o - y) / (1 - y)

Here as shares of one (published in percent) and of one clip; the published figure is the mean over clips.

They ask whether what the map shows suffices, and not how little it shows: a map that is bright nearly
everywhere drops nothing. Therefore the anchors have the map's own values, in another order: they dim the clip
as much as the map does, in other places. So they differ from map to map, and nothing is normalised by them.
The fact `kept` is the mean heat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import ClassVar, Literal, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tubelens.clip import Clip
from tubelens.explanation import Explanation, scaled
from tubelens.fill import Fill, fill
from tubelens.masks import Triple, ranking
from tubelens.metrics.anchors import TIME_MEAN, common_maps, settled, time_mean, warnings_for
from tubelens.metrics.options import check_seed
from tubelens.metrics.protocol import Score
from tubelens.metrics.sharing import explained, grouped
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.scoring import score_masked
from tubelens.truth import Truth

Values = Float64[Tensor, "*n"]
Intact = Float64[Tensor, "..."]  # one for all, or one each


def drop(intact: Intact, dimmed: Values) -> Values:
    """`max(0, y - o) / y`, in [0, 1]; NaN where y is not positive: there is nothing to lose a share of."""
    return ((intact - dimmed).clamp_min(0) / intact).where(intact > 0, torch.nan)


def increase(intact: Intact, dimmed: Values) -> Values:
    """1 where the score rises, else 0."""
    return (dimmed > intact).double()


def gain(intact: Intact, dimmed: Values) -> Values:
    """`max(0, o - y) / (1 - y)`, in [0, 1]; 0 where y = 1, and NaN where it is above: no probability."""
    share = (dimmed - intact).clamp_min(0) / (1 - intact)
    return share.where(intact < 1, 0.0).where(intact <= 1, torch.nan)


def relaid(
    values: Float[Tensor, "T H W"], order: Float[Tensor, "T H W"], seed: int = 0
) -> Float[Tensor, "T H W"]:
    """The values of one map in the order of another: its largest where the other is largest, and so on.

    Voxels that are equal in `order` take their places by a seeded permutation; NaN there is least.
    """
    rank = ranking(settled(order).nan_to_num(nan=-torch.inf), seed)
    return values.flatten().sort(descending=True).values[rank.flatten()].view_as(values)


def shown(explanation: Explanation) -> Float[Tensor, "T H W"]:
    """The heat by which a clip is dimmed: dark where no crop looked, and throughout where the map is flat.

    Of the rounded map (see `tubelens.metrics.anchors.settled`): what interpolation leaves of a flat map would
    otherwise be stretched to heat.
    """
    saliency = settled(explanation.saliency)
    seen = saliency[saliency.isfinite()]
    if not len(seen) or (explanation.scale == "range" and bool(seen.min() == seen.max())):
        return torch.zeros_like(saliency)
    return scaled(saliency, *explanation.limits).nan_to_num(nan=0.0)


@dataclass(frozen=True, eq=False)
class Given:
    """Masks that are there already, and may be soft."""

    maps: Float[Tensor, "n T H W"]

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        _, t, h, w = self.maps.shape
        return t, h, w

    def __len__(self) -> int:
        return len(self.maps)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`."""
        return self.maps[start:stop].to(device)


class Formula(Protocol):
    """Score of the clip and of dimmed ones to what is measured."""

    def __call__(self, intact: Intact, dimmed: Values) -> Values:
        """One value a dimmed clip."""
        ...


@dataclass(frozen=True)
class AverageDrop:
    """The share of the score that is lost when the clip is seen through the map; lower is better.

    Of the probability of the target's class, whatever the target, since a logit has no zero to be a share of.
    NaN for a `Contrast`, which has none either.

    Attributes:
        fill: what shows where the map is dark: a name in `tubelens.fill.FILLS`, or a fill.
        seed: of the random anchor, and of the order of equal values in anchors.
        anchors: whether maps that look at no model are scored too; each costs one forward.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    fill: str | Fill = "black"
    seed: int = 0
    anchors: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        fill(self.fill)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`, which shares forwards with increase and gain."""
        return together([self], model, clip, explanations, truth, run)[0]


@dataclass(frozen=True)
class AverageIncrease:
    """Whether the score rises when the clip is seen through the map: 1 or 0, higher is better.

    Options as those of `AverageDrop`; a `Contrast` stays itself, since it can rise.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    fill: str | Fill = "black"
    seed: int = 0
    anchors: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        fill(self.fill)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`, which shares forwards with drop and gain."""
        return together([self], model, clip, explanations, truth, run)[0]


@dataclass(frozen=True)
class AverageGain:
    """By what share of the way to 1 the score rises when the clip is seen through the map; higher is better.

    Options as those of `AverageDrop`; NaN for a `Contrast`, which is not on a way to 1.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    fill: str | Fill = "black"
    seed: int = 0
    anchors: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        fill(self.fill)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`, which shares forwards with drop and increase."""
        return together([self], model, clip, explanations, truth, run)[0]


Metric = AverageDrop | AverageIncrease | AverageGain
FORMULAS: dict[type[Metric], Formula] = {AverageDrop: drop, AverageIncrease: increase, AverageGain: gain}


def together(
    metrics: Sequence[Metric],
    model: Scorer,
    clip: Clip,
    explanations: Sequence[Explanation],
    truth: Truth | None = None,
    run: Run = RUN,
) -> list[list[Score]]:
    """Scores of several explanations of one clip by several metrics.

    Metrics of the same options share `1 + M` forwards for M maps, anchors being maps as well; those that are
    equal are one.

    Returns:
        For each metric one score an explanation. Facts: the score of the `intact` and of the `dimmed` clip,
        and how much of the clip is `kept`, which is the mean heat.

    Raises:
        OptionError: a map or a truth of another size than the clip.
        ScoreError: NaN or infinity.
    """
    if not explanations:
        return [[] for _ in metrics]
    return grouped(
        metrics,
        lambda metric: (repr(metric.fill), metric.seed, metric.anchors),
        lambda some: _scores(some, model, clip, explanations, truth, run),
    )


def _scores(
    metrics: Sequence[Metric],
    model: Scorer,
    clip: Clip,
    explanations: Sequence[Explanation],
    truth: Truth | None,
    run: Run,
) -> list[list[Score]]:
    """Of metrics that share their forwards."""
    first = metrics[0]
    common = common_maps(clip.size, clip, truth, first.seed) if first.anchors else {}
    masks: dict[bytes, Tensor] = {}  # equal ones once
    numbers: list[list[int]] = []  # of each explanation: its own mask, then those of its anchors
    names: list[list[str]] = []
    heats: list[Tensor] = []
    for e in explanations:
        heat = shown(e).cpu()
        others = common | {TIME_MEAN: time_mean(settled(e.saliency.cpu()))} if first.anchors else {}
        keys = []
        for mask in (heat, *(relaid(heat, order, first.seed) for order in others.values())):
            keys.append(blake2b(mask.numpy().tobytes()).digest())
            masks.setdefault(keys[-1], mask)
        numbers.append([list(masks).index(key) for key in keys])
        heats.append(heat)
        names.append(list(others))
    targets = [explained(e.target) for e in explanations]
    run = replace(run, seconds=None)
    given = Given(torch.stack(list(masks.values())))
    scored = score_masked(model, clip, given, fill(first.fill), targets, run)
    dimmed = torch.cat([part.values.double().cpu() for part in scored], dim=1)
    intact = scored.intact.double().cpu()
    share = scored.forwards / (len(metrics) * len(explanations))
    rows: list[list[Score]] = []
    for metric in metrics:
        row = []
        for j, called in enumerate(names):
            left = dimmed[j, numbers[j]]
            found = FORMULAS[type(metric)](intact[j], left)
            contrast = len(targets[j].classes) > 1 and not isinstance(metric, AverageIncrease)
            values: list[float] = (found * torch.nan if contrast else found).tolist()
            anchors = dict(zip(called, values[1:], strict=True))
            notes = scored.notes + warnings_for(values[0], anchors, metric.higher_is_better)
            if contrast:
                notes += ("a contrast is no probability that a share can be taken of",)
            elif values[0] != values[0]:
                notes += (
                    f"the target's value, {float(intact[j]):.3g}, is none that a share can be taken of",
                )
            facts = {"intact": float(intact[j]), "dimmed": float(left[0]), "kept": float(heats[j].mean())}
            row.append(
                Score(
                    values[0],
                    metric.higher_is_better,
                    anchors,
                    forwards=share,
                    facts=facts,
                    notes=notes,
                )
            )
        rows.append(row)
    return rows
