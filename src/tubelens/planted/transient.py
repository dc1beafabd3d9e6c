"""Task `transient`: the shape of an object that is there in 2 frames only decides.

Objects of plain shapes move all along, and some appear for 2 frames as well, so that change alone finds
nothing.
"""

from __future__ import annotations

from tubelens.planted.actions import KEYS
from tubelens.planted.scene import DISTRACTORS, FASTER, Canvas, Scene, Wanted, appearing, stream, thing

LABELS = tuple(f"{shape} appears" for shape in KEYS)
EVIDENCE = ("object",)
LASTING = 2
RADIUS = (0.14, 0.17)
"""Larger than elsewhere: in 32 x 32 pixels and 2 frames a shape is hard to tell."""
WITHIN = (0.15, 0.85)
"""Nor may much of it be outside the frame, which it does not have the time to enter."""


def paint(wanted: Wanted) -> Scene:
    """Distractors that move all along, distractors that appear, then the object that appears and decides."""
    canvas, size, frames = Canvas(wanted), wanted.size, wanted.frames
    others, deciding = stream(wanted.seed, 2), stream(wanted.seed, 3)
    for _ in range(1 + int(others.integers(2))):
        canvas.add(DISTRACTORS, thing(others, size, fast=FASTER, radius=RADIUS))
    for _ in range(3):
        start = int(others.integers(frames - LASTING + 1))
        plain = thing(others, size, fast=FASTER, radius=RADIUS, within=WITHIN)
        brief, there = appearing(plain, frames, start, LASTING)
        canvas.add(DISTRACTORS, brief, when=there)
    start = int(deciding.integers(frames - LASTING + 1))
    evidence = thing(deciding, size, shape=KEYS[wanted.label], radius=RADIUS, within=WITHIN)
    brief, there = appearing(evidence, frames, start, LASTING)
    canvas.add("object", brief, when=there)
    return canvas.finish()
