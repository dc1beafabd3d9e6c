"""The tasks of the planted benchmark: what decides differs with the label, and nothing else does."""

from __future__ import annotations

from collections import defaultdict

import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from tubelens.errors import OptionError
from tubelens.metrics.localisation import average_precision, centre_prior, frame_difference
from tubelens.planted import BENCHMARK, LABELS, TASKS, PlantedClip, Task, batch, generate, labels
from tubelens.planted.generator import KINDS

NEW: tuple[Task, ...] = ("order", "transient", "infrared", "xor", "shortcut")
DECIDED = [(task, a, b) for task in NEW for a in KINDS[task].classes for b in KINDS[task].classes if a < b]


def around(mask: torch.Tensor) -> torch.Tensor:
    """With the two pixels next to it, where antialiased tips end."""
    return max_pool2d(mask.float(), 5, stride=1, padding=2) > 0


def changed(a: PlantedClip, b: PlantedClip) -> torch.Tensor:
    """Voxels that differ; not at the border, where the soft rim of something outside may be seen."""
    differ = (a.pixels - b.pixels).abs().amax(dim=0) > 1e-6
    differ[:, [0, 1, -2, -1]] = False
    differ[:, :, [0, 1, -2, -1]] = False
    return differ


def inner(mask: torch.Tensor) -> torch.Tensor:
    """Voxels that `changed` can find."""
    return torch.nn.functional.pad(mask[:, 2:-2, 2:-2], [2] * 4)


def test_the_clips_of_the_bundled_network_are_what_they_were() -> None:
    """Its weights were trained on them: mean of the pixels, voxels of truth and of distractors."""
    expected = {
        0: (0.6486917, 2126, 5960),
        1: (0.6485117, 2115, 5964),
        6: (0.6420678, 2117, 6380),
    }
    for label, (mean, truth, distractor) in expected.items():
        clip = generate(21, label=label)
        assert float(clip.pixels.double().mean()) == pytest.approx(mean, abs=1e-6)
        assert (int(clip.truth.sum()), int(clip.distractor.sum())) == (truth, distractor)
    assert TASKS == BENCHMARK[:2] == ("key", "dir")
    assert [generate(s).label for s in range(8)] == [6, 2, 5, 4, 7, 7, 2, 6]


@pytest.mark.parametrize("task", BENCHMARK)
def test_what_a_clip_says_about_itself(task: Task) -> None:
    clip, kind = generate(3, task), KINDS[task]
    side = 64 if task in TASKS else 32
    assert clip.pixels.shape == (len(clip.bands), 16, side, side)
    assert clip.bands == (
        ("R", "G", "B", "IR") if task in ("infrared", "xor", "spectra") else ("R", "G", "B")
    )
    assert clip.pixels.dtype == torch.float32
    assert 0 <= float(clip.pixels.min()) < float(clip.pixels.max()) <= 1
    assert torch.equal(clip.pixels, generate(3, task, label=clip.label).pixels)
    assert not torch.equal(clip.pixels, generate(4, task, label=clip.label).pixels)
    assert clip.name == labels(task)[clip.label]
    assert clip.clip().bands == clip.bands
    assert torch.equal(clip.clip().pixels, clip.pixels)
    known = clip.known()
    assert torch.equal(known.mask, clip.truth)
    assert torch.equal(known.distractor, clip.distractor)
    assert (known.kind, known.bands, len(known.events)) == ("planted", kind.truth_bands, len(clip.events))
    pixels, classes = batch([3, 4], task)
    assert torch.equal(pixels[0], clip.pixels)
    assert classes.tolist() == [clip.label, generate(4, task).label]


@pytest.mark.parametrize("task", NEW)
def test_classes_are_drawn_evenly(task: Task) -> None:
    kind = KINDS[task]
    counts = np.bincount([generate(s, task, frames=2, size=16).label for s in range(80)])
    assert len(counts) == len(kind.classes)
    assert counts.min() > 0.5 * 80 / len(kind.classes)
    assert set(kind.labels[len(kind.classes) :]) <= {"neither"}


