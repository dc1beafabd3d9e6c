"""What altering time costs the score: inside and outside a map's tube, and window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from tubelens.agreement import ranks
from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.masks import Windows as Spans
from tubelens.metrics.anchors import (
    DIFFERENCE,
    ORACLE,
    RANDOM,
    between,
    frame_difference,
    settled,
    warnings_for,
)
from tubelens.metrics.edits import (
    EMPTY,
    RIVALS,
    Edit,
    Queue,
    ScoreOf,
    Tube,
    Where,
    anchor_tubes,
    answers,
    distinct,
    edits,
    map_of,
    top_voxels,
    volume_of,
)
from tubelens.metrics.options import checked, one_of
from tubelens.metrics.protocol import Score
from tubelens.running import RUN, Run
from tubelens.truth import Truth
from tubelens.variants import Chain, Masked

EQUAL = 1e-5
"""Importances that differ by less than this share of the score (of 1 where that is larger) are equal."""
Losses = Float64[np.ndarray, "_"]
BETTER: dict[Where, bool | None] = {"inside": True, "outside": False, "whole": None}


@dataclass(frozen=True)
class TemporalEdit:
    """How much the score loses when time is frozen, shuffled or reversed inside the map's tube.

        f(x) - mean_i f(x with order i in the region)

    with f the probability (or the logit) of the target's class. The tube is the map's most salient share of
    the voxels; the region that is altered is its hull over its frames (see `tubelens.metrics.edits`), so an
    object that moves in it stays whole. Freezing takes motion and leaves appearance; reversing takes the
    direction and leaves motion; shuffling takes the order of the frames and leaves the frames. Freezing and
    reversing as probes are those of Mänttäri et al., "Interpreting video features" (ACCV 2020), who learn a
    segment of time and alter whole frames.

    Anchors are the same alteration of the same shape at random places and in the middle, of the places where
    the picture changes, of the map's mean over time and, where it is known, of the evidence. Inside, a larger
    loss is better (the tube holds what the order of frames decides); outside, a smaller one.

    Attributes:
        edit: `freeze`, `shuffle` or `reverse`.
        where: `inside` the tube's region, `outside` of it, or the `whole` clip: that is the model's alone,
            the same for every map of a target, and neither more nor less is better.
        volume: share of the voxels in the tube; None: that of the evidence where it is known, else 0.05.
        dilate: pixels by which the hull is widened.
        n: frames held in turn, or permutations; their scores are averaged. A reversal is one.
        score: `prob` or `logit`; a contrast stays itself.
        anchors: whether they are scored too.
        randoms: random places that the `random` anchor is the mean of.
        seed: of permutations, ties and random places.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool | None] = None
    needs_truth: ClassVar[bool] = False

    edit: Edit = "freeze"
    where: Where = "inside"
    volume: float | None = None
    dilate: int = 1
    n: int = 4
    score: ScoreOf = "prob"
    anchors: bool = True
    randoms: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(edit=(self.edit, Edit), where=(self.where, Where), score=(self.score, ScoreOf))
        checked(self.volume, self.dilate, self.seed, n=self.n, randoms=self.randoms)
        # on the class nothing is said; one such metric knows
        object.__setattr__(self, "higher_is_better", BETTER[self.where])

    def __call__(
        self,
        model: Any,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation, all from one queue of forwards.

        Raises:
            OptionError: an explanation or a truth of another size than the clip.
            ScoreError: NaN or infinity.
        """
        queue, asked = Queue(), []
        volume = volume_of(self.volume, truth)
        for explanation in explanations:
            saliency = map_of(explanation, clip, truth)
            tube = Tube(top_voxels(saliency, volume, self.seed), self.dilate)
            tubes: dict[str, list[Tube]] = {"": [tube]}
            if self.anchors and self.where != "whole" and tube.frames:
                tubes |= anchor_tubes(tube, saliency, clip, truth, self.randoms, self.seed)
            asked.append((tube, {name: self._ask(queue, clip, some) for name, some in tubes.items()}))
        targets, which = distinct(explanations, self.score)
        found = queue.answers(model, clip, targets, run)
        scores = []
        for row, (tube, versions) in zip(which, asked, strict=True):
            if not (tube.frames or self.where == "whole"):
                share = found.forwards / len(which)
                scores.append(Score(float("nan"), self.higher_is_better, forwards=share, notes=(EMPTY,)))
                continue
            values = {name: found.values[row, some] for name, some in versions.items()}
            scores.append(self._score(tube, float(found.intact[row]), values, found.forwards / len(which)))
        return scores if not found.notes else [replace(s, notes=(*s.notes, *found.notes)) for s in scores]

    def _ask(self, queue: Queue, clip: Clip, tubes: Sequence[Tube]) -> list[int]:
        whole = self.where == "whole"
        return [
            number
            for tube in tubes
            if whole or tube.frames
            for number in queue.ask(
                None if whole else tube.key,
                partial(edits, self.edit, self.where, clip.size, tube, self.n, self.seed),
            )
        ]

    def _score(self, tube: Tube, intact: float, values: dict[str, Tensor], forwards: float) -> Score:
        drops = {name: intact - float(v.mean()) for name, v in values.items()}
        value = drops.pop("")
        facts = {
            "intact": intact,
            "altered": intact - value,
            "spread": float(values[""].std(correction=0)),
            "region": 1.0 if self.where == "whole" else float(tube.region.double().mean()),
        }
        notes = warnings_for(value, drops, self.higher_is_better, "tube", RIVALS)
        if self.where == "inside" and len(tube.frames) == 1:
            notes += ("the tube has a single frame, whose time cannot be altered",)
        scale, said = between(value, drops, self.higher_is_better)
        return Score(
            value,
            self.higher_is_better,
            drops,
            scale,
            forwards=forwards,
            facts=facts,
            notes=notes + said,
        )


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Windows:
    """Whether the map's frames are those whose windows matter.

    The importance of the n frames from s on is the score that is lost without them,

        I_n(s) = f(x) - f(x with frames s to s + n - 1 removed),   s = 0 .. T - n

    and the value is Spearman's rank correlation of I_n(s) with the map's mean over the same frames. Single
    frames mislead on video: what is removed from one frame is seen again in its neighbours, so I_1 is near
    zero where I_4 is not. Both are given; the facts compare them:

    - `largest`, `mean`: of the windows' importances; `largest:1`, `mean:1`: of single frames'.
    - `restored`: `1 - largest:1 / largest`, the share of the largest importance that neighbours give back
      when only one frame is removed; left out where no window matters.
    - `agreement:1`: the value with single frames.
    - `first`: the first frame of the most important window.

    The `curve` is I_n over the middles of the windows. A random order of the frames has correlation 0, which
    is the `random` anchor; a map that does not change in time (a centre prior, the mean over time) has no
    ranks at all, so these are no anchors here. `oracle` is the area of the evidence in each frame, where that
    changes.

    Attributes:
        n: frames in a window, at least 4 (clips of 4 frames and fewer: all but one).
        fill: what takes the place of a window's frames; `freeze` holds the last frame before it, so that what
            is removed is what happens.
        score: `prob` or `logit`; a contrast stays itself.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    n: int = 4
    fill: str | Fill = "freeze"
    score: ScoreOf = "prob"

    def __post_init__(self) -> None:
        if self.n < 4:
            raise OptionError(
                f"a window has 4 frames or more, not {self.n}: fewer are restored by their neighbours"
            )
        fill(self.fill)
        one_of(score=(self.score, ScoreOf))

    def __call__(
        self,
        model: Any,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation; the forwards, `1 + T + (T - n + 1)`, are those of one map.

        Raises:
            OptionError: an explanation or a truth of another size than the clip, or a clip of a single frame.
            ScoreError: NaN or infinity.
        """
        maps = [map_of(explanation, clip, truth) for explanation in explanations]
        frames, h, w = clip.size
        if frames < 2:
            raise OptionError(f"{clip.source.name}: a clip of one frame has no windows of time")
        n = min(self.n, frames - 1)
        families = [Masked(Spans(clip.size, (size, h, w), (1, h, w)), fill(self.fill)) for size in (1, n)]
        targets, which = distinct(explanations, self.score)
        found = answers(model, clip, Chain(families), targets, run)
        scores = []
        for saliency, row in zip(maps, which, strict=True):
            lost = (found.intact[row] - found.values[row]).numpy()
            score = self._score(saliency, lost[:frames], lost[frames:], float(found.intact[row]), clip, truth)
            scores.append(
                replace(score, forwards=found.forwards / len(which), notes=(*score.notes, *found.notes))
            )
        return scores

    def _score(
        self,
        saliency: Tensor,
        single: Losses,
        windows: Losses,
        intact: float,
        clip: Clip,
        truth: Truth | None,
    ) -> Score:
        unit = EQUAL * max(1.0, abs(intact))
        profile = time_profile(saliency)
        value = window_agreement(profile, windows, unit)
        others = {DIFFERENCE: time_profile(frame_difference(clip.pixels.detach().cpu()))}
        if truth is not None:
            others[ORACLE] = time_profile(truth.mask.cpu().float())
        anchors = {name: window_agreement(p, windows, unit) for name, p in others.items()}
        anchors = {RANDOM: 0.0} | {name: v for name, v in anchors.items() if not np.isnan(v)}
        n = len(profile) - len(windows) + 1
        notes = warnings_for(value, anchors, True, "tube", RIVALS)
        if np.isnan(value):
            same = "no window matters more than another" if np.ptp(windows) <= unit else "the map is the same"
            notes += (f"no rank correlation: {same}" + (" in all frames" if same.endswith("same") else ""),)
        facts = {
            "intact": intact,
            "largest": float(windows.max()),
            "mean": float(windows.mean()),
            "largest:1": float(single.max()),
            "mean:1": float(single.mean()),
            "agreement:1": window_agreement(profile, single, unit),
            "first": float(windows.argmax()),
        }
        if windows.max() > unit:
            facts["restored"] = 1 - float(single.max() / windows.max())
        scale, said = between(value, anchors, True)
        middles = (np.arange(len(windows)) + n / 2) / len(profile)
        return Score(
            value,
            True,
            anchors,
            scale,
            curve=(tuple(middles.tolist()), tuple(windows.tolist())),
            facts=facts,
            notes=notes + said,
        )


def time_profile(saliency: Float[Tensor, "T H W"]) -> Losses:
    """How much of the map lies in each frame: the sum of its positive values; unseen places have none."""
    positive: np.ndarray = settled(saliency).double().nan_to_num(0.0).clamp_min(0).sum(dim=(1, 2)).numpy()
    return positive


def window_agreement(profile: Losses, importances: Losses, unit: float = 0.0) -> float:
    """Spearman's rank correlation of windows' importances with a profile's means over the same windows.

    Args:
        profile: one value a frame.
        importances: of all windows of one length, `len(profile) - len(importances) + 1` frames.
        unit: importances are rounded to multiples of it first.

    Returns:
        In [-1, 1]; equal values share their rank. NaN where either is the same for all windows.
    """
    n = len(profile) - len(importances) + 1
    means = np.convolve(profile, np.full(n, 1 / n), "valid")
    means = np.round(means / (EQUAL * max(float(np.abs(means).max()), np.finfo(float).tiny)))
    x, y = ranks(means), ranks(np.round(importances / unit) if unit else importances)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")
