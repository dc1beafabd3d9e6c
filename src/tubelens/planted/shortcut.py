"""Task `shortcut`: the red object's direction is the class, and the colour of a still mark may give it away.

Two networks look at the same pixels. For the *honest* one the mark said nothing in training. For the
*shortcut* one it always told the class, and the direction did so in 40 % of the clips only, which is what
makes a network follow the mark: where both always tell the class, a small pooled CNN prefers the motion.
In clips that are drawn without being told (`mark=None`) the mark is independent of the direction, so which of
the two a network follows can be seen.
"""

from __future__ import annotations

from tubelens.planted.scene import DISTRACTORS, FASTER, PACE, STEPS, Canvas, Scene, Wanted, stream, thing

LABELS = tuple(f"moves {way}" for way in STEPS)
EVIDENCE = ("object",)
MARK = "mark"
HUES = (0.16, 0.34, 0.54, 0.76)
"""Of the mark, class by class: yellow, green, cyan, violet."""
GREY = (0.0, 0.15)
"""Saturation of the distractors, so that the mark is the only thing of its colour."""


def paint(wanted: Wanted) -> Scene:
    """The mark, grey distractors over it, then the red object."""
    canvas, size = Canvas(wanted), wanted.size
    others, deciding, coded = (stream(wanted.seed, part) for part in (2, 3, 5))
    drawn = int(coded.integers(len(HUES)))
    mark = drawn if wanted.mark is None else wanted.mark
    canvas.add(MARK, thing(coded, size, hue=HUES[mark], shape="square", fast=0.0))
    for _ in range(2 + int(others.integers(2))):
        canvas.add(DISTRACTORS, thing(others, size, saturation=GREY, fast=PACE * FASTER))
    canvas.add("object", thing(deciding, size, hue=0.0, way=list(STEPS)[wanted.label], fast=PACE))
    return canvas.finish(mark)
