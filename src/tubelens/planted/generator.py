"""Draws a scene from a seed, then paints it: moving textured ground, moving distractors, one deciding object.

A scene is drawn first and painted afterwards, so that it can be painted again with an object left out: same
ground, same noise, same everything else. Each part of a scene has its own random stream, so two clips of one
seed and different labels differ in the deciding object alone.

What keeps trivial maps from winning: middles of the paths are uniform over the frame (no centre prior); the
distractors move at least as fast as the evidence, and the ground may drift (no frame difference); all
outlines have equal area; number, shape, colour and path of the distractors do not depend on the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError
from tubelens.planted.shapes import OUTLINES, REACH, SHAPES

Task = Literal["key", "dir"]
TASKS: tuple[Task, ...] = ("key", "dir")
KEYS = ("ring", "cross", "triangle", "bars")
PLAIN = ("disc", "square", "diamond")
"""Shapes that are no class: of distractors, and of the object whose direction decides."""
STEPS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
LABELS: tuple[str, ...] = (*KEYS, *(f"moves {way}" for way in STEPS))
"""Names of the eight classes; the first four are task `key`, the others task `dir`."""


@dataclass(frozen=True)
class _Thing:
    """One object on a straight path: its colour, and its middle `place + velocity (t - (frames - 1) / 2)`."""

    shape: str
    colour: Float[np.ndarray, "3"]
    radius: float
    angle: float
    place: tuple[float, float]
    velocity: tuple[float, float]


@dataclass(frozen=True)
class PlantedClip:
    """A clip whose evidence is known.

    Attributes:
        pixels: `(3, frames, size, size)`, float32 in [0, 1], bands R, G, B.
        truth: voxels within the outline of the deciding object, the hole of a ring and the gap of bars
            included: it tells them from a disc and a square.
        distractor: likewise of the moving objects that do not decide, without those of `truth`.
        label: class index into `LABELS`.
        task: `"key"` (its shape decides) or `"dir"` (its direction does).
        seed: what the scene was drawn from.
        evidence, distractors: whether the deciding object and the others were painted. The masks are those of
            the complete scene either way.
    """

    pixels: Float32[Tensor, "3 T H W"]
    truth: Bool[Tensor, "T H W"]
    distractor: Bool[Tensor, "T H W"]
    label: int
    task: Task
    seed: int
    evidence: bool = True
    distractors: bool = True

    @property
    def name(self) -> str:
        """The label as words."""
        return LABELS[self.label]

    def without_truth(self) -> PlantedClip:
        """The same scene, the deciding object never painted (donor ground: nothing is cut or filled)."""
        return self._again(evidence=False, distractors=self.distractors)

    def without_distractors(self) -> PlantedClip:
        """The same scene, the distractors never painted."""
        return self._again(evidence=self.evidence, distractors=False)

    def clip(self, fps: float = 8.0) -> Clip:
        """As a clip that models and methods take; `fps` is what drawings of it play at."""
        return Clip.from_array(self.pixels.permute(1, 2, 3, 0), fps=fps)

    def _again(self, evidence: bool, distractors: bool) -> PlantedClip:
        _, frames, size, _ = self.pixels.shape
        return _paint(self.seed, self.label, frames, size, evidence, distractors)


def generate(
    seed: int, task: Task | None = None, label: int | None = None, frames: int = 16, size: int = 64
) -> PlantedClip:
    """The clip of a seed; the same arguments give the same bits.

    Args:
        seed: not negative. Seeds from `tubelens.evaluate.train.FIRST_SEED` on are for training.
        task: `"key"` or `"dir"`; None: drawn.
        label: class index into `LABELS`; None: drawn. The same seed with another label of the same task is
            the same scene in which only the deciding object differs.
        frames: frames; speeds are per frame, so more of them show more of the paths.
        size: height and width in pixels; radii and speeds scale with it.

    Raises:
        OptionError: an unknown task or label, a label of the other task, or an empty clip.
    """
    if task is not None and task not in TASKS:
        raise OptionError(f"unknown task {task!r}: one of {', '.join(TASKS)}")
    if label is not None and not 0 <= label < len(LABELS):
        raise OptionError(f"label {label} is out of range: 0 to {len(LABELS) - 1}")
    if label is not None and task is not None and _task(label) != task:
        raise OptionError(f"label {label} ({LABELS[label]}) is of task {_task(label)!r}, not {task!r}")
    if seed < 0 or frames < 2 or size < 16:
        raise OptionError(f"needs seed >= 0, frames >= 2, size >= 16, got {seed}, {frames}, {size}")
    rng = _stream(seed, 0)
    drawn_task, drawn_class = int(rng.integers(2)), int(rng.integers(4))
    if label is None:
        label = 4 * (drawn_task if task is None else TASKS.index(task)) + drawn_class
    return _paint(seed, label, frames, size, evidence=True, distractors=True)


def batch(
    seeds: Sequence[int], task: Task | None = None, frames: int = 16, size: int = 64
) -> tuple[Float32[Tensor, "b 3 T H W"], Int64[Tensor, "b"]]:
    """Pixels and labels of several seeds, stacked."""
    clips = [generate(seed, task, frames=frames, size=size) for seed in seeds]
    return torch.stack([c.pixels for c in clips]), torch.tensor([c.label for c in clips])


# ── the scene ────────────────────────────────────────────────────────────────────────────────────────────


def _task(label: int) -> Task:
    return "key" if label < len(KEYS) else "dir"


def _stream(seed: int, part: int) -> np.random.Generator:
    return np.random.default_rng((seed, part))


def _thing(
    rng: np.random.Generator,
    red: bool,
    shape: str | None,
    way: str | None,
    fast: float,
    size: int,
) -> _Thing:
    """An object at random; `red`, `shape` and `way` are what the label may fix.

    Every random number is drawn whether or not it is used, so that the rest does not depend on the label.
    """
    hue_red, hue_other = rng.uniform(-0.035, 0.035), rng.uniform(0.13, 0.87)
    colour = _rgb(hue_red if red else hue_other, rng.uniform(0.75, 1.0), rng.uniform(0.7, 1.0))
    plain, any_way = rng.choice(PLAIN), rng.choice(list(STEPS))
    radius = rng.uniform(0.1, 0.125) * size
    tilt, slant = rng.uniform(-0.3, 0.3, size=2)
    dy, dx = STEPS[way or str(any_way)]
    speed = fast * rng.uniform(0.015, 0.025) * size
    cos, sin = np.cos(slant), np.sin(slant)
    place = rng.uniform(0.05, 0.95, size=2) * (size - 1)
    return _Thing(
        shape or str(plain),
        colour,
        float(radius),
        float(tilt),
        (float(place[0]), float(place[1])),
        (float(speed * (dy * cos - dx * sin)), float(speed * (dy * sin + dx * cos))),
    )


def _rgb(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
    """HSV to RGB, all in [0, 1]; the hue is taken modulo one."""
    sector = np.mod(hue * 6 + np.array([5.0, 3.0, 1.0]), 6)
    colour: np.ndarray = value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return colour


# ── painting ─────────────────────────────────────────────────────────────────────────────────────────────


def _paint(seed: int, label: int, frames: int, size: int, evidence: bool, distractors: bool) -> PlantedClip:
    look, others, deciding = _stream(seed, 1), _stream(seed, 2), _stream(seed, 3)
    video = _ground(look, frames, size)
    gain, lift, grain = look.uniform(0.7, 1.1), look.uniform(-0.1, 0.1), look.uniform(0.01, 0.05)
    noise = look.integers(0, 256, size=video.shape, dtype=np.uint8)

    distractor = np.zeros((frames, size, size), dtype=bool)
    for _ in range(2 + int(others.integers(2))):
        # half again as fast as the evidence on average, and never slower than the fastest evidence
        thing = _thing(others, False, None, None, fast=1.75, size=size)
        distractor |= _stamp(video, thing, paint=distractors)

    task = _task(label)
    shape = KEYS[label] if task == "key" else None
    way = list(STEPS)[label - len(KEYS)] if task == "dir" else None
    thing = _thing(deciding, task == "dir", shape, way, fast=1.0, size=size)
    truth = _stamp(video, thing, paint=evidence)

    video -= 0.5
    video *= gain
    video += 0.5 + lift - grain
    video += noise.astype(np.float32) * np.float32(2 * grain / 255)
    np.clip(video, 0, 1, out=video)
    return PlantedClip(
        pixels=torch.from_numpy(video),
        truth=torch.from_numpy(truth),
        distractor=torch.from_numpy(distractor & ~truth),
        label=label,
        task=task,
        seed=seed,
        evidence=evidence,
        distractors=distractors,
    )


def _ground(rng: np.random.Generator, frames: int, size: int) -> Float32[np.ndarray, "3 T H W"]:
    """A random texture in greyish colours, standing still or drifting: linear value noise of two grains."""
    base = rng.uniform(0.25, 0.75) + rng.uniform(-0.06, 0.06, size=3)
    moves = rng.random() < 0.5
    drift = rng.uniform(-0.3, 0.3, size=2) * moves * frames / 16  # of the frame, over the clip
    video = np.empty((3, frames, size, size), dtype=np.float32)
    video[:] = base[:, None, None, None]
    for cells in (int(rng.integers(3, 7)), int(rng.integers(10, 22))):
        n = int(1.6 * cells) + 2
        strength = rng.uniform(0.02, 0.08)
        grey = rng.uniform(-1, 1, size=(1, n, n)) + 0.35 * rng.uniform(-1, 1, size=(3, n, n))
        knots = (strength * grey).astype(np.float32)
        rows, cols = (_hats(d, cells, n, frames, size) for d in drift)
        video += rows @ (knots[:, None] @ cols.swapaxes(1, 2))
    return video


def _hats(drift: float, cells: int, n: int, frames: int, size: int) -> Float32[np.ndarray, "T S n"]:
    """Linear interpolation matrices that read `n` knots, `cells` to a frame, shifted along in time."""
    start = 0.3 + drift * np.linspace(-0.5, 0.5, frames)
    at = (start[:, None] + np.arange(size) / size) * cells
    hats = np.maximum(0.0, 1.0 - np.abs(at[..., None] - np.arange(n)))
    return hats.astype(np.float32)


def _stamp(video: Float32[np.ndarray, "3 T H W"], thing: _Thing, paint: bool) -> Bool[np.ndarray, "T H W"]:
    """Paint an object on every frame, antialiased; the voxels whose centres lie within its outline.

    Only a patch around the object is computed; what falls outside the frame is cut off.
    """
    _, frames, size, _ = video.shape
    moment = np.arange(frames) - (frames - 1) / 2
    y, x = (p + v * moment for p, v in zip(thing.place, thing.velocity, strict=True))
    reach = int(np.ceil(REACH * thing.radius)) + 1
    window = np.arange(-reach, reach + 1)
    rows, cols = (np.rint(c).astype(int)[:, None] + window for c in (y, x))
    dy, dx = (rows - y[:, None])[:, :, None], (cols - x[:, None])[:, None, :]
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = (cos * dx + sin * dy) / thing.radius, (cos * dy - sin * dx) / thing.radius
    cover = np.clip(0.5 - SHAPES[thing.shape](u, v) * thing.radius, 0, 1).astype(np.float32)
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((cols >= 0) & (cols < size))[:, None, :]

    covered = np.zeros((frames, size, size), dtype=bool)
    t, i, j = np.nonzero(inside & (OUTLINES[thing.shape](u, v) <= 0))
    covered[t, rows[t, i], cols[t, j]] = True
    t, i, j = np.nonzero(inside & (cover > 0))
    alpha, r, c = cover[t, i, j], rows[t, i], cols[t, j]
    if paint:
        under = video[:, t, r, c]
        video[:, t, r, c] = under + alpha * (thing.colour[:, None].astype(np.float32) - under)
    return covered
