"""From a seed to a clip whose evidence is known: the table of tasks, and what a planted clip can be asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from tubelens.clip import Clip
from tubelens.errors import OptionError, nearest
from tubelens.planted import actions, infrared, order, shortcut, spectra, transient
from tubelens.planted.actions import LABELS
from tubelens.planted.scene import DISTRACTORS, Scene, Wanted, stream
from tubelens.truth import Truth

Task = Literal["key", "dir", "order", "transient", "infrared", "xor", "shortcut", "spectra"]
BENCHMARK: tuple[Task, ...] = get_args(Task)
"""All tasks."""
TASKS: tuple[Task, ...] = ("key", "dir")
"""Those of the bundled network, whose classes are numbered together."""
COLOUR = ("R", "G", "B")


@dataclass(frozen=True)
class Kind:
    """What a task is.

    Attributes:
        paint: draws and paints its scenes.
        labels: names that class indices stand for.
        classes: those that its clips have; a further label, `neither`, is for clips without evidence.
        evidence: names of the parts that decide. `others`: of those that do not.
        bands, truth_bands: of its clips, and those of them that the evidence is in.
        size: height and width unless told.
    """

    paint: Callable[[Wanted], Scene]
    labels: tuple[str, ...]
    classes: range
    evidence: tuple[str, ...]
    others: tuple[str, ...] = (DISTRACTORS,)
    bands: tuple[str, ...] = COLOUR
    truth_bands: tuple[str, ...] = COLOUR
    size: int = 32


_COLD = (DISTRACTORS, infrared.COLD)
KINDS: dict[str, Kind] = {
    "key": Kind(actions.paint, LABELS, range(4), actions.EVIDENCE, size=64),
    "dir": Kind(actions.paint, LABELS, range(4, 8), actions.EVIDENCE, size=64),
    "order": Kind(order.paint, order.LABELS, range(2), order.EVIDENCE),
    "transient": Kind(transient.paint, transient.LABELS, range(3), transient.EVIDENCE),
    "infrared": Kind(
        *(infrared.paint, infrared.LABELS, range(4), infrared.EVIDENCE, _COLD),
        bands=infrared.BANDS,
        truth_bands=("IR",),
    ),
    "xor": Kind(
        *(infrared.paint_xor, infrared.XOR_LABELS, range(2), infrared.XOR_EVIDENCE, _COLD),
        bands=infrared.BANDS,
        truth_bands=infrared.BANDS,
    ),
    "shortcut": Kind(
        *(shortcut.paint, shortcut.LABELS, range(4), shortcut.EVIDENCE, (shortcut.MARK, DISTRACTORS))
    ),
    "spectra": Kind(
        *(spectra.paint, spectra.LABELS, range(4), spectra.EVIDENCE, (DISTRACTORS, spectra.CLUTTER)),
        bands=spectra.BANDS,
        truth_bands=spectra.BANDS,
    ),
}


@dataclass(frozen=True)
class PlantedClip:
    """A clip whose evidence is known.

    The masks are those of the complete scene, whatever was left out of the pixels.

    Attributes:
        pixels: `(bands, frames, size, size)`, float32 in [0, 1].
        truth: voxels within the outlines of what decides, the hole of a ring and the gap of bars included: it
            tells them from a disc and a square.
        distractor: likewise of what does not decide, without the voxels of `truth`.
        label: class index into `labels(task)`. Seen as the shortcut network does (`evidence_for`): the class
            that the mark stands for.
        task: which task.
        seed: what the scene was drawn from.
        bands: one name a channel of `pixels`.
        truth_bands: those that the evidence is in.
        events: where several things decide together, the voxels of each: of `order` in the order of time, of
            `xor` the visible cue and the infrared one. Empty for one thing.
        shortcut: voxels of the mark, in task `shortcut` alone.
        mark: class that the mark stands for, in task `shortcut` alone.
        cues: in task `xor` alone: whether the visible cue is red, and whether the infrared bars are upright.
        deciding: names of the parts of the scene that `truth` is made of.
        left_out: names of the parts that were not painted.
    """

    pixels: Float32[Tensor, "c T H W"]
    truth: Bool[Tensor, "T H W"]
    distractor: Bool[Tensor, "T H W"]
    label: int
    task: Task
    seed: int
    bands: tuple[str, ...] = COLOUR
    truth_bands: tuple[str, ...] = COLOUR
    events: tuple[Bool[Tensor, "T H W"], ...] = ()
    shortcut: Bool[Tensor, "T H W"] | None = None
    mark: int | None = None
    cues: tuple[bool, ...] = ()
    deciding: tuple[str, ...] = ("object",)
    left_out: frozenset[str] = frozenset()
    _scene: Scene = field(repr=False, compare=False, kw_only=True)
    _wanted: Wanted = field(repr=False, compare=False, kw_only=True)

    @property
    def name(self) -> str:
        """The label as words."""
        return KINDS[self.task].labels[self.label]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the scene, the deciding ones among them."""
        return tuple(self._scene.parts)

    @property
    def evidence(self) -> bool:
        """Whether all that decides was painted."""
        return not self.left_out.intersection(self.deciding)

    @property
    def distractors(self) -> bool:
        """Whether all that does not decide was painted."""
        return not self.left_out.difference(self.deciding)

    def without(self, *parts: str) -> PlantedClip:
        """The same scene, some of its parts never painted (donor ground: nothing is cut or filled).

        Raises:
            OptionError: no such part in this task.
        """
        if strangers := set(parts).difference(self.parts):
            raise OptionError(
                f"task {self.task!r} has no part {min(strangers)!r}: one of {', '.join(self.parts)}"
            )
        return _planted(self.task, replace(self._wanted, left_out=self.left_out.union(parts)), self.deciding)

    def without_truth(self) -> PlantedClip:
        """The same scene, what decides never painted."""
        return self.without(*self.deciding)

    def without_distractors(self) -> PlantedClip:
        """The same scene, all that does not decide never painted."""
        return self.without(*(part for part in self.parts if part not in self.deciding))

    def evidence_for(self, model: str) -> PlantedClip:
        """The same pixels as a network of that name sees them, when more than one thing might decide.

        Args:
            model: for the network `shortcut` of task `shortcut` the mark is the truth, its class the label,
                and the red object a distractor. For every other name, and in every other task, the clip as
                it is drawn.
        """
        if self.task != "shortcut":
            return self
        follows = (shortcut.MARK,) if model.removeprefix("planted_") == "shortcut" else shortcut.EVIDENCE
        return _seen(self.task, self._wanted, self._scene, follows)

    def clip(self, fps: float = 8.0) -> Clip:
        """As a clip that models and methods take; `fps` is what drawings of it play at."""
        return Clip.from_array(self.pixels.permute(1, 2, 3, 0), bands=self.bands, fps=fps)

    def known(self) -> Truth:
        """What the localisation metrics compare a map with."""
        return Truth(
            self.truth, distractor=self.distractor, events=self.events, bands=self.truth_bands, kind="planted"
        )


