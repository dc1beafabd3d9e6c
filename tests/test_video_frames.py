"""Reading frames: the right ones, at the right times, upright, in true colours, no more than needed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.videos import REAL, coded, coded_video, flat, read_code, real, write_video
from tubelens.errors import InputError, OptionError
from tubelens.video import ArrayFrames, FileFrames, open_video


def check_all(path: Path, count: int, times: list[float] | None = None, fps: float = 25) -> FileFrames:
    """Every frame by `pick`, `run` and `between` carries its own number and time."""
    video = open_video(path)
    assert isinstance(video, FileFrames)
    expected = times or [i / fps for i in range(count)]
    np.testing.assert_allclose(video.times(), expected, atol=6e-4)
    assert video.times()[0] == 0.0
    every = list(video.pick(range(count)))
    assert [(i, read_code(f)) for i, _, f in every] == [(i, i) for i in range(count)]
    np.testing.assert_allclose([t for _, t, _ in every], video.times(), atol=1e-9)
    assert [read_code(f) for _, _, f in video.pick([1, count // 2, count - 1])] == [1, count // 2, count - 1]
    a, b = count // 3, 2 * count // 3
    span = list(open_video(path).between(expected[a], expected[b]))
    assert [read_code(f) for _, f in span] == list(range(a, b + 1))
    np.testing.assert_allclose([t for t, _ in span], expected[a : b + 1], atol=6e-4)
    assert [read_code(f) for _, f in open_video(path).run(expected[a], 3)] == list(range(a, count, 3))
    return video


CONTAINERS = {
    "h264.mp4": {"options": {"crf": "12", "preset": "medium", "bf": "3"}},
    "h264.mkv": {"options": {"crf": "12", "preset": "medium", "bf": "3"}},
    "h264.mov": {},
    "hevc10.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "hevc.mkv": {"codec": "libx265"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "q:v": "2"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"q:v": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "h264.avi": {"options": {"crf": "12", "preset": "medium", "bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "4"}},
    "rgb.mkv": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "h264.ts": {},
    "raw.264": {"options": {"crf": "12", "preset": "medium", "bf": "2"}},
    "raw.m4v": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_frame_of_every_container(tmp_path: Path, name: str) -> None:
    path = coded_video(tmp_path / name, 40, **CONTAINERS[name])
    video = check_all(path, 40)
    assert video.fps == pytest.approx(25, rel=0.02)
    assert video.size == (48, 64)
    assert not video.has_audio


def test_gif(tmp_path: Path) -> None:
    write_video(
        tmp_path / "a.gif",
        (coded(i) for i in range(30)),
        codec="gif",
        pix_fmt="gray",
        fps=25,
        source_format="rgb24",
    )
    check_all(tmp_path / "a.gif", 30)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_variable_frame_rate(tmp_path: Path, suffix: str) -> None:
    steps = np.tile([0.02, 0.05, 0.02, 0.11], 10)
    times = [0.0, *np.cumsum(steps).tolist()]
    codec = {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}} if suffix == "webm" else {}
    path = coded_video(tmp_path / f"vfr.{suffix}", len(times), seconds=times, **codec)
    check_all(path, len(times), times)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_first_time_stamp_not_zero(tmp_path: Path, suffix: str) -> None:
    times = [1.4 + i / 25 for i in range(40)]
    path = coded_video(tmp_path / f"late.{suffix}", 40, seconds=times)
    check_all(path, 40)


def test_edit_list_hides_frames(tmp_path: Path) -> None:
    """Negative time stamps become an edit list: the frames before zero are decoded, but not shown."""
    path = coded_video(
        tmp_path / "edit.mp4",
        30,
        seconds=[(i - 5) / 25 for i in range(30)],
        options={"bf": "0", "crf": "12"},
        muxing={"avoid_negative_ts": "disabled", "use_editlist": "1"},
    )
    video = open_video(path)
    shown = [read_code(f) for _, _, f in video.pick(range(len(video.times())))]
    assert shown == list(range(5, 30))
    assert [read_code(f) for _, f in video.between(0.2, 0.4)] == list(range(10, 16))
    assert [read_code(f) for _, f in video.run(0.2, 5)] == [10, 15, 20, 25]


@pytest.mark.parametrize("size", [(47, 65), (33, 49), (35, 66)])
@pytest.mark.parametrize("codec", ["libvpx-vp9", "ffv1"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], codec: str) -> None:
    path = tmp_path / ("odd.webm" if codec == "libvpx-vp9" else "odd.mkv")
    coded_video(path, 12, size, codec=codec, options={"cpu-used": "8"} if codec == "libvpx-vp9" else {})
    video = open_video(path)
    assert video.size == size
    for number, _, frame in video.pick(range(12)):
        assert frame.shape == (*size, 3)
        assert read_code(frame) == number
        # the last row and column are right, too
        error = np.abs(frame.astype(int) - coded(number, size).astype(int))
        assert error[-1].mean() < 12
        assert error[:, -1].mean() < 12


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("hflip", [False, True])
def test_rotation(tmp_path: Path, rotation: int, hflip: bool) -> None:
    """What is stored is the inverse of what the display matrix asks for, so it must come out upright."""

    def stored(frame: np.ndarray) -> np.ndarray:
        # the matrix rotates counter-clockwise, then mirrors left to right
        frame = frame[:, ::-1] if hflip else frame
        return np.rot90(frame, -rotation // 90)

    frames = [stored(coded(i + 1024, (48, 96))) for i in range(8)]
    path = write_video(tmp_path / "turned.mp4", frames, rotation=rotation, hflip=hflip)
    video = open_video(path)
    assert video.size == (48, 96)
    assert [read_code(f) for _, _, f in video.pick(range(8))] == [i + 1024 for i in range(8)]
    if not hflip:
        assert video.rotation == rotation


def test_rotation_agrees_with_pyav(tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", [coded(i) for i in range(3)], rotation=90)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation == 90
    assert open_video(path).rotation == 90
    assert open_video(path).size == (64, 48)


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hd709.mp4", {"colorspace": 1}),
        ("sd601.mp4", {"colorspace": 6}),
        ("sd601b.mp4", {"colorspace": 5}),
        ("untagged.mp4", {}),
        ("full.mp4", {"full_range": True, "pix_fmt": "yuvj420p"}),
        (
            "mjpeg.avi",
            {
                "full_range": True,
                "pix_fmt": "yuvj420p",
                "codec": "mjpeg",
                "options": {"qmin": "1", "qmax": "1"},
            },
        ),
        ("ten.mp4", {"colorspace": 1, "pix_fmt": "yuv420p10le", "codec": "libx265"}),
        ("prores.mov", {"colorspace": 1, "pix_fmt": "yuv422p10le", "codec": "prores_ks"}),
        ("planes.mkv", {"codec": "libx264rgb", "pix_fmt": "rgb24"}),
        ("nv.mkv", {"codec": "ffv1", "pix_fmt": "yuv444p", "colorspace": 1}),
        (
            "vp9.webm",
            {"codec": "libvpx-vp9", "colorspace": 1, "options": {"cpu-used": "8", "crf": "4", "b": "0"}},
        ),
    ],
)
def test_colours(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    path = write_video(tmp_path / name, [flat(c) for c in COLOURS], gop=1, **options)  # type: ignore[arg-type]
    for (_, _, frame), colour in zip(open_video(path).pick(range(len(COLOURS))), COLOURS, strict=True):
        assert np.abs(frame.reshape(-1, 3).mean(axis=0) - colour).max() < 5, (colour, frame[20, 20])


@pytest.mark.parametrize("pix_fmt", ["gray", "gray16le", "gray10le"])
def test_grey(tmp_path: Path, pix_fmt: str) -> None:
    levels = [0, 64, 128, 255]
    path = tmp_path / "grey.mkv"
    write_video(path, [flat((v, v, v)) for v in levels], codec="ffv1", pix_fmt=pix_fmt, full_range=True)
    for (_, _, frame), level in zip(open_video(path).pick(range(4)), levels, strict=True):
        assert np.abs(frame.astype(int) - level).max() <= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alpha.mov", {"codec": "qtrle", "pix_fmt": "argb"}),
        ("alpha.mkv", {"codec": "ffv1", "pix_fmt": "bgra"}),
        ("alpha.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "options": {"crf": "4", "b": "0"}}),
        (
            "alpha8.webm",
            {"codec": "libvpx", "pix_fmt": "yuva420p", "options": {"auto-alt-ref": "0", "b": "2M"}},
        ),
    ],
)
def test_alpha_lies_over_black(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    frame = flat((200, 100, 50, 255))
    frame[:, 32:, 3] = 0
    frame[24:, :32, 3] = 128
    path = write_video(tmp_path / name, [frame] * 5, source_format="rgba", **options)  # type: ignore[arg-type]
    for _, _, shown in open_video(path).pick(range(5)):
        assert np.abs(shown[4:20, 4:28].astype(int) - (200, 100, 50)).max() < 8
        assert np.abs(shown[28:44, 4:28].astype(int) - (100, 50, 25)).max() < 8
        assert shown[4:44, 36:60].max() < 8


def test_gif_transparency_and_palette(tmp_path: Path) -> None:
    from PIL import Image

    frames = []
    for number in range(4):
        image = Image.fromarray(coded(number, low=40)).convert("RGBA")
        image.putpixel((0, 0), (255, 255, 255, 0))
        frames.append(image)
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 100, 200, 40], disposal=2)
    video = open_video(path)
    np.testing.assert_allclose(video.times(), [0, 0.04, 0.14, 0.34])
    for number, _, frame in video.pick(range(4)):
        assert read_code(frame) == number
        assert frame[0, 0].max() == 0


# ── no more than needed ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return coded_video(path, 3000, (24, 32), gop=25, options={"crf": "20", "preset": "ultrafast"})


def test_pick_decodes_few(long_video: Path) -> None:
    video = open_video(long_video)
    wanted = [int(i) for i in np.linspace(0, 2999, 16)]
    assert [read_code(f) for _, _, f in video.pick(wanted)] == wanted
    assert video.decoded <= 16 * (25 + 3)


def test_times_decode_nothing(long_video: Path) -> None:
    video = open_video(long_video)
    assert len(video.times()) == 3000
    assert video.decoded == 0


def test_between_stops(long_video: Path) -> None:
    video = open_video(long_video)
    assert [read_code(f) for _, f in video.between(60.4, 60.8)] == list(range(1510, 1521))
    assert video.decoded <= 10 + 11 + 1 + 25
    assert video._known is None  # no pass over the whole file


def test_run_is_lazy(long_video: Path) -> None:
    video = open_video(long_video)
    run = video.run(80.0, 2)
    assert [read_code(next(run)[1]) for _ in range(8)] == list(range(2000, 2016, 2))
    assert video.decoded <= 25 + 16 + 1
    assert video._known is None


def test_between_tolerates_rounding(long_video: Path) -> None:
    video = open_video(long_video)
    assert [read_code(f) for _, f in video.between(4.011, 4.089)] == [100, 101, 102]
    assert [read_code(f) for _, f in video.between(4.03, 4.05)] == [101]
    assert list(video.between(500.0, 600.0)) == []


def test_run_begins_with_the_frame_on_screen(long_video: Path) -> None:
    video = open_video(long_video)
    assert read_code(next(video.run(4.039))[1]) == 101  # a tenth of a frame before 4.04 still counts as 4.04
    assert read_code(next(video.run(4.03))[1]) == 100
    assert read_code(next(video.run(4.0))[1]) == 100
    assert [read_code(f) for _, f in video.run(119.99)] == [2999]
    with pytest.raises(
        OptionError, match=r"long\.mp4: start 120 s is past the end: the video lasts 120\.00 s"
    ):
        next(video.run(120.0))
    with pytest.raises(OptionError, match=r"start 1e\+06 s is past the end"):
        next(video.run(1e6))


def test_passes_do_not_disturb_each_other(long_video: Path) -> None:
    video = open_video(long_video)
    first, second = video.pick(range(100, 120)), video.between(20.0, 21.0)
    pairs = [(read_code(a[2]), read_code(b[1])) for a, b in zip(first, second, strict=False)]
    assert pairs == [(100 + i, 500 + i) for i in range(20)]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_open_gop_seek(tmp_path: Path, suffix: str) -> None:
    """Frames that lead a keyframe need the group before it."""
    path = coded_video(
        tmp_path / f"open.{suffix}",
        60,
        codec="libx265",
        options={"x265-params": "log-level=none:open-gop=1:bframes=4:b-adapt=0:keyint=12:min-keyint=12"},
    )
    video = open_video(path)
    for number in range(60):
        assert [read_code(f) for _, _, f in video.pick([number])] == [number]
        assert read_code(next(video.run(number / 25))[1]) == number


def remux(source: Path, target: Path, change: Callable[[int, bytes, bool], tuple[bytes, bool]]) -> Path:
    """Copy packets; `change(number, data, is_keyframe)` gives what is written."""
    with av.open(str(source)) as given, av.open(str(target), "w") as out:
        stream = given.streams.video[0]
        copy: Any = out.add_stream_from_template(stream)
        for number, packet in enumerate(p for p in given.demux(stream) if p.size):
            data, key = change(number, bytes(packet), packet.is_keyframe)
            made = av.Packet(data)
            made.stream, made.pts, made.dts, made.time_base = copy, packet.pts, packet.dts, packet.time_base
            made.duration, made.is_keyframe = packet.duration, key
            out.mux(made)
    return target


def test_a_keyframe_that_is_none(tmp_path: Path) -> None:
    """A frame wrongly marked as a keyframe yields nothing after a seek; reading starts over."""
    whole = coded_video(tmp_path / "a.mp4", 60, codec="libx265", gop=60)
    path = remux(whole, tmp_path / "b.mp4", lambda number, data, key: (data, key or number == 30))
    video = open_video(path)
    assert [read_code(f) for _, _, f in video.pick([35, 50])] == [35, 50]
    assert video._known is not None
    assert len(video._known.keys) == 2  # the wrong mark is there, and was tried


def test_hidden_vp8_frames_are_not_counted(tmp_path: Path) -> None:
    whole = coded_video(tmp_path / "a.webm", 20, codec="libvpx", options={"b": "1M", "auto-alt-ref": "0"})

    def hide(number: int, data: bytes, key: bool) -> tuple[bytes, bool]:
        return (bytes([data[0] & ~16]) + data[1:] if number == 7 else data), key

    video = open_video(remux(whole, tmp_path / "b.webm", hide))
    shown = [i for i in range(20) if i != 7]
    np.testing.assert_allclose(video.times(), [i / 25 for i in shown], atol=6e-4)
    assert [read_code(f) for _, _, f in video.pick(range(19))] == shown


def test_a_stream_that_begins_between_keyframes(tmp_path: Path) -> None:
    """What cannot be decoded before the first keyframe is not counted."""
    data = coded_video(tmp_path / "a.ts", 60, gop=20).read_bytes()
    path = tmp_path / "b.ts"
    path.write_bytes(data[: 188 * 3] + data[len(data) // 188 // 6 * 188 :])
    video = open_video(path)
    every = [read_code(f) for _, _, f in video.pick(range(len(video.times())))]
    assert every == list(range(60 - len(every), 60))
    assert 20 <= len(every) < 60
    assert video.times()[-1] == pytest.approx((len(every) - 1) / 25)


@pytest.mark.parametrize("wanted", [[3, 2], [2, 2], [-1], [40]])
def test_pick_checks_numbers(tmp_path: Path, wanted: list[int]) -> None:
    video = open_video(coded_video(tmp_path / "a.mp4", 40))
    with pytest.raises(OptionError):
        list(video.pick(wanted))


def test_hash(tmp_path: Path) -> None:
    import hashlib

    path = coded_video(tmp_path / "a.mp4", 5)
    assert open_video(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


# ── arrays ───────────────────────────────────────────────────────────────────────────────────────────────


def test_array() -> None:
    array = np.stack([coded(i) for i in range(20)])
    with open_video(array, fps=10.0) as video:
        assert isinstance(video, ArrayFrames)
        assert (video.path, video.size, video.fps, video.has_audio) == (None, (48, 64), 10.0, False)
        assert video.sha256() is None
        assert video.times() == [i / 10 for i in range(20)]
        assert [(i, t, read_code(f)) for i, t, f in video.pick([2, 7])] == [(2, 0.2, 2), (7, 0.7, 7)]
        assert [read_code(f) for _, f in video.between(0.5, 0.8)] == [5, 6, 7, 8]
        assert [read_code(f) for _, f in video.run(1.25, 3)] == [12, 15, 18]
        with pytest.raises(OptionError, match="past the end"):
            next(video.run(2.0))


def test_float_array_is_shown_as_bytes() -> None:
    array = np.array([0.0, 0.5, 1.0], np.float32).reshape(3, 1, 1, 1)
    frames = [f for _, _, f in open_video(array).pick(range(3))]
    assert [f.tolist() for f in frames] == [[[[v] * 3]] for v in (0, 128, 255)]
    assert frames[0].dtype == np.uint8


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 3, 3)), np.zeros((0, 2, 2, 3)), np.full((1, 2, 2, 3), 1.5), np.zeros((1, 2, 2, 3), int)],
)
def test_bad_arrays(bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        open_video(bad)


def test_bad_rates(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="fps must be positive"):
        open_video(np.zeros((1, 2, 2, 3), np.uint8), fps=0.0)
    with pytest.raises(OptionError, match="a file has its own times"):
        open_video(coded_video(tmp_path / "a.mp4", 3), fps=30.0)


# ── real files ───────────────────────────────────────────────────────────────────────────────────────────

FILES = sorted(p for p in REAL.glob("clips/*/*") if p.suffix in (".mp4", ".avi", ".mkv", ".gif"))


@pytest.mark.parametrize("path", FILES or [None], ids=lambda p: p.name if p else "none")
def test_real_files_against_a_plain_decoding(path: Path | None) -> None:
    """Number of frames, and sampled pixels, equal those of decoding everything in order."""
    if path is None:
        pytest.skip("real videos are not here")
    video = open_video(path)
    count = len(video.times())
    wanted = sorted({int(i) for i in np.linspace(0, count - 1, 6)})
    picked = {i: f for i, _, f in video.pick(wanted)}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        number = -1
        for number, frame in enumerate(container.decode(video=0)):
            if number in picked:
                np.testing.assert_array_equal(picked[number], frame.to_ndarray(format="rgb24"))
    assert number + 1 == count
    assert all(b > a for a, b in zip(video.times(), video.times()[1:], strict=False))
    middle = video.times()[count // 2]
    np.testing.assert_array_equal(
        next(iter(video.between(middle, middle)))[1], next(iter(video.pick([count // 2])))[2]
    )


def test_real_rates() -> None:
    """Raw MPEG-4 named .mp4: its header says 25, its frames come 29.97 times a second."""
    assert open_video(real("clips", "ucf101_24", "v_Biking_g01_c01.mp4")).fps == pytest.approx(30000 / 1001)
    assert open_video(real("clips", "other", "bikes.mp4")).fps == 25


def test_rate_of_a_fraction(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "ntsc.mp4", 60, fps=Fraction(30000, 1001))
    video = open_video(path)
    assert video.fps == pytest.approx(30000 / 1001)
    np.testing.assert_allclose(video.times(), np.arange(60) * 1001 / 30000, atol=1e-4)
