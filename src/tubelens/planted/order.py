"""Task `order`: a red object and then a blue one, or first the blue one; the same frames either way.

All but the two events reads the same forwards and backwards: ground, noise and distractors go there and back.
So the clip of the other label is this one played backwards, bit for bit, and yet only voxels of the two
events differ.
"""

from __future__ import annotations

from dataclasses import replace

from tubelens.planted.scene import (
    DISTRACTORS,
    FASTER,
    Canvas,
    Scene,
    Wanted,
    appearing,
    near,
    stream,
    thing,
)

LABELS = ("red then blue", "blue then red", "neither")
EVIDENCE = ("red", "blue")
RED, BLUE = 0.0, 0.64
OTHERS = (0.12, 0.5)
"""Hues of the distractors: yellow to cyan."""
RADIUS = (0.14, 0.17)
REACH = 0.15
"""The second event's middle lies within this share of the frame's side from the first's."""


def paint(wanted: Wanted) -> Scene:
    """Distractors, some of which appear for as long as an event; then the two events, one after the other."""
    frames, size = wanted.frames, wanted.size
    canvas = Canvas(wanted, frames=(frames + 1) // 2)
    lasting = max(1, frames // 4)
    others, deciding = stream(wanted.seed, 2), stream(wanted.seed, 3)
    half = (frames + 1) // 2
    for _ in range(1 + int(others.integers(2))):
        canvas.add(DISTRACTORS, thing(others, size, hues=OTHERS, fast=FASTER, radius=RADIUS))
    for _ in range(2):
        start = int(others.integers(half - lasting + 1))
        brief, there = appearing(
            thing(others, size, hues=OTHERS, fast=FASTER, radius=RADIUS), half, start, lasting
        )
        canvas.add(DISTRACTORS, brief, when=there)
    canvas.mirror(frames)

    gap = int(deciding.integers(1, 1 + max(1, round(3 * frames / 16))))
    gap = min(gap, frames - 2 * lasting)
    start = int(deciding.integers(frames - 2 * lasting - gap + 1))
    red = thing(deciding, size, hue=RED, fast=0.0, radius=RADIUS)
    blue = thing(deciding, size, hue=BLUE, fast=0.0, radius=RADIUS)
    blue = replace(blue, place=near(deciding, red.place, REACH * size, size))
    for part, event, begin in (("red", red, start), ("blue", blue, start + lasting + gap)):
        event, there = appearing(event, frames, begin, lasting)
        canvas.add(part, event, when=there)
    if wanted.label == 1:
        canvas.reverse()
    return canvas.finish()
