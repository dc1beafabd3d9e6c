"""The columns of the test bench: for each task its clips, the network that solves it, what is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isnan, nan

from jaxtyping import Float
from torch import Tensor

from tubelens.evaluate.lessons import BUNDLED, RECIPES, Settings
from tubelens.evaluate.planted_models import planted_model
from tubelens.evaluate.verify import Planted
from tubelens.explanation import Explanation
from tubelens.metrics.anchors import CENTRE, DIFFERENCE, ORACLE, RANDOM, common_maps
from tubelens.metrics.bands import BandShare
from tubelens.metrics.localisation import (
    average_precision,
    distractor_mass,
    energy_in_tube,
    pointing,
    temporal_iou,
    tube_iou,
)
from tubelens.metrics.randomise import randomising, stages
from tubelens.model import Model, TorchModel
from tubelens.planted import generate
from tubelens.planted.whitebox import WhiteBoxClip, whitebox
from tubelens.running import Run
from tubelens.target import Prob
from tubelens.truth import Truth

PAIR = ("honest", "shortcut")
"""Two networks that look at the same clips: one follows an object, the other a mark."""
WHITEBOX = "whitebox"
TASKS = ("key", "dir", "order", "transient", "infrared", "xor", *PAIR, WHITEBOX)
ANCHORS = (RANDOM, CENTRE, DIFFERENCE, ORACLE)
"""Rows that look at no network; the last is the truth itself."""
Told = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


# ── clips and networks ───────────────────────────────────────────────────────────────────────────────────


def drawn(task: str, seed: int) -> Planted:
    """The clip of a seed, its truth as the task's network should see it."""
    if task == WHITEBOX:
        return whitebox(seed)
    if task in PAIR:
        return generate(seed, "shortcut").evidence_for(task)
    return generate(seed, task)  # type: ignore[arg-type]


def network(task: str, planted: Planted, networks: int | None = None) -> Model:
    """What solves the task; a white box knows its own clip alone.

    Args:
        task: of `TASKS`.
        planted: the clip.
        networks: seed of a network that is trained where it is not there yet; None: that of the package.
    """
    return planted.model() if isinstance(planted, WhiteBoxClip) else _network(task, networks)


@lru_cache(maxsize=2 * len(TASKS))
def _network(task: str, networks: int | None) -> TorchModel:
    if networks is None:
        return planted_model(task)
    return planted_model(task, seed=networks, settings=_settings(task))


def _settings(task: str) -> Settings:
    return RECIPES.get(task, RECIPES[BUNDLED])


def fingerprint(task: str, networks: int | None, tell: Told) -> str:
    """Of the network's weights, so that results of others are not taken for its own.

    A network that is not there yet is trained; `tell` hears of it.
    """
    if task == WHITEBOX:
        return WHITEBOX
    if networks is not None:
        settings = _settings(task)

        def report(step: int, loss: float) -> None:
            tell(f"training {settings.network}", step + 1, settings.steps)

        planted_model(task, seed=networks, settings=settings, report=report)
    digest = hashlib.sha256()
    for name, value in sorted(_network(task, networks).module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def weights(model: Model, random: bool, seed: int) -> Iterator[Model]:
    """The model, for the time of the block with random weights of a seed if wanted (`metrics.randomise`)."""
    if not random:
        yield model
        return
    assert isinstance(model, TorchModel)
    layers = stages(model)
    with randomising(layers, seed) as upto:
        upto(len(layers))
        yield replace(model, weights=f"random (seed {seed})")


def target(task: str, label: int) -> Prob | int:
    """What is explained: the true class as the method has it; of a white box its score, not the log of it."""
    return Prob(label) if task == WHITEBOX else label


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────


BANDS = "bands"


@dataclass(frozen=True)
class Measure:
    """A score of a map against the truth.

    Attributes:
        of: the score, a number in [0, 1]; None where it needs the network too.
        higher_is_better: direction.
        title: what tables call it.
        says: what it is, for a legend.
    """

    of: Callable[[Tensor, Truth], float] | None
    higher_is_better: bool
    title: str
    says: str


def _temporal(saliency: Tensor, truth: Truth) -> float:
    """NaN where the truth is on every frame: there all maps are right."""
    always = bool(truth.mask.flatten(1).any(dim=1).all())
    return nan if always else temporal_iou(saliency, truth.mask)


def _distractor(saliency: Tensor, truth: Truth) -> float:
    assert truth.distractor is not None
    return distractor_mass(saliency, truth.distractor)


MEASURES: dict[str, Measure] = {
    "ap": Measure(lambda m, t: average_precision(m, t.mask), True, "AP", "average precision"),
    "energy": Measure(
        lambda m, t: energy_in_tube(m, t.mask), True, "energy", "share of positive mass in the truth"
    ),
    "pointing": Measure(
        lambda m, t: pointing(m, t.mask), True, "pointing", "whether the highest voxel hits the truth"
    ),
    "tube_iou": Measure(
        lambda m, t: tube_iou(m, t.mask), True, "tube IoU", "overlap with the truth at its volume"
    ),
    "temporal_iou": Measure(
        _temporal,
        True,
        "temporal IoU",
        "overlap with the truth's frames, as many of them",
    ),
    "distractor": Measure(
        _distractor, False, "distractor", "share of positive mass on what looks like evidence and is none"
    ),
    BANDS: Measure(
        None, True, "bands", "share of the score that the bands with the evidence carry within the map's tube"
    ),
}


def measured(saliency: Float[Tensor, "T H W"], truth: Truth) -> dict[str, float]:
    """All scores of a map that need no network, and that mean something on this clip."""
    scores = {name: measure.of(saliency, truth) for name, measure in MEASURES.items() if measure.of}
    return {name: score for name, score in scores.items() if not isnan(score)}


def band_share(model: Model, planted: Planted, why: Explanation, run: Run) -> dict[str, float]:
    """The share of the bands with the evidence, where not all bands have it: 2^bands forwards."""
    clip, truth = planted.clip(), planted.known()
    if not truth.bands or not set(truth.bands) < set(clip.bands):
        return {}
    (score,) = BandShare(anchors=False)(model, clip, [why], truth, run)
    return {} if isnan(score.value) else {BANDS: score.value}


def masses(saliency: Float[Tensor, "T H W"], seed: int) -> tuple[float, float]:
    """Shares of positive mass on the object and on the mark of a clip of the pair, whoever is asked."""
    both = generate(seed, "shortcut")
    assert both.shortcut is not None
    return energy_in_tube(saliency, both.truth), energy_in_tube(saliency, both.shortcut)


def anchor(name: str, planted: Planted, seed: int) -> Float[Tensor, "T H W"]:
    """The map of a row that looks at no network."""
    clip = planted.clip()
    return common_maps(clip.size, clip, planted.known(), seed)[name]
