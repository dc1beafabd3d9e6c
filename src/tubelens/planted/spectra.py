"""Task `spectra`: the same actor seen in visible light and in infrared, either of which is enough.

What is seen in R, G, B and what is seen in IR is one scene of two cameras: the actor is in both, all else in
one of them. A network of visible clips, one of infrared clips and one of both can each learn it, and the
truth is the same for all three.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tubelens.planted.infrared import BANDS, CHILL, HOT, heated
from tubelens.planted.order import RED
from tubelens.planted.scene import (
    DISTRACTORS,
    FASTER,
    IR,
    PACE,
    RGB,
    STEPS,
    Canvas,
    Scene,
    Wanted,
    stream,
    thing,
)

LABELS = tuple(f"actor moves {way}" for way in STEPS)
EVIDENCE = ("actor",)
CLUTTER = "clutter"
"""The part of the distractors that is seen in IR alone."""
CONTRAST = (0.45, 1.0)
"""Of the actor in visible light: how far its colour is from grey on the way to red."""
__all__ = ["BANDS", "CLUTTER", "CONTRAST", "EVIDENCE", "LABELS", "paint"]


def paint(wanted: Wanted) -> Scene:
    """A red hot actor, whose direction decides, between things that one of the two cameras sees.

    Visible things are of no temperature of their own, faster, and of any colour but red. Invisible ones are
    as hot as the actor and stand still, or are cold and faster.
    """
    canvas, size = Canvas(wanted, infrared=True), wanted.size
    others, deciding = stream(wanted.seed, 2), stream(wanted.seed, 3)
    for _ in range(2):
        canvas.add(DISTRACTORS, thing(others, size, fast=PACE * FASTER))
    canvas.add(CLUTTER, heated(others, HOT, thing(others, size, fast=0.0)), IR)
    for _ in range(1 + int(others.integers(2))):
        canvas.add(CLUTTER, heated(others, CHILL, thing(others, size, fast=PACE * FASTER)), IR)
    actor = thing(deciding, size, hue=RED, way=list(STEPS)[wanted.label], fast=PACE)
    contrast = deciding.uniform(*CONTRAST)
    grey = np.full(3, deciding.uniform(0.3, 0.7))
    canvas.add("actor", replace(actor, colour=grey + contrast * (actor.colour - grey)), RGB)
    canvas.add("actor", heated(deciding, HOT, actor), IR)
    return canvas.finish()
