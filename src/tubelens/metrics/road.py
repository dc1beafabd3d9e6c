"""ROAD, remove and debias (Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution
Methods", ICML 2022), over space and time.

What is removed is not painted over, which would leave the shape of the hole to see, but restored from what is
around it, noisily: `impute`. The score is the target's mean over clips of which 10, 20, ..., 90 % of the
voxels were removed: the most salient first (MoRF, lower is better) or the least salient first (LeRF, higher
is better).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.masks import ranking
from tubelens.metrics.anchors import (
    TIME_MEAN,
    between,
    common_maps,
    settled,
    time_mean,
    warnings_for,
)
from tubelens.metrics.options import check_seed
from tubelens.metrics.protocol import Score
from tubelens.metrics.removal import distinct
from tubelens.metrics.sharing import explained, grouped
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.scoring import score_variants
from tubelens.target import Target
from tubelens.truth import Truth
from tubelens.variants import Batch, Make

TOLERANCE = 1e-6
"""By how much a restored voxel may miss the mean around it, itself included, in pixels of [0, 1]."""
MOST = 2000
"""Iterations at most; the half of 16x112x112 in one hole takes 110, scattered voxels 20."""
PERCENT = (10, 20, 30, 40, 50, 60, 70, 80, 90)


def impute(
    pixels: Float[Tensor, "c T H W"], kept: Bool[Tensor, "b T H W"], tolerance: float = TOLERANCE
) -> Float[Tensor, "b c T H W"]:
    """Each removed voxel as the weighted mean of its 26 neighbours, kept and removed ones alike.

    That is a sparse linear system in the removed voxels. The paper's weights in the plane, 1/6 for the four
    direct neighbours and 1/12 for the four diagonal ones, are those of the kernel `k(dy) k(dx)`, with
    `k = (1/2, 1, 1/2)`, without its middle and divided by their sum. So here they are those of
    `k(dt) k(dy) k(dx)`, whose sum is 7: 1/14 for the 6 neighbours across a face, 1/28 for the 12 across an
    edge, 1/56 for the 8 across a corner. Neighbours outside the clip are left out, and the other weights
    divided by their sum, as the paper's code does; a clip of one frame has the paper's weights exactly. A
    linear ramp is restored exactly within holes that do not touch the border.

    The system is symmetric and positive definite (the graph of voxels is connected, and some voxel is kept),
    and is solved by conjugate gradients, all clips and bands at once, each until its own end: results do not
    depend on the batch. Holes of diameter d take of the order of d iterations. On one CPU core an iteration
    takes 15 ms for 3 bands of 16x112x112: 0.2 to 0.4 s a clip where voxels are scattered, 1 to 3 s where one
    hole takes up 10 to 90 %.

    Args:
        pixels: of one clip.
        kept: voxels that stay, one mask a result; at least one must.
        tolerance: of every equation, in pixels.

    Returns:
        Clips that equal `pixels` where kept. A mean of pixels is within their range.

    Raises:
        OptionError: a mask that keeps nothing.
    """
    if not bool(kept.flatten(1).any(dim=1).all()):
        raise OptionError("nothing can be restored from a clip of which no voxel is kept")
    known = kept[:, None].to(pixels)
    hole = 1 - known
    degree = _around(torch.ones_like(pixels[:1])[None])
    mean = (pixels * known).sum(dim=(2, 3, 4), keepdim=True) / known.sum(dim=(2, 3, 4), keepdim=True)
    x = hole * mean
    # degree x - around(x) = around(kept pixels), on the hole: A x = b with A = degree - W symmetric
    r = hole * (_around(pixels * known + x) - degree * x)
    p = r.clone()
    square = _dot(r, r)
    for _ in range(MOST):
        going = (r.abs() / degree).amax(dim=(2, 3, 4), keepdim=True) > tolerance
        if not bool(going.any()):
            break
        ap = hole * (degree * p - _around(p))
        step = (square / _dot(p, ap)).where(going, 0.0)
        x += step * p
        r -= step * ap
        new = _dot(r, r)
        p = r + (new / square).where(going, 0.0) * p
        square = new
    return torch.where(kept[:, None], pixels, x)


def _around(x: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b c T H W"]:
    """The sum by the kernel, nothing lying outside the clip.

    The voxel itself, of weight 1, is in it: it drops out of `around(1) x - around(x)`.
    """
    whole = x
    for axis in (2, 3, 4):
        n = x.shape[axis]
        wider = whole.clone()
        wider.narrow(axis, 1, n - 1).add_(whole.narrow(axis, 0, n - 1), alpha=0.5)
        wider.narrow(axis, 0, n - 1).add_(whole.narrow(axis, 1, n - 1), alpha=0.5)
        whole = wider
    return whole


def _dot(x: Float[Tensor, "b c T H W"], y: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b c 1 1 1"]:
    return (x * y).sum(dim=(2, 3, 4), keepdim=True)


@dataclass(frozen=True, eq=False)
class Imputed:
    """A clip of which the first voxels of a ranking are removed and restored: every count of every ranking.

    Attributes:
        ranks: of every voxel, the one that is removed first at 0.
        counts: of removed voxels.
        noise: standard deviation of the normal noise on what was restored, in pixels of [0, 1].
        seed: of the noise, which is the same field for all.
    """

    ranks: Sequence[Int[Tensor, "T H W"]]
    counts: Sequence[int]
    noise: float = 0.01
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ranks) * len(self.counts)

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """Pixels may leave [0, 1] by the noise, as published."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = (self.noise * torch.randn(pixels.shape, generator=generator)).to(pixels)

        def make(start: int, stop: int) -> Batch:
            jobs = [divmod(number, len(self.counts)) for number in range(start, stop)]
            kept = torch.stack([self.ranks[m].to(pixels.device) >= self.counts[n] for m, n in jobs])
            return impute(pixels, kept) + noise * ~kept[:, None], None

        return make


