"""How something is computed, as opposed to what: batch size, precision, progress, time.

None of it changes a result beyond rounding, so none of it belongs to a method.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tubelens.errors import OptionError

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
        steady: nothing depends on how long something took: batches of eight unless `batch` says otherwise,
            and `auto` precision is decided by the pilot's agreement alone. The same machine then gives the
            same bits again.
        pilot: compare a lower precision with fp32 first. Without, a precision asked for by name is taken
            as it is, and `auto` is fp32.
    """

    batch: int | None = None
    precision: Precision = "auto"
    progress: Progress | None = None
    seconds: float | None = None
    steady: bool = False
    pilot: bool = True

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


@dataclass(frozen=True)
class Budget:
    """What an explanation may cost: so many forwards, or so many seconds.

    A forward and backward down to the pixels counts as three forwards.
    """

    forwards: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, value: int | float | str | Budget) -> Budget:
        """From what a user writes: `500` (forwards), `"500"`, `"30s"`, `"2m"`, `"1h"`.

        Raises:
            OptionError: not of this form, or not positive.
        """
        if isinstance(value, Budget):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
        number = float(found[1]) if found else 0.0
        unit = found[2] if found else ""
        if number <= 0 or (not unit and number != int(number)):
            raise OptionError(
                f"a budget is a positive number of forwards such as 500, or a time such as 30s or 2m,"
                f" not {str(value)!r}"
            )
        if unit:
            return cls(seconds=number * {"s": 1, "m": 60, "h": 3600}[unit])
        return cls(forwards=int(number))
