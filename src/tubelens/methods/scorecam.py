"""Score-CAM (Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
CVPRW 2020) over clips, and the reading of a layer's features that it shares with SIDU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.capture import capturing
from tubelens.clip import Clip
from tubelens.errors import LayerError, OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.layout import Grid
from tubelens.masks import Features
from tubelens.methods.protocol import Needs
from tubelens.methods.record import Recorder
from tubelens.methods.spectrum import Apart, apart, check
from tubelens.model import Scorer, network
from tubelens.running import RUN, Passes, Run
from tubelens.scoring import score_masked
from tubelens.target import Logit, Target
from tubelens.upsample import Align, endpoint_index, fractional_index

FLAT = 1e-6  # a range that is a smaller share of the largest value is rounding: the channel is constant
CHUNK = 2**24  # voxels upsampled at once when looking for extremes


@dataclass(frozen=True)
class ScoreCAM:
    """Activation maps weighted by the score that the clip keeps where each of them is active.

    Every channel `A_k` of the layer, upsampled and scaled to [0, 1] over the clip, is a soft mask `H_k`. The
    clip is scored under each; the weight of a channel is the softmax over the channels of the increase
    `F(X * H_k) - F(X_b)` (eq. 4 and algorithm 1; the baseline cancels, so none is scored), and the map is
    `ReLU(sum_k w_k A_k)` (eq. 5).

    `F` is the logit, as in the paper's algorithm: the softmax over the channels is then sharp. The code that
    came with the paper uses probabilities as weights, without that softmax; with `Prob` as the target the
    weights here are nearly equal, and the map hardly depends on the class.

    Masks are read linearly where the cells look (the paper: bilinear, over the image), and multiply pixels
    before normalisation. Channels that are constant over the clip cannot be scaled and are left out. Those
    left are scored from the strongest mean activation to the weakest; with `run.seconds` the work stops on
    the way, and the map is that of the channels scored by then.

    With `spectrum="each"` every mask is laid on one group of bands after the other, the other bands being
    intact; each group has weights and so a map of its own, and the map is their sum. Where a group says
    nothing its channels all weigh the same: read its map beside those of the others.

    Attributes:
        layer: name; None: the model's default.
        signed: without the ReLU.
        channels: score only so many, those of strongest mean activation; None: all.
        fill: what is behind the masks.
        spectrum: `"joint"`: masks for all bands together; `"each"`: see above.
        groups: bands that belong together, as in `"RGB|IR"` (see `tubelens.spectra`).
    """

    needs: ClassVar[Needs] = "layers"
    explains: ClassVar[type[Logit]] = Logit

    layer: str | None = None
    signed: bool = False
    channels: int | None = None
    fill: Fill | str = "black"
    spectrum: Apart = "joint"
    groups: str = ""

    def __post_init__(self) -> None:
        check(self)
        check_channels(self.channels, "Score-CAM")
        fill(self.fill)

    def __call__(
        self, model: Scorer, clip: Clip, targets: Sequence[Target], run: Run = RUN
    ) -> list[Explanation]:
        """One explanation a target, from one forward and one more for each channel that varies.

        Raises:
            LayerError: see `tubelens.capture`; a black box; every channel is constant.
            ScoreError: NaN or infinity.
        """
        start = time.perf_counter()
        split = apart(self, clip)
        features = read_features(model, clip, self.layer, "Score-CAM")
        low, high = extremes(features)
        kept = varying(low, high, features)[: self.channels]
        features = features.pick(kept)
        low, high = (limit[kept][:, None, None, None] for limit in (low, high))
        active = Features((features.activations - low) / (high - low), features.indices)
        masks = split.masks(lambda _: active)
        scored = score_masked(model, clip, masks, fill(self.fill), targets, run, intact=features.scores)
        values = torch.cat([part.values for part in scored], dim=1).cpu()
        maps = []
        for series in split.series(values):
            weights = series.softmax(dim=1)
            own = torch.einsum("nk,kthw->nthw", weights, features.activations[: series.shape[1]])
            maps.append(own if self.signed else own.relu())
        done = scored.done // split.rounds
        record = Recorder(
            self,
            scored.model,
            scored.scores,
            layer=features.layer,
            precision=scored.precision,
            forwards=features.forwards + scored.forwards,
            notes=(*scored.notes, *cut_short(done, len(active), "channels")),
            start=start,
        )
        facts = [{"channels": float(done)} for _ in targets]
        return split.write(record, maps, clip, targets, facts, features.grid)

    def passes(self, model: Scorer, clip: Clip) -> Passes:
        """One forward, and one a channel that varies; found by one forward."""
        features = read_features(model, clip, self.layer, "Score-CAM")
        low, high = extremes(features)
        channels = len(varying(low, high, features)[: self.channels])
        return Passes(features.forwards + channels * apart(self, clip).rounds)

    def afford(self, forwards: int, model: Scorer, clip: Clip) -> ScoreCAM:
        """The same with as many channels as so many forwards score.

        Raises:
            OptionError: not even one channel fits.
        """
        rounds = apart(self, clip).rounds
        channels = affordable_channels(forwards, model, clip, self.layer, "Score-CAM", rounds)
        return replace(self, channels=channels)


# ── what Score-CAM and SIDU read off a layer ────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class LayerFeatures:
    """The channels of a layer on one clip.

    Attributes:
        activations: on the CPU.
        indices: fractional cell number of every frame, row and column.
        template: a grid of the layer, for the places of its cells.
        scores: of the intact clip.
        layer: name.
        forwards: that it took.
    """

    activations: Float[Tensor, "c t h w"]
    indices: tuple[np.ndarray, np.ndarray, np.ndarray]
    template: Grid
    scores: Float[Tensor, "1 k"]
    layer: str
    forwards: int

    def pick(self, channels: Sequence[int]) -> LayerFeatures:
        """These channels only, in this order."""
        return replace(self, activations=self.activations[list(channels)])

    def grid(self, values: Float[Tensor, "t h w"]) -> Grid:
        """A map over the layer's cells."""
        return replace(self.template, values=values)


