"""One's own copy of the Multispectral Action Dataset, which is given on request only.

Read by Tubelens' own manifest `msad:FOLDER`, which says what is known of the layout: folders of frames in
`IR` and `TV`, and lists of the clips for training and for the test, or a folder for every class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from plan import INFRARED, TRAININGS, VISIBLE, Batch, Plan

import tubelens as tl
from tubelens.errors import InputError
from tubelens.evaluate.items import Item
from tubelens.evaluate.manifest import read_manifest

FRAMES = 16
SIZE = 64
BATCH = 16
TESTED = 0.3
"""Share of the scenes of each class that is for the test. A scene has one side in all spectra."""
SPECTRA = {"ir": INFRARED, "visible": VISIBLE}
"""The manifest's names of the spectra."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A clip: what it shows, in which spectrum, and the scene that it shares with the other camera."""

    item: Item
    spectrum: str
    scene: str
    label: str


def recorded(folder: Path, part: str = "") -> list[Recorded]:
    """All clips of the two cameras; those of a list, `train` or `test`, where a part is named.

    Raises:
        InputError: the folder is not laid out as the data set is.
    """
    return [
        Recorded(item, SPECTRA[item.spectrum], item.key.partition("/")[2], str(item.label))
        for item in read_manifest(f"msad:{folder}" + (f"?split={part}" if part else ""))
    ]


def parts(folder: Path, seed: int) -> tuple[list[Recorded], list[Recorded]]:
    """For training and for the test: by the data set's own lists, or where it has none by scene."""
    if (folder / "file_lists").is_dir():
        return recorded(folder, "train"), recorded(folder, "test")
    return split(recorded(folder), seed)


def split(found: Sequence[Recorded], seed: int) -> tuple[list[Recorded], list[Recorded]]:
    """For training and for the test, by scene and class; at least one scene of a class on either side.

    Raises:
        InputError: a class has one scene only.
    """
    scenes: dict[str, list[str]] = defaultdict(list)
    for r in found:
        if r.scene not in scenes[r.label]:
            scenes[r.label].append(r.scene)
    rng = np.random.default_rng((seed, 6))
    tested: set[str] = set()
    for label in sorted(scenes):
        mine = sorted(scenes[label])
        if len(mine) < 2:
            raise InputError(f"class {label}: one scene only, and training and test need one each")
        n = min(max(1, round(TESTED * len(mine))), len(mine) - 1)
        tested.update(mine[i] for i in rng.permutation(len(mine))[:n])
    return [r for r in found if r.scene not in tested], [r for r in found if r.scene in tested]


class Frames:
    """Clips `(t, h, w, 3)` in 8 bits, read once; infrared of one channel is repeated."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self._read: dict[str, np.ndarray] = {}

    def of(self, r: Recorded) -> np.ndarray:
        """The clip, in [0, 1]."""
        if r.item.key not in self._read:
            pixels = tl.read_clip(r.item.path, frames=FRAMES, size=self.size).pixels
            channels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1, -1)
            self._read[r.item.key] = (channels.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()
        return self._read[r.item.key].astype(np.float32) / 255


def plan(folder: Path, seed: int = 0, quick: bool = False) -> Plan:
    """The part on one's own copy: all three trainings where both spectra are there."""
    train, test = parts(folder, seed)
    size = 32 if quick else SIZE
    frames = Frames(size)
    labels = tuple(sorted({r.label for r in (*train, *test)}, key=lambda label: (len(label), label)))
    shown = 2 if quick else 32
    order = np.random.default_rng((seed, 7)).permutation(len(test))
    tests = [test[i] for i in order]
    return Plan(
        name="msad",
        labels=labels,
        size=size,
        trainings=TRAININGS,
        steps=3 if quick else 800,
        batches=partial(batches, train, frames, labels),
        tests=lambda spectrum: [item(r, frames) for r in tests if r.spectrum == spectrum],
        shown=shown,
        rise=20 if quick else 300,
        points=4 if quick else 16,
        faster=3.0,
        facts=(
            f"{len(labels)} classes; {len(train)} clips for training, {len(test)} for the test, of which"
            f" {shown} of each spectrum are explained",
            f"16 frames spread over each clip, {size} x {size} pixels; infrared repeated to three channels",
        ),
        told={"clips": len(train)},
    )


def batches(
    train: Sequence[Recorded],
    frames: Frames,
    labels: Sequence[str],
    spectra: Sequence[str],
    seed: int,
    steps: int,
) -> Iterator[Batch]:
    """As many clips of each spectrum in an update, mirrored at random."""
    rng = np.random.default_rng((seed, 1))
    sets = [[r for r in train if r.spectrum == spectrum] for spectrum in spectra]
    for _ in range(steps):
        chosen = [mine[i] for mine in sets for i in rng.integers(len(mine), size=min(BATCH, len(mine)))]
        clips = [frames.of(r)[:, :, :: -1 if rng.random() < 0.5 else 1] for r in chosen]
        pixels = torch.stack([torch.from_numpy(np.ascontiguousarray(clip)) for clip in clips])
        goal = torch.eye(len(labels))[[labels.index(r.label) for r in chosen]]
        yield Batch(pixels.permute(0, 4, 1, 2, 3), goal)


def item(r: Recorded, frames: Frames) -> Item:
    """A test clip as the networks see it."""
    return Item(
        r.item.key,
        array=frames.of(r),
        label=r.label,
        spectrum=r.spectrum,
        bands=("R", "G", "B"),
        fps=r.item.fps,
    )
