"""From a video to a clip: which frames, the geometry of torchvision's presets, and a complete record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import R3D_18_Weights
from torchvision.transforms import functional as tvf

from tests.videos import clip_codes, coded, coded_video, read_code, real
from tubelens.clip import READERS, Box
from tubelens.errors import OptionError
from tubelens.model import InputSpec, TorchModel
from tubelens.video import FileFrames, open_video, read_clip, read_spec, read_windows

R3D = InputSpec(16, (112, 112), (128, 171), antialias=False)
SMALL = InputSpec(frames=4, size=(24, 32))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 coded frames, 25 a second."""
    return coded_video(tmp_path_factory.mktemp("clip") / "a.mp4", 100)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five coded frames, 25 a second."""
    return coded_video(tmp_path_factory.mktemp("clip") / "short.mp4", 5)


def array(count: int = 100, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.stack([coded(i, size) for i in range(count)])


def as_model(spec: InputSpec) -> TorchModel:
    return TorchModel(nn.Identity(), pack=lambda x: x, spec=spec)


# ── which frames ─────────────────────────────────────────────────────────────────────────────────────────


def test_uniform(video: Path) -> None:
    clip = read_clip(video, frames=5, size=(24, 32))
    assert clip_codes(clip.pixels) == [0, 24, 49, 74, 99]
    np.testing.assert_allclose(clip.source.times, np.array([0, 24, 49, 74, 99]) / 25)
    assert clip.source.span == (0.0, 99 / 25)
    assert clip.source.sampling == "Uniform(frames=5)"
    assert clip.source.padded == 0


def test_dense(video: Path) -> None:
    clip = read_clip(video, frames=4, size=(24, 32), stride=3, start=1.0)
    assert clip_codes(clip.pixels) == [25, 28, 31, 34]
    np.testing.assert_allclose(clip.source.times, np.array([25, 28, 31, 34]) / 25)
    assert clip.source.span == (1.0, 34 / 25)
    assert clip.source.sampling == "Dense(frames=4, start=1.0, stride=3, pad='clamp')"


def test_a_stride_or_a_start_makes_it_dense(video: Path) -> None:
    assert clip_codes(read_clip(video, frames=3, size=(24, 32), stride=2).pixels) == [0, 2, 4]
    assert clip_codes(read_clip(video, frames=3, size=(24, 32), start=2.0).pixels) == [50, 51, 52]
    with pytest.raises(OptionError, match="uniform sampling takes no stride"):
        read_clip(video, stride=2, sampling="uniform")


def test_segments(video: Path) -> None:
    clip = read_clip(video, frames=4, size=(24, 32), sampling="segments")
    assert clip_codes(clip.pixels) == [12, 37, 62, 87]
    assert clip.source.span == (0.0, 99 / 25)


def test_random(video: Path) -> None:
    starts = set()
    for seed in range(8):
        clip = read_clip(video, frames=3, size=(24, 32), sampling="random", stride=4, seed=seed)
        codes = clip_codes(clip.pixels)
        assert codes == [codes[0], codes[0] + 4, codes[0] + 8]
        assert clip.source.span == pytest.approx((codes[0] / 25, codes[2] / 25))
        starts.add(codes[0])
        again = read_clip(video, frames=3, size=(24, 32), sampling="random", stride=4, seed=seed)
        assert torch.equal(clip.pixels, again.pixels)
    assert len(starts) > 4


@pytest.mark.parametrize("sampling", ["dense", "random"])
@pytest.mark.parametrize("pad", ["clamp", "zero"])
def test_padding(short: Path, sampling: str, pad: Any) -> None:
    clip = read_clip(short, frames=5, size=(24, 32), sampling=sampling, stride=2, pad=pad)
    codes = clip_codes(clip.pixels)
    assert codes == [0, 2, 4, 4, 4] if pad == "clamp" else codes == [0, 2, 4, 0, 0]
    if pad == "zero":
        assert clip.pixels[:, 3:].abs().max() == 0
    assert clip.source.padded == 2
    assert clip.source.span == (0.0, 4 / 25)
    np.testing.assert_allclose(clip.source.times, [0, 2 / 25, 4 / 25, 6 / 25, 8 / 25])


def test_uniform_repeats(short: Path) -> None:
    clip = read_clip(short, frames=8, size=(24, 32))
    assert clip_codes(clip.pixels) == [0, 0, 1, 1, 2, 2, 3, 4]
    assert clip.source.padded == 3
    np.testing.assert_allclose(clip.source.times, np.array([0, 0, 1, 1, 2, 2, 3, 4]) / 25)
    assert clip.source.span == (0.0, 4 / 25)


def test_one_frame_video(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "one.mp4", 1)
    for options in ({}, {"stride": 2}, {"sampling": "segments"}, {"sampling": "random"}):
        clip = read_clip(path, frames=3, size=(24, 32), **options)  # type: ignore[arg-type]
        assert clip.source.padded == 2
        assert clip.source.span == (0.0, 0.0)


def test_start_past_the_end(video: Path) -> None:
    for source in (video, array(100)):
        with pytest.raises(OptionError, match=r"start 4 s is past the end: the video lasts 4\.00 s"):
            read_clip(source, start=4.0)


def test_dense_decodes_its_span_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = coded_video(tmp_path / "long.mp4", 1000, (24, 32), gop=20, options={"crf": "20"})
    opened: list[FileFrames] = []
    init = FileFrames.__init__

    def remember(self: FileFrames, *args: Any) -> None:
        init(self, *args)
        opened.append(self)

    monkeypatch.setattr(FileFrames, "__init__", remember)
    clip = read_clip(path, frames=8, size=24, stride=2, start=20.0)
    assert clip_codes(clip.pixels) == list(range(500, 516, 2))
    assert opened[-1].decoded <= 20 + 15 + 1
    assert opened[-1]._known is None


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "nope"},
        {"sampling": "windows"},
        {"sampling": "segments", "stride": 2},
        {"sampling": "segments", "start": 1.0},
        {"sampling": "random", "start": 1.0},
        {"frames": 0},
        {"stride": 0},
        {"start": -1.0},
        {"pad": "mirror"},
        {"size": 0},
        {"size": 40, "resize": 30},
        {"fps": 30.0},
        {"bands": ("R", "G", "NIR")},
    ],
)
def test_options_that_mean_nothing(video: Path, options: dict[str, Any]) -> None:
    if "pad" in options:
        pytest.importorskip("beartype")
        with pytest.raises(Exception, match="pad"):
            read_clip(video, **options)
        return
    with pytest.raises(OptionError) as caught:
        read_clip(video, **options)
    assert "\n" not in str(caught.value)


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────────────


def preset(frames: np.ndarray, **options: Any) -> Tensor:
    """torchvision's own preset for r3d_18, its normalisation undone."""
    transform = R3D_18_Weights.KINETICS400_V1.transforms(**options)
    out = transform(torch.from_numpy(frames).permute(0, 3, 1, 2))
    mean, std = torch.tensor(transform.mean), torch.tensor(transform.std)
    return out * std.view(3, 1, 1, 1) + mean.view(3, 1, 1, 1)


