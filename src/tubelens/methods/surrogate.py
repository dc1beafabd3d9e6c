"""Linear surrogates on supervoxels: LIME (Ribeiro et al., "Why Should I Trust You?", KDD 2016) and KernelSHAP
(Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import ClassVar

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.masks import Cells, Masks, supervoxels
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.spectrum import Spectrum, Split, apart, check
from tubelens.model import Scorer
from tubelens.running import RUN, Passes, Run
from tubelens.scoring import Scored, score_masked
from tubelens.target import Prob, Target


@dataclass(frozen=True)
class LIME:
    """The weights of a linear model of the target in which regions of the clip are kept.

    Regions are SLIC supervoxels, `z` in {0, 1}^d says which of them are kept, and each of n samples keeps a
    region with probability one half. The surrogate `g(z) = b + w z` minimises (eq. 1 and 2)

        sum_i exp(-D_i^2 / width^2) (f_i - g(z_i))^2 + ridge |w|^2

    over the samples and the intact clip, D being the cosine distance of z to all ones, `1 - sqrt(|z| / d)`.
    A region's voxels all have its w. (The authors' code takes the square root of the kernel: its width .25 is
    `width=0.25 * 2**0.5` here; ridge 1 is its default, and b is not penalised there either.)

    All targets share the forwards. The map is signed, one value a voxel. `run.seconds` ends it early, with
    the samples scored by then.

    Groups of bands (`spectrum`) have maps of their own, and the map is their sum. `independent`: each pair of
    a region and a group is kept or removed by itself, and one surrogate has a weight for every pair. `each`:
    a surrogate for every group, from samples in which only that group's part of a region is removed.

    Attributes:
        n: samples; as many forwards. With `each` for every group of bands.
        supervoxels: wanted number of regions.
        width: of the kernel.
        ridge: penalty.
        fill: what replaces what is removed: a name in `tubelens.fill.FILLS`, or a fill.
        seed: of the samples.
        spectrum: `"joint"`: a region is kept or removed in all bands; `"each"`, `"independent"`: see above.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "scorer"
    explains: ClassVar[type[Prob]] = Prob

    n: int = 1000
    supervoxels: int = 150
    width: float = 0.25
    ridge: float = 1.0
    fill: str | Fill = "mean"
    seed: int = 0
    spectrum: Spectrum = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        fill(self.fill)
        if self.n < 2 or self.supervoxels < 2:
            raise OptionError(
                f"LIME needs n >= 2 samples and 2 supervoxels, not {self.n} and {self.supervoxels}"
            )
        if not self.width > 0 or not self.ridge >= 0:
            raise OptionError(f"LIME needs width > 0 and ridge >= 0, not {self.width} and {self.ridge}")

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, all from the same forwards.

        Raises:
            OptionError: the clip is one single region.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        labels, cells = regions(clip, self.supervoxels)
        players = cells * split.together
        kept = self.samples(players)
        masks = split.masks(_kept(labels, kept, cells))
        scored = score_masked(model, clip, masks, fill(self.fill), targets, run)
        found, facts = [], []
        intact, under = _values(scored)
        for series in split.series(under):
            values = torch.cat([intact, series], dim=1)
            seen = kept[: series.shape[1]].double()
            z = torch.cat([torch.ones(1, players, dtype=torch.double), seen])
            weights = (-((1 - (z.sum(dim=1) / players).sqrt()) ** 2) / self.width**2).exp()
            coefficients, constants = weighted_ridge(z, values.T, weights, self.ridge)
            fits = determination(values.T, z @ coefficients + constants, weights)
            found.append(coefficients)
            facts.append(
                [
                    {"cells": float(cells), "samples": float(len(seen)), "r2": r2, "constant": b}
                    for r2, b in zip(fits.tolist(), constants.tolist(), strict=True)
                ]
            )
        return _written(self, model, scored, clip, targets, split, labels, found, facts, start)

    def samples(self, cells: int) -> Bool[Tensor, "n d"]:
        """Which of the regions each sample keeps, or of their parts; the first are the same for every n."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.n, cells, generator=generator) < 0.5

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """The samples and the intact clip; a pilot of the precision, where there is one, comes on top."""
        return Passes(self.n * apart(self, clip).rounds + 1)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> LIME:
        """The same with as many samples as so many forwards buy.

        Raises:
            OptionError: fewer than one for the intact clip, and two a surrogate.
        """
        rounds = apart(self, clip).rounds
        if forwards < 1 + 2 * rounds:
            raise OptionError(f"LIME needs at least {1 + 2 * rounds} forwards, the budget is {forwards}")
        return replace(self, n=(forwards - 1) // rounds)


@dataclass(frozen=True)
class KernelSHAP:
    """Shapley values of the regions of a clip: how its target is shared out among them.

    The players are SLIC supervoxels, the worth `v(S)` of a set of them is the target with only S kept. The
    Shapley values are the one solution of the least squares problem

        min_w  E[(v(S) - v({}) - sum_{i in S} w_i)^2]   subject to   sum_i w_i = v(all) - v({})

    where the size s of S has probability proportional to `(d - 1) / (s (d - s))`, 0 < s < d, and S is any set
    of that size (theorem 2; as an expectation: Covert and Lee, "Improving KernelSHAP", AISTATS 2021, eq. 7).
    It is solved over the sets drawn, each with its complement (their section 4.2: paired sampling). The
    constraint holds exactly, whatever was drawn. Where there are no more than n sets (the intact clip aside),
    every one is scored and the values are exact.

    A region's voxels all have its value. All targets share the forwards; the map is signed. `run.seconds`
    ends it early, with the sets scored by then (not where all of them are wanted).

    Groups of bands (`spectrum`) have maps of their own, and the map is their sum. `independent`: the players
    are the pairs of a region and a group, in one game, so that the values of all groups add up to
    `v(all) - v({})`. `each`: a game for every group, in which the other bands are intact; the values of a
    group add up to what removing it everywhere costs.

    Attributes:
        n: sets to score, the empty one among them; the intact clip comes on top. With `each` for every group.
        supervoxels: wanted number of regions.
        fill: what replaces what is removed: a name in `tubelens.fill.FILLS`, or a fill.
        seed: of the sets.
        spectrum: `"joint"`: a region is a player, in all bands; `"each"`, `"independent"`: see above.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "scorer"
    explains: ClassVar[type[Prob]] = Prob

    n: int = 1000
    supervoxels: int = 150
    fill: str | Fill = "mean"
    seed: int = 0
    spectrum: Spectrum = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        fill(self.fill)
        if self.n < 3 or self.supervoxels < 2:
            raise OptionError(
                f"SHAP needs n >= 3 sets and 2 supervoxels, not {self.n} and {self.supervoxels}"
            )

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, all from the same forwards.

        Raises:
            OptionError: the clip is one single region.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        labels, cells = regions(clip, self.supervoxels)
        players = cells * split.together
        exact = 2**players - 1 <= self.n
        kept = every_set(players) if exact else self.pairs(players)
        limits = replace(run, seconds=None) if exact else run
        masks = split.masks(_kept(labels, kept, cells))
        scored = score_masked(model, clip, masks, fill(self.fill), targets, limits)
        found, facts = [], []
        intact, under = _values(scored)
        for series in split.series(under):
            empty, sets = series[:, 0], series[:, 1:].T
            z = kept[1 : series.shape[1]].double()
            weights = shapley_kernel(players)[z.sum(dim=1).long()] if exact else torch.ones(len(z)).double()
            coefficients = constrained(z, sets - empty, weights, intact[:, 0] - empty)
            fits = determination(sets, z @ coefficients + empty, weights)
            found.append(coefficients)
            told = {"cells": float(cells), "samples": float(series.shape[1]), "exact": float(exact)}
            facts.append(
                [
                    told | {"r2": r2, "constant": constant}
                    for r2, constant in zip(fits.tolist(), empty.tolist(), strict=True)
                ]
            )
        return _written(self, model, scored, clip, targets, split, labels, found, facts, start)

    def pairs(self, cells: int) -> Bool[Tensor, "n d"]:
        """The empty set, then sets drawn by the Shapley kernel, each followed by its complement."""
        generator = torch.Generator().manual_seed(self.seed)
        count = self.n // 2
        sizes = torch.arange(1, cells)
        chances = 1.0 / (sizes * (cells - sizes))
        drawn = 1 + torch.multinomial(chances, count, replacement=True, generator=generator)
        places = torch.rand(count, cells, generator=generator).argsort(dim=1).argsort(dim=1)
        sets = places < drawn[:, None]
        both = torch.stack([sets, ~sets], dim=1).flatten(0, 1)
        return torch.cat([torch.zeros(1, cells, dtype=torch.bool), both])[: self.n]

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """The sets and the intact clip, fewer where the clip has few regions."""
        return Passes(self.n * apart(self, clip).rounds + 1)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> KernelSHAP:
        """The same with as many sets as so many forwards buy.

        Raises:
            OptionError: fewer than one for the intact clip, and for each game the empty one and a pair.
        """
        rounds = apart(self, clip).rounds
        if forwards < 1 + 3 * rounds:
            raise OptionError(f"SHAP needs at least {1 + 3 * rounds} forwards, the budget is {forwards}")
        return replace(self, n=(forwards - 1) // rounds)


# ── what they share ─────────────────────────────────────────────────────────────────────────────────────


def regions(clip: Clip, n: int) -> tuple[Int[Tensor, "T H W"], int]:
    """Supervoxels of a clip, and how many they are.

    Raises:
        OptionError: one only.
    """
    labels = supervoxels(clip.pixels, n)
    cells = int(labels.max()) + 1
    if cells < 2:
        raise OptionError(
            f"{clip.source.name} falls into a single region: ask for more supervoxels than {n}, or use RISE"
        )
    return labels, cells


def every_set(cells: int) -> Bool[Tensor, "n d"]:
    """All sets of regions but the full one, the empty one first."""
    numbers = torch.arange(2**cells - 1)
    return (numbers[:, None] >> torch.arange(cells)) % 2 == 1


def shapley_kernel(cells: int) -> Float64[Tensor, "sizes"]:
    """Weight of one set of each size from 0 to d: `(d - 1) / (binom(d, s) s (d - s))`; 0 at both ends."""
    sizes = range(1, cells)
    inner = [(cells - 1) / (comb(cells, s) * s * (cells - s)) for s in sizes]
    return torch.tensor([0.0, *inner, 0.0], dtype=torch.double)


def weighted_ridge(
    z: Float64[Tensor, "s d"], values: Float64[Tensor, "s n"], weights: Float64[Tensor, "s"], ridge: float
) -> tuple[Float64[Tensor, "d n"], Float64[Tensor, "n"]]:
    """Coefficients `w` and constants `b` of a weighted least squares fit with a penalty.

    They minimise `sum_i weights_i |b + z_i w - values_i|^2 + ridge |w|^2`; of several minima (no ridge, too
    few samples) the coefficients are those of least norm.
    """
    share = (weights / weights.sum())[:, None]
    z_mean, mean = (share * z).sum(dim=0), (share * values).sum(dim=0)
    centred = z - z_mean
    gram = centred.T @ (weights[:, None] * centred) + ridge * torch.eye(z.shape[1], dtype=z.dtype)
    coefficients = _inverse(gram) @ (centred.T @ (weights[:, None] * values))
    return coefficients, mean - z_mean @ coefficients


def constrained(
    z: Float64[Tensor, "s d"],
    values: Float64[Tensor, "s n"],
    weights: Float64[Tensor, "s"],
    total: Float64[Tensor, "n"],
) -> Float64[Tensor, "d n"]:
    """Coefficients that minimise `sum_i weights_i |z_i w - values_i|^2` among those that sum to `total`.

    `w = total / d + u` with u in the plane of sum zero, where the rows z act as z less their mean. Of several
    minima (too few samples) the one nearest to equal shares.
    """
    equal = total / z.shape[1]
    centred = z - z.mean(dim=1, keepdim=True)
    rest = values - z.sum(dim=1, keepdim=True) * equal
    gram = centred.T @ (weights[:, None] * centred)
    return equal + _inverse(gram) @ (centred.T @ (weights[:, None] * rest))


def determination(
    values: Float64[Tensor, "s n"], fitted: Float64[Tensor, "s n"], weights: Float64[Tensor, "s"]
) -> Float64[Tensor, "n"]:
    """R^2: the share of the weighted variance that is fitted; 1 where there is none."""
    share = (weights / weights.sum())[:, None]
    spread = (share * (values - (share * values).sum(dim=0)) ** 2).sum(dim=0)
    missed = (share * (values - fitted) ** 2).sum(dim=0)
    return torch.where(spread > 0, 1 - missed / spread, torch.ones_like(spread))


def _inverse(gram: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    found: Tensor = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    return found


def _kept(labels: Int[Tensor, "T H W"], kept: Bool[Tensor, "n d"], cells: int) -> Callable[[int], Masks]:
    """Which regions are kept in a group of bands: its own `cells` columns."""
    return lambda group: Cells(labels, kept[:, group * cells : (group + 1) * cells])


def _values(scored: Scored) -> tuple[Float64[Tensor, "n 1"], Float64[Tensor, "n s"]]:
    """The targets on the intact clip, and under every mask."""
    under = torch.cat([part.values for part in scored], dim=1)
    return scored.intact[:, None].double().cpu(), under.double().cpu()


def _written(
    method: LIME | KernelSHAP,
    model: Scorer,
    scored: Scored,
    clip: Clip,
    targets: Sequence[Target],
    split: Split,
    labels: Int[Tensor, "T H W"],
    found: Sequence[Float64[Tensor, "d n"]],
    facts: Sequence[Sequence[dict[str, float]]],
    start: float,
) -> list[Explanation]:
    record = Recorder(
        method,
        model,
        scored.scores,
        seed=method.seed,
        precision=scored.precision,
        forwards=scored.forwards,
        notes=scored.notes,
        start=start,
    )
    cells = int(labels.max()) + 1
    maps = [own.T.float()[:, labels] for game in found for own in game.split(cells)]
    return split.write(record, maps, clip, targets, split.facts(facts))
