"""The gradient at the pixels and its simplest relatives.

All are in the canonical pixel space, [0, 1] before normalisation, and signed band by band until the bands are
reduced to one value a voxel. `per_band` gives them before that.

With `spectrum="each"` every group of bands has a map of its own too, from the same passes: the group's bands
reduced by the rule that makes the map of all of them. Reduced by `sum` or `abs` these maps add up to that
map; by `max` they need not: that map is the largest of them at every voxel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder, voxels
from tubelens.methods.spectrum import Apart, apart, check
from tubelens.model import Model, frozen
from tubelens.pixels import backward, weighted_sum
from tubelens.running import RUN, Passes, Run
from tubelens.target import Logit, Target

Bands = Literal["sum", "abs", "max"]
"""How the bands become one value: their signed sum, the sum of their magnitudes, the largest magnitude."""
BANDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda values: values.sum(dim=1),
    "abs": lambda values: values.abs().sum(dim=1),
    "max": lambda values: values.abs().amax(dim=1),
}
IN_FORWARDS = 3  # what a forward and backward down to the pixels counts as


def over_bands(values: Float[Tensor, "n c t h w"], bands: str) -> Float[Tensor, "n t h w"]:
    """One value a voxel.

    Raises:
        OptionError: unknown rule.
    """
    return BANDS[known_bands(bands)](values)


def known_bands(bands: str) -> str:
    """The rule's name, if there is one.

    Raises:
        OptionError: unknown rule.
    """
    if bands not in BANDS:
        raise OptionError(f"bands must be {', '.join(map(repr, BANDS))}, not {bands!r}")
    return bands


def contrast(clip: Clip, baseline: str | Fill) -> Float[Tensor, "c t h w"]:
    """Clip minus baseline: what a fill changes when it takes the whole clip's place.

    Raises:
        OptionError: the clip is its own baseline.
    """
    gone = torch.zeros(clip.size, dtype=clip.pixels.dtype, device=clip.pixels.device)
    change = clip.pixels - fill(baseline).over(clip.pixels)(gone[None])[0]
    if not bool(change.any()):
        raise OptionError(
            f"the clip is its own baseline ({baseline!r}), so nothing can be attributed: choose another"
        )
    return change


@dataclass(frozen=True)
class Saliency:
    """The gradient's magnitude: `max_c |dS/dI_c|`.

    Simonyan et al., "Deep Inside Convolutional Networks" (ICLR workshop 2014), section 3.1, at every voxel of
    a clip in place of every pixel of an image. It says where the score is sensitive, not what speaks for it.

    Attributes:
        bands: how the bands are reduced; the paper takes the largest magnitude.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    bands: Bands = "max"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        known_bands(self.bands)

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and a backward a target.

        Raises:
            LayerError, OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        found = backward(model, clip.pixels[None], targets, run)
        maps = over_bands(found.gradients[:, 0], self.bands)
        by_band = split.reduced(found.gradients[:, 0], partial(over_bands, bands=self.bands))
        record = Recorder(self, model, found.scores, backwards=len(targets), start=start)
        return record.write([voxels(m) for m in maps], clip, targets, by_band=by_band)

    def per_band(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> Float[Tensor, "n c t h w"]:
        """The signed gradient, band by band."""
        return backward(model, clip.pixels[None], targets, run).gradients[:, 0]


@dataclass(frozen=True)
class InputXGradient:
    """Pixel times gradient, summed over the bands: `sum_c (I_c - B_c) dS/dI_c`, with the baseline B black.

    Shrikumar et al., "Not Just a Black Box" (2016). To first order it is what putting the baseline in a
    voxel's place would take from the score. For a network that is linear in the pixels the map adds up to the
    score less its value on the baseline.

    The paper multiplies by what the network eats, which is the clip after normalisation; that is the same as
    a baseline at the normalisation's mean. Black follows integrated gradients' default, but makes bright
    voxels look important and dark ones not: `mean` found much more on planted clips.

    Attributes:
        bands: how the bands are reduced.
        baseline: what pixels are compared with: a fill or its name (see `tubelens.fill`).
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    bands: Bands = "sum"
    baseline: str | Fill = "black"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        known_bands(self.bands)
        fill(self.baseline)

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and a backward a target.

        Raises:
            LayerError, OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        found = backward(model, clip.pixels[None], targets, run)
        product = found.gradients[:, 0] * contrast(clip, self.baseline).to(found.gradients)
        maps = over_bands(product, self.bands)
        by_band = split.reduced(product, partial(over_bands, bands=self.bands))
        record = Recorder(self, model, found.scores, backwards=len(targets), start=start)
        return record.write([voxels(m) for m in maps], clip, targets, by_band=by_band)

    def per_band(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> Float[Tensor, "n c t h w"]:
        """The signed product, band by band."""
        found = backward(model, clip.pixels[None], targets, run).gradients[:, 0]
        return found * contrast(clip, self.baseline).to(found)


@dataclass(frozen=True)
class SmoothGrad:
    """The mean of the gradients at noisy copies of the clip: `1/n sum_i g(I + e_i)`, `e ~ N(0, s^2)`.

    Smilkov et al., "SmoothGrad: removing noise by adding noise" (2017), equation 1, where s is a share of
    the clip's own range, `sigma (max I - min I)`. The noise is independent from frame to frame and drawn
    copy by copy, so that the map does not depend on the batch. Noisy pixels may leave [0, 1], as published.

    Attributes:
        n: copies. 50 in the paper.
        sigma: standard deviation of the noise as a share of the range; the paper finds .1 to .2 best.
        seed: of the noise.
        squared: the mean of the squares instead ("SmoothGrad squared", Hooker et al., "A Benchmark for
            Interpretability Methods in Deep Neural Networks", NeurIPS 2019).
        bands: how the bands are reduced.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    n: int = 50
    sigma: float = 0.15
    seed: int = 0
    squared: bool = False
    bands: Bands = "abs"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        known_bands(self.bands)
        if self.n < 1:
            raise OptionError(f"SmoothGrad needs n >= 1 noisy copies, not {self.n}")
        if not 0 <= self.sigma < float("inf"):
            raise OptionError(
                f"SmoothGrad's sigma is a share of the clip's range, 0 or more, not {self.sigma}"
            )

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from `n` forwards, and `n` backwards a target.

        With `run.seconds` it stops after that time, with the copies that it has.

        Raises:
            LayerError, OptionError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        scores = model(clip.pixels[None])
        mean, done = self._mean(model, clip, targets, run, start)
        maps = over_bands(mean, self.bands)
        by_band = split.reduced(mean, partial(over_bands, bands=self.bands))
        notes = () if done == self.n else (f"stopped by time after {done} of {self.n} noisy copies",)
        record = Recorder(
            self,
            model,
            scores,
            seed=self.seed,
            forwards=1 + done,
            backwards=done * len(targets),
            notes=notes,
            start=start,
        )
        facts = [{"samples": float(done)}] * len(targets)
        return record.write([voxels(m) for m in maps], clip, targets, facts, by_band=by_band)

    def per_band(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> Float[Tensor, "n c t h w"]:
        """The mean, band by band."""
        return self._mean(model, clip, targets, run, time.perf_counter())[0]

    def noisy(self, clip: Clip) -> Iterator[Float[Tensor, "c t h w"]]:
        """The copies, one after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        pixels = clip.pixels.float().cpu()
        spread = self.sigma * (pixels.max() - pixels.min())
        for _ in range(self.n):
            yield pixels + spread * torch.randn(pixels.shape, generator=generator)

    def passes(self, model: Model, clip: Clip) -> Passes:
        """A forward for the scores, then a forward and backward a copy."""
        return Passes(1, self.n)

    def afford(self, forwards: int, model: Model, clip: Clip) -> SmoothGrad:
        """As many copies as the budget buys."""
        n = (forwards - 1) // IN_FORWARDS
        if n < 1:
            raise OptionError(f"SmoothGrad needs at least {1 + IN_FORWARDS} forwards, not {forwards}")
        return replace(self, n=n)

    def _mean(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run, start: float
    ) -> tuple[Float[Tensor, "n c t h w"], int]:
        model = frozen(model, clip.pixels[None])
        power = 2 if self.squared else 1
        until = None if run.seconds is None else start + run.seconds
        total, done = weighted_sum(
            model, self.noisy(clip), [1.0] * self.n, targets, run, power=power, until=until
        )
        return total / done, done
