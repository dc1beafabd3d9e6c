"""SIDU, similarity difference and uniqueness (Muddamsetty et al., "SIDU: Similarity Difference and Uniqueness
Method for Explainable AI", ICIP 2020; "Visual explanation of black-box model", Pattern Recognition 2022), in
the three-dimensional form of the code for ICPR 2022 ("Visual explanations for action recognition in thermal
and visible video").
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import LayerError, OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Black, Fill, fill
from tubelens.masks import Features
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.scorecam import (
    affordable_channels,
    check_channels,
    cut_short,
    read_features,
    strongest,
)
from tubelens.methods.spectrum import Apart, apart, check
from tubelens.model import Scorer
from tubelens.running import RUN, Passes, Run
from tubelens.scoring import score_masked
from tubelens.target import Logit, Prob, Target, probabilities
from tubelens.upsample import resample

SIGMA = 0.25  # of the similarity difference, in units of probability
SHARE = 0.5  # of the published denominator: N masks, half of which are taken to be kept


@dataclass(frozen=True)
class SIDU:
    """Where features are active, weighted by how much of the target is left there, and how unlike the others.

    Channel k of the layer, thresholded and upsampled, is a mask `M_k = Up(A_k > threshold)`. With `f_k` the
    scores of the clip under it and `f_0` those of the intact clip,

        similarity difference   SD_k = exp(-(f_0[c] - f_k[c])^2 / (2 sigma^2)),  sigma = 1/4
        uniqueness              U_k  = sum_j |f_k - f_j|_2, scaled over k from its minimum to its maximum
        map                     sum_k SD_k U_k M_k / (N / 2)

    over all N channels. Channels with the same thresholded map (those that reach the threshold nowhere among
    them) have the same score, so each different mask is scored once and counted as often as it occurs: the
    map is the same, for `1 + C''` forwards, C'' being the number of different masks.

    By default `f` are probabilities, as in the first authors' code: differences of logits are mostly far
    beyond sigma = 1/4, where SD is zero. A target is compared in its own units. Where all masks are equally
    unique (one mask only), U is 1.

    Masks go from the strongest channel to the weakest; with `run.seconds` the work stops on the way, and N is
    the number of channels by then.

    With `spectrum="each"` every mask is laid on one group of bands after the other, the other bands being
    intact; SD and U are over that group's masks, so each has a map of its own, and the map is their sum.
    Where a group says nothing its masks are all equally similar and equally unique, which makes its map no
    less high: read it beside those of the others.

    Attributes:
        layer: name; None: the model's default.
        threshold: of the activations.
        channels: only so many, those of strongest mean activation; None: all.
        fill: what is behind the masks.
        parity: `"icpr2022"`: as published (its code needs one name mended to run): logits for SD and U, a
            `Prob` target standing for the logit of its class; black; masks
            stretched from corner to corner.
        spectrum: `"joint"`: masks for all bands together; `"each"`: see above, not with `parity`.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Prob]] = Prob

    layer: str | None = None
    threshold: float = 0.5
    channels: int | None = None
    fill: Fill | str = "black"
    parity: Literal["icpr2022"] | None = None
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        check_channels(self.channels, "SIDU")
        fill(self.fill)
        if self.parity not in (None, "icpr2022"):
            raise OptionError(f"SIDU has parity 'icpr2022' or None, not {self.parity!r}")
        if self.parity and self.spectrum != "joint":
            raise OptionError("SIDU with parity='icpr2022' masks all bands together: leave spectrum at joint")

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, one value a voxel; one forward and one more for each different mask.

        Raises:
            LayerError: see `tubelens.capture`; a black box; no channel reaches the threshold.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        published = self.parity == "icpr2022"
        removed = Black() if published else fill(self.fill)
        if published:
            targets = [Logit(t.index) if isinstance(t, Prob) else t for t in targets]
        align: Literal["centres", "endpoints"] = "endpoints" if published else "centres"
        features = read_features(model, clip, self.layer, "SIDU", align)
        grids, counts = self._masks(features.activations, features.layer)
        masks = split.masks(lambda _: Features(grids, features.indices))
        scored = score_masked(model, clip, masks, removed, targets, run, intact=features.scores)
        # masks are not kept: N of full size would not fit
        parts = [(part.values.double().cpu(), part.scores.double().cpu()) for part in scored]
        values = torch.cat([v for v, _ in parts], dim=1)
        scores = torch.cat([s for _, s in parts])
        if not published:
            scores = probabilities(scores, model.output)
        maps = []
        for series, classes in zip(split.series(values), split.series(scores.T), strict=True):
            n = counts[: series.shape[1]].to(values)
            difference = series - scored.intact.double().cpu()[:, None]
            weights = (-(difference**2) / (2 * SIGMA**2)).exp() * uniqueness(classes.T, n)
            # upsampling is linear: the sum of the upsampled masks is the upsampled sum
            small = torch.einsum("nk,kthw->nthw", n * weights, grids[: len(n)].double()) / (n.sum() * SHARE)
            maps.append(torch.stack([resample(m, features.indices, order=1).float() for m in small]))
        done = scored.done // split.rounds
        record = Recorder(
            self,
            scored.model,
            scored.scores,
            layer=features.layer,
            precision=scored.precision,
            forwards=features.forwards + scored.forwards,
            notes=(*scored.notes, *cut_short(done, len(grids), "masks")),
            start=start,
        )
        facts = [{"channels": float(counts[:done].sum()), "masks": float(done)} for _ in targets]
        return split.write(record, maps, clip, targets, facts)

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """One forward, and one a different mask; found by one forward."""
        features = read_features(model, clip, self.layer, "SIDU")
        masks = len(self._masks(features.activations, features.layer)[0])
        return Passes(features.forwards + masks * apart(self, clip).rounds)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> SIDU:
        """The same with as many channels as so many forwards score for sure.

        Raises:
            OptionError: not even one channel fits.
        """
        rounds = apart(self, clip).rounds
        channels = affordable_channels(forwards, model, clip, self.layer, "SIDU", rounds)
        return replace(self, channels=channels)

    def _masks(
        self, activations: Float[Tensor, "c t h w"], layer: str
    ) -> tuple[Float[Tensor, "m t h w"], Int[Tensor, "m"]]:
        """The different masks, strongest first, and how many channels have each."""
        chosen = strongest(activations)[: self.channels]
        active = activations[chosen] > self.threshold
        if not bool(active.any()):
            raise LayerError(
                f"no channel of layer {layer!r} is above {self.threshold:g} anywhere (the largest value is"
                f" {float(activations.max()):.3g}): lower SIDU's threshold",
                nothing=True,
            )
        counts: dict[bytes, int] = {}
        first = []
        for i, row in enumerate(active.flatten(1).numpy()):
            key = row.tobytes()
            if key not in counts:
                first.append(i)
            counts[key] = counts.get(key, 0) + 1
        return active[first].float(), torch.tensor(list(counts.values()))


def uniqueness(scores: Float[Tensor, "m k"], counts: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """`U_i = sum_j n_j |f_i - f_j|_2`, scaled to [0, 1] over i; ones where all are equal.

    Args:
        scores: of each different mask.
        counts: `n_j`, how often it occurs.
    """
    apart = torch.cdist(scores, scores, compute_mode="donot_use_mm_for_euclid_dist") @ counts
    low, high = apart.min(), apart.max()
    return (apart - low) / (high - low) if high > low else torch.ones_like(apart)