def read_features(
    model: Scorer, clip: Clip, layer: str | None, who: str, align: Align = "centres"
) -> LayerFeatures:
    """The channels of a layer and the scores of the clip, from one forward.

    Args:
        model: a network.
        clip: what is read.
        layer: name; None: the model's default.
        who: the method, for its error.
        align: masks are read where the cells look, or from corner to corner.

    Raises:
        LayerError: a black box, or see `tubelens.capture`.
    """
    with capturing(network(model, who), clip.pixels[None], layer) as capture:
        activations = capture.activations[0].detach().float().cpu().clone()
        template = capture.grid(activations[0])
        scores = capture.scores.detach().float().clone()
        name, forwards = capture.layer, capture.forwards
    places = (template.t, template.y, template.x)
    t, h, w = (
        endpoint_index(extent, len(centres))
        if align == "endpoints"
        else fractional_index(range(extent), centres)
        for extent, centres in zip(clip.size, places, strict=True)
    )
    return LayerFeatures(activations, (t, h, w), template, scores, name, forwards)


def strongest(activations: Float[Tensor, "c t h w"]) -> list[int]:
    """Channels by mean activation, the largest first; equal ones in the layer's order."""
    order: list[int] = activations.mean(dim=(1, 2, 3)).argsort(descending=True, stable=True).tolist()
    return order


def extremes(features: LayerFeatures) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Least and largest value of each upsampled channel, a few channels at a time."""
    masks = Features(features.activations, features.indices)
    size = max(1, CHUNK // max(1, int(np.prod(masks.size))))
    found = [masks.batch(i, min(i + size, len(masks))).flatten(1) for i in range(0, len(masks), size)]
    low, high = (torch.cat(parts) for parts in zip(*((f.amin(1), f.amax(1)) for f in found), strict=True))
    return low, high


def varying(low: Float[Tensor, "c"], high: Float[Tensor, "c"], features: LayerFeatures) -> list[int]:
    """Channels that are not constant over the clip, the strongest first.

    Raises:
        LayerError: all are constant.
    """
    rounding = FLAT * torch.maximum(low.abs(), high.abs())
    varies = (high - low > rounding).tolist()
    found = [k for k in strongest(features.activations) if varies[k]]
    if not found:
        raise LayerError(
            f"every channel of layer {features.layer!r} is constant over this clip: choose an earlier layer",
            nothing=True,
        )
    return found


def check_channels(channels: int | None, who: str) -> None:
    """Raises: OptionError: not positive."""
    if channels is not None and channels < 1:
        raise OptionError(f"{who} needs channels >= 1 (or None for all), not {channels}")


def affordable_channels(
    forwards: int, model: Scorer, clip: Clip, layer: str | None, who: str, rounds: int = 1
) -> int:
    """How many channels so many forwards score in each round, after the one (or two) that read the layer.

    Raises:
        OptionError: not even one.
    """
    reading = read_features(model, clip, layer, who).forwards
    if forwards < reading + rounds:
        raise OptionError(f"{who} needs at least {reading + rounds} forwards, the budget is {forwards}")
    return (forwards - reading) // rounds


def cut_short(done: int, total: int, what: str) -> tuple[str, ...]:
    """A note where time ran out."""
    return (f"time ran out after {done} of {total} {what}",) if done < total else ()
