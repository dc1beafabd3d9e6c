"""Optical flow as a clip: computed from a video, read from disk, alone and beside the colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tubelens as tl
from tests.videos import write_video
from tubelens.errors import OptionError, VideoError
from tubelens.model import InputSpec
from tubelens.video import read_spec

pytest.importorskip("cv2")
SPEC = InputSpec(frames=4, size=(64, 64), resize=(64, 64), stride=2, bands=("U", "V"))


def moving(dx: int, dy: int, frames: int = 12, side: int = 64) -> list[np.ndarray]:
    """A textured square of 28 pixels that moves by (dx, dy) a frame over a still, textured background."""
    rng = np.random.default_rng(0)
    smooth = [np.kron(rng.integers(0, 255, (n, n, 3)), np.ones((4, 4, 1))) for n in (side // 4, 7)]
    made = []
    for i in range(frames):
        frame = smooth[0].astype(np.uint8).copy()
        y, x = 8 + dy * i, 8 + dx * i
        frame[y : y + 28, x : x + 28] = smooth[1]
        made.append(frame)
    return made


def square(i: int, dx: int, dy: int) -> tuple[slice, slice]:
    """The middle of the square in frame i."""
    return slice(8 + dy * i + 8, 8 + dy * i + 20), slice(8 + dx * i + 8, 8 + dx * i + 20)


def pixels_a_frame(clip: tl.Clip) -> torch.Tensor:
    return (clip.pixels * 2 - 1) * 20


def test_flow_is_the_motion_to_the_next_frame_whatever_the_stride(tmp_path: Path):
    write_video(tmp_path / "v.mp4", moving(2, 1), options={"crf": "1"})
    clip = read_spec(tmp_path / "v.mp4", SPEC, "dense")  # frames 0, 2, 4, 6
    assert clip.bands == ("U", "V")
    assert clip.pixels.shape == (2, 4, 64, 64)
    for n, i in enumerate((0, 2, 4, 6)):
        u, v = pixels_a_frame(clip)[:, n][:, *square(i, 2, 1)].flatten(1).median(dim=1).values
        assert float(u) == pytest.approx(2.0, rel=0.2)
        assert float(v) == pytest.approx(1.0, rel=0.2)
        corner = pixels_a_frame(clip)[:, n, 52:, :8] if i < 4 else pixels_a_frame(clip)[:, n, :6, 52:]
        assert float(corner.abs().median()) < 0.1
    assert clip.source.path == str(tmp_path / "v.mp4")
    assert clip.source.times == pytest.approx((0, 2 / 25, 4 / 25, 6 / 25))


def test_the_last_frame_has_the_flow_of_the_one_before_and_rest_is_one_half(tmp_path: Path):
    write_video(tmp_path / "v.mp4", moving(2, 0), options={"crf": "1"})
    last = read_spec(tmp_path / "v.mp4", SPEC, "dense", start=10 / 25, frames=2, stride=1)  # frames 10, 11
    first, second = last.pixels[:, 0], last.pixels[:, 1]
    assert torch.equal(first, second)
    write_video(tmp_path / "still.mp4", moving(0, 0), options={"crf": "1"})
    still = read_spec(tmp_path / "still.mp4", SPEC).pixels
    torch.testing.assert_close(still, torch.full_like(still, 0.5), atol=5e-3, rtol=0)  # 0.2 pixels


def test_colours_and_flow_in_one_clip(tmp_path: Path):
    write_video(tmp_path / "v.mp4", moving(2, 1))
    both = read_spec(
        tmp_path / "v.mp4", InputSpec(4, (48, 48), 64, 2, bands=("R", "G", "B", "U", "V")), "dense"
    )
    colours = read_spec(tmp_path / "v.mp4", InputSpec(4, (48, 48), 64, 2), "dense")
    flow = read_spec(tmp_path / "v.mp4", InputSpec(4, (48, 48), 64, 2, bands=("U", "V")), "dense")
    assert torch.equal(both.pixels[:3], colours.pixels)
    assert torch.equal(both.pixels[3:], flow.pixels)
    whole = read_spec(tmp_path / "v.mp4", InputSpec(4, (64, 64), 64, 2, bands=("U", "V")), "dense")
    assert torch.equal(flow.pixels, whole.pixels[..., 8:56, 8:56])  # cropped after the flow is computed


def test_resizing_scales_the_vectors(tmp_path: Path):
    flow = np.zeros((6, 32, 48, 2), np.float32)
    flow[..., 0], flow[..., 1] = 6.0, -4.0
    np.save(tmp_path / "f.npy", flow)
    spec = InputSpec(4, (16, 16), (16, 16), bands=("U", "V"))
    u, v = pixels_a_frame(read_spec(tmp_path / "f.npy", spec))
    torch.testing.assert_close(u, torch.full_like(u, 6 * 16 / 48), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v, torch.full_like(v, -4 * 16 / 32), rtol=1e-4, atol=1e-4)


def stored_images(folder: Path, apart: bool) -> np.ndarray:
    """Flow as 8-bit images; the levels (t, h, w, 2)."""
    levels = np.random.default_rng(0).integers(0, 256, (10, 20, 24, 2), dtype=np.uint8)
    for i, frame in enumerate(levels):
        for axis, name in enumerate("xy"):
            file = folder / name / f"frame{i + 1}.png" if apart else folder / f"flow_{name}_{i + 1:05d}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(frame[..., axis]).save(file)
    return levels


@pytest.mark.parametrize("apart", [True, False])
def test_images_on_disk(apart: bool, tmp_path: Path):
    levels = stored_images(tmp_path, apart)
    clip = read_spec(tmp_path, InputSpec(4, (20, 24), (20, 24), 2, bands=("U", "V")), "dense")
    want = (levels[[0, 2, 4, 6]].astype(float) - 128) * 40 / 255
    np.testing.assert_allclose(pixels_a_frame(clip).permute(1, 2, 3, 0), np.clip(want, -20, 20), atol=1e-4)
    assert clip.source.array is not None  # a picture of the flow, to draw on
    assert clip.source.array.shape == (10, 20, 24, 3)


def test_a_folder_with_frames_and_flow(tmp_path: Path):
    levels = stored_images(tmp_path, False)
    for i in range(10):
        Image.fromarray(np.full((20, 24, 3), 20 * i, np.uint8)).save(tmp_path / f"img_{i + 1:05d}.png")
    spec = InputSpec(4, (20, 24), (20, 24), 2, bands=("R", "G", "B", "U", "V"))
    clip = read_spec(tmp_path, spec, "dense")
    want = (levels[[0, 2, 4, 6]].astype(float) - 128) * 40 / 255
    np.testing.assert_allclose(
        pixels_a_frame(clip)[3:].permute(1, 2, 3, 0), np.clip(want, -20, 20), atol=1e-4
    )
    assert (clip.pixels[0, :, 0, 0] * 255).round().tolist() == [0, 40, 80, 120]
    # and as plain frames the folder is what it was without flow
    assert (tl.read_clip(tmp_path, frames=10, size=20).pixels[0, :, 0, 0] * 255).round().tolist()[3] == 60


def test_bad_flow_is_one_line(tmp_path: Path):
    np.save(tmp_path / "f.npy", np.zeros((4, 8, 8, 3)))
    with pytest.raises(VideoError, match=r"must be a finite array \(t, h, w, 2\)"):
        read_spec(tmp_path / "f.npy", SPEC)
    (tmp_path / "bad.npy").write_bytes(b"none")
    with pytest.raises(VideoError, match="cannot be read as an array"):
        read_spec(tmp_path / "bad.npy", SPEC)
    np.save(tmp_path / "g.npy", np.zeros((4, 64, 64, 2)))
    with pytest.raises(OptionError, match="holds optical flow only, and the clip needs R"):
        read_spec(tmp_path / "g.npy", InputSpec(4, (64, 64), bands=("R", "U", "V")))
    with pytest.raises(OptionError, match="out of U, V, R, G, B, not Z"):
        read_spec(tmp_path / "g.npy", InputSpec(4, (64, 64), bands=("U", "Z")))
    for i in range(3):
        Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / f"flow_x_{i}.png")
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / "flow_y_0.png")
    with pytest.raises(VideoError, match="3 images of flow to the right but 1 downwards"):
        read_spec(tmp_path, SPEC)


def rising(path: Path, frames: int) -> Path:
    """Flow of as many pixels to the right as the frame's number, up to 19, then from 0 again."""
    flow = np.zeros((frames, 16, 16, 2), np.float32)
    flow[..., 0] = (np.arange(frames) % 20)[:, None, None]
    np.save(path, flow)
    return path


