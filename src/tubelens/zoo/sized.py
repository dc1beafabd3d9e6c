"""Networks that take clips of some sizes only: refused before the forward, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tubelens.errors import InputError
from tubelens.model import frozen_part


@dataclass(frozen=True)
class Sized:
    """A `pack` that first looks at the size of the clips.

    A network may refuse a wrong size with an obscure message, or not at all: the positions of a transformer
    may be as many as those of a clip of another shape, and are then mixed up.

    Attributes:
        pack: what the clips then go through.
        frames: that the network takes, or at least takes.
        side: rows and columns, likewise.
        who: the network, for the message.
        why: it takes no others, for the message.
        exact: along which axes no other size will do: `""`, `"t"` or `"thw"`.
    """

    pack: Callable[[Tensor], Any]
    frames: int
    side: int
    who: str
    why: str
    exact: str = ""

    def __call__(self, clips: Float[Tensor, "b c t h w"]) -> Any:
        """The network's input.

        Raises:
            InputError: it does not take clips of this size.
        """
        t, h, w = clips.shape[2:]
        long = t == self.frames if "t" in self.exact else t >= self.frames
        large = h == w == self.side if "h" in self.exact else min(h, w) >= self.side
        if not (long and large):
            frames, side = ("" if axis in self.exact else "at least " for axis in "th")
            raise InputError(
                f"{self.who} takes clips of {frames}{self.frames} frames of {side}{self.side} x {self.side}"
                f" pixels ({self.why}), not of {t} frames of {h} x {w}"
            )
        return self.pack(clips)

    def frozen(self, clips: Float[Tensor, "b c t h w"]) -> Sized:
        """With the statistics of these intact clips, where `pack` takes any."""
        return replace(self, pack=frozen_part(self.pack, clips))


def at_least(clips: Float[Tensor, "b c t h w"], least: tuple[int, int, int], who: str) -> None:
    """Check that a network's strides leave something of the clips.

    Raises:
        InputError: fewer frames, rows or columns than `least`.
    """
    have = tuple(clips.shape[2:])
    if any(n < m for n, m in zip(have, least, strict=True)):
        (t, h, w), (frames, rows, columns) = have, least
        raise InputError(f"{who} needs at least {frames} frames of {rows}x{columns}, got {t} of {h}x{w}")
