"""The planted task `spectra`: scenes of a visible and an infrared camera, with the evidence known in both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import torch
from plan import INFRARED, TRAININGS, VISIBLE, Batch, Plan
from torch import Tensor

from tubelens.evaluate.items import Item
from tubelens.evaluate.lessons import FIRST_SEED, SEEDS_PER_RUN, Settings, lesson
from tubelens.planted import generate, labels
from tubelens.truth import Truth

TASK = "spectra"
TAUGHT = Settings(
    *("spectra", TASK, 450, 0.6, (96, 4), (24, 16), True),
    cell=(2, 4, 4),
    empty=0.2,
    alone=0.2,
    sparse=0.1,
)
"""As the other small networks of the planted benchmark: short clips without distractors first, then whole
ones of which some are empty, some without distractors, and half with greyed cells."""
FEW = replace(TAUGHT, brief=(8, 4), whole=(4, 16))
CHANNELS = {VISIBLE: [0, 1, 2], INFRARED: [3, 3, 3]}


def plan(seed: int = 0, quick: bool = False) -> Plan:
    """The planted part. Test clips are those of seeds from 0 on, which no training ever draws."""
    tested, shown = (16, 2) if quick else (500, 32)
    return Plan(
        name="planted",
        labels=labels(TASK),
        size=32,
        trainings=TRAININGS,
        steps=3 if quick else TAUGHT.steps,
        batches=partial(batches, taught=FEW) if quick else batches,
        tests=lambda spectrum: [item(s, spectrum) for s in range(tested)],
        shown=shown,
        rise=20 if quick else 300,
        points=4 if quick else 16,
        truth=True,
        facts=(
            "planted task `spectra`: a red, hot actor is in both spectra and its direction decides; two"
            " things are seen in visible light alone, two or three in infrared alone",
            f"every update of a training sees fresh clips; {tested} test clips of other seeds, of which the"
            f" first {shown} are explained",
        ),
    )


def batches(spectra: Sequence[str], seed: int, steps: int, taught: Settings = TAUGHT) -> Iterator[Batch]:
    """The same scenes for every training of a seed; one of both spectra sees each scene twice."""
    rng = np.random.default_rng((seed, 0))
    fresh = itertools.count(FIRST_SEED + seed * SEEDS_PER_RUN)
    for step in range(steps):
        short = step < taught.short * steps
        now = lesson(fresh, rng, taught, short)
        pixels = torch.cat([as_seen(now.pixels, spectrum) for spectrum in spectra])
        yield Batch(pixels, now.goal.repeat(len(spectra), 1), 0.0 if short else taught.sparse)


def as_seen(pixels: Tensor, spectrum: str) -> Tensor:
    """Three channels of one spectrum out of `(b, R G B IR, t, h, w)`; infrared is repeated."""
    return pixels[:, CHANNELS[spectrum]]


@lru_cache(maxsize=2048)
def item(seed: int, spectrum: str) -> Item:
    """A test clip and where its evidence is."""
    clip = generate(seed, TASK)
    return Item(
        f"{spectrum} {seed}",
        array=as_seen(clip.pixels[None], spectrum)[0].permute(1, 2, 3, 0).contiguous().numpy(),
        label=clip.name,
        spectrum=spectrum,
        truth=Truth(clip.truth, distractor=clip.distractor, kind="planted"),
        bands=("R", "G", "B"),
        fps=8.0,
    )