SMALL = InputSpec(16, (16, 16), bands=("U", "V"), stride=3, snippet=4)


@pytest.mark.parametrize(
    ("frames", "sampling", "options"),
    [
        (8, None, {}),
        (8, "segments", {}),
        (8, "random", {"seed": 1}),
        (8, "dense", {}),
        (8, "dense", {"pad": "zero"}),
        (8, None, {"start": 0.08}),
        (70, None, {}),
        (70, None, {"stride": 2}),
        (70, None, {"stride": 2, "start": 0.4}),
        (70, "uniform", {"stride": 2}),
        (70, "segments", {}),
        (70, "random", {"seed": 3}),
    ],
)
def test_flow_is_sampled_as_colours_are(
    frames: int, sampling: str | None, options: dict[str, Any], tmp_path: Path
):
    clip = read_spec(rising(tmp_path / "f.npy", frames), SMALL, sampling, **options)
    levels = np.repeat((np.arange(frames, dtype=np.uint8) % 20)[:, None, None, None], 16, axis=1)
    same = replace(SMALL, bands=("Y",))
    other = read_spec(np.repeat(levels, 16, axis=2), same, sampling, **options)
    real = other.pixels[0, :, 0, 0] * 255
    moved = pixels_a_frame(clip)[0, :, 0, 0]
    torch.testing.assert_close(moved, real, atol=1e-3, rtol=0)  # black and rest are both 0 here
    ours, theirs = clip.source, other.source
    assert (ours.times, ours.span, ours.padded) == (theirs.times, theirs.span, theirs.padded)
    assert ours.sampling == f"{theirs.sampling}, flow to the next frame"


