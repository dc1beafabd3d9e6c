"""Voxels by rank, and regions that are kept or removed as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.masks.family import Triple


@dataclass(frozen=True, eq=False)
class Ranks:
    """The first voxels of a ranking kept (insertion), or removed (deletion).

    Attributes:
        rank: place of every voxel, 0 first (see `ranking`).
        counts: of voxels, one a mask.
        remove: the first voxels are removed, and the others kept.
    """

    rank: Int[Tensor, "T H W"]
    counts: Sequence[int]
    remove: bool = False

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        t, h, w = self.rank.shape
        return t, h, w

    def __len__(self) -> int:
        return len(self.counts)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`."""
        counts = torch.tensor(list(self.counts[start:stop]), device=device)[:, None, None, None]
        first = self.rank.to(device) < counts
        return (~first if self.remove else first).float()


def ranking(saliency: Float[Tensor, "T H W"], seed: int = 0) -> Int[Tensor, "T H W"]:
    """Place of every voxel, the most salient at 0; equal values in the order of a seeded permutation.

    (By raster order instead, early frames would always come first.)
    """
    values = saliency.flatten().cpu()
    shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    order = shuffled[values[shuffled].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank.view(saliency.shape)


@dataclass(frozen=True, eq=False)
class Cells:
    """Regions that are kept or removed as a whole, such as supervoxels.

    Attributes:
        labels: region of every voxel, 0 to k-1.
        kept: which regions each mask keeps.
    """

    labels: Int[Tensor, "T H W"]
    kept: Bool[Tensor, "n k"]

    def __post_init__(self) -> None:
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.kept.shape[1]:
            raise OptionError(f"labels must be 0 to {self.kept.shape[1] - 1}, got {low} to {high}")

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        t, h, w = self.labels.shape
        return t, h, w

    def __len__(self) -> int:
        return len(self.kept)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`."""
        kept = self.kept[start:stop].to(device).float()
        return kept.index_select(1, self.labels.to(device).flatten()).view(-1, *self.size)


def supervoxels(
    pixels: Float[Tensor, "c T H W"], n: int = 200, compactness: float = 10.0, time: float = 1.0
) -> Int[Tensor, "T H W"]:
    """About `n` regions of like colour: SLIC (Achanta et al., PAMI 2012) on the clip as one volume.

    Args:
        pixels: of the clip, in [0, 1]; three bands are compared as Lab colours, others by their values times
            100, which has about the same range.
        n: wanted; fewer come out where regions merge.
        compactness: weight of place against colour.
        time: how many pixels one frame counts as.

    Returns:
        Region of every voxel, 0 to k-1, contiguous. Deterministic.

    Raises:
        OptionError: n < 1, compactness or time not positive.
    """
    from skimage.segmentation import slic

    if n < 1 or not compactness > 0 or not time > 0:
        raise OptionError(
            f"supervoxels need n >= 1, compactness > 0 and time > 0, not {n}, {compactness} and {time}"
        )
    volume = pixels.permute(1, 2, 3, 0).cpu().double().numpy()
    colour = volume.shape[-1] == 3
    found = slic(
        volume,  # which slic scales to [0, 1]
        n_segments=n,
        compactness=compactness if colour else compactness / 100,
        spacing=(time, 1.0, 1.0),
        channel_axis=-1,
        convert2lab=colour,
        start_label=0,
    )
    return torch.from_numpy(np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64))
