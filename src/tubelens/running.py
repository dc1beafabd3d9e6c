"""How something is computed, as opposed to what: batch size, precision, progress, time.

None of it changes a result beyond rounding, so none of it belongs to a method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Progress = Callable[[int, int], None]
"""Told (done, total) as work goes on."""


@dataclass(frozen=True)
class Run:
    """How a method's passes are run.

    Attributes:
        batch: clips in one forward; None: grown while it pays and fits.
        precision: of forward-only scoring; gradients are always fp32. `auto`: bf16 where the hardware has it
            natively and a pilot agrees with fp32.
        progress: told how many forwards are done, and how many there will be.
        seconds: stop after so long, with what there is by then; only methods that add up samples can.
    """

    batch: int | None = None
    precision: Precision = "auto"
    progress: Progress | None = None
    seconds: float | None = None

    def tell(self, done: int, total: int) -> None:
        """Report progress, if somebody listens."""
        if self.progress is not None:
            self.progress(done, total)


RUN = Run()
"""The default."""


@dataclass(frozen=True)
class Passes:
    """What a method will cost: passes of one clip through the network.

    Attributes:
        forwards: without a graph.
        backwards: forward and backward through everything, down to the pixels.
    """

    forwards: int
    backwards: int = 0
