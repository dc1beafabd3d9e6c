"""Real far-infrared recordings of actions: the Nagoya University 16 x 16 data set, split by person.

A ceiling sensor of 16 x 16 cells, some 9 frames a second, two or three people a recording, one after another
(Kawashima et al., "Action recognition from extremely low-resolution thermal image sequence", AVSS 2017). Read
from a folder of `DATE/RECORDING.npz` (`frames`, float degrees), `segments.csv` and
`annotation/annotation_DATE_human.csv`, which names the person of every segment.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from plan import INFRARED, Batch, Plan
from torch import Tensor

from tubelens.errors import InputError
from tubelens.evaluate.items import Item

FRAMES = 16
MERGED = {"walk1": "walk", "walk2": "walk", "falling1": "fall", "falling2": "fall"}
"""All ten labels are used. By the data set's description there is "no difference" between walk, walk1 and
walk2; falling1 and falling2 are its one action "falling down" (while walking, and while standing up)."""
LABELS = ("walk", "sitdown", "sit", "standup", "stand", "fall", "lie")
DEGREES = (-0.5, 1.0)
"""Above or below the recording's background, the median of each cell over its time: what becomes 0 and 1.
One range for all; a person is .3 to 1 degree warmer than the floor, rooms differ by 2."""
COLDEST = 15.0
"""No room is colder: frames in which a cell is are those before the sensor has started."""
BATCH = 32
JITTER = 2
"""Training clips start so many frames earlier or later at most."""


@dataclass(frozen=True, eq=False)
class Segment:
    """An action of a person: a recording's name, first and last frame, class and person."""

    recording: str
    start: int
    end: int
    label: str
    person: str

    @property
    def key(self) -> str:
        """What its clip is called."""
        return f"{self.recording}:{self.start}-{self.end}"


@dataclass(frozen=True, eq=False)
class Split:
    """Segments for training and for the test, which share no person and no recording."""

    train: tuple[Segment, ...]
    test: tuple[Segment, ...]


def segments(folder: Path) -> list[Segment]:
    """All segments with their persons.

    Raises:
        InputError: a file is missing, or a line of one cannot be meant.
    """
    persons: dict[tuple[str, ...], str] = {}
    files = sorted((folder / "annotation").glob("annotation_*_human.csv"))
    if not files or not (folder / "segments.csv").is_file():
        raise InputError(
            f"{folder}: no segments.csv and annotation/annotation_*_human.csv in it: give the folder of the"
            " far-infrared recordings"
        )
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                if len(row) != 5:
                    raise InputError(f"{path}: {row!r}: a line has file, start, end, action and person")
                persons[(row[0].removesuffix(".csv"), *row[1:4])] = row[4].strip()
    found = []
    with (folder / "segments.csv").open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            key = tuple(row[name] for name in ("file", "start_frame", "end_frame", "action"))
            action = MERGED.get(key[3], key[3])
            if key not in persons or action not in LABELS:
                raise InputError(f"{folder / 'segments.csv'}, line {line}: no person, or an unknown action")
            found.append(Segment(key[0], int(key[1]), int(key[2]), action, persons[key]))
    return found


def split(found: Sequence[Segment], seed: int) -> Split:
    """People who were recorded together are a group; the seed draws the group that is for the test.

    Raises:
        InputError: there is only one group.
    """
    together: dict[str, set[str]] = defaultdict(set)
    for segment in found:
        together[segment.recording].add(segment.person)
    groups = sorted({tuple(sorted(persons)) for persons in together.values()})
    if len(groups) < 2 or any(n > 1 for n in Counter(p for g in groups for p in g).values()):
        raise InputError(
            "the people of the recordings do not fall into two or more groups: no split by person"
        )
    tested = groups[int(np.random.default_rng((seed, 5)).integers(len(groups)))]
    train = tuple(s for s in found if s.person not in tested)
    test = tuple(s for s in found if s.person in tested)
    shared = {s.recording for s in train} & {s.recording for s in test}
    assert not shared, f"recordings in both parts: {sorted(shared)}"
    return Split(train, test)


class Recordings:
    """Frames by the name of the recording, as degrees above the background, scaled by `DEGREES`."""

    def __init__(self, folder: Path) -> None:
        self.paths = {path.stem: path for path in sorted(folder.glob("*/*.npz"))}
        self._read: dict[str, tuple[np.ndarray, int]] = {}

    def clip(self, segment: Segment, shift: int = 0) -> np.ndarray:
        """16 frames `(16, h, w)` around a segment's middle, moved by `shift`, within the recording."""
        frames, first = self._frames(segment.recording)
        start = (segment.start + segment.end + 1) // 2 - FRAMES // 2 + shift
        start = min(max(start, first), len(frames) - FRAMES)
        return frames[start : start + FRAMES]

    def _frames(self, name: str) -> tuple[np.ndarray, int]:
        if name not in self._read:
            if name not in self.paths:
                raise InputError(f"recording {name}: there is no {name}.npz")
            with np.load(self.paths[name], allow_pickle=False) as file:
                degrees = file["frames"].astype(np.float32)
            started = (degrees > COLDEST).all(axis=(1, 2))
            first = int(np.argmax(started))
            if not started.any() or len(degrees) - first < FRAMES:
                raise InputError(f"{self.paths[name]}: fewer than {FRAMES} frames after the sensor's start")
            low, high = DEGREES
            above = degrees - np.median(degrees[started], axis=0)
            self._read[name] = np.clip((above - low) / (high - low), 0, 1), first
        return self._read[name]


