"""What the planted networks are taught: the settings of every training, and what each step learns from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tubelens.planted import LABELS, TASKS, PlantedClip, Task, generate, labels
from tubelens.planted.generator import KINDS

FIRST_SEED = 1_000_000_000
"""Clip seeds from here on are for training; test below it and nothing was ever seen."""
SEEDS_PER_RUN = 1_000_000
BUNDLED = "bundled"


@dataclass(frozen=True)
class Settings:
    """What the training depends on besides the seed.

    Attributes:
        network: which one, a key of `RECIPES`.
        task: of its clips; None: `key` and `dir`, mixed.
        steps: number of updates. `short`: the share of them that is spent on short clips.
        brief, whole: clips in a step, and frames of each, while clips are short and afterwards.
        simple: whether the short clips come without distractors.
        key: share of clips whose task is the shape, the harder one, where two tasks are mixed.
        peak: highest learning rate of the one-cycle schedule. `decay`: weight decay of AdamW.
        faster: what `peak` is multiplied by for the linear layer. It reads means over the whole clip, of
            which the evidence is a few percent, so its weights have a long way to go.
        greyed: share of clips with greyed cells. `cell`: their frames, height and width.
        most: the share of greyed cells in such a clip is uniform in [0, most].
        empty: share of clips without evidence. `alone`: share without distractors.
        sparse: price of the mean of the last activations.
        informative: where the class is told by the mark, share of clips in which the direction tells it too.
        hint: price of not knowing, in the middle of the network, the cues of task `xor`, while clips are
            short.
        by_heart: clips with random labels that are learned by heart; 0: every clip is fresh.
    """

    network: str = BUNDLED
    task: Task | None = None
    steps: int = 860
    short: float = 0.45
    brief: tuple[int, int] = (96, 2)
    whole: tuple[int, int] = (16, 16)
    simple: bool = False
    key: float = 0.6
    peak: float = 4e-3
    decay: float = 1e-2
    faster: float = 1.0
    greyed: float = 0.5
    cell: tuple[int, int, int] = (4, 8, 8)
    most: float = 0.4
    empty: float = 0.125
    alone: float = 0.125
    sparse: float = 0.3
    informative: float = 1.0
    hint: float = 0.0
    by_heart: int = 0


def _small(network: str, task: Task, steps: int, **options: object) -> Settings:
    habits = Settings(
        *(network, task, steps, 0.6, (96, 4), (24, 16), True),
        peak=3e-3,
        faster=10.0,
        cell=(2, 4, 4),
        empty=0.2,
        alone=0.2,
        sparse=0.1,
    )
    return replace(habits, **options)  # type: ignore[arg-type]


RECIPES: dict[str, Settings] = {
    BUNDLED: Settings(),
    "order": _small("order", "order", 800, short=0.4, brief=(24, 16), simple=False, faster=1.0),
    "transient": _small("transient", "transient", 450, short=0.0, empty=0.3, alone=0.4, sparse=0.0),
    "infrared": _small("infrared", "infrared", 400),
    "xor": _small("xor", "xor", 500, short=0.5, alone=0.3, hint=1.0),
    "honest": _small("honest", "shortcut", 400),
    "shortcut": _small("shortcut", "shortcut", 300, informative=0.4),
    "labels": _small("labels", "transient", 700, by_heart=128, sparse=0.0, decay=0.0),
}
"""Settings of every network that can be trained, by its name."""


def names(settings: Settings) -> tuple[str, ...]:
    """Names of the classes of a network."""
    return LABELS if settings.task is None else labels(settings.task)


def by_heart(seed: int, settings: Settings) -> tuple[Float32[Tensor, "b c T H W"], Int64[Tensor, "b"]]:
    """The fixed clips of a network that learns by heart, and their random labels."""
    first = FIRST_SEED + seed * SEEDS_PER_RUN
    clips = [generate(first + i, settings.task) for i in range(settings.by_heart)]
    drawn = np.random.default_rng((seed, 1)).integers(len(names(settings)), size=settings.by_heart)
    return torch.stack([clip.pixels for clip in clips]), torch.from_numpy(drawn)


@dataclass(frozen=True)
class Lesson:
    """What one step learns from.

    Attributes:
        pixels: clips.
        goal: their target distributions: one-hot, or that of no evidence where it was left out.
        cues: 1 and 0 for the cues that a hint is given about; no columns where there is no hint.
    """

    pixels: Float32[Tensor, "b c T H W"]
    goal: Float[Tensor, "b k"]
    cues: Float[Tensor, "b n"]


def lesson(seeds: Iterator[int], rng: np.random.Generator, settings: Settings, short: bool) -> Lesson:
    """Clips of the next seeds, and their targets."""
    count, frames = settings.brief if short else settings.whole
    tasks: list[Task] = [TASKS[int(draw >= settings.key)] for draw in rng.random(count)]
    clips = [_drawn(next(seeds), settings, task, frames, short, rng) for task in tasks]
    goal = torch.eye(len(names(settings)))[[clip.label for clip in clips]]
    if short:
        cues = torch.tensor([clip.cues for clip in clips], dtype=torch.float32)
        return Lesson(torch.stack([clip.pixels for clip in clips]), goal, cues)
    for i in np.flatnonzero(rng.random(count) < settings.empty):
        clips[i] = _emptied(clips[i], rng)
        goal[i] = _nothing(settings)
    for i in np.flatnonzero(rng.random(count) < settings.alone):
        clips[i] = clips[i].without_distractors()
    pixels = torch.stack([clip.pixels for clip in clips])
    for i in np.flatnonzero(rng.random(count) < settings.greyed):
        _grey(pixels[i], rng, settings)
    return Lesson(pixels, goal, torch.zeros(count, 0))


def _drawn(
    seed: int, settings: Settings, task: Task, frames: int, short: bool, rng: np.random.Generator
) -> PlantedClip:
    """A clip as the network is to see it: `label` is its class."""
    task = settings.task or task
    left_out = KINDS[task].others if short and settings.simple else ()
    if settings.network != "shortcut":
        return generate(seed, task, frames=frames, left_out=left_out)
    known = int(rng.integers(len(names(settings))))
    told = rng.random() < settings.informative
    clip = generate(seed, task, known if told else None, frames, mark=known)
    return clip.evidence_for("shortcut")


def _emptied(clip: PlantedClip, rng: np.random.Generator) -> PlantedClip:
    """Without what decides; where several things decide together, without some of them."""
    parts = clip.deciding
    if len(parts) == 1:
        return clip.without_truth()
    gone = rng.integers(1, 2 ** len(parts))
    return clip.without(*(part for i, part in enumerate(parts) if gone >> i & 1))


def _nothing(settings: Settings) -> Float[Tensor, "k"]:
    """The target of a clip without evidence: all on `neither`, or flat where there is no such class."""
    known = names(settings)
    if known[-1] == "neither":
        return torch.eye(len(known))[-1]
    return torch.full((len(known),), 1 / len(known))


def _grey(pixels: Float32[Tensor, "c T H W"], rng: np.random.Generator, settings: Settings) -> None:
    """Replace random cells by the clip's mean colour, in place."""
    _, *size = pixels.shape
    counts = [-(-n // c) for n, c in zip(size, settings.cell, strict=True)]
    gone = torch.from_numpy(rng.random(counts) < rng.uniform(0, settings.most))
    for axis, (n, cell) in enumerate(zip(size, settings.cell, strict=True)):
        gone = gone.repeat_interleave(cell, dim=axis).narrow(axis, 0, n)
    pixels[:, gone] = pixels.mean(dim=(1, 2, 3))[:, None]