def generate(
    seed: int,
    task: Task | None = None,
    label: int | None = None,
    frames: int = 16,
    size: int | None = None,
    mark: int | None = None,
    left_out: Collection[str] = (),
) -> PlantedClip:
    """The clip of a seed; the same arguments give the same bits.

    Args:
        seed: not negative. Seeds from `tubelens.evaluate.train.FIRST_SEED` on are for training.
        task: one of `BENCHMARK`; None: that of the label, or drawn from `TASKS`.
        label: class index into `labels(task)`; None: drawn. The same seed with another label of the same task
            is the same scene in which only what decides differs.
        frames: frames; speeds are per frame, so more of them show more of the paths.
        size: height and width in pixels; radii and speeds scale with it. None: 64 for `key` and `dir`, 32
            for the others.
        mark: class that the mark of task `shortcut` stands for; None: drawn, independent of the label.
        left_out: names of parts that are not painted, as by `PlantedClip.without`, but painted once only.

    Raises:
        OptionError: an unknown task or label, a label of another task, a mark where there is none, or an
            empty clip.
    """
    if isinstance(seed, str):
        raise OptionError(f"a seed is a whole number, not {seed!r}: it comes before the task")
    if task is not None and task not in KINDS:
        near = nearest(str(task), BENCHMARK)
        raise OptionError(f"unknown task {task!r}: one of {', '.join(BENCHMARK)}{near}")
    if label is not None and not 0 <= label < len(labels(task or "key")):
        raise OptionError(f"label {label} is out of range: 0 to {len(labels(task or 'key')) - 1}")
    if seed < 0 or frames < 2 or (size is not None and size < 16):
        raise OptionError(f"needs seed >= 0, frames >= 2, size >= 16, got {seed}, {frames}, {size}")
    rng = stream(seed, 0)
    drawn_task, drawn_class = int(rng.integers(2)), int(rng.integers(4))
    if task is None:
        task = TASKS[drawn_task] if label is None else actions.task_of(label)
    kind = KINDS[task]
    if label is None:
        label = kind.classes[drawn_class % len(kind.classes)]
    elif label not in kind.classes:
        raise OptionError(
            f"label {label} ({kind.labels[label]}) is of task {actions.task_of(label)!r}, not {task!r}"
            if task in TASKS
            else f"label {label} ({kind.labels[label]}) is for clips without evidence: `without_truth()`"
        )
    if mark is not None and (task != "shortcut" or not 0 <= mark < len(kind.labels)):
        raise OptionError(
            f"mark {mark} is out of range: 0 to {len(kind.labels) - 1}"
            if task == "shortcut"
            else f"only task 'shortcut' has a mark, not {task!r}"
        )
    wanted = Wanted(seed, label, frames, size or kind.size, frozenset(left_out), mark)
    return _planted(task, wanted, kind.evidence)