@pytest.mark.parametrize("size", [(240, 320), (256, 340), (101, 77), (97, 333), (480, 270)])
def test_reads_as_the_official_preset(tmp_path: Path, size: tuple[int, int]) -> None:
    path = coded_video(tmp_path / "a.mkv", 20, size, codec="ffv1", pix_fmt="yuv444p")
    clip = as_model(R3D).read(path)
    frames = np.stack(
        [f for _, _, f in open_video(path).pick(sorted(set(np.linspace(0, 19, 16).astype(int))))]
    )
    torch.testing.assert_close(clip.pixels, preset(frames), atol=1e-6, rtol=0)


def test_real_video_reads_as_the_official_preset() -> None:
    path = real("clips", "mmaction2", "demo.mp4")
    wanted = np.linspace(0, 279, 16).astype(int)
    frames = np.stack([f for _, _, f in open_video(path).pick(wanted.tolist())])
    torch.testing.assert_close(as_model(R3D).read(path).pixels, preset(frames), atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(240, 321), (321, 240), (200, 200)])
@pytest.mark.parametrize("resize", [None, 128, (130, 140)])
def test_resize_and_crop_as_torchvision(size: tuple[int, int], resize: Any, antialias: bool) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
    clip = read_clip(frames, frames=4, size=(112, 112), resize=resize, antialias=antialias)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    side = [112] if resize is None else [resize] if isinstance(resize, int) else list(resize)
    pixels = tvf.center_crop(tvf.resize(pixels, side, antialias=antialias), [112, 112])
    torch.testing.assert_close(clip.pixels, pixels.permute(1, 0, 2, 3).float() / 255, atol=1e-7, rtol=0)


@pytest.mark.parametrize("crop", [(40, 100), (100, 40), (64, 64)])
def test_without_resize_the_frame_just_covers_the_crop(crop: tuple[int, int]) -> None:
    clip = read_clip(array(2, (90, 120)), frames=2, size=crop)
    assert clip.size == (2, *crop)
    h, w = clip.source.resized
    assert (h == crop[0]) or (w == crop[1])
    assert h >= crop[0]
    assert w >= crop[1]
    assert w / h == pytest.approx(120 / 90, rel=0.02)


