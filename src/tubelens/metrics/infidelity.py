"""Infidelity: how well a map predicts what happens to the score when the clip is perturbed.

Yeh et al., "On the (In)fidelity and Sensitivity of Explanations" (NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.masks import Cells, Triple
from tubelens.metrics.anchors import (
    ORACLE,
    RANDOM,
    TIME_MEAN,
    between,
    common_maps,
    time_mean,
    warnings_for,
)
from tubelens.metrics.options import check_cell, check_seed
from tubelens.metrics.protocol import Score
from tubelens.metrics.sharing import explained
from tubelens.model import Scorer
from tubelens.running import RUN, Run
from tubelens.scoring import score_variants
from tubelens.truth import Truth
from tubelens.variants import Batch, Make, Masked, Variants

Predicted = Float64[Tensor, "*m n"]
LEAST = 1e-6
"""Mean squared fall of the score below which there is nothing to predict."""


def infidelity(
    predicted: Predicted, falls: Predicted, scaled: bool = False
) -> tuple[Float64[Tensor, "*m"], Float64[Tensor, "*m"]]:
    """`mean_i (beta d_i - f_i)^2` over the perturbations, and beta.

    Args:
        predicted: `d_i = I_i^T phi`, what the map phi says that perturbation `I_i` takes from the score.
        falls: `f_i = f(x) - f(x - I_i)`, what it takes.
        scaled: beta is the best factor that is not negative, `max(0, sum_i d_i f_i) / sum_i d_i^2` (0 where
            all d are 0); else 1.
    """
    beta = torch.ones_like(predicted[..., 0])
    if scaled:
        square = predicted.pow(2).sum(dim=-1)
        beta = ((predicted * falls).sum(dim=-1) / square).where(square > 0, 0.0).clamp_min(0)
    return (beta[..., None] * predicted - falls).pow(2).mean(dim=-1), beta


def random_tubes(size: Triple, cells: Triple, n: int, seed: int = 0) -> Cells:
    """Masks that each remove one box in space and time, whole cells of it.

    A box is up to half of the cells high and wide, `ceil(cells / 2)`, and up to all of them long in time,
    since what is removed for a moment is seen before and after. Sizes and places are drawn uniformly.

    Args:
        size: frames, height and width.
        cells: that the clip is divided into along each axis, cut to its size.
        n: masks.
        seed: of lengths and places.
    """
    counts = [min(c, s) for c, s in zip(cells, size, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    inside = torch.ones(n, 1, 1, 1, dtype=torch.bool)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    for axis, (count, voxels) in enumerate(zip(counts, size, strict=True)):
        u = torch.rand(2, n, generator=generator, dtype=torch.float64)
        longest = count if axis == 0 else (count + 1) // 2
        length = 1 + (u[0] * longest).long()
        first = (u[1] * (count - length + 1)).long()
        number = torch.arange(count)
        along = (number >= first[:, None]) & (number < (first + length)[:, None])
        ones = [1, 1, 1]
        ones[axis] = -1
        inside = inside & along.view(n, *ones)
        labels = labels * count + (torch.arange(voxels) * count // voxels).view(ones)
    return Cells(labels, ~inside.flatten(1))


@dataclass(frozen=True, eq=False)
class NoisyFill:
    """Clips replaced throughout by a fill with normal noise on it, another noise each.

    Attributes:
        fill: what the noise lies on.
        sigma: its standard deviation, in pixels of [0, 1].
        n: clips.
        seed: of the noise.
    """

    fill: Fill
    sigma: float
    n: int
    seed: int = 0

    def __len__(self) -> int:
        return self.n

    def over(self, pixels: Float[Tensor, "c T H W"]) -> Make:
        """Pixels may leave [0, 1], as published."""
        base = self.fill.over(pixels)(torch.zeros_like(pixels[:1]))[0]

        def make(start: int, stop: int) -> Batch:
            clips = torch.empty(stop - start, *pixels.shape)
            for row, number in enumerate(range(start, stop)):  # a stream each: batches do not matter
                generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
                clips[row].normal_(std=self.sigma, generator=generator)
            return base + clips.to(pixels), None

        return make


@dataclass(frozen=True)
class Infidelity:
    """Mean squared error of the map's predictions of how much the score falls: lower is better.

    `E_I (I^T phi - (f(x) - f(x - I)))^2` over random perturbations I of the clip, estimated from n of them
    that all maps share. A map has one value a voxel for all bands, and in units of its own, so:

    - `perturbation="tubes"`: random boxes in space and time are replaced by the fill. I is 1 in them and 0
      elsewhere (the paper's square removal, with binary I as for maps that stand for contributions), and
      `I^T phi` what the map says the box contributes.
    - `perturbation="noise"`: the whole clip is replaced by the fill with noise on it. I is what was taken
      away, summed over the bands, as for maps that are gradients (the paper's noisy baseline). Where nothing
      of a class survives the noise, all falls are alike, and only the sum of the map is tested.

    With `scaled`, predictions are first multiplied by the factor that suits them best, as captum's
    `normalize` has it: maps that differ in scale alone are equally good. Unlike captum's, the factor is never
    negative: a map of the wrong sign predicts nothing, instead of as well as one of the right sign. Anchors,
    which have no units, are always scaled; so without `scaled` a map is neither compared with them nor
    normalised. Voxels of a map that are NaN predict nothing.

    Attributes:
        n: perturbations.
        perturbation: see above.
        cells: that boxes are made of, along time, height and width; cut to the clip's size.
        fill: what takes the place of what is removed: a name in `tubelens.fill.FILLS`, or a fill.
        sigma: standard deviation of the noise.
        scaled: see above.
        score: probability or logit of the target's class; a `Contrast` stays itself.
        seed: of the perturbations and of the random anchor.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    n: int = 100
    perturbation: Literal["tubes", "noise"] = "tubes"
    cells: Triple = (4, 8, 8)
    fill: str | Fill = "mean"
    sigma: float = 0.2
    scaled: bool = True
    score: Literal["prob", "logit"] = "prob"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 2:
            raise OptionError(f"infidelity needs n >= 2 perturbations, not {self.n}")
        if self.perturbation not in ("tubes", "noise"):
            raise OptionError(f"the perturbation is 'tubes' or 'noise', not {self.perturbation!r}")
        check_cell(self.cells, "cells")
        check_seed(self.seed)
        if not 0 <= self.sigma < float("inf"):
            raise OptionError(f"the noise's sigma must be 0 or more, not {self.sigma}")
        if self.score not in ("prob", "logit"):
            raise OptionError(f"the score is 'prob' or 'logit', not {self.score!r}")
        fill(self.fill)

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation, from `1 + n` forwards for all of them; anchors cost none.

        Facts: `beta`, the factor; `error`, the value as a share of the mean squared fall, 1 for a map that
        predicts nothing; `correlation` of predictions and falls (sensitivity-n, Ancona et al., ICLR 2018).

        Raises:
            OptionError: a map or a truth of another size than the clip.
            ScoreError: NaN or infinity.
        """
        if not explanations:
            return []
        common = common_maps(clip.size, clip, truth, self.seed)
        own = [e.saliency for e in explanations]
        maps = torch.stack([*own, *(time_mean(m) for m in own), *common.values()]).nan_to_num(nan=0.0)
        family = self.family(clip.size)
        targets = [explained(e.target, self.score) for e in explanations]
        scored = score_variants(model, clip, family, targets, replace(run, seconds=None))
        left = torch.cat([part.values.double().cpu() for part in scored], dim=1)
        intact = scored.intact.double().cpu()[:, None]
        predicted = self._predicted(family, clip, maps)
        rows = []
        for j, fall in enumerate(intact - left):
            value, beta = (float(x) for x in infidelity(predicted[j], fall, self.scaled))
            best, _ = infidelity(predicted, fall.expand_as(predicted), scaled=True)
            errors: list[float] = best.tolist()
            m = len(explanations)
            anchors = dict(zip(common, errors[2 * m :], strict=True)) | {TIME_MEAN: errors[m + j]}
            whole = float(fall.pow(2).mean())
            notes, scale = scored.notes, None
            if self.scaled:
                notes += warnings_for(value, anchors, self.higher_is_better)
            if whole < LEAST:
                notes += ("hardly any perturbation changes the score: there is nothing to predict",)
            elif self.scaled:  # as shares of what there is to predict, which is far below 1 as a square
                parts = {name: anchors[name] / whole for name in (RANDOM, ORACLE) if name in anchors}
                scale, said = between(value / whole, parts, self.higher_is_better)
                notes += said
            facts = {"beta": beta, "error": value / whole if whole else float("nan")}
            facts["correlation"] = _correlation(predicted[j], fall)
            rows.append(
                Score(
                    value,
                    self.higher_is_better,
                    anchors,
                    scale,
                    forwards=scored.forwards / m,
                    facts=facts,
                    notes=notes,
                )
            )
        return rows

    def family(self, size: Triple) -> Variants:
        """The perturbed clips of a clip of so many frames, rows and columns."""
        if self.perturbation == "noise":
            return NoisyFill(fill(self.fill), self.sigma, self.n, self.seed)
        return Masked(random_tubes(size, self.cells, self.n, self.seed), fill(self.fill))

    def _predicted(
        self, family: Variants, clip: Clip, maps: Float[Tensor, "m T H W"]
    ) -> Float64[Tensor, "m n"]:
        """`I^T phi` of every map and perturbation."""
        flat = maps.double().flatten(1)
        if isinstance(family, Masked) and isinstance(family.masks, Cells):
            labels, kept = family.masks.labels.flatten(), family.masks.kept
            sums = flat.new_zeros(len(flat), kept.shape[1]).index_add_(1, labels, flat)
            return sums @ (~kept).double().T
        pixels = clip.pixels.cpu()
        make = family.over(pixels)
        taken = ((pixels - make(i, i + 1)[0][0]).sum(dim=0) for i in range(len(family)))
        return torch.stack([flat @ t.double().flatten() for t in taken], dim=1)


def _correlation(x: Float64[Tensor, "n"], y: Float64[Tensor, "n"]) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else float("nan")
