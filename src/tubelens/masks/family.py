"""What a family of masks is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Triple = tuple[int, int, int]
"""Along time, height and width."""
AXES = ("time", "height", "width")


@runtime_checkable
class Masks(Protocol):
    """A family of masks."""

    @property
    def size(self) -> Triple:
        """Frames, height and width."""
        ...

    def __len__(self) -> int:
        """How many masks."""
        ...

    def batch(self, start: int, stop: int, device: torch.device | str = "cpu") -> Float[Tensor, "b *mask"]:
        """Masks `start` to `stop`, in [0, 1], 1 = kept, made on the device.

        `(b, T, H, W)`, or `(b, c, T, H, W)` where the bands have masks of their own (`tubelens.masks.bands`).
        """
        ...