@dataclass(frozen=True)
class ROAD:
    """Mean score over clips whose most salient voxels were removed and restored (MoRF); lower is better.

    What is removed voxel by voxel, here and there, is restored from what was left between: a map of fine
    grain may score like a random order, however right its places are on the whole. Smooth such maps first.

    Deviations from the paper: space and time (see `impute`); the target's mean for one clip in place of the
    accuracy over a data set; one noise field for all clips, so that maps are compared under the same noise;
    exactly the percentage is removed, equal values in a seeded random order.

    Attributes:
        percent: of the voxels that are removed, one clip each.
        noise: standard deviation of what is added to restored voxels.
        score: probability or logit of the target's class; a `Contrast` stays itself.
        seed: of the noise, of the order of equal values, and of the random anchor.
        anchors: whether maps that look at no model are scored too; each costs as much as a map.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    percent: tuple[int, ...] = PERCENT
    noise: float = 0.01
    score: Literal["prob", "logit"] = "prob"
    seed: int = 0
    anchors: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`."""
        return together([self], model, clip, explanations, truth, run)[0]


@dataclass(frozen=True)
class ROADLeRF:
    """Mean score over clips whose least salient voxels were removed and restored (LeRF); higher is better.

    Options and deviations as those of `ROAD`. `(ROADLeRF - ROAD) / 2` is the combined score of
    pytorch-grad-cam.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    percent: tuple[int, ...] = PERCENT
    noise: float = 0.01
    score: Literal["prob", "logit"] = "prob"
    seed: int = 0
    anchors: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; see `together`."""
        return together([self], model, clip, explanations, truth, run)[0]


Metric = ROAD | ROADLeRF


def together(
    metrics: Sequence[Metric],
    model: Scorer,
    clip: Clip,
    explanations: Sequence[Explanation],
    truth: Truth | None = None,
    run: Run = RUN,
) -> list[list[Score]]:
    """Scores of several explanations of one clip by several metrics.

    Metrics that differ in direction and score alone share a queue: the intact clip, and a clip a percentage,
    map and direction. Anchors that do not depend on the map are scored once, and so are maps that rank alike.

    Returns:
        For each metric one score an explanation; `curve` begins with the intact clip. Facts: its score.

    Raises:
        OptionError: a map or a truth of another size than the clip.
        ScoreError: NaN or infinity.
    """
    if not explanations:
        return [[] for _ in metrics]
    return grouped(
        metrics,
        lambda metric: (metric.percent, metric.noise, metric.seed, metric.anchors),
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
    first, m = metrics[0], len(explanations)
    common = common_maps(clip.size, clip, truth, first.seed) if first.anchors else {}
    maps = [settled(e.saliency) for e in explanations]
    others = [*(time_mean(s) for s in maps), *common.values()] if first.anchors else []
    every = [s.nan_to_num(nan=-torch.inf) for s in (*maps, *map(settled, others))]
    which, ranks = distinct([ranking(s, first.seed) for s in every])
    directions = list(dict.fromkeys(metric.higher_is_better for metric in metrics))
    last = ranks[0].numel() - 1
    queue = [last - r if least_first else r for least_first in directions for r in ranks]
    counts = [min(round(p * (last + 1) / 100), last) for p in first.percent]
    targets: list[Target] = []
    for metric in metrics:
        targets += [t for e in explanations if (t := explained(e.target, metric.score)) not in targets]
    family = Imputed([r.to(getattr(model, "device", "cpu")) for r in queue], counts, first.noise, first.seed)
    scored = score_variants(model, clip, family, targets, replace(run, seconds=None))
    left = torch.cat([part.values.double().cpu() for part in scored], dim=1)
    left = left.unflatten(1, (len(directions), len(ranks), len(counts)))
    places = (0.0, *(p / 100 for p in first.percent))
    rows: list[list[Score]] = []
    for metric in metrics:
        row = []
        for j, e in enumerate(explanations):
            at = targets.index(explained(e.target, metric.score))
            found = left[at, directions.index(metric.higher_is_better), list(which)]
            means: list[float] = found.mean(dim=1).tolist()
            anchors = dict(zip(common, means[2 * m :], strict=True)) if first.anchors else {}
            if first.anchors:
                anchors[TIME_MEAN] = means[m + j]
            intact = float(scored.intact[at])
            scale, said = between(means[j], anchors, metric.higher_is_better)
            row.append(
                Score(
                    means[j],
                    metric.higher_is_better,
                    anchors,
                    scale,
                    (places, (intact, *found[j].tolist())),
                    scored.forwards / (len(metrics) * m),
                    {"intact": intact},
                    scored.notes + warnings_for(means[j], anchors, metric.higher_is_better) + said,
                    {name: (intact, *found[2 * m + k].tolist()) for k, name in enumerate(common)},
                )
            )
        rows.append(row)
    return rows


def _check(metric: Metric) -> None:
    """Options that both have."""
    p = metric.percent
    check_seed(metric.seed)
    if not p or list(p) != sorted(set(p)) or not 0 < p[0] <= p[-1] < 100:
        raise OptionError(f"ROAD removes increasing percentages between 0 and 100, not {p}")
    if not 0 <= metric.noise < float("inf"):
        raise OptionError(f"ROAD's noise must be 0 or more, not {metric.noise}")
    if metric.score not in ("prob", "logit"):
        raise OptionError(f"the score is 'prob' or 'logit', not {metric.score!r}")
