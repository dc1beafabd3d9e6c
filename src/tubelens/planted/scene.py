"""What all planted scenes are painted with: grounds, objects on straight paths, a canvas with named parts.

A scene is drawn first and painted afterwards, so that it can be painted again with a part left out: same
ground, same noise, same everything else. Each part of a scene has its own random stream, so two clips of one
seed and different labels differ in the deciding objects alone.

What keeps trivial maps from winning: middles of the paths are uniform over the frame (no centre prior); the
distractors move at least as fast as the evidence, and the ground may drift (no frame difference); all
outlines of a scene have equal area; number, shape, colour and path of the distractors do not depend on the
label.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32

from tubelens.planted.shapes import OUTLINES, REACH, SHAPES

PLAIN = ("disc", "square", "diamond")
"""Shapes that are no class: of distractors, and of objects whose colour or direction decides."""
STEPS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
RADIUS = (0.1, 0.125)
"""Of a disc of an object's area, as a share of the frame's side."""
FASTER = 1.75
"""Distractors: half again as fast as the evidence on average, and never slower than the fastest evidence."""
PACE = 1.6
"""Speed of evidence in tasks of 32 x 32 pixels, so that its direction shows in neighbouring frames."""
RGB, IR = slice(0, 3), slice(3, 4)
DISTRACTORS = "distractors"
"""The part of every scene that decides nothing."""


@dataclass(frozen=True)
class Wanted:
    """Which scene is painted, and without which of its parts.

    Attributes:
        seed, label, frames, size: as for `generate`.
        left_out: names of the parts that are not painted; their masks are there all the same.
        mark: class that the mark of the shortcut task stands for; None: drawn.
    """

    seed: int
    label: int
    frames: int
    size: int
    left_out: frozenset[str] = frozenset()
    mark: int | None = None


@dataclass(frozen=True)
class Scene:
    """What was painted.

    Attributes:
        pixels: in [0, 1].
        parts: voxels within the outlines of each part's objects, where no later object of the same bands
            covers them; holes and gaps included.
        mark: class that the mark stands for, where there is one.
        cues: states of the cues that decide together, where that cannot be read off the label.
    """

    pixels: Float32[np.ndarray, "c T H W"]
    parts: dict[str, Bool[np.ndarray, "T H W"]]
    mark: int | None = None
    cues: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Thing:
    """One object on a straight path: its colour, and its middle `place + velocity (t - (frames - 1) / 2)`."""

    shape: str
    colour: Float[np.ndarray, "n"]
    radius: float
    angle: float
    place: tuple[float, float]
    velocity: tuple[float, float]


class Canvas:
    """A clip while it is painted: the ground first, then one object after the other.

    Args:
        wanted: the scene; the ground depends on its seed, frames and size alone.
        infrared: with a fourth band, whose ground and noise are its own.
        frames: where the canvas is shorter than the clip, and mirrored later.
    """

    def __init__(self, wanted: Wanted, infrared: bool = False, frames: int | None = None) -> None:
        self.left_out, self.size = wanted.left_out, wanted.size
        count = frames or wanted.frames
        look = stream(wanted.seed, 1)
        self.video = ground(look, count, wanted.size)
        self.gain, self.lift, self.grain = (
            look.uniform(0.7, 1.1),
            look.uniform(-0.1, 0.1),
            look.uniform(0.01, 0.05),
        )
        self.noise = look.integers(0, 256, size=self.video.shape, dtype=np.uint8)
        if infrared:
            heat = stream(wanted.seed, 4)
            self.video = np.concatenate([self.video, ground(heat, count, wanted.size, bands=1)])
            own = heat.integers(0, 256, size=(1, *self.noise.shape[1:]), dtype=np.uint8)
            self.noise = np.concatenate([self.noise, own])
        self._parts: dict[str, tuple[slice, Bool[np.ndarray, "T H W"]]] = {}

    def add(
        self, part: str, thing: Thing, bands: slice = RGB, when: Bool[np.ndarray, "T"] | None = None
    ) -> None:
        """Paint an object over what is there, unless its part is left out.

        Args:
            part: the name under which its voxels are known; several objects may share it.
            thing: its colour has one value for each of `bands`.
            bands: those that it is seen in.
            when: frames that it is there in; None: all.
        """
        covered = stamp(self.video[bands], thing, part not in self.left_out, when)
        for name, (seen, mask) in self._parts.items():
            if name != part and seen == bands:
                mask &= ~covered
        if part in self._parts:
            self._parts[part][1].__ior__(covered)
        else:
            self._parts[part] = (bands, covered)

    def mirror(self, frames: int) -> None:
        """Go back in time after the last frame, up to `frames` of them: then it reads the same both ways."""
        back = frames - self.video.shape[1]
        self.video, self.noise = (_there_and_back(a, back) for a in (self.video, self.noise))
        self._parts = {
            name: (bands, _there_and_back(mask[None], back)[0]) for name, (bands, mask) in self._parts.items()
        }

    def reverse(self) -> None:
        """Turn time round: the same frames in the opposite order."""
        self.video, self.noise = self.video[:, ::-1].copy(), self.noise[:, ::-1]
        self._parts = {name: (bands, mask[::-1].copy()) for name, (bands, mask) in self._parts.items()}

    def finish(self, mark: int | None = None, cues: tuple[bool, ...] = ()) -> Scene:
        """Contrast, brightness and noise; the canvas is spent."""
        video = self.video
        video -= 0.5
        video *= self.gain
        video += 0.5 + self.lift - self.grain
        video += self.noise.astype(np.float32) * np.float32(2 * self.grain / 255)
        np.clip(video, 0, 1, out=video)
        return Scene(video, {name: mask for name, (_, mask) in self._parts.items()}, mark, cues)


def stream(seed: int, part: int) -> np.random.Generator:
    """The random numbers of one part of a scene."""
    return np.random.default_rng((seed, part))


def thing(
    rng: np.random.Generator,
    size: int,
    *,
    hue: float | None = None,
    hues: tuple[float, float] = (0.13, 0.87),
    saturation: tuple[float, float] = (0.75, 1.0),
    shape: str | None = None,
    way: str | None = None,
    fast: float = 1.0,
    radius: tuple[float, float] = RADIUS,
    within: tuple[float, float] = (0.05, 0.95),
) -> Thing:
    """An object at random; `hue`, `shape` and `way` are what the label may fix.

    Every random number is drawn whether or not it is used, so that the rest does not depend on the label.

    Args:
        rng: the stream of its part.
        size: height and width of the frame in pixels.
        hue: of its colour, red being 0, with a little scatter; None: anywhere in `hues`.
        hues: range of hues; by default red is left to objects that are told to be red.
        saturation: range of its saturation.
        shape: one of `SHAPES`; None: one of `PLAIN`.
        way: key of `STEPS`; None: any.
        fast: its speed, 1 being that of evidence: 1.5 to 2.5 % of the frame from frame to frame.
        radius: range, as a share of the frame.
        within: range of the middle of its path, as a share of the frame.
    """
    scatter, anywhere = rng.uniform(-0.035, 0.035), rng.uniform(*hues)
    colour = rgb(anywhere if hue is None else hue + scatter, rng.uniform(*saturation), rng.uniform(0.7, 1.0))
    plain, any_way = rng.choice(PLAIN), rng.choice(list(STEPS))
    extent = rng.uniform(*radius) * size
    tilt, slant = rng.uniform(-0.3, 0.3, size=2)
    dy, dx = STEPS[way or str(any_way)]
    speed = fast * rng.uniform(0.015, 0.025) * size
    cos, sin = np.cos(slant), np.sin(slant)
    place = rng.uniform(*within, size=2) * (size - 1)
    return Thing(
        shape or str(plain),
        colour,
        float(extent),
        float(tilt),
        (float(place[0]), float(place[1])),
        (float(speed * (dy * cos - dx * sin)), float(speed * (dy * sin + dx * cos))),
    )


def rgb(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
    """HSV to RGB, all in [0, 1]; the hue is taken modulo one."""
    sector = np.mod(hue * 6 + np.array([5.0, 3.0, 1.0]), 6)
    colour: np.ndarray = value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return colour


def near(
    rng: np.random.Generator, place: tuple[float, float], reach: float, size: int
) -> tuple[float, float]:
    """A place uniform within the disc of radius `reach` (pixels) around another.

    Where that would be outside the frame, it is on the other side of the first.
    """
    way, far = rng.uniform(0, 2 * np.pi), reach * np.sqrt(rng.uniform())
    offsets = (far * np.sin(way), far * np.cos(way))
    low, high = 0.05 * (size - 1), 0.95 * (size - 1)
    y, x = (p + d if low <= p + d <= high else p - d for p, d in zip(place, offsets, strict=True))
    return float(y), float(x)


def appearing(whole: Thing, frames: int, start: int, count: int) -> tuple[Thing, Bool[np.ndarray, "T"]]:
    """An object that is there in `count` frames from `start` on, and those frames.

    Its place is then the middle of what is seen of its path.
    """
    moment = np.arange(frames)
    early = (frames - 1) / 2 - (start + (count - 1) / 2)
    y, x = (p + v * early for p, v in zip(whole.place, whole.velocity, strict=True))
    return replace(whole, place=(y, x)), (moment >= start) & (moment < start + count)


def ground(
    rng: np.random.Generator, frames: int, size: int, bands: int = 3
) -> Float32[np.ndarray, "c T H W"]:
    """A random texture in greyish colours, standing still or drifting: linear value noise of two grains."""
    base = rng.uniform(0.25, 0.75) + rng.uniform(-0.06, 0.06, size=bands)
    moves = rng.random() < 0.5
    drift = rng.uniform(-0.3, 0.3, size=2) * moves * frames / 16  # of the frame, over the clip
    video = np.empty((bands, frames, size, size), dtype=np.float32)
    video[:] = base[:, None, None, None]
    for cells in (int(rng.integers(3, 7)), int(rng.integers(10, 22))):
        n = int(1.6 * cells) + 2
        strength = rng.uniform(0.02, 0.08)
        grey = rng.uniform(-1, 1, size=(1, n, n)) + 0.35 * rng.uniform(-1, 1, size=(bands, n, n))
        knots = (strength * grey).astype(np.float32)
        rows, cols = (_hats(d, cells, n, frames, size) for d in drift)
        video += rows @ (knots[:, None] @ cols.swapaxes(1, 2))
    return video


def stamp(
    video: Float32[np.ndarray, "c T H W"],
    thing: Thing,
    paint: bool,
    when: Bool[np.ndarray, "T"] | None = None,
) -> Bool[np.ndarray, "T H W"]:
    """Paint an object, antialiased; the voxels whose centres lie within its outline.

    Only a patch around the object is computed; what falls outside the frame is cut off.

    Args:
        video: changed in place.
        thing: the object, with a colour value for each band of `video`.
        paint: False leaves the video as it is.
        when: frames that it is there in; None: all.
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
    if when is not None:
        inside &= when[:, None, None]

    covered = np.zeros((frames, size, size), dtype=bool)
    t, i, j = np.nonzero(inside & (OUTLINES[thing.shape](u, v) <= 0))
    covered[t, rows[t, i], cols[t, j]] = True
    t, i, j = np.nonzero(inside & (cover > 0))
    alpha, r, c = cover[t, i, j], rows[t, i], cols[t, j]
    if paint:
        under = video[:, t, r, c]
        video[:, t, r, c] = under + alpha * (thing.colour[:, None].astype(np.float32) - under)
    return covered


def _hats(drift: float, cells: int, n: int, frames: int, size: int) -> Float32[np.ndarray, "T S n"]:
    """Linear interpolation matrices that read `n` knots, `cells` to a frame, shifted along in time."""
    start = 0.3 + drift * np.linspace(-0.5, 0.5, frames)
    at = (start[:, None] + np.arange(size) / size) * cells
    hats = np.maximum(0.0, 1.0 - np.abs(at[..., None] - np.arange(n)))
    return hats.astype(np.float32)


def _there_and_back(frames: np.ndarray, back: int) -> np.ndarray:
    """Along the second axis: as it is, then its first `back` frames from the last of them to the first."""
    return np.concatenate([frames, frames[:, :back][:, ::-1]], axis=1)