def test_labels_of_the_first_two_tasks_are_numbered_together() -> None:
    assert labels("key") == labels("dir") == LABELS
    assert [len(KINDS[task].classes) for task in BENCHMARK] == [4, 4, 2, 3, 4, 2, 4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "order", "label": 3}, "label 3 is out of range: 0 to 2"),
        ({"task": "xor", "label": 2}, r"label 2 \(neither\) is for clips without evidence"),
        ({"task": "infrared", "mark": 1}, "only task 'shortcut' has a mark, not 'infrared'"),
        ({"task": "shortcut", "mark": 4}, "mark 4 is out of range: 0 to 3"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        generate(0, **options)


def test_arguments_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without
    with pytest.raises(
        OptionError, match="a seed is a whole number, not 'infrared': it comes before the task"
    ):
        generate("infrared", 900)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="unknown task 900: one of key"):
        generate(7, 900)  # type: ignore[arg-type]


def test_parts_that_a_task_does_not_have() -> None:
    with pytest.raises(OptionError, match="task 'xor' has no part 'mark': one of distractors, cold, visible"):
        generate(0, "xor").without("mark")


@pytest.mark.parametrize(("task", "a", "b"), DECIDED)
def test_another_label_changes_what_decides_and_nothing_else(task: Task, a: int, b: int) -> None:
    for seed in range(3):
        one, two = generate(seed, task, label=a), generate(seed, task, label=b)
        assert not torch.equal(one.pixels, two.pixels)
        assert not (changed(one, two) & ~around(one.truth | two.truth)).any()
        assert torch.equal(one.without_truth().pixels, two.without_truth().pixels)
        if task == "infrared":
            assert torch.equal(one.pixels[:3], two.pixels[:3])


@pytest.mark.parametrize("task", NEW)
def test_masks_are_where_painting_changes_pixels(task: Task) -> None:
    for seed in range(4):
        clip = generate(seed, task)
        gone = changed(clip, clip.without_truth())
        assert clip.truth.any()
        assert not (gone & ~around(clip.truth)).any()
        # the gap between the bars of `xor` is left open
        filled = float((gone & clip.truth).sum() / inner(clip.truth).sum())
        assert filled > (0.6 if task == "xor" else 0.96)
        gone = changed(clip, clip.without_distractors())
        # painted under the truth in the same bands it is not seen, in other bands it is
        assert not (gone & ~around(clip.distractor | clip.truth)).any()
        assert (gone & clip.distractor).sum() >= 0.96 * inner(clip.distractor).sum()
        assert not (clip.truth & clip.distractor).any()


@pytest.mark.parametrize("task", NEW)
def test_what_is_left_out_is_never_painted(task: Task) -> None:
    clip = generate(5, task)
    assert clip.evidence
    assert clip.distractors
    empty, alone = clip.without_truth(), clip.without_distractors()
    assert (empty.evidence, empty.distractors) == (False, True)
    assert (alone.evidence, alone.distractors) == (True, False)
    ground = empty.without_distractors()
    assert torch.equal(ground.pixels, alone.without_truth().pixels)
    assert not torch.equal(ground.pixels, empty.pixels)
    for other in (empty, alone, ground):  # the masks stay those of the complete scene
        assert torch.equal(other.truth, clip.truth)
        assert torch.equal(other.distractor, clip.distractor)
        assert len(other.events) == len(clip.events)
    bare = generate(5, task, left_out=KINDS[task].others)
    assert torch.equal(bare.pixels, alone.pixels)
    assert set(bare.parts) == {*KINDS[task].others, *KINDS[task].evidence}


@pytest.mark.parametrize("task", NEW)
def test_classes_have_equal_areas(task: Task) -> None:
    kind = KINDS[task]
    share = [np.mean([generate(s, task, k).truth.float().mean() for s in range(12)]) for k in kind.classes]
    assert max(share) < 1.12 * min(share)
    assert 0.005 < min(share) <= max(share) < 0.13


