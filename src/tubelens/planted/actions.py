"""Tasks `key` and `dir`: the shape of one object decides, or the direction of the one red object."""

from __future__ import annotations

from typing import Literal

from tubelens.planted.scene import DISTRACTORS, FASTER, STEPS, Canvas, Scene, Wanted, stream, thing

KEYS = ("ring", "cross", "triangle", "bars")
LABELS: tuple[str, ...] = (*KEYS, *(f"moves {way}" for way in STEPS))
"""Names of the eight classes of the two; the first four are of task `key`, the others of task `dir`."""
EVIDENCE = ("object",)


def task_of(label: int) -> Literal["key", "dir"]:
    """Which of the two a class belongs to."""
    return "key" if label < len(KEYS) else "dir"


def distract(canvas: Canvas, seed: int) -> None:
    """Two or three objects of plain shapes, of any colour but red, moving in any direction."""
    rng = stream(seed, 2)
    for _ in range(2 + int(rng.integers(2))):
        canvas.add(DISTRACTORS, thing(rng, canvas.size, fast=FASTER))


def paint(wanted: Wanted) -> Scene:
    """Distractors, then the deciding object."""
    canvas, label = Canvas(wanted), wanted.label
    distract(canvas, wanted.seed)
    key = task_of(label) == "key"
    canvas.add(
        *EVIDENCE,
        thing(
            stream(wanted.seed, 3),
            wanted.size,
            hue=None if key else 0.0,
            shape=KEYS[label] if key else None,
            way=None if key else list(STEPS)[label - len(KEYS)],
        ),
    )
    return canvas.finish()
