"""What, where, when, order: of what kind the evidence is, and how much of it the map's tube holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, Once, fill
from tubelens.metrics.anchors import between, warnings_for
from tubelens.metrics.edits import (
    EMPTY,
    RIVALS,
    Edit,
    Filled,
    Queue,
    ScoreOf,
    Tube,
    Version,
    Where,
    anchor_tubes,
    distinct,
    edits,
    map_of,
    retimed,
    top_voxels,
    volume_of,
)
from tubelens.metrics.options import checked, one_of
from tubelens.metrics.protocol import Score
from tubelens.running import RUN, Run
from tubelens.truth import Truth

Part = Literal["what", "where", "when", "order"]
EDITS: tuple[Edit, ...] = ("freeze", "shuffle", "reverse")
MOST = 32
"""Stills of the whole clip."""
LEAST = 0.01
"""Evidence, as a difference of the score, below which shares of it mean nothing."""


def shares(removed: float, static: float, reordered: float, intact: float) -> dict[str, float]:
    """What is added from nothing to a still, from stills to frames in any order, and by their order.

    Each alteration keeps less of the clip than the next: none of its evidence, one frame of it, all frames
    but not their order, everything. So the evidence telescopes,

        f(intact) - f(removed) = [static - removed] + [reordered - static] + [intact - reordered]
                                     what                when                    order

    Networks are not monotone: frames in a wrong order can score lower than a still of one of them, because
    they flicker. That is no evidence that order decides, so each level is first raised to the one before and
    held below the last. The parts are then divided by the whole.

    Args:
        removed: score without the evidence.
        static: of stills.
        reordered: of the frames in another order.
        intact: of the clip.

    Returns:
        `what`, `when` and `order`, each in [0, 1], with sum 1. NaN where the clip scores no more than without
        its evidence, or less than 0.01 more.
    """
    whole = intact - removed
    if not whole >= LEAST:
        return dict.fromkeys(("what", "when", "order"), float("nan"))
    still = min(max(static, removed), intact)
    loose = min(max(reordered, still), intact)
    return {
        "what": (still - removed) / whole,
        "when": (loose - still) / whole,
        "order": (intact - loose) / whole,
    }


@dataclass(frozen=True)
class Split:
    """Whether a clip is recognised by what is seen, where, when, or in which order.

    Of the evidence `f(x) - f(baseline)`, with the baseline the mean score over fills of the whole clip, the
    shares (see `shares`)

    - `what`: that a single frame shows, held through the clip, whichever it is: the mean over every frame (of
      clips of more than 32 frames, over 32 that are spread evenly), so that evidence in 2 frames of 16 counts
      the same wherever they are;
    - `when`: that takes several frames, or certain ones, but not their order;
    - `order`: that is lost when the order changes: by a reversal or by shuffles (their mean), whichever costs
      more. A reversal leaves what is symmetric in time, a shuffle what chance puts in order, so that each
      alone takes too little; that a shuffle makes moving objects flicker is what the stills guard against.

    add up to one and say what kind of evidence the model used: a model of direction has order near 1, a model
    of shapes what near 1. They are the same for every map. Of the map's tube,

    - `where`: the share that survives where everything outside the tube is filled, cut to [0, 1];
    - `lost`: the share that is lost where the tube's region is filled, and of that `tube:what`, `tube:when`,
      `tube:order`, the same split with time altered inside the region only.

    Plain shares of the evidence that survive, uncut (negative: below the baseline): `survives:static`,
    `survives:shuffled`, `survives:reversed`, `survives:frame` (the best of the held frames), and
    `survives:window` (the best window of `window` frames, all others frozen to its ends). `motion` is
    `1 - survives:static`.

    Attributes:
        part: which is the value. `where` has anchors, and more is better. The others belong to the model: no
            value is better than another, and no map can be.
        volume: share of the voxels in the tube; None: that of the evidence where it is known, else 0.05.
        dilate: pixels by which tube and hull are widened.
        n: permutations; and of the tube's frames, how many are held in turn.
        window: frames in a window.
        fill: what takes the place of what is outside of the tube, or inside.
        baselines: fills of the whole clip, names with `+` between them. Blur is no baseline for time: a
            blurred object still moves.
        score: `prob` or `logit`; a contrast stays itself.
        inside: whether the tube's own split is made, which takes `2 n + 1` forwards a map.
        anchors: whether anchors of `where` are scored, a forward a tube.
        randoms: random places that the `random` anchor is the mean of.
        seed: of permutations, ties and random places.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool | None] = None
    needs_truth: ClassVar[bool] = False

    part: Part = "where"
    volume: float | None = None
    dilate: int = 1
    n: int = 4
    window: int = 4
    fill: str | Fill = "mean"
    baselines: str = "black+mean"
    score: ScoreOf = "prob"
    inside: bool = True
    anchors: bool = True
    randoms: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(part=(self.part, Part), score=(self.score, ScoreOf))
        checked(self.volume, self.dilate, self.seed, n=self.n, randoms=self.randoms)
        if self.window < 4:
            raise OptionError(f"a window has 4 frames or more, not {self.window}")
        if not isinstance(self.baselines, str):
            raise OptionError(f"baselines are names of fills with + between them, not {self.baselines!r}")
        for name in (self.fill, *self.baselines.split("+")):
            fill(name)
        # on the class nothing is said; one such metric knows
        object.__setattr__(self, "higher_is_better", True if self.part == "where" else None)

    def __call__(
        self,
        model: Any,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation, all from one queue of forwards; the clip's own split is shared.

        Raises:
            OptionError: an explanation or a truth of another size than the clip.
            ScoreError: NaN or infinity.
        """
        queue = Queue()
        whole = self._whole(queue, clip)
        removed = Once(fill(self.fill))
        asked = [self._tubes(queue, clip, explanation, truth, removed) for explanation in explanations]
        targets, which = distinct(explanations, self.score)
        found = queue.answers(model, clip, targets, run)
        scores = []
        for row, (tube, names) in zip(which, asked, strict=True):
            values = {name: found.values[row, some] for name, some in (whole | names).items()}
            score = self._score(tube, float(found.intact[row]), values)
            notes = (*score.notes, *found.notes)
            scores.append(replace(score, forwards=found.forwards / len(which), notes=notes))
        return scores

    def _whole(self, queue: Queue, clip: Clip) -> dict[str, list[int]]:
        everything = torch.ones(clip.size, dtype=torch.bool)
        fills = [Filled(everything, fill(name)) for name in self.baselines.split("+")]
        asked = {"baseline": queue.ask("baseline", lambda: fills)}
        stills = min(clip.size[0], MOST)
        asked |= {edit: self._altered(queue, clip, edit, "whole", n=stills) for edit in EDITS[:1]}
        asked |= {edit: self._altered(queue, clip, edit, "whole") for edit in EDITS[1:]}
        return asked | {"window": queue.ask("window", lambda: windows(clip.size[0], self.window))}

    def _altered(
        self,
        queue: Queue,
        clip: Clip,
        edit: Edit,
        where: Where,
        tube: Tube | None = None,
        n: int | None = None,
    ) -> list[int]:
        make = partial(edits, edit, where, clip.size, tube, n or self.n, self.seed)
        return queue.ask((edit, None if tube is None else tube.key), make)

    def _tubes(
        self, queue: Queue, clip: Clip, explanation: Explanation, truth: Truth | None, removed: Fill
    ) -> tuple[Tube, dict[str, list[int]]]:
        saliency = map_of(explanation, clip, truth)
        tube = Tube(top_voxels(saliency, volume_of(self.volume, truth), self.seed), self.dilate)
        if not tube.frames:
            return tube, {}
        tubes = {"": [tube]}
        if self.anchors and self.part == "where":
            tubes |= anchor_tubes(tube, saliency, clip, truth, self.randoms, self.seed)
        asked = {
            f"kept:{name}": [i for t in some for i in queue.ask(("kept", t.key), partial(_kept, t, removed))]
            for name, some in tubes.items()
        }
        asked["lost"] = queue.ask(("lost", tube.key), lambda: [Filled(tube.region, removed)])
        if self.inside:
            asked |= {f"tube:{edit}": self._altered(queue, clip, edit, "inside", tube) for edit in EDITS}
        return tube, asked

    def _score(self, tube: Tube, intact: float, values: dict[str, Tensor]) -> Score:
        means = {name: float(v.mean()) for name, v in values.items()}
        base = means["baseline"]
        evidence = intact - base
        split = shares(base, means["freeze"], _reordered(means, ""), intact)
        facts = {"intact": intact, "baseline": base, "evidence": evidence, **split}
        if not evidence >= LEAST:
            note = f"the clip scores {intact:.3f} and nothing at all {base:.3f}: no evidence to split"
            return Score(float("nan"), self.higher_is_better, facts=facts, notes=(note,))

        def survives(score: float) -> float:
            return (score - base) / evidence

        facts |= {
            "survives:static": survives(means["freeze"]),
            "survives:shuffled": survives(means["shuffle"]),
            "survives:reversed": survives(means["reverse"]),
            "survives:frame": survives(float(values["freeze"].max())),
            "survives:window": survives(float(values["window"].max())),
            "motion": 1 - survives(means["freeze"]),
        }
        notes: tuple[str, ...] = ()
        anchors: dict[str, float] = {}
        if tube.frames:
            kept = {
                name.removeprefix("kept:"): float(
                    torch.tensor([survives(v) for v in some.tolist()]).clamp(0, 1).double().mean()
                )
                for name, some in values.items()
                if name.startswith("kept:")
            }
            facts |= {"where": kept.pop(""), "lost": survives(base + intact - means["lost"])}
            anchors = kept
            if self.inside:
                inner = shares(means["lost"], means["tube:freeze"], _reordered(means, "tube:"), intact)
                facts |= {f"tube:{name}": share for name, share in inner.items()}
        else:
            notes = (EMPTY,)
        value = facts.get(self.part, float("nan"))
        scale, said = between(value, anchors, self.higher_is_better)
        return Score(
            value,
            self.higher_is_better,
            anchors,
            scale,
            facts=facts,
            notes=notes + warnings_for(value, anchors, self.higher_is_better, "tube", RIVALS) + said,
        )


def _kept(tube: Tube, removed: Fill) -> list[Version]:
    return [Filled(~tube.mask, removed)]


def _reordered(means: dict[str, float], where: str) -> float:
    return min(means[f"{where}shuffle"], means[f"{where}reverse"])


def windows(frames: int, n: int) -> list[Version]:
    """Versions in which only a window of n frames moves: before and after it, its first and last are held.

    Windows start every `n / 2` frames (rounded down), the last one such that it ends with the clip. A clip
    that is shorter than a window moves throughout.
    """
    starts = sorted({*range(0, frames - n + 1, n // 2), frames - n})
    return [partial(_only, start=start, stop=start + n) for start in starts]


def _only(pixels: Tensor, start: int, stop: int) -> Tensor:
    _, t, h, w = pixels.shape
    held = [min(max(i, start), stop - 1) for i in range(t)]
    return retimed(pixels, torch.ones(h, w, dtype=torch.bool), range(t), held)
