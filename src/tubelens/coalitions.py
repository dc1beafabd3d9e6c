"""Versions of a clip: some of its bands as they are, the others filled within a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.fill import Fill
from tubelens.variants import Batch, Make


@dataclass(frozen=True, eq=False)
class Coalitions:
    """For every region, the clip with every proper subset of the players left as it is: subset s of 2^n - 1.

    Attributes:
        masks: true where players that are not in the subset are filled.
        players: bands of each.
        fill: what takes their place.
    """

    masks: Sequence[Bool[Tensor, "T H W"]]
    players: Sequence[Sequence[int]]
    fill: Fill

    def __len__(self) -> int:
        return len(self.masks) * ((1 << len(self.players)) - 1)

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """Bound to one clip; made on its device."""
        blend = self.fill.over(pixels)
        each = (1 << len(self.players)) - 1
        stays = torch.zeros(each, len(pixels), dtype=torch.bool)
        for i, own in enumerate(self.players):
            stays[:, list(own)] = torch.tensor([bool(s >> i & 1) for s in range(each)])[:, None]
        stays = stays.to(pixels.device)

        def make(start: int, stop: int) -> Batch:
            out = pixels.new_empty(stop - start, *pixels.shape)
            filled, region = pixels, -1
            for number in range(start, stop):
                if number // each != region:
                    region = number // each
                    filled = blend((~self.masks[region]).to(pixels)[None])[0]
                out[number - start] = torch.where(stays[number % each][:, None, None, None], pixels, filled)
            return out, None

        return make