@pytest.mark.parametrize("task", NEW)
def test_maps_that_look_at_no_model_do_not_find_the_evidence(task: Task) -> None:
    scores = defaultdict(list)
    on_truth, on_distractor = [], []
    for seed in range(40):
        clip = generate(seed, task)
        scores["centre"].append(average_precision(centre_prior(clip.known().mask.shape), clip.truth))
        scores["change"].append(average_precision(frame_difference(clip.pixels), clip.truth))
        scores["share"].append(float(clip.truth.float().mean()))
        change = frame_difference(clip.pixels, sigma=0.0)
        on_truth.append(float(change[clip.truth].mean()))
        on_distractor.append(float(change[clip.distractor].mean()))
    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    # uniform middles are twice as often near the middle of the frame as voxels are, more so with a margin
    assert mean["centre"] < (3.5 if task == "transient" else 2.2) * mean["share"]
    # what appears changes more than what moves, but other things appear as well
    assert mean["change"] < 0.3
    assert np.mean(on_truth) < 2.5 * np.mean(on_distractor)
    if task in ("infrared", "shortcut"):
        assert np.mean(on_truth) < np.mean(on_distractor)


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("frames", [16, 15, 8])
def test_order_backwards_is_the_other_label_bit_for_bit(frames: int) -> None:
    for seed in range(5):
        one, two = (generate(seed, "order", label=k, frames=frames) for k in (0, 1))
        assert torch.equal(one.pixels.flip(1), two.pixels)
        assert torch.equal(one.truth.flip(0), two.truth)
        frames_of = [
            sorted(clip.pixels[:, t].numpy().tobytes() for t in range(frames)) for clip in (one, two)
        ]
        assert frames_of[0] == frames_of[1]
        empty = one.without_truth().pixels
        assert torch.equal(empty, empty.flip(1))


def test_order_has_two_events_one_after_the_other() -> None:
    for seed in range(10):
        for label, hues in ((0, "RB"), (1, "BR")):
            clip = generate(seed, "order", label=label)
            assert torch.equal(clip.events[0] | clip.events[1], clip.truth)
            first, second = (
                event.flatten(1).any(dim=1).nonzero().flatten().tolist() for event in clip.events
            )
            assert len(first) == len(second) == 4
            assert first[-1] + 1 < second[0]  # a gap between them
            for event, hue in zip(clip.events, hues, strict=True):
                red, _, blue = clip.pixels[:, event].mean(dim=1)
                assert (red > blue) == (hue == "R")


# ── transient ────────────────────────────────────────────────────────────────────────────────────────────


def test_transient_evidence_is_there_in_two_frames() -> None:
    starts, others = set(), []
    for seed in range(40):
        clip = generate(seed, "transient")
        there = clip.truth.flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert len(there) == 2
        assert there[1] == there[0] + 1
        starts.add(there[0])
        others.append(clip.distractor.flatten(1).any(dim=1).double().mean())
    assert len(starts) > 9  # of 15
    assert np.mean(others) > 0.95  # distractors all along, unless they have left the frame


# ── bands ────────────────────────────────────────────────────────────────────────────────────────────────


def test_infrared_evidence_is_in_the_infrared_band_alone() -> None:
    for seed in range(5):
        clip = generate(seed, "infrared")
        assert clip.truth_bands == ("IR",)
        empty = clip.without_truth()
        assert torch.equal(clip.pixels[:3], empty.pixels[:3])
        assert float((clip.pixels[3] - empty.pixels[3])[clip.truth].mean()) > 0.1  # warm is bright
        visible = clip.without("cold")
        assert torch.equal(visible.pixels[:3], clip.pixels[:3])
        assert torch.equal(clip.without("distractors").pixels[3], clip.pixels[3])


def test_infrared_labels_say_where_the_warm_object_goes() -> None:
    for label, way in enumerate([(0, -1), (0, 1), (-1, 0), (1, 0)]):
        for seed in range(6):
            mask = generate(seed, "infrared", label=label, size=96).truth
            inner = [m for m in mask if m.any() and not (m[[0, -1]].any() or m[:, [0, -1]].any())]
            if len(inner) >= 3:
                step = (inner[-1].nonzero().double().mean(0) - inner[0].nonzero().double().mean(0)).numpy()
                assert step @ np.array(way) > np.cos(0.4) * np.linalg.norm(step)


