"""Masks that tell the bands of a clip apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.masks.family import Masks, Triple


@dataclass(frozen=True, eq=False)
class EachBand:
    """Every mask of a family on one group of bands after the other, while the other bands are left intact.

    Mask i on group g is number `i len(groups) + g`: wherever one stops, no group is ahead by more than one.

    Attributes:
        masks: the family.
        groups: bands that are masked together, as channel numbers.
        bands: of the clip.
    """

    masks: Masks
    groups: Sequence[Sequence[int]]
    bands: int

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        return self.masks.size

    def __len__(self) -> int:
        return len(self.masks) * len(self.groups)

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b c T H W"]:
        """Masks `start` to `stop`: 1 in all bands but those of the mask's group."""
        count = len(self.groups)
        first, last = start // count, (stop - 1) // count + 1
        own = self.masks.batch(first, last, device)
        out = torch.ones(stop - start, self.bands, *self.size, device=device)
        for row in range(stop - start):
            mask, group = divmod(start + row, count)
            out[row, list(self.groups[group])] = own[mask - first]
        return out


@dataclass(frozen=True, eq=False)
class Independent:
    """Mask i of several families of equal length at once, each on a group of bands of its own.

    Attributes:
        families: one a group.
        groups: the channel numbers of each; every band is in one.
    """

    families: Sequence[Masks]
    groups: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        bands = sorted(band for group in self.groups for band in group)
        same = {(len(family), tuple(family.size)) for family in self.families}
        if len(self.families) != len(self.groups) or bands != list(range(len(bands))) or len(same) != 1:
            raise OptionError("independent masks need a family a group, of one size, and every band once")

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        return self.families[0].size

    def __len__(self) -> int:
        return len(self.families[0])

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b c T H W"]:
        """Masks `start` to `stop`."""
        bands = sum(map(len, self.groups))
        out = torch.empty(stop - start, bands, *self.size, device=device)
        for family, group in zip(self.families, self.groups, strict=True):
            out[:, list(group)] = family.batch(start, stop, device)[:, None]
        return out
