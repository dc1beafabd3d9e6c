"""How measured values become 0 to 1, and what is done about cells that died: against naive loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tubelens.errors import OptionError, VideoError
from tubelens.video import open_video, read_clip
from tubelens.video import scaling as scaling_module
from tubelens.video.dead import filled
from tubelens.video.measured import MeasuredFrames


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def exact(text: str) -> np.ndarray:
    """All frames `(t, h, w, c)` as a network gets them."""
    video = open_video(text)
    assert isinstance(video, MeasuredFrames)
    video.exact = True
    frames = np.stack([frame for _, _, frame in video.pick(range(len(video.times())))])
    assert frames.dtype == np.float32
    return frames


def degrees(t: int = 9, h: int = 7, w: int = 5) -> np.ndarray:
    """Floats whose frames have different means, so that scaling by frame would show."""
    rng = np.random.default_rng(0)
    return (rng.normal(20, 2, (t, h, w)) + np.arange(t)[:, None, None]).astype(np.float32)


def test_a_range_is_what_it_says_and_cuts_off(tmp_path: Path) -> None:
    values = degrees()
    got = exact(f"{saved(tmp_path / 'a.npy', values)}?range=19:24")[..., 0]
    for frame, said in zip(values.astype(float), got, strict=True):
        for value, scaled in zip(frame.ravel(), said.ravel(), strict=True):
            assert scaled == pytest.approx(min(1, max(0, (value - 19) / 5)), abs=1e-6)
    assert 0 < (got == 0).mean() < 0.5
    assert 0 < (got == 1).mean() < 0.7


def test_percentiles_are_of_the_whole_recording(tmp_path: Path) -> None:
    """Every way to read a part of it, and every frame, has the same scale."""
    values = degrees()
    text = f"{saved(tmp_path / 'a.npy', values)}?percentile=5:90"
    flat = np.sort(values.ravel().astype(float))

    def percentile(q: float) -> float:  # between the two nearest ranks
        place = q / 100 * (len(flat) - 1)
        low = int(place)
        return float(flat[low] + (place - low) * (flat[min(low + 1, len(flat) - 1)] - flat[low]))

    low, high = percentile(5), percentile(90)
    wanted = np.clip((values - low) / (high - low), 0, 1)
    np.testing.assert_allclose(exact(text)[..., 0], wanted, atol=1e-6)
    part = read_clip(text, frames=3, size=(7, 5), stride=2, start=4 / 25)
    np.testing.assert_allclose(part.pixels[0], wanted[[4, 6, 8]], atol=1e-6)
    with open_video(text) as video:
        ((_, _, shown),) = video.pick([8])
    np.testing.assert_array_equal(shown, np.round(wanted[8] * 255).astype(np.uint8)[..., None].repeat(3, 2))


def test_percentiles_of_long_recordings_are_those_of_every_kth_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = degrees(9)
    monkeypatch.setattr(scaling_module, "EXACT", 4 * 35)  # 315 values: every third frame
    video = open_video(f"{saved(tmp_path / 'a.npy', values)}?percentile=10:90")
    assert isinstance(video, MeasuredFrames)
    low, high = np.percentile(values[::3], (10, 90))
    assert (video.scale.low, video.scale.high) == pytest.approx((low, high), rel=1e-6)


def test_bits_are_the_sensors(tmp_path: Path) -> None:
    values = np.array([0, 1, 8191, 16383], np.uint16).reshape(1, 2, 2)
    got = exact(f"{saved(tmp_path / 'a.npy', values)}?bits=14").ravel()
    np.testing.assert_allclose(got, [0, 1 / 16383, 8191 / 16383, 1], rtol=1e-6)
    values[0, 0, 0] = 16384
    with pytest.raises(VideoError, match=r"a\.npy: has the value 16384, beyond 14 bits \(0 to 16383\)"):
        open_video(f"{saved(tmp_path / 'a.npy', values)}?bits=14")
    signed = np.array([-1, 5], np.int16).reshape(1, 1, 2)
    with pytest.raises(VideoError, match="has the value -1, beyond 14 bits"):
        open_video(f"{saved(tmp_path / 'a.npy', signed)}?bits=14")


def test_types_with_a_scale_of_their_own(tmp_path: Path) -> None:
    for dtype, full in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0), (np.float64, 1.0)):
        values = (np.array([[[0, 0.25, 1]]]) * full).astype(dtype)
        got = exact(str(saved(tmp_path / "a.npy", values))).ravel()
        np.testing.assert_allclose(got, values.ravel() / full, atol=1e-7)
    # the highest of 16 bits is needed
    half = np.array([[[5, 1 << 15]]], np.uint16)
    assert exact(str(saved(tmp_path / "a.npy", half))).max() == pytest.approx(32768 / 65535)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.array([[[200, 16383]]], np.uint16),
            r"a\.npy: 16-bit values, but the largest is 16383: say how they are scaled, as in \?bits=14"
            r" \(what the sensor gives\), \?range=200:16383 or \?percentile=1:99$",
        ),
        (np.array([[[0, 32767]]], np.uint16), r"the largest is 32767: .*\?bits=15 "),
        (np.full((2, 2, 2), 700, np.uint16), r"the largest is 700: .*\?bits=10 .* \?range=0:700$"),
        (np.zeros((2, 2, 2), np.uint16), r"the largest is 0: .*\?bits=1 .* \?range=0:1$"),
        (
            np.array([[[0.5, 0.5]], [[21.5, -3.0]]], np.float32),
            r"a\.npy, frame 1: float values must lie in \[0, 1\], and these go from -3 to 21\.5: .*"
            r"\?range=-3:21\.5 or \?percentile=1:99$",
        ),
        (np.array([[[0, 9]]], np.int16), "signed 16-bit values have no known full scale"),
        (np.array([[[0, 1]]], np.int64), "64-bit values have no known full scale"),
        (np.array([[[0, 9]]], np.uint32), "32-bit values have no known full scale"),
    ],
)
def test_what_has_no_scale_is_one_line(tmp_path: Path, values: np.ndarray, said: str) -> None:
    with pytest.raises((VideoError, OptionError), match=said) as caught:
        open_video(saved(tmp_path / "a.npy", values))
    assert "\n" not in str(caught.value)


def test_the_ways_that_are_offered_work(tmp_path: Path) -> None:
    values = np.arange(200, 16200, 100, dtype=np.uint16).reshape(10, 4, 4)
    path = saved(tmp_path / "a.npy", values)
    with pytest.raises(OptionError) as caught:
        open_video(path)
    offered = [word.rstrip(",") for word in str(caught.value).split() if word.startswith("?")]
    assert offered == ["?bits=14", "?range=200:16100", "?percentile=1:99"]
    for way in offered:
        assert exact(f"{path}{way}").std() > 0.2


def test_constant_recordings(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", np.full((3, 4, 4), 20.0))
    with pytest.raises(OptionError, match="percentile=1:99 are both 20, so that nothing can be told apart"):
        open_video(f"{path}?percentile=1:99")
    assert np.unique(exact(f"{path}?range=10:30")).tolist() == [0.5]
    assert np.unique(exact(f"{path}?range=20:30")).tolist() == [0.0]
    assert np.unique(exact(f"{path}?bits=8")) == pytest.approx([20 / 255])
    with pytest.raises(OptionError, match="range=300:400 cuts off every value: they lie from 20 to 20"):
        open_video(f"{path}?range=300:400")


def test_two_scales_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", degrees())
    with pytest.raises(OptionError, match="range and bits are ways to scale the same values: give one"):
        open_video(f"{path}?range=0:1&bits=8")


# ── dead cells ───────────────────────────────────────────────────────────────────────────────────────────


def naive(frame: np.ndarray) -> np.ndarray:
    """Ring by ring, cell by cell."""
    frame = frame.astype(float)
    h, w = frame.shape
    while not np.isfinite(frame).all():
        after = frame.copy()
        for y in range(h):
            for x in range(w):
                if np.isfinite(frame[y, x]):
                    continue
                near = [
                    frame[j, i]
                    for j in range(max(0, y - 1), min(h, y + 2))
                    for i in range(max(0, x - 1), min(w, x + 2))
                    if (j, i) != (y, x) and np.isfinite(frame[j, i])
                ]
                if near:
                    after[y, x] = sum(near) / len(near)
        frame = after
    return frame


def test_dead_values_are_filled_from_live_neighbours() -> None:
    rng = np.random.default_rng(1)
    frames = rng.normal(20, 3, (2, 9, 11)).astype(np.float32)
    frames[0][rng.random((9, 11)) < 0.2] = np.nan
    frames[1, 2:7, 3:10] = np.inf  # a hole of several rings
    frames[1, 0, 0] = -np.inf
    both = filled(np.moveaxis(frames, 0, -1))  # as two channels: they do not mix
    for channel, frame in enumerate(frames):
        np.testing.assert_allclose(both[..., channel], naive(frame), rtol=1e-6)
    assert np.isfinite(both).all()


def test_dead_cells_are_filled_before_scaling_and_counted(tmp_path: Path) -> None:
    values = degrees(4, 10, 10)
    values[:, 3, 4] = np.nan
    values[:, 8, 0] = np.inf
    values[2, 0, 9] = np.nan  # once
    text = f"{saved(tmp_path / 'a.npy', values)}?percentile=0:100"
    video = open_video(text)
    assert video.notes == ("3 dead cells were filled from their neighbours (2.2 % of the values)",)
    live = values[np.isfinite(values)]
    low, high = float(live.min()), float(live.max())
    got = exact(text)[..., 0]
    for frame, said in zip(values, got, strict=True):
        np.testing.assert_allclose(said, (naive(frame) - low) / (high - low), atol=1e-6)
    assert read_clip(text, frames=2, size=10).source.notes == video.notes


def test_the_count_of_one_and_of_few(tmp_path: Path) -> None:
    values = np.full((1, 30, 50), 0.5)
    values[0, 3, 3] = np.nan
    with open_video(saved(tmp_path / "a.npy", values)) as video:
        assert video.notes == ("1 dead cell was filled from its neighbours (0.1 % of the values)",)
    with open_video(saved(tmp_path / "b.npy", np.concatenate([values, np.full((9, 30, 50), 0.5)]))) as video:
        said = "1 dead cell was filled from its neighbours (less than 0.1 % of the values)"
        assert video.notes == (said,)


def test_live_recordings_say_nothing(tmp_path: Path) -> None:
    assert open_video(f"{saved(tmp_path / 'a.npy', degrees())}?range=0:40").notes == ()


def test_a_frame_without_a_number_is_one_line(tmp_path: Path) -> None:
    values = degrees(5)
    values[3] = np.nan
    with pytest.raises(VideoError, match=r"a\.npy, frame 3: has no value that is a number: leave it out"):
        open_video(f"{saved(tmp_path / 'a.npy', values)}?range=0:40")
    two = np.stack([degrees(5), degrees(5)], axis=-1)
    two[1, :, :, 1] = np.inf  # one band of two
    with pytest.raises(VideoError, match="frame 1: has no value that is a number"):
        open_video(f"{saved(tmp_path / 'a.npy', two)}?range=0:40")


def test_more_than_half_is_too_much(tmp_path: Path) -> None:
    values = degrees(2, 4, 4)
    values[:, :2] = np.nan
    assert len(open_video(f"{saved(tmp_path / 'a.npy', values)}?range=0:40").notes) == 1
    values[0, 2, 2] = np.nan
    with pytest.raises(VideoError, match=r"a\.npy: 53% of its values are no numbers: too many to fill them"):
        open_video(f"{saved(tmp_path / 'a.npy', values)}?range=0:40")


def test_dead_cells_may_be_refused(tmp_path: Path) -> None:
    values = degrees(5)
    values[2, 6, 1] = np.inf
    values[4, 0, 0] = np.nan
    path = saved(tmp_path / "a.npy", values)
    with pytest.raises(
        VideoError, match=r"a\.npy, frame 2: the value at row 6, column 1 is inf: dead=fill takes the mean"
    ):
        open_video(f"{path}?range=0:40&dead=error")
    assert exact(f"{saved(path, degrees(5))}?range=0:40&dead=error").shape == (5, 7, 5, 1)
    with pytest.raises(OptionError, match="dead is fill or error, not 'drop'"):
        open_video(f"{path}?range=0:40&dead=drop")