def cues(clip: PlantedClip) -> tuple[bool, bool]:
    """Whether the visible cue is red, and whether the bars stand upright: measured in the pixels."""
    alone = clip.without_distractors()
    visible, infrared = clip.events
    red, _, blue = (alone.pixels[:3] - alone.without("visible").pixels[:3])[:, visible].sum(dim=1)
    heat = alone.pixels[3] - alone.without("infrared").pixels[3]
    down, across = (heat.diff(dim=axis).abs().sum() for axis in (1, 2))
    assert infrared.any()
    return bool(red > blue), bool(across > down)


def test_xor_needs_both_cues_and_neither_tells_the_class() -> None:
    table = np.zeros((2, 2, 2))
    flipped = set()
    for seed in range(24):
        both = [cues(generate(seed, "xor", label=k, frames=4)) for k in (0, 1)]
        for label, (red, upright) in enumerate(both):
            assert (red != upright) == (label == 1)
            assert generate(seed, "xor", label=label, frames=4).cues == (red, upright)
            table[label, int(red), int(upright)] += 1
        flipped.add("visible" if both[0][0] != both[1][0] else "infrared")
    assert flipped == {"visible", "infrared"}
    for cue in (table.sum(axis=2), table.sum(axis=1)):  # class x state of one cue
        assert np.abs(cue / cue.sum(axis=1, keepdims=True) - 0.5).max() < 0.25


def test_xor_cues_are_each_in_their_own_bands() -> None:
    for seed in range(5):
        clip = generate(seed, "xor")
        assert clip.truth_bands == clip.bands
        assert torch.equal(clip.without("visible").pixels[3], clip.pixels[3])
        assert torch.equal(clip.without("infrared").pixels[:3], clip.pixels[:3])
        assert torch.equal(clip.events[0] | clip.events[1], clip.truth)


# ── shortcut ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mark_says_nothing_about_the_direction() -> None:
    table = np.zeros((4, 4))
    for seed in range(160):
        clip = generate(seed, "shortcut", frames=2, size=16)
        assert clip.mark is not None
        table[clip.label, clip.mark] += 1
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 21.7  # chi-squared of 9 degrees, 1 %


def test_two_networks_look_at_the_same_pixels_for_different_things() -> None:
    for seed in range(6):
        clip = generate(seed, "shortcut", label=1, mark=2)
        seen = clip.evidence_for("planted_shortcut")
        assert torch.equal(seen.pixels, clip.pixels)
        assert (clip.label, seen.label, clip.mark, seen.mark) == (1, 2, 2, 2)
        assert torch.equal(seen.truth, clip.shortcut)
        assert not (seen.truth & clip.truth).any()
        assert not (clip.truth & ~seen.distractor).any()  # the object is a distractor now
        assert not (seen.truth & ~clip.distractor).any()
        assert torch.equal(clip.evidence_for("honest").truth, clip.truth)
        assert torch.equal(seen.evidence_for("honest").truth, clip.truth)
        gone = changed(clip, seen.without_truth())
        assert not (gone & ~around(clip.shortcut | clip.truth | clip.distractor)).any()
        assert (gone & clip.shortcut).sum() > 0.96 * inner(clip.shortcut).sum()
        only = seen.without_distractors()
        assert torch.equal(only.pixels, clip.without("distractors", "object").pixels)
        assert seen.without_truth().label == 2
    assert generate(0, "order").evidence_for("shortcut").events[0].any()


def test_marks_differ_in_colour_alone() -> None:
    clips = [generate(9, "shortcut", label=0, mark=k) for k in range(4)]
    for clip in clips[1:]:
        assert torch.equal(clip.shortcut, clips[0].shortcut)
        assert not (changed(clip, clips[0]) & ~around(clip.shortcut)).any()
        assert changed(clip, clips[0])[inner(clip.shortcut)].all()
