"""A part of a video, sampled as if it were the whole: which frames, their times, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.videos import clip_codes, coded, coded_video
from tubelens.clip import Random, Segments
from tubelens.errors import OptionError
from tubelens.model import InputSpec
from tubelens.video import read_clip, read_spec

SIZE = (24, 32)
SPEC = InputSpec(frames=4, size=SIZE)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 coded frames, 25 a second."""
    return coded_video(tmp_path_factory.mktemp("span") / "a.mp4", 100)


PART = list(range(25, 75))  # seconds 1 to 3, the frame at 3 s left out


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"sampling": "uniform"}, [25, 41, 57, 74]),
        ({}, [25, 41, 57, 74]),
        ({"sampling": "dense", "stride": 3}, [25, 28, 31, 34]),
        ({"stride": 3}, [25, 28, 31, 34]),
        ({"sampling": "segments"}, [PART[i] for i in Segments(4).pick(50)]),
        ({"sampling": "random", "seed": 5}, [PART[i] for i in Random(4, seed=5).pick(50)]),
        ({"stride": 20}, [25, 45, 65, 65]),  # the part ends: its last frame taken again
        ({"stride": 20, "pad": "zero"}, [25, 45, 65, 0]),
    ],
)
def test_every_plan_keeps_to_the_part(video: Path, options: dict[str, Any], numbers: list[int]) -> None:
    for given in (video, np.stack([coded(i) for i in range(100)])):
        clip = read_clip(given, frames=4, size=SIZE, span=(1.0, 3.0), **options)
        assert clip_codes(clip.pixels) == numbers
        real = len(set(numbers) - {0})
        np.testing.assert_allclose(clip.source.times[:real], np.array(numbers[:real]) / 25, atol=1e-9)
        assert clip.source.padded == 4 - real
        assert clip.source.sampling.endswith(" from 1 s to 3 s")
        assert list(clip.source.times) == sorted(set(clip.source.times))
        same = read_spec(given, SPEC, options.get("sampling"), span=(1.0, 3.0), **_less(options))
        assert torch.equal(same.pixels, clip.pixels)
        assert same.source.times == clip.source.times
        first, last = clip.source.span
        dense = "Dense" in clip.source.sampling or "Random" in clip.source.sampling
        assert (first, last) == pytest.approx(
            (numbers[0] / 25, numbers[real - 1] / 25) if dense else (1.0, 74 / 25)
        )


def _less(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "sampling"}


@pytest.mark.parametrize(
    ("span", "numbers"),
    [
        ((3.0, None), [75, 83, 91, 99]),
        ((3.0, 50.0), [75, 83, 91, 99]),
        ((0.0, 4.0), [0, 33, 66, 99]),
        ((0.0, 0.16), [0, 1, 2, 3]),
        ((1.01, 1.02), [25, 25, 25, 25]),  # the one that is on screen then
        ((1.038, 1.041), [26, 26, 26, 26]),  # times are rounded
        ((2.0, 2.12), [50, 50, 51, 52]),
    ],
)
def test_ends_of_parts(video: Path, span: tuple[float, float | None], numbers: list[int]) -> None:
    clip = read_clip(video, frames=4, size=SIZE, span=span)
    assert clip_codes(clip.pixels) == numbers
    assert clip.source.span == (numbers[0] / 25, numbers[-1] / 25)


def test_the_whole_as_a_part_is_the_whole(video: Path) -> None:
    for options in ({}, {"stride": 7}, {"sampling": "segments"}, {"sampling": "random", "seed": 1}):
        whole = read_clip(video, frames=4, size=SIZE, **options)  # type: ignore[arg-type]
        part = read_clip(video, frames=4, size=SIZE, span=(0.0, None), **options)  # type: ignore[arg-type]
        assert torch.equal(whole.pixels, part.pixels)
        assert whole.source.times == part.source.times
        assert whole.source.span == part.source.span
        assert part.source.sampling == f"{whole.source.sampling} from 0 s to the end"


@pytest.mark.parametrize(
    ("span", "said"),
    [
        ((4.0, 5.0), "start 4 s is past the end"),
        ((2.0, 2.0), "before it ends"),
        ((3.0, 1.0), "before it ends"),
        ((-1.0, 1.0), "begin at 0"),
        ((float("nan"), 1.0), "begin at 0"),
        ((0.0, float("inf")), "before it ends"),
        ((0.0, float("nan")), "before it ends"),
    ],
)
def test_parts_that_mean_nothing(video: Path, span: tuple[float, float], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_clip(video, frames=4, size=SIZE, span=span)


def test_a_part_takes_no_start(video: Path) -> None:
    for options in ({"sampling": "dense", "start": 1.0}, {"start": 0.5}):
        with pytest.raises(OptionError, match="a span or a start"):
            read_spec(video, SPEC, span=(1.0, 2.0), **options)  # type: ignore[arg-type]


def test_flow_of_a_part(tmp_path: Path) -> None:
    flow = np.zeros((50, 24, 32, 2), dtype=np.float32)
    flow[..., 0] = np.arange(50)[:, None, None] / 10  # pixels to the right, more from frame to frame
    path = tmp_path / "flow.npy"
    np.save(path, flow)
    spec = InputSpec(frames=4, size=SIZE, bands=("U", "V"))
    clip = read_spec(path, spec, span=(0.4, 1.2), fps=25.0)
    shown = (clip.pixels[0, :, 0, 0] * 2 - 1) * 20 * 10
    np.testing.assert_allclose(shown, [10, 16, 22, 29], atol=1e-2)
    np.testing.assert_allclose(clip.source.times, np.array([10, 16, 22, 29]) / 25)
    assert clip.source.span == pytest.approx((0.4, 29 / 25))
    with pytest.raises(OptionError, match="a span or a start"):
        read_spec(path, spec, "dense", span=(0.4, 1.2), start=1.0)