def test_box() -> None:
    """The box is the crop, in pixels of the source."""
    clip = read_clip(array(2, (240, 320)), frames=2, size=(112, 112), resize=(128, 171))
    scale_y, scale_x = 240 / 128, 320 / 171
    box = Box(8 * scale_y, 30 * scale_x, 112 * scale_y, 112 * scale_x)  # (171 - 112) / 2 = 29.5 rounds to 30
    assert clip.source.box == box
    assert clip.source.size == (240, 320)
    assert clip.source.resized == (128, 171)


def test_box_finds_a_bright_spot() -> None:
    frames = np.zeros((1, 200, 300, 3), np.uint8)
    frames[:, 120:124, 180:184] = 255
    source_y, source_x = 122.0, 182.0
    clip = read_clip(frames, frames=1, size=(100, 100), resize=110)
    mass = clip.pixels[0, 0]
    rows, cols = torch.arange(100) + 0.5, torch.arange(100) + 0.5
    y = float((mass.sum(1) * rows).sum() / mass.sum())
    x = float((mass.sum(0) * cols).sum() / mass.sum())
    box = clip.source.box
    assert box.top + y * box.height / 100 == pytest.approx(source_y, abs=0.3)
    assert box.left + x * box.width / 100 == pytest.approx(source_x, abs=0.3)


# ── the record ───────────────────────────────────────────────────────────────────────────────────────────


def test_source_of_a_file(video: Path) -> None:
    source = read_clip(video, frames=4, size=24).source
    assert source.path == str(video)
    assert source.fps == 25
    assert source.sha256 == open_video(video).sha256()
    assert source.array is None


def test_source_of_a_turned_file(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "a.mp4", 4, (48, 64), rotation=90)
    source = read_clip(path, frames=2, size=24).source
    assert (source.rotation, source.size, source.resized) == (90, (64, 48), (32, 24))


def test_source_of_an_array() -> None:
    frames = array(10)
    clip = read_clip(frames, frames=5, size=(48, 64), fps=10.0)
    assert clip_codes(clip.pixels) == [0, 2, 4, 6, 9]
    assert (clip.source.path, clip.source.sha256, clip.source.fps) == (None, None, 10.0)
    assert clip.source.array is frames
    assert clip.source.span == (0.0, 0.9)


# ── bands ────────────────────────────────────────────────────────────────────────────────────────────────


def test_bands() -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[..., :] = (255, 102, 51)

    def values(bands: Any) -> list[float]:
        clip = read_clip(frames, frames=1, size=8, bands=bands)
        assert clip.bands == tuple(bands)
        return [round(float(v), 4) for v in clip.pixels[:, 0, 4, 4]]

    assert values("RGB") == [1.0, 0.4, 0.2]
    assert values("BGR") == [0.2, 0.4, 1.0]
    assert values("G") == [0.4]


def test_grey_band_of_a_file(video: Path) -> None:
    clip = read_clip(video, frames=2, size=24, bands=("grey",))
    rgb = read_clip(video, frames=2, size=24)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    torch.testing.assert_close(clip.pixels, (rgb.pixels * weights).sum(0, keepdim=True))


def test_float_bands_keep_their_precision() -> None:
    values = np.linspace(0, 1, 5 * 8 * 8 * 2, dtype=np.float32).reshape(5, 8, 8, 2)
    clip = read_clip(values, frames=5, size=8, bands=("lwir", "nir"))
    np.testing.assert_array_equal(clip.pixels.permute(1, 2, 3, 0).numpy(), values)
    assert read_clip(values[..., :1], frames=5, size=8).bands == ("Y",)
    with pytest.raises(OptionError, match=r"2 channels but the model needs R, G, B"):
        read_clip(values, bands="RGB")


# ── through a recipe ─────────────────────────────────────────────────────────────────────────────────────


def test_readers_are_registered() -> None:
    assert READERS["clip"] is read_spec
    assert READERS["windows"] is read_windows


def test_recipe_stride(video: Path) -> None:
    model = as_model(InputSpec(frames=4, size=(24, 32), stride=5))
    assert clip_codes(model.read(video, "dense").pixels) == [0, 5, 10, 15]
    assert clip_codes(model.read(video, start=1.0).pixels) == [25, 30, 35, 40]
    assert clip_codes(model.read(video, stride=2).pixels) == [0, 2, 4, 6]
    assert clip_codes(model.read(video, frames=3).pixels) == [0, 49, 99]
    rate = as_model(InputSpec(frames=4, size=(24, 32), rate=8.0))
    assert clip_codes(rate.read(video, "dense").pixels) == [0, 3, 6, 9]


