"""Writing: the right frames at the right times in the right colours, sound in step, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.videos import coded, coded_video, flat, read_code, real
from tubelens.errors import OptionError, OutputError
from tubelens.video import FolderSink, GifSink, VideoSink, open_video, write_png

RAGGED = [0.0, *np.cumsum(np.tile([0.02, 0.05, 0.03, 0.1], 5)).tolist()]


def write(path: Path, times: list[float], size: tuple[int, int] = (48, 64), **options: Any) -> Path:
    with VideoSink(path, size, 25.0, **options) as sink:
        for number, seconds in enumerate(times):
            sink.write(coded(number, size), seconds)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("times", [[i / 25 for i in range(30)], RAGGED], ids=["even", "ragged"])
def test_frames_and_times(tmp_path: Path, suffix: str, times: list[float]) -> None:
    path = write(tmp_path / f"a.{suffix}", times)
    video = open_video(path)
    np.testing.assert_allclose(video.times(), times, atol=6e-4)
    assert [read_code(f) for _, _, f in video.pick(range(len(times)))] == list(range(len(times)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_times_begin_at_zero_and_increase(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [7.0, 7.04, 7.04, 7.08])
    times = open_video(path).times()
    assert times[0] == 0.0
    assert times[3] == pytest.approx(0.08, abs=1e-4)
    assert all(b > a for a, b in pairwise(times))


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("size", [(47, 65), (48, 65), (47, 64), (1, 1)])
def test_odd_sizes(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(60, 200, (*size, 1), np.uint8).repeat(3, axis=2)
    path = tmp_path / f"a.{suffix}"
    with VideoSink(path, size, 25.0) as sink:
        for number in range(4):
            sink.write(frame, number / 25)
    video = open_video(path)
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert video.size == (even if suffix == "mp4" else size)
    ((_, _, shown),) = video.pick([2])
    assert np.abs(shown[: size[0], : size[1]].astype(int) - frame).mean() < 12
    if suffix == "mp4" and size[0] % 2:
        assert np.abs(shown[-1].astype(int) - shown[-2]).mean() < 12


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (180, 90, 200), (255, 255, 255)])
def test_colours_are_tagged_and_right(tmp_path: Path, suffix: str, colour: tuple[int, int, int]) -> None:
    path = tmp_path / f"a.{suffix}"
    with VideoSink(path, (48, 64), 25.0) as sink:
        for number in range(3):
            sink.write(flat(colour), number / 25)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.pix_fmt) == (1, 1, "yuv420p")
        if suffix == "mp4":
            assert (context.color_primaries, context.color_trc, context.name) == (1, 1, "h264")
    ((_, _, frame),) = open_video(path).pick([1])
    assert np.abs(frame.reshape(-1, 3).mean(0) - colour).max() < 5


def test_mp4_can_be_played_while_it_loads(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4", RAGGED).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_alpha(tmp_path: Path) -> None:
    frame = flat((200, 100, 50, 255))
    frame[:, 32:, 3] = 0
    frame[24:, :32, 3] = 128
    path = tmp_path / "a.webm"
    with VideoSink(path, (48, 64), 25.0, alpha=True) as sink:
        for number in range(5):
            sink.write(frame, number / 25)
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["alpha_mode"] == "1"
    ((_, _, shown),) = open_video(path).pick([3])
    assert np.abs(shown[4:20, 4:28].astype(int) - (200, 100, 50)).max() < 8
    assert np.abs(shown[28:44, 4:28].astype(int) - (100, 50, 25)).max() < 8
    assert shown[4:44, 36:60].max() < 8


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {"alpha": True}), ("a.avi", {}), ("a", {}), ("a.mp4", {"fps": 0.0})],
)
def test_options_that_mean_nothing(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        VideoSink(tmp_path / name, (48, 64), **({"fps": 25.0} | options))


@pytest.mark.parametrize("frame", [coded(0, (48, 66)), flat((1, 2, 3, 4))])
def test_frames_of_another_shape(tmp_path: Path, frame: np.ndarray) -> None:
    with (
        pytest.raises(OptionError, match="a frame must be uint8 of shape"),
        VideoSink(tmp_path / "a.mp4", (48, 64), 25.0) as sink,
    ):
        sink.write(frame, 0.0)
    assert list(tmp_path.iterdir()) == []


# ── sound ────────────────────────────────────────────────────────────────────────────────────────────────


def loudness(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and loudness of the sound in blocks of 10 ms, on the clock of the pictures."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp", "mono", 48000)
        wave = np.zeros(0, np.float32)
        begin = None
        for frame in container.decode(stream):
            if begin is None:
                begin = frame.time
            frame.pts = None
            wave = np.concatenate([wave, *(r.to_ndarray()[0] for r in resampler.resample(frame))])
    assert begin is not None
    blocks = wave[: len(wave) // 480 * 480].reshape(-1, 480)
    return begin + np.arange(len(blocks)) * 0.01, np.sqrt((blocks**2).mean(axis=1))


@pytest.fixture(scope="module")
def sounding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four seconds of pictures; the tone begins at 2.0 s."""
    folder = tmp_path_factory.mktemp("sound")
    return {
        "mkv": coded_video(folder / "a.mkv", 100, tone=440.0, tone_from=2.0),
        "mp4": coded_video(folder / "a.mp4", 100, tone=440.0, tone_from=2.0),
    }


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("source", ["mkv", "mp4"])
def test_sound_is_in_step(tmp_path: Path, sounding: dict[str, Path], suffix: str, source: str) -> None:
    path = tmp_path / f"out.{suffix}"
    video = open_video(sounding[source])
    with VideoSink(path, video.size, 25.0, audio_from=(sounding[source], 1.4, 2.8)) as sink:
        for seconds, frame in video.between(1.4, 2.8):
            sink.write(frame, seconds)
    times, loud = loudness(path)
    onset = times[np.argmax(loud > 0.1)]
    assert onset == pytest.approx(0.6, abs=0.02)
    assert loud[times < 0.57].max() < 0.05
    assert loud[(times > 0.65) & (times < 1.4)].min() > 0.15
    assert times[-1] == pytest.approx(1.44, abs=0.04)  # the last frame is shown until then
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name == {"mp4": "aac", "webm": "opus"}[suffix]
        assert container.streams.video[0].codec_context.name == {"mp4": "h264", "webm": "vp9"}[suffix]
    np.testing.assert_allclose(open_video(path).times(), np.arange(36) / 25, atol=6e-4)


