"""A clip that is removed, or put back, in the order of a map: what comes when, and the curves of a target.

Masks are made from ranks as they are asked for. Only the ranks are kept, on the device that scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import avg_pool3d

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.fill import Fill, fill
from tubelens.masks import Triple, ranking
from tubelens.metrics.anchors import settled
from tubelens.metrics.options import check_cell
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.scoring import score_variants
from tubelens.target import Target
from tubelens.variants import Chain, Masked, Variants

Job = tuple[int, int, bool]
"""One step: which ranking, how many of its first elements, and whether these are removed or alone kept."""
EMPTY: Job = (0, 0, False)
"""Nothing is kept, whatever the ranking."""
Mode = Literal["insertion", "deletion"]
Plan = tuple[Mode, Fill]
"""What is drawn: the direction, and what is there before or after."""
DEFAULTS: dict[Mode, str] = {"insertion": "blur", "deletion": "mean"}


@dataclass(frozen=True, eq=False)
class Order:
    """In which order maps remove a clip.

    Attributes:
        which: the ranking of each map; maps that rank alike share one, and so are scored once.
        distinct: number of rankings.
        counts: elements removed at each point of a curve, from none to all.
        places: the share that this is, in [0, 1].
        family: versions of the clip for a list of jobs, with a fill in place of what is removed.
    """

    which: tuple[int, ...]
    distinct: int
    counts: tuple[int, ...]
    places: tuple[float, ...]
    family: Callable[[Sequence[Job], Fill], Variants]


@dataclass(frozen=True, eq=False)
class Steps:
    """The first cells of a ranking kept or removed, as masks.

    Attributes:
        ranks: place of every cell in each ranking, 0 first.
        jobs: one a mask.
        size: frames, height and width of the masks.
        cell: voxels of a cell; those at the end may be cut short.
    """

    ranks: Int[Tensor, "m t h w"]
    jobs: Sequence[Job]
    size: Triple
    cell: Triple = (1, 1, 1)

    def __len__(self) -> int:
        return len(self.jobs)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`."""
        masks = kept(self.ranks.to(device), self.jobs[start:stop])
        for axis, (n, voxels) in enumerate(zip(self.size, self.cell, strict=True), start=1):
            if voxels > 1:
                masks = masks.repeat_interleave(voxels, dim=axis).narrow(axis, 0, n)
        return masks.float()


def kept(ranks: Int[Tensor, "m *n"], jobs: Sequence[Job]) -> Bool[Tensor, "b *n"]:
    """What each job keeps."""
    which, counts, remove = (torch.tensor(column, device=ranks.device) for column in zip(*jobs, strict=True))
    ones = (-1,) + (1,) * (ranks.ndim - 1)
    return (ranks[which] < counts.view(ones)) ^ remove.view(ones)