def plan(folder: Path, seed: int = 0, quick: bool = False) -> Plan:
    """The far-infrared part: infrared alone, because there is nothing else."""
    parts, recordings = split(segments(folder), seed), Recordings(folder)
    tests = drawn_evenly(parts.test, seed)
    persons = [sorted({s.person for s in part}) for part in (parts.train, parts.test)]
    shown = 2 if quick else 56
    return Plan(
        name="far-infrared",
        labels=LABELS,
        size=16,
        trainings={INFRARED: (INFRARED,)},
        steps=3 if quick else 800,
        batches=partial(batches, parts.train, recordings),
        tests=lambda _: [item(s, recordings) for s in tests],
        shown=shown,
        rise=20 if quick else 300,
        points=4 if quick else 16,
        faster=3.0,
        facts=(
            f"trained on {len(parts.train)} segments of {', '.join(persons[0])}; tested on {len(parts.test)}"
            f" of {', '.join(persons[1])}; {min(shown, len(tests))} of these, classes alike, are explained",
            "people who were recorded together are on one side, so no person and no recording is on both",
            f"all ten labels as {len(LABELS)} classes: walk, walk1 and walk2 are one, so are falling1 and"
            " falling2",
            f"16 frames around the middle of each segment; {DEGREES[0]:g} to {DEGREES[1]:g} degrees above the"
            " median of the cell over its recording become 0 to 1",
        ),
        told={"persons": ", ".join(persons[1])},
    )


def batches(
    train: Sequence[Segment], recordings: Recordings, spectra: Sequence[str], seed: int, steps: int
) -> Iterator[Batch]:
    """Epoch after epoch in a drawn order; moved in time, turned and mirrored, because the sensor looks down.

    Half of the clips have cells greyed out at random, as evidence is removed when maps are scored.
    """
    rng = np.random.default_rng((seed, 1))
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += rng.permutation(len(train)).tolist()
        chosen, order = [train[i] for i in order[:BATCH]], order[BATCH:]
        shifts = rng.integers(-JITTER, JITTER + 1, BATCH)
        clips = [recordings.clip(s, int(shift)) for s, shift in zip(chosen, shifts, strict=True)]
        pixels = torch.stack([_greyed(_turned(clip, rng), rng) for clip in clips])
        goal = torch.eye(len(LABELS))[[LABELS.index(s.label) for s in chosen]]
        yield Batch(pixels[:, None].expand(-1, 3, -1, -1, -1), goal, 0.03)


def _turned(clip: np.ndarray, rng: np.random.Generator) -> Tensor:
    turned = np.rot90(clip, int(rng.integers(4)), axes=(1, 2))
    mirrored = turned[:, :, ::-1] if rng.random() < 0.5 else turned
    noisy = mirrored + rng.normal(0, 0.03, clip.shape)
    return torch.from_numpy(np.clip(noisy + rng.normal(0, 0.03), 0, 1).astype(np.float32))


def _greyed(clip: Tensor, rng: np.random.Generator) -> Tensor:
    share = rng.uniform(0, 0.4) * (rng.random() < 0.5)
    gone = torch.from_numpy(rng.random((8, 4, 4)) < share)
    for axis, times in enumerate((2, 4, 4)):
        gone = gone.repeat_interleave(times, dim=axis)
    return torch.where(gone, clip.mean(), clip)


def drawn_evenly(test: Sequence[Segment], seed: int) -> list[Segment]:
    """All test segments, drawn so that the first ones are of all classes alike."""
    rng = np.random.default_rng((seed, 2))
    ordered: dict[str, list[Segment]] = {label: [] for label in LABELS}
    for i in rng.permutation(len(test)):
        ordered[test[i].label].append(test[i])
    rounds = max(len(mine) for mine in ordered.values())
    return [mine[i] for i in range(rounds) for mine in ordered.values() if i < len(mine)]


def item(segment: Segment, recordings: Recordings) -> Item:
    """A test clip, its one band repeated to three as for every network here."""
    frames = recordings.clip(segment)
    extra: Mapping[str, str] = {"person": segment.person}
    return Item(
        segment.key,
        array=np.repeat(frames[..., None], 3, axis=3),
        label=segment.label,
        spectrum=INFRARED,
        bands=("R", "G", "B"),
        fps=9.0,
        extra=extra,
    )
