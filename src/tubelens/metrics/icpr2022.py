"""Insertion and deletion as in the code for ICPR 2022 ("Visual explanations for action recognition in thermal
and visible video"), to compare with numbers obtained by it.

Both have 100 points. Point `i` removes the first `floor(i N / 99)` of N elements, and is placed at `i / 99`
(the authors' figures integrate over the number of the step, 0 to 99, which is 99 times as much). Deletion
fills with black before normalisation; insertion starts from the clip scaled down and up again by a factor, 16
by default and 4 in the notebooks, over time as well as over space. Scores are softmax probabilities.

Two variants. For 3-D networks the elements are voxels. For the segment network (PAN: segments of 4 frames,
which enter stacked along the channels) there is one map a segment; its copies for the 4 frames and 3 bands
are elements of their own, so that at the edge of a step some bands of a place are removed and others not.

Deviations: equal values are in the order in which the elements are stored, instead of in one that depends on
the sorting routine; the scaled clip has one frame, row or column at least, where the code fails below 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from tubelens.errors import OptionError
from tubelens.fill import Blend, Fill
from tubelens.masks import Triple
from tubelens.metrics.removal import Job, Order, Steps, distinct, kept
from tubelens.variants import Batch, Make, Masked, Variants

POINTS = 100


@dataclass(frozen=True)
class Scaled:
    """The clip scaled down along time, height and width, and up again: trilinear, corner to corner.

    Nothing is filtered before it shrinks, and motion goes with the detail: at 16 frames and a factor of 16,
    the fill is the first frame throughout. For measures of one's own, `tubelens.fill.Blur` leaves time alone.

    Attributes:
        factor: of each axis; a size that does not divide is rounded down.
    """

    factor: int = 16

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise OptionError(f"a clip is scaled down by a factor of 1 or more, not {self.factor}")

    def over(self, pixels: Float[Tensor, "c t h w"]) -> Blend:
        """`m x + (1 - m) up(down(x))`."""
        whole = pixels.shape[1:]
        small = [max(1, n // self.factor) for n in whole]
        down = interpolate(pixels[None], small, mode="trilinear", align_corners=True)
        base = interpolate(down, tuple(whole), mode="trilinear", align_corners=True)[0]

        def blend(masks: Float[Tensor, "b t h w"]) -> Float[Tensor, "b c t h w"]:
            return torch.lerp(base, pixels, masks[:, None])

        return blend


def published_order(
    maps: Sequence[Float[Tensor, "T H W"]],
    snippet: int = 1,
    bands: int = 3,
    device: torch.device | str = "cpu",
) -> Order:
    """The order of maps, element by element.

    Args:
        maps: of one size; voxels that are NaN count as least salient.
        snippet: frames a segment; more than 1: the variant of the segment network, for which each map is
            averaged over the frames of a segment.
        bands: of the clip.
        device: where the versions will be made.

    Raises:
        OptionError: frames that do not divide into segments.
    """
    t, h, w = maps[0].shape
    if t % snippet:
        raise OptionError(f"segments of {snippet} frames do not fit a clip of {t}")
    rows = [voxel_ranks(m) if snippet == 1 else copy_ranks(m, snippet, bands) for m in maps]
    which, ranks = distinct(rows)
    ranks = ranks.to(device)
    counts = tuple(np.linspace(0, rows[0].numel(), POINTS).astype(int).tolist())
    places = tuple(np.linspace(0, 1, POINTS).tolist())

    def family(jobs: Sequence[Job], fill: Fill) -> Variants:
        size: Triple = (t, h, w)
        return Masked(Steps(ranks, jobs, size), fill) if snippet == 1 else Copies(ranks, jobs, fill)

    return Order(which, len(ranks), counts, places, family)


def voxel_ranks(saliency: Float[Tensor, "T H W"]) -> Int[Tensor, "T H W"]:
    """Place of every voxel, the most salient at 0; equal values frame by frame, row by row."""
    return _ranks(saliency)


def copy_ranks(saliency: Float[Tensor, "T H W"], snippet: int, bands: int) -> Int[Tensor, "c T H W"]:
    """Place of every band of every voxel, where a segment has one map, copied to its frames and bands.

    Equal values, those of the copies first of all, are in the order of the network's input: segment by
    segment, and in a segment frame by frame, band by band, row by row.
    """
    seen = rearrange(saliency, "(s f) h w -> s f h w", f=snippet).nanmean(dim=1)
    copies = repeat(seen, "s h w -> s f c h w", f=snippet, c=bands)
    return rearrange(_ranks(copies), "s f c h w -> c (s f) h w")


def _ranks(values: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    flat = values.where(~values.isnan(), -torch.inf).flatten().cpu()
    order = flat.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank.view(values.shape)


@dataclass(frozen=True, eq=False)
class Copies:
    """Versions of a clip in which every band of a voxel is removed by itself.

    Attributes:
        ranks: place of every element in each ranking, 0 first.
        jobs: one a version.
        fill: one that puts a fixed clip in place of what is removed.
    """

    ranks: Int[Tensor, "m c T H W"]
    jobs: Sequence[Job]
    fill: Fill

    def __len__(self) -> int:
        return len(self.jobs)

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """Where an element is removed, what the fill makes of the empty clip."""
        base = self.fill.over(pixels)(pixels.new_zeros(1, *pixels.shape[1:]))

        def make(start: int, stop: int) -> Batch:
            return torch.where(kept(self.ranks.to(pixels.device), self.jobs[start:stop]), pixels, base), None

        return make
