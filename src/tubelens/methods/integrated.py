"""Integrated gradients (Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError, nearest
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.methods.gradients import IN_FORWARDS, Bands, contrast, known_bands, over_bands
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder, voxels
from tubelens.methods.spectrum import Apart, apart, check
from tubelens.model import Model, frozen
from tubelens.pixels import weighted_sum
from tubelens.running import RUN, Passes, Run
from tubelens.target import Logit, Target, evaluate

Rule = Literal["gauss", "midpoint", "right"]
TOLERANCE = 0.01  # of the difference that the map should add up to; beyond it the user is told


@dataclass(frozen=True)
class IntegratedGradients:
    """Pixel minus baseline, times the mean gradient on the straight line between them.

    `(I - B) int_0^1 g(B + a (I - B)) da` (equation 1), the integral by quadrature. The map adds up to
    `S(I) - S(B)` (completeness) but for the error of the quadrature, which is measured and reported as
    `completeness_error`, a share of that difference. Only with bands reduced by `sum` is it the map itself
    that adds up. The baseline speaks: where the clip equals it, the map is zero.

    Attributes:
        steps: gradients along the line.
        baseline: where the line starts: a fill of the whole clip, or its name (see `tubelens.fill`).
        rule: `gauss` (Gauss-Legendre), `midpoint`, or `right`: `a = i / steps`, the paper's equation 3, which
            with one step and a black baseline is input times gradient.
        bands: how the bands are reduced.
        spectrum: `"each"`: also a map of every group of bands, see `tubelens.methods.gradients`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "gradients"
    explains: ClassVar[type[Logit]] = Logit

    steps: int = 32
    baseline: str | Fill = "black"
    rule: Rule = "gauss"
    bands: Bands = "sum"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        if self.steps < 1:
            raise OptionError(f"integrated gradients need at least 1 step, not {self.steps}")
        known_bands(self.bands)
        nodes(1, self.rule)
        fill(self.baseline)

    def __call__(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from `steps` forwards, `steps` backwards a target, and two for the ends.

        Raises:
            OptionError: the clip is its own baseline.
            LayerError, ScoreError: see `tubelens.pixels.gradients`.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        model = frozen(model, clip.pixels[None])
        change = contrast(clip, self.baseline)
        scores = torch.cat([model(p[None]) for p in (clip.pixels, clip.pixels - change)])
        per_band = self._integral(model, clip, targets, run, change)
        ends = evaluate(targets, scores, model.output).tolist()
        maps = over_bands(per_band, self.bands)
        by_band = split.reduced(per_band, partial(over_bands, bands=self.bands))
        sums: list[float] = per_band.double().sum(dim=(1, 2, 3, 4)).tolist()
        record = Recorder(
            self,
            model,
            scores[:1],
            forwards=2 + self.steps,
            backwards=self.steps * len(targets),
            start=start,
        )
        found = []
        rows = zip(targets, maps, by_band, sums, ends, strict=True)
        for target, grid, bands, total, (at_clip, at_baseline) in rows:
            whole = at_clip - at_baseline
            error = abs(total - whole) / max(abs(whole), 1e-6)
            facts = {"baseline_score": at_baseline, "completeness_error": error}
            notes = (
                f"the attributions add up to {total:.4g} in place of {whole:.4g} (off by {error:.1%}):"
                " use more steps",
            )
            own = replace(record, notes=notes if error > TOLERANCE else ())
            found += own.write([voxels(grid)], clip, [target], [facts], by_band=[bands])
        return found

    def per_band(
        self, model: Model, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> Float[Tensor, "n c t h w"]:
        """The attributions, band by band; they add up to `S(I) - S(B)`."""
        model = frozen(model, clip.pixels[None])
        return self._integral(model, clip, targets, run, contrast(clip, self.baseline))

    def passes(self, model: Model, clip: Clip) -> Passes:
        """Two forwards for the ends, then a forward and backward a step."""
        return Passes(2, self.steps)

    def afford(self, forwards: int, model: Model, clip: Clip) -> IntegratedGradients:
        """As many steps as the budget buys."""
        steps = (forwards - 2) // IN_FORWARDS
        if steps < 1:
            raise OptionError(
                f"integrated gradients need at least {2 + IN_FORWARDS} forwards, not {forwards}"
            )
        return replace(self, steps=steps)

    def _integral(
        self,
        model: Model,
        clip: Clip,
        targets: Sequence[Target],
        run: Run,
        change: Float[Tensor, "c t h w"],
    ) -> Float[Tensor, "n c t h w"]:
        places, weights = nodes(self.steps, self.rule)

        def line() -> Iterator[Float[Tensor, "c t h w"]]:
            for a in places:
                yield clip.pixels - (1 - a) * change

        mean, _ = weighted_sum(model, line(), weights, targets, run)
        return mean * change.to(mean)


def nodes(steps: int, rule: str) -> tuple[list[float], list[float]]:
    """Places in [0, 1] and weights (sum 1) of a quadrature.

    Raises:
        OptionError: unknown rule.
    """
    match rule:
        case "gauss":
            x, w = np.polynomial.legendre.leggauss(steps)
            return ((x + 1) / 2).tolist(), (w / 2).tolist()
        case "midpoint":
            return [(i + 0.5) / steps for i in range(steps)], [1 / steps] * steps
        case "right":
            return [(i + 1) / steps for i in range(steps)], [1 / steps] * steps
    known = ("gauss", "midpoint", "right")
    raise OptionError(f"unknown rule {rule!r}{nearest(rule, known)}: one of {', '.join(known)}")
