"""Task `transient`: the colour of an object that is there in 2 frames only decides.

Grey objects move all along, and some appear for 2 frames as well, so that change alone finds
nothing.
"""

from __future__ import annotations

from tubelens.planted.scene import DISTRACTORS, FASTER, Canvas, Scene, Wanted, appearing, stream, thing

COLOURS = {"yellow": 0.16, "green": 0.34, "cyan": 0.54}
"""Hues, class by class."""
GREY = (0.0, 0.15)
"""Saturation of the distractors."""
LABELS = (*(f"{colour} appears" for colour in COLOURS), "neither")
EVIDENCE = ("object",)
LASTING = 2
RADIUS = (0.14, 0.17)
"""Larger than elsewhere: in 2 frames little is seen."""
WITHIN = (0.15, 0.85)
"""Nor may much of it be outside the frame, which it does not have the time to enter."""


def paint(wanted: Wanted) -> Scene:
    """Distractors that move all along, distractors that appear, then the object that appears and decides."""
    canvas, size, frames = Canvas(wanted), wanted.size, wanted.frames
    others, deciding = stream(wanted.seed, 2), stream(wanted.seed, 3)
    for _ in range(1 + int(others.integers(2))):
        canvas.add(DISTRACTORS, thing(others, size, saturation=GREY, fast=FASTER, radius=RADIUS))
    for _ in range(3):
        start = int(others.integers(frames - LASTING + 1))
        plain = thing(others, size, saturation=GREY, fast=FASTER, radius=RADIUS, within=WITHIN)
        brief, there = appearing(plain, frames, start, LASTING)
        canvas.add(DISTRACTORS, brief, when=there)
    start = int(deciding.integers(frames - LASTING + 1))
    hue = list(COLOURS.values())[wanted.label]
    evidence = thing(deciding, size, hue=hue, radius=RADIUS, within=WITHIN)
    brief, there = appearing(evidence, frames, start, LASTING)
    canvas.add("object", brief, when=there)
    return canvas.finish()
