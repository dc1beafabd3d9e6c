"""Files that cannot be read: one line that names the file, the fault and the mend."""

from __future__ import annotations

import os
import re
import socket
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.videos import coded, coded_video, read_code, write_tone, write_video
from tubelens.errors import VideoError
from tubelens.video import open_video, read_clip


def message(path: Path, use: Any = None) -> str:
    """The error of reading a path uniformly: always one line that names it."""
    with pytest.raises(VideoError) as caught:
        read_clip(path, frames=8, size=24) if use is None else use()
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    return text


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "none.mp4")


def test_broken_link(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    assert "no such file" in message(tmp_path / "link.mp4")


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert "is empty (0 bytes)" in message(tmp_path / "a.mp4")


def test_folder_without_images(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_text("x")
    assert "a folder without images" in message(folder)


def test_text_named_mp4(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("These are my notes.\n" * 50)
    text = message(tmp_path / "notes.mp4")
    assert "not a video that can be read" in text
    assert "cut off" not in text


def test_noise_named_mkv(tmp_path: Path) -> None:
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "not a video that can be read" in message(tmp_path / "noise.mkv")


def test_subtitles_named_mp4(tmp_path: Path) -> None:
    (tmp_path / "sub.mp4").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n\n" * 20)
    message(tmp_path / "sub.mp4")


@pytest.mark.parametrize(
    "first", ["ffconcat version 1.0\nfile 'real.mp4'\n", "#EXTM3U\n#EXTINF:1,\nreal.mp4\n"]
)
def test_a_playlist_opens_nothing_else(tmp_path: Path, first: str) -> None:
    coded_video(tmp_path / "real.mp4", 5)
    coded_video(tmp_path / "real.ts", 5)
    (tmp_path / "list.mp4").write_text(first)
    message(tmp_path / "list.mp4")


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=48000)
        write_tone(out, sound, 440.0, 0.0, 0.5)
        out.mux(sound.encode(None))
    assert "has sound but no pictures" in message(path)


def test_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=48000)
        cover: Any = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(coded(5), format="rgb24").reformat(format="yuvj420p")
        packets = cover.encode(picture) + cover.encode(None)
        out.mux(packets)
        write_tone(out, sound, 440.0, 0.0, 0.5)
        out.mux(sound.encode(None))
    with av.open(str(path)) as check:
        assert check.streams.video[0].disposition & av.stream.Disposition.attached_pic
    assert "has sound but no pictures" in message(path)


def half(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    cut = path.with_name("cut_" + path.name)
    cut.write_bytes(data[: int(len(data) * share)])
    return cut


def noisy(count: int = 120) -> list[np.ndarray]:
    """Frames of about equal size in bytes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]


def test_cut_before_the_index(tmp_path: Path) -> None:
    text = message(half(write_video(tmp_path / "a.mp4", noisy())))
    assert "cut off: its index (moov) is missing" in text


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"muxing": {"movflags": "+faststart"}}),
        ("a.mov", {"muxing": {"movflags": "+faststart"}, "codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx", "options": {"b": "3M", "cpu-used": "8"}}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("b.avi", {"codec": "mpeg4"}),
        ("tone.mkv", {"tone": 440.0}),
        ("tone.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "tone": 440.0}),
    ],
)
def test_cut_off(tmp_path: Path, name: str, options: dict[str, Any], share: float) -> None:
    whole = write_video(tmp_path / name, noisy(), **options)
    assert len(open_video(whole).times()) == 120
    path = half(whole, share)
    text = message(path)
    found = __import__("re").search(
        r"cut off: (\d+) of (\d+) frames can be read; repair or re-encode it", text
    )
    assert found, text
    got, total = map(int, found.groups())
    assert abs(total - 120) <= 1
    assert abs(got - 120 * share) <= 14
    if name == "b.avi":  # its frames are out of order, so that any reading needs the whole file
        return
    # What is there can still be read in a span ...
    assert len(list(open_video(path).between(0.4, 0.8))) == 11
    # ... but a run into the hole is no short video.
    assert "cut off" in message(path, lambda: read_clip(path, frames=16, size=24, start=1.0, stride=8))


def test_cut_in_the_first_frame(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", noisy(), muxing={"movflags": "+faststart"})
    data = whole.read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(data[: data.index(b"mdat") + 6])
    assert "cut off: 0 of 120 frames can be read" in message(path)


def test_cut_between_fragments(tmp_path: Path) -> None:
    """A fragmented MP4 does not say how many frames it has, but its last box ends past the file."""
    whole = write_video(tmp_path / "a.mp4", noisy(), muxing={"movflags": "frag_keyframe+empty_moov"})
    assert len(open_video(whole).times()) == 120
    assert re.search(r"cut off: the first \d+ frames can be read", message(half(whole)))


def test_only_the_tail_is_missing(tmp_path: Path) -> None:
    """A file without its closing index or tags has all its frames."""
    for name in ("a.mkv", "a.avi"):
        options: dict[str, Any] = {"codec": "mjpeg", "pix_fmt": "yuvj420p"} if name == "a.avi" else {}
        whole = write_video(tmp_path / name, noisy(40), **options)
        path = tmp_path / f"b_{name}"
        path.write_bytes(whole.read_bytes()[:-20])
        assert len(open_video(path).times()) == 40


def test_whole_files_are_not_called_cut_off(tmp_path: Path) -> None:
    """Sound that outlasts the pictures, and a pause at the end, are no damage."""
    path = tmp_path / "long_sound.mkv"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=48000)
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(coded(number), format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
        write_tone(out, sound, 440.0, 0.0, 5.0)
    assert len(open_video(path).times()) == 10
    times = [i / 25 for i in range(10)] + [8.0]
    assert open_video(coded_video(tmp_path / "pause.mkv", 11, seconds=times)).times()[-1] == 8.0


def write_packets(path: Path, sizes: list[tuple[int, int]], spoil: int | None = None) -> Path:
    """An MJPEG file whose frames may change size; packet `spoil` is overwritten."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, size in enumerate(sizes):
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuvj420p"
            encoder.time_base = Fraction(1, 25)
            picture = av.VideoFrame.from_ndarray(coded(number, size), format="rgb24").reformat(
                format="yuvj420p"
            )
            (packet,) = encoder.encode(picture) + encoder.encode(None)
            data = bytes(packet)
            if number == spoil:
                data = b"\0" * len(data)
            made = av.Packet(data)
            made.stream, made.pts, made.dts, made.time_base = stream, number, number, Fraction(1, 25)
            made.is_keyframe = True
            out.mux(made)
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mov"])
def test_changing_size(tmp_path: Path, name: str) -> None:
    path = write_packets(tmp_path / name, [(48, 64)] * 10 + [(64, 48)] * 10)
    text = message(path)
    assert "is 48x64, the first is 64x48: re-encode it to one size" in text
    assert len(list(open_video(path).between(0.0, 0.2))) == 6


@pytest.mark.parametrize("name", ["a.mkv", "a.mov"])
def test_a_frame_that_cannot_be_decoded(tmp_path: Path, name: str) -> None:
    path = write_packets(tmp_path / name, [(48, 64)] * 10, spoil=5)
    video = open_video(path)
    assert [read_code(f) for _, _, f in video.pick([4, 6])] == [4, 6]
    with pytest.raises(VideoError, match=rf"{name}: frame 5 cannot be decoded"):
        list(video.pick([5]))
    with pytest.raises(VideoError, match=rf"{name}: frame 5 cannot be decoded"):
        list(video.pick([4, 5, 6]))


def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "a pipe, a socket or a device" in message(tmp_path / "pipe.mp4")


def test_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("s.mp4")
        assert "a pipe, a socket or a device" in message(tmp_path / "s.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path: Path) -> None:
    path = coded_video(tmp_path / "a.mp4", 3)
    path.chmod(0)
    assert "no permission to read it" in message(path)


def test_odd_names(tmp_path: Path) -> None:
    """Names that libav would take for patterns or protocols."""
    for name in ("frame%03d.mp4", "http:x.mp4", "a b?#[1].mp4", "größe ★.mp4", "-i.mp4"):
        path = coded_video(tmp_path / "plain.mp4", 3).rename(tmp_path / name)
        assert [read_code(f) for _, _, f in open_video(path).pick([0, 2])] == [0, 2]


def test_libav_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = half(write_video(tmp_path / "a.mp4", noisy(), muxing={"movflags": "+faststart"}))
    capfd.readouterr()
    video = open_video(path)
    assert len(list(video.between(0.0, 1.0))) == 26
    with pytest.raises(VideoError):
        video.times()
    with pytest.raises(VideoError):
        list(video.run(0.0))
    assert capfd.readouterr() == ("", "")