def test_sound_of_a_late_source(tmp_path: Path) -> None:
    """The source's pictures begin at 1.4 s of its clock, its sound at 0: they stay in step."""
    times = [1.4 + i / 25 for i in range(60)]
    source = coded_video(tmp_path / "late.mkv", 60, seconds=times, tone=440.0, tone_from=1.9)
    video = open_video(source)
    with VideoSink(tmp_path / "out.mp4", video.size, 25.0, audio_from=(source, 0.0, 0.9)) as sink:
        for seconds, frame in video.between(0.0, 0.9):
            sink.write(frame, seconds)
    moments, loud = loudness(tmp_path / "out.mp4")
    assert moments[np.argmax(loud > 0.1)] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_sound_that_begins_later_than_the_pictures(tmp_path: Path, suffix: str) -> None:
    source = coded_video(tmp_path / "a.mkv", 50, tone=440.0, silent_until=1.0)
    path = write(tmp_path / f"out.{suffix}", [i / 25 for i in range(50)], audio_from=(source, 0.0, 49 / 25))
    moments, loud = loudness(path)
    assert moments[np.argmax(loud > 0.1)] == pytest.approx(1.0, abs=0.02)


def test_no_sound_to_add(tmp_path: Path) -> None:
    silent = coded_video(tmp_path / "silent.mp4", 5)
    for source in (silent, tmp_path, tmp_path / "none.mp4"):
        path = write(tmp_path / "out.mp4", [0.0, 0.04], audio_from=(source, 0.0, 0.04))
        with av.open(str(path)) as container:
            assert not container.streams.audio
            assert len(list(container.decode(video=0))) == 2


def test_real_sound(tmp_path: Path) -> None:
    source = real("clips", "other", "flipping_a_pancake.mkv")
    video = open_video(source)
    with VideoSink(tmp_path / "out.mp4", video.size, video.fps, audio_from=(source, 4.0, 5.0)) as sink:
        for seconds, frame in video.between(4.0, 5.0):
            sink.write(frame, seconds)
    times, loud = loudness(tmp_path / "out.mp4")
    whole, reference = loudness(source)
    mine = np.interp(np.arange(0.1, 0.9, 0.01), times, loud)
    theirs = np.interp(np.arange(0.1, 0.9, 0.01) + 4.0, whole, reference)
    assert np.corrcoef(mine, theirs)[0, 1] > 0.9


# ── GIF, folder, PNG ─────────────────────────────────────────────────────────────────────────────────────


def test_gif(tmp_path: Path) -> None:
    times = [3.0, 3.1, 3.15, 3.4]
    with GifSink(tmp_path / "a.gif", fps=10.0) as sink:
        for number, seconds in enumerate(times):
            sink.write(coded(number), seconds)
    with Image.open(tmp_path / "a.gif") as image:
        found = []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            found.append((read_code(np.array(image.convert("RGB"))), image.info["duration"]))
        assert image.info["loop"] == 0
    assert found == [(0, 100), (1, 50), (2, 250), (3, 100)]