def test_motion_in_a_short_video_is_found_where_it_happens(tmp_path: Path):
    source = read_spec(rising(tmp_path / "f.npy", 8), SMALL).source  # 0 0 0 1 1 2 2 3 3 4 4 5 5 6 6 7
    np.testing.assert_allclose(
        source.clip_index([i / 25 for i in range(8)]), [1, 3.5, 5.5, 7.5, 9.5, 11.5, 13.5, 15]
    )


@pytest.mark.parametrize(
    ("sampling", "options", "message"),
    [
        ("segments", {"stride": 2}, "segments sampling takes no stride"),
        ("segments", {"start": 0.2}, "segments sampling takes no start"),
        (None, {"stride": 0}, "frames and stride must be at least 1"),
        ("windows", {}, "windows are not one clip, and clips with optical flow are read one at a time"),
    ],
)
def test_sampling_that_means_nothing_is_refused(
    sampling: str | None, options: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(OptionError, match=message):
        read_spec(rising(tmp_path / "f.npy", 8), SMALL, sampling, **options)


@pytest.mark.parametrize("bands", [("U", "V"), ("R", "G", "B", "U", "V")])
def test_windows_and_views_of_flow_are_one_line(bands: tuple[str, ...], tmp_path: Path):
    model = tl.BlackBox(lambda clips: clips.mean(dim=(2, 3, 4)), spec=replace(SMALL, bands=bands))
    rising(tmp_path / "f.npy", 30)
    write_video(tmp_path / "v.mp4", moving(1, 1))
    for name in ("f.npy", "v.mp4"):
        for several in (model.windows, model.views):
            with pytest.raises(OptionError, match=rf"{name}: clips with optical flow .* one at a time \("):
                several(tmp_path / name)
    # an array is no video: its bands are what they are
    array = np.zeros((30, 16, 16, len(bands)), np.uint8)
    assert next(iter(model.windows(array)))[1].bands == bands
