"""The clips of the experiment: planted, far-infrared, and those of one's own copy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.multispectral.conftest import Module
from tests.multispectral.layouts import dataset, recordings
from tubelens.errors import InputError
from tubelens.planted import generate


def test_every_training_sees_the_same_scenes(module: Module) -> None:
    data = module("data_planted")
    single = [list(data.batches((s,), 0, 3)) for s in ("visible", "infrared")]
    joint = list(data.batches(("visible", "infrared"), 0, 3))
    for visible, infrared, both in zip(*single, joint, strict=True):
        assert torch.equal(both.pixels, torch.cat([visible.pixels, infrared.pixels]))
        assert torch.equal(both.goal, torch.cat([visible.goal, infrared.goal]))
        assert torch.equal(infrared.pixels[:, 0], infrared.pixels[:, 2])  # repeated to three
        assert not torch.equal(visible.pixels[:, 0], visible.pixels[:, 2])
    assert [batch.sparse for batch in joint] == [0.0, 0.0, 0.1]  # short clips first


def test_test_clips_are_one_scene_of_two_cameras(module: Module) -> None:
    plan = module("data_planted").plan(quick=True)
    clip = generate(3, "spectra")
    visible, infrared = (plan.tests(s)[3] for s in ("visible", "infrared"))
    assert torch.equal(torch.from_numpy(visible.array).permute(3, 0, 1, 2), clip.pixels[:3])
    assert torch.equal(torch.from_numpy(infrared.array)[..., 1], clip.pixels[3])
    for item in (visible, infrared):
        assert item.label == clip.name
        assert torch.equal(item.truth.mask, clip.truth)
    assert (visible.spectrum, infrared.spectrum) == ("visible", "infrared")
    assert visible.key != infrared.key


def test_no_person_and_no_recording_is_on_both_sides(module: Module, tmp_path: Path) -> None:
    data = module("data_fir")
    found = data.segments(recordings(tmp_path))
    sides = {seed: data.split(found, seed) for seed in range(6)}
    for side in sides.values():
        assert len(side.train) + len(side.test) == len(found) == 48
        assert {s.person for s in side.train}.isdisjoint(s.person for s in side.test)
        assert {s.recording for s in side.train}.isdisjoint(s.recording for s in side.test)
    assert {frozenset(s.person for s in side.test) for side in sides.values()} == {
        frozenset({"p1", "p2"}),
        frozenset({"p3", "p4"}),
    }
    assert {s.label for s in found} == set(data.LABELS)


def test_clips_are_degrees_above_the_background_around_the_segment(module: Module, tmp_path: Path) -> None:
    """Naively: the median over the frames after the start, and one range for all."""
    data = module("data_fir")
    folder = recordings(tmp_path)
    read = data.Recordings(folder)
    with np.load(folder / "20200101" / "20200101_p2_light1.npz") as file:
        frames = file["frames"]
    background = np.median(frames[5:], axis=0)
    segment = data.Segment("20200101_p2_light1", 96, 107, "stand", "p3")
    expected = np.clip((frames[94:110] - background + 0.5) / 1.5, 0, 1)
    np.testing.assert_allclose(read.clip(segment), expected, atol=1e-5)
    np.testing.assert_allclose(read.clip(segment, 2)[:-2], expected[2:], atol=1e-5)
    early = read.clip(data.Segment("20200101_p2_light1", 6, 8, "walk", "p3"))
    np.testing.assert_allclose(early, np.clip((frames[5:21] - background + 0.5) / 1.5, 0, 1), atol=1e-5)
    late = read.clip(data.Segment("20200101_p2_light1", 196, 199, "walk", "p3"))
    np.testing.assert_allclose(late, np.clip((frames[184:] - background + 0.5) / 1.5, 0, 1), atol=1e-5)
    item = data.item(segment, read)
    assert item.array.shape == (16, 16, 16, 3)
    assert (item.array == item.array[..., :1]).all()


def test_the_first_test_clips_are_of_all_classes_alike(module: Module, tmp_path: Path) -> None:
    plan = module("data_fir").plan(recordings(tmp_path), seed=1)
    labels = [item.label for item in plan.tests("infrared")]
    assert Counter(labels[:7]) == dict.fromkeys(plan.labels, 1)
    assert Counter(labels)["walk"] == 6
    assert list(plan.trainings) == ["infrared"]


def test_what_is_no_data_set_is_said_in_one_line(module: Module, tmp_path: Path) -> None:
    data = module("data_fir")
    with pytest.raises(InputError, match=r"no segments\.csv and annotation"):
        data.segments(tmp_path)
    one_group = data.segments(recordings(tmp_path / "one", (("p1", "p2"),)))
    with pytest.raises(InputError, match="do not fall into two or more groups"):
        data.split(one_group, 0)
    with pytest.raises(InputError, match=r"there is no gone\.npz"):
        data.Recordings(tmp_path).clip(data.Segment("gone", 0, 9, "walk", "p1"))


def test_the_real_recordings(module: Module, realdata: Path) -> None:
    folder = realdata / "lwir" / "nagoya_fir16_actions"
    if not folder.is_dir():
        pytest.skip("no far-infrared recordings beside the repository")
    data = module("data_fir")
    found = data.segments(folder)
    assert Counter(s.label for s in found) == dict.fromkeys(data.LABELS, 360)
    side = data.split(found, 0)
    assert len({s.person for s in side.train} | {s.person for s in side.test}) == 9
    assert {s.person for s in side.train}.isdisjoint(s.person for s in side.test)
    clip = data.Recordings(folder).clip(side.test[0])
    assert clip.shape == (16, 16, 16)
    assert 0.1 < np.median(clip) < 0.5  # the floor is at 1/3
    assert clip.max() > 0.6  # and somebody is there


def test_scenes_of_the_data_set_are_on_one_side(module: Module, tmp_path: Path) -> None:
    data = module("data_msad")
    train, test = data.parts(dataset(tmp_path / "walked", lists=False), 0)
    assert {r.scene for r in train}.isdisjoint(r.scene for r in test)
    assert Counter((r.label, r.spectrum) for r in test) == {
        (label, spectrum): 1 for label in ("run", "wave") for spectrum in ("visible", "infrared")
    }
    assert len(train) == 8
    train, test = data.parts(dataset(tmp_path / "listed", lists=True), 0)
    assert {r.scene for r in test} == {"run/scene1", "wave/scene1"}
    assert len(train) == 8
    frames = data.Frames()
    infrared = frames.of(next(r for r in test if r.spectrum == "infrared"))
    assert infrared.shape == (16, 64, 64, 3)
    assert (infrared == infrared[..., :1]).all()
    assert infrared.max() > 0.8