def batch(
    seeds: Sequence[int], task: Task | None = None, frames: int = 16, size: int | None = None
) -> tuple[Float32[Tensor, "b c T H W"], Int64[Tensor, "b"]]:
    """Pixels and labels of several seeds, stacked."""
    clips = [generate(seed, task, frames=frames, size=size) for seed in seeds]
    return torch.stack([c.pixels for c in clips]), torch.tensor([c.label for c in clips])


def labels(task: Task) -> tuple[str, ...]:
    """Names that the class indices of a task stand for; those of `key` and `dir` are `LABELS` for both.

    Some tasks have a last one, `neither`, that no clip has: networks are taught to say so where the evidence
    is missing, because with two classes alone a clip without evidence would still have half of the
    probability, and where evidence is tiny a network makes one of the classes the answer to seeing nothing.
    """
    return KINDS[task].labels


def _planted(task: Task, wanted: Wanted, deciding: tuple[str, ...]) -> PlantedClip:
    return _seen(task, wanted, KINDS[task].paint(wanted), deciding)


def _seen(task: Task, wanted: Wanted, scene: Scene, deciding: tuple[str, ...]) -> PlantedClip:
    """A painted scene, with some of its parts as the truth and the others as distractors."""
    kind = KINDS[task]
    truth = _union(scene, deciding)
    distractor = _union(scene, [part for part in scene.parts if part not in deciding]) & ~truth
    marks = shortcut.MARK in deciding
    events = [torch.from_numpy(scene.parts[part]) for part in deciding] if len(deciding) > 1 else []
    if task == "order" and wanted.label == 1:
        events.reverse()
    return PlantedClip(
        pixels=torch.from_numpy(scene.pixels),
        truth=torch.from_numpy(truth),
        distractor=torch.from_numpy(distractor),
        label=scene.mark if marks and scene.mark is not None else wanted.label,
        task=task,
        seed=wanted.seed,
        bands=kind.bands,
        truth_bands=kind.truth_bands,
        events=tuple(events),
        shortcut=torch.from_numpy(scene.parts[shortcut.MARK]) if shortcut.MARK in scene.parts else None,
        mark=scene.mark,
        cues=scene.cues,
        deciding=deciding,
        left_out=wanted.left_out,
        _scene=scene,
        _wanted=wanted,
    )


def _union(scene: Scene, parts: Sequence[str]) -> np.ndarray:
    covered: np.ndarray = np.logical_or.reduce([scene.parts[part] for part in parts])
    return covered
