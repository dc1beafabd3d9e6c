"""Tubes cut out of maps, what can be done to time inside and outside of them, and one queue of forwards.

A tube is a set of voxels; where it moves, so do its pixels from frame to frame. Time cannot be altered within
such a shape without cutting the picture up, so alterations of time act on the **region** of a tube: its hull
(the pixels that it covers in any frame) over its frames (those in which it covers anything). Every pixel of
the region then has a column of values through the same frames, and an alteration says which frame each of
these frames shows instead. An object that moves within the region stays whole: held, it stands where it was
in the frame that is held; reversed, it runs back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from math import factorial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill
from tubelens.masks import Triple, ranking
from tubelens.metrics.anchors import (
    CENTRE,
    DIFFERENCE,
    ORACLE,
    RANDOM,
    TIME_MEAN,
    frame_difference,
    settled,
    time_mean,
)
from tubelens.model import Scorer
from tubelens.running import Run
from tubelens.scoring import score_variants
from tubelens.target import Contrast, Logit, Prob, Target
from tubelens.truth import Truth
from tubelens.variants import Made, Variants

Pixels = Float[Tensor, "c T H W"]
Version = Callable[[Tensor], Tensor]
"""The pixels of a clip to an altered version of them."""
Edit = Literal["freeze", "shuffle", "reverse"]
Where = Literal["inside", "outside", "whole"]
ScoreOf = Literal["prob", "logit"]
DRAWS = 20
VOLUME = 0.05
"""Share of the voxels in a tube where neither the user nor the truth says how many."""
RIVALS = {
    RANDOM: "the same tube elsewhere",
    CENTRE: "the same tube in the middle",
    DIFFERENCE: "the frame difference",
    TIME_MEAN: "the map's own mean over time",
}
EMPTY = "the map is the same everywhere, so it has no tube"


# ── tubes ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Tube:
    """Voxels, and the region that alterations of time act on.

    Attributes:
        voxels: of the tube.
        dilate: pixels by which the hull is widened on all sides, diagonals included, so that the antialiased
            rim of an object and the blur of a lens are inside.
    """

    voxels: Bool[Tensor, "T H W"]
    dilate: int = 0

    @cached_property
    def frames(self) -> tuple[int, ...]:
        """Frames that hold any of its voxels; they need not be consecutive."""
        return tuple(self.voxels.any(dim=2).any(dim=1).nonzero().flatten().tolist())

    @cached_property
    def rest(self) -> tuple[int, ...]:
        """The other frames."""
        mine = set(self.frames)
        return tuple(t for t in range(len(self.voxels)) if t not in mine)

    @cached_property
    def hull(self) -> Bool[Tensor, "H W"]:
        """Pixels that it covers in any frame, widened."""
        return widened(self.voxels.any(dim=0)[None], self.dilate)[0]

    @cached_property
    def mask(self) -> Bool[Tensor, "T H W"]:
        """Its voxels, widened in each frame: what is removed or kept."""
        return widened(self.voxels, self.dilate)

    @cached_property
    def region(self) -> Bool[Tensor, "T H W"]:
        """The hull over its frames."""
        out = torch.zeros_like(self.voxels)
        out[list(self.frames)] = self.hull
        return out

    @cached_property
    def key(self) -> bytes:
        """Equal for equal tubes."""
        return blake2b(self.voxels.numpy().tobytes(), salt=self.dilate.to_bytes(4, "big")).digest()

    def shifted(self, by: Triple) -> Tube:
        """The same shape elsewhere: moved cyclically, what leaves on one side enters on the other."""
        return Tube(self.voxels.roll(by, dims=(0, 1, 2)), self.dilate)

    def centred(self) -> Tube:
        """The same shape and frames, the hull's mean place in the middle of the frame."""
        _, h, w = self.voxels.shape
        y, x = self.voxels.any(dim=0).nonzero().double().mean(dim=0).tolist()
        return self.shifted((0, round((h - 1) / 2 - y), round((w - 1) / 2 - x)))

    def elsewhere(self, n: int, seed: int) -> list[Tube]:
        """The same shape at `n` random places and times, never where it is.

        A shape that is as long as the clip comes back to itself where it is moved in time alone, so places
        are drawn anew; where 20 draws find no other place, there is one tube less.
        """
        t, h, w = self.voxels.shape
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(n):
            for _ in range(DRAWS):
                p = int(torch.randint(1, max(2, t * h * w), (), generator=generator))
                moved = self.shifted((p // (h * w), p // w % h, p % w))
                if not torch.equal(moved.voxels, self.voxels):
                    found.append(moved)
                    break
        return found


def widened(mask: Bool[Tensor, "n H W"], by: int) -> Bool[Tensor, "n H W"]:
    """Each frame's pixels and those at most `by` rows and columns away."""
    if by == 0:
        return mask
    return torch.nn.functional.max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def top_voxels(saliency: Float[Tensor, "T H W"], volume: float, seed: int = 0) -> Bool[Tensor, "T H W"]:
    """The most salient share of the voxels: `round(volume T H W)` of them, at least one.

    Values are rounded before (see `tubelens.metrics.anchors.settled`); equal ones are taken in the order of a
    seeded permutation. Voxels at the map's lowest value are never taken, nor those that no crop saw (NaN): a
    map of zeros and one bright spot is a tube of that spot, not of that spot and random places. So a flat
    map has none.
    """
    values = settled(saliency.detach().cpu())
    values = torch.where(values.isnan(), -torch.inf, values)
    seen = values[values > -torch.inf]
    if not len(seen):
        return torch.zeros_like(values, dtype=torch.bool)
    count = max(1, round(volume * values.numel()))
    return (ranking(values, seed) < count) & (values > seen.min())


def volume_of(volume: float | None, truth: Truth | None) -> float:
    """The share asked for, else that of the evidence where it is known, else `VOLUME`."""
    if volume is not None:
        return volume
    return truth.volume if truth is not None and truth.volume > 0 else VOLUME


def map_of(explanation: Explanation, clip: Clip, truth: Truth | None) -> Float[Tensor, "T H W"]:
    """The map at the clip's resolution.

    Raises:
        OptionError: it explains a clip of another size, or the truth is of one.
    """
    sizes = {"explanation": explanation.size} | ({"truth": truth.mask.shape} if truth is not None else {})
    for what, size in sizes.items():
        if tuple(size) != clip.size:
            mine, given = ("x".join(map(str, s)) for s in (size, clip.size))
            raise OptionError(f"the {what} is of a clip of {mine}, and this one is {given}")
    return explanation.saliency.detach().cpu()


def anchor_tubes(
    tube: Tube, saliency: Float[Tensor, "T H W"], clip: Clip, truth: Truth | None, n: int, seed: int
) -> dict[str, list[Tube]]:
    """Tubes that say nothing about the model, to be read beside one.

    `random`: the same shape at `n` random places; `centre`: the same shape in the middle of the frame;
    `difference` and `time_mean`: as many voxels as the tube has, from where the picture changes and from the
    map's mean over time; `oracle`: the evidence, where it is known and not the whole clip. An anchor without
    a voxel is left out.
    """
    volume = float(tube.voxels.double().mean())
    difference = frame_difference(clip.pixels.detach().cpu())
    found = {
        RANDOM: tube.elsewhere(n, seed),
        CENTRE: [tube.centred()],
        DIFFERENCE: [Tube(top_voxels(difference, volume, seed), tube.dilate)],
        TIME_MEAN: [Tube(top_voxels(time_mean(settled(saliency)), volume, seed), tube.dilate)],
    }
    if truth is not None and not bool(truth.mask.all()):
        found[ORACLE] = [Tube(truth.mask.cpu(), tube.dilate)]
    return {name: tubes for name, tubes in found.items() if tubes and tubes[0].frames}


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────


def retimed(
    pixels: Pixels, columns: Bool[Tensor, "H W"], frames: Sequence[int], sources: Sequence[int]
) -> Pixels:
    """`y[t, p] = x[source of t, p]` for each of the frames t and each pixel p of the columns, else x."""
    out = pixels.clone()
    here = columns.to(pixels.device)
    out[:, list(frames)] = torch.where(here, pixels[:, list(sources)], pixels[:, list(frames)])
    return out


def orders(edit: Edit, frames: Sequence[int], n: int, seed: int = 0) -> list[list[int]]:
    """What frames show instead of themselves: several answers, whose scores are averaged.

    `freeze`: all show the same one, in turn the middle frame of each of `n` equal parts (`n = 1`: the middle
    frame; more than there are frames: each of them). `shuffle`: `n` different permutations, or as many as
    there are, uniform over all but the one that changes nothing, drawn from the seed. `reverse`: the one
    reversal.

    A single frame cannot be altered: it shows itself.
    """
    count = len(frames)
    if edit == "freeze":
        held = sorted({(2 * i + 1) * count // (2 * n) for i in range(n)}) if count else []
        return [[frames[i]] * count for i in held]
    if edit == "reverse" or count < 2:
        return [list(frames)[::-1]]
    generator = torch.Generator().manual_seed(seed)
    known = [list(range(count))]
    most = min(n, factorial(count) - 1)
    while len(known) <= most:
        order = torch.randperm(count, generator=generator).tolist()
        if order not in known:
            known.append(order)
    return [[frames[i] for i in order] for order in known[1:]]


def edits(
    edit: Edit, where: Where, size: Triple, tube: Tube | None = None, n: int = 4, seed: int = 0
) -> list[Version]:
    """Versions of a clip whose time is altered inside a tube, outside of it, or everywhere.

    Inside is the tube's region. Outside is all the rest: the other pixels through all frames, and the hull's
    through the frames that are not the tube's. Inside and outside share no voxel and leave none out.

    Args:
        edit: see `orders`.
        where: `whole` needs no tube.
        size: frames, height and width.
        tube: with at least one voxel.
        n: frames that are held in turn, or permutations.
        seed: of the permutations.
    """
    every = range(size[0])
    if where == "whole" or tube is None:
        columns = torch.ones(size[1:], dtype=torch.bool)
        return [_Retime(((columns, tuple(every), tuple(o)),)) for o in orders(edit, every, n, seed)]
    if where == "inside":
        found = orders(edit, tube.frames, n, seed)
        return [_Retime(((tube.hull, tube.frames, tuple(o)),)) for o in found]
    beside, apart = orders(edit, every, n, seed), orders(edit, tube.rest, n, seed)
    return [
        _Retime(((~tube.hull, tuple(every), tuple(o)), (tube.hull, tube.rest, tuple(apart[i % len(apart)]))))
        if apart
        else _Retime(((~tube.hull, tuple(every), tuple(o)),))
        for i, o in enumerate(beside)
    ]


@dataclass(frozen=True, eq=False)
class _Retime:
    """`retimed`, for several disjoint sets of columns and frames one after the other."""

    steps: tuple[tuple[Tensor, tuple[int, ...], tuple[int, ...]], ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        out = pixels
        for columns, frames, sources in self.steps:
            out = retimed(out, columns, frames, sources)
        return out


@dataclass(frozen=True, eq=False)
class Filled:
    """The clip with a fill where the mask is true; a `tubelens.fill.Once` is bound once for many of them."""

    mask: Bool[Tensor, "T H W"]
    fill: Fill

    def __call__(self, pixels: Tensor) -> Tensor:
        """The pixels, altered."""
        kept = (~self.mask).to(pixels)[None]
        return self.fill.over(pixels)(kept)[0]


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────


def scored_target(target: Target, score: ScoreOf) -> Target:
    """The probability or the logit of the target's class; a contrast stays itself."""
    if isinstance(target, Contrast):
        return target
    return Prob(target.classes[0]) if score == "prob" else Logit(target.classes[0])


@dataclass(frozen=True, eq=False)
class Answers:
    """Targets on a clip and its versions.

    Attributes:
        intact: on the clip itself, one a target.
        values: on the versions.
        forwards: clips scored.
        notes: of the scoring.
    """

    intact: Float[Tensor, "n"]
    values: Float[Tensor, "n v"]
    forwards: int
    notes: tuple[str, ...] = ()


def answers(model: Scorer, clip: Clip, versions: Variants, targets: Sequence[Target], run: Run) -> Answers:
    """Every target on the clip and on all versions, whatever time it takes, as float64 on the CPU."""
    if not targets:
        return Answers(torch.zeros(0), torch.zeros(0, len(versions)), 0)
    scored = score_variants(model, clip, versions, targets, replace(run, seconds=None))
    parts = [part.values.double().cpu() for part in scored] or [torch.zeros(len(targets), 0).double()]
    intact = scored.intact.double().cpu()
    return Answers(intact, torch.cat(parts, dim=1), scored.forwards, scored.notes)


class Queue:
    """Versions that are asked for one by one and scored together; what is asked for twice is scored once."""

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self._known: dict[Hashable, list[int]] = {}

    def ask(self, key: Hashable, make: Callable[[], Sequence[Version]]) -> list[int]:
        """The numbers of these versions, which are made only where the key is new."""
        if key not in self._known:
            made = make()
            self._known[key] = list(range(len(self.versions), len(self.versions) + len(made)))
            self.versions += made
        return self._known[key]

    def answers(self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run) -> Answers:
        """All of them, in one queue of forwards."""
        return answers(model, clip, Made(self.versions), targets, run)


def distinct(explanations: Sequence[Explanation], score: ScoreOf) -> tuple[list[Target], list[int]]:
    """The targets that are scored, each once, and which of them is each explanation's."""
    wanted = [scored_target(e.target, score) for e in explanations]
    targets = list(dict.fromkeys(wanted))
    return targets, [targets.index(t) for t in wanted]
