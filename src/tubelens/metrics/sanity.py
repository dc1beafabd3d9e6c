"""Does the map depend on what the network has learnt? Sanity checks by randomising weights or labels.

A map that stays the same on a network of random weights shows the clip, not the network: edges, motion, the
middle of the frame. Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018); the efficient variant:
Hedström et al., "A Fresh Look at Sanity Checks for Saliency Maps" (2024, arXiv 2405.02383).

How weights are randomised: see `tubelens.metrics.randomise`. For the time of a score the user's network is
the random one: no other thread may use it then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tubelens.agreement import agreement
from tubelens.clip import Clip
from tubelens.errors import HeadError, InputError, OptionError
from tubelens.explanation import Explanation
from tubelens.metrics.other_model import check_classes, other_model
from tubelens.metrics.protocol import Score
from tubelens.metrics.randomise import randomising, stages
from tubelens.metrics.stability import cost
from tubelens.model import Scorer, network
from tubelens.running import RUN, Run
from tubelens.target import Target

INSENSITIVE = 0.5
"""Rank correlation with the map of a network of random weights above which a map counts as insensitive, where
every draw is: a quarter of the variance of the ranks (`.5^2`) then does not come from the weights. Maps are
smooth, so that those of unrelated networks correlate by chance. On the bundled network and 80 clips, 7 of 240
single draws came above .5 for the absolute gradient (.60 at most, .20 in the mean), none for its signed
product with the pixels, for tubes or for Grad-CAM; of three draws the least was never above .43."""
FLAG = "insensitive: the map does not depend on the weights (those of random networks are much the same)"


def entropy(saliency: Float[Tensor, "*size"], bins: int = 100) -> float:
    """Entropy of the histogram of a map, `-sum_b p_b ln p_b`: xi in Hedström et al. (2024).

    The bins are of equal width, from the map's minimum to its maximum. NaN is left out.

    Returns:
        In [0, ln bins]; 0 for a map that is the same everywhere.
    """
    values = saliency[~saliency.isnan()].double().flatten().cpu()
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return 0.0
    p = torch.histc(values, bins, low, high) / len(values)
    return float(-(p * p.clamp_min(1e-300).log()).sum())


@dataclass(frozen=True)
class ParameterRandomisation:
    """Model parameter randomisation test (MPRT): how alike the maps stay as the weights are lost.

    From the head down, layer after layer is randomised, and the method explains the same class again
    (Adebayo et al., the cascading variant). The value is the rank correlation (`tubelens.agreement`) of the
    map with the original one when all weights are random; low is right. The curve gives it for every stage
    on the way; by then a method that reads what the network has learnt has lost the map, and a method whose
    correlation stays above .5 in every draw is flagged in the notes and in the fact `insensitive`.

    Attributes:
        steps: stages at which the method runs, from the head alone to all layers; fewer where the network has
            fewer layers.
        absolute: ranks of the map's absolute values, which do not mind a sign that flips; else of the map.
        draws: random networks over which all is averaged.
        seed: of the first; the others follow.
    """

    kind: ClassVar[Literal["method"]] = "method"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    steps: int = 5
    absolute: bool = False
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1:
            raise OptionError(
                f"parameter randomisation needs steps >= 1 and draws >= 1, not {self.steps} and {self.draws}"
            )

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        method: Any,
        target: Target,
        run: Run = RUN,
        explanation: Explanation | None = None,
    ) -> Score:
        """The score of a method on one clip, from `steps * draws` explanations, and its own if not given.

        A random network on which the method finds nothing to explain (a gradient of zero, say) counts as not
        alike at all: correlation 0, and a note. So does a map that is the same everywhere, such as that of a
        Grad-CAM without positive sums. Whatever else fails, fails.

        Raises:
            LayerError: the model is a black box, or has no weights.
            TubelensError: what the method raises, on the network or on a random one.
        """
        net = network(model, type(self).__name__)
        run = replace(run, progress=None, seconds=None)
        spent = _Cost()
        original = explanation or spent.add(method(net, clip, [target], run)[0])
        found = stages(net, clip)
        spent.forwards += 1
        counts = _spread(len(found), self.steps)
        alike = torch.zeros(self.draws, len(counts), dtype=torch.float64)
        notes: list[str] = []
        for draw in range(self.draws):
            with randomising(found, self.seed + draw) as upto:
                for step, count in enumerate(counts):
                    upto(count)
                    seen = _explained(method, net, clip, target, run, spent, notes)
                    alike[draw, step] = 0 if seen is None else _alike(original, seen, self.absolute)
        means: list[float] = alike.mean(dim=0).tolist()
        value = means[-1]
        facts = {f"after {found[n - 1].name or 'all'}": m for n, m in zip(counts, means, strict=True)}
        insensitive = float(alike[:, -1].min()) > INSENSITIVE
        facts |= {"sd": float(alike[:, -1].std(correction=0)), "insensitive": float(insensitive)}
        if math.isnan(value):
            notes.append("a map that is the same everywhere has no ranks to compare")
        elif insensitive:
            notes.append(FLAG)
        places = (0.0, *(n / len(found) for n in counts))
        return Score(
            value,
            self.higher_is_better,
            curve=(places, (1.0, *means)),
            forwards=spent.forwards,
            facts=facts,
            notes=tuple(dict.fromkeys(notes)),
        )


@dataclass(frozen=True)
class EfficientRandomisation:
    """Efficient MPRT: does the map become less ordered when all weights are random?

    `(xi(e') - xi(e)) / xi(e)`, with e the map, e' that of the network with all weights randomised, and xi the
    entropy of a map's histogram (Hedström et al. 2024). Above 0 is right, and higher better: the map of a
    network that has learnt nothing should say less. One explanation a draw; no stages, and no correlation,
    whose fall depends on how noisy maps are. The correlation is still measured, since the maps are there: as
    in `ParameterRandomisation`, above .5 in every draw the method is flagged.

    Maps that are cut at zero (Grad-CAM) are often zero nearly everywhere on a random network, and so score
    below 0 although they depend on the weights: for those the correlation is what counts.

    Deviation: the paper normalises the maps before; bins from minimum to maximum make that unnecessary.

    Attributes:
        bins: of the histogram.
        draws: random networks over which xi(e') is averaged.
        seed: of the first; the others follow.
    """

    kind: ClassVar[Literal["method"]] = "method"
    higher_is_better: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False

    bins: int = 100
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bins < 2 or self.draws < 1:
            raise OptionError(
                f"efficient randomisation needs bins >= 2 and draws >= 1, not {self.bins} and {self.draws}"
            )

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        method: Any,
        target: Target,
        run: Run = RUN,
        explanation: Explanation | None = None,
    ) -> Score:
        """The score of a method on one clip; draws on which it finds nothing to explain are left out.

        Raises:
            LayerError: the model is a black box, or has no weights.
            TubelensError: what the method raises, on the network or on a random one.
        """
        net = network(model, type(self).__name__)
        run = replace(run, progress=None, seconds=None)
        spent = _Cost()
        original = explanation or spent.add(method(net, clip, [target], run)[0])
        notes: list[str] = []
        maps: list[Explanation] = []
        found = stages(net)
        for draw in range(self.draws):
            with randomising(found, self.seed + draw) as upto:
                upto(len(found))
                seen = _explained(method, net, clip, target, run, spent, notes)
            maps += [] if seen is None else [seen]
        before = entropy(original.saliency, self.bins)
        after = _mean([entropy(e.saliency, self.bins) for e in maps])
        alike = [_alike(original, e, absolute=False) for e in maps]
        insensitive = bool(alike) and min(alike) > INSENSITIVE
        value = (after - before) / before if before > 0 else float("nan")
        if before == 0:
            notes.append("the map is the same everywhere: it has no entropy that could rise")
        if insensitive:
            notes.append(FLAG)
        facts = {"entropy": before, "entropy_random": after, "correlation": _mean(alike)}
        facts["insensitive"] = float(insensitive)
        return Score(
            value,
            self.higher_is_better,
            forwards=spent.forwards,
            facts=facts,
            notes=tuple(dict.fromkeys(notes)),
        )


@dataclass(frozen=True)
class LabelRandomisation:
    """Data randomisation test: is the map another one on a network that was trained on random labels?

    The rank correlation (`tubelens.agreement`) of the method's map on the model with its map on `other`, for
    the same clip and class (Adebayo et al.). Low is right: such a network has learnt clips by
    heart, not what they show.

    Attributes:
        other: a model of the same classes; a function that returns it; or such a function as
            `"module:function"` or `"path.py:function"`. (With a model itself the repr rebuilds nothing.) It
            is made once, and again where the file has changed.
        absolute: ranks of the map's absolute values.
    """

    kind: ClassVar[Literal["method"]] = "method"
    higher_is_better: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    other: Any
    absolute: bool = False

    def __call__(
        self,
        model: Scorer,
        clip: Clip,
        method: Any,
        target: Target,
        run: Run = RUN,
        explanation: Explanation | None = None,
    ) -> Score:
        """The score of a method on one clip, from its map on either model.

        NaN, and a note, where the method finds nothing to explain on the other one.

        Raises:
            OptionError: `other` is no model, makes none, or is one of other classes.
            TubelensError: what the method raises, on either.
        """
        run = replace(run, progress=None, seconds=None)
        spent, other = _Cost(), self.model()
        spent.forwards += check_classes(model, other, clip)
        original = explanation or spent.add(method(model, clip, [target], run)[0])
        notes: list[str] = []
        seen = _explained(method, other, clip, target, run, spent, notes)
        value = float("nan") if seen is None else _alike(original, seen, self.absolute)
        if seen is not None and math.isnan(value):
            notes.append("a map that is the same everywhere has no ranks to compare")
        facts = {"insensitive": float(value > INSENSITIVE)}
        if value > INSENSITIVE:
            notes.append("insensitive: the map is much the same on a network trained on random labels")
        return Score(value, self.higher_is_better, forwards=spent.forwards, facts=facts, notes=tuple(notes))

    def model(self) -> Scorer:
        """The other model, made where it has to be.

        Raises:
            OptionError: `other` is no model, and makes none.
        """
        return other_model(self.other) if isinstance(self.other, str) else self._given

    @cached_property
    def _given(self) -> Scorer:
        return other_model(self.other)


class _Cost:
    """What the explanations took (see `stability.cost`)."""

    forwards: float = 0

    def add(self, e: Explanation) -> Explanation:
        self.forwards += cost(e)
        return e


def _explained(
    method: Any,
    model: Scorer,
    clip: Clip,
    target: Target,
    run: Run,
    spent: _Cost,
    notes: list[str],
) -> Explanation | None:
    """The map on another network; None, and a note, where the method finds nothing to explain there."""
    try:
        return spent.add(method(model, clip, [target], run)[0])
    except InputError as error:
        if not (error.nothing or isinstance(error, HeadError)):  # these weights, and no option or model wrong
            raise
        notes.append(f"no map on a randomised network: {error}")
        return None


def _alike(a: Explanation, b: Explanation, absolute: bool) -> float:
    """Rank correlation; 0 where only the second map is the same everywhere."""
    a, b = (_absolute(a), _absolute(b)) if absolute else (a, b)
    found = agreement(a, b)
    if math.isnan(found) and not math.isnan(agreement(a, a)):
        return 0.0
    return found


def _absolute(e: Explanation) -> Explanation:
    return replace(e, parts=tuple(replace(part, values=part.values.abs()) for part in e.parts))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _spread(total: int, steps: int) -> list[int]:
    """So many counts from 1 to the total, about evenly, each once; the total alone where one is wanted."""
    if steps == 1:
        return [total]
    return sorted({1 + round(i * (total - 1) / (steps - 1)) for i in range(steps)})