def voxel_order(
    maps: Sequence[Float[Tensor, "T H W"]],
    points: int,
    cell: Triple = (1, 1, 1),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Order:
    """The order of maps, cell by cell from the highest mean on; equal cells in a seeded random order.

    Values are rounded before (see `tubelens.metrics.anchors.settled`).

    Point `i` of `points` has `i K / (points - 1)` of the K cells, rounded, and its place is the share of the
    cells that this is. Where there are fewer cells than steps, there are fewer points.

    Args:
        maps: of one size; voxels that are NaN count as least salient, and not towards the mean of a cell.
        points: of a curve, both ends included.
        cell: voxels removed as a whole, along time, height and width; cut to the size of the clip.
        seed: of the order of equal cells.
        device: where the masks will be made.
    """
    t, h, w = maps[0].shape
    kt, kh, kw = (min(voxels, n) for voxels, n in zip(cell, (t, h, w), strict=True))
    rows = [ranking(cell_means(settled(m), (kt, kh, kw)), seed) for m in maps]
    which, ranks = distinct(rows)
    ranks = ranks.to(device)
    n = rows[0].numel()
    counts = tuple(sorted({(2 * i * n + points - 1) // (2 * (points - 1)) for i in range(points)}))

    def family(jobs: Sequence[Job], fill: Fill) -> Variants:
        return Masked(Steps(ranks, jobs, (t, h, w), (kt, kh, kw)), fill)

    return Order(which, len(ranks), counts, tuple(count / n for count in counts), family)


def cell_means(saliency: Float[Tensor, "T H W"], cell: Triple) -> Float[Tensor, "t h w"]:
    """Mean over the voxels of each cell that are not NaN; minus infinity where all are."""
    seen = ~saliency.isnan()
    values = saliency.where(seen, 0.0)
    if cell == (1, 1, 1):
        return values.where(seen, -torch.inf)
    # the parts of cells that would lie beyond the end do not count
    sums, share = (avg_pool3d(x.double()[None], cell, ceil_mode=True)[0] for x in (values, seen))
    return (sums / share).float().where(share > 0, -torch.inf)


def distinct(rows: Sequence[Int[Tensor, "*n"]]) -> tuple[tuple[int, ...], Int[Tensor, "m *n"]]:
    """The rankings without repetition, in 32 bits, and which of them each one was."""
    first: dict[bytes, int] = {}
    which: list[int] = []
    unlike: list[Tensor] = []
    for row in rows:
        small = row.int()
        key = small.numpy().tobytes()
        if key not in first:
            first[key] = len(unlike)
            unlike.append(small)
        which.append(first[key])
    return tuple(which), torch.stack(unlike)


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves of every map under every target.

    Attributes:
        places: share of the clip that was put in or removed, from 0 to 1.
        values: of the targets, one tensor a mode, in the order asked for.
        intact: the targets on the clip itself.
        forwards: clips scored.
        precision: of the forwards.
        notes: of the scoring.
    """

    places: Float64[Tensor, "points"]
    values: tuple[Float64[Tensor, "targets maps points"], ...]
    intact: Float64[Tensor, "targets"]
    forwards: int
    precision: str
    notes: tuple[str, ...] = ()

    @property
    def areas(self) -> tuple[Float64[Tensor, "targets maps"], ...]:
        """Areas under the curves over [0, 1] by trapezoids: means of the target, in its own units."""
        return tuple(torch.trapezoid(values, self.places) for values in self.values)


def curves(
    model: Scorer,
    clip: Clip,
    maps: Sequence[Float[Tensor, "T H W"]],
    targets: Sequence[Target],
    *,
    modes: Sequence[Mode] = ("insertion", "deletion"),
    fills: Sequence[str | Fill] | None = None,
    steps: int = 32,
    cell: Triple = (1, 1, 1),
    seed: int = 0,
    run: Run = RUN,
) -> Curves:
    """Insertion and deletion curves of several maps, all in one queue of forwards.

    Args:
        model: a network or a black box.
        clip: what is altered, in pixels, before normalisation.
        maps: of the clip's size; NaN (where no crop looked) counts as least salient.
        targets: each is read off every version, which costs nothing.
        modes: `"insertion"`: kept in this order, the rest filled; `"deletion"`: filled in this order.
        fills: one a mode; None: those of `DEFAULTS`.
        steps: points of a curve, both ends included; evenly spaced.
        cell: voxels that come and go as a whole, in the order of their mean; cells at the end may be smaller.
        seed: of the order of equal values.
        run: how forwards are run; a limit in seconds is not kept, because half a curve has no area.

    Raises:
        OptionError: maps of another size than the clip, an unknown fill or mode, fewer than two points.
        ScoreError: NaN or infinity.
    """
    names = [DEFAULTS.get(mode, "") for mode in modes] if fills is None else fills
    if len(names) != len(modes) or set(modes) - set(DEFAULTS):
        raise OptionError(f"modes are {' and '.join(DEFAULTS)}, with one fill each, not {modes} with {fills}")
    check_steps(steps, cell)
    check_maps(maps, clip)
    order = voxel_order(maps, steps, cell, seed, getattr(model, "device", "cpu"))
    plans = [(mode, fill(name)) for mode, name in zip(modes, names, strict=True)]
    return queue(model, clip, order, plans, targets, run)


def queue(
    model: Scorer, clip: Clip, order: Order, plans: Sequence[Plan], targets: Sequence[Target], run: Run
) -> Curves:
    """The curves of plans in one queue of forwards.

    One family of versions a fill: its empty clip first, then the inner points of every plan and ranking.
    """
    inner = order.counts[1:-1]
    fills: list[Fill] = []
    jobs: list[list[Job]] = []
    starts: list[tuple[int, int]] = []  # of each plan: its fill, and where its points begin
    for mode, removed in plans:
        if removed not in fills:
            fills.append(removed)
            jobs.append([EMPTY])
        own = fills.index(removed)
        starts.append((own, len(jobs[own])))
        jobs[own] += [(m, n, mode == "deletion") for m in range(order.distinct) for n in inner]
    families = [order.family(some, removed) for some, removed in zip(jobs, fills, strict=True)]
    scored = score_variants(model, clip, Chain(families), targets, replace(run, seconds=None))
    found = torch.cat([part.values.double().cpu() for part in scored], dim=1)
    by_fill = found.split([len(some) for some in jobs], dim=1)
    intact = scored.intact.double().cpu()
    values = []
    for (mode, _), (own, start) in zip(plans, starts, strict=True):
        points = by_fill[own][:, start : start + order.distinct * len(inner)]
        points = points.unflatten(1, (order.distinct, len(inner)))[:, list(order.which)]
        empty, whole = (
            end[:, None, None].expand(-1, len(order.which), 1) for end in (by_fill[own][:, 0], intact)
        )
        ends = (empty, whole) if mode == "insertion" else (whole, empty)
        values.append(torch.cat([ends[0], points, ends[1]], dim=2))
    places = torch.tensor(order.places, dtype=torch.float64)
    return Curves(places, tuple(values), intact, scored.forwards, scored.precision, scored.notes)


def check_steps(steps: int, cell: Triple) -> None:
    """Raise OptionError for a number of points or a cell that makes no curve."""
    if steps < 2:
        raise OptionError(f"a curve has at least 2 points, its ends, not {steps}")
    check_cell(cell)


def check_maps(maps: Sequence[Float[Tensor, "T H W"]], clip: Clip) -> None:
    """Raise OptionError for a map of another size than the clip."""
    for saliency in maps:
        if tuple(saliency.shape) != clip.size:
            given, wanted = ("x".join(map(str, size)) for size in (saliency.shape, clip.size))
            raise OptionError(f"the map is {given} and the clip {wanted} (frames, height, width)")
