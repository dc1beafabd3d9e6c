"""Which bands carry the evidence: exact Shapley values of the bands, and how they work together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64

from tubelens.clip import Clip
from tubelens.coalitions import Coalitions
from tubelens.errors import OptionError
from tubelens.explanation import Explanation
from tubelens.fill import Fill, fill
from tubelens.metrics.anchors import ORACLE, RANDOM, between, warnings_for
from tubelens.metrics.edits import (
    EMPTY,
    ScoreOf,
    Tube,
    answers,
    distinct,
    map_of,
    top_voxels,
    volume_of,
)
from tubelens.metrics.options import checked, one_of
from tubelens.metrics.protocol import Score
from tubelens.running import RUN, Run
from tubelens.shapley import LEAST, interactions, shapley
from tubelens.spectra import told_apart
from tubelens.truth import Truth


@dataclass(frozen=True)
class BandShare:
    """How much of the evidence each band carries. Where it is known which do, the value is their share, and
    more is better; else the largest share of a band, of which neither more nor less is better.

    The bands are the players of a game: `v(S)` is the score of the clip in which the bands of S are as they
    are and the others are filled, within the map's tube (or in the whole clip). `v(all)` is the intact clip.
    The exact Shapley values of the bands (see `shapley`) add up to what removing all of them costs,
    `f(x) - f(all filled)`, and a band's share is its part of that. Maps that remove all bands at once cannot
    tell this.

    Facts: `share:IR` for each player; `synergy:R+IR` for each pair, the Shapley interaction (see
    `interactions`) as a part of the same loss: 1 for two bands of which neither says anything alone; `loss`.
    Shares and synergies are as they come out: a band that speaks against the class has a negative share.

    Where the truth is known there are anchors: `random` (each player an equal share, what bands drawn by lot
    have) and, for tubes, `oracle` (the true tube's). Where it is not, the score has no direction either, and
    reports rank no method by it.

    Attributes:
        where: `tube`: within the map's tube; `clip`: everywhere, which is the model's alone and the same for
            every map of a target.
        groups: bands that are one player, as `RGB|IR` or `R+G+B|IR`; every band once. Empty: each for itself.
            A group counts as carrying the evidence where any of its bands does.
        fill: what takes the place of removed bands.
        volume: share of the voxels in the tube; None: that of the evidence where it is known, else 0.05.
        dilate: pixels by which the tube is widened.
        score: `prob` or `logit`; a contrast stays itself.
        anchors: whether the true tube is scored too, where it is known.
        seed: of ties.
    """

    kind: ClassVar[Literal["curve"]] = "curve"
    higher_is_better: ClassVar[bool] = True
    truth_directs: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    where: Literal["tube", "clip"] = "tube"
    groups: str = ""
    fill: str | Fill = "mean"
    volume: float | None = None
    dilate: int = 1
    score: ScoreOf = "prob"
    anchors: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(where=(self.where, Literal["tube", "clip"]), score=(self.score, ScoreOf))
        checked(self.volume, self.dilate, self.seed)
        if not isinstance(self.groups, str):
            raise OptionError(f"groups are names of bands, as in RGB|IR, not {self.groups!r}")
        fill(self.fill)

    def __call__(
        self,
        model: Any,
        clip: Clip,
        explanations: Sequence[Explanation],
        truth: Truth | None = None,
        run: Run = RUN,
    ) -> list[Score]:
        """One score an explanation: `2^n - 1` forwards a region for n players, and the intact clip once.

        Raises:
            OptionError: groups that do not fit the clip's bands, or bands that are copies of one, more than 6
                players, or an explanation or a truth of another size than the clip.
            ScoreError: NaN or infinity.
        """
        players = told_apart(clip.pixels, clip.bands, self.groups or "|".join(clip.bands))
        tubes = [self._region(explanation, clip, truth) for explanation in explanations]
        regions = {tube.key: tube for tube in tubes if tube.frames}
        oracle = None
        known = truth is not None and bool(truth.bands) and bool(truth.mask.any())
        if self.anchors and self.where == "tube" and truth is not None and known and regions:
            oracle = Tube(truth.mask.cpu(), self.dilate)
            regions[oracle.key] = oracle
        masks = [tube.mask for tube in regions.values()]
        targets, which = distinct(explanations, self.score)
        coalitions = Coalitions(masks, list(players.values()), fill(self.fill))
        found = answers(model, clip, coalitions, targets, run)
        subsets = 2 ** len(players) - 1
        games = found.values.view(len(targets), len(masks), subsets).numpy()
        places = {key: i for i, key in enumerate(regions)}
        scores = []
        for row, tube in zip(which, tubes, strict=True):
            intact = float(found.intact[row])

            def game(of: Tube, row: int = row, intact: float = intact) -> Float64[np.ndarray, "s"]:
                return np.append(games[row, places[of.key]], intact)

            if tube.frames:
                best = None if oracle is None else game(oracle)
                score = self._score(game(tube), best, players, clip, truth)
            else:
                score = Score(float("nan"), None, notes=(EMPTY,))
            notes = (*score.notes, *found.notes)
            scores.append(replace(score, forwards=found.forwards / len(which), notes=notes))
        return scores

    def _region(self, explanation: Explanation, clip: Clip, truth: Truth | None) -> Tube:
        saliency = map_of(explanation, clip, truth)
        if self.where == "clip":
            return Tube(torch.ones(clip.size, dtype=torch.bool))
        return Tube(top_voxels(saliency, volume_of(self.volume, truth), self.seed), self.dilate)

    def _score(
        self,
        game: Float64[np.ndarray, "s"],
        best: Float64[np.ndarray, "s"] | None,
        players: dict[str, list[int]],
        clip: Clip,
        truth: Truth | None,
    ) -> Score:
        loss = float(game[-1] - game[0])
        facts = {"intact": float(game[-1]), "loss": loss}
        if not loss >= LEAST:
            note = f"filling all bands changes the score by {0 - loss:+.4f}: there is no evidence to share"
            return Score(float("nan"), None, facts=facts, notes=(note,))
        names = list(players)
        values, pairs = shapley(game) / loss, interactions(game) / loss
        facts |= {f"share:{name}": float(v) for name, v in zip(names, values, strict=True)}
        facts |= {
            f"synergy:{names[i]}+{names[j]}": float(pairs[i, j])
            for i, j in combinations(range(len(names)), 2)
        }
        known = set() if truth is None else set(truth.bands)
        carry = [i for i, own in enumerate(players.values()) if known & {clip.bands[b] for b in own}]
        if not carry:
            return Score(float(values.max()), None, facts=facts)
        value = float(values[carry].sum())
        anchors = {RANDOM: len(carry) / len(names)}
        if best is not None and best[-1] - best[0] >= LEAST:
            anchors[ORACLE] = float((shapley(best) / (best[-1] - best[0]))[carry].sum())
        scale, said = between(value, anchors, True)
        return Score(
            value,
            True,
            anchors,
            scale,
            facts=facts,
            notes=warnings_for(value, anchors, True, "tube", {RANDOM: "bands drawn by lot"}) + said,
        )
