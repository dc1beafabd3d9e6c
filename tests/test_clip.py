"""Clips from arrays, moments of a source, and which frames each plan picks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from tubelens.clip import Clip, Dense, Random, Segments, Uniform, Windows, padded_run, plan
from tubelens.errors import InputError, OptionError


def test_arrays_of_bytes_and_floats():
    frames = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    clip = Clip.from_array(frames, fps=8.0)
    assert clip.pixels.shape == (3, 4, 5, 6)
    assert clip.bands == ("R", "G", "B")
    torch.testing.assert_close(
        clip.pixels[1, 2, 3, 4], torch.tensor(frames[2, 3, 4, 1] / 255, dtype=torch.float32)
    )
    again = Clip.from_array(torch.from_numpy(frames).float() / 255)
    torch.testing.assert_close(again.pixels, clip.pixels)
    assert clip.source.times == (0.0, 0.125, 0.25, 0.375)
    assert clip.source.span == (0.0, 0.375)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 6)), "must be .t, h, w, c. and not empty"),
        (np.zeros((0, 5, 6, 3)), "not empty"),
        (np.full((1, 2, 2, 3), 1.5), r"must lie in \[0, 1\], got 1.5 to 1.5"),
        (np.full((1, 2, 2, 3), np.nan), r"must lie in \[0, 1\]"),
        (np.zeros((1, 2, 2, 3), dtype=np.int64), "must be uint8 or float, got int64"),
        (np.zeros((1, 2, 2, 4), dtype=np.uint8), "4 channels but 3 band names"),
    ],
)
def test_arrays_that_are_no_clip(array: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        Clip.from_array(array)


def test_any_number_of_named_bands():
    clip = Clip.from_array(np.zeros((2, 3, 3, 4), dtype=np.uint8), bands=["R", "G", "B", "LWIR"])
    assert clip.bands[3] == "LWIR"


def test_moments_between_and_beyond_frames():
    source = Clip.from_array(np.zeros((3, 2, 2, 3), dtype=np.uint8), fps=10.0).source
    np.testing.assert_allclose(source.clip_index([-1.0, 0.0, 0.05, 0.2, 9.0]), [0, 0, 0.5, 2, 2])
    # a short video sampled twice a frame: each source frame has the mean of its numbers
    twice = replace(source, times=(0.0, 0.0, 0.1, 0.1, 0.2, 0.2))
    np.testing.assert_allclose(twice.clip_index([0.0, 0.1, 0.2]), [0.5, 2.5, 4.5])
    # overlapping snippets 0 1 2, 1 2 3, 2 3 3: every frame is found where the clip shows it
    frames = [0, 1, 2, 1, 2, 3, 2, 3, 3]
    overlapping = replace(source, times=tuple(i / 10 for i in frames))
    found = overlapping.clip_index([0.0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(found, [0, 1, 4, 7])
    assert [frames[int(i)] for i in found] == [0, 1, 2, 3]


def test_segments_of_several_clips_are_spread_within_each():
    assert Segments(4).pick_views(40, 2) == [[2, 12, 22, 32], [7, 17, 27, 37]]
    assert Segments(4, 2).pick_views(21, 2) == [[2, 3, 12, 13], [7, 8, 17, 18]]
    for n in (1, 3, 5, 8, 31, 32, 100):
        assert Segments(8, 4).pick_views(n, 1) == [Segments(8, 4).pick(n)]


def test_uniform_is_the_published_linspace():
    assert Uniform(5).pick(11) == [0, 2, 5, 7, 10]
    assert Uniform(16).pick(100) == np.linspace(0, 99, 16).astype(np.int64).tolist()
    assert Uniform(4).pick(2) == [0, 0, 0, 1]


def test_segments_take_middles():
    assert Segments(4).pick(40) == [5, 15, 25, 35]
    assert Segments(8).pick(4) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11, 12, 34, 100, 3001])
@pytest.mark.parametrize(("segments", "snippet"), [(8, 1), (8, 4), (3, 4), (5, 1), (16, 2)])
def test_snippets_are_the_published_test_sampling(n: int, segments: int, snippet: int):
    """TSM and PAN: `tick = (n - snippet + 1) / segments`, starts `int(tick / 2 + tick x)`, the last repeated.

    Exact fractions, because floats put some starts just below a whole number.
    """
    expected = []
    tick = Fraction(max(0, n - snippet + 1), segments)
    for x in range(segments):
        frame = int(tick / 2 + tick * x)
        for _ in range(snippet):
            expected.append(frame)
            frame += frame < n - 1
    assert Segments(segments * snippet, snippet).pick(n) == expected


def test_snippets_by_hand():
    # tick 97/8 = 12.125: starts at 6.06, 18.19, 30.31, 42.44, 54.56, 66.69, 78.81, 90.94
    starts = [6, 18, 30, 42, 54, 66, 78, 90]
    assert Segments(32, 4).pick(100) == [s + j for s in starts for j in range(4)]
    assert Segments(8, 4).pick(3) == [0, 1, 2, 2] * 2
    assert Segments(8, 4).pick(6) == [0, 1, 2, 3, 2, 3, 4, 5]
    with pytest.raises(OptionError, match="segments of 4 consecutive frames cannot make a clip of 10"):
        Segments(10, 4)
    with pytest.raises(OptionError, match="segments of 0"):
        Segments(8, 0)


def test_dense_pads():
    assert Dense(4, stride=3).pick(100) == [0, 3, 6, 9]
    assert Dense(4, stride=3).pick(7) == [0, 3, 6, 6]
    assert Dense(4, stride=3, pad="zero").pick(5) == [0, 3, -1, -1]
    assert padded_run(5, 4, 3, 1, "clamp") == [4, 4, 4]
    with pytest.raises(OptionError, match="past the end"):
        padded_run(5, 5, 3, 1, "clamp")


def test_random_is_seeded_and_reaches_both_ends():
    starts = {Random(3, stride=2, seed=s).pick(10)[0] for s in range(200)}
    assert starts == set(range(6))  # 10 - (2 * 2 + 1) = 5 is the last that fits
    assert Random(3, seed=7).pick(50) == Random(3, seed=7).pick(50)
    assert Random(4, stride=2, seed=1).pick(5) == [0, 2, 4, 4]


def test_windows_see_every_stride_th_frame():
    assert Windows(4, stride=2).pick(9) == [0, 2, 4, 6, 8]
    assert [Windows(16, overlap=o).hop for o in (0.0, 0.25, 0.5, 0.99)] == [16, 12, 8, 1]
    with pytest.raises(OptionError, match="overlap"):
        Windows(4, overlap=1.0)


def test_plans_by_name():
    assert plan("dense", 8, stride=2, start=1.5) == Dense(8, 1.5, 2)
    assert plan("segments", 32, snippet=4) == Segments(32, 4)
    for name in ("uniform", "dense", "random", "windows"):  # they have no snippets to divide into
        assert plan(name, 30, snippet=4) == plan(name, 30)
    for name, kind in {
        "uniform": Uniform,
        "segments": Segments,
        "random": Random,
        "windows": Windows,
    }.items():
        assert isinstance(plan(name, 8), kind)
    for bad in ({"name": "even", "frames": 8}, {"name": "dense", "frames": 0}):
        with pytest.raises(OptionError):
            plan(**bad)
    with pytest.raises(OptionError, match="negative"):
        plan("dense", 8, start=-1.0)
