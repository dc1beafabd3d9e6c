"""Values that are no numbers: cells of a sensor that died, or pixels that were masked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from tubelens.errors import VideoError
from tubelens.video.measured_files import Recording

MOST = 0.5
"""Share of dead values beyond which a recording is refused."""


@dataclass(frozen=True)
class Survey:
    """What the values of a recording are like, those that are no numbers left out.

    Attributes:
        low, high: the least and the greatest.
        outside: number of the first frame with a value outside [0, 1], None where there is none.
        cells: places of the sensor that are dead in some frame.
        dead: values that are dead.
        total: all values.
    """

    low: float
    high: float
    outside: int | None
    cells: int
    dead: int
    total: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about dead cells."""
        if not self.dead:
            return ()
        share = 100 * self.dead / self.total
        said = f"{share:.1f}" if share >= 0.05 else "less than 0.1"
        which, their = (f"{self.cells} dead cells were", "their")
        if self.cells == 1:
            which, their = "1 dead cell was", "its"
        return (f"{which} filled from {their} neighbours ({said} % of the values)",)


def survey(recording: Recording, refuse: bool = False) -> Survey:
    """Look at every value once, a frame at a time.

    Args:
        recording: what to look at.
        refuse: complain about the first value that is no number.

    Raises:
        VideoError: a frame without a number, or more than half the values dead; with `refuse` any.
    """
    low, high, outside, dead = np.inf, -np.inf, None, 0
    h, w = recording.size
    ever = np.zeros((h, w, recording.channels), dtype=bool)
    for number, frame in enumerate(recording.read(range(recording.count))):
        least, most = float(frame.min()), float(frame.max())  # NaN where there is one
        if not np.isfinite(least + most):
            gone = ~np.isfinite(frame)
            if refuse:
                _complain(recording, number, gone, frame)
            if gone.all(axis=(0, 1)).any():
                raise VideoError(f"{recording.where(number)}: has no value that is a number: leave it out")
            ever |= gone
            dead += int(gone.sum())
            live = frame[~gone]
            least, most = float(live.min()), float(live.max())
        low, high = min(low, least), max(high, most)
        if outside is None and not (least >= 0 and most <= 1):
            outside = number
    total = recording.count * ever.size
    if dead > MOST * total:
        raise VideoError(
            f"{recording.files[0]}: {dead / total:.0%} of its values are no numbers: too many to fill them"
        )
    return Survey(low, high, outside, int(ever.any(axis=2).sum()), dead, total)


def _complain(recording: Recording, number: int, gone: np.ndarray, frame: np.ndarray) -> None:
    row, column, channel = (int(i) for i in np.argwhere(gone)[0])
    band = f", channel {channel}" if recording.channels > 1 else ""
    raise VideoError(
        f"{recording.where(number)}: the value at row {row}, column {column}{band} is"
        f" {frame[row, column, channel]}: dead=fill takes the mean of its neighbours"
    )


def filled(frame: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """Every dead value takes the mean of its live 8-neighbours in the same channel.

    Where a value has none, it waits for its neighbours to be filled: a hole fills from its rim, a ring at a
    time. A channel without a live value stays as it is.
    """
    wide = np.pad(frame.astype(np.float64), ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    y, x, c = np.nonzero(~np.isfinite(frame))
    while len(y):
        around = np.stack([wide[y + i, x + j, c] for i in range(3) for j in range(3)])  # itself is dead
        live = np.isfinite(around)
        counts = live.sum(axis=0)
        ready = counts > 0
        if not ready.any():
            break
        means = np.where(live, around, 0.0).sum(axis=0)[ready] / counts[ready]
        wide[y[ready] + 1, x[ready] + 1, c[ready]] = means
        y, x, c = y[~ready], x[~ready], c[~ready]
    return wide[1:-1, 1:-1]
