"""Selective relevance: what of a map is due to motion, and what to appearance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.methods.gradients import InputXGradient
from tubelens.methods.protocol import FromCapture, Method, Needs, Scalable
from tubelens.methods.record import voxels
from tubelens.model import Model
from tubelens.running import RUN, Passes, Run
from tubelens.target import Target

ROUNDING = 1e-5  # of the largest relevance: a coarse map that stands still is not quite still once upsampled


@dataclass(frozen=True)
class Selective:
    """A map where it changes over time, or where it does not.

    Hiley et al., "Explaining Motion Relevance for Activity Recognition in Video Deep Learning Models" (2020).
    With R the base's map at the clip's resolution and D its derivative over time (a 3x3x3 Sobel kernel),
    motion is `R 1[|D| > sigma std|D|]`, and appearance the rest of R: the two add up to it. The standard
    deviation is of the magnitudes, as in the published code. Its zero padding is not kept: it makes the first
    and the last frame motion wherever something is relevant; here the borders repeat, so that a still map has
    no motion. Where the base tells bands apart, as `integrated_gradients(spectrum=each)` does, their maps are
    split at the same places.

    Attributes:
        base: the method whose map is split.
        part: `motion` or `appearance`.
        sigma: threshold in standard deviations; higher keeps less as motion.
    """

    base: Any = field(default_factory=InputXGradient)
    part: Literal["motion", "appearance"] = "motion"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.base, Method):
            raise OptionError(
                f"Selective needs a method as its base, such as InputXGradient(), not {self.base!r}"
            )
        if self.part not in ("motion", "appearance"):
            raise OptionError(f"Selective's part is 'motion' or 'appearance', not {self.part!r}")
        if not 0 <= self.sigma < float("inf"):
            raise OptionError(f"Selective's sigma is a number of standard deviations, not {self.sigma}")

    @property
    def needs(self) -> Needs:
        """What the base needs."""
        wanted: Needs = self.base.needs
        return wanted

    @property
    def explains(self) -> Any:
        """What the base explains."""
        return self.base.explains

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, at the base's cost.

        Raises:
            TubelensError: as the base.
        """
        start = time.perf_counter()
        found = []
        for why in self.base(model, clip, targets, run):
            relevance = why.saliency
            moving = in_motion(relevance, self.sigma)
            kept = moving if self.part == "motion" else ~moving
            mass = relevance.double().abs().sum().clamp_min(1e-30)
            share = float(relevance.double().abs()[moving].sum() / mass)
            record = replace(
                why.provenance, method=repr(self), facts={**why.provenance.facts, "motion_share": share}
            )
            by_band = tuple((name, voxels(why.band(name).saliency * kept)) for name in why.bands)
            parts = (voxels(relevance * kept),)
            found.append(replace(why, parts=parts, provenance=record, align="centres", by_band=by_band))
        seconds = time.perf_counter() - start
        return [replace(e, provenance=replace(e.provenance, seconds=seconds)) for e in found]

    def passes(self, model: Model, clip: Clip) -> Passes:
        """The base's."""
        if isinstance(self.base, Scalable):
            return self.base.passes(model, clip)
        return Passes(1) if isinstance(self.base, FromCapture) else Passes(0, 1)

    def afford(self, forwards: int, model: Model, clip: Clip) -> Selective:
        """With the base that the budget buys; as it is where the base's cost is fixed."""
        if isinstance(self.base, Scalable):
            return replace(self, base=self.base.afford(forwards, model, clip))
        return self


def in_motion(relevance: Float[Tensor, "t h w"], sigma: float) -> Bool[Tensor, "t h w"]:
    """Where `|D|` exceeds `sigma` of its standard deviations, and rounding."""
    change = over_time(relevance).abs()
    least = ROUNDING * relevance.abs().max()
    return change > torch.maximum(sigma * change.std(correction=0), least)


def over_time(relevance: Float[Tensor, "t h w"]) -> Float[Tensor, "t h w"]:
    """The Sobel derivative over time: next frame minus the one before, smoothed by [1, 2, 1] in space."""
    smooth = torch.tensor([1.0, 2.0, 1.0], dtype=relevance.dtype, device=relevance.device)
    padded = F.pad(relevance[None, None], (1,) * 6, mode="replicate")[0, 0]
    step = padded[2:] - padded[:-2]  # first, so that what stands still gives exactly zero
    return F.conv2d(step[:, None], (smooth[:, None] * smooth)[None, None])[:, 0]
