"""Maps at low resolution, random or given, read linearly at every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.masks.family import AXES, Triple
from tubelens.upsample import spline_matrix

DRAWN = 2**22  # random numbers drawn at once


@dataclass(frozen=True)
class Grids:
    """Random grids, interpolated linearly and shifted by less than a cell: RISE with a time axis of its own.

    Petsiuk et al., BMVC 2018, section 3.2, in three dimensions. Nodes lie one cell apart and are kept with
    probability `p`; voxel x of an axis reads at `(x + offset) / cell`, where a cell is the axis' length over
    its number of cells, and the offset one of `ceil(cell)` evenly spaced phases of a cell. So every voxel's
    mean over the masks drawn is `p` exactly, at the borders too.

    The first masks of a longer family are those of a shorter one with the same seed.

    Attributes:
        n: number of masks.
        size: frames, height and width.
        cells: across the clip, along time, height and width.
        p: probability that a node is kept.
        seed: of bits and offsets.
    """

    n: int
    size: Triple
    cells: Triple = (4, 8, 8)
    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.n, self.p)
        for axis, cells, extent in zip(AXES, self.cells, self.size, strict=True):
            if not 1 <= cells <= extent:
                raise OptionError(
                    f"a grid needs 1 to {extent} cells along {axis} (this clip's {axis} is {extent}),"
                    f" not {cells}"
                )

    def __len__(self) -> int:
        return self.n

    @cached_property
    def _drawn(self) -> tuple[Bool[Tensor, "n t h w"], Int[Tensor, "n 3"]]:
        return _draw(self.n, tuple(b.shape[2] for b in self._banks), self._phases, self.p, self.seed)

    @property
    def _phases(self) -> Triple:
        t, h, w = (ceil(extent / cells) for extent, cells in zip(self.size, self.cells, strict=True))
        return t, h, w

    @cached_property
    def _banks(self) -> tuple[Tensor, Tensor, Tensor]:
        t, h, w = (
            _bank(
                [
                    (np.arange(extent) + phase * extent / cells / phases) * cells / extent
                    for phase in range(phases)
                ],
                cells + 2,
            )
            for extent, cells, phases in zip(self.size, self.cells, self._phases, strict=True)
        )
        return t, h, w

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`: three batched products, with the matrices of each mask's offsets."""
        return _shifted(*self._drawn, self._banks, start, stop, device)


@dataclass(frozen=True)
class Published:
    """The masks of the ICPR 2022 code, for comparison with its numbers.

    A grid of `(s // 4, s, s)` Bernoulli(p) nodes is stretched corner to corner over `(s + 1) ceil(size / s)`
    voxels an axis and cropped at a random offset below `ceil(size / s)`. At s = 8 there are only two nodes in
    time, so each voxel's mask is a straight line over the frames; voxels' means are p all the same.

    Attributes:
        n: number of masks.
        size: frames, height and width.
        s: nodes along height and width; a quarter of it along time.
        p: probability that a node is kept.
        seed: of bits and offsets.
    """

    n: int
    size: Triple
    s: int = 8
    p: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.n, self.p)
        if self.s < 4:
            raise OptionError(f"published masks need s >= 4 (s // 4 nodes in time), not {self.s}")

    def __len__(self) -> int:
        return self.n

    @cached_property
    def _drawn(self) -> tuple[Bool[Tensor, "n t h w"], Int[Tensor, "n 3"]]:
        t, h, w = (ceil(extent / self.s) for extent in self.size)
        return _draw(self.n, (self.s // 4, self.s, self.s), (t, h, w), self.p, self.seed)

    @cached_property
    def _banks(self) -> tuple[Tensor, Tensor, Tensor]:
        t, h, w = (
            _bank(
                [
                    (np.arange(extent) + offset) * (nodes - 1) / ((self.s + 1) * ceil(extent / self.s) - 1)
                    for offset in range(ceil(extent / self.s))
                ],
                nodes,
            )
            for extent, nodes in zip(self.size, (self.s // 4, self.s, self.s), strict=True)
        )
        return t, h, w

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`."""
        return _shifted(*self._drawn, self._banks, start, stop, device)


@dataclass(frozen=True, eq=False)
class Features:
    """Maps at low resolution, in [0, 1], read linearly at every voxel.

    Attributes:
        grids: one map a mask.
        indices: fractional cell number of every frame, row and column (`upsample.fractional_index`).
    """

    grids: Float[Tensor, "n t h w"]
    indices: Sequence[np.ndarray]
    _matrices: tuple[Tensor, Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        t, h, w = (
            torch.from_numpy(spline_matrix(np.asarray(index, dtype=np.float64), n, 1)).float()
            for index, n in zip(self.indices, self.grids.shape[1:], strict=True)
        )
        object.__setattr__(self, "_matrices", (t, h, w))

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        t, h, w = (len(matrix) for matrix in self._matrices)
        return t, h, w

    def __len__(self) -> int:
        return len(self.grids)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b T H W"]:
        """Masks `start` to `stop`."""
        t, h, w = (matrix.to(device)[None] for matrix in self._matrices)
        return _products(self.grids[start:stop].to(device).float(), t, h, w)


def _check(n: int, p: float) -> None:
    if n < 1:
        raise OptionError(f"a family needs n >= 1 masks, not {n}")
    if not 0 < p < 1:
        raise OptionError(f"p is the probability that a node is kept, between 0 and 1, not {p}")


def _draw(
    n: int, nodes: Sequence[int], phases: Sequence[int], p: float, seed: int
) -> tuple[Bool[Tensor, "n t h w"], Int[Tensor, "n 3"]]:
    """Offsets and bits of mask after mask, so that they do not depend on `n`."""
    generator = torch.Generator().manual_seed(seed)
    per_mask = 3 + prod(nodes)
    chunk = max(1, DRAWN // per_mask)
    bits, offsets = [], []
    for start in range(0, n, chunk):
        drawn = torch.rand(min(chunk, n - start), per_mask, generator=generator)
        offsets.append((drawn[:, :3] * torch.tensor(phases)).int())
        bits.append((drawn[:, 3:] < p).view(-1, *nodes))
    return torch.cat(bits), torch.cat(offsets)


def _bank(indices: Sequence[np.ndarray], nodes: int) -> Float[Tensor, "phases voxels nodes"]:
    """For each offset the matrix that reads the nodes linearly at fractional node numbers."""
    return torch.from_numpy(np.stack([spline_matrix(index, nodes, 1) for index in indices])).float()


def _shifted(
    bits: Bool[Tensor, "n t h w"],
    offsets: Int[Tensor, "n 3"],
    banks: Sequence[Tensor],
    start: int,
    stop: int,
    device: torch.device | str,
) -> Float[Tensor, "b T H W"]:
    at = offsets[start:stop].long().to(device)
    t, h, w = (bank.to(device)[at[:, axis]] for axis, bank in enumerate(banks))
    return _products(bits[start:stop].to(device).float(), t, h, w)


def _products(
    grids: Float[Tensor, "b t h w"],
    t: Float[Tensor, "_ T t"],
    h: Float[Tensor, "_ H h"],
    w: Float[Tensor, "_ W w"],
) -> Float[Tensor, "b T H W"]:
    """Width, height, then time: the last product is the large one, and time has the fewest nodes."""
    b, frames, height, width = len(grids), t.shape[1], h.shape[1], w.shape[1]
    rows = grids.flatten(1, 2) @ w.mT
    planes = h[:, None] @ rows.view(*grids.shape[:3], width)
    return (t @ planes.view(b, -1, height * width)).view(b, frames, height, width)
