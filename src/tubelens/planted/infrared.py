"""Tasks with a fourth, infrared band: `infrared` (a direction that only it shows) and `xor`.

In both, what is seen in R, G, B is not seen in IR and the other way round. Hot things are bright in IR.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tubelens.planted.order import BLUE, OTHERS, RED
from tubelens.planted.scene import (
    DISTRACTORS,
    FASTER,
    IR,
    PACE,
    STEPS,
    Canvas,
    Scene,
    Thing,
    Wanted,
    near,
    stream,
    thing,
)

BANDS = ("R", "G", "B", "IR")
LABELS = tuple(f"warm moves {way}" for way in STEPS)
EVIDENCE = ("warm",)
XOR_LABELS = ("alike", "unlike", "neither")
XOR_EVIDENCE = ("visible", "infrared")
HOT, CHILL = (0.85, 1.0), (0.0, 0.15)
COLD = "cold"
"""The part of the distractors that is seen in IR alone."""
RADIUS = (0.13, 0.16)
"""Of all objects of `xor`: larger than elsewhere, because the gap between two bars must be seen."""
APART = 0.25
"""In `xor`, the infrared cue's middle lies within this share of the frame's side from the visible one's."""


def heated(rng: np.random.Generator, heat: tuple[float, float], cool: Thing) -> Thing:
    """The object with a temperature in place of its colour."""
    return replace(cool, colour=np.array([rng.uniform(*heat)]))


def paint(wanted: Wanted) -> Scene:
    """Two visible objects and one or two cold ones decide nothing; the direction of a warm one does."""
    canvas, size = Canvas(wanted, infrared=True), wanted.size
    others, deciding = stream(wanted.seed, 2), stream(wanted.seed, 3)
    for _ in range(2):
        canvas.add(DISTRACTORS, thing(others, size, hues=(0.0, 1.0), fast=PACE * FASTER))
    for _ in range(1 + int(others.integers(2))):
        canvas.add(COLD, heated(others, CHILL, thing(others, size, fast=PACE * FASTER)), IR)
    evidence = thing(deciding, size, way=list(STEPS)[wanted.label], fast=PACE)
    canvas.add("warm", heated(deciding, HOT, evidence), IR)
    return canvas.finish()


def paint_xor(wanted: Wanted) -> Scene:
    """A visible cue, red or blue, and near it an infrared one, level or upright bars; they move together.

    Class 0, `alike`: red with upright, or blue with level; class 1, `unlike`: red with level, or blue with
    upright. Which of the two cues the label changes is drawn, so neither says anything by itself.
    """
    canvas, size = Canvas(wanted, infrared=True), wanted.size
    others, deciding = stream(wanted.seed, 2), stream(wanted.seed, 3)
    for _ in range(2):
        canvas.add(DISTRACTORS, thing(others, size, hues=OTHERS, fast=FASTER, radius=RADIUS))
    for _ in range(1 + int(others.integers(2))):
        canvas.add(COLD, heated(others, CHILL, thing(others, size, fast=FASTER, radius=RADIUS)), IR)
    bit, which = (bool(drawn) for drawn in deciding.integers(2, size=2))
    flips = wanted.label == 1
    red, upright = bit ^ (flips and which), bit ^ (flips and not which)
    visible = thing(deciding, size, hue=RED if red else BLUE, radius=RADIUS)
    warm = heated(deciding, HOT, thing(deciding, size, shape="bars", radius=RADIUS))
    place = near(deciding, visible.place, APART * size, size)
    warm = replace(
        warm, place=place, velocity=visible.velocity, angle=warm.angle + (np.pi / 2 if upright else 0.0)
    )
    canvas.add("visible", visible)
    canvas.add("infrared", warm, IR)
    return canvas.finish(cues=(red, upright))