def test_recipe_refuses_unknown_options(video: Path) -> None:
    with pytest.raises(OptionError, match=r"unknown option 'strid' \(did you mean 'stride'"):
        as_model(SMALL).read(video, strid=2)


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────


def windows_of(source: Any, **options: Any) -> tuple[Any, list[tuple[int, list[int]]]]:
    windows = read_windows(source, SMALL, **options)
    return windows, [(first, clip_codes(clip.pixels)) for first, clip in windows]


def test_windows(video: Path) -> None:
    windows, found = windows_of(video, stride=10)
    # 10 sampled frames, windows of 4 every 2
    assert found == [(f, [10 * (f + i) for i in range(4)]) for f in (0, 2, 4, 6)]
    assert len(windows) == 4
    assert windows.size == (10, 24, 32)
    np.testing.assert_allclose(windows.source.times, np.arange(10) * 0.4)
    assert windows.source.span == (0.0, 99 / 25)
    assert windows.source.sampling == "Windows(frames=4, stride=10, overlap=0.5, pad='clamp')"
    again = [(first, clip_codes(clip.pixels)) for first, clip in windows]
    assert again == found


def test_the_last_window_ends_with_the_video(video: Path) -> None:
    windows, found = windows_of(video, stride=9)  # 12 sampled frames: 0 .. 11
    assert [f for f, _ in found] == [0, 2, 4, 6, 8]
    windows, found = windows_of(video, stride=9, overlap=0.25)
    assert [f for f, _ in found] == [0, 3, 6, 8]
    assert found[-1][1] == [72, 81, 90, 99]
    assert len(windows) == 4


def test_window_sources(video: Path) -> None:
    for first, clip in read_windows(video, SMALL, stride=10):
        np.testing.assert_allclose(clip.source.times, (first + np.arange(4)) * 0.4)
        assert clip.source.span == (clip.source.times[0], clip.source.times[-1])
        assert clip.source.padded == 0
        assert clip.bands == ("R", "G", "B")


def test_windows_from_a_start(video: Path) -> None:
    windows, found = windows_of(video, stride=10, start=2.0)
    assert found == [(0, [50, 60, 70, 80]), (1, [60, 70, 80, 90])]
    assert windows.source.span == (2.0, 99 / 25)
    assert windows.source.times[0] == 2.0


@pytest.mark.parametrize("pad", ["clamp", "zero"])
def test_windows_of_a_short_video(short: Path, pad: Any) -> None:
    windows, found = windows_of(short, stride=2, pad=pad)
    assert found == [(0, [0, 2, 4, 4 if pad == "clamp" else 0])]
    assert windows.size == (4, 24, 32)
    assert windows.source.padded == 1
    assert windows.source.span == (0.0, 4 / 25)
    np.testing.assert_allclose(windows.source.times, [0, 2 / 25, 4 / 25, 6 / 25])
    ((_, clip),) = windows
    assert clip.source.padded == 1
    assert clip.source.span == (0.0, 4 / 25)


def test_windows_decode_once(video: Path) -> None:
    windows = read_windows(video, SMALL, stride=1)
    frames = windows._video
    assert isinstance(frames, FileFrames)
    assert len(list(windows)) == len(windows) == 49
    assert frames.decoded == 100


def test_windows_hold_one_window(video: Path) -> None:
    """Windows that were handed out do not change when the next one is made."""
    clips = [clip.pixels.clone() for _, clip in read_windows(video, SMALL, stride=10)]
    kept = [clip.pixels for _, clip in read_windows(video, SMALL, stride=10)]
    assert all(torch.equal(a, b) for a, b in zip(clips, kept, strict=True))


def test_model_windows_of_an_array() -> None:
    windows = read_windows(array(30), SMALL, stride=5, overlap=0.0)
    assert [(f, clip_codes(c.pixels)) for f, c in windows] == [(0, [0, 5, 10, 15]), (2, [10, 15, 20, 25])]


def test_real_frame_of_a_clip() -> None:
    """The clip's pixels are the picked frame, resized and cropped."""
    path = real("clips", "other", "flipping_a_pancake.mkv")
    clip = read_clip(path, frames=2, size=(240, 426), stride=30, start=4.0)
    frame = next(iter(open_video(path).between(4.0, 4.0)))[1]
    np.testing.assert_array_equal((clip.pixels[:, 0].permute(1, 2, 0).numpy() * 255).round(), frame)
    assert read_code(coded(5)) == 5
