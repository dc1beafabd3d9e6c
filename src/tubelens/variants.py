"""Altered versions of one clip, made batch by batch on the device that scores them.

Masks with a fill are the common case (`Masked`); metrics that reorder time or add noise bring their own. What
is random in them is drawn before, so that neither results nor memory depend on how they are batched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.errors import OptionError
from tubelens.fill import Fill
from tubelens.masks import Masks

Batch = tuple[Tensor, Tensor | None]
"""Clips `(b, c, T, H, W)`, and the masks `(b, T, H, W)` or `(b, c, T, H, W)` that made them, if any did."""
Make = Callable[[int, int], Batch]
"""Versions `start` to `stop`."""


@runtime_checkable
class Variants(Protocol):
    """A numbered family of versions of a clip."""

    def __len__(self) -> int:
        """How many."""
        ...

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """Bound to one clip; made on its device."""
        ...


@dataclass(frozen=True, eq=False)
class Masked:
    """The clip under masks, a fill in place of what they remove."""

    masks: Masks
    fill: Fill

    def __len__(self) -> int:
        return len(self.masks)

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """`m x + (1 - m) fill`.

        Raises:
            OptionError: masks of another size.
        """
        if tuple(self.masks.size) != tuple(pixels.shape[1:]):
            made, given = ("x".join(map(str, size)) for size in (self.masks.size, pixels.shape[1:]))
            raise OptionError(f"masks of {made} do not fit a clip of {given} (frames, height, width)")
        blend = self.fill.over(pixels)

        def make(start: int, stop: int) -> Batch:
            masks = self.masks.batch(start, stop, pixels.device)
            return blend(masks), masks

        return make


@dataclass(frozen=True, eq=False)
class Made:
    """Versions by a function of their number: each takes the pixels and gives as many of them."""

    versions: Sequence[Callable[[Tensor], Tensor]]

    def __len__(self) -> int:
        return len(self.versions)

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """Each version by itself."""

        def make(start: int, stop: int) -> Batch:
            return torch.stack([version(pixels) for version in self.versions[start:stop]]), None

        return make


@dataclass(frozen=True, eq=False)
class Chain:
    """Several families one after the other, as one queue."""

    families: Sequence[Variants]

    def __len__(self) -> int:
        return sum(map(len, self.families))

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """A batch may hold the end of one and the beginning of the next."""
        makers = [family.over(pixels) for family in self.families]
        sizes = [len(family) for family in self.families]

        def make(start: int, stop: int) -> Batch:
            clips, first = [], 0
            for size, maker in zip(sizes, makers, strict=True):
                a, b = max(start - first, 0), min(stop - first, size)
                if a < b:
                    clips.append(maker(a, b)[0])
                first += size
            return clips[0] if len(clips) == 1 else torch.cat(clips), None

        return make
