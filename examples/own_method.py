"""A method of one's own, from its formula to the test bench.

    tubelens planted --method examples/own_method.py:TimeProfile rise tubes --task dir transient
    tubelens explain VIDEO --model r3d_18 --method "examples/own_method.py:TimeProfile(n=8)"

A method is a frozen dataclass. It says what it needs and what a class name stands for, takes a clip and
targets, and returns one explanation a target. Everything expensive is borrowed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

import tubelens as tl
from tubelens.fill import fill
from tubelens.masks import Cells
from tubelens.methods.record import Recorder, voxels
from tubelens.running import RUN
from tubelens.scoring import score_masked


@dataclass(frozen=True)
class TimeProfile:
    """When the evidence is there: what the target loses while a piece of time is replaced by the mean."""

    needs: ClassVar[str] = "scorer"  # or "layers", or "gradients"
    explains: ClassVar[type] = tl.Prob

    n: int = 4

    def __call__(self, model, clip, targets, run=RUN):
        frames = torch.arange(clip.size[0]) * self.n // clip.size[0]
        pieces = frames[:, None, None].expand(clip.size)
        kept = ~torch.eye(self.n, dtype=torch.bool)  # one row a masked clip: the pieces that it keeps
        scored = score_masked(model, clip, Cells(pieces, kept), fill("mean"), targets, run)
        values = torch.cat([part.values for part in scored], dim=1)
        maps = (scored.intact[:, None] - values)[:, pieces]
        record = Recorder(self, model, scored.scores, forwards=scored.forwards, precision=scored.precision)
        return record.write([voxels(m) for m in maps], clip, targets)