def test_gif_colours(tmp_path: Path) -> None:
    ramp = np.zeros((48, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 64)
    ramp[..., 1] = np.linspace(255, 0, 48)[:, None]
    with GifSink(tmp_path / "a.gif", fps=10.0) as sink:
        sink.write(ramp, 0.0)
        sink.write(flat((10, 20, 250)), 0.1)
    frames = [f.astype(int) for _, _, f in open_video(tmp_path / "a.gif").pick([0, 1])]
    assert np.abs(frames[0] - ramp).mean() < 8
    assert np.abs(frames[1] - (10, 20, 250)).max() <= 3


def test_gif_leaves_out_frames_that_no_viewer_shows(tmp_path: Path) -> None:
    with GifSink(tmp_path / "a.gif", fps=120.0) as sink:
        for number in range(24):
            sink.write(coded(number), number / 120)
    with Image.open(tmp_path / "a.gif") as image:
        delays = []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            delays.append(image.info["duration"])
    assert min(delays) >= 20
    assert sum(delays) == pytest.approx(200, abs=20)


def test_folder(tmp_path: Path) -> None:
    info: dict[str, Any] = {"a": 1}
    with FolderSink(tmp_path / "out", info) as sink:
        for number in range(3):
            sink.write(coded(number), number / 25)
        info["largest"] = 0.5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
        "info.json",
    ]
    assert read_code(np.array(Image.open(tmp_path / "out" / "002.png"))) == 2
    assert json.loads((tmp_path / "out" / "info.json").read_text()) == {"a": 1, "largest": 0.5}
    with FolderSink(tmp_path / "out", count=10_001) as sink:
        sink.write(flat((1, 2, 3, 128)), 0.0)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["00000.png"]
    assert np.array(Image.open(tmp_path / "out" / "00000.png"))[0, 0].tolist() == [1, 2, 3, 128]


def test_png(tmp_path: Path) -> None:
    for frame in (coded(5), flat((1, 2, 3, 4)), coded(5)[..., 0]):
        assert write_png(tmp_path / "new" / "a.png", frame) == tmp_path / "new" / "a.png"
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), frame)


# ── nothing half-written ─────────────────────────────────────────────────────────────────────────────────

SINKS = {
    "a.mp4": lambda path: VideoSink(path, (48, 64), 25.0),
    "a.webm": lambda path: VideoSink(path, (48, 64), 25.0),
    "a.gif": lambda path: GifSink(path, 25.0),
    "out": lambda path: FolderSink(path, {}),
}


@pytest.mark.parametrize("name", SINKS)
def test_an_error_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    def attempt() -> None:
        with SINKS[name](tmp_path / name) as sink:
            sink.write(coded(1), 0.0)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attempt()
    assert list(tmp_path.iterdir()) == []
    with SINKS[name](tmp_path / name) as sink:
        sink.write(coded(2), 0.0)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(KeyError, match="mine"):
        attempt()
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", SINKS)
def test_no_frames(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="no frame to write"), SINKS[name](tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SINKS)
def test_something_in_the_way(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.write_text("x") if name == "out" else place.mkdir()
    with pytest.raises(OutputError, match="in the way"), SINKS[name](place) as sink:
        sink.write(coded(1), 0.0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError), SINKS[name](tmp_path / "file" / name) as sink:
        sink.write(coded(1), 0.0)


def write_all(sink: Any, frames: list[np.ndarray]) -> None:
    with sink:
        for number, frame in enumerate(frames):
            sink.write(frame, number / 25)


def failures(folder: Path) -> list[str]:
    """What the sinks say when noise does not fit: few frames fail at the end, many of them while writing."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(12)]
    messages = []
    for count in (2, 12):
        for sink in (
            VideoSink(folder / "a.mp4", (240, 320), 25.0),
            VideoSink(folder / "a.webm", (240, 320), 25.0),
            GifSink(folder / "a.gif", 25.0),
            FolderSink(folder / "out", {}),
        ):
            with pytest.raises(OutputError) as caught:
                write_all(sink, noise[:count])
            messages.append(str(caught.value))
    return messages


def test_file_size_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are a Unix matter")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        messages = failures(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for message in messages:
        assert message.endswith("cannot be written: File too large; nothing was left behind")
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small disk needs root on Linux")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        for message in failures(tmp_path):
            assert message.endswith("cannot be written: No space left on device; nothing was left behind")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
