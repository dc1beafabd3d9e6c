"""Supervoxels weighted by their mean gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.masks import supervoxels
from tubelens.methods.gradients import over_bands
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder, voxels
from tubelens.methods.spectrum import Apart, apart, check
from tubelens.model import Model
from tubelens.pixels import backward
from tubelens.relu import Relus
from tubelens.running import RUN, Run
from tubelens.target import Logit, Target

Of = Literal["gradient", "guided", "input x gradient"]


@dataclass(frozen=True)
class SWAG:
    """Each supervoxel of the clip gets the mean magnitude of the gradient inside it.

    Hartley et al., "SWAG-V: Explanations for Video Using Superpixels Weighted by Average Gradients" (WACV
    2022), after SWAG (WACV 2021): the map of the gradient is sharp but scattered, and averaging it over
    regions that follow the picture's edges makes it whole. Written from the description in the abstract:
    regions are SLIC supervoxels of colour and place, through time as through space; the gradient's largest
    magnitude over the bands is averaged.

    Attributes:
        n: supervoxels asked for; SLIC gives about as many.
        of: what is averaged: `gradient`, `guided` (guided backpropagation), or `input x gradient`.
        signed: average the sum over the bands with its sign, so that regions can speak against the target.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`;
            what has no sign is reduced by `max`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    n: int = 500
    of: Of = "gradient"
    signed: bool = False
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        if self.n < 1:
            raise OptionError(f"SWAG needs n >= 1 supervoxels, not {self.n}")
        if self.of not in ("gradient", "guided", "input x gradient"):
            raise OptionError(f"SWAG averages 'gradient', 'guided' or 'input x gradient', not {self.of!r}")

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and a backward a target.

        Raises:
            LayerError, OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        relus = Relus() if self.of == "guided" else None
        found = backward(model, clip.pixels[None], targets, run, relus=relus)
        values = found.gradients[:, 0]
        if self.of == "input x gradient":
            values = values * clip.pixels.to(values)
        regions = supervoxels(clip.pixels, self.n)
        rule = "sum" if self.signed else "max"

        def reduce(own: Tensor) -> Tensor:
            return averaged(over_bands(own, rule).cpu(), regions)

        maps, by_band = reduce(values), split.reduced(values, reduce)
        record = Recorder(self, model, found.scores, backwards=len(targets), start=start)
        facts = [{"supervoxels": float(regions.unique().numel())}] * len(targets)
        return record.write([voxels(m) for m in maps], clip, targets, facts, by_band=by_band)


def averaged(values: Float[Tensor, "n t h w"], regions: Int[Tensor, "t h w"]) -> Float[Tensor, "n t h w"]:
    """Each voxel replaced by the mean over its region."""
    _, index = regions.unique(return_inverse=True)
    index = index.flatten()
    count = torch.bincount(index)
    sums = torch.zeros(len(values), len(count), dtype=torch.double)
    sums.index_add_(1, index, values.double().flatten(1))
    return (sums / count)[:, index].view(values.shape).to(values.dtype)
